//! What the shell does beside decisions: jobs and duties.

use lethe_ledger::*;
use lethe_proto::ids::Digest;
use lethe_receipt::records::Records;
use lethe_receipt::served::{ReleaseStatement, public_entry};
use lethe_receipt::statement::Kind;

use super::{Ev, QUIET, World, add_up, digest, initial};

impl World {
    pub(super) fn start_job(&mut self, run: RunKey, counted: &[Contributor]) {
        if self.now < QUIET && self.dice.below(30) == 0 {
            return;
        }
        let stage = self.state.stage(&run.stage_key());
        let find =
            |c: &Contributor| Some((c.clone(), self.disk.read(stage?.stored.get(c)?)?.clone()));
        let updates: Option<Vec<_>> = counted.iter().map(find).collect();
        let start = self.state.start_of(&run).unwrap().0.cloned();
        let theta = start.map_or_else(|| Some(initial()), |v| self.disk.read(&v).cloned());
        let (Some(mut updates), Some(mut theta)) = (updates, theta) else {
            let why = "a value is missing".to_owned();
            return self.at(
                self.now + 1,
                Ev::Job(Command::AggregationFailed { run, why }, vec![]),
            );
        };
        let short = self.masks && self.state.is_live(&run) && self.now < QUIET;
        if short && self.dice.below(8) == 0 {
            let why = "somebody is missing".to_owned();
            let delay = self.dice.below(300) as u64;
            let command = Command::RoundShort { run, why };
            return self.at(self.now + delay, Ev::Job(command, vec![]));
        }
        let left_out = self.leave_out(&run, &mut updates);
        add_up(&mut theta, run.round, &updates);
        self.uses += 1;
        let id = format!("e{}/{:?}/{}", run.epoch.0, run, self.uses);
        let hash = Digest::of_values(&theta);
        let ends = run.round + 1 >= self.terms.rounds;
        let table = if ends {
            Table::Checkpoint
        } else {
            Table::RunState
        };
        let value = ValueRef {
            table,
            id: id.clone(),
            digest: hash,
        };
        let owner = vec![Owner::Stage(run.stage_key())];
        let mut values = vec![(value.clone(), owner.clone(), theta)];
        let mut personal = vec![];
        if self.terms.aggregation == Aggregation::Personalized {
            for ((subject, _), own) in &updates {
                let id = format!("{id}/{subject}");
                let at = ValueRef {
                    table: Table::Personal,
                    id,
                    digest: Digest::of_values(own),
                };
                values.push((at.clone(), owner.clone(), own.clone()));
                personal.push((subject.clone(), at));
            }
        }
        let command = Command::RoundAggregated {
            run,
            counted: updates.into_iter().map(|(of, _)| of).collect(),
            left_out,
            state: value.clone(),
            hash,
            norm: Some(1.0),
            loss: Some(0.5),
            personal,
            checkpoint: ends.then_some(value),
            lineage: None,
            spent: Spent::default(),
        };
        let slow = if self.now < QUIET { 30_000 } else { 500 };
        let delay = if self.dice.below(4) == 0 {
            self.dice.below(slow)
        } else {
            self.dice.below(300)
        };
        if self.now < QUIET && self.dice.below(10) == 0 {
            self.at(
                self.now + delay as u64 + 200,
                Ev::Job(command.clone(), values.clone()),
            );
        }
        self.at(self.now + delay as u64, Ev::Job(command, values));
    }

    /// Those whose masks the tally does not sum, where updates have masks.
    fn leave_out(
        &mut self,
        run: &RunKey,
        updates: &mut Vec<(Contributor, Vec<f32>)>,
    ) -> Vec<Contributor> {
        if !self.masks || !self.state.is_live(run) || self.dice.below(3) > 0 {
            return vec![];
        }
        let all = self.dice.below(4) == 0;
        let mut left_out = vec![];
        for (of, values) in std::mem::take(updates) {
            match all || self.dice.below(3) == 0 {
                true => {
                    self.acknowledged.remove(&(*run, of.0.clone()));
                    left_out.push(of);
                }
                false => updates.push((of, values)),
            }
        }
        left_out
    }

