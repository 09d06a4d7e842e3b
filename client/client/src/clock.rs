//! Until when something may be shown, on a device whose clock somebody may set back.
//!
//! The newest time that the folder was used at is kept in it, sealed. Time never goes back behind
//! it: what has expired stays so. While the clock is behind it by more than [`SLACK_S`], nothing
//! that expires is shown. What the coordinator says anew counts from the clock as it is then.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::ClientError;
use crate::local::now_unix_s;
use crate::vault::{CLOCK, Vault};

/// So far clocks may be put right, in seconds.
const SLACK_S: i64 = 3_600;
/// So far the kept time may be behind, in seconds: a write for each list would wear a phone out.
const KEPT_S: i64 = 600;

/// The sealed file `clock`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Seconds since 1970.
    newest: i64,
}

/// The newest time seen.
#[derive(Debug)]
pub(crate) struct Clock {
    newest: i64,
    kept: i64,
    /// When `newest` was seen, for a clock that is set back while the process runs.
    since: Instant,
}

/// What a moment is for something that expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// It may be shown.
    Before,
    /// It may not, and never again.
    After,
    /// It may not while the clock is so far behind.
    SetBack,
}

impl Clock {
    /// A file that is damaged says nothing.
    pub(crate) fn open(vault: &Vault) -> Result<Self, ClientError> {
        let kept = match vault.read::<Kept>(CLOCK) {
            Err(ClientError::Sealed { .. }) => None,
            other => other?,
        };
        let newest = kept.unwrap_or_default().newest;
        Ok(Self {
            newest,
            kept: newest,
            since: Instant::now(),
        })
    }

    /// What this moment is for something that may be shown before `until`.
    pub(crate) fn ask(&mut self, vault: &Vault, until: i64) -> Moment {
        let (moment, newest) = self.at(now_unix_s(), until);
        if newest >= self.kept.saturating_add(KEPT_S) {
            // Without it the next start knows an older time, which is all that is lost.
            match vault.write(CLOCK, &Kept { newest }) {
                Ok(()) => self.kept = newest,
                Err(e) => tracing::warn!("the newest time is not kept: {e}"),
            }
        }
        moment
    }

    fn at(&mut self, clock: i64, until: i64) -> (Moment, i64) {
        let passed = i64::try_from(self.since.elapsed().as_secs()).unwrap_or(i64::MAX);
        let reached = self.newest.saturating_add(passed);
        if passed > 0 || clock > self.newest {
            self.newest = reached.max(clock);
            self.since = Instant::now();
        }
        let moment = match (self.newest >= until, clock) {
            (true, _) => Moment::After,
            (_, clock) if clock.saturating_add(SLACK_S) < self.newest => Moment::SetBack,
            _ => Moment::Before,
        };
        (moment, self.newest)
    }

    /// The coordinator has said something anew, which counts from the clock as it is.
    pub(crate) fn begin(&mut self, vault: &Vault) -> Result<(), ClientError> {
        let newest = now_unix_s();
        if newest < self.kept || newest >= self.kept.saturating_add(KEPT_S) {
            vault.write(CLOCK, &Kept { newest })?;
            self.kept = newest;
        }
        self.newest = newest;
        self.since = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(newest: i64) -> Clock {
        Clock {
            newest,
            kept: newest,
            since: Instant::now(),
        }
    }

    #[test]
    fn m1_what_has_expired_stays_so_when_the_clock_is_set_back() {
        let mut c = clock(0);
        assert_eq!(c.at(1_000, 5_000).0, Moment::Before);
        assert_eq!(c.at(5_000, 5_000).0, Moment::After);
        for clock in [4_999, 1_000, 0, i64::MIN] {
            assert_eq!(c.at(clock, 5_000).0, Moment::After, "{clock}");
        }
        // What has not expired is not shown either, until the clock is right again.
        let until = 90_000;
        assert_eq!(c.at(50_000, until).0, Moment::Before);
        assert_eq!(
            c.at(49_000, until).0,
            Moment::Before,
            "clocks are put right"
        );
        assert_eq!(c.at(1_000, until).0, Moment::SetBack);
        assert_eq!(c.at(50_001, until).0, Moment::Before);
    }

    #[test]
    fn the_newest_time_is_kept_over_a_restart_and_a_damaged_file_says_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let vault = Vault::open(dir.path(), Some([5; 32])).expect("opens");
        let mut c = Clock::open(&vault).expect("opens");
        let later = now_unix_s() + 90_000;
        assert_eq!(c.ask(&vault, later), Moment::Before);
        let mut again = Clock::open(&vault).expect("opens");
        assert_eq!(again.newest, c.newest);
        assert_eq!(again.at(0, later).0, Moment::SetBack);
        // A clock that was wrong, and is right when the coordinator answers.
        again.newest = later + 90_000;
        assert_eq!(again.ask(&vault, later), Moment::After);
        again.begin(&vault).expect("writes");
        assert_eq!(again.ask(&vault, later), Moment::Before);
        std::fs::write(dir.path().join("clock"), b"damaged").expect("writes");
        assert_eq!(Clock::open(&vault).expect("opens").newest, 0);
    }
}
