//! The scheduler: one queue of events in virtual time, everything drawn from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lethe_learn::seed::{Seed, Stream};
use lethe_ledger::*;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::Refusal;

use super::disk::Disk;

mod device;
mod jobs;
mod lists;
mod people;
mod rolls;

/// When virtual time begins, in milliseconds since 1970.
const BEGIN: u64 = 1_800_000_000_000;
/// When faults end.
pub(crate) const QUIET: u64 = 60_000;
/// When everything has to have come to its end.
pub(crate) const END: u64 = 900_000;

pub(crate) type Values = Vec<(ValueRef, Vec<Owner>, Vec<f32>)>;

#[derive(Debug)]
pub(crate) enum Ev {
    Tick,
    Device(usize),
    Again(Command),
    Job(Command, Values),
    Crash(u64),
    Start,
    Fault,
    Backup,
    Restore,
    Forget(Vec<DeletionRequest>),
    Approve,
    Replay,
    Lift,
    Hold,
    Release,
    ReplayWithoutMissing,
    Epoch,
    DropEpoch,
}

/// A device, by the client library's rules.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) subject: SubjectId,
    pub(crate) certificate: Digest,
    joined: Option<EpochNo>,
    training: Option<(RunKey, u64)>,
    erasing: Option<(u64, bool)>,
    consents_at: u64,
    stopped: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) crashes: u64,
    pub(crate) faults: u64,
    pub(crate) updates: u64,
    pub(crate) deletions: u64,
    pub(crate) late: u64,
    pub(crate) moves: u64,
    pub(crate) replays: u64,
    pub(crate) stale: u64,
    pub(crate) restored: u64,
    pub(crate) two_epochs: u64,
    pub(crate) lost_shards: u64,
    pub(crate) left_out: u64,
    pub(crate) retired: u64,
    pub(crate) dropped: u64,
    pub(crate) lifted: u64,
    pub(crate) stages: u64,
    pub(crate) unproven: u64,
    pub(crate) held: u64,
}

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) dice: Stream,
    pub(crate) now: u64,
    started: u64,
    queue: BTreeMap<(u64, u64), Ev>,
    pub(crate) events: u64,
    pub(crate) up: bool,
    pub(crate) state: State,
    pub(crate) disk: Disk,
    backup: Option<Disk>,
    pub(crate) log: Vec<Vec<u8>>,
    pub(crate) journal: BTreeMap<u64, Accepted>,
    pub(crate) floor: u64,
    fault: Option<bool>,
    rules: Rules,
    pub(crate) terms: Terms,
    pub(crate) devices: Vec<Device>,
    /// How often each person's items were erased: what they train on changes with it.
    pub(crate) versions: BTreeMap<SubjectId, u64>,
    pub(crate) acknowledged: BTreeSet<(RunKey, SubjectId)>,
    pub(crate) forgotten: BTreeSet<SubjectId>,
    pub(crate) restored: bool,
    pub(crate) seen: BTreeMap<ShardKey, (u32, u16, u16)>,
    pub(crate) count: Count,
    pub(crate) story: Vec<String>,
    trace: Digest,
    pub(crate) lists: lists::Lists,
    uses: u64,
    /// Updates have masks: not all who answer can be counted.
    pub(crate) masks: bool,
    pub(crate) people: people::People,
}

pub(crate) fn name(n: usize) -> SubjectId {
    SubjectId::new(format!("s{n}")).unwrap()
}

fn digest(parts: &[&str]) -> Digest {
    let parts: Vec<&[u8]> = parts.iter().map(|p| p.as_bytes()).collect();
    Digest::of(&parts)
}

/// What a person's update in a round is: the same in every generation, other after an erasure.
pub(crate) fn update(subject: &SubjectId, version: u64, run: &RunKey, begun: u16) -> Vec<f32> {
    let text = format!(
        "{subject} {version} {:?} {} {} {begun}",
        run.epoch, run.shard, run.stage
    );
    let mut rng = Seed::from_u64(5).derive(&text, &[]).rng();
    (0..3).map(|_| rng.normal()).collect()
}

