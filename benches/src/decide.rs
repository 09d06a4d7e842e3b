//! How long decisions take at 10,000 people: the commands that devices send, the rounds of a cohort
//! of 1,000, and deletions. Prints one line for each kind, and one for all together.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use lethe_ledger::*;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::{Erased, ErrorReport};
use lethe_receipt::records::Records;

const PEOPLE: usize = 10_000;
const COHORT: usize = 1_000;
const FORGOTTEN: usize = 200;

struct Bench {
    state: State,
    now: Now,
    times: Vec<(&'static str, Duration)>,
}

fn certificate(n: usize) -> Digest {
    Digest::of(&[b"certificate", &n.to_le_bytes()])
}

fn value(table: Table, id: String) -> ValueRef {
    let digest = Digest::of(&[id.as_bytes()]);
    ValueRef { table, id, digest }
}

impl Bench {
    fn run(&mut self, name: &'static str, command: Command) -> Vec<Event> {
        let started = Instant::now();
        let events = decide(&self.state, command, self.now).unwrap();
        self.times.push((name, started.elapsed()));
        events.iter().for_each(|e| apply(&mut self.state, e));
        events
    }

    fn fresh(&self, n: usize) -> Fresh {
        Fresh(Digest::of(&[&n.to_le_bytes()]).0)
    }

    fn people(&mut self) {
        for n in 0..PEOPLE {
            let secret = Digest::of(&[b"secret", &n.to_le_bytes()]);
            let subject = SubjectId::new(format!("person-{n:06}")).unwrap();
            self.run("", Command::Invite { subject, secret });
            let certificate = certificate(n);
            let enrol = Command::Enrol {
                secret,
                certificate,
                expires: 0,
                device_of: None,
            };
            self.run("", enrol);
        }
        for n in 0..PEOPLE {
            let join = Command::Join {
                device: certificate(n),
                epoch: EpochNo(1),
                anchor: Some((n % 2) as u16),
                samples: 8,
                commitment: certificate(n),
                fresh: self.fresh(n),
            };
            self.run(if n + 1 < PEOPLE { "join" } else { "" }, join);
        }
    }

    fn log(&mut self) {
        let keys: Vec<ShardKey> = self.state.shards().map(|(k, _, _)| k).collect();
        for shard in keys {
            for _ in 0..2 {
                let tree = self.state.members_of_tree(shard);
                let records = Records::new(tree.records);
                let hashed = Command::MembersHashed {
                    shard,
                    version: tree.version,
                    root: records.root(),
                    count: records.count(),
                    fresh: self.fresh(0),
                };
                self.run("", hashed);
                let about = LogFor::Training(shard);
                let head = LogHead::default();
                self.run(
                    "",
                    Command::Logged {
                        about,
                        index: 1,
                        head,
                    },
                );
            }
        }
    }

    fn rounds(&mut self) {
        while let Some(run) = due(&self.state, self.now).iter().find_map(|d| match d {
            Duty::OpenRound(run) => Some(*run),
            _ => None,
        }) {
            self.run("", Command::OpenRound { run });
            self.round(run);
        }
    }

    fn round(&mut self, run: RunKey) {
        for n in 0..PEOPLE {
            let device = certificate(n);
            let started = Instant::now();
            let work = self.state.work_for(&device, self.now);
            self.times.push(("poll", started.elapsed()));
            if !matches!(work, Some(Work::Train { run: r, .. }) if r == run) {
                continue;
            }
            self.run("offer", Command::Offer { device, run });
            let subject = self.state.holder(&device).unwrap().subject.clone();
            if n % 100 == 0 {
                let round = run.wire();
                self.run("decline", Command::Decline { device, round });
                continue;
            }
            let id = format!("{run:?}/{subject}");
            let update = StoredUpdate {
                subject,
                begun: run.round,
                value: value(Table::Update, id),
            };
            let stage = run.stage_key();
            let updates = vec![update];
            self.run("store", Command::StoreUpdates { stage, updates });
        }
        self.run("seal", Command::SealRound { run });
        let open = self.state.open_round(run.generation).unwrap();
        let counted = open.sealed.clone().unwrap().counted;
        let state = value(Table::Checkpoint, format!("{run:?}"));
        let lineage = (
            self.state.members_of_tree(run.shard_key()).version,
            Digest::default(),
        );
        let closes = Command::RoundAggregated {
            run,
            counted,
            left_out: vec![],
            hash: state.digest,
            norm: Some(1.0),
            loss: Some(1.0),
            personal: vec![],
            checkpoint: Some(state.clone()),
            state,
            lineage: Some(lineage),
            spent: Spent::default(),
        };
        assert_eq!(self.run("aggregated", closes).len(), 2);
    }

