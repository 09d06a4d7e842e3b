//! `lethe fleet`: many clients in one process, each with its own identity, connection and sealed
//! state; they share only the frozen weights and the catalogue. Commands arrive on standard input,
//! one JSON object a line; answers leave on standard output the same way. It ends when standard
//! input closes.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use lethe_client::{
    Catalogue, Client, ClientError, ClientModel, Cutoffs, LocalEvent, ModelOptions, Options, Place,
    Source,
};
use lethe_model::engine::Engine;
use lethe_recipe::Recipe;
use lethe_recsys::data::{DataSpec, Dataset, load};
use lethe_recsys::samples::{Part, Split, event_parts};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

use super::load::{self as load_test, LoadArgs};
use crate::demo::listers::{self, People, Person};

/// Clients that enrol and join at the same time.
const AT_ONCE: usize = 8;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// JSON file: server, model, data, home, split, recipe, passes, clients, listers, newcomer.
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
    pub(crate) server: Place,
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
    /// `(user, invitation)` of those who train adapters; the invitation is used by clients that
    /// have no identity yet.
    pub(crate) clients: Vec<(String, String)>,
    /// The same of those who have no model, and take part in lists only.
    pub(crate) listers: Vec<(String, String)>,
    /// Invitation of somebody who is not in the data set.
    pub(crate) newcomer: String,
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
    /// Everybody contributes to the sums of the lists.
    Contribute,
    /// Everybody fetches tables after this number.
    Fetch {
        /// The number.
        after: u64,
    },
    /// Rank and score what is held out of everybody.
    Quality,
    /// The list of one client.
    Top {
        /// The client.
        subject: String,
        /// Its length.
        n: usize,
    },
    /// Lists of somebody who has just come.
    Newcomer {
        /// When, in seconds since 1970.
        at: i64,
    },
    /// Begins to measure memory: the peak of what was before does not count.
    Settle,
    /// Those who train record what was held out of them, to be tested on it.
    RecordHeldOut,
    /// Score every training client's test samples.
    Evaluate {
        /// Without adapters.
        untrained: bool,
        /// Most samples per client.
        limit: usize,
    },
    /// Rank candidates for one client over the split.
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

/// Everybody of the fleet.
struct Fleet {
    /// Those who train adapters, too.
    trainers: People,
    /// All of them.
    everybody: People,
    /// Somebody who is not in the data set.
    newcomer: Client,
    catalogue: Arc<Catalogue>,
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
    // Many devices share one copy here: what counts is speed, and not what one phone can hold.
    let engine = Engine::from_env()?;
    let model = ClientModel::load_on(&engine, &config.model, config.options()?)?;
    let one_device_mib = resident_mib();
    let mut fleet = open(&config, &model)?;
    join(&fleet.everybody).await?;
    let idle_mib = resident_mib();
    say(&json!({
        "ready": fleet.everybody.len(), "training": fleet.trainers.len(),
        "one_device_mib": one_device_mib, "fleet_mib": idle_mib,
        "device_weights_mib": model.weight_bytes() as f64 / 1048576.0,
    }))?;
    let on = watch::Sender::new(false);
    for person in fleet.trainers.values() {
        tokio::spawn(work(person.client.clone(), on.subscribe()));
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
                let answer = execute(command, &mut fleet).await;
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

/// What all clients of a fleet share.
struct Shared<'a> {
    config: &'a FleetConfig,
    catalogue: Arc<Catalogue>,
    passes: Arc<Semaphore>,
}

impl Shared<'_> {
    fn options(&self, invitation: &str) -> Options {
        Options::new(self.catalogue.clone())
            .server(self.config.server.clone())
            .invitation(invitation)
            .passes(self.passes.clone())
            .runtime(tokio::runtime::Handle::current())
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.config.home.join(name)
    }
}

/// Opens all clients, each with its own user's rows, as if they had been recorded on the device.
fn open(config: &FleetConfig, model: &Arc<ClientModel>) -> anyhow::Result<Fleet> {
    // Whoever starts a fleet has read the folder, and said what became of its rows.
    let data = load(&config.data, &DataSpec::of_folder(&config.data)?, false)?;
    let shared = Shared {
        config,
        catalogue: Catalogue::load(&config.data)?,
        passes: Arc::new(Semaphore::new(config.passes)),
    };
    let rows = Rows::new(&data, config.split);
    let mut fleet = Fleet {
        trainers: People::new(),
        everybody: People::new(),
        newcomer: Client::open(
            shared.folder("newcomer"),
            shared.options(&config.newcomer).contribute(false),
        )?,
        catalogue: shared.catalogue.clone(),
    };
    for (user, invitation) in &config.clients {
        let own = rows.of(&data, user)?;
        let options = shared.options(invitation).cutoffs(own.cutoffs);
        let options = options.model(model.clone());
        let person = person(&shared.folder(user), options, own)?;
        fleet.trainers.insert(user.clone(), person.clone());
        fleet.everybody.insert(user.clone(), person);
    }
    for (user, invitation) in &config.listers {
        let own = rows.of(&data, user)?;
        let person = person(&shared.folder(user), shared.options(invitation), own)?;
        fleet.everybody.insert(user.clone(), person);
    }
    Ok(fleet)
}

/// Rows of each user, with their part.
struct Rows(Vec<Vec<(lethe_recsys::data::Event, Part)>>);

