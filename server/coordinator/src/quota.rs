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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::CoordinatorError;

/// Longest time that a request is kept waiting for its turn.
const LONGEST: Duration = Duration::from_secs(10);
/// From so many certificates on, those that are at rest are let go of.
const KNOWN: usize = 4096;
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

    /// How many at once, and how long until one more.
    fn numbers(self) -> (u32, Duration) {
        match self {
            Self::Asks => (600, Duration::from_millis(10)),
            Self::Writes => (120, Duration::from_millis(250)),
            Self::Operates => (2000, Duration::from_millis(5)),
        }
    }
}

/// When each certificate would be at rest again, by pace.
#[derive(Debug, Default)]
pub(crate) struct Paces(Mutex<HashMap<(Digest, u8), Instant>>);

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
        match self.wait(certificate, pace, Instant::now()) {
            Ok(Duration::ZERO) => Ok(()),
            Ok(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            Err(wait) => {
                let (burst, period) = pace.numbers();
                let per_second = 1.0 / period.as_secs_f64();
                let message = format!(
                    "this certificate asks too often: expected at most {burst} such requests at \
                     once and {per_second} a second after that; try again in {} s",
                    wait.as_secs() + 1
                );
                Err(CoordinatorError::refuse(Refusal::Busy, message))
            }
        }
    }

    /// How long to wait; an error: too long, and nothing was taken.
    fn wait(&self, certificate: Digest, pace: Pace, now: Instant) -> Result<Duration, Duration> {
        let (burst, period) = pace.numbers();
        let mut known = lock(&self.0);
        if known.len() > KNOWN {
            known.retain(|_, at| *at > now);
        }
        let rest = known.entry((certificate, pace as u8)).or_insert(now);
        let next = (*rest).max(now) + period;
        let wait = next.saturating_duration_since(now + burst * period);
        if wait > LONGEST {
            return Err(wait);
        }
        *rest = next;
        Ok(wait)
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
        let (burst, period) = Pace::Asks.numbers();
        for _ in 0..burst {
            assert_eq!(paces.wait(hostile, Pace::Asks, now), Ok(Duration::ZERO));
        }
        let mut waits = vec![];
        while let Ok(wait) = paces.wait(hostile, Pace::Asks, now) {
            waits.push(wait);
        }
        assert_eq!(waits[..2], [period, 2 * period]);
        assert_eq!(
            waits.len() as u128,
            LONGEST.as_millis() / period.as_millis()
        );
        assert_eq!(paces.wait(honest, Pace::Asks, now), Ok(Duration::ZERO));
        assert_eq!(paces.wait(hostile, Pace::Writes, now), Ok(Duration::ZERO));
        // What was refused is not held against it.
        let later = now + LONGEST + burst * period + period;
        assert_eq!(paces.wait(hostile, Pace::Asks, later), Ok(Duration::ZERO));
    }

    #[test]
    fn certificates_at_rest_are_let_go_of() {
        let paces = Paces::default();
        let now = Instant::now();
        for n in 0..3 * KNOWN as u64 {
            let who = Digest::of(&[&n.to_le_bytes()]);
            let at = now + n as u32 * Duration::from_millis(1);
            assert!(paces.wait(who, Pace::Asks, at).is_ok());
        }
        assert!(lock(&paces.0).len() <= KNOWN + 1);
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
