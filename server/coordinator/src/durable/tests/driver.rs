//! Real commands in random order, on the real store: what a shell does, in short.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lethe_learn::seed::{Seed, Stream};
use lethe_ledger::*;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::{Erased, ErrorReport};
use lethe_receipt::records::Records;
use lethe_transport::identity::Authority;

use super::super::tables::key_of;
use super::super::*;
use super::disk::Disk;
use super::snapshot;

const PEOPLE: usize = 5;

pub(super) fn foundation() -> Foundation {
    Foundation {
        authority: Authority::create().unwrap().record(),
        log_seed: [3; 32],
    }
}

/// The first slice in which two states differ.
pub(super) fn difference(a: &State, b: &State) -> Option<SliceId> {
    let of = |state: &State| -> BTreeMap<SliceId, Option<Vec<u8>>> {
        let all = state.slices().into_iter();
        all.map(|id| (id.clone(), state.slice(&id))).collect()
    };
    let (a, b) = (of(a), of(b));
    let all = a.keys().chain(b.keys());
    all.into_iter().find(|id| a.get(*id) != b.get(*id)).cloned()
}

fn digest(parts: &[&str]) -> Digest {
    let parts: Vec<&[u8]> = parts.iter().map(|p| p.as_bytes()).collect();
    Digest::of(&parts)
}

fn name(n: usize) -> SubjectId {
    SubjectId::new(format!("s{n}")).unwrap()
}

pub(super) struct Driver {
    seed: u64,
    dice: Stream,
    disk: Disk,
    opened: Option<Opened>,
    now: u64,
    uses: u64,
    log: Vec<Vec<u8>>,
    journal: BTreeMap<u64, Accepted>,
    floor: u64,
    /// Of what was destroyed: names that must stay away.
    pub(super) destroyed: BTreeSet<Owner>,
    pub(super) updates: u32,
    pub(super) faults: u32,
    pub(super) receipts: u32,
}

impl Driver {
    pub(super) fn new(seed: u64) -> Self {
        let disk = Disk::new();
        let opened = Durable::found(&disk.engine(), disk.folder(), foundation(), 2).unwrap();
        let mut world = Self {
            seed,
            dice: Seed::from_u64(seed).derive("durable", &[]).rng(),
            disk,
            opened: Some(opened),
            now: 0,
            uses: 0,
            log: vec![],
            journal: BTreeMap::new(),
            floor: 0,
            destroyed: BTreeSet::new(),
            updates: 0,
            faults: 0,
            receipts: 0,
        };
        world.boot();
        world.begin();
        world
    }

    fn opened(&mut self) -> &mut Opened {
        self.opened.as_mut().unwrap()
    }

    fn state(&self) -> &State {
        &self.opened.as_ref().unwrap().state
    }

    fn fresh(&mut self) -> Fresh {
        self.uses += 1;
        Fresh(digest(&["fresh", &self.seed.to_string(), &self.uses.to_string()]).0)
    }

    fn time(&self) -> Now {
        Now {
            unix_ms: 1_800_000_000_000 + self.now,
            uptime_ms: self.now,
        }
    }

    fn operator() -> Digest {
        digest(&["operator"])
    }

    fn begin(&mut self) {
        let aggregations = [Aggregation::Shared, Aggregation::Personalized];
        let terms = crate::terms::small(self.seed, aggregations[self.dice.below(2)]);
        self.must(Command::FoundEpoch {
            terms,
            recipe: "{}".into(),
            recipe_digest: digest(&["recipe"]),
            model: digest(&["model"]),
            initial: digest(&["initial"]),
            catalogue: CatalogueVersion(1),
            base: None,
            asked: None,
        });
        let secret = digest(&["secret"]);
        self.must(Command::InviteFirstOperator { secret });
        self.enrol(secret, Self::operator());
        for n in 0..PEOPLE {
            let subject = name(n);
            let secret = digest(&["secret", subject.as_str()]);
            self.must(Command::Invite {
                subject: subject.clone(),
                secret,
            });
            self.enrol(secret, digest(&["certificate", subject.as_str()]));
        }
    }

    fn enrol(&mut self, secret: Digest, certificate: Digest) {
        self.must(Command::Enrol {
            secret,
            certificate,
            expires: u64::MAX,
            device_of: None,
        });
    }

    fn must(&mut self, command: Command) {
        assert!(self.command(command, vec![]), "seed {}", self.seed);
    }

