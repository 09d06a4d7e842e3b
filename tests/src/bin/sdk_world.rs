//! A coordinator with people at work, for the tests of the bindings and for who embeds a client and
//! wants to see it work: `sdk-world [PEOPLE]`.
//!
//! It prints one line of JSON when it is ready, and answers one line for each that it reads:
//!
//! | it reads | it answers |
//! |---|---|
//! | `invite NAME` | `{"invitation": ..}` |
//! | `forget NAME` | `{"deletion": N}`, when the deletion is done |
//! | `trained` | `{"release": N}`, when a round has ended and what it made is served |
//! | `tables` | `{"snapshot": N}`, when there are tables |
//! | `stop` | `{"stopped": true}`: the coordinator is away |
//! | `start` | `{"started": true}`: it is back at its address |
//!
//! It ends with its standard input. Training begins when one more person than the people in here
//! has joined: the app.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use lethe_coordinator::config::ServerConfig;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use lethe_tests::tiny;
use lethe_tests::world::{Fleet, Operator, World, kill};
use serde_json::{Value, json};

/// People who take part beside the app, where no number is given: with the app enough for the first
/// tables (four cells of two).
const PEOPLE: u32 = 7;

struct Sandbox {
    world: World,
    config: ServerConfig,
    binary: PathBuf,
    process: Child,
    addr: SocketAddr,
    operator: Operator,
    _fleet: Fleet,
}

impl Sandbox {
    async fn start(people: u32) -> Self {
        let mut world = World::new(people + 1);
        let mut config = world.config_with_lists("");
        let binary = std::env::current_exe().expect("this program has a path");
        let binary = binary.with_file_name("coordinator-process");
        let (process, addr) = spawn(&world, &binary, &config);
        // It comes back at the same place.
        config.listen = addr;
        let operator = world.operator(addr).await;
        // Everybody but the app is here; the coordinator waits for one person more.
        world.subjects = people;
        let fleet = world.fleet(addr, &operator).await;
        Self {
            world,
            config,
            binary,
            process,
            addr,
            operator,
            _fleet: fleet,
        }
    }

    fn ready(&self) -> Value {
        let folder = |name: &str| self.world.dir.path().join(name);
        let history = tiny::history(self.world.subjects);
        let history = history
            .iter()
            .map(|e| json!({"item": e.item, "kind": e.kind, "time": e.time}));
        json!({
            "server": self.addr.to_string(),
            "catalogue": folder("data"),
            "model": folder("model"),
            "layers_in": 1,
            "layers_out": 1,
            "history": history.collect::<Vec<_>>(),
        })
    }

    async fn answer(&mut self, line: &str) -> Value {
        let (verb, name) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "invite" => json!({"invitation": self.operator.invite_named(name).await}),
            "forget" => {
                let subject = SubjectId::new(name).expect("a valid name");
                let asked = self
                    .operator
                    .ask_for(vec![DeletionRequest::Erase { subject }]);
                let id = asked.await.expect("accepted")[0];
                self.operator.deleted(id).await;
                json!({"deletion": id})
            }
            "trained" => json!({"release": self.operator.trained().await.release}),
            "tables" => loop {
                if let Some(number) = self.operator.lists().await.served {
                    break json!({"snapshot": number});
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            },
            "stop" => {
                kill(&mut self.process);
                json!({"stopped": true})
            }
            "start" => {
                let started = spawn(&self.world, &self.binary, &self.config);
                self.process = started.0;
                self.addr = started.1;
                self.operator = self.operator.reconnect(self.addr).await;
                json!({"started": true})
            }
            other => json!({"error": format!("no such command: {other:?}")}),
        }
    }
}

fn spawn(world: &World, binary: &Path, config: &ServerConfig) -> (Child, SocketAddr) {
    world.spawn(binary, config, &world.dir.path().join("coordinator.log"))
}

fn say(value: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let people = match std::env::args().nth(1) {
        Some(number) => number.parse()?,
        None => PEOPLE,
    };
    // The people work on the runtime's threads while this one waits for a line.
    let runtime = tokio::runtime::Runtime::new()?;
    let mut sandbox = runtime.block_on(Sandbox::start(people));
    say(&sandbox.ready())?;
    for line in std::io::stdin().lines() {
        let answer = runtime.block_on(sandbox.answer(line?.trim()));
        say(&answer)?;
    }
    kill(&mut sandbox.process);
    Ok(())
}
