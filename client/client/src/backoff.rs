//! Pauses between attempts: longer each time, and not the same for all devices.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Doubles up to a bound; each pause is between half and all of that.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
    hasher: RandomState,
}

impl Backoff {
    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.tries.min(10)).min(LONGEST);
        self.tries += 1;
        let mut h = self.hasher.build_hasher();
        h.write_u32(self.tries);
        whole / 2 + (whole / 2).mul_f64((h.finish() % 1024) as f64 / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound() {
        let mut b = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| b.next()).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST);
        assert!(pauses[11] >= LONGEST / 2 && pauses.iter().all(|p| *p <= LONGEST));
    }
}
