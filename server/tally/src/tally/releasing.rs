//! What noise a snapshot gets, what it costs, and when nothing more is published.

use std::fmt;
use std::sync::atomic::Ordering;

use lethe_parts::noise::{Drawn, Mechanism, Settings, accountant};
use lethe_receipt::snapshot::SnapshotNoise;

use super::{Job, Served, Tally};
use crate::cells::{Spent, State};
use crate::error::TallyError;

/// Seconds of a day.
const DAY_S: u64 = 86_400;

/// Noise as it was set, and as it is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noise {
    pub(super) settings: Settings,
    pub(super) mechanism: Mechanism,
}

/// What a snapshot is made with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Release {
    /// What the accountant is charged.
    pub(super) charge: u64,
    /// The noise; none: it has none.
    pub(super) drawn: Option<Drawn>,
    /// What is signed about it.
    pub(super) stated: Option<SnapshotNoise>,
    /// The budget is spent, and what was published is recalled: this one has nobody in it. It
    /// depends on nobody, so it costs nothing.
    pub(super) nobody: bool,
}

/// How the budget stands. Epsilons in millionths, rounded up; the delta in trillionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseStatus {
    /// Epsilon of a snapshot.
    pub epsilon_millionths: u64,
    /// Delta of one, and of all together.
    pub delta_trillionths: u64,
    /// Epsilon of all so far.
    pub spent_millionths: u64,
    /// Epsilon that all may have.
    pub budget_millionths: u64,
    /// How many there were.
    pub releases: u64,
    /// Nothing more is published: not until the budget is raised.
    pub exhausted: bool,
}

impl fmt::Display for NoiseStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millionths = |n: u64| n as f64 / 1e6;
        write!(
            f,
            "noise: epsilon {} a snapshot, {} spent by {} of a budget of {}, delta {:e}",
            millionths(self.epsilon_millionths),
            millionths(self.spent_millionths),
            self.releases,
            millionths(self.budget_millionths),
            self.delta_trillionths as f64 / 1e12,
        )?;
        if self.exhausted {
            write!(f, "; SPENT: nothing newer is published, see docs/noise.md")?;
        }
        Ok(())
    }
}

fn rounded_up(number: f64, units: f64) -> u64 {
    // Beyond 2^64 it is the largest.
    (number * units).ceil() as u64
}

impl Noise {
    fn epsilon(&self, charge: u64) -> u64 {
        rounded_up(accountant::epsilon(charge, self.settings.delta), 1e6)
    }

    fn delta(&self) -> u64 {
        (self.settings.delta * 1e12).round() as u64
    }

    fn is_exhausted(&self, spent: &Spent) -> bool {
        spent.with(1, self.mechanism.charge).charge > self.settings.allowed()
    }

    fn stated(&self, charge: u64, after: &Spent) -> SnapshotNoise {
        SnapshotNoise {
            epsilon_millionths: if charge == 0 { 0 } else { self.epsilon(charge) },
            delta_trillionths: self.delta(),
            spent_millionths: self.epsilon(after.charge),
            releases: after.releases,
            clip: u64::from(self.mechanism.clip),
            repeats: u64::from(self.mechanism.repeats),
        }
    }

    pub(super) fn status(&self, spent: &Spent) -> NoiseStatus {
        NoiseStatus {
            epsilon_millionths: self.epsilon(self.mechanism.charge),
            delta_trillionths: self.delta(),
            spent_millionths: self.epsilon(spent.charge),
            budget_millionths: rounded_up(self.settings.budget, 1e6),
            releases: spent.releases,
            exhausted: self.is_exhausted(spent),
        }
    }
}

impl Tally {
    /// What a snapshot with noise is charged; 0: there is no noise.
    pub(super) fn charge(&self) -> u64 {
        self.noise().map_or(0, |n| n.mechanism.charge)
    }

    /// The day of what is served, where each snapshot costs: a start alone is no reason for one.
    pub fn costly_day(&self) -> Option<i32> {
        self.noise()?;
        match &self.lists().served {
            Served::Snapshot(served) => Some(served.statement.day),
            Served::Nothing | Served::Out { .. } => None,
        }
    }

    /// Whether noise makes a snapshot of this day too costly: less than `publish_s` has passed
    /// since the day of what is served. Also after a start, when nothing else is known of when that
    /// was.
    pub fn is_too_soon(&self, day: i32, publish_s: u64) -> bool {
        let Some(last) = self.costly_day() else {
            return false;
        };
        // A clock that was set back does not hold snapshots for long.
        match u64::try_from(i64::from(day) - i64::from(last)) {
            Ok(days) => (days + 1) * DAY_S <= publish_s,
            Err(_) => false,
        }
    }

    /// What is needed to make the next snapshot, as [`Self::job`]; none: all have spent what they
    /// may. That is said once.
    ///
    /// # Errors
    /// As [`Self::job`].
    pub fn job_within_budget(&self, day: i32, now: u64) -> Result<Option<Job>, TallyError> {
        match self.job(day, now) {
            Err(e @ TallyError::Budget { .. }) => {
                if !self.said_spent.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "{e}; after a deletion, lists have nobody in them; see docs/noise.md"
                    );
                }
                Ok(None)
            }
            job => job.map(Some),
        }
    }

    /// What the next snapshot is made with. Its noise is drawn from a seed of its own: a folder
    /// that was restored never draws the same for other sums.
    pub(super) fn release(&self, state: &State) -> Result<Release, TallyError> {
        let Some(noise) = self.noise() else {
            return Ok(Release::default());
        };
        let spent = state.core().spent;
        if !noise.is_exhausted(&spent) {
            let charge = noise.mechanism.charge;
            return Ok(Release {
                charge,
                drawn: Some(Drawn {
                    mechanism: noise.mechanism,
                    seed: lethe_seal::random()?,
                }),
                stated: Some(noise.stated(charge, &spent.with(1, charge))),
                nobody: false,
            });
        }
        if state.core().out.is_some() {
            return Ok(Release {
                stated: Some(noise.stated(0, &spent)),
                nobody: true,
                ..Release::default()
            });
        }
        let status = noise.status(&spent);
        Err(TallyError::Budget {
            spent_millionths: status.spent_millionths,
            budget_millionths: status.budget_millionths,
        })
    }
}
