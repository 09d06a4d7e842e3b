//! What one certificate may ask in a time, and what one person or operator may have in work at
//! once: nobody's share grows by asking more often.
//!
//! Who asks faster than the pace is answered later, and beyond [`LONGEST`] refused: a device that
//! polls without a pause, or says hello again and again, slows itself down and nobody else.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lethe_proto::admin::AdminRequest;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::{Refusal, Request};
use lethe_transport::rate::Rates;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::CoordinatorError;

/// Longest time that a request is kept waiting for its turn.
const LONGEST: Duration = Duration::from_secs(10);
/// Passes, and what goes with them, that a person may have in work at once.
const PASSES: usize = 6;
/// Exports, searches and the like that an operator may have in work at once, and all together.
const HEAVY: usize = 1;
const HEAVY_IN_ALL: usize = 2;

/// How often something may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// It only reads, or waits.
    Asks,
    /// It may write to the disk.
    Writes,
    /// An operator's.
    Operates,
}

impl Pace {
    /// How often a request may come; none: rounds and places bound it.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        match request {
            Request::Forward { .. } | Request::Backward { .. } | Request::Update { .. } => None,
            Request::Admin(_) => Some(Self::Operates),
            Request::Enrol { .. }
            | Request::Hello { .. }
            | Request::Join { .. }
            | Request::JoinEpoch { .. }
            | Request::Errors { .. }
            | Request::Erased { .. }
            | Request::Decline { .. }
            | Request::Lacks { .. }
            | Request::Renew { .. }
            | Request::Contribute(_)
            | Request::ContributeSealed(_)
            | Request::Uncontribute
            | Request::Tally(_) => Some(Self::Writes),
            _ => Some(Self::Asks),
        }
    }
}

/// The paces of all certificates.
#[derive(Debug)]
pub(crate) struct Paces {
    asks: Rates<Digest>,
    writes: Rates<Digest>,
    operates: Rates<Digest>,
}

impl Default for Paces {
    fn default() -> Self {
        let of = |burst, period| Rates::new(burst, Duration::from_millis(period), LONGEST);
        Self {
            asks: of(600, 10),
            writes: of(120, 250),
            operates: of(2000, 5),
        }
    }
}

