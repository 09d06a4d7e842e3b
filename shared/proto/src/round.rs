//! The state machine of one round: who was asked, who answered, when it ends. Times are arguments,
//! in milliseconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{RoundKey, SubjectId};

/// Where one participant of a round stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Chosen, has not asked for work yet.
    Chosen,
    /// Was handed the task.
    Training,
    /// Its update is stored.
    Done,
    /// It said that it does not take part.
    Declined,
}

/// How a round ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Aggregate these contributions of its cohort (sorted), and the late ones.
    Aggregate(Vec<SubjectId>),
    /// The deadline passed with fewer than `needed` contributions: try the round again.
    Starved {
        /// Contributions that arrived.
        got: usize,
        /// Contributions needed.
        needed: usize,
    },
}

/// An update that cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// The subject is not in the cohort.
    NotChosen,
    /// Its update is stored already: acknowledge again, count once.
    Duplicate,
    /// The deadline has passed.
    Late,
}

/// One round of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    key: RoundKey,
    cohort: BTreeMap<SubjectId, Standing>,
    deadline: u64,
    needed: usize,
    goal: usize,
    /// Updates of earlier rounds that count in this one.
    late: usize,
}

impl Round {
    /// Opens a round for `cohort`; it closes when all have answered, or at `deadline` with at least
    /// `needed` answers.
    pub fn open(
        key: RoundKey,
        cohort: impl IntoIterator<Item = SubjectId>,
        deadline: u64,
        needed: usize,
    ) -> Self {
        let cohort: BTreeMap<_, _> = cohort.into_iter().map(|s| (s, Standing::Chosen)).collect();
        let needed = needed.clamp(1, cohort.len().max(1));
        Self {
            key,
            cohort,
            deadline,
            needed,
            goal: usize::MAX,
            late: 0,
        }
    }

    /// Closes as soon as `goal` of the cohort have answered (over-selection; Bonawitz et al., MLSys
    /// 2019): more are asked than are needed, and the slowest are not waited for.
    pub fn with_goal(mut self, goal: usize) -> Self {
        self.goal = goal.max(self.needed);
        self
    }

    /// So many updates of earlier rounds count in this one, beside those of its own cohort.
    pub fn count_late(&mut self, updates: usize) {
        self.late = updates;
    }

    /// The round has closed, but updates of it still count in later ones: there is no deadline any
    /// more.
    pub fn linger(mut self) -> Self {
        self.deadline = u64::MAX;
        self
    }

    /// Which round.
    pub fn key(&self) -> RoundKey {
        self.key
    }

    /// When it closes.
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Whether `subject` should be given the task now. A client that lost its connection may ask
    /// again and gets the task again.
    pub fn offers(&self, subject: &SubjectId, now: u64) -> bool {
        let standing = self.cohort.get(subject);
        now < self.deadline && matches!(standing, Some(Standing::Chosen | Standing::Training))
    }

    /// The same, and marks it as training.
    pub fn offer(&mut self, subject: &SubjectId, now: u64) -> bool {
        let offers = self.offers(subject, now);
        if let Some(standing) = self.cohort.get_mut(subject).filter(|_| offers) {
            *standing = Standing::Training;
        }
        offers
    }

    /// Whether an update of `subject` would be taken.
    pub fn check(&self, subject: &SubjectId, now: u64) -> Result<(), NotTaken> {
        match self.cohort.get(subject) {
            None => Err(NotTaken::NotChosen),
            Some(Standing::Done) => Err(NotTaken::Duplicate),
            Some(_) if now >= self.deadline => Err(NotTaken::Late),
            Some(_) => Ok(()),
        }
    }

    /// Records that the update of `subject` is stored.
    pub fn stored(&mut self, subject: &SubjectId) {
        if let Some(s) = self.cohort.get_mut(subject) {
            *s = Standing::Done;
        }
    }

    /// Records that `subject` does not take part: nobody waits for it, and it is not asked again
    /// until the round is extended.
    pub fn decline(&mut self, subject: &SubjectId) {
        if let Some(s) = self
            .cohort
            .get_mut(subject)
            .filter(|s| **s != Standing::Done)
        {
            *s = Standing::Declined;
        }
    }

    /// Takes a deleted or revoked subject out: its contribution is dropped and nobody waits for it.
    pub fn remove(&mut self, subject: &SubjectId) {
        self.cohort.remove(subject);
        self.needed = self.needed.clamp(1, self.cohort.len().max(1));
    }

    /// Who was asked.
    pub fn members(&self) -> impl Iterator<Item = &SubjectId> {
        self.cohort.keys()
    }

    /// Clients that have not answered.
    pub fn waiting(&self) -> usize {
        self.cohort
            .values()
            .filter(|s| matches!(s, Standing::Chosen | Standing::Training))
            .count()
    }

