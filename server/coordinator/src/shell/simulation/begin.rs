//! How a simulation begins: its configuration, people and operators, and what will go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use lethe_learn::seed::{Seed, Stream};
use lethe_ledger::{Command, EpochNo, Now};
use lethe_model::config::ModelConfig;
use lethe_model::lora::Adapter;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, SubjectId};
use lethe_receipt::note::VerifierKey;
use lethe_recipe::Recipe;
use lethe_recsys::data::Item;
use lethe_store::keys::Keys;
use lethe_store::sealed::SharedEngine;

use super::super::{BaseModel, Clock, Opening, Shell, fresh, over_quic};
use super::apart::Apart;
use super::device::{Common, Device};
use super::disk::{Disk, Fault, folder};
use super::far::Far;
use super::jobs::Running;
use super::listed::{Kind, Listed};
use super::masked;
use super::record::{Count, Trace};
use super::rolls;
use super::world::{BEGIN, Event, Network, QUIET, Seen, Simulation};
use crate::CoordinatorError;
use crate::config::ServerConfig;
use crate::evidence::failing;
use crate::lists::{CellsConfig, ListsConfig, NoiseConfig, Per, Sums, TallyConfig};

pub(super) fn digest(parts: &[&str]) -> Digest {
    let parts: Vec<&[u8]> = parts.iter().map(|p| p.as_bytes()).collect();
    Digest::of(&parts)
}

pub(super) fn operator(n: usize) -> Digest {
    digest(&["operator", &n.to_string()])
}

/// Of a person's device of this number, in every seed.
pub(super) fn first_certificate(subject: &SubjectId, d: u8) -> Digest {
    digest(&["certificate", subject.as_str(), &d.to_string()])
}

fn model() -> ModelConfig {
    ModelConfig {
        hidden: 4,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        intermediate: 4,
        ..ModelConfig::tiny()
    }
}

pub(super) fn items() -> Vec<Item> {
    let tags = ["war", "comedy", "drama", "crime"];
    (0..8)
        .map(|i| Item {
            id: i.to_string(),
            title: format!("t{i}"),
            year: None,
            tags: vec![tags[i % 4].into()],
        })
        .collect()
}

/// Everything counts at once, and nobody waits for the next day.
pub(super) fn lists_config(cells: bool, noisy: bool) -> ListsConfig {
    ListsConfig {
        clip: 8,
        repeats: 2,
        refresh_s: 0,
        publish_s: 0,
        k: 1,
        cells: match cells {
            true => CellsConfig::On,
            false => CellsConfig::Off,
        },
        cell: 2,
        changed: 2,
        people: 64,
        noise: noisy.then_some(NOISE),
    }
}

/// With a budget that lasts, whatever is recalled.
const NOISE: NoiseConfig = NoiseConfig {
    epsilon: 0.1,
    delta: 1e-6,
    per: Per::Release,
    budget: 1_000.0,
};

/// Whether snapshots have noise in this seed.
fn is_noisy(seed: u64) -> bool {
    seed % 5 == 2
}

/// Nobody listens there: the line of a simulation leads elsewhere.
fn tally_config() -> TallyConfig {
    TallyConfig {
        address: std::net::SocketAddr::from(([127, 0, 0, 1], 9)).into(),
        invitation: None,
    }
}

fn pick<'a>(dice: &mut Stream, of: &[&'a str]) -> &'a str {
    of[dice.below(of.len())]
}

/// The recipe of a seed; `quiet`: nothing in it depends on who comes first.
fn recipe(dice: &mut Stream, quiet: bool, wanders: bool) -> Recipe {
    let aggregation = pick(dice, &["shared", "fedavg", "personalized"]);
    let updates = pick(dice, &["\"f32\"", "\"int8\"", "{ top-k = 300 }"]);
    let placement = pick(dice, &["hash", "tenure"]);
    let late = match dice.below(6) {
        1..=4 if aggregation != "personalized" => {
            format!("goal = 2\nstaleness = {}\n", 1 + dice.below(2))
        }
        5 => "goal = 3\n".into(),
        _ => String::new(),
    };
    let late = if quiet { String::new() } else { late };
    let placement = if quiet { "hash" } else { placement };
    let anchors = if quiet || wanders { 2 } else { 1 };
    let rounds = 2 + dice.below(2);
    let text = format!(
        "shards = 2\nanchors = {anchors}\nslices = 2\nrounds = {rounds}\ncohort = 4\nquorum = 2\n\
         deadline_s = 5\nvalidation = 1\nsplit = {{ k_in = 1, k_out = 1 }}\n\
         aggregation = \"{aggregation}\"\nupdates = {updates}\nplacement = \"{placement}\"\n{late}\
         lora = {{ rank = 1, alpha = 2.0, targets = [\"q\", \"v\"] }}\n\
         local = {{ samples = 8, batch = 8 }}\n",
    );
    Recipe::from_toml(&text).unwrap()
}

