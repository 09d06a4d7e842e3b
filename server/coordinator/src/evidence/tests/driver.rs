//! A small federation on the real ledger, with the real evidence folder and no store: what is
//! decided goes through [`Evidence::before`], what the log is to hold through [`Evidence::enter`].

use std::collections::BTreeMap;

use lethe_ledger::*;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::Erased;
use lethe_receipt::receipt::SignedByTally;
use lethe_receipt::records::Records;

use crate::CoordinatorError;
use crate::evidence::Evidence;

pub(super) const PEOPLE: [&str; 5] = ["ada", "ben", "cleo", "dora", "emil"];
pub(super) const NAME: &str = "log.example";
pub(super) const SEED: [u8; 32] = [7; 32];

pub(super) fn digest(name: &str) -> Digest {
    Digest::of(&[name.as_bytes()])
}

pub(super) fn subject(name: &str) -> SubjectId {
    SubjectId::new(name).unwrap()
}

pub(super) fn erase(name: &str) -> DeletionRequest {
    let subject = subject(name);
    DeletionRequest::Erase { subject }
}

pub(super) fn erase_item(name: &str, item: &str) -> DeletionRequest {
    DeletionRequest::EraseItems {
        subject: subject(name),
        items: vec![item.to_owned()],
    }
}

pub(super) struct Driver {
    pub(super) folder: tempfile::TempDir,
    pub(super) evidence: Evidence,
    pub(super) state: State,
    pub(super) receipts: BTreeMap<u64, Vec<u8>>,
    /// How often each person's device has erased something.
    versions: BTreeMap<SubjectId, u32>,
    time: u64,
    uses: u64,
}