/// Adds a round to an adapter: in the order of subjects, the late ones with less weight.
pub(crate) fn add_up(theta: &mut [f32], round: u16, updates: &[(Contributor, Vec<f32>)]) {
    for ((_, begun), values) in updates {
        let weight = 1.0 / (1.0 + f32::from(round - begun)).sqrt();
        theta
            .iter_mut()
            .zip(values)
            .for_each(|(t, v)| *t += weight * v);
    }
}

pub(crate) fn initial() -> Vec<f32> {
    vec![0.5; 3]
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Seed::from_u64(seed).derive("ledger simulation", &[]).rng();
        let people = 4 + dice.below(4);
        let staleness = [None, None, Some(1), Some(2)][dice.below(4)];
        let aggregation = [
            Aggregation::Shared,
            Aggregation::Fedavg,
            Aggregation::Personalized,
        ];
        let terms = Terms {
            shards: 2,
            anchors: 1 + dice.below(2) as u16,
            slices: 2,
            placement: [Placement::Hash, Placement::Tenure][dice.below(2)],
            rounds: 2,
            cohort: 4,
            goal: staleness.map(|_| 2),
            staleness,
            quorum: 2,
            deadline_s: 5,
            validation: 1,
            samples: 8,
            hidden: 2,
            seed,
            aggregation: aggregation[if staleness.is_some() {
                dice.below(2)
            } else {
                dice.below(3)
            }],
            feeds_back: dice.below(2) == 0,
        };
        let rules = Rules {
            min_subjects: people - 3,
            erase_wait_s: 5 + dice.below(40) as u64,
            job_wait_ms: 60_000,
            build: "simulated".into(),
            quarantine_ms: seed % 3 * 4000,
            // A third of all worlds gathers deletions.
            erase_window_ms: if seed.is_multiple_of(3) { 3_000 } else { 0 },
            items: Arc::new((0..8).map(|i: u32| i.to_string()).collect()),
            roll: Roll {
                join_ms: 2_000 + dice.below(30_000) as u64,
                ..Roll::default()
            },
            ..Rules::default()
        };
        // Half of those worlds in which masks can be.
        let masks = terms.aggregation == Aggregation::Fedavg
            && terms.staleness.is_none()
            && seed.is_multiple_of(2);
        let mut w = Self {
            seed,
            dice,
            now: 0,
            started: 0,
            queue: BTreeMap::new(),
            events: 0,
            up: true,
            state: State::default(),
            disk: Disk::default(),
            backup: None,
            log: vec![],
            journal: BTreeMap::new(),
            floor: 0,
            fault: None,
            rules,
            terms,
            devices: vec![],
            versions: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            restored: false,
            seen: BTreeMap::new(),
            count: Count::default(),
            story: vec![],
            trace: Digest::default(),
            lists: lists::Lists::default(),
            uses: 0,
            masks,
            people: people::People::new(seed),
        };
        w.begin(people);
        w.misfortunes(people);
        w.lifts();
        w
    }

    fn begin(&mut self, people: usize) {
        self.state.set_rules(self.rules.clone());
        self.boot(vec![]);
        self.found(None).unwrap();
        for i in 0..2 {
            let secret = digest(&["operator", &i.to_string()]);
            if i == 0 {
                self.must(Command::InviteFirstOperator { secret });
            } else {
                let fresh = self.fresh();
                self.must(Command::RecoverOperator { secret, fresh });
            }
            let certificate = self.operator(i);
            self.must(Command::Enrol {
                secret,
                certificate,
                expires: u64::MAX,
                device_of: None,
            });
        }
        if self.dice.below(3) == 0 {
            let by = self.operator(0);
            let fresh = self.fresh();
            self.must(Command::Propose {
                what: Proposal::Approvals(2),
                confirmed: true,
                note: Some("policy: 2 approvals".into()),
                by,
                secret: Digest::default(),
                plans: vec![],
                fresh,
            });
        }
        for n in 0..people {
            for d in 0..1 + usize::from(self.dice.below(4) == 0) {
                self.enrol(n, d);
            }
        }
        self.at(200, Ev::Tick);
    }

    fn operator(&self, i: usize) -> Digest {
        digest(&["operator certificate", &i.to_string()])
    }

    fn enrol(&mut self, n: usize, d: usize) {
        let secret = digest(&["invitation", &n.to_string(), &d.to_string()]);
        let certificate = digest(&["certificate", &n.to_string(), &d.to_string()]);
        self.must(Command::Invite {
            subject: name(n),
            secret,
        });
        self.must(Command::Enrol {
            secret,
            certificate,
            expires: 0,
            device_of: None,
        });
        self.devices.push(Device {
            subject: name(n),
            certificate,
            joined: None,
            training: None,
            erasing: None,
            consents_at: 0,
            stopped: false,
        });
        let start = 10 + self.dice.below(2000) as u64;
        self.at(start, Ev::Device(self.devices.len() - 1));
    }

    fn misfortunes(&mut self, people: usize) {
        for _ in 0..self.dice.below(4) {
            let (when, down) = (self.sometime(), 50 + self.dice.below(4000) as u64);
            self.at(when, Ev::Crash(down));
        }
        self.at(QUIET, Ev::Crash(100));
        for _ in 0..self.dice.below(5) {
            let when = self.sometime();
            self.at(when, Ev::Fault);
        }
        for _ in 0..self.dice.below(4) {
            let when = self.sometime();
            let requests = (0..1 + self.dice.below(3))
                .map(|_| self.request(people))
                .collect();
            self.at(when, Ev::Forget(requests));
        }
        for _ in 0..self.dice.below(3) {
            let when = self.sometime();
            self.at(when, Ev::Replay);
        }
        if self.dice.below(5) == 0 {
            let when = self.sometime();
            self.at(when, Ev::Backup);
            let later = self.dice.below(20_000) as u64;
            self.at((when + later).min(QUIET - 1), Ev::Restore);
        }
        if self.dice.below(2) == 0 {
            let when = self.sometime();
            self.at(when, Ev::Epoch);
            if self.dice.below(3) == 0 {
                let when = self.sometime();
                self.at(when, Ev::DropEpoch);
            }
        }
    }

    fn request(&mut self, people: usize) -> DeletionRequest {
        let subject = name(self.dice.below(people));
        let items = vec![self.dice.below(8).to_string()];
        match self.dice.below(6) {
            0 => DeletionRequest::Takedown { items },
            1 => DeletionRequest::EraseItems { subject, items },
            2 => DeletionRequest::Restrict { subject },
            3 => DeletionRequest::Withdraw {
                subject,
                from: (BEGIN / 1000) as i64,
            },
            _ => DeletionRequest::Erase { subject },
        }
    }

    fn sometime(&mut self) -> u64 {
        let busy = self.dice.below(2) == 0;
        500 + self
            .dice
            .below(if busy { 15_000 } else { QUIET as usize - 1000 }) as u64
    }

    pub(crate) fn at(&mut self, when: u64, ev: Ev) {
        self.events += 1;
        self.queue.insert((when, self.events), ev);
    }

    pub(crate) fn time(&self) -> Now {
        Now {
            unix_ms: BEGIN + self.now,
            uptime_ms: self.now - self.started,
        }
    }

    fn fresh(&mut self) -> Fresh {
        self.uses += 1;
        Fresh(Digest::of(&[b"fresh", &self.seed.to_le_bytes(), &self.uses.to_le_bytes()]).0)
    }

    pub(crate) fn note(&mut self, line: String) {
        self.trace = Digest::of(&[&self.trace.0, line.as_bytes()]);
        self.story.push(format!("{} {line}", self.now));
        if self.story.len() > 4000 {
            self.story.drain(..2000);
        }
    }

    pub(crate) fn trace(&self) -> Digest {
        self.trace
    }

    pub(crate) fn tell(&self) -> String {
        let most = std::env::var("LETHE_SIM_STORY").map_or(60, |n| n.parse().unwrap());
        let from = self.story.len().saturating_sub(most);
        format!("{}\nseed {}", self.story[from..].join("\n"), self.seed)
    }

    fn must(&mut self, command: Command) {
        self.run(command, vec![]).unwrap();
    }

    /// Decide, write, apply, effects. `Err` is what the asker is told.
    pub(crate) fn run(&mut self, command: Command, values: Values) -> Result<Vec<Event>, Refused> {
        let what = format!("{command:?}");
        let events = decide(&self.state, command, self.time())?;
        if events.is_empty() {
            return Ok(events);
        }
        let short: String = what.chars().take(160).collect();
        self.note(short);
        let failed = || {
            Err(Refused {
                code: Refusal::Internal,
                message: "the store".into(),
            })
        };
        let lasting = events.iter().any(|e| !e.is_volatile());
        for event in &events {
            match event.before() {
                Some(Before::Journal(id)) => {
                    if let Event::DeletionAccepted { deletion, .. } = event {
                        self.journal.insert(id, Accepted::of(id, deletion));
                    }
                }
                Some(Before::Floor(no)) => self.floor = self.floor.max(no),
                None => {}
            }
        }
        if let Some(written) = self.fault.filter(|_| lasting) {
            self.fault = None;
            self.count.faults += 1;
            self.note(format!("the write fails, written: {written}"));
            if written {
                self.disk.write(&events, &values);
                self.lifts_in(&events);
            }
            // In doubt: what is durable is read again before the next command.
            self.reload(vec![]);
            return failed();
        }
        self.disk.write(&events, &values);
        let mut out = Effects::default();
        for event in &events {
            apply(&mut self.state, event);
            effects(&self.state, event, &mut out);
        }
        for value in std::mem::take(&mut self.state.dropped) {
            self.disk.values.remove(&value);
        }
        self.count_events(&events);
        self.lifts_in(&events);
        self.stages_found(&events);
        for effect in out.all {
            match effect {
                Effect::Aggregate { run, counted } => self.start_job(run, &counted),
                Effect::DestroyKeys { .. } if self.dice.below(2) == 0 => self.destroy_keys(),
                _ => {}
            }
        }
        Ok(events)
    }

    fn count_events(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::MoveAsked { .. } => self.count.moves += 1,
                Event::EpochReached {
                    step: Step::Dropped,
                    ..
                } => self.count.dropped += 1,
                Event::ReplayEnded {
                    hashes: Some((a, b)),
                    ..
                } => {
                    assert_eq!(a, b, "{}: a replay differs", self.tell());
                    self.count.replays += 1;
                }
                Event::RoundCounted { round, counted, .. } => {
                    let late = counted.iter().filter(|(_, begun)| begun < round).count();
                    self.count.late += late as u64;
                    let most = self.terms.staleness.unwrap_or(0);
                    let fits = counted.iter().all(|(_, begun)| round - begun <= most);
                    assert!(fits, "{}: too late", self.tell());
                }
                Event::UpdatesLeftOut { updates, .. } => {
                    self.count.left_out += updates.len() as u64;
                }
                Event::MadeExact { id, .. } => {
                    let request = self.state.deletions()[id].request.clone();
                    if let DeletionRequest::Erase { subject } = request {
                        self.forgotten.insert(subject);
                    }
                }
                _ => {}
            }
        }
    }

    fn boot(&mut self, lost: Vec<ShardKey>) {
        let fresh = self.fresh();
        let journal = self.journal.values().cloned().collect();
        let floor = self.floor;
        self.must(Command::Started {
            floor,
            journal,
            lost,
            stayed: vec![],
            fresh,
        });
        self.say_lists();
    }

    fn reload(&mut self, lost: Vec<ShardKey>) {
        self.fault = None;
        self.state = self.disk.rebuild();
        self.state.set_rules(self.rules.clone());
        // Values that nothing refers to: of writes that were cut off.
        let known: BTreeSet<ValueRef> = self.state.values().into_iter().map(|(v, _)| v).collect();
        self.disk.values.retain(|v, _| known.contains(v));
        self.state.dropped.clear();
        self.boot(lost);
    }

    fn destroy_keys(&mut self) {
        if self.state.core().executing.is_none() {
            return;
        }
        self.leave_lists();
        let keys = self.state.keys_to_destroy();
        let some = self.dice.below(keys.len() + 1);
        let interrupted = self.now < QUIET && self.dice.below(8) == 0;
        for owner in keys
            .iter()
            .take(if interrupted { some } else { keys.len() })
        {
            self.disk.destroy(owner);
        }
        if interrupted {
            self.note("destroying keys is interrupted".into());
            return self.reload(vec![]);
        }
        let _ = self.run(Command::KeysDestroyed, vec![]);
    }

    pub(crate) fn step(&mut self) -> bool {
        let Some(((when, _), ev)) = self.queue.pop_first() else {
            return false;
        };
        self.now = when;
        match ev {
            Ev::Tick => {
                if self.up {
                    self.tick();
                    if self.dice.below(8) == 0 || self.state.lists_wait() {
                        self.publish_lists();
                    }
                    if self.dice.below(20) == 0 {
                        self.disk.snapshot(&mut self.state);
                    }
                }
                self.at(self.now + 200, Ev::Tick);
            }
            Ev::Device(n) => {
                let wait = if self.up { self.device(n) } else { 300 };
                if !self.devices[n].stopped {
                    self.at(self.now + wait, Ev::Device(n));
                }
            }
            Ev::Again(command) if self.up => drop(self.run(command, vec![])),
            Ev::Job(command, values) if self.up => {
                let result = self.run(command, values);
                self.count.stale += u64::from(result.is_ok_and(|e| e.is_empty()));
            }
            Ev::Again(_) | Ev::Job(..) => {}
            Ev::Crash(down) => {
                self.up = false;
                self.count.crashes += 1;
                self.note("crash".into());
                self.at(self.now + down, Ev::Start);
            }
            Ev::Start => self.start(),
            Ev::Fault => self.fault = Some(self.dice.below(2) == 0),
            Ev::Backup => {
                if self.up {
                    self.disk.snapshot(&mut self.state);
                }
                self.backup = Some(self.disk.clone());
            }
            Ev::Restore => {
                if let Some(backup) = self.backup.take() {
                    self.note("a backup is restored".into());
                    let next = self.disk.next;
                    self.disk = backup;
                    self.disk.next = next;
                    self.restored = true;
                    self.count.restored += 1;
                    self.acknowledged.clear();
                    self.seen.clear();
                    self.forget_restrictions();
                    self.start();
                }
            }
            Ev::Forget(requests) => self.forget(requests),
            Ev::Approve => {
                let ids: Vec<u64> = self.state.proposals().keys().copied().collect();
                let up = self.up;
                for id in ids.into_iter().filter(|_| up) {
                    let by = self.operator(1);
                    let fresh = self.fresh();
                    let secret = Digest::default();
                    let _ = self.run(
                        Command::Approve {
                            id,
                            by,
                            secret,
                            plans: vec![],
                            fresh,
                        },
                        vec![],
                    );
                }
                if !self.up || !self.state.proposals().is_empty() && self.now < QUIET + 5000 {
                    self.at(self.now + 1000, Ev::Approve);
                }
            }
            Ev::Replay if self.up => {
                let shard = ShardId(self.dice.below(2) as u16);
                if let Some(shard) = self.state.shard_of_wire(shard) {
                    let by = self.operator(0);
                    let fresh = self.fresh();
                    let started = self.run(Command::Replay { shard, by, fresh }, vec![]);
                    if started.is_err() && self.now < QUIET {
                        self.at(self.now + 3000, Ev::Replay);
                    }
                }
            }
            Ev::Epoch => self.next_epoch(),
            Ev::DropEpoch if self.up => {
                if let Some(epoch) = self.state.rolling() {
                    let asked = Some(self.asked());
                    let _ = self.run(Command::DropEpoch { epoch, asked }, vec![]);
                }
            }
            Ev::Lift => self.lift(),
            Ev::Hold => self.hold(true),
            Ev::Release => self.hold(false),
            Ev::ReplayWithoutMissing => self.replay_without_missing(),
            Ev::Replay | Ev::DropEpoch => {}
        }
        self.now < END && !self.settled()
    }

    fn start(&mut self) {
        self.up = true;
        // Jobs end with their process.
        self.queue.retain(|_, e| !matches!(e, Ev::Job(..)));
        self.started = self.now;
        let mut lost = vec![];
        if self.now < QUIET && self.dice.below(12) == 0 {
            let shards: Vec<ShardKey> = self.state.shards().map(|(k, _, _)| k).collect();
            let key = shards[self.dice.below(shards.len())];
            self.note(format!("{key:?} is damaged"));
            let keys: Vec<Owner> = self.disk.keys.keys().cloned().collect();
            let own = |o: &Owner| match o {
                Owner::Stage(k) => k.epoch == key.epoch && k.shard == key.shard,
                _ => false,
            };
            keys.iter()
                .filter(|o| own(o))
                .for_each(|o| self.disk.destroy(o));
            lost.push(key);
            self.count.lost_shards += 1;
            self.acknowledged.retain(|(run, _)| run.shard_key() != key);
        }
        self.reload(lost);
        for d in &mut self.devices {
            d.training = None;
        }
    }

    fn forget(&mut self, requests: Vec<DeletionRequest>) {
        if !self.up {
            return self.at(self.now + 500, Ev::Forget(requests));
        }
        let plans: Vec<OwnPlans> = if self.dice.below(2) == 0 {
            vec![]
        } else {
            let plan = |r: &DeletionRequest| {
                let epochs = self.state.epochs().keys();
                let own = std::slice::from_ref(r);
                let of = |no: &EpochNo| {
                    Some((
                        *no,
                        lethe_plan::plan(&self.state.inventory(*no)?, own).ok()?,
                    ))
                };
                epochs.filter_map(of).collect()
            };
            requests.iter().map(plan).collect()
        };
        let by = self.operator(0);
        let fresh = self.fresh();
        let n = requests.len() as u64;
        let what = Proposal::Forget {
            requests: requests.clone(),
            asked: 0,
            reference: String::new(),
        };
        let secret = Digest::default();
        let asked = Command::Propose {
            what,
            confirmed: false,
            note: None,
            by,
            secret,
            plans,
            fresh,
        };
        match self.run(asked, vec![]) {
            Ok(_) => {
                self.count.deletions += n;
                self.at(self.now + 2000, Ev::Approve);
            }
            Err(e) if e.code == Refusal::Internal || e.code == Refusal::Busy => {
                self.at(self.now + 500, Ev::Forget(requests));
            }
            Err(_) => {}
        }
    }

    pub(crate) fn settled(&self) -> bool {
        if !self.up || self.now <= QUIET {
            return false;
        }
        let pending = |e: &Ev| matches!(e, Ev::Forget(_) | Ev::Crash(_) | Ev::Start | Ev::Approve);
        let begun = self
            .state
            .living()
            .rev()
            .find(|(_, e)| e.partition.is_some());
        let trained =
            begun.is_some_and(|(no, e)| e.trained() && self.state.core().serving == Some(no));
        let nobody = self.state.people().values().all(|p| p.devices.is_empty());
        let replays = self
            .state
            .shards()
            .all(|(_, _, s)| s.replay.as_ref().is_none_or(|r| !r.runs()));
        !self.queue.values().any(pending)
            && (nobody || begun.is_none() || trained && self.state.validated())
            && replays
            && !due(&self.state, self.time())
                .iter()
                .any(|d| matches!(d, Duty::Retire(_) | Duty::DestroySpent(_)))
            && self.state.core().lost.is_empty()
            && self.state.people().values().all(|p| p.moving.is_none())
            && !self.state.unexecuted()
            && self
                .state
                .deletions()
                .values()
                .all(|d| d.phase == DeletionPhase::Done)
    }
}