impl Simulation {
    pub(super) fn new(seed: u64, kind: Kind) -> Self {
        let mut this = Self::with(seed, kind, None);
        this.misfortunes();
        this.begin_rolls();
        this.begin_lists();
        this.begin_apart();
        this.draw_lifts(seed);
        this
    }

    /// Nothing goes wrong; who joins and answers when is drawn from `order`.
    pub(super) fn quiet(seed: u64, order: u64) -> Self {
        Self::with(seed, Kind::Without, Some(order))
    }

    fn with(seed: u64, kind: Kind, quiet: Option<u64>) -> Self {
        failing::with(|f| *f = failing::Failing::default());
        let mut dice = Seed::from_u64(seed).derive("shell simulation", &[]).rng();
        let folder = folder();
        let people = 5 + dice.below(3);
        let steady = quiet.is_some();
        // Three may be deleted before all have joined.
        let least = if steady { people } else { people - 3 };
        let full = !steady && dice.below(3) == 0;
        let mut config = ServerConfig::parse(&format!(
            "data_dir = {:?}\nmodel = \"unused\"\ncatalogue = \"unused\"\nmin_subjects = {least}\n\
             reserve_mib = {}\n\
             quarantine_hours = 0\n",
            folder.path().join("server"),
            u8::from(full),
        ))
        .unwrap();
        let mut listed = Listed::new(seed, kind);
        if listed.is_on() {
            match kind.is_apart() {
                true => {
                    config.sums = Sums::Tally;
                    config.tally = Some(tally_config());
                }
                false => {
                    config.sums = Sums::Embedded;
                    config.lists = lists_config(kind.has_cells(), is_noisy(seed));
                }
            }
            config.erase_window_s = Self::gathers(&mut listed.dice, kind);
        }
        if !steady {
            config.roll = rolls::config(seed);
        }
        let wanders = !steady && dice.below(3) == 0;
        if dice.below(2) == 0 {
            config.erase_wait_s = 3 + dice.below(30) as u64;
        }
        let recipe = match kind.is_apart() && masked::is_on(seed) {
            true => masked::recipe(&recipe(&mut dice, steady, wanders)),
            false => recipe(&mut dice, steady, wanders),
        };
        let network = Network {
            loss: if steady { 0.0 } else { 0.3 * dice.unit() },
            duplicates: if steady { 0.0 } else { 0.2 * dice.unit() },
            delay: 5 + dice.below(300) as u64,
        };
        let slow = !steady && dice.below(3) > 0;
        let adding = if slow { 1 + dice.below(6000) as u64 } else { 0 };
        let patience = 1500 + dice.below(10_000) as u64;
        if let Some(order) = quiet {
            dice = Seed::from_u64(order).derive("order", &[]).rng();
        }
        let clock = Arc::new(Mutex::new(Now {
            unix_ms: BEGIN,
            uptime_ms: 0,
        }));
        let disk = Disk::default();
        let far = || {
            Far::new(
                seed,
                lists_config(kind.has_cells(), is_noisy(seed)),
                clock.clone(),
            )
        };
        let apart = kind.is_apart().then(|| Apart::new(far()));
        let begin = || open(seed, &config, &recipe, &disk, &clock, apart.as_ref());
        let shell = match steady {
            true => begin().unwrap(),
            false => first(&mut dice, &disk, &begin),
        };
        let common = common(&shell, &recipe, steady, wanders);
        let mut this = Self {
            seed,
            now: 0,
            leapt: 0,
            dice,
            queue: BTreeMap::new(),
            events: 0,
            network,
            config,
            recipe,
            disk,
            shell: None,
            clock,
            started: 0,
            devices: vec![],
            cut: BTreeSet::new(),
            common,
            waiting: vec![],
            jobs: Arc::new(Mutex::new(Running::default())),
            adding,
            patience,
            approvals: 1,
            backup: None,
            before: None,
            surprised: false,
            seen: Seen::default(),
            trace: Trace::default(),
            count: Count::default(),
            listed,
            apart,
            folder,
        };
        this.opened(shell);
        this.appoint();
        for n in 0..people {
            let more = !steady && this.dice.below(4) == 0;
            (0..1 + u8::from(more)).for_each(|d| this.enrol(n, d));
        }
        this.at(200, Event::Tick);
        this
    }

    pub(super) fn open(&self) -> Result<Arc<Shell>, CoordinatorError> {
        let apart = self.apart.as_ref();
        open(
            self.seed,
            &self.config,
            &self.recipe,
            &self.disk,
            &self.clock,
            apart,
        )
    }

