//! What devices do, by the client library's rules.

use lethe_learn::seed::Seed;
use lethe_ledger::*;
use lethe_proto::ids::{Digest, ShardId};
use lethe_proto::message::{Erased, ErrorReport, Refusal};

use super::{Ev, QUIET, World, digest, update};

impl World {
    /// A device's turn; how long until the next.
    pub(super) fn device(&mut self, n: usize) -> u64 {
        let soon = 50 + self.dice.below(400) as u64;
        if self.now < QUIET && self.dice.below(10) == 0 {
            // A message was lost, or the app was stopped.
            if self.dice.below(3) == 0 {
                self.devices[n].training = None;
            }
            return soon + 1000;
        }
        let d = self.devices[n].clone();
        if self.state.role(&d.certificate).is_none() {
            self.devices[n].stopped = true;
            return 0;
        }
        let newest = self.state.joining().unwrap();
        if d.joined.is_none_or(|joined| joined < newest) {
            return self.join(n, newest, soon);
        }
        if let Some((run, until)) = d.training {
            if self.now < until {
                return until - self.now;
            }
            self.devices[n].training = None;
            return self.send_update(n, run, soon);
        }
        if let Some((task, done)) = d.erasing {
            return self.erase(n, task, done, soon);
        }
        self.contribute(n);
        match self.state.work_for(&d.certificate, self.time()) {
            Some(Work::Erase { task }) => {
                self.devices[n].erasing = Some((task, false));
                20
            }
            Some(Work::Train { run, .. }) => self.train(n, run, soon),
            Some(Work::Validate { release, shards }) => self.validate(n, release, &shards, soon),
            None => {
                if let Some((no, _)) = self.state.served_release() {
                    let _ = self.run(
                        Command::Fetched {
                            devices: vec![d.certificate],
                            release: no,
                        },
                        vec![],
                    );
                }
                if self.now > d.consents_at {
                    let _ = self.run(
                        Command::Hello {
                            device: d.certificate,
                        },
                        vec![],
                    );
                }
                soon
            }
        }
    }

    fn join(&mut self, n: usize, epoch: EpochNo, soon: u64) -> u64 {
        let d = self.devices[n].clone();
        let version = self.versions.get(&d.subject).copied().unwrap_or(0);
        let key = format!("{} {version}", d.subject);
        let rank = Seed::from_u64(1).rank("anchor", key.as_bytes());
        let anchor =
            (!rank.is_multiple_of(3)).then_some((rank / 3 % u64::from(self.terms.anchors)) as u16);
        let command = Command::Join {
            device: d.certificate,
            epoch,
            anchor,
            samples: 8,
            commitment: digest(&[&key]),
            fresh: self.fresh(),
        };
        if self.now < QUIET && self.dice.below(10) == 0 {
            let mut twice = command.clone();
            if let Command::Join { fresh, .. } = &mut twice {
                *fresh = self.fresh();
            }
            self.at(self.now + 300, Ev::Again(twice));
        }
        let done = self.run(command, vec![]).is_ok()
            && self
                .state
                .joined(&d.certificate, epoch, Digest::default())
                .is_ok();
        if done {
            self.devices[n].joined = Some(epoch);
        }
        soon
    }

    fn train(&mut self, n: usize, run: RunKey, soon: u64) -> u64 {
        let device = self.devices[n].certificate;
        let gone = self.people.is_gone(&self.devices[n].subject) && !self.state.is_live(&run);
        if gone || self.now < QUIET && self.dice.below(15) == 0 {
            let _ = self.run(
                Command::Decline {
                    device,
                    round: run.wire(),
                },
                vec![],
            );
            return soon;
        }
        if self.run(Command::Offer { device, run }, vec![]).is_ok() {
            let slow = if self.now < QUIET && self.dice.below(8) == 0 {
                8000
            } else {
                700
            };
            self.devices[n].training = Some((run, self.now + 50 + self.dice.below(slow) as u64));
        }
        soon
    }

