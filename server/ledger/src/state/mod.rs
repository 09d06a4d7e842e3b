//! Everything that decides, in slices: what belongs to one owner is sealed together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lethe_proto::ids::SubjectId;
use lethe_proto::message::Role;

mod catalogue;
mod closed;
mod epoch;
mod hold;
mod index;
mod life;
mod lifted;
mod lists;
mod logged;
mod members;
mod person;
mod proof;
mod records;
mod runs;
mod slices;
mod stage;
mod volatile;

pub use catalogue::CatalogueRecord;
pub use epoch::{
    Checkpoint, Epoch, Intended, Partition, Replay, RoundSum, Run, Shard, StageSum, TrainingRecord,
};
pub use hold::ShardHold;
pub use index::{Holder, Index, RunRef};
pub use life::{Life, Step};
pub use lifted::Lifted;
pub use lists::{ListsLeft, ListsRecord, SnapshotRef};
pub use logged::{Logged, LoggedPart};
pub use members::{Member, TreeInput};
pub use person::{
    Device, Errors, Identity, Measured, Moving, PendingErase, Person, Place, Profile,
};
pub use proof::{Proof, StageFound};
pub use records::{
    Action, ActionRecord, Core, Deletion, Execution, Kept, LogHead, Numbers, Operator,
    ProposalRecord, RecordBefore, Release, RemovedRecord, RolledShard, ServedShard,
};
pub use slices::SliceError;
pub use stage::Stage;
pub use volatile::{Invited, Open, Sealed, Silence, Versions, Volatile};

use crate::ids::{
    CatalogueVersion, EpochNo, Owner, Refused, ShardKey, SliceId, StageKey, ValueRef,
};
use crate::terms::Rules;

/// Everything that decides. [`crate::apply`] alone changes it.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) core: Core,
    pub(crate) epochs: BTreeMap<EpochNo, Epoch>,
    /// Epochs that were founded by older versions have none.
    pub(crate) lives: BTreeMap<EpochNo, Life>,
    pub(crate) releases: BTreeMap<u64, Release>,
    pub(crate) actions: BTreeMap<u64, ActionRecord>,
    /// Copies of the state share them: a decision that stands on others works on a copy.
    pub(crate) people: BTreeMap<SubjectId, Arc<Person>>,
    pub(crate) stages: BTreeMap<StageKey, Stage>,
    pub(crate) deletions: BTreeMap<u64, Deletion>,
    pub(crate) kept: BTreeMap<u64, Kept>,
    /// By the number of the deletion.
    pub(crate) lists: BTreeMap<u64, ListsRecord>,
    pub(crate) proposals: BTreeMap<u64, ProposalRecord>,
    pub(crate) catalogues: BTreeMap<CatalogueVersion, CatalogueRecord>,
    /// Restrictions that were lifted, by the number of the deletion.
    pub(crate) lifted: BTreeMap<u64, Lifted>,
    /// What the newest replay of each shard has found.
    pub(crate) proofs: BTreeMap<ShardKey, Proof>,
    /// Shards that wait for an operator.
    pub(crate) holds: BTreeMap<ShardKey, ShardHold>,
    /// What the log holds of what is served.
    pub(crate) logged: Logged,
    pub(crate) rules: Rules,
    pub(crate) volatile: Volatile,
    pub(crate) index: Index,
    /// Slices that differ from the last snapshot; the shell takes them when it has written one.
    pub changed: BTreeSet<SliceId>,
    /// Values that nothing refers to any longer; the shell deletes them after the commit.
    pub dropped: Vec<ValueRef>,
}

impl State {
    /// Numbers, policy, operators.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// What the configuration decides.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What a restart forgets.
    pub fn volatile(&self) -> &Volatile {
        &self.volatile
    }

    /// All indexes, for comparison.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// All epochs.
    pub fn epochs(&self) -> &BTreeMap<EpochNo, Epoch> {
        &self.epochs
    }

