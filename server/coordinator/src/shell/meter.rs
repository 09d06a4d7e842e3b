//! What rounds cost, measured as they run: the sums ride on the next round that closes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lethe_ledger::{Now, Spent, State};

/// Longest pause between two looks that counts as work, in milliseconds.
const PAUSE: u64 = 1000;

/// Sums that no closed round has taken along yet.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Bytes of training passes and updates, both ways.
    pub(crate) bytes: Arc<AtomicU64>,
    busy_ms: AtomicU64,
    looked: AtomicU64,
}

impl Meter {
    /// Call it at every look: time counts while a round is open.
    pub(super) fn look(&self, state: &State, now: Now) {
        let before = self.looked.swap(now.uptime_ms, Ordering::Relaxed);
        if !state.volatile().open.is_empty() {
            let passed = now.uptime_ms.saturating_sub(before).min(PAUSE);
            self.busy_ms.fetch_add(passed, Ordering::Relaxed);
        }
    }

    /// The sums, which begin anew.
    pub(super) fn take(&self) -> Spent {
        Spent {
            bytes: self.bytes.swap(0, Ordering::Relaxed),
            busy_ms: self.busy_ms.swap(0, Ordering::Relaxed),
        }
    }
}
