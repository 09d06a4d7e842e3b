//! Opens cells, and makes the next snapshot when one is due. Only on request: a tally has no thread
//! of its own for it.

use std::sync::{OnceLock, TryLockError};

use lethe_parts::history::day_of;
use lethe_proto::tally::TallyReply;
use lethe_tally::{Done, Finished, Served};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{Answer, Service, locked};
use crate::TallydError;

/// How often a snapshot is made anew in one request when somebody leaves meanwhile.
const AGAIN: usize = 2;

/// What is known between two looks.
#[derive(Default)]
pub(super) struct Publishing {
    /// Settings, titles or tags may have changed since the last snapshot. Whether cells were opened
    /// or renewed, the tally knows.
    pub(super) changed: bool,
    /// When the last one was published by this process, in seconds since 1970.
    pub(super) last: Option<u64>,
    /// Its day.
    day: Option<i32>,
}

impl Publishing {
    /// At a start. Where a snapshot is served, the next is made all the same: settings, titles and
    /// tags may have changed. Not with noise, where each costs: the day of what is served is given
    /// then.
    pub(super) fn after_start(counting: usize, costly: Option<i32>) -> Self {
        Self {
            changed: counting > 0 && costly.is_none(),
            day: costly,
            ..Self::default()
        }
    }
}

/// Heavy work has threads of its own: whoever leaves waits for a few of the others at most.
fn heavy() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let build = || {
        let name = |n| format!("lethe-solve-{n}");
        let pool = ThreadPoolBuilder::new().thread_name(name).build();
        pool.inspect_err(|e| tracing::warn!("no threads for solving alone: {e}"))
            .ok()
    };
    POOL.get_or_init(build).as_ref()
}

/// Does heavy work.
pub(super) fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match heavy() {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

impl Service {
    pub(super) fn work(&self, now: u64) -> Answer {
        let _alone = match self.working.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another request does it.
            Err(TryLockError::WouldBlock) => return Ok(TallyReply::State(self.state())),
        };
        self.tend(now)?;
        self.tally.open_cells(now)?;
        for _ in 0..AGAIN {
            if self.publish_if_due(now)? != Some(Finished::TooLate) {
                break;
            }
            tracing::info!("somebody left while a snapshot was made: it is made again");
        }
        Ok(TallyReply::State(self.state()))
    }

    /// None: none is due.
    fn publish_if_due(&self, now: u64) -> Result<Option<Finished>, TallydError> {
        let day = day_of(i64::try_from(now).unwrap_or(i64::MAX));
        if !self.is_due(now, day) {
            return Ok(None);
        }
        let Some(job) = self.tally.job_within_budget(day, now)? else {
            return Ok(None);
        };
        let done = aside(|| job.run())?;
        // Before anybody sees the number.
        locked(&self.evidence).raise(done.number())?;
        let finished = self.tally.finish(&done, now)?;
        if let Finished::Published(snapshot) = &finished {
            {
                let mut publishing = locked(&self.publishing);
                publishing.changed = false;
                publishing.last = Some(now);
                publishing.day = Some(day);
            }
            tracing::info!(
                number = snapshot.statement.number,
                people = snapshot.statement.people,
                bytes = snapshot.bytes.len(),
                "lists published"
            );
            self.enter(&snapshot.note)?;
            self.keep_sums(&done);
        }
        Ok(Some(finished))
    }

    /// Nobody waits for this: it saves the next start a fold.
    fn keep_sums(&self, done: &Done) {
        if let Err(e) = self.tally.keep_sums(done) {
            tracing::warn!("sums are not kept: {e}; the next start folds everybody again");
        }
    }

    /// A signed note is in the log from now on.
    pub(super) fn enter(&self, note: &str) -> Result<(), TallydError> {
        locked(&self.evidence).enter(note, &self.office, self.tally.signer())
    }

    fn is_due(&self, now: u64, day: i32) -> bool {
        let behind = self.tally.is_behind();
        let publishing = locked(&self.publishing);
        let changed = behind || publishing.changed;
        match self.tally.lists().served {
            Served::Out { .. } => true,
            // Numbers were recalled that this folder does not know, it is an older one: devices get
            // what comes after them, also if nobody counts.
            Served::Nothing => changed || self.tally.lists().recalled > 0,
            Served::Snapshot(_) => {
                let waited = publishing.last.is_none_or(|last| {
                    // A clock that was set back does not hold snapshots for long.
                    now < last || last.saturating_add(self.lists.publish_s) <= now
                });
                // Tables are of a day: what was met lately changes with it.
                let stale = changed || publishing.day != Some(day);
                waited && stale && !self.tally.is_too_soon(day, self.lists.publish_s)
            }
        }
    }
}
