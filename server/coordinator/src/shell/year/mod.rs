//! A year of made-up people in virtual time, in one process: the real shell with its ledger,
//! journal, log and receipts, the real tally inside it, and the real store in a folder on disk.
//! Epochs follow one another by rule, people come, leave, are restricted and come back, lists are
//! published every day, and the catalogue has a version a month. What is asked is whether memory
//! and disk stay what they are.
//!
//! Made up are the people, and what they train: an update is numbers drawn from the seed, and
//! nobody computes a pass over a model. Nothing fails here (`simulation` is about that). There is
//! no network: devices ask what `handlers.rs` would ask for them, in one thread. What the threads
//! of a coordinator do by themselves (duties, sums of rounds, snapshots) is done between two steps
//! of the clock.
//!
//! The same seed gives the same year, but for what the disk and the processor's clock say.
//!
//! Only builds with the feature `simulation` have this; a coordinator that is served has none of
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, ensure};
use lethe_learn::seed::Seed;
use lethe_ledger::{Command, Now};
use lethe_model::config::ModelConfig;
use lethe_proto::ids::Digest;
use lethe_receipt::note::VerifierKey;
use lethe_recipe::Recipe;
use lethe_recsys::data::Item;
use lethe_store::sealed::SharedEngine;
use lethe_store::sled_backend::SledStorage;

use super::{BaseModel, Clock, Opening, Shell, Told, over_quic};
use crate::CoordinatorError;
use crate::config::ServerConfig;
use crate::fatal;

mod device;
mod figures;
mod happens;
mod person;

pub use figures::{Folder, Records, Week};
use happens::Returns;
use person::Person;

/// When a year begins, in milliseconds since 1970: midnight.
const BEGIN: u64 = 1_799_971_200_000;
/// A day, in milliseconds.
const DAY: u64 = 86_400_000;
/// An hour, in milliseconds.
const HOUR: u64 = 3_600_000;
/// Between two looks of devices that have something to do, in milliseconds.
const STEP: u64 = 30_000;
/// Looks of an hour, at most: what goes on longer goes on in the next.
const LOOKS: usize = 110;
/// Days of a week.
const WEEK: u64 = 7;
/// Days after which the catalogue has another version.
const MONTH: u64 = 30;

/// What a year is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything is drawn from it.
    pub seed: u64,
    /// People; who is deleted is followed by somebody else, or comes back.
    pub people: usize,
    /// Items of the catalogue when it begins.
    pub items: usize,
    /// Days over which people come.
    pub coming: u64,
    /// People who must have joined before an epoch begins.
    pub least: usize,
    /// Chance that something happens to somebody in a week.
    pub share: f32,
    /// Days after which the next epoch is started.
    pub roll_days: u64,
    /// Where the folders are made; it is empty.
    pub folder: PathBuf,
}

impl Plan {
    /// 1,000 people and 500 items.
    pub fn year(seed: u64, folder: &Path) -> Self {
        Self {
            seed,
            people: 1_000,
            items: 500,
            coming: 28,
            least: 200,
            share: 0.01,
            roll_days: 30,
            folder: folder.to_owned(),
        }
    }

    /// A few weeks of a few people, for tests: epochs follow one another after a week.
    pub fn quick(seed: u64, folder: &Path) -> Self {
        Self {
            people: 150,
            items: 120,
            coming: 7,
            least: 100,
            share: 0.05,
            roll_days: 7,
            ..Self::year(seed, folder)
        }
    }
}

/// Who has something to find.
#[derive(Default)]
struct Woken {
    everybody: bool,
    subjects: BTreeSet<lethe_proto::ids::SubjectId>,
}

/// What has happened since the beginning of the week.
#[derive(Clone, Debug, Default)]
struct Count {
    requests: u64,
    updates: u64,
    joins: u64,
    contributions: u64,
    snapshots: u64,
    returned: u64,
    asked: BTreeMap<&'static str, u64>,
    /// Real seconds from a request until what is served was free of the data.
    exact_s: Vec<f64>,
    /// Virtual seconds until everything was trained and released again, with the receipt.
    whole_s: Vec<f64>,
}