    /// An epoch.
    pub fn epoch(&self, no: EpochNo) -> Option<&Epoch> {
        self.epochs.get(&no)
    }

    /// A shard of an epoch.
    pub fn shard(&self, key: ShardKey) -> Option<&Shard> {
        self.epochs.get(&key.epoch)?.shard(key.shard)
    }

    /// All shards of all epochs.
    pub fn shards(&self) -> impl Iterator<Item = (ShardKey, &Epoch, &Shard)> {
        self.epochs.iter().flat_map(|(no, epoch)| {
            let keyed = epoch.shards.iter().enumerate();
            keyed.map(move |(k, shard)| (shard_key(*no, k), epoch, shard))
        })
    }

    /// All releases.
    pub fn releases(&self) -> &BTreeMap<u64, Release> {
        &self.releases
    }

    /// All people who were invited or joined.
    pub fn people(&self) -> &BTreeMap<SubjectId, Arc<Person>> {
        &self.people
    }

    /// A person.
    pub fn person(&self, subject: &SubjectId) -> Option<&Person> {
        self.people.get(subject).map(Arc::as_ref)
    }

    /// The profile of a person who joined.
    pub fn profile(&self, subject: &SubjectId) -> Option<&Profile> {
        self.people.get(subject)?.profile.as_ref()
    }

    /// Who contributed to a stage.
    pub fn stage(&self, key: &StageKey) -> Option<&Stage> {
        self.stages.get(key)
    }

    /// All stages.
    pub fn stages(&self) -> &BTreeMap<StageKey, Stage> {
        &self.stages
    }

    /// All deletions.
    pub fn deletions(&self) -> &BTreeMap<u64, Deletion> {
        &self.deletions
    }

    /// Proposals that wait.
    pub fn proposals(&self) -> &BTreeMap<u64, ProposalRecord> {
        &self.proposals
    }

    /// What operators did.
    pub fn actions(&self) -> &BTreeMap<u64, ActionRecord> {
        &self.actions
    }

    /// The role of a certificate, if it is known and not revoked.
    pub fn role(&self, certificate: &lethe_proto::ids::Digest) -> Option<Role> {
        if let Some(holder) = self.index.holders.get(certificate) {
            return Some(Role::Subject(holder.subject.clone()));
        }
        let operator = self.core.operators.contains_key(certificate);
        operator.then_some(Role::Admin)
    }

    /// The same for who asks for something. Refuses those for a moment who stay when keys are
    /// destroyed, and are not written anew yet: a state that was read again meanwhile does not know
    /// them, and their devices must not believe that they were withdrawn.
    pub fn who(&self, certificate: &lethe_proto::ids::Digest) -> Result<Option<Role>, Refused> {
        let role = self.role(certificate);
        let executing = self.core.executing.as_ref().filter(|_| role.is_none());
        let kept = executing.and_then(|e| self.kept.get(&e.kept?));
        let mut all = kept.into_iter().flat_map(|k| k.0.values());
        if all.any(|p| p.certificates().any(|c| c == certificate)) {
            return Err(Refused::executing());
        }
        Ok(role)
    }

    /// Whose device a certificate is.
    pub fn holder(&self, certificate: &lethe_proto::ids::Digest) -> Option<&Holder> {
        self.index.holders.get(certificate)
    }

    pub(crate) fn touch(&mut self, slice: SliceId) {
        self.changed.insert(slice);
    }

    /// Changes a person who is there; who is not (their key is gone) stays away.
    pub(crate) fn edit_person(&mut self, subject: &SubjectId, edit: impl FnOnce(&mut Person)) {
        let Some(mut shared) = self.people.remove(subject) else {
            return;
        };
        let person = Arc::make_mut(&mut shared);
        let before = member_records(person);
        self.index.remove_person(subject, person);
        let refs: Vec<ValueRef> = person.values().cloned().collect();
        edit(person);
        self.forget_values(refs, person);
        self.index.add_person(subject, person);
        let after = member_records(person);
        self.bump(&before, &after);
        self.people.insert(subject.clone(), shared);
        self.touch(SliceId::Person(subject.clone()));
    }

