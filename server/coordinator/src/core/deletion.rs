//! The executor of deletion plans. Every step may be repeated: after a crash, opening the folder resumes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lethe_model::lora::Adapter;
use lethe_plan::{Inventory, Member, Plan, Request, ShardInventory, Step, plan};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::{Refusal, Role};
use lethe_store::sealed::{Batch, KeyName};

use super::{Core, stage_key};
use crate::CoordinatorError;
use crate::records::{DeletionRecord, ErrorRecord, Invite, PendingErase, SubjectCert, SubjectRecord};

pub(super) fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The record of a person who stays, with these items to be erased beside those that wait already.
fn pending(mut r: SubjectRecord, task: u64, items: &[String]) -> SubjectRecord {
    let waiting = r.erase.take().map(|e| e.items).unwrap_or_default();
    let all: BTreeSet<String> = waiting.into_iter().chain(items.iter().cloned()).collect();
    r.erase = Some(PendingErase { task, items: all.into_iter().collect(), confirmed: false });
    r
}

impl Core {
    fn inventory(&self) -> Result<Inventory, CoordinatorError> {
        let shard = |id: ShardId| ShardInventory {
            id,
            members: self
                .subjects
                .iter()
                .filter(|(_, r)| r.shard == Some(id))
                .map(|(s, r)| Member { subject: s.clone(), slice: r.slice })
                .collect(),
            trained_stage: self.trained_stage(id),
        };
        let mut unplaced: BTreeSet<SubjectId> =
            self.subjects.iter().filter(|(_, r)| r.shard.is_none()).map(|(s, _)| s.clone()).collect();
        let enrolled = self.certificates.values().filter_map(|r| match r {
            Role::Subject(s) => Some(s.clone()),
            Role::Admin => None,
        });
        let invited = self.store.all::<Invite>()?.into_iter().map(|(_, i)| i.0);
        unplaced.extend(enrolled.chain(invited).filter(|s| !self.subjects.contains_key(s)));
        Ok(Inventory {
            shards: (0..self.recipe.shards).map(|k| shard(ShardId(k as u16))).collect(),
            unplaced: unplaced.into_iter().collect(),
            stages: self.recipe.slices as u16,
            rounds_per_stage: self.recipe.rounds as u32,
        })
    }

    /// The stage that a shard's training has entered: a round that is open counts, its clients are at work.
    fn trained_stage(&self, shard: ShardId) -> u16 {
        let run = &self.runs[usize::from(shard.0)];
        let started = run.round > 0 || run.open.is_some();
        (run.stage - u16::from(!started)).min(self.recipe.slices as u16)
    }

    /// Plans a deletion; writes nothing.
    pub(crate) fn plan_deletion(&self, subject: &SubjectId, items: &[String]) -> Result<Plan, CoordinatorError> {
        if !items.is_empty() && !self.subjects.contains_key(subject) {
            let message = format!("{subject} has not joined (or was deleted): there are no items of theirs to forget");
            return Err(CoordinatorError::refuse(Refusal::Invalid, message));
        }
        let inventory = self.inventory()?;
        let plan = plan(&inventory, &Request { subject: subject.clone(), items: items.to_vec() })?;
        plan.lint(&inventory)?;
        Ok(plan)
    }

    /// Accepts a deletion and makes the served model exact before it returns. A deletion of everything supersedes a
    /// deletion of items that waits for the device; further items are added to one that waits. If the store fails after
    /// the acceptance, the deletion stays accepted: nothing is served or trained until a retry has executed it.
    pub(crate) fn forget(&mut self, subject: &SubjectId, items: Vec<String>) -> Result<u64, CoordinatorError> {
        let plan = self.plan_deletion(subject, &items)?;
        let salt = lethe_seal::random()?;
        let mut counters = self.counters.clone();
        counters.deletion += 1;
        counters.task += 1;
        let id = counters.deletion;
        let keep = self.subjects.get(subject).cloned().filter(|_| !items.is_empty());
        let keep = keep.map(|r| (pending(r, counters.task, &items), self.certificates_of(subject)));
        let keys = self.keys_of(&plan.affected(), &[KeyName::subject(subject.as_str())]);
        let record = DeletionRecord {
            plan,
            phase: DeletionPhase::Planned,
            accepted_at: now_unix_ms(),
            exact_after_ms: None,
            retrained_after_ms: None,
            before: self.served_hashes(),
            rolled_back: vec![],
            keys_destroyed: self.store.existing(&keys) as u32,
            salt,
            task: (!items.is_empty()).then_some(counters.task),
            keep,
        };
        // From here on the deletion must complete, whatever happens to this process.
        let batch = Batch::new().put(&KeyName::evidence(id), &id.to_string(), &record)?;
        self.store.write(batch.put(&KeyName::public(), "", &counters)?)?;
        self.counters = counters;
        self.deletions.insert(id, record);
        self.execute(id)?;
        Ok(id)
    }

