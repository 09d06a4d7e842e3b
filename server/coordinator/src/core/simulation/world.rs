//! The scheduler: one queue of events in virtual time, everything drawn from one seed.

use std::collections::{BTreeMap, BTreeSet};

use lethe_learn::seed::{Seed, Stream};
use lethe_model::config::ModelConfig;
use lethe_proto::admin::{AdminRequest, DeletionPhase};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{Digest, RoundKey, SubjectId};
use lethe_proto::message::{Erased, Refusal, Reply, Request, Role};
use lethe_recsys::data::Item;
use lethe_transport::identity::ClientKey;

use super::device::{Act, Common, Device};
use super::disk::{Disk, Fault};
use super::exchange::{answer, brief, kind};
use super::record::{Count, Trace};
use crate::CoordinatorError;
use crate::config::ServerConfig;
use crate::core::Core;
use crate::core::closing::{Closed, Closing, Counted, Job};
use crate::metrics::Traffic;

/// When virtual time begins, in milliseconds since 1970.
const BEGIN: u64 = 1_800_000_000_000;
/// Seeds from here on may have more: people who move to another shard, erasures that are not waited
/// for any longer, takedowns, withdrawals, batches. Earlier ones stay what they were.
const WIDER: u64 = 400;
/// When faults end: from then on everything has to come to its end.
pub(super) const QUIET: u64 = 60_000;
/// When it has to.
pub(super) const END: u64 = 600_000;

#[derive(Debug)]
enum Event {
    Tick,
    /// A request of a device arrives.
    Asked(usize, u64, Request),
    /// An answer arrives.
    Answered(usize, u64, Reply),
    /// A device's clock rings, unless something else happened to it since.
    Rings(usize, u64),
    DeviceRestarts(usize),
    /// The coordinator's process dies; after so many milliseconds it is started again.
    Crash(u64),
    Start,
    Fails(Fault),
    /// A device can be reached, or not.
    Partition(usize, bool),
    Forget(Vec<DeletionRequest>),
    /// A round that was being added up comes back to the coordinator that began it.
    AddedUp(u64),
}

/// Something that is being done without the lock.
enum Running {
    /// The updates are read when it ends.
    Waits(Closing),
    /// They were read when it began.
    Done(Closed),
    /// Updates that have counted are removed when it ends.
    Cleans(Counted),
}

/// What happens to messages.
struct Network {
    loss: f32,
    duplicates: f32,
    delay: u64,
}

/// A coordinator, its devices, and everything that goes wrong.
pub(super) struct Simulation {
    pub(super) seed: u64,
    pub(super) now: u64,
    pub(super) dice: Stream,
    queue: BTreeMap<(u64, u64), Event>,
    pub(super) events: u64,
    network: Network,
    pub(super) config: ServerConfig,
    pub(super) disk: Disk,
    pub(super) core: Option<Core>,
    /// Virtual time at which the coordinator was started.
    pub(super) started: u64,
    pub(super) devices: Vec<Device>,
    pub(super) certificates: Vec<Digest>,
    pub(super) cut: BTreeSet<usize>,
    pub(super) common: Common,
    /// Deletions that the coordinator accepted.
    pub(super) forgotten: BTreeSet<SubjectId>,
    /// Whose deletion was answered with a failure: it may have been accepted. And whose device does
    /// not erase without consent: what it gave before went with the items, and it gives no more.
    pub(super) doubted: BTreeSet<SubjectId>,
    /// What was acknowledged, by round; checked when the round has closed.
    pub(super) acknowledged: BTreeMap<RoundKey, BTreeSet<SubjectId>>,
    /// The newest round that each shard was seen in.
    pub(super) seen: Vec<RoundKey>,
    pub(super) release: u64,
    pub(super) trace: Trace,
    pub(super) count: Count,
    /// What is being done without the lock; it goes with the process.
    jobs: BTreeMap<u64, Running>,
    /// Longest time that adding up takes, in milliseconds; 0: it has ended at once.
    pub(super) adding: u64,
    pub(super) folder: tempfile::TempDir,
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

fn items() -> Vec<Item> {
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

/// In memory where there is such a folder: the files beside the databases are synced often.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a folder")
}

impl Simulation {
    pub(super) fn new(seed: u64) -> Self {
        let mut this = Self::with(seed, None);
        this.misfortunes();
        this
    }

