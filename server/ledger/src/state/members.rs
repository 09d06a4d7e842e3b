//! Who is in a shard, whose data counts, and what was said of it.

use std::collections::BTreeSet;

use lethe_plan::lineage::{Census, Commitment, checkpoint_key};
use lethe_plan::{Inventory, Member as PlanMember, ShardInventory};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_receipt::hex::hex;
use lethe_receipt::records::{Records, record_key};

use super::{Epoch, Place, Profile, RecordBefore, Run, State, TrainingRecord};
use crate::ids::{EpochNo, ShardKey};

/// Somebody whose data a shard is trained on.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Who.
    pub subject: &'a SubjectId,
    /// Number in lineages.
    pub number: u32,
    /// The person.
    pub profile: &'a Profile,
    /// The place in the shard's epoch.
    pub place: &'a Place,
}

/// What the tree of a shard's records is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeInput {
    /// Version of the members that this is about.
    pub version: u64,
    /// Record key and data of everybody who counts.
    pub records: Vec<([u8; 32], [u8; 32])>,
}

impl State {
    /// Subjects whose data a shard trains on, in the order of their names.
    pub fn members(&self, key: ShardKey) -> impl Iterator<Item = Member<'_>> {
        let placed = self.index.placed.get(&key).into_iter().flatten();
        placed.filter_map(move |subject| {
            let person = self.people.get(subject)?;
            let profile = person.profile.as_ref()?;
            let place = profile.trained(key.epoch)?;
            Some(Member {
                subject,
                number: person.number.0,
                profile,
                place,
            })
        })
    }

    /// A shard with a member that has yet to erase something waits.
    pub fn held(&self, key: ShardKey) -> bool {
        self.index.held.contains_key(&key)
    }

    /// Members whose data counts: who has yet to erase is not among them.
    pub fn counting(&self, key: ShardKey) -> impl Iterator<Item = Member<'_>> {
        self.members(key).filter(|m| m.profile.erase.is_none())
    }

    /// What the tree of a shard's records is made of. Hashing it is the shell's work.
    pub fn members_of_tree(&self, key: ShardKey) -> TreeInput {
        let record = |m: Member<'_>| {
            let name = record_key(&m.profile.salt, m.subject.as_str());
            (name, m.place.commitment.0)
        };
        TreeInput {
            version: self.volatile.versions.get(&key).map_or(0, |v| v.members),
            records: self.counting(key).map(record).collect(),
        }
    }

    /// The tree itself.
    pub fn records_of(&self, key: ShardKey) -> Records {
        Records::new(self.members_of_tree(key).records)
    }

    /// The tree that a logged statement is about, if it is still what the shard holds.
    pub fn records_now(&self, key: ShardKey, training: &TrainingRecord) -> Option<Records> {
        let records = self.records_of(key);
        (hex(&records.root()) == training.training.root).then_some(records)
    }

    /// Lineage of a shard's checkpoint at the end of a stage, from its present members.
    pub fn lineage(&self, key: ShardKey, stage: u16) -> Digest {
        let Some(epoch) = self.epochs.get(&key.epoch) else {
            return Digest::default();
        };
        let of = |m: Member<'_>| Commitment {
            slice: m.place.slice,
            subject: m.subject.clone(),
            data: m.place.commitment,
        };
        let members: Vec<Commitment> = self.members(key).map(of).collect();
        checkpoint_key(
            key.shard,
            stage,
            &members,
            &epoch.model,
            &epoch.recipe_digest,
        )
    }

    /// Whose data an adapter was computed from that stands at a stage.
    pub(crate) fn census(&self, key: ShardKey, stage: u16) -> Census {
        let counting = self.counting(key).filter(|m| m.place.slice < stage);
        counting.map(|m| m.number).collect()
    }

    /// The stage that training has entered: a round that is open counts, its clients are at work.
    pub(crate) fn trained_stage(&self, epoch: &Epoch, at: ShardKey, run: &Run) -> u16 {
        let open = self.volatile.open.contains_key(&run.generation);
        // After a restart: what is stored waits for its round to be opened again.
        let stored = self.stages.contains_key(&run.key(at).stage_key());
        let started = run.round > 0 || open || stored;
        let stage = run.stage.saturating_sub(u16::from(!started));
        stage.min(epoch.terms.slices)
    }

    /// What a planner needs to know of an epoch.
    pub fn inventory(&self, no: EpochNo) -> Option<Inventory> {
        let epoch = self.epochs.get(&no)?;
        let mut placed: BTreeSet<&SubjectId> = BTreeSet::new();
        let mut shards = vec![];
        for (k, shard) in epoch.shards.iter().enumerate() {
            let key = super::shard_key(no, k);
            let names = self.index.placed.get(&key);
            placed.extend(names.into_iter().flatten());
            let member = |subject: &SubjectId| {
                let profile = self.profile(subject)?;
                let place = profile.places.get(&no)?;
                Some(PlanMember {
                    subject: subject.clone(),
                    slice: place.slice,
                    samples: place.samples,
                    idle: !place.trains() || profile.restricted,
                })
            };
            let rounds = usize::from(epoch.terms.rounds.max(1));
            let losses = shard.run.losses();
            let ends = losses
                .chunks_exact(rounds)
                .map(|c| c.last().copied().flatten());
            shards.push(ShardInventory {
                id: key.shard,
                members: names.into_iter().flatten().filter_map(member).collect(),
                trained_stage: self.trained_stage(epoch, key, &shard.run),
                losses: ends.collect(),
            });
        }
        let unplaced = self.people.keys().filter(|s| !placed.contains(s));
        Some(Inventory {
            shards,
            unplaced: unplaced.cloned().collect(),
            stages: epoch.terms.slices,
            rounds_per_stage: u32::from(epoch.terms.rounds),
            cohort: epoch.terms.cohort,
            samples_per_round: epoch.terms.samples,
            rates: self.core.rates,
        })
    }

    /// Proof that the log says that a subject's record was trained on. While an earlier deletion
    /// about the same person is not finished, it is that deletion's. `tree` makes a shard's tree.
    pub(crate) fn record_before<'a>(
        &self,
        subject: &SubjectId,
        tree: impl FnOnce(ShardKey) -> Option<&'a Records>,
    ) -> Option<RecordBefore> {
        let open = self.index.planned.union(&self.index.waiting);
        let mut open: Vec<u64> = open.copied().collect();
        open.sort_unstable();
        let unfinished = open.iter().rev().filter_map(|id| self.deletions.get(id));
        let mut unfinished =
            unfinished.filter(|d| d.request.subject() == Some(subject) && d.proof.is_some());
        if let Some(d) = unfinished.next() {
            return d.proof.clone();
        }
        let profile = self.profile(subject)?;
        let epoch = self.core.serving.or_else(|| self.newest_begun())?;
        let key = ShardKey {
            epoch,
            shard: profile.places.get(&epoch)?.shard?,
        };
        let training = self.shard(key)?.logged.clone()?;
        let records = tree(key)?;
        // Nothing was said of what the shard holds now: no stage has been trained on it.
        if hex(&records.root()) != training.training.root {
            return None;
        }
        let member = records.member(&record_key(&profile.salt, subject.as_str()))?;
        Some(RecordBefore {
            shard: key,
            salt: profile.salt,
            training,
            member,
        })
    }

    /// The newest epoch that has begun.
    pub(crate) fn newest_begun(&self) -> Option<EpochNo> {
        let mut begun = self
            .epochs
            .iter()
            .rev()
            .filter(|(no, e)| e.partition.is_some() && !self.ended(**no));
        begun.next().map(|(no, _)| *no)
    }

    /// The current release, with its number.
    pub fn current_release(&self) -> Option<(u64, &super::Release)> {
        self.releases.iter().next_back().map(|(no, r)| (*no, r))
    }

    /// Hash of every served adapter: of the current release, before the first one that of every
    /// shard's start.
    pub fn served_hashes(&self) -> Vec<Digest> {
        if let Some((_, release)) = self.current_release() {
            return release.digests();
        }
        let epoch = self.newest_begun().and_then(|no| self.epochs.get(&no));
        let epoch = epoch.or_else(|| self.epochs.values().next_back());
        epoch.map_or(vec![], |e| {
            let served = |k: &super::Shard| k.run.newest().1.map_or(e.initial, |c| c.hash);
            e.shards.iter().map(served).collect()
        })
    }

    /// Hash of what is served of a shard, if anything of its epoch is.
    pub(crate) fn served_of(&self, key: ShardKey) -> Option<Digest> {
        let (_, release) = self.current_release()?;
        let shard = release.shards.get(usize::from(key.shard.0))?;
        (release.epoch == key.epoch).then_some(shard.digest)
    }

    /// A shard by number in the epoch that is served or, before that, trained.
    pub fn shard_of_wire(&self, shard: ShardId) -> Option<ShardKey> {
        let epoch = self.core.serving.or_else(|| self.newest_begun());
        let epoch = epoch.or_else(|| self.joining())?;
        let key = ShardKey { epoch, shard };
        self.shard(key).map(|_| key)
    }
}
