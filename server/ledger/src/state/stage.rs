//! Who contributed to a stage. Sealed under the stage's key: a rollback destroys it.

use std::collections::BTreeMap;

use lethe_proto::ids::SubjectId;
use serde::{Deserialize, Serialize};

use crate::ids::{Contributor, ValueRef};

/// What a stage holds of people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Updates that are stored and have not counted yet.
    pub stored: BTreeMap<Contributor, ValueRef>,
    /// Whose updates counted in each closed round, in the order of subjects.
    pub rounds: BTreeMap<u16, Vec<Contributor>>,
    /// Clients' own parameters, in mode `personalized`.
    pub personal: BTreeMap<SubjectId, ValueRef>,
}

impl Stage {
    /// The round in which an update of a subject was begun that counted last, or will count in
    /// round `now`.
    pub fn counted_of(&self, subject: &SubjectId, now: u16) -> Option<u16> {
        let of = (subject.clone(), 0)..(subject.clone(), now);
        let waits = self
            .stored
            .range(of)
            .next_back()
            .map(|((_, begun), _)| *begun);
        let counted = self.rounds.values().filter_map(|contributors| {
            let after = contributors.partition_point(|(s, _)| s <= subject);
            let (s, begun) = contributors.get(after.checked_sub(1)?)?;
            (s == subject).then_some(*begun)
        });
        waits.max(counted.max())
    }

    /// Everything that it refers to.
    pub fn values(&self) -> impl Iterator<Item = &ValueRef> {
        self.stored.values().chain(self.personal.values())
    }
}