impl Paces {
    /// Waits for a request's turn.
    ///
    /// # Errors
    /// [`Refusal::Busy`] where the wait would be too long.
    pub(crate) async fn turn(
        &self,
        certificate: Digest,
        pace: Pace,
    ) -> Result<(), CoordinatorError> {
        let rates = self.of(pace);
        match rates.wait(certificate, Instant::now()) {
            Ok(Duration::ZERO) => Ok(()),
            Ok(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            Err(wait) => {
                let (burst, per_second) = rates.numbers();
                let message = format!(
                    "this certificate asks too often: expected at most {burst} such requests at \
                     once and {per_second} a second after that; try again in {} s",
                    wait.as_secs() + 1
                );
                Err(CoordinatorError::refuse(Refusal::Busy, message))
            }
        }
    }

    fn of(&self, pace: Pace) -> &Rates<Digest> {
        match pace {
            Pace::Asks => &self.asks,
            Pace::Writes => &self.writes,
            Pace::Operates => &self.operates,
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counts only: they are as good after a panic.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What somebody has in work.
#[derive(Debug)]
struct Share {
    in_work: usize,
    /// Of what all share, so much runs for them at once.
    running: Arc<Semaphore>,
}

/// What everybody has in work, by who it is.
#[derive(Debug)]
pub(crate) struct Shares<K: Hash + Eq + Clone> {
    all: Arc<Mutex<HashMap<K, Share>>>,
    /// In work at once for one.
    most: usize,
    /// Running at once for one.
    run: usize,
    in_all: usize,
}

/// One thing in work; it is given back when dropped.
#[derive(Debug)]
pub(crate) struct InWork<K: Hash + Eq + Clone> {
    all: Arc<Mutex<HashMap<K, Share>>>,
    who: K,
}

impl<K: Hash + Eq + Clone> Drop for InWork<K> {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        if let Some(share) = all.get_mut(&self.who) {
            share.in_work -= 1;
            if share.in_work == 0 {
                all.remove(&self.who);
            }
        }
    }
}

impl Shares<SubjectId> {
    /// Of the passes over the middle layers: of `passes` at once, half are left to others.
    pub(crate) fn of_passes(passes: usize) -> Self {
        Self::new(PASSES, passes.div_ceil(2).max(1), usize::MAX)
    }

    /// Of gradients that come back: one, and the same sent again.
    pub(crate) fn of_backwards() -> Self {
        Self::new(2, 2, usize::MAX)
    }
}

impl Shares<Digest> {
    /// Of what takes an operator's request long.
    pub(crate) fn of_heavy() -> Self {
        Self::new(HEAVY, HEAVY, HEAVY_IN_ALL)
    }
}

impl<K: Hash + Eq + Clone> Shares<K> {
    fn new(most: usize, run: usize, in_all: usize) -> Self {
        Self {
            all: Arc::default(),
            most,
            run,
            in_all,
        }
    }

    /// Begins something for somebody; none: they have enough in work, or all have.
    pub(crate) fn begin(&self, who: &K) -> Option<InWork<K>> {
        let mut all = lock(&self.all);
        let together: usize = all.values().map(|s| s.in_work).sum();
        let known = all.get(who).map_or(0, |s| s.in_work);
        if known >= self.most || together >= self.in_all {
            return None;
        }
        let share = all.entry(who.clone()).or_insert_with(|| Share {
            in_work: 0,
            running: Arc::new(Semaphore::new(self.run)),
        });
        share.in_work += 1;
        Some(InWork {
            all: self.all.clone(),
            who: who.clone(),
        })
    }

    /// Waits until what somebody has in work may run. Who has begun nothing need not wait.
    pub(crate) async fn run(&self, who: &K) -> Option<OwnedSemaphorePermit> {
        let running = lock(&self.all).get(who).map(|s| s.running.clone())?;
        running.acquire_owned().await.ok()
    }
}

/// Whether a request takes long, and much memory.
pub(crate) fn is_heavy(request: &AdminRequest) -> bool {
    matches!(
        request,
        AdminRequest::Scan { .. }
            | AdminRequest::Audit { .. }
            | AdminRequest::ListsAudit { .. }
            | AdminRequest::ListsReplay
            | AdminRequest::ListsForecast { .. }
            | AdminRequest::LineageOfRelease { .. }
            | AdminRequest::EpochStart { .. }
            | AdminRequest::Forget { dry_run: true, .. }
    )
}

/// What is said to whom has enough in work.
pub(crate) fn enough(what: &str) -> CoordinatorError {
    let message = format!("{what}: wait for an answer first, then try again");
    CoordinatorError::refuse(Refusal::Busy, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_without_a_pause_is_slowed_down_and_nobody_else() {
        let paces = Paces::default();
        let now = Instant::now();
        let [hostile, honest] = [Digest([1; 32]), Digest([2; 32])];
        for pace in [Pace::Asks, Pace::Writes, Pace::Operates] {
            let rates = paces.of(pace);
            let mut free = 0;
            while rates.wait(hostile, now) == Ok(Duration::ZERO) {
                free += 1;
            }
            assert_eq!(free, rates.numbers().0, "{pace:?}");
            while rates.wait(hostile, now).is_ok() {}
            assert_eq!(rates.wait(honest, now), Ok(Duration::ZERO));
        }
    }

    #[tokio::test]
    async fn one_person_runs_half_of_the_passes_and_keeps_few_in_work() {
        let shares = Shares::of_passes(2);
        let [one, other] = ["a", "b"].map(|id| SubjectId::new(id).expect("an id"));
        let held: Vec<_> = (0..PASSES).map(|_| shares.begin(&one)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(shares.begin(&one).is_none(), "enough in work");
        let theirs = shares.begin(&other);
        assert!(theirs.is_some(), "others are not concerned");
        let first = shares.run(&one).await;
        assert!(first.is_some());
        let second = tokio::time::timeout(Duration::from_millis(20), shares.run(&one));
        assert!(second.await.is_err(), "half of two");
        assert!(shares.run(&other).await.is_some());
        drop(held);
        drop(theirs);
        assert!(lock(&shares.all).is_empty(), "nothing is left behind");
    }

    #[test]
    fn one_export_for_each_operator_and_two_in_all() {
        let shares = Shares::of_heavy();
        let of = |n: u8| shares.begin(&Digest([n; 32]));
        let first = of(1);
        assert!(first.is_some() && of(1).is_none());
        let second = of(2);
        assert!(second.is_some() && of(3).is_none());
        drop(first);
        assert!(of(3).is_some());
    }
}
