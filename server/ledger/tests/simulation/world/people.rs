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
    /// Their phones cannot train again what they trained before.
    anew: BTreeSet<SubjectId>,
}

impl People {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            dice: Seed::from_u64(seed)
                .derive("ledger simulation of people", &[])
                .rng(),
            restricted: BTreeSet::new(),
            anew: BTreeSet::new(),
        }
    }

    /// A replay asks for what is gone.
    pub(super) fn is_gone(&self, subject: &SubjectId) -> bool {
        self.anew.contains(subject)
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
        for _ in 0..self.people.dice.below(3) {
            let when = self.people.sometime();
            self.at(when, Ev::ReplayWithoutMissing);
        }
        if self.people.dice.below(3) == 0 {
            let n = self.people.dice.below(self.devices.len());
            self.people.anew.insert(self.devices[n].subject.clone());
        }
        for _ in 0..self.people.dice.below(3) {
            let when = self.people.sometime();
            self.at(when, Ev::Hold);
            let until = when + self.people.dice.below(20_000) as u64;
            self.at(until, Ev::Release);
        }
        self.at(QUIET + 2000, Ev::Release);
    }

    /// An operator holds a shard, or releases all that are held.
    pub(super) fn hold(&mut self, holds: bool) {
        if !self.up {
            if !holds {
                self.at(self.now + 500, Ev::Release);
            }
            return;
        }
        let shards: Vec<ShardKey> = match holds {
            true => {
                let all: Vec<ShardKey> = self.state.shards().map(|(k, _, _)| k).collect();
                let one = self.people.dice.below(all.len());
                vec![all[one]]
            }
            false => {
                let held = self.state.held_shards(self.time()).into_iter();
                held.map(|h| ShardKey {
                    epoch: h.epoch,
                    shard: h.shard,
                })
                .collect()
            }
        };
        for shard in shards {
            let by = self.operator(0);
            let fresh = self.fresh();
            let command = match holds {
                true => Command::HoldShard { shard, by, fresh },
                false => Command::ReleaseShard { shard, by, fresh },
            };
            match self.run(command, vec![]) {
                Ok(_) if holds => self.count.held += 1,
                Ok(_) => {}
                // The write is in doubt, or the operator is too quick.
                Err(e) if matches!(e.code, Refusal::Internal | Refusal::Busy) && !holds => {
                    self.at(self.now + 1000, Ev::Release);
                }
                Err(_) => {}
            }
        }
    }

    /// Nothing is trained in a shard that is held.
    pub(crate) fn holds_hold(&self) {
        for held in self.state.held_shards(self.time()) {
            let shard = ShardKey {
                epoch: held.epoch,
                shard: held.shard,
            };
            let opens = due(&self.state, self.time()).into_iter().any(|d| match d {
                Duty::OpenRound(run) => run.shard_key() == shard && self.state.is_live(&run),
                _ => false,
            });
            assert!(!opens, "{}: {shard:?} is held and trained", self.tell());
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

impl World {
    /// A replay that leaves out the stages which need somebody who is missing.
    pub(super) fn replay_without_missing(&mut self) {
        if !self.up {
            return self.at(self.now + 500, Ev::ReplayWithoutMissing);
        }
        let shard = lethe_proto::ids::ShardId(self.people.dice.below(2) as u16);
        let Some(shard) = self.state.shard_of_wire(shard) else {
            return;
        };
        let by = self.operator(0);
        let fresh = self.fresh();
        let command = Command::ReplayWithoutMissing { shard, by, fresh };
        let personal = self.terms.aggregation == Aggregation::Personalized;
        if self.run(command, vec![]).is_err() && self.now < QUIET && !personal {
            self.at(self.now + 3000, Ev::ReplayWithoutMissing);
        }
    }

    /// What a replay found of a stage.
    pub(super) fn stages_found(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::StageReplayed {
                    replayed, recorded, ..
                } => {
                    assert_eq!(replayed, recorded, "{}: a stage differs", self.tell());
                    self.count.stages += 1;
                }
                Event::StageUnproven { .. } => self.count.unproven += 1,
                _ => {}
            }
        }
    }
}
