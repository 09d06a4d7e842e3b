//! What is durable: slices, events, values and keys, and what a rebuilt state is made of.

use std::collections::{BTreeMap, BTreeSet};

use lethe_ledger::{Event, Owner, SliceId, State, ValueRef, apply};

/// A key of this name: names of people come back with another key.
pub(crate) type KeyNo = u64;

/// A value, and the keys that seal it.
pub(crate) type Value = (Vec<(Owner, KeyNo)>, Vec<f32>);

/// A data folder.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    pub(crate) slices: BTreeMap<SliceId, (KeyNo, Vec<u8>)>,
    pub(crate) events: Vec<(Owner, KeyNo, Event)>,
    pub(crate) values: BTreeMap<ValueRef, Value>,
    pub(crate) keys: BTreeMap<Owner, KeyNo>,
    pub(crate) destroyed: BTreeSet<Owner>,
    pub(crate) next: KeyNo,
}

impl Disk {
    /// The key of a name, made when there is none. A name that was destroyed comes back for those
    /// who stay, and for nothing else.
    pub(crate) fn key(&mut self, owner: &Owner, may_return: bool) -> KeyNo {
        if *owner == Owner::Public {
            return 0;
        }
        if let Some(key) = self.keys.get(owner) {
            return *key;
        }
        assert!(
            may_return || !self.destroyed.contains(owner),
            "written under a destroyed name: {owner:?}"
        );
        self.next += 1;
        self.keys.insert(owner.clone(), self.next);
        self.next
    }

    pub(crate) fn lives(&self, owner: &Owner, key: KeyNo) -> bool {
        *owner == Owner::Public || self.keys.get(owner) == Some(&key)
    }

    pub(crate) fn destroy(&mut self, owner: &Owner) {
        self.keys.remove(owner);
        self.destroyed.insert(owner.clone());
        let keys = &self.keys;
        let lives = |(o, k): &(Owner, KeyNo)| keys.get(o) == Some(k);
        self.values
            .retain(|_, (owners, _)| owners.iter().all(lives));
    }

    pub(crate) fn write(&mut self, events: &[Event], values: &[(ValueRef, Vec<Owner>, Vec<f32>)]) {
        for event in events.iter().filter(|e| !e.is_volatile()) {
            let owner = event.owner();
            let returns = matches!(event, Event::PersonKept { .. } | Event::PersonKnown { .. });
            let key = self.key(&owner, returns);
            // As it is on disk: every event comes back from its bytes.
            let bytes = lethe_proto::codec::to_bytes(event).unwrap();
            let back: Event = lethe_proto::codec::from_bytes(&bytes, 1 << 24).unwrap();
            assert_eq!(back, *event);
            self.events.push((owner, key, back));
        }
        for (value, owners, content) in values {
            let keyed = owners.iter().map(|o| (o.clone(), self.key(o, false)));
            let keyed: Vec<(Owner, KeyNo)> = keyed.collect();
            let known = self.values.insert(value.clone(), (keyed, content.clone()));
            assert!(known.is_none(), "an id is used twice: {value:?}");
        }
    }

    pub(crate) fn read(&self, value: &ValueRef) -> Option<&Vec<f32>> {
        let (owners, content) = self.values.get(value)?;
        owners
            .iter()
            .all(|(o, k)| self.lives(o, *k))
            .then_some(content)
    }

    /// Writes the slices that have changed; the events before are not needed any more.
    pub(crate) fn snapshot(&mut self, state: &mut State) {
        for id in std::mem::take(&mut state.changed) {
            match state.slice(&id) {
                Some(bytes) => {
                    let key = self.key(&id.owner(), false);
                    self.slices.insert(id, (key, bytes));
                }
                None => drop(self.slices.remove(&id)),
            }
        }
        self.events.clear();
    }

    /// The state that the surviving slices and events give.
    pub(crate) fn rebuild(&self) -> State {
        let mut state = State::default();
        for (id, (key, bytes)) in &self.slices {
            if self.lives(&id.owner(), *key) {
                state.insert(id.clone(), bytes).unwrap();
            }
        }
        state.finish();
        for (owner, key, event) in &self.events {
            if self.lives(owner, *key) {
                apply(&mut state, event);
            }
        }
        state
    }
}

/// The slices of a state, as bytes.
pub(crate) fn contents(state: &State) -> BTreeMap<SliceId, Vec<u8>> {
    let all = state.slices().into_iter();
    all.filter_map(|id| Some((id.clone(), state.slice(&id)?)))
        .collect()
}

/// The first slice in which two states differ.
pub(crate) fn difference(a: &State, b: &State) -> Option<SliceId> {
    let (a, b) = (contents(a), contents(b));
    let all = a.keys().chain(b.keys());
    all.into_iter().find(|id| a.get(*id) != b.get(*id)).cloned()
}
