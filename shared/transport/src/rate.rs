//! How often somebody may do something: so many times at once, and then at a pace (the generic cell
//! rate algorithm, ITU-T I.371). Who is faster waits, and beyond a bound is refused.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// From so many known ones on, those that are at rest are let go of.
const KNOWN: usize = 4096;

/// When each of many would be at rest again.
#[derive(Debug)]
pub struct Rates<K> {
    rest: Mutex<HashMap<K, Instant>>,
    burst: u32,
    period: Duration,
    longest: Duration,
}

impl<K: Hash + Eq> Rates<K> {
    /// `burst` times at once, then once in a `period`; who would wait for more than `longest` is
    /// refused.
    pub fn new(burst: u32, period: Duration, longest: Duration) -> Self {
        Self {
            rest: Mutex::default(),
            burst,
            period,
            longest,
        }
    }

    /// How long `who` has to wait for their turn, which is theirs then.
    ///
    /// # Errors
    /// The wait, where it is too long: nothing was taken.
    pub fn wait(&self, who: K, now: Instant) -> Result<Duration, Duration> {
        // Times only: they are as good after a panic.
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        if rest.len() >= KNOWN && !rest.contains_key(&who) {
            rest.retain(|_, at| *at > now);
        }
        let at = rest.entry(who).or_insert(now);
        let next = (*at).max(now) + self.period;
        let wait = next.saturating_duration_since(now + self.burst * self.period);
        if wait > self.longest {
            return Err(wait);
        }
        *at = next;
        Ok(wait)
    }

    /// How many at once, and how many a second after that.
    pub fn numbers(&self) -> (u32, f64) {
        (self.burst, 1.0 / self.period.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(20);

    #[test]
    fn who_is_too_fast_waits_and_is_refused_beyond_a_bound() {
        let rates = Rates::new(10, PERIOD, 5 * PERIOD);
        let now = Instant::now();
        for _ in 0..10 {
            assert_eq!(rates.wait(1, now), Ok(Duration::ZERO));
        }
        let waits: Vec<_> = (0..7).map(|_| rates.wait(1, now)).collect();
        assert_eq!(waits[..5], [1, 2, 3, 4, 5].map(|n| Ok(n * PERIOD)));
        assert_eq!(waits[5..], [Err(6 * PERIOD); 2], "nothing was taken");
        assert_eq!(rates.wait(2, now), Ok(Duration::ZERO), "another one");
        let later = now + 6 * PERIOD;
        assert_eq!(rates.wait(1, later), Ok(Duration::ZERO));
    }

    #[test]
    fn those_at_rest_are_let_go_of() {
        let rates = Rates::new(10, PERIOD, PERIOD);
        let now = Instant::now();
        for n in 0..3 * KNOWN {
            let at = now + n as u32 * Duration::from_millis(1);
            assert!(rates.wait(n, at).is_ok());
        }
        let known = rates.rest.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(known.len() <= KNOWN, "{}", known.len());
    }
}