    fn served(&mut self) {
        let epoch = EpochNo(1);
        self.run("", Command::Publish { epoch });
        let release = self.state.current_release().unwrap().0;
        for n in 0..PEOPLE {
            let device = certificate(n);
            self.run(
                "fetched",
                Command::Fetched {
                    devices: vec![device],
                    release,
                },
            );
            let row = ErrorReport {
                sample: 0,
                embedding: vec![0.5; 4],
                errors: (0..4).map(|k| (ShardId(k), 0.5)).collect(),
            };
            let at = |k: u16| (ShardId(k), value(Table::ErrorRows, format!("{n}/{k}")));
            let errors = Command::Errors {
                device,
                release,
                rows: vec![row],
                values: (0..4).map(at).collect(),
            };
            self.run("errors", errors);
        }
        assert!(self.state.validated());
    }

    /// People are deleted, one after the other. Plans are made on a snapshot, as the shell does it.
    fn forgotten(&mut self) {
        for n in PEOPLE - FORGOTTEN..PEOPLE {
            let subject = SubjectId::new(format!("person-{n:06}")).unwrap();
            let requests = vec![DeletionRequest::Erase { subject }];
            let epochs = self.state.epochs().keys();
            let plans: OwnPlans = epochs
                .map(|no| {
                    let inventory = self.state.inventory(*no).unwrap();
                    (*no, lethe_plan::plan(&inventory, &requests).unwrap())
                })
                .collect();
            let forget = Command::Forget {
                requests,
                reference: String::new(),
                asked: self.now.unix_ms,
                confirmed: true,
                plans: vec![plans],
                fresh: self.fresh(n),
            };
            assert!(!self.run("forget", forget).is_empty());
            assert!(
                !self
                    .run("begin execution", Command::BeginExecution { lists: None })
                    .is_empty()
            );
            assert!(
                !self
                    .run("keys destroyed", Command::KeysDestroyed)
                    .is_empty()
            );
        }
    }

    fn erased(&mut self) {
        let request = DeletionRequest::Takedown {
            items: vec!["1".into()],
        };
        let forget = Command::Forget {
            requests: vec![request],
            reference: String::new(),
            asked: self.now.unix_ms,
            confirmed: true,
            plans: vec![],
            fresh: self.fresh(1),
        };
        self.run("", forget);
        self.run("", Command::BeginExecution { lists: None });
        self.run("", Command::KeysDestroyed);
        let task = self.state.core().numbers.task;
        for n in 0..PEOPLE / 10 {
            let outcome = Erased::Done {
                removed: vec![(1, 1)],
            };
            let erased = Command::Erased {
                device: certificate(n),
                task,
                outcome,
            };
            self.run("erased", erased);
        }
    }
}

fn terms() -> Terms {
    Terms {
        shards: 4,
        anchors: 2,
        slices: 1,
        placement: Placement::Hash,
        rounds: 1,
        cohort: COHORT as u32,
        goal: None,
        staleness: None,
        quorum: 1,
        deadline_s: 60,
        validation: 1,
        samples: 8,
        hidden: 4,
        seed: 1,
        aggregation: Aggregation::Fedavg,
        feeds_back: true,
    }
}

fn main() {
    let mut b = Bench {
        state: State::default(),
        now: Now {
            unix_ms: 1_800_000_000_000,
            uptime_ms: 1,
        },
        times: vec![],
    };
    b.state.set_rules(Rules {
        min_subjects: PEOPLE,
        ..Rules::default()
    });
    let found = Command::FoundEpoch {
        terms: terms(),
        recipe: String::new(),
        recipe_digest: Digest::default(),
        model: Digest::default(),
        initial: Digest::default(),
        catalogue: CatalogueVersion(1),
        base: None,
        asked: None,
    };
    b.run("", found);
    b.people();
    b.log();
    b.rounds();
    b.served();
    b.forgotten();
    b.erased();
    let mut times: Vec<Duration> = vec![];
    for name in [
        "join",
        "poll",
        "offer",
        "store",
        "decline",
        "seal",
        "aggregated",
        "fetched",
        "errors",
        "forget",
        "begin execution",
        "keys destroyed",
        "erased",
    ] {
        let of = b.times.iter().filter(|(n, _)| *n == name);
        let mut own: Vec<Duration> = of.map(|(_, t)| *t).collect();
        own.sort();
        let Some(most) = own.last() else {
            println!("{name}: never");
            continue;
        };
        let p99 = own[own.len() * 99 / 100];
        println!("{name}: {} times, p99 {p99:?}, most {most:?}", own.len());
        times.extend(own);
    }
    times.sort();
    println!("all: p99 {:?}", times[times.len() * 99 / 100]);
}
