//! What rounds cost, measured as they run: the rates that forecasts use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lethe_plan::Rates;
use lethe_proto::ids::SubjectId;

use super::Core;
use crate::run::OpenRound;

/// Longest pause between two looks that counts as work, in milliseconds.
const PAUSE: u64 = 1000;

/// Sums so far.
pub(crate) struct Meter {
    rates: Rates,
    /// Bytes of training passes and updates, both ways, that are not in `rates` yet.
    pub(crate) bytes: Arc<AtomicU64>,
    looked: u64,
}

impl Meter {
    pub(super) fn new(rates: Rates) -> Self {
        Self {
            rates,
            bytes: Arc::default(),
            looked: 0,
        }
    }
}

impl Core {
    /// What rounds have cost so far.
    pub(super) fn rates(&self) -> Rates {
        Rates {
            bytes: self.meter.rates.bytes + self.meter.bytes.load(Ordering::Relaxed),
            ..self.meter.rates
        }
    }

    /// Call it at every tick: time counts while a round is open.
    pub(super) fn measure(&mut self, now: u64) {
        let busy = self.runs.iter().any(|r| r.open.is_some());
        if busy {
            self.meter.rates.busy_ms += now.saturating_sub(self.meter.looked).min(PAUSE);
        }
        self.meter.looked = now;
    }

    /// The sums with a round that closes with these contributions: write them with it, then call
    /// [`Self::measured`].
    pub(super) fn with_round(&self, clients: usize) -> Rates {
        let rates = self.rates();
        Rates {
            client_rounds: rates.client_rounds + clients as u64,
            ..rates
        }
    }

    /// The sums that were written with a round that has closed.
    pub(super) fn measured(&mut self, written: Rates) {
        let counted = written.bytes - self.meter.rates.bytes;
        self.meter.bytes.fetch_sub(counted, Ordering::Relaxed);
        self.meter.rates = written;
    }

    /// An update came in `now` from a client that was given its task earlier.
    pub(super) fn answered(&mut self, started: Option<u64>, now: u64) {
        self.meter.rates.client_ms += started.map_or(0, |s| now.saturating_sub(s));
    }
}

impl OpenRound {
    /// A client was given its task; a task that is given again began the first time.
    pub(crate) fn began(&mut self, subject: &SubjectId, now: u64) {
        self.began.entry(subject.clone()).or_insert(now);
    }
}
