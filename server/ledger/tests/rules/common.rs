//! The smallest shell: it writes nothing, never fails, and does everything that is due at once.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use lethe_ledger::*;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, SubjectId};
use lethe_receipt::hex::hex;

pub(crate) fn digest(name: &str) -> Digest {
    Digest::of(&[name.as_bytes()])
}

pub(crate) fn name(of: &str) -> SubjectId {
    SubjectId::new(of).unwrap()
}

pub(crate) fn terms() -> Terms {
    Terms {
        shards: 1,
        anchors: 1,
        slices: 2,
        placement: Placement::Hash,
        rounds: 2,
        cohort: 8,
        goal: None,
        staleness: None,
        quorum: 1,
        deadline_s: 60,
        validation: 1,
        samples: 8,
        hidden: 4,
        seed: 1,
        aggregation: Aggregation::Fedavg,
        feeds_back: false,
    }
}

/// A state, its clock, and who does not answer.
pub(crate) struct House {
    pub(crate) state: State,
    pub(crate) now: Now,
    /// They are asked to train, and do not.
    pub(crate) away: BTreeSet<SubjectId>,
    /// Their updates are not what they were.
    pub(crate) changed: BTreeSet<SubjectId>,
    /// Rounds of this epoch alone are answered.
    pub(crate) only: Option<EpochNo>,
    /// No epoch is retired.
    pub(crate) keeps: bool,
    fresh: u64,
}

impl House {
    /// An operator, an epoch, and these people, who have joined.
    pub(crate) fn of(people: &[&str]) -> Self {
        Self::with(terms(), people)
    }

    pub(crate) fn with(terms: Terms, people: &[&str]) -> Self {
        let mut house = Self {
            state: State::default(),
            now: Now {
                unix_ms: 1_800_000_000_000,
                uptime_ms: 5,
            },
            away: BTreeSet::new(),
            changed: BTreeSet::new(),
            only: None,
            keeps: false,
            fresh: 0,
        };
        house.state.set_rules(Rules {
            min_subjects: people.len(),
            ..Rules::default()
        });
        house.operator("a");
        house.found(terms);
        for person in people {
            house.joins(person, 1);
        }
        house
    }

    pub(crate) fn run(&mut self, command: Command) -> Result<Vec<Event>, Refused> {
        let events = decide(&self.state, command, self.now)?;
        events.iter().for_each(|e| apply(&mut self.state, e));
        Ok(events)
    }

    pub(crate) fn fresh(&mut self) -> Fresh {
        self.fresh += 1;
        Fresh(digest(&format!("fresh {}", self.fresh)).0)
    }

    pub(crate) fn found(&mut self, terms: Terms) {
        self.try_to_found(terms, None).unwrap();
    }

    pub(crate) fn try_to_found(
        &mut self,
        terms: Terms,
        asked: Option<AskedBy>,
    ) -> Result<Vec<Event>, Refused> {
        self.run(Command::FoundEpoch {
            terms,
            recipe: String::new(),
            recipe_digest: Digest::default(),
            model: Digest::default(),
            initial: Digest::default(),
            catalogue: CatalogueVersion(1),
            base: None,
            asked,
        })
    }

    pub(crate) fn operator(&mut self, of: &str) -> Digest {
        let secret = digest(&format!("secret of operator {of}"));
        let fresh = self.fresh();
        self.run(Command::RecoverOperator { secret, fresh })
            .unwrap();
        let certificate = digest(&format!("operator {of}"));
        self.enrol(secret, certificate, u64::MAX);
        certificate
    }

    fn enrol(&mut self, secret: Digest, certificate: Digest, expires: u64) {
        self.run(Command::Enrol {
            secret,
            certificate,
            expires,
            device_of: None,
        })
        .unwrap();
    }

    /// A device of a person; its certificate.
    pub(crate) fn device(&mut self, of: &str, device: &str) -> Digest {
        let secret = digest(&format!("secret of {of} {device}"));
        let subject = name(of);
        self.run(Command::Invite { subject, secret }).unwrap();
        let certificate = digest(&format!("{of} {device}"));
        self.enrol(secret, certificate, 0);
        certificate
    }

    /// A person enrols a device, and joins an epoch with it.
    pub(crate) fn joins(&mut self, of: &str, epoch: u32) -> Digest {
        let known = digest(&format!("{of} phone"));
        let device = match self.state.holder(&known) {
            Some(_) => known,
            None => self.device(of, "phone"),
        };
        self.join(device, epoch, digest(of)).unwrap();
        device
    }

    pub(crate) fn join(
        &mut self,
        device: Digest,
        epoch: u32,
        commitment: Digest,
    ) -> Result<Vec<Event>, Refused> {
        self.join_with(device, epoch, commitment, 8)
    }

    pub(crate) fn join_with(
        &mut self,
        device: Digest,
        epoch: u32,
        commitment: Digest,
        samples: u32,
    ) -> Result<Vec<Event>, Refused> {
        let fresh = self.fresh();
        self.run(Command::Join {
            device,
            epoch: EpochNo(epoch),
            anchor: None,
            samples,
            commitment,
            fresh,
        })
    }

    pub(crate) fn propose(&mut self, what: Proposal, by: &str) -> Result<Vec<Event>, Refused> {
        let fresh = self.fresh();
        self.run(Command::Propose {
            what,
            confirmed: true,
            note: None,
            by: digest(&format!("operator {by}")),
            secret: digest("invitation"),
            plans: vec![],
            fresh,
        })
    }