/// A user's own events.
struct Own {
    known: Vec<LocalEvent>,
    held_out: Vec<(LocalEvent, bool)>,
    cutoffs: Cutoffs,
}

impl Rows {
    fn new(data: &Dataset, split: Split) -> Self {
        let mut rows = vec![vec![]; data.users.len()];
        for (event, part) in data.events.iter().zip(event_parts(data, split)) {
            rows[event.user as usize].push((*event, part));
        }
        Self(rows)
    }

    fn of(&self, data: &Dataset, user: &str) -> anyhow::Result<Own> {
        let index = data.users.iter().position(|u| u == user);
        let own = &self.0[index.with_context(|| format!("no user {user} in the data"))?];
        let event = |e: &lethe_recsys::data::Event| LocalEvent {
            item: data.items[e.item as usize].id.clone(),
            time: e.time,
            kind: e.kind,
            value: e.rating,
        };
        let count = |part: Part| own.iter().filter(|(_, p)| *p == part).count();
        let train = count(Part::Train);
        let is_known = |row: &&(lethe_recsys::data::Event, Part)| row.1 != Part::Test;
        let is_held_out = |row: &&(lethe_recsys::data::Event, Part)| row.1 == Part::Test;
        Ok(Own {
            known: own.iter().filter(is_known).map(|r| event(&r.0)).collect(),
            held_out: own
                .iter()
                .filter(is_held_out)
                .map(|r| (event(&r.0), r.0.liked))
                .collect(),
            cutoffs: Cutoffs {
                train,
                validate: train + count(Part::Validation),
            },
        })
    }
}

fn person(folder: &Path, options: Options, own: Own) -> anyhow::Result<Person> {
    let client = Client::open(folder, options)?;
    if client.history().is_empty() {
        client.record_all(own.known)?;
    }
    Ok(Person {
        client,
        held_out: Arc::new(own.held_out),
    })
}

/// All join, some at a time.
async fn join(people: &People) -> anyhow::Result<()> {
    let join = |person: Person| async move { Ok(person.client.join().await?) };
    listers::all(people, AT_ONCE, join).await.map(drop)
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
            Err(ClientError::Erased) => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

async fn execute(command: Command, fleet: &mut Fleet) -> anyhow::Result<Value> {
    match command {
        Command::Work { .. } => Ok(json!({})),
        Command::Contribute => listers::contribute(&fleet.everybody).await,
        Command::Fetch { after } => listers::fetch(&fleet.everybody, after).await,
        Command::Quality => {
            let people = fleet.everybody.clone();
            tokio::task::spawn_blocking(move || listers::quality(&people)).await?
        }
        Command::Top { subject, n } => listers::top(&fleet.everybody, &subject, n),
        Command::Newcomer { at } => listers::newcomer(&fleet.newcomer, at).await,
        Command::Settle => {
            // Linux: the peak is what is resident now.
            let _ = std::fs::write("/proc/self/clear_refs", "5");
            Ok(json!({ "resident_mib": resident_mib() }))
        }
        Command::RecordHeldOut => {
            for person in fleet.trainers.values() {
                let events = person.held_out.iter().map(|(event, _)| event.clone());
                person.client.record_all(events)?;
            }
            Ok(json!({ "recorded": fleet.trainers.len() }))
        }
        Command::Evaluate { untrained, limit } => evaluate(&fleet.trainers, untrained, limit).await,
        Command::Recommend {
            subject,
            candidates,
            n,
        } => recommend(fleet, &subject, &candidates, n).await,
        Command::Stats => Ok(stats(fleet)),
        Command::Erase { subject } => {
            let person = fleet.everybody.remove(&subject).context("no such client")?;
            fleet.trainers.remove(&subject);
            person.client.erase()?;
            Ok(json!({ "erased": subject }))
        }
    }
}

async fn recommend(
    fleet: &Fleet,
    subject: &str,
    candidates: &[String],
    n: usize,
) -> anyhow::Result<Value> {
    let person = fleet.trainers.get(subject).context("no such client")?;
    let started = Instant::now();
    let names = candidates.iter().map(String::as_str);
    let list = person.client.recommend(names, n).await?;
    let items: Vec<Value> = list
        .items
        .iter()
        .map(|r| {
            let title = fleet.catalogue.item(&r.item).map(|i| i.label());
            json!({ "item": r.item, "title": title, "score": r.score })
        })
        .collect();
    let live = matches!(list.source, Source::Live { .. });
    Ok(json!({ "live": live, "items": items, "seconds": started.elapsed().as_secs_f64() }))
}

fn stats(fleet: &Fleet) -> Value {
    let mut updates = 0;
    let mut activations = 0;
    let mut samples = 0;
    for person in fleet.trainers.values() {
        let s = person.client.stats();
        updates += s.update_bytes;
        activations += s.activation_bytes;
        samples += s.samples;
    }
    json!({
        "clients": fleet.trainers.len(), "updates": updates, "activations": activations,
        "samples": samples, "peak_mib": peak_mib(),
    })
}

async fn evaluate(people: &People, untrained: bool, limit: usize) -> anyhow::Result<Value> {
    let mut tasks = vec![];
    for (user, person) in people {
        let user = user.clone();
        let client = person.client.clone();
        tasks.push(tokio::spawn(async move {
            let scored = client.evaluate(untrained, limit).await?;
            let row = |s: lethe_client::Scored| json!([user, s.item, s.time, s.score, s.label]);
            anyhow::Ok(scored.into_iter().map(row).collect::<Vec<_>>())
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
