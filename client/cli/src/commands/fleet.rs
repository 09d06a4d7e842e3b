//! `lethe fleet`: many clients in one process, each with its own identity, connection and sealed
//! state; they share only the frozen weights. Commands arrive on standard input, one JSON object a
//! line; answers leave on standard output the same way. It ends when standard input closes.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use lethe_client::{
    Catalogue, Client, ClientError, ClientModel, Cutoffs, LocalEvent, ModelOptions, Options, Source,
};
use lethe_recipe::Recipe;
use lethe_recsys::data::{DataSpec, Dataset, load};
use lethe_recsys::samples::{Part, Split, event_parts};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::load::{self as load_test, LoadArgs};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// JSON file: server, model, data, home, split, recipe, passes, clients.
    #[arg(long, required_unless_present = "clients", conflicts_with = "clients")]
    config: Option<PathBuf>,
    #[command(flatten)]
    load: LoadArgs,
}

/// What a fleet runs.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FleetConfig {
    /// The coordinator.
    pub(crate) server: SocketAddr,
    /// Base model.
    pub(crate) model: PathBuf,
    /// Data set: each client takes its own user's rows and no others.
    pub(crate) data: PathBuf,
    /// Folder of the clients' states.
    pub(crate) home: PathBuf,
    /// How histories are divided for the evaluation.
    pub(crate) split: Split,
    /// The recipe's keys, as TOML: they decide how the model is loaded.
    pub(crate) recipe: String,
    /// Passes that run at once.
    pub(crate) passes: usize,
    /// `(user, invitation)`; the invitation is used by clients that have no identity yet.
    pub(crate) clients: Vec<(String, String)>,
}

impl FleetConfig {
    fn options(&self) -> anyhow::Result<ModelOptions> {
        let recipe = Recipe::from_toml(&self.recipe)?;
        Ok(ModelOptions {
            split: recipe.split,
            compute: recipe.compute,
        })
    }
}

/// A command on standard input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "cmd")]
pub(crate) enum Command {
    /// Take part in rounds, or pause. A fleet starts paused; other commands pause it while they
    /// run.
    Work {
        /// Take part.
        on: bool,
    },
    /// Score every client's test samples.
    Evaluate {
        /// Without adapters.
        untrained: bool,
        /// Most samples per client.
        limit: usize,
    },
    /// Rank candidates for one client.
    Recommend {
        /// The client.
        subject: String,
        /// Candidates, chosen by the caller from the public catalogue.
        candidates: Vec<String>,
        /// Length of the list.
        n: usize,
    },
    /// Bytes and memory.
    Stats,
    /// A client leaves for good: its local state is destroyed.
    Erase {
        /// The client.
        subject: String,
    },
}

type Clients = BTreeMap<String, Client>;