    /// Nothing goes wrong; who joins and answers when is drawn from `order`.
    pub(super) fn quiet(seed: u64, order: u64) -> Self {
        Self::with(seed, Some(order))
    }

    fn with(seed: u64, quiet: Option<u64>) -> Self {
        let mut dice = Seed::from_u64(seed).derive("simulation", &[]).rng();
        let folder = folder();
        let file = folder.path().join("model");
        std::fs::write(&file, b"weights").expect("writes");
        let devices = 5 + dice.below(3);
        let mut config = ServerConfig::parse(&format!(
            "data_dir = {:?}\nmodel = {:?}\ncatalogue = \"unused\"\nmin_subjects = \
             {}\nreserve_mib = 0\n",
            folder.path().join("server"),
            file,
            // Three may be deleted before all have joined.
            if quiet.is_some() {
                devices
            } else {
                devices - 3
            },
        ))
        .expect("valid");
        let pick = |dice: &mut Stream, of: &[&str]| of[dice.below(of.len())].to_owned();
        let aggregation = pick(&mut dice, &["shared", "fedavg"]);
        let updates = pick(&mut dice, &["f32", "int8"]);
        let goal = pick(&mut dice, &["", "goal = 3\n"]);
        // Drawn apart, so that older seeds stay what they were.
        let mut wider = Seed::from_u64(seed).derive("wider", &[]).rng();
        let wide = quiet.is_none() && seed >= WIDER && wider.below(2) == 0;
        let wanders = wide && wider.below(2) == 0;
        if wide && wider.below(2) == 0 {
            config.erase_wait_s = 3 + wider.below(30) as u64;
        }
        let late = Seed::from_u64(seed)
            .derive("asynchronous", &[])
            .rng()
            .below(4);
        let goal = if late > 1 && seed > 100 {
            format!("goal = 2\nstaleness = {}\n", late - 1)
        } else {
            goal
        };
        let goal = quiet.map_or(goal, |_| String::new());
        config.recipe = format!(
            "shards = 2\nanchors = {}\nslices = 2\nrounds = 2\ncohort = 4\nquorum = 2\ndeadline_s \
             = 5\nvalidation = 1\n\
             split = {{ k_in = 1, k_out = 1 }}\naggregation = \"{aggregation}\"\nupdates = \
                 \"{updates}\"\n{goal}\
             lora = {{ rank = 1, alpha = 2.0, targets = [\"q\", \"v\"] }}\n\
             local = {{ samples = 8, batch = 8 }}\n",
            if quiet.is_some() || wanders { 2 } else { 1 }
        )
        .parse()
        .expect("valid");
        let network = Network {
            loss: 0.3 * dice.unit(),
            duplicates: 0.2 * dice.unit(),
            delay: 5 + dice.below(300) as u64,
        };
        if let Some(order) = quiet {
            dice = Seed::from_u64(order).derive("order", &[]).rng();
        }
        let disk = Disk::default();
        let core = Self::open(&disk, &config, 0).expect("opens");
        let edge = {
            let whole =
                lethe_model::lora::Adapter::from_data(&core.shape, vec![0.0; core.shape.len()])
                    .expect("fits");
            whole
                .select(|l| core.whole().on_device(&core.recipe, l))
                .shape()
                .clone()
        };
        let common = Common {
            recipe: core.recipe.as_ref().clone(),
            edge,
            hidden: 4,
            anchors: core.anchors.len(),
            log_key: core.signer.verifier().clone(),
            steady: quiet.is_some(),
            wanders,
        };
        let seen = core.runs.iter().map(crate::run::Run::key).collect();
        let mut this = Self {
            seed,
            now: 0,
            dice,
            queue: BTreeMap::new(),
            events: 0,
            network,
            config,
            disk,
            core: Some(core),
            started: 0,
            devices: vec![],
            certificates: vec![],
            cut: BTreeSet::new(),
            common,
            forgotten: BTreeSet::new(),
            doubted: BTreeSet::new(),
            acknowledged: BTreeMap::new(),
            seen,
            release: 0,
            trace: Trace::default(),
            count: Count::default(),
            jobs: BTreeMap::new(),
            adding: 0,
            folder,
        };
        for n in 0..devices {
            this.enrol(n);
        }
        if wide {
            this.more_requests(&mut wider);
        }
        let mut slow = Seed::from_u64(seed).derive("adding up", &[]).rng();
        if quiet.is_none() && seed >= WIDER && slow.below(3) > 0 {
            this.adding = 1 + slow.below(4000) as u64;
        }
        this.at(200, Event::Tick);
        if quiet.is_some() {
            (this.network.loss, this.network.duplicates) = (0.0, 0.0);
        }
        this
    }