    fn send_update(&mut self, n: usize, run: RunKey, soon: u64) -> u64 {
        let subject = self.devices[n].subject.clone();
        if self.state.holds(run.wire(), &subject) {
            return soon;
        }
        let version = self.versions.get(&subject).copied().unwrap_or(0);
        let content = update(&subject, version, &run, run.round);
        self.uses += 1;
        let id = format!("e{}/{:?}/{subject}/{}", run.epoch.0, run, self.uses);
        let value = ValueRef {
            table: Table::Update,
            id,
            digest: Digest::of_values(&content),
        };
        let stage = run.stage_key();
        let owners = vec![Owner::Stage(stage), Owner::Person(subject.clone())];
        let updates = vec![StoredUpdate {
            subject: subject.clone(),
            begun: run.round,
            value: value.clone(),
        }];
        let stored = self.run(
            Command::StoreUpdates { stage, updates },
            vec![(value, owners, content)],
        );
        if stored.is_ok() {
            self.count.updates += 1;
            self.acknowledged.insert((run, subject));
        }
        soon
    }

    fn erase(&mut self, n: usize, task: u64, done: bool, soon: u64) -> u64 {
        let d = self.devices[n].clone();
        if !done {
            let orders = match self.state.orders_for(&d.certificate, task) {
                Err(e) => {
                    if e.code != Refusal::Busy {
                        self.devices[n].erasing = None;
                    }
                    return soon;
                }
                Ok(orders) => {
                    let held = orders.iter().all(|(id, d, index)| {
                        self.log.get(*index as usize) == Some(&d.order(*id).entry(&d.salt))
                    });
                    assert!(held, "{}: an order that the log does not hold", self.tell());
                    assert!(
                        !orders.is_empty(),
                        "{}: a task without an order",
                        self.tell()
                    );
                    orders.len()
                }
            };
            let _ = orders;
            if self.now > d.consents_at && self.dice.below(5) == 0 && self.now < QUIET {
                self.devices[n].erasing = None;
                self.devices[n].consents_at = self.now + 3000 + self.dice.below(60_000) as u64;
                let outcome = Erased::WaitsForConsent;
                let _ = self.run(
                    Command::Erased {
                        device: d.certificate,
                        task,
                        outcome,
                    },
                    vec![],
                );
                return soon;
            }
            // On the device first.
            let version = self.versions.entry(d.subject.clone()).or_default();
            *version = (*version).max(task);
            self.devices[n].erasing = Some((task, true));
        }
        let ids = self.state.deletions().keys().map(|id| (*id, 1)).collect();
        let outcome = Erased::Done { removed: ids };
        match self.run(
            Command::Erased {
                device: d.certificate,
                task,
                outcome,
            },
            vec![],
        ) {
            Ok(_) => {
                self.devices[n].erasing = None;
                self.devices[n].joined = None;
            }
            Err(e) if e.code == Refusal::RoundClosed => self.devices[n].erasing = None,
            Err(_) => {}
        }
        soon
    }

    fn validate(&mut self, n: usize, release: u64, shards: &[ShardId], soon: u64) -> u64 {
        let d = self.devices[n].clone();
        let errors = shards.iter().map(|s| (*s, 0.5)).collect();
        let rows = vec![ErrorReport {
            sample: 0,
            embedding: vec![0.5; 2],
            errors,
        }];
        let epoch = self.state.core().serving.unwrap_or(EpochNo::FIRST);
        let mut values = vec![];
        let mut written = vec![];
        for shard in shards {
            self.uses += 1;
            let id = format!("e{}/{}/{}/{}", epoch.0, shard.0, d.subject, self.uses);
            let value = ValueRef {
                table: Table::ErrorRows,
                digest: digest(&[&id]),
                id,
            };
            values.push((*shard, value.clone()));
            written.push((value, vec![Owner::Person(d.subject.clone())], vec![0.5]));
        }
        let command = Command::Errors {
            device: d.certificate,
            release,
            rows,
            values,
        };
        let _ = self.run(command, written);
        soon
    }
}