/// What the clients share.
struct Common {
    model: Arc<ClientModel>,
    catalogue: Arc<Catalogue>,
    passes: Arc<Semaphore>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Some(path) = args.config.as_ref().filter(|_| !args.load.wanted()) else {
        return load_test::run(&args.load);
    };
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    let config: FleetConfig =
        serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

fn say(value: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

async fn serve(config: FleetConfig) -> anyhow::Result<()> {
    let common = Common {
        model: ClientModel::load(&config.model, config.options()?)?,
        catalogue: Catalogue::load(&config.data)?,
        passes: Arc::new(Semaphore::new(config.passes)),
    };
    let one_device_mib = resident_mib();
    let data = load(&config.data, &DataSpec::of_folder(&config.data)?, false)?;
    let mut clients = Clients::new();
    for (user, invitation) in &config.clients {
        let client = build(&config, &data, user, invitation, &common).await;
        clients.insert(
            user.clone(),
            client.with_context(|| format!("client {user}"))?,
        );
    }
    drop(data);
    for (user, client) in &clients {
        client
            .join()
            .await
            .with_context(|| format!("client {user}"))?;
    }
    let idle_mib = resident_mib();
    say(
        &json!({ "ready": clients.len(), "one_device_mib": one_device_mib, "fleet_mib": idle_mib,
        "device_weights_mib": common.model.weight_bytes() as f64 / 1048576.0 }),
    )?;
    let on = watch::Sender::new(false);
    for client in clients.values() {
        tokio::spawn(work(client.clone(), on.subscribe()));
    }
    let mut commands = lines();
    while let Some(line) = commands.recv().await {
        let answer = match serde_json::from_str::<Command>(&line) {
            Ok(Command::Work { on: wanted }) => {
                on.send_replace(wanted);
                Ok(json!({ "working": wanted }))
            }
            Ok(command) => {
                let before = on.send_replace(false);
                let answer = execute(command, &mut clients, &common.catalogue).await;
                on.send_replace(before);
                answer
            }
            Err(e) => Err(e.into()),
        };
        say(&answer.unwrap_or_else(|e| json!({ "error": format!("{e:#}") })))?;
    }
    Ok(())
}

/// Standard input on a plain thread, so that the runtime can end while it waits.
fn lines() -> tokio::sync::mpsc::Receiver<String> {
    let (send, receive) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receive
}

/// A client with its own user's rows, as if they had been recorded on the device.
async fn build(
    config: &FleetConfig,
    data: &Dataset,
    user: &str,
    invitation: &str,
    common: &Common,
) -> anyhow::Result<Client> {
    let index = data
        .users
        .iter()
        .position(|u| u == user)
        .context("no such user in the data")? as u32;
    let parts = event_parts(data, config.split);
    let own: Vec<_> = data
        .events
        .iter()
        .zip(parts)
        .filter(|(e, _)| e.user == index)
        .map(|(e, p)| {
            let event = LocalEvent {
                item: data.items[e.item as usize].id.clone(),
                time: e.time,
                kind: e.kind,
                value: e.rating,
            };
            (event, p)
        })
        .collect();
    // Cutoffs are about likes and dislikes: events that are neither train nothing.
    let trains = |e: &LocalEvent| common.catalogue.reading(e).liked.is_some();
    let of_part = |part: Part| own.iter().filter(move |(_, p)| *p == part);
    let count = |part: Part| of_part(part).filter(|(e, _)| trains(e)).count();
    let train = count(Part::Train);
    let cutoffs = Cutoffs {
        train,
        validate: train + count(Part::Validation),
    };
    let options = Options::new(common.catalogue.clone())
        .server(config.server)
        .model(common.model.clone())
        .cutoffs(cutoffs)
        .passes(common.passes.clone())
        .invitation(invitation)
        .runtime(Handle::current());
    let client = Client::open(config.home.join(user), options)?;
    client.connect().await?;
    if client.history().is_empty() {
        client.record_all(own.into_iter().map(|(e, _)| e))?;
    }
    Ok(client)
}

/// Looks for work while `on`; a command switches that off to get its turn without waiting for a
/// poll to end.
async fn work(client: Client, mut on: watch::Receiver<bool>) {
    loop {
        if on.wait_for(|on| *on).await.is_err() {
            return;
        }
        let task = tokio::select! {
            off = on.wait_for(|on| !*on) => {
                if off.is_err() {
                    return;
                }
                continue;
            }
            task = client.next_task() => task,
        };
        let outcome = match task {
            Ok(Some(task)) => client.perform(task).await.map(|_| ()),
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        match outcome {
            Ok(()) => {}
            Err(ClientError::Erased | ClientError::Closed) => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

async fn execute(
    command: Command,
    clients: &mut Clients,
    catalogue: &Catalogue,
) -> anyhow::Result<Value> {
    match command {
        Command::Work { .. } => Ok(json!({})),
        Command::Evaluate { untrained, limit } => evaluate(clients, untrained, limit).await,
        Command::Recommend {
            subject,
            candidates,
            n,
        } => {
            let client = clients.get(&subject).context("no such client")?;
            let started = Instant::now();
            let list = client.recommend(&candidates, n).await?;
            let items: Vec<Value> = list
                .items
                .iter()
                .map(|r| {
                    let title = catalogue.item(&r.item).map(|i| i.label());
                    json!({ "item": r.item, "title": title, "score": r.score })
                })
                .collect();
            let live = matches!(list.source, Source::Live { .. });
            Ok(json!({ "live": live, "items": items, "seconds": started.elapsed().as_secs_f64() }))
        }
        Command::Stats => {
            let (mut updates, mut activations, mut samples) = (0, 0, 0);
            for client in clients.values() {
                let s = client.stats();
                updates += s.update_bytes;
                activations += s.activation_bytes;
                samples += s.samples;
            }
            Ok(json!({
                "clients": clients.len(), "updates": updates, "activations": activations,
                "samples": samples, "peak_mib": peak_mib(),
            }))
        }
        Command::Erase { subject } => {
            let client = clients.remove(&subject).context("no such client")?;
            client.erase()?;
            Ok(json!({ "erased": subject }))
        }
    }
}

async fn evaluate(clients: &Clients, untrained: bool, limit: usize) -> anyhow::Result<Value> {
    let mut tasks = vec![];
    for (user, client) in clients {
        let (user, client) = (user.clone(), client.clone());
        tasks.push(tokio::spawn(async move {
            let scored = client.evaluate(untrained, limit).await?;
            anyhow::Ok(
                scored
                    .into_iter()
                    .map(|s| json!([user, s.item, s.time, s.score, s.label]))
                    .collect::<Vec<_>>(),
            )
        }));
    }
    let mut rows = vec![];
    for t in tasks {
        rows.extend(t.await??);
    }
    Ok(json!({ "rows": rows }))
}

fn status_mib(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or(0.0)
        / 1024.0
}

fn resident_mib() -> f64 {
    status_mib("VmRSS:")
}

fn peak_mib() -> f64 {
    status_mib("VmHWM:")
}