    /// `now` is the simulation's time.
    fn open(disk: &Disk, config: &ServerConfig, now: u64) -> Result<Core, CoordinatorError> {
        let on = disk.clone();
        Core::open_on(
            &move |path: &std::path::Path| on.open(path),
            config.clone(),
            &model(),
            &items(),
            BEGIN + now,
        )
    }

    fn enrol(&mut self, n: usize) {
        let subject = SubjectId::new(format!("s{n}")).expect("valid");
        let core = self.core.as_mut().expect("runs");
        let token = core.invite(Some(&subject)).expect("invites");
        let request = ClientKey::generate()
            .and_then(|k| k.request())
            .expect("a request");
        let enrolled = core.enrol(&token.secret, &request, None);
        let (certificate, _) = enrolled.expect("enrols");
        self.certificates.push(Digest::of(&[&certificate]));
        self.devices.push(Device::new(subject));
        let start = 10 + self.dice.below(2000) as u64;
        self.at(start, Event::Rings(n, 0));
    }

    /// Draws what will go wrong.
    fn misfortunes(&mut self) {
        let devices = self.devices.len();
        for _ in 0..self.dice.below(4) {
            let (when, down) = (self.sometime(), 50 + self.dice.below(4000) as u64);
            self.at(when, Event::Crash(down));
        }
        for _ in 0..self.dice.below(4) {
            let fault = Fault {
                after: self.dice.below(20) as u32,
                written: self.dice.below(2) == 0,
                dead: self.dice.below(2) == 0,
            };
            let when = self.sometime();
            self.at(when, Event::Fails(fault));
            if fault.dead {
                let (later, down) = (
                    self.dice.below(3000) as u64,
                    50 + self.dice.below(2000) as u64,
                );
                self.at((when + later).min(QUIET), Event::Crash(down));
            }
        }
        // Whatever is broken is mended, and the last start is one of them.
        self.at(QUIET, Event::Crash(100));
        for _ in 0..self.dice.below(3) {
            let (when, n) = (self.sometime(), self.dice.below(devices));
            let until = when + self.dice.below(30_000) as u64;
            self.at(when, Event::Partition(n, true));
            self.at(until.min(QUIET), Event::Partition(n, false));
        }
        for _ in 0..self.dice.below(5) {
            let (when, n) = (self.sometime(), self.dice.below(devices));
            self.at(when, Event::DeviceRestarts(n));
        }
        for _ in 0..self.dice.below(4) {
            let when = self.sometime();
            let subject = self.devices[self.dice.below(devices)].subject.clone();
            let request = match self.dice.below(3) {
                0 => DeletionRequest::EraseItems {
                    subject,
                    items: vec!["3".into()],
                },
                1 => DeletionRequest::Restrict { subject },
                _ => DeletionRequest::Erase { subject },
            };
            self.at(when, Event::Forget(vec![request]));
        }
    }

