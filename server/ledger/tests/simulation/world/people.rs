//! Restrictions that are lifted, and the people whose they are. What happens here is drawn from
//! dice of its own, so that the seeds of everything else stay what they are.

use std::collections::BTreeSet;

use lethe_learn::seed::{Seed, Stream};
use lethe_ledger::*;
use lethe_proto::deletion::Proposal;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::Refusal;

use super::{Ev, QUIET, World};

pub(crate) struct People {
    pub(crate) dice: Stream,
    /// Whose data was restricted when it was looked at last.
    restricted: BTreeSet<SubjectId>,
}

impl People {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            dice: Seed::from_u64(seed)
                .derive("ledger simulation of people", &[])
                .rng(),
            restricted: BTreeSet::new(),
        }
    }

    fn sometime(&mut self) -> u64 {
        let busy = self.dice.below(2) == 0;
        let most = if busy { 20_000 } else { QUIET as usize - 1000 };
        1000 + self.dice.below(most) as u64
    }
}

impl World {
    pub(super) fn lifts(&mut self) {
        for _ in 0..self.people.dice.below(4) {
            let when = self.people.sometime();
            self.at(when, Ev::Lift);
        }
    }

    /// An operator lifts somebody's restriction, if there is one.
    pub(super) fn lift(&mut self) {
        if !self.up {
            return self.at(self.now + 500, Ev::Lift);
        }
        let open = self.state.restriction_list(0).into_iter();
        let open: Vec<SubjectId> = open
            .filter(|r| r.lifted.is_none())
            .map(|r| r.subject)
            .collect();
        let Some(subject) = open.first().cloned() else {
            if self.now < QUIET {
                self.at(self.now + 5000, Ev::Lift);
            }
            return;
        };
        let by = self.operator(0);
        let fresh = self.fresh();
        let asked = self.run(
            Command::Propose {
                what: Proposal::LiftRestriction(subject),
                confirmed: true,
                note: None,
                by,
                secret: Digest::default(),
                plans: vec![],
                fresh,
            },
            vec![],
        );
        match asked {
            Ok(_) => self.at(self.now + 2000, Ev::Approve),
            Err(e) if matches!(e.code, Refusal::Busy | Refusal::Internal) && self.now < QUIET => {
                self.at(self.now + 1000, Ev::Lift);
            }
            Err(_) => {}
        }
    }

    /// Restrictions that these events, which are durable, lift.
    pub(super) fn lifts_in(&mut self, events: &[Event]) {
        for event in events {
            if let Event::Readmitted { subject, .. } = event {
                self.count.lifted += 1;
                self.people.restricted.remove(subject);
            }
        }
    }

    /// A backup was restored: who knows what it knows.
    pub(super) fn forget_restrictions(&mut self) {
        self.people.restricted.clear();
    }

    /// Whose data is restricted stays so until it is lifted, or everything is erased; and nobody
    /// trains on it, or takes it for lists.
    pub(crate) fn restrictions_hold(&mut self) {
        if self.state.unexecuted() || !self.state.core().lost.is_empty() {
            return;
        }
        let mut now = BTreeSet::new();
        for (subject, person) in self.state.people() {
            let Some(profile) = &person.profile else {
                continue;
            };
            if !profile.restricted {
                let before = self.people.restricted.contains(subject);
                assert!(!before, "{}: {subject} is in use", self.tell());
                continue;
            }
            now.insert(subject.clone());
            for device in person.certificates() {
                let may = self.state.may_contribute(device);
                assert!(may.is_err(), "{}: {subject} contributes", self.tell());
            }
        }
        for (key, _, _) in self.state.shards() {
            let mut members = self.state.members(key);
            let used = members.find(|m| now.contains(m.subject));
            assert!(used.is_none(), "{}: {used:?} in {key:?}", self.tell());
        }
        self.people.restricted = now;
    }
}