/// A coordinator, its people, and how late it is.
pub struct Year {
    plan: Plan,
    seed: Seed,
    recipe: Recipe,
    config: ServerConfig,
    shell: Arc<Shell>,
    clock: Arc<Mutex<Now>>,
    log_key: VerifierKey,
    /// The next day to be lived.
    day: u64,
    people: Vec<Person>,
    woken: Arc<Mutex<Woken>>,
    returns: Returns,
    count: Count,
    /// Deletions that have no receipt yet.
    open: BTreeSet<u64>,
    receipts: u64,
    failures: u64,
}

/// The model whose adapters are trained: small, and never loaded.
fn model() -> ModelConfig {
    ModelConfig {
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        intermediate: 128,
        ..ModelConfig::tiny()
    }
}

/// Four shards of two slices, two rounds of sixteen people for each.
fn recipe() -> anyhow::Result<Recipe> {
    let text = "shards = 4\nanchors = 4\nslices = 2\nrounds = 2\ncohort = 16\nquorum = 4\n\
                deadline_s = 600\nvalidation = 1\nsplit = { k_in = 1, k_out = 1 }\n\
                lora = { rank = 8, alpha = 16.0, targets = [\"q\", \"v\"] }\n\
                local = { samples = 8, batch = 8 }\n";
    Ok(Recipe::from_toml(text)?)
}

fn items(count: usize) -> Vec<Item> {
    let item = |i: usize| Item {
        id: format!("i{i}"),
        title: format!("Title {i}"),
        year: None,
        tags: vec![format!("group{}", i / 40)],
    };
    (0..count).map(item).collect()
}

/// Every epoch has the configured base model.
fn no_other(path: &Path) -> Result<BaseModel, CoordinatorError> {
    let message = format!("no base model in {}", path.display());
    Err(CoordinatorError::invalid(message))
}