    /// Requests of the other kinds, several at once, and about one person in a row.
    fn more_requests(&mut self, dice: &mut Stream) {
        for _ in 0..dice.below(4) {
            let when = 1000 + dice.below(40_000) as u64;
            let requests = (0..1 + dice.below(3)).map(|_| self.any_request(dice));
            let requests = requests.collect();
            self.at(when, Event::Forget(requests));
        }
    }

    fn any_request(&self, dice: &mut Stream) -> DeletionRequest {
        let subject = self.devices[dice.below(self.devices.len())].subject.clone();
        let items = vec![dice.below(8).to_string()];
        match dice.below(5) {
            0 => DeletionRequest::Takedown { items },
            1 | 2 => DeletionRequest::EraseItems { subject, items },
            3 => DeletionRequest::Restrict { subject },
            _ => DeletionRequest::Withdraw {
                subject,
                from: (BEGIN / 1000) as i64,
            },
        }
    }

    fn sometime(&mut self) -> u64 {
        // Most happens at the beginning, and after deletions.
        let busy = self.dice.below(2) == 0;
        500 + self
            .dice
            .below(if busy { 12_000 } else { QUIET as usize - 1000 }) as u64
    }

    fn at(&mut self, when: u64, event: Event) {
        self.events += 1;
        self.queue.insert((when, self.events), event);
    }

    /// Sends a message over the network: lost, late, twice, overtaken.
    fn travel(&mut self, device: usize, event: impl Fn() -> Event) {
        let quiet = self.now >= QUIET;
        if self.cut.contains(&device) || (!quiet && self.dice.unit() < self.network.loss) {
            return;
        }
        let copies = if !quiet && self.dice.unit() < self.network.duplicates {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = 1 + self.dice.below(self.network.delay as usize) as u64;
            self.at(self.now + delay, event());
        }
    }

    fn act(&mut self, n: usize, act: Act) {
        self.devices[n].call += 1;
        let call = self.devices[n].call;
        match act {
            Act::Stop => {}
            Act::Wait(ms) => self.at(self.now + ms, Event::Rings(n, call)),
            Act::Send(request, patience) => {
                self.travel(n, || Event::Asked(n, call, request.clone()));
                self.at(self.now + patience, Event::Rings(n, call));
            }
        }
    }

    /// One event. False when everything is done.
    pub(super) fn step(&mut self) -> bool {
        let Some(((when, _), event)) = self.queue.pop_first() else {
            return false;
        };
        self.now = when;
        if let Some(core) = self.core.as_mut() {
            core.set_clock(BEGIN + when);
        }
        self.count.events += 1;
        let stale = match &event {
            Event::Answered(n, call, _) | Event::Rings(n, call) => self.devices[*n].call != *call,
            Event::Tick => true,
            _ => false,
        };
        if !stale {
            self.note(format!("{when} {}", short(&event)));
        }
        match event {
            Event::Tick => {
                let now = self.now - self.started;
                if let Some(core) = self.core.as_mut() {
                    let before = core.failures;
                    core.tick(now);
                    if core.failures > before {
                        self.note(format!("{when} duties failed"));
                    }
                }
                self.at(self.now + 200, Event::Tick);
            }
            Event::Asked(n, call, request) => {
                if let Some(reply) = self.serve(n, request) {
                    self.note(format!("{when} answer to {n}: {}", brief(&reply)));
                    self.travel(n, || Event::Answered(n, call, reply.clone()));
                }
            }
            Event::Answered(n, call, reply) if self.devices[n].call == call => {
                let act = self.devices[n].answered(&self.common, reply, self.now, &mut self.dice);
                self.act(n, act);
            }
            Event::Rings(n, call) if self.devices[n].call == call => {
                let act = self.devices[n].awake(&self.common, self.now, &mut self.dice);
                self.act(n, act);
            }
            Event::Answered(..) | Event::Rings(..) => {}
            Event::DeviceRestarts(n) => {
                self.devices[n].restart();
                let down = self.dice.below(5000) as u64;
                self.act(n, Act::Wait(down));
            }
            Event::AddedUp(id) => {
                let now = self.now - self.started;
                let closed = match self.jobs.remove(&id) {
                    Some(Running::Waits(job)) => Some(job.run()),
                    Some(Running::Done(closed)) => Some(closed),
                    // What a failing disk leaves goes with the next start.
                    Some(Running::Cleans(counted)) => counted.remove().ok().and(None),
                    None => None,
                };
                if let (Some(core), Some(closed)) = (self.core.as_mut(), closed) {
                    core.round_closed(closed, now);
                }
            }
            Event::Crash(down) => {
                self.core = None;
                self.jobs.clear();
                self.count.crashes += 1;
                self.at(self.now + down, Event::Start);
            }
            Event::Start => self.start(),
            Event::Fails(fault) => self.disk.fail(fault),
            Event::Partition(n, true) => drop(self.cut.insert(n)),
            Event::Partition(n, false) => drop(self.cut.remove(&n)),
            Event::Forget(requests) => self.forget(requests),
        }
        self.add_up();
        self.look();
        self.now < END && !self.settled()
    }

