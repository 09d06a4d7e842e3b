//! What is due: each duty is tried, whatever became of the others.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lethe_ledger::{Command, Duty, LogFor, Owner, ShardKey, due};
use lethe_proto::deletion::DeletionRequest;
use lethe_receipt::receipt::SignedByTally;
use lethe_receipt::records::Records;

use super::{Shell, fresh};
use crate::CoordinatorError;
use crate::durable::{NewValue, receipt_ref};
use crate::fatal;

/// Longest time between two looks.
const BEAT: Duration = Duration::from_millis(200);
/// A duty that fails says so at most so often, in milliseconds.
const SAY_AGAIN: u64 = 5000;
/// Looks in a row, each of which found something to do. What goes on longer waits for the next
/// beat.
const LOOKS: usize = 64;
/// Once a minute, in milliseconds.
const MINUTE: u64 = 60_000;

/// When something that fails was last said.
#[derive(Debug, Default)]
pub(crate) struct Said(BTreeMap<&'static str, u64>);

impl Shell {
    /// Looks after everything until the coordinator ends.
    pub(crate) fn look_after(&self) {
        while self.jobs.wait_for_look(BEAT) {
            self.meter.look(&self.state(), self.clock.now());
            // No duty may be due, and no request may come.
            if let Err(e) = self.settle_doubt() {
                self.complain("read the folder again", &e);
            }
            self.do_duties();
            self.every_minute();
        }
    }

    /// Duties that failed since the start.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Does what is due, and what follows from it. One thread at a time: whoever asked for a
    /// deletion does it, and so does the thread that looks after everything. Returns what failed
    /// and is still due.
    pub(crate) fn do_duties(&self) -> Vec<String> {
        let _one = fatal::lock(&self.duties);
        let mut failed = vec![];
        for _ in 0..LOOKS {
            let all = due(&self.state(), self.clock.now());
            let mut changed = false;
            failed.clear();
            for duty in all {
                let name = name(&duty);
                match self.perform(duty) {
                    Ok(did) => changed |= did,
                    Err(e) => {
                        self.complain(name, &e);
                        failed.push(format!("{name}: {e}"));
                    }
                }
            }
            if !changed {
                break;
            }
        }
        if let Err(e) = self.follow_catalogue() {
            let name = "follow the catalogue";
            self.complain(name, &e);
            failed.push(format!("{name}: {e}"));
        }
        failed
    }

    pub(super) fn every_minute(&self) {
        let now = self.clock.now();
        let before = self.minute.load(Ordering::Relaxed);
        if now.uptime_ms < before + MINUTE {
            return;
        }
        self.minute.store(now.uptime_ms, Ordering::Relaxed);
        self.set_aside_space();
        if let Err(e) = self.roll_by_rule() {
            self.complain("start the next epoch by rule", &e);
        }
        if let Err(e) = self.remove_databases() {
            self.complain("remove databases of epochs that have ended", &e);
        }
        for (deletion, why) in self.state().overdue(now) {
            tracing::error!(deletion, "overdue: it waits for {why}");
        }
    }

    /// Counts a failure, and says it, unless it was said a moment ago.
    pub(crate) fn complain(&self, what: &'static str, why: &CoordinatorError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.now().uptime_ms;
        let mut said = fatal::lock(&self.said);
        let before = said.0.get(what);
        if before.is_none_or(|at| now >= at + SAY_AGAIN) {
            said.0.insert(what, now);
            tracing::error!("{what}: {why}");
        }
    }

    /// Does one duty. True when something has changed.
    fn perform(&self, duty: Duty) -> Result<bool, CoordinatorError> {
        let command = match duty {
            Duty::OpenRound(run) => Command::OpenRound { run },
            Duty::SealRound(run) => Command::SealRound { run },
            Duty::Deadline(run) => {
                let events = self.execute(Command::Deadline { run }, vec![])?;
                if !events.is_empty() {
                    tracing::warn!(
                        ?run,
                        "round starved: too few clients answered in time; trying again"
                    );
                }
                return Ok(!events.is_empty());
            }
            Duty::Unseal(run) => Command::AggregationFailed {
                run,
                why: "the job did not come to its end in time".into(),
            },
            Duty::Aggregate { run, counted } => {
                // A duty before this one may have rolled its shard back.
                let state = self.state();
                let open = state.open_round(run.generation);
                if open.is_some_and(|o| o.run == run && o.sealed.is_some()) {
                    self.jobs.begin(run, counted);
                }
                return Ok(false);
            }
            Duty::GiveUpWaiting => Command::GiveUpWaiting,
            Duty::NoteInvitations => Command::NoteInvitations { fresh: fresh()? },
            Duty::BeginExecution => return self.begin_execution(),
            Duty::DestroyKeys(keys) => return self.destroy_keys(&keys),
            Duty::DestroySpent(keys) => {
                if !self.destroy(&keys)? {
                    return Ok(true);
                }
                Command::SpentDestroyed { keys }
            }
            Duty::HashMembers(shard) => self.hash_members(shard)?,
            Duty::Log { about, entry } => self.log(about, &entry)?,
            Duty::LogRelease(no) => return self.log_release(no),
            Duty::Publish(epoch) => Command::Publish { epoch },
            Duty::Retire(epoch) => return self.retire(epoch),
            Duty::BeginEpoch(epoch) => {
                let events = self.execute(Command::BeginEpoch { epoch }, vec![])?;
                if !events.is_empty() {
                    tracing::info!("{epoch} begins: it is trained beside the one that is served");
                }
                return Ok(!events.is_empty());
            }
            Duty::DropEpoch(epoch) => return self.drop_for_want(epoch),
            Duty::Finish(id) => Command::Finish { id },
            Duty::IssueReceipt(id) => return self.issue_receipt(id),
        };
        Ok(!self.execute(command, vec![])?.is_empty())
    }

    fn requests_to_execute(&self) -> Vec<(u64, DeletionRequest)> {
        let state = self.state();
        let all = state.to_execute().into_iter();
        all.map(|(id, d)| (id, d.request.clone())).collect()
    }

    /// What the lists have of the data is fixed with the beginning: nobody contributes or publishes
    /// meanwhile, nor later, until the execution has ended.
    pub(super) fn begin_execution(&self) -> Result<bool, CoordinatorError> {
        let Some(lists) = &self.lists else {
            let begin = Command::BeginExecution { lists: None };
            return Ok(!self.execute(begin, vec![])?.is_empty());
        };
        let _alone = lists.alone();
        // A deletion whose write failed is known from the journal once the folder was read again:
        // it begins with the others, and its record with it. One that is accepted from here on
        // has no record, and waits for the next execution.
        self.settle_doubt()?;
        let now = self.clock.now().unix_ms / 1000;
        let requests = self.requests_to_execute();
        let devices = self.state().devices() as u64;
        let left = lists.left(&requests, devices, now)?;
        let begin = Command::BeginExecution { lists: Some(left) };
        Ok(!self.execute(begin, vec![])?.is_empty())
    }

    /// Jobs end before keys go: what they write would be under a key that is gone.
    fn destroy_keys(&self, keys: &[Owner]) -> Result<bool, CoordinatorError> {
        let shards: Vec<ShardKey> = {
            let state = self.state();
            let executing = state.core().executing.as_ref();
            let rolled = executing.into_iter().flat_map(|e| &e.rolled);
            rolled.map(|(shard, _)| *shard).collect()
        };
        self.jobs.cancel(&shards);
        self.jobs.wait_for(&shards);
        if let Some(lists) = &self.lists {
            let now = self.clock.now().unix_ms / 1000;
            let requests = self.requests_to_execute();
            self.with_space(|| {
                lists.forget(&requests, now)?;
                lists.keep_recalled()
            })?;
        }
        if !self.destroy(keys)? {
            // They were destroyed before, and only now that is known.
            return Ok(true);
        }
        let did = !self.execute(Command::KeysDestroyed, vec![])?.is_empty();
        if let Some(lists) = &self.lists {
            // The next snapshot is made at once.
            lists.look();
        }
        Ok(did)
    }

    fn hash_members(&self, shard: ShardKey) -> Result<Command, CoordinatorError> {
        let tree = self.state().members_of_tree(shard);
        let records = Records::new(tree.records);
        Ok(Command::MembersHashed {
            shard,
            version: tree.version,
            root: records.root(),
            count: records.count(),
            fresh: fresh()?,
        })
    }

    fn log(&self, about: LogFor, entry: &[u8]) -> Result<Command, CoordinatorError> {
        let entered = self.with_space(|| self.evidence().enter(entry))?;
        Ok(Command::Logged {
            about,
            index: entered.index,
            head: entered.head,
        })
    }

    fn issue_receipt(&self, id: u64) -> Result<bool, CoordinatorError> {
        let parts = self.state().receipt_parts(id);
        let Some(parts) = parts else {
            // Another deletion came in between: it makes another statement.
            return Ok(!self.execute(Command::Finish { id }, vec![])?.is_empty());
        };
        // A tally of its own signs, too: the receipt waits for it.
        let tally = match &self.lists {
            Some(lists) if parts.statement.lists.is_some() => {
                lists.signed_by_tally(&parts.deletion.request)?
            }
            _ => SignedByTally::default(),
        };
        let content = self.evidence().receipt(parts, tally)?;
        let receipt = receipt_ref(id, &content);
        let value = NewValue::new(receipt.clone(), Owner::Deletion(id), content);
        let command = Command::ReceiptIssued { id, receipt };
        let issued = !self.execute(command, vec![value])?.is_empty();
        if issued {
            tracing::info!(deletion = id, "receipt issued");
        }
        Ok(issued)
    }
}

/// As it appears in the server's log.
fn name(duty: &Duty) -> &'static str {
    match duty {
        Duty::OpenRound(_) => "open rounds",
        Duty::SealRound(_) | Duty::Unseal(_) | Duty::Aggregate { .. } => "close rounds",
        Duty::Deadline(_) => "extend rounds",
        Duty::GiveUpWaiting => "stop waiting for devices",
        Duty::NoteInvitations => "note invitations",
        Duty::BeginExecution | Duty::DestroyKeys(_) => "execute deletions",
        Duty::DestroySpent(_) => "destroy keys without use",
        Duty::HashMembers(_) => "hash members",
        Duty::Log { .. } | Duty::LogRelease(_) => "enter into the log",
        Duty::Publish(_) => "publish",
        Duty::Retire(_) => "retire an epoch",
        Duty::BeginEpoch(_) => "begin an epoch",
        Duty::DropEpoch(_) => "give up an epoch",
        Duty::Finish(_) | Duty::IssueReceipt(_) => "finish deletions",
    }
}