impl Driver {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (evidence, opened) = Evidence::open(folder.path(), NAME, &SEED).unwrap();
        assert!(opened.journal.is_empty() && opened.floor.is_none());
        let mut driver = Self {
            folder,
            evidence,
            state: State::default(),
            receipts: BTreeMap::new(),
            versions: BTreeMap::new(),
            time: 0,
            uses: 0,
        };
        driver.state.set_rules(Self::rules());
        driver.start().unwrap();
        driver.found("recipe");
        driver.enrol();
        driver
    }

    /// A federation whose shards are trained, released and logged.
    pub(super) fn trained() -> Self {
        let mut driver = Self::new();
        driver.until(|state| state.releases().len() == 1);
        driver
    }

    fn rules() -> Rules {
        Rules {
            min_subjects: PEOPLE.len(),
            build: "lethe test".into(),
            items: std::sync::Arc::new(["5".to_owned(), "6".to_owned()].into()),
            ..Rules::default()
        }
    }

    pub(super) fn now(&self) -> Now {
        Now {
            unix_ms: 1_800_000_000_000 + self.time,
            uptime_ms: self.time,
        }
    }

    pub(super) fn fresh(&mut self) -> Fresh {
        self.uses += 1;
        Fresh(Digest::of(&[b"fresh", &self.uses.to_le_bytes()]).0)
    }

    /// What is decided; nothing has happened yet.
    pub(super) fn decide(&self, command: Command) -> Vec<Event> {
        decide(&self.state, command, self.now()).unwrap()
    }

    pub(super) fn apply(&mut self, events: &[Event]) {
        events.iter().for_each(|e| apply(&mut self.state, e));
    }

    pub(super) fn run(&mut self, command: Command) -> Result<Vec<Event>, CoordinatorError> {
        let decided = decide(&self.state, command, self.now());
        let events = decided.map_err(crate::evidence::refused)?;
        self.evidence.before(&events)?;
        self.apply(&events);
        Ok(events)
    }

    /// The process ends; the folder is opened again. The state stays as it is.
    pub(super) fn reopen(&mut self) {
        let (evidence, _) = Evidence::open(self.folder.path(), NAME, &SEED).unwrap();
        self.evidence = evidence;
    }

    pub(super) fn start(&mut self) -> Result<Vec<Event>, CoordinatorError> {
        let held = self.evidence.held()?;
        let fresh = self.fresh();
        self.run(Command::Started {
            floor: held.floor.unwrap_or(0),
            journal: held.journal,
            lost: vec![],
            stayed: vec![],
            fresh,
        })
    }

    pub(super) fn found(&mut self, recipe: &str) {
        let terms = crate::terms::small(3, Aggregation::Shared);
        let command = Command::FoundEpoch {
            terms,
            recipe: "{}".into(),
            recipe_digest: digest(recipe),
            model: digest("model"),
            initial: digest("initial"),
            catalogue: CatalogueVersion(1),
            base: None,
            asked: None,
        };
        self.run(command).unwrap();
    }

    fn enrol(&mut self) {
        for name in ["operator", "second operator"] {
            let secret = digest(&format!("secret of {name}"));
            let fresh = self.fresh();
            self.run(Command::RecoverOperator { secret, fresh })
                .unwrap();
            self.certificate(secret, name);
        }
        for name in PEOPLE {
            let secret = digest(&format!("secret of {name}"));
            let subject = subject(name);
            self.run(Command::Invite { subject, secret }).unwrap();
            self.certificate(secret, name);
        }
    }

    fn certificate(&mut self, secret: Digest, name: &str) {
        let command = Command::Enrol {
            secret,
            certificate: digest(name),
            expires: u64::MAX,
            device_of: None,
        };
        self.run(command).unwrap();
    }

    pub(super) fn propose(&mut self, requests: Vec<DeletionRequest>, reference: &str) -> Command {
        Command::Propose {
            what: Proposal::Forget {
                requests,
                asked: 0,
                reference: reference.into(),
            },
            confirmed: false,
            note: None,
            by: digest("operator"),
            secret: Digest::default(),
            plans: vec![],
            fresh: self.fresh(),
        }
    }

    pub(super) fn forget(&mut self, requests: Vec<DeletionRequest>) {
        let command = self.propose(requests, "case 7");
        self.run(command).unwrap();
    }

    /// Goes on until something is so.
    pub(super) fn until(&mut self, done: impl Fn(&State) -> bool) {
        for _ in 0..500 {
            if done(&self.state) {
                return;
            }
            self.step();
        }
        panic!("it does not come to that");
    }

    /// Everybody's turn.
    pub(super) fn step(&mut self) {
        self.time += 100;
        for name in PEOPLE {
            self.device(name);
        }
        for duty in due(&self.state, self.now()) {
            self.duty(duty);
        }
    }

    fn device(&mut self, name: &str) {
        let device = digest(name);
        match self.state.work_for(&device, self.now()) {
            Some(Work::Erase { task }) => self.erases(name, task),
            Some(Work::Train { run, .. }) => self.trains(name, run),
            Some(Work::Validate { .. }) => {}
            None => self.joins(name),
        }
    }

    /// Joins every epoch, if it is known any more.
    fn joins(&mut self, name: &str) {
        let epochs: Vec<EpochNo> = self.state.epochs().keys().copied().collect();
        let version = self.versions.get(&subject(name)).copied().unwrap_or(0);
        for epoch in epochs {
            let fresh = self.fresh();
            let _ = self.run(Command::Join {
                device: digest(name),
                epoch,
                anchor: None,
                samples: 8,
                commitment: digest(&format!("{name} {version}")),
                fresh,
            });
        }
    }

    fn erases(&mut self, name: &str, task: u64) {
        let device = digest(name);
        // Not logged yet, or not executed: later.
        let Ok(orders) = self.evidence.orders(&self.state, &device, task, 0) else {
            return;
        };
        let removed = orders.orders.iter().map(|o| (o.deletion, 3)).collect();
        let outcome = Erased::Done { removed };
        let command = Command::Erased {
            device,
            task,
            outcome,
        };
        if self.run(command).is_ok() {
            *self.versions.entry(subject(name)).or_default() += 1;
            self.joins(name);
        }
    }

    fn trains(&mut self, name: &str, run: RunKey) {
        let device = digest(name);
        let _ = self.run(Command::Offer { device, run });
        let value = self.value(Table::Update, digest(name));
        let update = StoredUpdate {
            subject: subject(name),
            begun: run.round,
            value,
        };
        let _ = self.run(Command::StoreUpdates {
            stage: run.stage_key(),
            updates: vec![update],
        });
    }

    fn value(&mut self, table: Table, digest: Digest) -> ValueRef {
        self.uses += 1;
        let id = self.uses.to_string();
        ValueRef { table, id, digest }
    }

    pub(super) fn duty(&mut self, duty: Duty) {
        let command = match duty {
            Duty::OpenRound(run) => Command::OpenRound { run },
            Duty::SealRound(run) => Command::SealRound { run },
            Duty::Deadline(run) => Command::Deadline { run },
            Duty::Aggregate { run, counted } => self.aggregated(run, counted),
            Duty::Unseal(run) => {
                let why = String::new();
                Command::AggregationFailed { run, why }
            }
            Duty::NoteInvitations => Command::NoteInvitations {
                fresh: self.fresh(),
            },
            Duty::GiveUpWaiting => Command::GiveUpWaiting,
            Duty::BeginExecution => Command::BeginExecution { lists: None },
            Duty::DestroyKeys(_) => Command::KeysDestroyed,
            Duty::DestroySpent(keys) => Command::SpentDestroyed { keys },
            Duty::HashMembers(shard) => self.hashed(shard),
            Duty::Log { about, entry } => {
                let entered = self.evidence.enter(&entry).unwrap();
                Command::Logged {
                    about,
                    index: entered.index,
                    head: entered.head,
                }
            }
            Duty::LogRelease(no) => {
                let statement = format!("release {no}");
                let entered = self.evidence.enter(statement.as_bytes()).unwrap();
                let part = LoggedPart {
                    number: no,
                    statement,
                    index: entered.index,
                };
                let head = entered.head;
                Command::ReleaseLogged { part, head }
            }
            Duty::Publish(epoch) => Command::Publish { epoch },
            Duty::Retire(epoch) => Command::Retire { epoch },
            Duty::BeginEpoch(epoch) => Command::BeginEpoch { epoch },
            Duty::DropEpoch(epoch) => Command::DropEpoch { epoch, asked: None },
            Duty::Finish(id) => Command::Finish { id },
            Duty::IssueReceipt(id) => match self.state.receipt_parts(id) {
                None => Command::Finish { id },
                Some(parts) => {
                    let bytes = self
                        .evidence
                        .receipt(parts, SignedByTally::default())
                        .unwrap();
                    let receipt = self.value(Table::Receipt, Digest::of(&[&bytes]));
                    self.receipts.insert(id, bytes);
                    Command::ReceiptIssued { id, receipt }
                }
            },
        };
        // What came too late, as in the shell.
        let _ = self.run(command);
    }

    fn hashed(&mut self, shard: ShardKey) -> Command {
        let tree = self.state.members_of_tree(shard);
        let records = Records::new(tree.records);
        Command::MembersHashed {
            shard,
            version: tree.version,
            root: records.root(),
            count: records.count(),
            fresh: self.fresh(),
        }
    }

    /// The sum of a round: a hash of what went into it.
    fn aggregated(&mut self, run: RunKey, counted: Vec<Contributor>) -> Command {
        let (_, start) = self.state.start_of(&run).unwrap();
        let names: Vec<&str> = counted.iter().map(|(s, _)| s.as_str()).collect();
        let hash = Digest::of(&[&start.0, names.join(" ").as_bytes()]);
        let ends = run.round == 1;
        let table = if ends {
            Table::Checkpoint
        } else {
            Table::RunState
        };
        let state = self.value(table, hash);
        Command::RoundAggregated {
            run,
            counted,
            left_out: vec![],
            state: state.clone(),
            hash,
            norm: Some(1.0),
            loss: Some(0.5),
            personal: vec![],
            checkpoint: ends.then_some(state),
            lineage: None,
            spent: Spent::default(),
        }
    }
}
