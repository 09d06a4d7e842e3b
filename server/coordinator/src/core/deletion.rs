//! The executor of deletion plans. Every step may be repeated: after a crash, opening the folder resumes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lethe_model::lora::Adapter;
use lethe_plan::{Inventory, Member, Plan, Request, ShardInventory, Step, plan};
use lethe_proto::admin::{DeletionPhase, DeletionState};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::{Refusal, Role};
use lethe_receipt::receipt::{AffectedShard, Statement, commitment, entry, issue};
use lethe_store::sealed::{Batch, KeyName};

use super::{Core, stage_key};
use crate::CoordinatorError;
use crate::records::{Checkpoint, DeletionRecord, ErrorRecord, PendingErase, ReceiptRecord, SubjectCert, UpdateRecord};

/// Version and build, as it appears in receipts.
pub(crate) const BUILD: &str = concat!("lethe ", env!("CARGO_PKG_VERSION"));

fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Core {
    fn inventory(&self) -> Inventory {
        let shard = |id: ShardId| ShardInventory {
            id,
            members: self
                .subjects
                .iter()
                .filter(|(_, r)| r.shard == Some(id) || (r.shard.is_none() && id.0 == 0))
                .map(|(s, r)| Member { subject: s.clone(), slice: r.slice })
                .collect(),
            trained_stage: self.trained_stage(id),
        };
        Inventory {
            shards: (0..self.recipe.shards).map(|k| shard(ShardId(k as u16))).collect(),
            stages: self.recipe.slices as u16,
            rounds_per_stage: self.recipe.rounds as u32,
        }
    }

    /// The stage that a shard's training has entered: a round that is open counts, its clients are at work.
    fn trained_stage(&self, shard: ShardId) -> u16 {
        let run = &self.runs[usize::from(shard.0)];
        let started = run.round > 0 || run.open.is_some();
        (run.stage - u16::from(!started)).min(self.recipe.slices as u16)
    }

    /// Plans a deletion; writes nothing.
    pub(crate) fn plan_deletion(&self, subject: &SubjectId, items: &[String]) -> Result<Plan, CoordinatorError> {
        let inventory = self.inventory();
        let plan = plan(&inventory, &Request { subject: subject.clone(), items: items.to_vec() })?;
        plan.lint(&inventory)?;
        Ok(plan)
    }

    /// Accepts a deletion and makes the served model exact before it returns.
    pub(crate) fn forget(&mut self, subject: &SubjectId, items: Vec<String>) -> Result<u64, CoordinatorError> {
        if self.subjects.get(subject).is_some_and(|r| r.erase.is_some()) {
            let message = "an earlier deletion of this subject waits for the device: try again when it is done";
            return Err(CoordinatorError::refuse(Refusal::Busy, message));
        }
        let plan = self.plan_deletion(subject, &items)?;
        let salt = lethe_seal::random()?;
        self.counters.deletion += 1;
        self.counters.task += 1;
        let id = self.counters.deletion;
        let keep = self.subjects.get(subject).cloned().filter(|_| !items.is_empty());
        let keep = keep.map(|mut r| {
            r.erase = Some(PendingErase { task: self.counters.task, items: items.clone(), confirmed: false });
            (r, self.certificates_of(subject))
        });
        let record = DeletionRecord {
            plan,
            phase: DeletionPhase::Planned,
            accepted_at: now_unix_ms(),
            exact_after_ms: None,
            retrained_after_ms: None,
            before: self.served_hashes(),
            rolled_back: vec![],
            keys_destroyed: 0,
            salt,
            task: (!items.is_empty()).then_some(self.counters.task),
            keep,
        };
        // From here on the deletion must complete, whatever happens to this process.
        let batch = Batch::new().put(&KeyName::evidence(id), &id.to_string(), &record)?;
        self.store.write(batch.put(&KeyName::public(), "", &self.counters)?)?;
        self.deletions.insert(id, record);
        self.execute(id)?;
        Ok(id)
    }

    /// Continues what a crash interrupted, and publishes if what is served is no longer what was released.
    pub(super) fn resume(&mut self) -> Result<(), CoordinatorError> {
        let pending: Vec<u64> =
            self.deletions.iter().filter(|(_, d)| d.phase == DeletionPhase::Planned).map(|(id, _)| *id).collect();
        for id in pending {
            self.execute(id)?;
        }
        if self.counters.release > 0 && self.counters.served != self.served_hashes() {
            self.next_release()?;
        }
        Ok(())
    }

    /// The steps that make the served model exact: revoke, destroy, roll back, release.
    fn execute(&mut self, id: u64) -> Result<(), CoordinatorError> {
        let Some(mut d) = self.deletions.get(&id).cloned() else { return Ok(()) };
        let subject = d.plan.request.subject.clone();
        if d.plan.steps.contains(&Step::Revoke) {
            self.revoke(&subject)?;
        }
        let affected = d.plan.affected();
        d.keys_destroyed += self.roll_back(&affected, &[KeyName::subject(subject.as_str())])?;
        self.errors.remove(&subject);
        self.subjects.remove(&subject);
        self.drop_from_rounds(&subject);
        if let Some((record, certificates)) = d.keep.take() {
            // The person stays; what was kept about them is written anew under a fresh key.
            let owner = KeyName::subject(subject.as_str());
            let cert = SubjectCert(subject.clone());
            let batch = certificates.iter().try_fold(Batch::new(), |b, c| b.put(&owner, &c.hex(), &cert))?;
            self.store.write(batch)?;
            for c in certificates {
                self.certificates.insert(c, Role::Subject(subject.clone()));
            }
            self.save_subject(&subject, record)?;
        }
        if d.rolled_back.is_empty() {
            let hash = |shard: ShardId| Digest::of_values(&self.served[usize::from(shard.0)].data);
            d.rolled_back = affected.iter().map(|(s, stage)| (*s, *stage, hash(*s))).collect();
        }
        if self.counters.release > 0 && self.counters.served != self.served_hashes() {
            self.next_release()?;
        }
        d.phase = if d.task.is_some() { DeletionPhase::WaitingForDevice } else { DeletionPhase::Retraining };
        d.exact_after_ms.get_or_insert(now_unix_ms().saturating_sub(d.accepted_at));
        self.save_deletion(id, d)
    }

    fn certificates_of(&self, subject: &SubjectId) -> Vec<Digest> {
        let own = |r: &Role| matches!(r, Role::Subject(s) if s == subject);
        self.certificates.iter().filter(|(_, r)| own(r)).map(|(d, _)| *d).collect()
    }

    /// Destroys the keys of stages from `from_stage` on and `others`; the shards go on from what is left, which never
    /// saw what those stages saw. Returns how many keys existed.
    pub(super) fn roll_back(&mut self, shards: &[(ShardId, u16)], others: &[KeyName]) -> Result<u32, CoordinatorError> {
        let last = self.recipe.slices as u16;
        let stages = shards.iter().flat_map(|(s, from)| (*from..=last).map(|stage| stage_key(*s, stage)));
        let keys: Vec<KeyName> = stages.chain(others.iter().cloned()).collect();
        let gone = self.store.destroy(&keys)?;
        self.drop_derived(shards)?;
        for (shard, _) in shards {
            let run = self.load_run(*shard)?;
            let served = self.newest_checkpoint(*shard)?.1;
            self.runs[usize::from(shard.0)] = run;
            self.served[usize::from(shard.0)] = Arc::new(Adapter::from_data(&self.shape, served.theta)?);
            self.replays.remove(shard);
        }
        Ok(gone as u32)
    }

    /// Removes what other people's clients computed from adapters that are being destroyed: updates of rounds that did
    /// not close, and measured errors.
    fn drop_derived(&mut self, shards: &[(ShardId, u16)]) -> Result<(), CoordinatorError> {
        let mut batch = Batch::new();
        for key in self.store.keys::<UpdateRecord>() {
            if shards.iter().any(|(s, _)| key.starts_with(&format!("{}/", s.0))) {
                batch = batch.delete::<UpdateRecord>(&key);
            }
        }
        for (subject, record) in &mut self.errors {
            for row in &mut record.rows {
                for (shard, _) in shards {
                    if let Some(e) = row.errors.get_mut(usize::from(shard.0)) {
                        *e = None;
                    }
                }
            }
            // The deleted subject's own record went with its key and must not come back.
            if self.subjects.contains_key(subject) && self.store.get::<ErrorRecord>(subject.as_str())?.is_some() {
                batch = batch.put(&KeyName::subject(subject.as_str()), subject.as_str(), record)?;
            }
        }
        Ok(self.store.write(batch)?)
    }

    /// A partial deletion that moved its subject to another shard affects that one too.
    pub(super) fn also_affected(
        &mut self,
        task: Option<u64>,
        shard: ShardId,
        stage: u16,
    ) -> Result<(), CoordinatorError> {
        let found = self.deletions.iter().find(|(_, d)| d.task.is_some() && d.task == task);
        let Some((id, mut d)) = found.map(|(id, d)| (*id, d.clone())) else { return Ok(()) };
        let hash = Digest::of_values(&self.served[usize::from(shard.0)].data);
        d.rolled_back.push((shard, stage, hash));
        self.save_deletion(id, d)
    }

    fn drop_from_rounds(&mut self, subject: &SubjectId) {
        for open in self.runs.iter_mut().filter_map(|r| r.open.as_mut()) {
            open.round.remove(subject);
            open.stored.remove(subject);
        }
    }

    fn save_deletion(&mut self, id: u64, d: DeletionRecord) -> Result<(), CoordinatorError> {
        self.store.write(Batch::new().put(&KeyName::evidence(id), &id.to_string(), &d)?)?;
        self.deletions.insert(id, d);
        Ok(())
    }

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
            let erasing = self.subjects.get(&d.plan.request.subject).is_some_and(|r| r.erase.is_some());
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

    /// A device that does not erase in time: the person is left out of training until the next epoch.
    fn give_up_waiting(&mut self) -> Result<(), CoordinatorError> {
        let bound = self.config.erase_wait_s * 1000;
        let late =
            |d: &&DeletionRecord| d.phase == DeletionPhase::WaitingForDevice && now_unix_ms() > d.accepted_at + bound;
        let subjects: Vec<SubjectId> =
            self.deletions.values().filter(late).map(|d| d.plan.request.subject.clone()).collect();
        for s in subjects {
            if let Some(mut r) = self.subjects.get(&s).cloned().filter(|r| r.erase.is_some() && !r.idle) {
                r.idle = true;
                r.erase = None;
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
        let same = |k: &usize| d.before.get(*k).map(Digest::hex) == Some(hash(*k));
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
