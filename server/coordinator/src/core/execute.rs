//! The executor of deletion plans. Every step may be repeated: after a crash, opening the folder
//! resumes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lethe_model::lora::Adapter;
use lethe_plan::Request;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::Role;
use lethe_store::sealed::{Batch, KeyName};

use super::{Core, stage_key};
use crate::CoordinatorError;
use crate::records::{DeletionRecord, ErrorRecord, Kept, SubjectCert, SubjectRecord};

impl Core {
    /// The steps that make the served model exact: withdraw, destroy, roll back, re-weigh, release
    /// and recall. Deletions that are executed together share each of them.
    pub(super) fn execute(&mut self, ids: &[u64]) -> Result<(), CoordinatorError> {
        self.store_accepted()?;
        let mut all: Vec<(u64, DeletionRecord)> = ids
            .iter()
            .filter_map(|id| Some((*id, self.deletions.get(id)?.clone())))
            .collect();
        let of = |f: &dyn Fn(&Request) -> bool| -> BTreeSet<SubjectId> {
            all.iter()
                .filter(|(_, d)| f(&d.request))
                .filter_map(|(_, d)| d.request.subject().cloned())
                .collect()
        };
        let erased = of(&Request::erases_subject);
        let restricted = of(&|r| matches!(r, Request::Restrict { .. }));
        let mut kept: BTreeMap<SubjectId, Kept> = BTreeMap::new();
        let mut stay = vec![];
        for (id, _) in &all {
            stay.extend(self.kept_of(*id)?);
        }
        for k in stay.into_iter().filter(|k| !erased.contains(&k.subject)) {
            match kept.get_mut(&k.subject) {
                Some(first) => first.record.merge_erase(k.record.erase),
                None => drop(kept.insert(k.subject.clone(), k)),
            }
        }
        let mut affected: BTreeMap<ShardId, u16> = BTreeMap::new();
        for (shard, stage) in all.iter().flat_map(|(_, d)| d.plan.affected()) {
            let first = affected.entry(shard).or_insert(stage);
            *first = stage.min(*first);
        }
        let affected: Vec<(ShardId, u16)> = affected.into_iter().collect();

        self.revoke(&erased)?;
        let gone: BTreeSet<&SubjectId> = erased.iter().chain(kept.keys()).collect();
        let keys: Vec<KeyName> = gone.iter().map(|s| KeyName::subject(s.as_str())).collect();
        self.roll_back(&affected, &keys)?;
        for s in gone.iter().copied().chain(&restricted) {
            self.errors.remove(s);
            self.drop_from_rounds(s);
        }
        for s in &gone {
            if let Some(r) = self.subjects.remove(*s) {
                self.touched(r.shard);
            }
            self.devices.remove(*s);
        }
        self.table = None;
        self.keep(kept.into_values().collect())?;
        self.set_aside(&restricted)?;
        self.release_rolled_back()?;
        for (_, d) in &mut all {
            if d.rolled_back.is_empty() {
                let hash =
                    |shard: ShardId| Digest::of_values(&self.served[usize::from(shard.0)].data);
                d.rolled_back = d
                    .plan
                    .affected()
                    .into_iter()
                    .map(|(s, stage)| (s, stage, hash(s)))
                    .collect();
            }
            d.phase = if d.task.is_some() {
                DeletionPhase::WaitingForDevice
            } else {
                DeletionPhase::Retraining
            };
            d.exact_after_ms
                .get_or_insert(self.unix_ms.saturating_sub(d.accepted_at));
        }
        self.save_deletions(all)?;
        self.drop_kept()?;
        // Before any device is told.
        self.log_orders(ids)?;
        // What the shards will be trained on from here, entered into the log at once.
        self.log_trainings()
    }

    /// What was kept about people who stay is written anew, under fresh keys.
    fn keep(&mut self, kept: Vec<Kept>) -> Result<(), CoordinatorError> {
        let mut batch = Batch::new();
        for k in &kept {
            let owner = KeyName::subject(k.subject.as_str());
            let cert = SubjectCert(k.subject.clone());
            batch = k
                .certificates
                .iter()
                .try_fold(batch, |b, c| b.put(&owner, &c.hex(), &cert))?;
            batch = batch.put(&owner, k.subject.as_str(), &k.record)?;
        }
        self.store.write(batch)?;
        for k in kept {
            for c in k.certificates {
                self.certificates
                    .insert(c, Role::Subject(k.subject.clone()));
            }
            self.touched(k.record.shard);
            // A new order is told anew.
            self.unconsented.remove(&k.subject);
            self.subjects.insert(k.subject, k.record);
        }
        Ok(())
    }

    /// People whose data is kept but not used. Written first: what is not on disk is not so.
    fn set_aside(&mut self, subjects: &BTreeSet<SubjectId>) -> Result<(), CoordinatorError> {
        let mut batch = Batch::new();
        let mut changed = vec![];
        for s in subjects {
            let Some(r) = self.subjects.get(s) else {
                continue;
            };
            let record = SubjectRecord {
                restricted: true,
                idle: true,
                ..r.clone()
            };
            let owner = KeyName::subject(s.as_str());
            batch = batch.put(&owner, s.as_str(), &record)?;
            batch = batch.delete::<ErrorRecord>(s.as_str());
            changed.push((s.clone(), record));
        }
        self.store.write(batch)?;
        for (s, record) in changed {
            self.touched(record.shard);
            self.subjects.insert(s, record);
        }
        Ok(())
    }