    /// Begins to add up the rounds that are due.
    fn add_up(&mut self) {
        let now = self.now - self.started;
        while let Some(core) = self.core.as_mut() {
            let jobs = core.take_effects().jobs;
            if jobs.is_empty() {
                return;
            }
            for job in jobs {
                let running = match job {
                    Job::AddUp(job) if self.adding == 0 => {
                        core.round_closed(job.run(), now);
                        continue;
                    }
                    Job::Clean(counted) if self.adding == 0 => {
                        let _ = counted.remove();
                        continue;
                    }
                    Job::AddUp(job) if self.dice.below(2) == 0 => Running::Waits(*job),
                    Job::AddUp(job) => Running::Done(job.run()),
                    Job::Clean(counted) => Running::Cleans(counted),
                };
                self.count.slow += 1;
                self.events += 1;
                let id = self.events;
                let when = self.now + 1 + self.dice.below(self.adding as usize) as u64;
                self.jobs.insert(id, running);
                self.queue.insert((when, id), Event::AddedUp(id));
            }
        }
    }

    /// Into the trace, which must not depend on where the data folder is.
    fn note(&mut self, line: String) {
        let folder = self.folder.path().display().to_string();
        self.trace.line(line.replace(&folder, "FOLDER"));
    }

    fn start(&mut self) {
        if self.core.is_some() {
            return;
        }
        self.disk.revive();
        let fails = self.now < QUIET && self.dice.unit() < 0.5;
        if fails {
            let after = self.dice.below(3) as u32;
            self.disk.fail(Fault {
                after,
                written: self.dice.below(2) == 0,
                dead: true,
            });
        }
        match Self::open(&self.disk, &self.config, self.now) {
            Ok(core) => (self.core, self.started) = (Some(core), self.now),
            Err(e) => {
                assert!(fails, "{}: does not start: {e}", self.story());
                self.count.failed_starts += 1;
                return self.at(self.now + 300, Event::Start);
            }
        }
        if fails {
            self.disk.revive();
        }
    }

