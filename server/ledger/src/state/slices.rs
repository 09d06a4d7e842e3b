//! The snapshot: the set of slices, each as bytes.

use std::sync::Arc;

use lethe_proto::codec;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::{Logged, State};
use crate::ids::{Owner, SliceId, Table, ValueRef};

/// Largest slice.
const MAX_SLICE: usize = 256 << 20;

/// A slice that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("slice {id:?} of the state cannot be read: {why}")]
pub struct SliceError {
    /// Which.
    pub id: SliceId,
    /// Why.
    pub why: String,
}

fn read<T: DeserializeOwned>(id: &SliceId, bytes: &[u8]) -> Result<T, SliceError> {
    codec::from_bytes(bytes, MAX_SLICE).map_err(|e| SliceError {
        id: id.clone(),
        why: e.to_string(),
    })
}

impl State {
    /// All slices that there are.
    pub fn slices(&self) -> Vec<SliceId> {
        let mut out = vec![SliceId::Core];
        out.extend(self.epochs.keys().copied().map(SliceId::Epoch));
        out.extend(self.releases.keys().copied().map(SliceId::Release));
        out.extend(self.actions.keys().copied().map(SliceId::Action));
        out.extend(self.people.keys().cloned().map(SliceId::Person));
        out.extend(self.stages.keys().copied().map(SliceId::Stage));
        out.extend(self.deletions.keys().copied().map(SliceId::Deletion));
        out.extend(self.kept.keys().copied().map(SliceId::Kept));
        out.extend(self.proposals.keys().copied().map(SliceId::Proposal));
        out.extend(self.lists.keys().copied().map(SliceId::Lists));
        out.extend(self.lives.keys().copied().map(SliceId::Life));
        out.extend(self.catalogues.keys().copied().map(SliceId::Catalogue));
        out.extend(self.lifted.keys().copied().map(SliceId::Lifted));
        out.extend(self.proofs.keys().copied().map(SliceId::Proof));
        out.extend(self.holds.keys().copied().map(SliceId::Hold));
        let logged = self.logged != Logged::default();
        out.extend(logged.then_some(SliceId::Logged));
        out
    }

    /// A slice as bytes; none when it is not there (any more): the stored one is to be removed.
    pub fn slice(&self, id: &SliceId) -> Option<Vec<u8>> {
        let bytes = match id {
            SliceId::Core => codec::to_bytes(&self.core),
            SliceId::Epoch(no) => codec::to_bytes(self.epochs.get(no)?),
            SliceId::Release(no) => codec::to_bytes(self.releases.get(no)?),
            SliceId::Action(no) => codec::to_bytes(self.actions.get(no)?),
            SliceId::Person(s) => codec::to_bytes(self.people.get(s)?.as_ref()),
            SliceId::Stage(key) => codec::to_bytes(self.stages.get(key)?),
            SliceId::Deletion(no) => codec::to_bytes(self.deletions.get(no)?),
            SliceId::Kept(no) => codec::to_bytes(self.kept.get(no)?),
            SliceId::Proposal(no) => codec::to_bytes(self.proposals.get(no)?),
            SliceId::Lists(no) => codec::to_bytes(self.lists.get(no)?),
            SliceId::Life(no) => codec::to_bytes(self.lives.get(no)?),
            SliceId::Catalogue(no) => codec::to_bytes(self.catalogues.get(no)?),
            SliceId::Lifted(no) => codec::to_bytes(self.lifted.get(no)?),
            SliceId::Proof(key) => codec::to_bytes(self.proofs.get(key)?),
            SliceId::Hold(key) => codec::to_bytes(self.holds.get(key)?),
            SliceId::Logged => codec::to_bytes(&self.logged),
        };
        bytes.ok()
    }

    /// Takes a slice of a snapshot; call [`State::finish`] after the last.
    pub fn insert(&mut self, id: SliceId, bytes: &[u8]) -> Result<(), SliceError> {
        match &id {
            SliceId::Core => self.core = read(&id, bytes)?,
            SliceId::Epoch(no) => drop(self.epochs.insert(*no, read(&id, bytes)?)),
            SliceId::Release(no) => drop(self.releases.insert(*no, read(&id, bytes)?)),
            SliceId::Action(no) => drop(self.actions.insert(*no, read(&id, bytes)?)),
            SliceId::Person(s) => {
                let person = Arc::new(read(&id, bytes)?);
                drop(self.people.insert(s.clone(), person));
            }
            SliceId::Stage(key) => drop(self.stages.insert(*key, read(&id, bytes)?)),
            SliceId::Deletion(no) => drop(self.deletions.insert(*no, read(&id, bytes)?)),
            SliceId::Kept(no) => drop(self.kept.insert(*no, read(&id, bytes)?)),
            SliceId::Proposal(no) => drop(self.proposals.insert(*no, read(&id, bytes)?)),
            SliceId::Lists(no) => drop(self.lists.insert(*no, read(&id, bytes)?)),
            SliceId::Life(no) => drop(self.lives.insert(*no, read(&id, bytes)?)),
            SliceId::Catalogue(no) => drop(self.catalogues.insert(*no, read(&id, bytes)?)),
            SliceId::Lifted(no) => drop(self.lifted.insert(*no, read(&id, bytes)?)),
            SliceId::Proof(key) => drop(self.proofs.insert(*key, read(&id, bytes)?)),
            SliceId::Hold(key) => drop(self.holds.insert(*key, read(&id, bytes)?)),
            SliceId::Logged => self.logged = read(&id, bytes)?,
        }
        Ok(())
    }

    /// Removes what an owner's key has sealed, as if it had never been read.
    pub fn forget_owner(&mut self, owner: &Owner) {
        self.remove_owner(owner);
    }

    /// Every value that the state refers to, with the keys that seal it. Values that are stored and
    /// not among these are orphans of a write that was cut off.
    pub fn values(&self) -> Vec<(ValueRef, Vec<Owner>)> {
        let mut out = vec![];
        for (key, _, shard) in self.shards() {
            let replay = shard.replay.as_ref().filter(|r| r.runs());
            for run in std::iter::once(&shard.run).chain(replay.map(|r| &r.run)) {
                let values = run.values(key, 1).into_iter();
                out.extend(values.map(|(v, stage)| (v.clone(), vec![Owner::Stage(stage)])));
            }
        }
        for (key, stage) in &self.stages {
            for value in stage.values() {
                let mut owners = vec![Owner::Stage(*key)];
                if value.table == Table::Update {
                    let whose = stage.stored.iter().find(|(_, v)| *v == value);
                    owners.extend(whose.map(|((s, _), _)| Owner::Person(s.clone())));
                }
                out.push((value.clone(), owners));
            }
        }
        for (subject, person) in &self.people {
            let owner = || vec![Owner::Person(subject.clone())];
            out.extend(person.values().map(|v| (v.clone(), owner())));
        }
        for (id, deletion) in &self.deletions {
            let receipt = deletion.receipt.clone();
            out.extend(receipt.map(|v| (v, vec![Owner::Deletion(*id)])));
        }
        let versions = self.catalogues.values();
        out.extend(versions.map(|r| (r.changes.clone(), vec![Owner::Public])));
        out
    }
}