    pub(super) fn keys_of(&self, shards: &[(ShardId, u16)], others: &[KeyName]) -> Vec<KeyName> {
        let last = self.recipe.slices as u16;
        let stages = shards
            .iter()
            .flat_map(|(s, from)| (*from..=last).map(|stage| stage_key(*s, stage)));
        stages.chain(others.iter().cloned()).collect()
    }

    /// Destroys the keys of stages from `from_stage` on and `others`; the shards go on, in a new
    /// generation, from what is left, which never saw what those stages saw. Returns how many keys
    /// existed.
    pub(super) fn roll_back(
        &mut self,
        shards: &[(ShardId, u16)],
        others: &[KeyName],
    ) -> Result<u32, CoordinatorError> {
        // From here until the end nothing of these shards is served or trained.
        for (shard, stage) in shards {
            let first = self.rolling.entry(*shard).or_insert(*stage);
            *first = (*first).min(*stage);
        }
        // A generation of its own first: should this process end in the middle, what is left of the
        // shard is not taken for the old one.
        for (shard, _) in shards {
            self.next_generation(*shard)?;
        }
        let gone = self.store.destroy(&self.keys_of(shards, others))?;
        self.parts.clear();
        (self.wake.everybody, self.closed) = (true, true);
        self.drop_derived(shards)?;
        for (shard, _) in shards {
            let run = self.load_run(*shard)?;
            let served = self.newest_checkpoint(*shard)?.1;
            self.runs[usize::from(shard.0)] = run;
            self.served[usize::from(shard.0)] =
                Arc::new(Adapter::from_data(&self.shape, served.theta)?);
            self.replays.remove(shard);
            self.touched(Some(*shard));
        }
        self.unreleased = true;
        for (shard, _) in shards {
            self.rolling.remove(shard);
        }
        Ok(gone as u32)
    }

    /// Ends what a failing store interrupted: a rollback, and its release.
    pub(super) fn finish_rollback(&mut self) -> Result<(), CoordinatorError> {
        let shards: Vec<(ShardId, u16)> = self.rolling.iter().map(|(s, n)| (*s, *n)).collect();
        if !shards.is_empty() {
            self.roll_back(&shards, &[])?;
        }
        if self.unreleased {
            self.release_rolled_back()?;
        }
        Ok(())
    }

    /// After a rollback: if what is served is no longer what the newest release says, recalls that
    /// one and makes another. Until it has succeeded nothing is served. May be repeated.
    pub(super) fn release_rolled_back(&mut self) -> Result<(), CoordinatorError> {
        if self.counters.release > 0 && self.counters.served != self.served_hashes() {
            self.recall()?;
            self.next_release(self.served.clone())?;
        }
        self.unreleased = false;
        Ok(())
    }

    /// Removes what other people's clients computed from adapters that are being destroyed: updates
    /// of rounds that did not close, and measured errors.
    fn drop_derived(&mut self, shards: &[(ShardId, u16)]) -> Result<(), CoordinatorError> {
        let ids: Vec<ShardId> = shards.iter().map(|(s, _)| *s).collect();
        let mut batch = self.drop_updates_of(Batch::new(), &ids);
        self.table = None;
        let mut errors = self.errors.clone();
        for (subject, record) in &mut errors {
            for row in &mut record.rows {
                for (shard, _) in shards {
                    if let Some(e) = row.errors.get_mut(usize::from(shard.0)) {
                        *e = None;
                    }
                }
            }
            // The deleted subject's own record went with its key and must not come back.
            if self.subjects.contains_key(subject)
                && self.store.get::<ErrorRecord>(subject.as_str())?.is_some()
            {
                batch = batch.put(
                    &KeyName::subject(subject.as_str()),
                    subject.as_str(),
                    record,
                )?;
            }
        }
        self.store.write(batch)?;
        self.errors = errors;
        Ok(())
    }

    /// A partial deletion that moves its subject to another shard affects that one too. May be
    /// repeated.
    pub(super) fn also_affected(
        &mut self,
        subject: &SubjectId,
        shard: ShardId,
        stage: u16,
        keys_destroyed: u32,
    ) -> Result<(), CoordinatorError> {
        let hash = Digest::of_values(&self.served[usize::from(shard.0)].data);
        let waits = |d: &DeletionRecord| {
            d.request.concerns(subject) && d.phase == DeletionPhase::WaitingForDevice
        };
        let mut changed: Vec<(u64, DeletionRecord)> = self
            .deletions
            .iter()
            .filter(|(_, d)| waits(d))
            .map(|(id, d)| (*id, d.clone()))
            .collect();
        for (_, d) in &mut changed {
            d.keys_destroyed += keys_destroyed;
            match d.rolled_back.iter_mut().find(|(s, _, _)| *s == shard) {
                Some(known) => known.1 = known.1.min(stage),
                None => d.rolled_back.push((shard, stage, hash)),
            }
        }
        self.save_deletions(changed)
    }

    fn drop_from_rounds(&mut self, subject: &SubjectId) {
        self.runs.iter_mut().for_each(|r| r.remove(subject));
    }
}
