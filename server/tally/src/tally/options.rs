//! How a tally is run.

use lethe_parts::contribution::MAX_CLIP;
use lethe_parts::noise;
use lethe_parts::snapshot::Packing;
use lethe_parts::solve;

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