    fn must(&self, command: Command) {
        let shell = self.shell.as_ref().unwrap();
        shell.execute(command, vec![]).unwrap();
    }

    /// Two operators; in some seeds both have to agree.
    fn appoint(&mut self) {
        for n in 0..2 {
            let secret = digest(&["secret of an operator", &n.to_string()]);
            self.must(match n {
                0 => Command::InviteFirstOperator { secret },
                _ => Command::RecoverOperator {
                    secret,
                    fresh: fresh().unwrap(),
                },
            });
            self.must(Command::Enrol {
                secret,
                certificate: operator(n),
                expires: u64::MAX,
                device_of: None,
            });
        }
        if self.dice.below(3) == 0 {
            self.approvals = 2;
            self.must(Command::Propose {
                what: Proposal::Approvals(2),
                confirmed: true,
                note: Some("policy: 2 approvals".into()),
                by: operator(0),
                secret: Digest::default(),
                plans: vec![],
                fresh: fresh().unwrap(),
            });
        }
    }

    fn enrol(&mut self, n: usize, d: u8) {
        let subject = SubjectId::new(format!("s{n}")).unwrap();
        let secret = digest(&["secret", subject.as_str(), &d.to_string()]);
        let certificate = first_certificate(&subject, d);
        self.must(Command::Invite {
            subject: subject.clone(),
            secret,
        });
        self.must(Command::Enrol {
            secret,
            certificate,
            expires: u64::MAX,
            device_of: None,
        });
        self.devices.push(Device::new(subject, certificate));
        let start = 10 + self.dice.below(2000) as u64;
        self.at(start, Event::Rings(self.devices.len() - 1, 0));
    }

    /// Draws what will go wrong.
    fn misfortunes(&mut self) {
        let devices = self.devices.len();
        for _ in 0..self.dice.below(4) {
            let when = self.sometime();
            let down = 50 + self.dice.below(4000) as u64;
            self.at(when, Event::Crash(down));
        }
        for _ in 0..self.dice.below(5) {
            self.disk_fault();
        }
        for _ in 0..self.dice.below(4) {
            let when = self.sometime();
            let after = self.dice.below(5) as u32;
            let written = self.dice.below(2) == 0;
            self.at(when, Event::EvidenceFails(after, written));
        }
        // Whatever is broken is mended, and the last start is one of them.
        self.at(QUIET, Event::Crash(100));
        for _ in 0..self.dice.below(3) {
            let when = self.sometime();
            let n = self.dice.below(devices);
            let until = when + self.dice.below(30_000) as u64;
            self.at(when, Event::Partition(n, true));
            self.at(until.min(QUIET), Event::Partition(n, false));
        }
        for _ in 0..self.dice.below(5) {
            let when = self.sometime();
            let n = self.dice.below(devices);
            self.at(when, Event::DeviceRestarts(n));
        }
        for _ in 0..self.dice.below(3) {
            let when = self.sometime();
            let before = self.dice.below(2) == 0;
            let until = when + self.dice.below(4000) as u64;
            self.at(when, Event::KeysStay(before));
            self.at(until.min(QUIET), Event::KeysGo);
        }
        if self.config.reserve_mib > 0 {
            let when = self.sometime();
            let until = when + self.dice.below(5000) as u64;
            self.at(when, Event::Full(true));
            self.at(until.min(QUIET), Event::Full(false));
            // Somebody notices, and asks for a deletion all the same.
            let requests = self.requests();
            let soon = when + self.dice.below(2000) as u64;
            self.at(soon.min(QUIET), Event::Forget(requests));
        }
        for _ in 0..self.dice.below(5) {
            let when = self.sometime();
            let requests = self.requests();
            self.at(when, Event::Forget(requests));
        }
        for _ in 0..self.dice.below(3) {
            let when = self.sometime();
            self.at(when, Event::Replay);
        }
        for _ in 0..self.dice.below(6) {
            let when = self.sometime();
            self.at(when, Event::Snapshot);
        }
        for _ in 0..self.dice.below(4) {
            let when = self.sometime();
            let n = self.dice.below(devices);
            let event = match self.dice.below(6) {
                0 => Event::Revoke(n),
                1 => Event::Note,
                2 | 3 => Event::Return(n),
                _ => Event::Renew(n),
            };
            self.at(when, event);
        }
        if self.dice.below(5) == 0 {
            let when = self.sometime();
            self.at(when, Event::Backup);
            let later = 1000 + self.dice.below(20_000) as u64;
            self.at((when + later).min(QUIET - 500), Event::Restore);
        }
        if self.dice.below(6) == 0 {
            let when = self.sometime();
            let what = pick(&mut self.dice, &["shards/0", "shards/1", "db", "db-copy"]);
            let gone = self.dice.below(2) == 0;
            self.at(when, Event::Damage(what, gone));
        }
        if self.listed.is_embedded() && self.listed.dice.below(6) == 0 {
            let when = 500 + self.listed.dice.below(QUIET as usize - 1000) as u64;
            let all = ["tally/shards/0", "tally/db", "tally/db-copy"];
            let what = pick(&mut self.listed.dice, &all);
            let gone = self.listed.dice.below(2) == 0;
            self.at(when, Event::Damage(what, gone));
        }
    }