    /// Puts a person there, in place of what was known.
    pub(crate) fn put_person(&mut self, subject: &SubjectId, person: Person) {
        self.remove_person(subject);
        self.index.add_person(subject, &person);
        let after = member_records(&person);
        self.bump(&BTreeMap::new(), &after);
        self.people.insert(subject.clone(), Arc::new(person));
        self.touch(SliceId::Person(subject.clone()));
    }

    pub(crate) fn remove_person(&mut self, subject: &SubjectId) {
        let Some(person) = self.people.remove(subject) else {
            return;
        };
        self.volatile.silent.remove(subject);
        let before = member_records(&person);
        self.index.remove_person(subject, &person);
        self.bump(&before, &BTreeMap::new());
        self.dropped.extend(person.values().cloned());
        self.touch(SliceId::Person(subject.clone()));
    }

    fn forget_values(&mut self, before: Vec<ValueRef>, person: &Person) {
        let gone = before
            .into_iter()
            .filter(|v| !person.values().any(|k| k == v));
        self.dropped.extend(gone);
    }

    /// Those who are trained on have changed, where what is recorded of them differs.
    fn bump(&mut self, before: &MemberRecords, after: &MemberRecords) {
        for key in before.keys().chain(after.keys()) {
            if before.get(key) != after.get(key) {
                self.touched(*key);
            }
        }
    }

    /// The members of a shard, or their data, or its generation, have changed.
    pub(crate) fn touched(&mut self, key: ShardKey) {
        self.volatile.versions.entry(key).or_default().members += 1;
    }

    pub(crate) fn edit_deletion(&mut self, id: u64, edit: impl FnOnce(&mut Deletion)) {
        if let Some(deletion) = self.deletions.get_mut(&id) {
            edit(deletion);
            self.index.put_deletion(id, self.deletions.get(&id));
            self.touch(SliceId::Deletion(id));
        }
    }

    pub(crate) fn put_deletion(&mut self, id: u64, deletion: Deletion) {
        self.deletions.insert(id, deletion);
        self.index.put_deletion(id, self.deletions.get(&id));
        self.touch(SliceId::Deletion(id));
    }

    /// Changes a shard; the index of runs follows.
    pub(crate) fn edit_shard(&mut self, key: ShardKey, edit: impl FnOnce(&mut Shard)) {
        let place = usize::from(key.shard.0);
        let epoch = self.epochs.get_mut(&key.epoch);
        let Some(shard) = epoch.and_then(|e| e.shards.get_mut(place)) else {
            return;
        };
        for generation in run_generations(shard) {
            self.index.runs.remove(&generation.0);
        }
        edit(shard);
        for (generation, live) in run_generations(shard) {
            let run = RunRef { shard: key, live };
            self.index.runs.insert(generation, run);
        }
        self.touch(SliceId::Epoch(key.epoch));
    }

    pub(crate) fn edit_core(&mut self, edit: impl FnOnce(&mut Core)) {
        edit(&mut self.core);
        self.touch(SliceId::Core);
    }

    /// Removes what an owner's key has sealed: the key is gone.
    pub(crate) fn remove_owner(&mut self, owner: &Owner) {
        match owner {
            Owner::Public => {}
            Owner::Person(s) => {
                let person = self.people.get(s).cloned();
                for device in person.iter().flat_map(|p| p.devices.keys()) {
                    self.volatile.unmeasured.remove(device);
                }
                self.remove_person(s);
            }
            Owner::Stage(key) => {
                if let Some(stage) = self.stages.remove(key) {
                    self.dropped.extend(stage.values().cloned());
                    self.touch(SliceId::Stage(*key));
                }
            }
            Owner::Deletion(id) => {
                if let Some(deletion) = self.deletions.remove(id) {
                    self.dropped.extend(deletion.receipt);
                    self.index.put_deletion(*id, None);
                    self.touch(SliceId::Deletion(*id));
                }
            }
            Owner::Kept(id) => {
                if self.kept.remove(id).is_some() {
                    self.touch(SliceId::Kept(*id));
                }
            }
            Owner::Proposal(id) => {
                if self.proposals.remove(id).is_some() {
                    self.touch(SliceId::Proposal(*id));
                }
            }
        }
    }

