//! What shows that a deletion happened: its phases, its receipt, its entry in the log.

use lethe_proto::admin::{DeletionPhase, DeletionState};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_receipt::receipt::{AffectedShard, Statement, commitment, entry, issue};
use lethe_store::sealed::{Batch, KeyName};

use super::Core;
use super::deletion::now_unix_ms;
use crate::CoordinatorError;
use crate::records::{Checkpoint, DeletionRecord, ReceiptRecord};

/// Version and build, as it appears in receipts.
pub(crate) const BUILD: &str = concat!("lethe ", env!("CARGO_PKG_VERSION"));

impl Core {
    /// The subject's device has erased what it was told to.
    pub(crate) fn erased(&mut self, subject: &SubjectId, task: u64) -> Result<(), CoordinatorError> {
        let Some(mut record) = self.subjects.get(subject).cloned() else { return Ok(()) };
        if let Some(e) = record.erase.as_mut().filter(|e| e.task == task) {
            e.confirmed = true;
            self.save_subject(subject, record)?;
        }
        Ok(())
    }

    /// Issues the receipts of deletions whose shards are trained and released again.
    pub(super) fn finish_deletions(&mut self, _now: u64) -> Result<(), CoordinatorError> {
        self.give_up_waiting()?;
        let waiting =
            |d: &DeletionRecord| matches!(d.phase, DeletionPhase::Retraining | DeletionPhase::WaitingForDevice);
        let pending: Vec<u64> = self.deletions.iter().filter(|(_, d)| waiting(d)).map(|(id, _)| *id).collect();
        for id in pending {
            let Some(mut d) = self.deletions.get(&id).cloned() else { continue };
            let erasing = self.subjects.get(&d.plan.request.subject).is_some_and(|r| r.erase.is_some() && !r.idle);
            if erasing && d.task.is_some() {
                continue;
            }
            d.phase = DeletionPhase::Retraining;
            let trained = |s: &ShardId| {
                let run = &self.runs[usize::from(s.0)];
                run.done(&self.recipe) && self.counters.served.get(usize::from(s.0)) == Some(&run.hash())
            };
            if d.rolled_back.iter().all(|(s, _, _)| trained(s)) {
                // Stored first, so that a statement that a crash interrupts is made again with the same words.
                if d.retrained_after_ms.is_none() {
                    d.retrained_after_ms = Some(now_unix_ms().saturating_sub(d.accepted_at));
                    self.save_deletion(id, d.clone())?;
                }
                d.phase = DeletionPhase::Done;
                let receipt = self.receipt(id, &d)?;
                let batch = Batch::new().put(&KeyName::evidence(id), &id.to_string(), &ReceiptRecord(receipt))?;
                self.store.write(batch)?;
                self.save_deletion(id, d)?;
                tracing::info!(deletion = id, "receipt issued");
            } else {
                self.deletions.insert(id, d);
            }
        }
        Ok(())
    }

    /// A device that does not erase in time: the person is left out of training until the next epoch. Whenever the
    /// device comes back it is still told to erase, and nothing that it measures is taken before it has.
    fn give_up_waiting(&mut self) -> Result<(), CoordinatorError> {
        let bound = self.config.erase_wait_s * 1000;
        let late =
            |d: &&DeletionRecord| d.phase == DeletionPhase::WaitingForDevice && now_unix_ms() > d.accepted_at + bound;
        let subjects: Vec<SubjectId> =
            self.deletions.values().filter(late).map(|d| d.plan.request.subject.clone()).collect();
        for s in subjects {
            if let Some(mut r) = self.subjects.get(&s).cloned().filter(|r| r.erase.is_some() && !r.idle) {
                r.idle = true;
                self.save_subject(&s, r)?;
            }
        }
        Ok(())
    }

    fn receipt(&mut self, id: u64, d: &DeletionRecord) -> Result<Vec<u8>, CoordinatorError> {
        let request = &d.plan.request;
        let hash = |k: usize| self.counters.served.get(k).map_or(String::new(), Digest::hex);
        let last = self.recipe.slices as u16;
        let affected = d.rolled_back.iter().map(|(s, stage, rolled)| {
            let k = usize::from(s.0);
            let lineage = self
                .store
                .get::<Checkpoint>(&super::checkpoint_id(*s, last))?
                .map_or(String::new(), |c| c.lineage.hex());
            Ok(AffectedShard {
                shard: s.0,
                from_stage: *stage,
                before: d.before.get(k).map_or(String::new(), Digest::hex),
                rolled_back_to: rolled.hex(),
                after: hash(k),
                lineage,
                rounds: u32::from(last + 1 - stage) * self.recipe.rounds as u32,
            })
        });
        let affected: Vec<AffectedShard> = affected.collect::<Result<_, CoordinatorError>>()?;
        let same = |k: &usize| {
            d.before.get(*k).map(Digest::hex) == Some(hash(*k))
                && d.rolled_back.iter().all(|(s, _, _)| usize::from(s.0) != *k)
        };
        let untouched =
            d.plan.untouched.iter().map(|s| usize::from(s.0)).filter(same).map(|k| (k as u16, hash(k))).collect();
        let statement = Statement {
            version: 1,
            kind: if request.items.is_empty() { "erase-subject" } else { "erase-items" }.into(),
            deletion: id,
            commitment: commitment(&d.salt, request.subject.as_str(), &request.items),
            accepted_at: d.accepted_at / 1000,
            exact_after_ms: d.exact_after_ms.unwrap_or(0),
            retrained_after_ms: d.retrained_after_ms.unwrap_or(0),
            keys_destroyed: d.keys_destroyed,
            affected,
            untouched,
            release: self.counters.release,
            recipe: self.recipe_digest.hex(),
            base_model: self.model.hex(),
            build: BUILD.into(),
        };
        let bytes = entry(&statement)?;
        // A crash after the append leaves the entry without a receipt; the retry finds and reuses it.
        let index = match self.log.entries().iter().position(|e| *e == bytes) {
            Some(i) => i as u64,
            None => {
                let index = self.log.append(&bytes)?;
                self.tree.push(&bytes);
                index
            }
        };
        let opening = (request.subject.as_str().to_owned(), request.items.clone(), &d.salt[..]);
        Ok(issue(statement, opening, index, &self.tree, &self.signer)?)
    }

    /// A deletion as the admin tool shows it.
    pub(crate) fn deletion_state(&self, id: u64) -> Option<DeletionState> {
        let d = self.deletions.get(&id)?;
        let seconds = |ms: Option<u64>| ms.map(|ms| ms as f64 / 1000.0);
        Some(DeletionState {
            id: Some(id),
            plan: d.plan.to_string(),
            phase: d.phase,
            seconds_until_exact: seconds(d.exact_after_ms),
            seconds_until_retrained: seconds(d.retrained_after_ms),
            before: d.before.clone(),
            now: self.served_hashes(),
            affected: d.plan.affected().into_iter().map(|(s, _)| s).collect(),
        })
    }
}