    fn boot(&mut self) {
        let rules = Rules {
            min_subjects: 3,
            erase_wait_s: 20,
            build: "driven".into(),
            items: Arc::new((0..4).map(|i: u32| i.to_string()).collect()),
            ..Rules::default()
        };
        self.opened().state.set_rules(rules);
        let started = Command::Started {
            floor: self.floor,
            journal: self.journal.values().cloned().collect(),
            lost: vec![],
            stayed: self.opened().durable.stayed().unwrap(),
            fresh: self.fresh(),
        };
        self.must(started);
    }

    /// Decide, write, apply. Whether it was done.
    fn command(&mut self, command: Command, values: Vec<NewValue>) -> bool {
        let destroyed = match command {
            Command::KeysDestroyed => self.state().keys_to_destroy(),
            _ => vec![],
        };
        let Ok(events) = decide(self.state(), command, self.time()) else {
            return false;
        };
        if events.is_empty() {
            return true;
        }
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
        let before = self.state().clone();
        let opened = self.opened();
        let result = opened.durable.write(&events, values);
        let mut after = before.clone();
        events.iter().for_each(|e| apply(&mut after, e));
        if result.is_err() {
            self.faults += 1;
            self.disk.mend();
            let read = self.opened().durable.rebuild().unwrap();
            let mut before = before;
            // It was not written that they are gone, but they are.
            destroyed.iter().for_each(|o| before.forget_owner(o));
            let same = |state: &State| difference(&read, state).is_none();
            assert!(same(&before) || same(&after), "seed {}", self.seed);
            self.opened().state = read;
            self.boot();
            return false;
        }
        let dropped = std::mem::take(&mut after.dropped);
        let opened = self.opened();
        opened.state = after;
        if opened.durable.values().delete(&dropped).is_err() {
            self.disk.mend();
        }
        true
    }

    /// All is read again.
    fn check(&mut self) {
        let before = self.state().clone();
        self.opened = None;
        let opened = self.disk.open();
        assert_eq!(
            difference(&opened.state, &before),
            None,
            "seed {}",
            self.seed
        );
        for (value, owners) in opened.state.values() {
            // Until it is said that keys are destroyed, shards name what is gone with them.
            let gone = |o: &Owner| opened.durable.store.existing(&[key_of(o)]) == 0;
            if opened.state.core().executing.is_some() && owners.iter().any(gone) {
                continue;
            }
            let found = opened.durable.values().get(&value).unwrap();
            assert!(found.is_some(), "seed {}: {value:?}", self.seed);
        }
        for owner in &self.destroyed {
            let key = key_of(owner);
            assert_eq!(opened.durable.store.existing(&[key]), 0, "{owner:?}");
        }
        self.opened = Some(opened);
        self.boot();
    }