    /// Rebuilds all indexes; call it after the last slice was inserted.
    pub fn finish(&mut self) {
        let mut index = Index::default();
        for (subject, person) in &self.people {
            index.add_person(subject, person);
        }
        for (id, deletion) in &self.deletions {
            index.put_deletion(*id, Some(deletion));
        }
        let unlogged = self.actions.iter().filter(|(_, a)| a.index.is_none());
        index.unlogged = unlogged.map(|(no, _)| *no).collect();
        let unlisted = self.lists.iter().filter(|(_, r)| !r.is_whole());
        index.unlisted = unlisted.map(|(id, _)| *id).collect();
        for (key, _, shard) in self.shards() {
            for (generation, live) in run_generations(shard) {
                let run = RunRef { shard: key, live };
                index.runs.insert(generation, run);
            }
        }
        let recalled = self.releases.iter().rev().find(|(_, r)| r.recalled);
        index.recalled = recalled.map_or(0, |(no, _)| *no);
        self.index = index;
        self.index.destroying = self.keys_to_destroy().into_iter().collect();
        let keys: Vec<ShardKey> = self.shards().map(|(key, _, _)| key).collect();
        for key in keys {
            let versions = self.volatile.versions.entry(key).or_default();
            versions.members = versions.members.max(1);
        }
    }

    /// Keys that the present execution destroys.
    pub fn keys_to_destroy(&self) -> Vec<Owner> {
        let Some(execution) = &self.core.executing else {
            return vec![];
        };
        let mut keys: BTreeSet<Owner> =
            execution.stages.iter().copied().map(Owner::Stage).collect();
        for id in &execution.ids {
            let request = self.deletions.get(id).map(|d| &d.request);
            let erased = request.filter(|r| r.erases_subject());
            keys.extend(erased.and_then(|r| r.subject().cloned()).map(Owner::Person));
        }
        let kept = execution.kept.and_then(|id| self.kept.get(&id));
        keys.extend(
            kept.into_iter()
                .flat_map(|k| k.0.keys().cloned().map(Owner::Person)),
        );
        keys.into_iter().collect()
    }
}

/// What the log commits to of a person, per shard.
type MemberRecords = BTreeMap<ShardKey, (lethe_proto::ids::Digest, u16, [u8; 32])>;

fn member_records(person: &Person) -> MemberRecords {
    let mut out = BTreeMap::new();
    let Some(profile) = person.profile.as_ref().filter(|p| p.erase.is_none()) else {
        return out;
    };
    for epoch in profile.places.keys() {
        if let Some(place) = profile.trained(*epoch)
            && let Some(shard) = place.shard
        {
            let key = ShardKey {
                epoch: *epoch,
                shard,
            };
            out.insert(key, (place.commitment, place.slice, profile.salt));
        }
    }
    out
}

fn run_generations(shard: &Shard) -> Vec<(u32, bool)> {
    let replay = shard.replay.as_ref().filter(|r| r.runs());
    let replay = replay.map(|r| (r.run.generation, false));
    std::iter::once((shard.run.generation, true))
        .chain(replay)
        .collect()
}

pub(crate) fn shard_key(epoch: EpochNo, k: usize) -> ShardKey {
    ShardKey {
        epoch,
        shard: lethe_proto::ids::ShardId(k as u16),
    }
}