impl Year {
    /// Founds the coordinator. Nobody has come yet.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn found(plan: Plan) -> anyhow::Result<Self> {
        let config = ServerConfig::parse(&format!(
            "data_dir = {:?}\nmodel = \"unused\"\ncatalogue = {:?}\nsums = \"embedded\"\n\
             min_subjects = {}\nreserve_mib = 1\nroll = {{ every_days = {} }}\n\
             lists = {{ publish_s = 86400 }}\n",
            plan.folder.join("server"),
            plan.folder.join("catalogue"),
            plan.least,
            plan.roll_days,
        ))?;
        let recipe = recipe()?;
        let seed = Seed::from_u64(plan.seed).derive("a year", &[]);
        let clock = Arc::new(Mutex::new(Now {
            unix_ms: BEGIN,
            uptime_ms: 0,
        }));
        let opening = Opening {
            config: &config,
            recipe: recipe.clone(),
            model: Digest::of(&[b"weights"]),
            model_config: &model(),
            items: &items(plan.items),
            other_model: &no_other,
            line: &over_quic,
            seed: Some(seed.derive("lists", &[])),
        };
        let engine: SharedEngine = Arc::new(SledStorage::engine);
        let shell = opening.open(&engine, Clock::set_by(clock.clone()))?;
        let woken = Arc::new(Mutex::new(Woken::default()));
        let told = woken.clone();
        shell.tell(move |Told { wake, .. }| {
            let mut woken = fatal::lock(&told);
            woken.everybody |= wake.everybody;
            woken.subjects.extend(wake.subjects);
        });
        let mut year = Self {
            people: Vec::with_capacity(plan.people),
            log_key: VerifierKey::parse(&shell.log_key()).context("the key of the log")?,
            plan,
            seed,
            recipe,
            config,
            shell,
            clock,
            day: 0,
            woken,
            returns: Returns::default(),
            count: Count::default(),
            open: BTreeSet::new(),
            receipts: 0,
            failures: 0,
        };
        year.appoint()?;
        for n in 0..year.plan.people {
            let person = year.drawn(n)?;
            year.people.push(person);
        }
        Ok(year)
    }

    /// The first operator.
    fn appoint(&self) -> anyhow::Result<()> {
        let secret = Digest::of(&[b"secret of an operator"]);
        self.must(Command::InviteFirstOperator { secret })?;
        self.must(Command::Enrol {
            secret,
            certificate: operator(),
            expires: u64::MAX,
            device_of: None,
        })
    }

    /// Something that is never refused here.
    fn must(&self, command: Command) -> anyhow::Result<()> {
        let what = command_name(&command);
        self.shell.execute(command, vec![]).context(what)?;
        Ok(())
    }

    fn now(&self) -> Now {
        *fatal::lock(&self.clock)
    }

    /// Seconds since 1970.
    fn second(&self) -> u64 {
        self.now().unix_ms / 1000
    }

    /// Days since 1970.
    fn today(&self) -> i32 {
        (self.now().unix_ms / DAY) as i32
    }

    /// Time passes until then, in milliseconds since the beginning; it does not go back.
    fn until(&self, ms: u64) {
        let mut now = fatal::lock(&self.clock);
        let ms = ms.max(now.uptime_ms);
        *now = Now {
            unix_ms: BEGIN + ms,
            uptime_ms: ms,
        };
    }

    /// Lives through the next week.
    ///
    /// # Errors
    /// Something went wrong that may not: a duty failed, a device was refused, an order or a
    /// receipt does not hold.
    pub fn week(&mut self) -> anyhow::Result<Week> {
        self.count = Count::default();
        self.draw_week();
        for _ in 0..WEEK {
            let day = self.day;
            self.one_day().with_context(|| format!("day {day}"))?;
            self.day += 1;
        }
        self.check_receipts()?;
        self.figures()
    }

    fn one_day(&mut self) -> anyhow::Result<()> {
        self.draw_day();
        for hour in 0..24 {
            self.until(self.day * DAY + hour * HOUR);
            if hour == 3 && self.day % MONTH == MONTH - 1 {
                self.apply_version()?;
            }
            self.visits(hour)?;
            self.happen(hour)?;
            self.settle()?;
        }
        Ok(())
    }

    /// Devices do what they find to do until they find nothing more.
    fn settle(&mut self) -> anyhow::Result<()> {
        for _ in 0..LOOKS {
            self.look()?;
            let woken = std::mem::take(&mut *fatal::lock(&self.woken));
            let now = self.now().uptime_ms;
            if self.answer(&woken)? {
                self.until(now + STEP);
                continue;
            }
            // A round waits for somebody who is away, until its deadline.
            let waits = !self.shell.state().volatile().open.is_empty();
            let deadline = now + 1000 * self.recipe.deadline_s;
            if !waits || deadline / HOUR > now / HOUR {
                break;
            }
            self.until(deadline);
        }
        Ok(())
    }

    /// What the coordinator's threads do.
    fn look(&mut self) -> anyhow::Result<()> {
        loop {
            let shell = &self.shell;
            shell.meter.look(&shell.state(), shell.clock.now());
            let failed = shell.do_duties();
            ensure!(failed.is_empty(), "duties failed: {failed:?}");
            let mut more = false;
            while let Some(job) = shell.jobs.take() {
                let sum = shell.add_up(&job);
                let closed = shell.job_ended(&job, sum);
                ensure!(closed, "a round could not be added up");
                more = true;
            }
            if let Some(lists) = &shell.lists
                && lists.do_what_is_due(shell)?
            {
                self.count.snapshots += 1;
                more = true;
            }
            if !more {
                break;
            }
        }
        self.shell.every_minute();
        let failures = self.shell.failures();
        let new = failures - self.failures;
        ensure!(new == 0, "{new} things failed that were tried again");
        Ok(())
    }

    /// Asks for a deletion, and does at once what is due, as the listener does.
    fn ask(&mut self, what: &'static str, command: Command) -> anyhow::Result<()> {
        let began = Instant::now();
        let events = self.shell.execute(command, vec![]).context(what)?;
        let failed = self.shell.do_duties();
        ensure!(failed.is_empty(), "{what}: {failed:?}");
        *self.count.asked.entry(what).or_default() += 1;
        let accepted = events.iter().filter_map(|e| match e {
            lethe_ledger::Event::DeletionAccepted { id, .. } => Some(*id),
            _ => None,
        });
        for id in accepted {
            let state = self.shell.state();
            let deletion = state.deletions().get(&id).context("it is known")?;
            ensure!(deletion.exact_after_ms.is_some(), "{what}: it is not exact");
            self.count.exact_s.push(began.elapsed().as_secs_f64());
            drop(state);
            self.open.insert(id);
        }
        Ok(())
    }
}

/// The only one.
fn operator() -> Digest {
    Digest::of(&[b"operator"])
}

/// For errors.
fn command_name(command: &Command) -> String {
    let text = format!("{command:?}");
    let end = text.find([' ', '{', '(']).unwrap_or(text.len());
    text[..end].to_owned()
}

#[cfg(test)]
mod tests;