    pub(super) fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.now += 100 + self.dice.below(900) as u64;
            if self.dice.below(25) == 0 {
                let after = self.dice.below(4) as u32;
                self.disk.fail_after(after, self.dice.below(2) == 0);
            }
            match self.dice.below(24) {
                0 => self.check(),
                1 | 2 => {
                    let opened = self.opened();
                    if snapshot(&mut opened.durable, &mut opened.state).is_err() {
                        self.disk.mend();
                    }
                }
                3 => self.forget(),
                4 => self.replay(),
                5..=14 => self.devices(),
                _ => self.duties(),
            }
        }
        self.disk.mend();
        self.check();
    }

    fn forget(&mut self) {
        let subject = name(self.dice.below(PEOPLE));
        let items = vec!["1".to_owned()];
        let request = match self.dice.below(4) {
            0 => DeletionRequest::EraseItems { subject, items },
            1 => DeletionRequest::Restrict { subject },
            2 => DeletionRequest::Takedown { items },
            _ => DeletionRequest::Erase { subject },
        };
        let what = Proposal::Forget {
            requests: vec![request],
            asked: 0,
            reference: String::new(),
        };
        let ask = Command::Propose {
            what,
            confirmed: true,
            note: None,
            by: Self::operator(),
            secret: Digest::default(),
            plans: vec![],
            fresh: self.fresh(),
        };
        self.command(ask, vec![]);
    }

    fn replay(&mut self) {
        let shard = super::shard(1, self.dice.below(2) as u16);
        let by = Self::operator();
        let fresh = self.fresh();
        self.command(Command::Replay { shard, by, fresh }, vec![]);
    }

    fn devices(&mut self) {
        for n in 0..PEOPLE {
            let device = digest(&["certificate", name(n).as_str()]);
            if self.state().role(&device).is_none() {
                continue;
            }
            let join = Command::Join {
                device,
                epoch: EpochNo::FIRST,
                anchor: Some(0),
                samples: 8,
                commitment: digest(&["data", name(n).as_str()]),
                fresh: self.fresh(),
            };
            self.command(join, vec![]);
            match self.state().work_for(&device, self.time()) {
                Some(Work::Erase { task }) => {
                    let ids = self.state().deletions().keys().map(|id| (*id, 1)).collect();
                    let outcome = Erased::Done { removed: ids };
                    let erased = Command::Erased {
                        device,
                        task,
                        outcome,
                    };
                    self.command(erased, vec![]);
                }
                Some(Work::Train { run, .. }) => {
                    self.command(Command::Offer { device, run }, vec![]);
                    self.update(n, run);
                }
                Some(Work::Validate { release, shards }) => {
                    self.measure(n, device, release, &shards);
                }
                None => {
                    let release = self.state().current_release().map_or(0, |(no, _)| no);
                    self.command(
                        Command::Fetched {
                            devices: vec![device],
                            release,
                        },
                        vec![],
                    );
                }
            }
        }
    }

    fn update(&mut self, n: usize, run: RunKey) {
        let subject = name(n);
        if self.state().holds(run.wire(), &subject) {
            return;
        }
        let stage = run.stage_key();
        let content = format!("update of {subject} in {run:?}").into_bytes();
        let values = self.opened().durable.values();
        let value = match self.dice.below(2) {
            0 => {
                let secret = values.stage_secret(&stage).unwrap();
                secret.seal_update(&subject, run.round, &content).unwrap()
            }
            _ => {
                let at = update_ref(&stage, &subject, run.round, &content);
                NewValue::new(at, Owner::Person(subject.clone()), content)
            }
        };
        let updates = vec![StoredUpdate {
            subject,
            begun: run.round,
            value: value.at.clone(),
        }];
        let store = Command::StoreUpdates { stage, updates };
        self.updates += u32::from(self.command(store, vec![value]));
    }

    fn measure(&mut self, n: usize, device: Digest, release: u64, shards: &[ShardId]) {
        let mut values = vec![];
        let mut written = vec![];
        for shard in shards {
            self.uses += 1;
            let content = format!("rows {}", self.uses).into_bytes();
            let key = super::shard(1, shard.0);
            let at = error_rows_ref(&key, &name(n), self.uses, &content);
            values.push((*shard, at.clone()));
            written.push(NewValue::new(at, Owner::Person(name(n)), content));
        }
        let rows = vec![ErrorReport {
            sample: 0,
            embedding: vec![0.5; 2],
            errors: shards.iter().map(|s| (*s, 0.5)).collect(),
        }];
        let report = Command::Errors {
            device,
            release,
            rows,
            values,
        };
        self.command(report, written);
    }

    fn duties(&mut self) {
        for duty in due(self.state(), self.time()) {
            self.duty(duty);
        }
    }

    fn duty(&mut self, duty: Duty) {
        let command = match duty {
            Duty::OpenRound(run) => Command::OpenRound { run },
            Duty::SealRound(run) => Command::SealRound { run },
            Duty::Deadline(run) => Command::Deadline { run },
            Duty::Unseal(run) => Command::AggregationFailed {
                run,
                why: "no result".into(),
            },
            Duty::Aggregate { run, counted } => return self.aggregate(run, counted),
            Duty::NoteInvitations => Command::NoteInvitations {
                fresh: self.fresh(),
            },
            Duty::GiveUpWaiting => Command::GiveUpWaiting,
            Duty::BeginExecution => Command::BeginExecution { lists: None },
            Duty::DestroyKeys(keys) => return self.destroy(keys),
            Duty::DestroySpent(keys) => {
                if !self.destroy_all(&keys) {
                    return;
                }
                Command::SpentDestroyed { keys }
            }
            Duty::HashMembers(shard) => {
                let tree = self.state().members_of_tree(shard);
                let records = Records::new(tree.records);
                Command::MembersHashed {
                    shard,
                    version: tree.version,
                    root: records.root(),
                    count: records.count(),
                    fresh: self.fresh(),
                }
            }
            Duty::Log { about, entry } => {
                self.log.push(entry);
                let entries = self.log.len() as u64;
                let root = [0; 32];
                Command::Logged {
                    about,
                    index: entries - 1,
                    head: LogHead { entries, root },
                }
            }
            Duty::LogRelease(no) => {
                let statement = format!("release {no}");
                self.log.push(statement.clone().into_bytes());
                let entries = self.log.len() as u64;
                let root = [0; 32];
                let part = LoggedPart {
                    number: no,
                    statement,
                    index: entries - 1,
                };
                let head = LogHead { entries, root };
                Command::ReleaseLogged { part, head }
            }
            Duty::Publish(epoch) => Command::Publish { epoch },
            Duty::Retire(epoch) => Command::Retire { epoch },
            Duty::BeginEpoch(epoch) => Command::BeginEpoch { epoch },
            Duty::DropEpoch(epoch) => Command::DropEpoch { epoch, asked: None },
            Duty::Finish(id) => Command::Finish { id },
            Duty::IssueReceipt(id) => {
                let content = format!("receipt {id}").into_bytes();
                let receipt = receipt_ref(id, &content);
                let value = NewValue::new(receipt.clone(), Owner::Deletion(id), content);
                let issued = Command::ReceiptIssued { id, receipt };
                self.receipts += u32::from(self.command(issued, vec![value]));
                return;
            }
        };
        self.command(command, vec![]);
    }

    fn destroy_all(&mut self, keys: &[Owner]) -> bool {
        let stay = self.state().who_stays();
        let done = self.opened().durable.destroy(keys, &stay).is_ok();
        if !done {
            self.disk.mend();
        }
        let lasting = keys.iter().filter(|k| !matches!(k, Owner::Person(_)));
        self.destroyed.extend(lasting.cloned());
        done
    }

    fn destroy(&mut self, keys: Vec<Owner>) {
        let interrupted = self.dice.below(4) == 0;
        let some = self.dice.below(keys.len() + 1);
        let now = if interrupted { &keys[..some] } else { &keys };
        if interrupted || !self.destroy_all(now) {
            self.destroy_all(now);
            // What a snapshot writes meanwhile brings nobody back.
            let opened = self.opened();
            if snapshot(&mut opened.durable, &mut opened.state).is_err() {
                self.disk.mend();
            }
            self.opened = None;
            self.opened = Some(self.disk.open());
            return self.boot();
        }
        self.command(Command::KeysDestroyed, vec![]);
    }

    fn aggregate(&mut self, run: RunKey, counted: Vec<Contributor>) {
        let values = self.opened().durable.values();
        let stage = self.state().stage(&run.stage_key());
        for contributor in &counted {
            let update = stage.and_then(|s| s.stored.get(contributor));
            let found = update.map(|u| values.get(u).unwrap());
            assert!(found.flatten().is_some(), "seed {}: no update", self.seed);
        }
        // The same in a replay as in the run that it repeats.
        let names: Vec<&SubjectId> = counted.iter().map(|(s, _)| s).collect();
        let content = format!("{:?} {} {} {names:?}", run.shard, run.stage, run.round);
        let hash = digest(&[&content]);
        let content = content.into_bytes();
        let ends = run.round == 1;
        let at = match ends {
            true => checkpoint_ref(&run.stage_key(), &content),
            false => run_state_ref(&run, &content),
        };
        let owner = Owner::Stage(run.stage_key());
        let mut written = vec![NewValue::new(at.clone(), owner.clone(), content)];
        let epoch = self.state().epoch(EpochNo::FIRST).unwrap();
        let mut personal = vec![];
        if epoch.terms.aggregation == Aggregation::Personalized {
            for subject in names {
                let own = format!("{subject} {run:?}").into_bytes();
                let at = personal_ref(&run, subject, &own);
                personal.push((subject.clone(), at.clone()));
                written.push(NewValue::new(at, owner.clone(), own));
            }
        }
        let aggregated = Command::RoundAggregated {
            run,
            counted: counted.clone(),
            left_out: vec![],
            state: at.clone(),
            hash,
            norm: Some(1.0),
            loss: Some(0.5),
            personal,
            checkpoint: ends.then_some(at),
            lineage: None,
            spent: Spent::default(),
        };
        self.command(aggregated, written);
    }
}
