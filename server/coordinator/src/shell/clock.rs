//! The clocks of this machine. Nothing else reads them for decisions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lethe_ledger::Now;

/// Tells the time; neither clock goes back.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// The latest that the wall clock said: one that was set back stands still here until it has
    /// caught up.
    latest: AtomicU64,
    /// Time that a test or a simulation sets.
    #[cfg(any(test, feature = "simulation"))]
    set: Option<std::sync::Arc<std::sync::Mutex<Now>>>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            latest: AtomicU64::new(0),
            #[cfg(any(test, feature = "simulation"))]
            set: None,
        }
    }
}

impl Clock {
    /// One that a test or a simulation sets.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn set_by(time: std::sync::Arc<std::sync::Mutex<Now>>) -> Self {
        Self {
            set: Some(time),
            ..Self::default()
        }
    }

    /// Both clocks.
    pub(crate) fn now(&self) -> Now {
        #[cfg(any(test, feature = "simulation"))]
        if let Some(time) = &self.set {
            return *crate::fatal::lock(time);
        }
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as u64);
        let before = self.latest.fetch_max(wall, Ordering::Relaxed);
        Now {
            unix_ms: wall.max(before),
            uptime_ms: self.started.elapsed().as_millis() as u64,
        }
    }

    /// Seconds since the start.
    pub(crate) fn up(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