    /// Whether an accepted deletion still has to be executed: only while the store fails.
    pub(super) fn deletion_unexecuted(&self) -> bool {
        self.deletions.values().any(|d| d.phase == DeletionPhase::Planned)
    }

    /// Refuses to serve while an accepted deletion has not been executed.
    pub(super) fn may_serve(&self) -> Result<(), CoordinatorError> {
        if self.deletion_unexecuted() {
            let message = "a deletion is being executed: try again in a moment";
            return Err(CoordinatorError::refuse(Refusal::Busy, message));
        }
        Ok(())
    }

    /// Executes the deletions that were accepted and that a crash or a failing store interrupted.
    pub(super) fn execute_pending(&mut self) -> Result<(), CoordinatorError> {
        let planned = |d: &DeletionRecord| d.phase == DeletionPhase::Planned;
        let pending: Vec<u64> = self.deletions.iter().filter(|(_, d)| planned(d)).map(|(id, _)| *id).collect();
        pending.into_iter().try_for_each(|id| self.execute(id))
    }

    /// Continues what a crash interrupted, and publishes if what is served is no longer what was released.
    pub(super) fn resume(&mut self) -> Result<(), CoordinatorError> {
        self.execute_pending()?;
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
        self.roll_back(&affected, &[KeyName::subject(subject.as_str())])?;
        self.errors.remove(&subject);
        self.table = None;
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

    fn keys_of(&self, shards: &[(ShardId, u16)], others: &[KeyName]) -> Vec<KeyName> {
        let last = self.recipe.slices as u16;
        let stages = shards.iter().flat_map(|(s, from)| (*from..=last).map(|stage| stage_key(*s, stage)));
        stages.chain(others.iter().cloned()).collect()
    }

    /// Destroys the keys of stages from `from_stage` on and `others`; the shards go on, in a new generation, from what is
    /// left, which never saw what those stages saw. Returns how many keys existed.
    pub(super) fn roll_back(&mut self, shards: &[(ShardId, u16)], others: &[KeyName]) -> Result<u32, CoordinatorError> {
        let gone = self.store.destroy(&self.keys_of(shards, others))?;
        self.drop_derived(shards)?;
        for (shard, _) in shards {
            self.next_generation(*shard)?;
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
        let ids: Vec<ShardId> = shards.iter().map(|(s, _)| *s).collect();
        let mut batch = self.drop_updates_of(Batch::new(), &ids);
        self.table = None;
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

    /// A partial deletion that moves its subject to another shard affects that one too. May be repeated.
    pub(super) fn also_affected(
        &mut self,
        subject: &SubjectId,
        (shard, stage): (ShardId, u16),
        keys_destroyed: u32,
    ) -> Result<(), CoordinatorError> {
        let hash = Digest::of_values(&self.served[usize::from(shard.0)].data);
        let waits =
            |d: &DeletionRecord| d.plan.request.subject == *subject && d.phase == DeletionPhase::WaitingForDevice;
        let found: Vec<u64> = self.deletions.iter().filter(|(_, d)| waits(d)).map(|(id, _)| *id).collect();
        for id in found {
            let Some(mut d) = self.deletions.get(&id).cloned() else { continue };
            d.keys_destroyed += keys_destroyed;
            match d.rolled_back.iter_mut().find(|(s, _, _)| *s == shard) {
                Some(known) => known.1 = known.1.min(stage),
                None => d.rolled_back.push((shard, stage, hash)),
            }
            self.save_deletion(id, d)?;
        }
        Ok(())
    }

    fn drop_from_rounds(&mut self, subject: &SubjectId) {
        for open in self.runs.iter_mut().filter_map(|r| r.open.as_mut()) {
            open.round.remove(subject);
            open.stored.remove(subject);
        }
    }

    pub(super) fn save_deletion(&mut self, id: u64, d: DeletionRecord) -> Result<(), CoordinatorError> {
        self.store.write(Batch::new().put(&KeyName::evidence(id), &id.to_string(), &d)?)?;
        self.deletions.insert(id, d);
        Ok(())
    }
}