    pub(crate) fn ask(&mut self, request: DeletionRequest) -> u64 {
        let what = Proposal::Forget {
            requests: vec![request],
            asked: 0,
            reference: String::new(),
        };
        self.propose(what, "a").unwrap();
        *self.state.deletions().keys().next_back().unwrap()
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        self.now.unix_ms += seconds * 1000;
        self.now.uptime_ms += seconds * 1000;
    }

    /// Does what is due until nothing is. Whoever is not away answers each round at once.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut happened = false;
            for duty in due(&self.state, self.now) {
                happened |= self.does(duty);
            }
            happened |= self.answers();
            if !happened {
                return;
            }
        }
        panic!("it does not settle: {:?}", due(&self.state, self.now));
    }

    fn does(&mut self, duty: Duty) -> bool {
        if self.keeps && matches!(duty, Duty::Retire(_)) {
            return false;
        }
        let fresh = self.fresh();
        let command = match duty {
            Duty::OpenRound(run) => Command::OpenRound { run },
            Duty::SealRound(run) => Command::SealRound { run },
            Duty::Deadline(run) => Command::Deadline { run },
            Duty::Unseal(run) => Command::AggregationFailed {
                run,
                why: String::new(),
            },
            Duty::Aggregate { run, counted } => self.added_up(run, counted),
            Duty::NoteInvitations => Command::NoteInvitations { fresh },
            Duty::GiveUpWaiting => Command::GiveUpWaiting,
            Duty::BeginExecution => Command::BeginExecution { lists: None },
            Duty::DestroyKeys(_) => Command::KeysDestroyed,
            Duty::DestroySpent(keys) => Command::SpentDestroyed { keys },
            Duty::HashMembers(shard) => {
                let records = self.state.records_of(shard);
                Command::MembersHashed {
                    shard,
                    version: self.state.members_of_tree(shard).version,
                    root: records.root(),
                    count: self.state.counting(shard).count() as u64,
                    fresh,
                }
            }
            Duty::Log { about, .. } => {
                let head = LogHead {
                    entries: self.state.core().log.entries + 1,
                    root: [1; 32],
                };
                Command::Logged {
                    about,
                    index: head.entries - 1,
                    head,
                }
            }
            Duty::LogRelease(no) => {
                let head = LogHead {
                    entries: self.state.core().log.entries + 1,
                    root: [1; 32],
                };
                let part = LoggedPart {
                    number: no,
                    statement: no.to_string(),
                    index: head.entries - 1,
                };
                Command::ReleaseLogged { part, head }
            }
            Duty::Publish(epoch) => Command::Publish { epoch },
            Duty::Retire(epoch) => Command::Retire { epoch },
            Duty::BeginEpoch(epoch) => Command::BeginEpoch { epoch },
            Duty::DropEpoch(epoch) => Command::DropEpoch { epoch, asked: None },
            Duty::Finish(id) => Command::Finish { id },
            Duty::IssueReceipt(id) => Command::ReceiptIssued {
                id,
                receipt: ValueRef {
                    table: Table::Receipt,
                    id: id.to_string(),
                    digest: digest("receipt"),
                },
            },
        };
        // What came too late, or waits for another duty, happens in the next turn.
        self.run(command).is_ok_and(|events| !events.is_empty())
    }

    /// A round's result depends on where it starts and on who counts.
    fn added_up(&self, run: RunKey, counted: Vec<Contributor>) -> Command {
        let (_, start) = self.state.start_of(&run).unwrap();
        let mut parts: Vec<Vec<u8>> = vec![start.0.to_vec()];
        for (subject, begun) in &counted {
            let other = self.changed.contains(subject) && !self.state.is_live(&run);
            parts.push(format!("{subject} {begun} {other}").into_bytes());
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let hash = Digest::of(&parts);
        let rounds = self.state.epoch(run.epoch).unwrap().terms.rounds;
        let ends = run.round + 1 >= rounds;
        let state = ValueRef {
            table: match ends {
                true => Table::Checkpoint,
                false => Table::RunState,
            },
            id: format!("{run:?} {}", hex(&hash.0)),
            digest: hash,
        };
        Command::RoundAggregated {
            run,
            counted,
            left_out: vec![],
            checkpoint: ends.then(|| state.clone()),
            state,
            hash,
            norm: Some(1.0),
            loss: Some(0.5),
            personal: vec![],
            lineage: None,
            spent: Spent::default(),
        }
    }

    /// Devices that are asked to train, erase or measure.
    fn answers(&mut self) -> bool {
        let devices: Vec<(SubjectId, Digest)> = self
            .state
            .people()
            .iter()
            .flat_map(|(s, p)| p.certificates().map(|c| (s.clone(), *c)))
            .collect();
        let mut happened = false;
        for (subject, device) in devices {
            if self.away.contains(&subject) {
                continue;
            }
            if let Some(Work::Train { run, .. }) = self.state.work_for(&device, self.now)
                && self.only.is_none_or(|only| only == run.epoch)
            {
                self.run(Command::Offer { device, run }).unwrap();
                let id = format!("{run:?} {subject}");
                let update = StoredUpdate {
                    subject: subject.clone(),
                    begun: run.round,
                    value: ValueRef {
                        table: Table::Update,
                        digest: digest(&id),
                        id,
                    },
                };
                let stored = self.run(Command::StoreUpdates {
                    stage: run.stage_key(),
                    updates: vec![update],
                });
                happened |= stored.is_ok();
            }
        }
        happened
    }
}