    /// Who was asked and has neither answered nor declined.
    pub fn silent(&self) -> impl Iterator<Item = &SubjectId> {
        let silent = |s: &Standing| matches!(s, Standing::Chosen | Standing::Training);
        let members = self.cohort.iter().filter(move |(_, s)| silent(s));
        members.map(|(id, _)| id)
    }

    /// How the round ended, if it has.
    pub fn outcome(&self, now: u64) -> Option<Outcome> {
        let done = self.cohort.iter().filter(|(_, s)| **s == Standing::Done);
        let got = done.clone().count() + self.late;
        let all = self.waiting() == 0 && (got >= self.needed || self.cohort.is_empty());
        if got < self.goal && !all && now < self.deadline {
            return None;
        }
        if got >= self.goal || all || got >= self.needed {
            return Some(Outcome::Aggregate(done.map(|(id, _)| id.clone()).collect()));
        }
        Some(Outcome::Starved {
            got,
            needed: self.needed,
        })
    }

    /// Gives a starved round a new deadline; what is stored stays stored, and who declined is asked
    /// again.
    pub fn extend(&mut self, deadline: u64) {
        self.cohort
            .values_mut()
            .filter(|s| **s == Standing::Declined)
            .for_each(|s| *s = Standing::Chosen);
        self.deadline = deadline;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardId;

    fn subject(i: u32) -> SubjectId {
        SubjectId::new(i.to_string()).expect("a number")
    }

    fn round() -> Round {
        let key = RoundKey {
            epoch: crate::ids::EpochNo::FIRST,
            shard: ShardId(0),
            generation: 1,
            stage: 1,
            round: 0,
        };
        Round::open(key, (0..3).map(subject), 100, 2)
    }

    #[test]
    fn closes_early_when_all_answered() {
        let mut r = round();
        for i in 0..3 {
            assert_eq!(r.outcome(10), None);
            assert!(r.offer(&subject(i), 5));
            assert_eq!(r.check(&subject(i), 9), Ok(()));
            r.stored(&subject(i));
        }
        assert_eq!(
            r.outcome(10),
            Some(Outcome::Aggregate((0..3).map(subject).collect()))
        );
    }

    #[test]
    fn a_lost_client_costs_only_itself() {
        let mut r = round();
        r.offer(&subject(2), 1);
        r.stored(&subject(0));
        r.stored(&subject(1));
        assert_eq!(r.outcome(99), None);
        assert_eq!(
            r.outcome(100),
            Some(Outcome::Aggregate(vec![subject(0), subject(1)]))
        );
        assert_eq!(r.check(&subject(2), 100), Err(NotTaken::Late));
        assert_eq!(r.check(&subject(0), 100), Err(NotTaken::Duplicate));
        assert_eq!(r.check(&subject(7), 1), Err(NotTaken::NotChosen));
    }

    #[test]
    fn starves_and_goes_on() {
        let mut r = round();
        r.stored(&subject(0));
        assert_eq!(r.outcome(100), Some(Outcome::Starved { got: 1, needed: 2 }));
        r.extend(200);
        assert!(r.offer(&subject(1), 150));
        assert!(
            !r.offer(&subject(0), 150),
            "a stored update is not asked for again"
        );
        r.stored(&subject(1));
        assert_eq!(
            r.outcome(200),
            Some(Outcome::Aggregate(vec![subject(0), subject(1)]))
        );
    }

    #[test]
    fn the_slowest_are_not_waited_for() {
        let mut r = round().with_goal(2);
        r.stored(&subject(2));
        assert_eq!(r.outcome(10), None);
        r.stored(&subject(0));
        assert_eq!(
            r.outcome(10),
            Some(Outcome::Aggregate(vec![subject(0), subject(2)]))
        );
    }

    #[test]
    fn nobody_waits_for_who_declined() {
        let mut r = round();
        r.stored(&subject(0));
        r.decline(&subject(2));
        assert_eq!(r.outcome(10), None);
        r.stored(&subject(1));
        assert_eq!(
            r.outcome(10),
            Some(Outcome::Aggregate(vec![subject(0), subject(1)]))
        );
        // Too few: the deadline decides, and then all are asked again.
        let mut r = round();
        r.stored(&subject(0));
        r.decline(&subject(1));
        r.decline(&subject(2));
        r.decline(&subject(0));
        assert!(!r.offer(&subject(1), 5));
        assert_eq!(r.outcome(99), None);
        assert_eq!(r.outcome(100), Some(Outcome::Starved { got: 1, needed: 2 }));
        r.extend(200);
        assert!(r.offer(&subject(1), 150));
    }

    #[test]
    fn removing_a_subject_drops_its_contribution() {
        let mut r = round();
        (0..3).for_each(|i| r.stored(&subject(i)));
        r.remove(&subject(1));
        assert_eq!(
            r.outcome(1),
            Some(Outcome::Aggregate(vec![subject(0), subject(2)]))
        );
        r.remove(&subject(0));
        r.remove(&subject(2));
        assert_eq!(r.outcome(1), Some(Outcome::Aggregate(vec![])));
    }
}
