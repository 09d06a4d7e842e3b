//! How a tally is run.

use lethe_parts::contribution::MAX_CLIP;
use lethe_parts::noise;
use lethe_parts::snapshot::Packing;
use lethe_parts::solve;

use serde::{Deserialize, Serialize};

use crate::cells::{CellSettings, SettingsError};

/// How a tally is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Name of the key that signs snapshots; no spaces and no plus.
    pub name: String,
    /// How people count.
    pub cells: CellSettings,
    /// The most events of a contribution.
    pub clip: usize,
    /// How often an item counts in one contribution: the newest encounters.
    pub repeats: usize,
    /// Seconds between two contributions of a handle.
    pub refresh_s: u64,
    /// How tables are solved; k among it.
    pub solve: solve::Settings,
    /// How snapshots are packed.
    pub packing: Packing,
    /// The noise on the sums of each snapshot, and what all of them may cost; none: no noise.
    pub noise: Option<noise::Settings>,
}

/// What an epsilon is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// Of one snapshot: each draws its own noise, and they add up.
    Release,
}

/// `noise = { epsilon, delta, per = "release", budget }`, as configurations have it: noise on the
/// sums.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoiseConfig {
    /// What one snapshot may cost.
    pub epsilon: f64,
    /// The chance with which the promise may fail.
    pub delta: f64,
    /// What `epsilon` is of.
    pub per: Per,
    /// What all snapshots together may cost: then nothing more is published.
    pub budget: f64,
}

impl From<NoiseConfig> for noise::Settings {
    fn from(config: NoiseConfig) -> Self {
        // The only way to count there is.
        let Per::Release = config.per;
        Self {
            epsilon: config.epsilon,
            delta: config.delta,
            budget: config.budget,
        }
    }
}

impl Default for Options {
    /// Cells of 16, 200 events, an item three times, a contribution a day, k = 3, no noise.
    fn default() -> Self {
        Self {
            name: "tally".into(),
            cells: CellSettings::default(),
            clip: 200,
            repeats: 3,
            refresh_s: 86_400,
            solve: solve::Settings::default(),
            packing: Packing::default(),
            noise: None,
        }
    }
}

impl Options {
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        self.cells.check()?;
        events("clip", self.clip)?;
        events("repeats", self.repeats)
    }
}

fn events(what: &'static str, got: usize) -> Result<(), SettingsError> {
    let got = u32::try_from(got).unwrap_or(u32::MAX);
    let most = MAX_CLIP as u32;
    match (1..=most).contains(&got) {
        true => Ok(()),
        false => Err(SettingsError {
            what,
            got,
            least: 1,
            most,
        }),
    }
}
