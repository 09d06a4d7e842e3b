//! Lineage: whose data is in what, what a subject's data is in, and which devices still hold a
//! recalled release.

use std::sync::Arc;

use lethe_model::lora::Adapter;
use lethe_plan::lineage::Census;
use lethe_proto::admin::{Coverage, ReleaseLineage, SubjectLineage};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::Refusal;
use lethe_store::sealed::{Batch, KeyName, SealedStore};

use super::{Core, checkpoint_id};
use crate::CoordinatorError;
use crate::records::{Checkpoint, DeviceRecord, ReleaseRecord, SubjectRecord};

/// That a subject's device holds a release, still to be written.
pub(crate) struct Holding {
    store: Arc<SealedStore>,
    subject: SubjectId,
    record: DeviceRecord,
}

impl Holding {
    /// Writes it; needs no lock. Somebody who was deleted meanwhile does not come back with it.
    pub(crate) fn write(&self) -> Result<(), CoordinatorError> {
        let owner = KeyName::subject(self.subject.as_str());
        let batch = Batch::new().put_existing(&owner, self.subject.as_str(), &self.record)?;
        Ok(self.store.write(batch)?)
    }
}

impl Core {
    /// Whose data the release that is served now was computed from.
    pub(super) fn release_record(
        &self,
        served: &[Arc<Adapter>],
    ) -> Result<ReleaseRecord, CoordinatorError> {
        let census = |k: usize| {
            let shard = ShardId(k as u16);
            let stage = self.stage_of_adapter(shard, &served[k]);
            let members = self
                .members(shard)
                .filter(move |(_, r)| r.erase.is_none() && r.slice < stage);
            members.map(|(_, r)| r.number).collect::<Census>()
        };
        let shards = served
            .iter()
            .enumerate()
            .map(|(k, a)| (Digest::of_values(&a.data), census(k)))
            .collect();
        let validation = self
            .errors
            .keys()
            .filter_map(|s| Some(self.subjects.get(s)?.number))
            .collect();
        Ok(ReleaseRecord {
            at: self.unix_ms / 1000,
            shards,
            validation,
            recalled: false,
        })
    }

    /// The stage that the served adapter of a shard stands at.
    fn served_stage(&self, shard: ShardId) -> u16 {
        self.stage_of_adapter(shard, &self.served[usize::from(shard.0)])
    }

    /// The stage that an adapter of a shard stands at: what is live, or the newest checkpoint.
    fn stage_of_adapter(&self, shard: ShardId, adapter: &Adapter) -> u16 {
        let run = &self.runs[usize::from(shard.0)];
        if Digest::of_values(&adapter.data) == run.hash() {
            return run.stage - 1;
        }
        self.newest_checkpoint(shard).map_or(0, |(stage, _)| stage)
    }

    /// Marks all releases so far as recalled; written first.
    pub(super) fn recall(&mut self) -> Result<(), CoordinatorError> {
        let mut batch = Batch::new();
        let mut changed = vec![];
        for (id, r) in self.releases.iter().filter(|(_, r)| !r.recalled) {
            let record = ReleaseRecord {
                recalled: true,
                ..r.clone()
            };
            batch = batch.put(&KeyName::public(), &id.to_string(), &record)?;
            changed.push((*id, record));
        }
        self.store.write(batch)?;
        self.releases.extend(changed);
        self.recalled = self.newest_recalled();
        Ok(())
    }

    /// The newest release that is recalled; so are all before it. 0: none.
    pub(super) fn newest_recalled(&self) -> u64 {
        let recalled = self.releases.iter().rev().find(|(_, r)| r.recalled);
        recalled.map_or(0, |(id, _)| *id)
    }

    /// A subject's device is about to be given a release: what has to be written before, if it is
    /// not known already.
    pub(crate) fn will_hold(&self, subject: &SubjectId, release: u64) -> Option<Holding> {
        let record = DeviceRecord { release };
        let known = self.devices.get(subject) == Some(&record);
        (!known && self.subjects.contains_key(subject)).then(|| Holding {
            store: self.store.clone(),
            subject: subject.clone(),
            record,
        })
    }

    /// That a device holds a release has been written.
    pub(crate) fn holds_release(&mut self, holding: Holding) {
        if self.subjects.contains_key(&holding.subject) {
            self.devices.insert(holding.subject, holding.record);
        }
    }