    fn disk_fault(&mut self) {
        let fault = Fault {
            after: self.dice.below(12) as u32,
            written: self.dice.below(2) == 0,
            dead: self.dice.below(3) == 0,
        };
        let when = self.sometime();
        self.at(when, Event::Fails(fault));
        if fault.dead {
            let later = self.dice.below(3000) as u64;
            let down = 50 + self.dice.below(2000) as u64;
            self.at((when + later).min(QUIET), Event::Crash(down));
        }
    }

    /// One request, or several at once.
    pub(super) fn requests(&mut self) -> Vec<DeletionRequest> {
        let most = if self.dice.below(3) == 0 { 3 } else { 1 };
        (0..1 + self.dice.below(most))
            .map(|_| self.request())
            .collect()
    }

    fn request(&mut self) -> DeletionRequest {
        let n = self.dice.below(self.devices.len());
        let subject = self.devices[n].subject.clone();
        let items = vec![self.dice.below(8).to_string()];
        match self.dice.below(8) {
            0 => DeletionRequest::Takedown { items },
            1..=3 => DeletionRequest::EraseItems { subject, items },
            4 => DeletionRequest::Restrict { subject },
            5 => DeletionRequest::Withdraw {
                subject,
                from: (BEGIN / 1000) as i64,
            },
            _ => DeletionRequest::Erase { subject },
        }
    }

    fn sometime(&mut self) -> u64 {
        // Most happens at the beginning, and after deletions.
        let busy = self.dice.below(2) == 0;
        let most = if busy { 15_000 } else { QUIET as usize - 1000 };
        500 + self.dice.below(most) as u64
    }
}

/// The first start, which may be cut off as often as any other.
fn first(
    dice: &mut Stream,
    disk: &Disk,
    open: &dyn Fn() -> Result<Arc<Shell>, CoordinatorError>,
) -> Arc<Shell> {
    while dice.below(3) == 0 {
        disk.fail(Fault {
            after: dice.below(9) as u32,
            written: dice.below(2) == 0,
            dead: true,
        });
        let opened = open();
        disk.revive();
        if let Ok(shell) = opened {
            return shell;
        }
    }
    open().expect("a new folder opens")
}

fn open(
    seed: u64,
    config: &ServerConfig,
    recipe: &Recipe,
    disk: &Disk,
    clock: &Arc<Mutex<Now>>,
    apart: Option<&Apart>,
) -> Result<Arc<Shell>, CoordinatorError> {
    let far = apart.map(|a| a.far.clone());
    let line = move |tally: &TallyConfig, data: &Path, keys: &Keys| match &far {
        Some(far) => far.line(data),
        None => over_quic(tally, data, keys),
    };
    let opening = Opening {
        config,
        recipe: recipe.clone(),
        model: Digest::of(&[b"weights"]),
        model_config: &model(),
        items: &items(),
        other_model: &no_other,
        line: &line,
        // Cells, too: what fails once fails again.
        seed: Some(Seed::from_u64(seed).derive("cells", &[])),
    };
    let on = disk.clone();
    let engine: SharedEngine = Arc::new(move |path: &Path| on.open(path));
    opening.open(&engine, Clock::set_by(clock.clone()))
}

/// Every epoch of a simulation has the configured base model.
fn no_other(path: &std::path::Path) -> Result<BaseModel, CoordinatorError> {
    Err(CoordinatorError::invalid(format!(
        "no base model in {}",
        path.display()
    )))
}

fn common(shell: &Shell, recipe: &Recipe, steady: bool, wanders: bool) -> Common {
    let kit = shell.kit(EpochNo::FIRST).unwrap();
    let zeros = vec![0.0; kit.whole.shape.len()];
    let whole = Adapter::from_data(&kit.whole.shape, zeros).unwrap();
    let edge = whole.select(|l| kit.whole.on_device(recipe, l));
    Common {
        recipe: recipe.clone(),
        edge: edge.shape().clone(),
        hidden: 4,
        anchors: kit.anchors.len(),
        model: Digest::of(&[b"weights"]),
        log_key: VerifierKey::parse(&shell.log_key()).unwrap(),
        steady,
        wanders,
        erased: BTreeMap::new(),
    }
}