    /// Enters something into the log, unless it is there.
    pub(super) fn enter(&mut self, entry: Vec<u8>) -> (u64, LogHead) {
        let known = self.log.iter().position(|e| *e == entry);
        let index = known.unwrap_or_else(|| {
            self.log.push(entry);
            self.log.len() - 1
        });
        let head = LogHead {
            entries: self.log.len() as u64,
            root: [0; 32],
        };
        (index as u64, head)
    }

    fn log_release(&mut self, no: u64) -> Option<(LoggedPart, LogHead)> {
        let parts: Vec<Digest> = self.state.releases().get(&no)?.digests();
        let statement = self
            .state
            .release_statement(no, &parts, &digest(&["items"]))?;
        let bytes = statement.bytes();
        let (index, head) = self.enter(public_entry(Kind::Release, &bytes));
        let part = LoggedPart {
            number: no,
            statement: String::from_utf8(bytes).unwrap(),
            index,
        };
        Some((part, head))
    }

    /// Whether the log has the entry of the release that devices are given, and that entry is about
    /// the adapters that they get.
    pub(crate) fn log_holds_what_is_served(&self) -> bool {
        let Some((no, release)) = self.state.served_release() else {
            return true;
        };
        let Some(part) = &self.state.logged().release else {
            return false;
        };
        let entry = public_entry(Kind::Release, part.statement.as_bytes());
        let read: ReleaseStatement = serde_json::from_str(&part.statement).unwrap();
        let adapters: Vec<String> = release.digests().iter().map(Digest::hex).collect();
        self.log.get(part.index as usize) == Some(&entry)
            && read.release == no
            && read.adapters == adapters
    }

    pub(super) fn tick(&mut self) {
        for duty in due(&self.state, self.time()) {
            if self.now < QUIET && self.dice.below(12) == 0 {
                continue;
            }
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
            // The job runs, or its result was lost: then it is unsealed.
            Duty::Aggregate { .. } => return,
            Duty::NoteInvitations => Command::NoteInvitations {
                fresh: self.fresh(),
            },
            Duty::GiveUpWaiting => Command::GiveUpWaiting,
            Duty::BeginExecution => Command::BeginExecution {
                lists: self.lists_left(),
            },
            Duty::DestroyKeys(_) => return self.destroy_keys(),
            Duty::DestroySpent(keys) => {
                keys.iter().for_each(|k| self.disk.destroy(k));
                Command::SpentDestroyed { keys }
            }
            Duty::BeginEpoch(epoch) => Command::BeginEpoch { epoch },
            Duty::DropEpoch(epoch) => Command::DropEpoch { epoch, asked: None },
            Duty::HashMembers(shard) => {
                let tree = self.state.members_of_tree(shard);
                let records = Records::new(tree.records);
                let command = Command::MembersHashed {
                    shard,
                    version: tree.version,
                    root: records.root(),
                    count: records.count(),
                    fresh: self.fresh(),
                };
                let delay = self.dice.below(500) as u64;
                return self.at(self.now + delay, Ev::Job(command, vec![]));
            }
            Duty::Log { about, entry } => {
                let (index, head) = self.enter(entry);
                Command::Logged { about, index, head }
            }
            Duty::LogRelease(no) => {
                let Some((part, head)) = self.log_release(no) else {
                    return;
                };
                Command::ReleaseLogged { part, head }
            }
            Duty::Publish(epoch) => Command::Publish { epoch },
            Duty::Retire(epoch) => Command::Retire { epoch },
            Duty::Finish(id) => Command::Finish { id },
            Duty::IssueReceipt(id) => {
                if self.state.receipt_parts(id).is_none() {
                    Command::Finish { id }
                } else {
                    self.uses += 1;
                    let id_text = format!("{id}/{}", self.uses);
                    let digest = digest(&[&id_text]);
                    let receipt = ValueRef {
                        table: Table::Receipt,
                        id: id_text,
                        digest,
                    };
                    let values = vec![(receipt.clone(), vec![Owner::Deletion(id)], vec![])];
                    let _ = self.run(Command::ReceiptIssued { id, receipt }, values);
                    return;
                }
            }
        };
        let _ = self.run(command, vec![]);
    }
}