    fn forget(&mut self, requests: Vec<DeletionRequest>) {
        let now = self.now - self.started;
        let Some(core) = self.core.as_mut() else {
            return self.at(self.now + 500, Event::Forget(requests));
        };
        let traffic = Traffic::default();
        let ask = AdminRequest::Forget {
            requests: requests.clone(),
            dry_run: false,
            asked: 0,
            reference: String::new(),
            confirmed: false,
        };
        let result = core.admin(ask, Digest::default(), traffic, now);
        self.note(format!(
            "{} forget: {}",
            self.now,
            result
                .as_ref()
                .err()
                .map_or("accepted".into(), ToString::to_string)
        ));
        match result {
            Err(e) if !e.is_request() => {
                let named = requests.iter().filter_map(DeletionRequest::subject);
                self.doubted.extend(named.cloned());
                self.at(self.now + 500, Event::Forget(requests));
            }
            Ok(_) => {
                self.count.deletions += requests.len() as u64;
                for request in requests {
                    // Whoever has something to erase may be in another shard afterwards: what they
                    // were acknowledged for in the old one counts no more.
                    if self.common.wanders {
                        let all = self.devices.iter().map(|d| d.subject.clone());
                        let concerned = all.filter(|s| request.concerns(s));
                        self.doubted.extend(concerned);
                    }
                    if let DeletionRequest::Erase { subject }
                    | DeletionRequest::Restrict { subject } = request
                    {
                        self.forgotten.insert(subject);
                    }
                }
            }
            Err(_) => {}
        }
    }

    /// What the listener does with a request; nothing comes back from a coordinator that is down.
    fn serve(&mut self, n: usize, request: Request) -> Option<Reply> {
        let (now, subject) = (self.now - self.started, self.devices[n].subject.clone());
        let certificate = self.certificates[n];
        let core = self.core.as_mut()?;
        if !matches!(core.role(&certificate), Some(Role::Subject(_))) {
            return Some(Reply::Refused {
                code: Refusal::Forbidden,
                message: "unknown".into(),
            });
        }
        let update = match &request {
            Request::Update { round, .. } => Some(*round),
            _ => None,
        };
        let withholds = matches!(
            &request,
            Request::Erased {
                outcome: Erased::WaitsForConsent,
                ..
            }
        );
        let reply = answer(core, &subject, request, now).unwrap_or_else(CoordinatorError::reply);
        self.count.failed_writes += u64::from(matches!(
            reply,
            Reply::Refused {
                code: Refusal::Internal,
                ..
            }
        ));
        if withholds {
            self.doubted.insert(subject.clone());
        }
        if let (Some(round), Reply::Ack) = (update, &reply) {
            self.count.updates += 1;
            self.count.repeated +=
                u64::from(!self.acknowledged.entry(round).or_default().insert(subject));
        }
        Some(reply)
    }

    /// Faults are over, training is, and every deletion has its receipt.
    fn settled(&self) -> bool {
        let over = self.common.steady || self.now > QUIET;
        let Some(core) = self.core.as_ref().filter(|_| over) else {
            return false;
        };
        let pending = self
            .queue
            .values()
            .any(|e| matches!(e, Event::Forget(_) | Event::Crash(_) | Event::Start));
        let done = core.runs.iter().all(|r| r.done(&core.recipe)) && core.validated();
        !pending
            && done
            && core
                .deletions
                .values()
                .all(|d| d.phase == DeletionPhase::Done)
    }

    /// The digest of everything that happened.
    pub(super) fn trace(&self) -> Digest {
        self.trace.digest()
    }

    /// For people.
    pub(super) fn story(&self) -> String {
        format!("{}seed {}", self.trace.text(), self.seed)
    }

    /// What has not come to its end.
    pub(super) fn stuck(&self) -> String {
        let Some(core) = self.core.as_ref() else {
            return "the coordinator is down".into();
        };
        let runs: Vec<_> = core
            .runs
            .iter()
            .map(|r| (r.key(), r.open.as_ref().map(|o| &o.round)))
            .collect();
        let deletions: Vec<_> = core
            .deletions
            .keys()
            .filter_map(|id| core.deletion_state(*id))
            .collect();
        format!(
            "{runs:?}, validated {}, {deletions:?}, {:?}",
            core.validated(),
            self.devices
        )
    }
}

fn short(event: &Event) -> String {
    match event {
        Event::Asked(n, call, r) => format!("{n} asks ({call}): {}", kind(r)),
        Event::Answered(n, call, r) => format!("{n} hears ({call}): {}", brief(r)),
        other => format!("{other:?}"),
    }
}