    /// What a subject's data is in.
    pub(super) fn subject_lineage(
        &self,
        subject: &SubjectId,
    ) -> Result<SubjectLineage, CoordinatorError> {
        let about = |d: &crate::records::DeletionRecord| d.request.subject() == Some(subject);
        let deletions = self
            .deletions
            .iter()
            .filter(|(_, d)| about(d))
            .map(|(id, _)| *id)
            .collect();
        let Some(r) = self.subjects.get(subject) else {
            let message = format!(
                "{subject} has not joined, or was deleted: `lethe-admin list` shows the deletions"
            );
            return Err(CoordinatorError::refuse(Refusal::Invalid, message));
        };
        let trained = !r.idle && r.samples > 0;
        let mut checkpoints = vec![];
        let mut served = false;
        let mut open_updates = 0;
        let mut rounds = 0;
        if let (Some(shard), true) = (r.shard, trained) {
            for stage in r.slice + 1..=self.recipe.slices as u16 {
                if self
                    .store
                    .get::<Checkpoint>(&checkpoint_id(shard, stage))?
                    .is_some()
                {
                    checkpoints.push(stage);
                }
            }
            let counted = self.rounds_of(shard, subject)?;
            rounds = counted.len() as u32;
            // A shard is trained by cohorts: who was in none has left no trace in it.
            let stage = self.served_stage(shard);
            served = counted.iter().any(|s| *s <= stage);
            let run = &self.runs[usize::from(shard.0)];
            open_updates = run.buffer.keys().filter(|(s, _)| s == subject).count() as u32;
        }
        let in_release = |r: &ReleaseRecord, n: u32| r.shards.iter().any(|(_, c)| c.contains(n));
        Ok(SubjectLineage {
            number: r.number,
            place: r.shard.map(|s| (s, r.slice)),
            idle: why_idle(r),
            samples: r.samples,
            checkpoints,
            served,
            rounds,
            error_rows: self.errors.get(subject).map_or(0, |e| e.rows.len()) as u32,
            open_updates,
            releases: self
                .releases
                .iter()
                .filter(|(_, rel)| in_release(rel, r.number))
                .map(|(id, rel)| (*id, rel.recalled))
                .collect(),
            deletions,
        })
    }

    /// The stages of the rounds so far in which an update of a subject counted.
    fn rounds_of(&self, shard: ShardId, subject: &SubjectId) -> Result<Vec<u16>, CoordinatorError> {
        let recorded = self.recorded_rounds(shard)?;
        let counted = recorded
            .into_iter()
            .filter(|(_, contributors)| contributors.iter().any(|(s, _)| s == subject));
        Ok(counted.map(|((stage, _), _)| stage).collect())
    }

    /// Whose data a release was computed from.
    pub(super) fn release_lineage(&self, release: u64) -> Result<ReleaseLineage, CoordinatorError> {
        let Some(r) = self.releases.get(&release) else {
            let message = format!(
                "there is no release {release}; the current one is {}",
                self.counters.release
            );
            return Err(CoordinatorError::refuse(Refusal::Invalid, message));
        };
        let mut subjects = vec![];
        for (s, record) in &self.subjects {
            let shard = r.shards.iter().position(|(_, c)| c.contains(record.number));
            subjects.extend(shard.map(|k| (s.clone(), ShardId(k as u16))));
        }
        let all = Census::union(r.shards.iter().map(|(_, c)| c)).len();
        Ok(ReleaseLineage {
            release,
            at: r.at,
            recalled: r.recalled,
            shards: r.shards.iter().map(|(d, c)| (*d, c.len())).collect(),
            deleted: all - subjects.len() as u64,
            subjects,
            validation: r.validation.len(),
        })
    }

    /// Which devices still hold a release; the newest that was recalled when none is named.
    pub(super) fn coverage(&self, release: Option<u64>) -> Result<Coverage, CoordinatorError> {
        let newest = || {
            self.releases
                .iter()
                .rev()
                .find(|(_, r)| r.recalled)
                .map(|(id, _)| *id)
        };
        let Some(release) = release
            .or_else(newest)
            .filter(|r| self.releases.contains_key(r))
        else {
            let message = "no such release, or none was recalled so far";
            return Err(CoordinatorError::refuse(Refusal::Invalid, message));
        };
        let mut out = Coverage {
            release,
            recalled: false,
            dropped: 0,
            holding: 0,
            never: 0,
        };
        out.recalled = self.releases.get(&release).is_some_and(|r| r.recalled);
        for s in self.subjects.keys() {
            match self.devices.get(s) {
                None => out.never += 1,
                Some(d) if d.release > release => out.dropped += 1,
                Some(_) => out.holding += 1,
            }
        }
        Ok(out)
    }
}

fn why_idle(r: &SubjectRecord) -> String {
    let why = match (r.restricted, r.idle, &r.erase) {
        (true, _, _) => "restricted: the data is kept and not used",
        (_, true, Some(_)) => "the device did not erase in time: left out until the next epoch",
        (_, true, None) => {
            "came after the epoch started, or erased too late: left out until the next one"
        }
        (_, _, Some(_)) => "the device has to erase first",
        _ if r.samples == 0 => "no training samples",
        _ => "",
    };
    why.into()
}
