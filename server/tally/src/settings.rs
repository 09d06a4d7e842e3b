//! Configuration of lists, as files of configuration give it.

use lethe_parts::solve;
use lethe_proto::codec;
use lethe_proto::limits::{MAX_ID, MAX_SMALL};
use serde::{Deserialize, Serialize};

use crate::cells::CellSettings;
use crate::{NoiseConfig, Options};

/// Whether people count in cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CellsConfig {
    /// In cells of `cell` people and more.
    #[default]
    On,
    /// Alone: snapshots before and after somebody leaves tell what that person contributed.
    Off,
}

/// The table `[lists]`; unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListsConfig {
    /// The most events of a contribution: the newest of a history.
    pub clip: u32,
    /// How often an item counts in one contribution: the newest encounters.
    pub repeats: u32,
    /// Seconds between two contributions of a person.
    pub refresh_s: u64,
    /// Seconds between two snapshots; after a deletion the next one is made at once.
    pub publish_s: u64,
    /// People who must share a pair of items for it to count, k.
    pub k: u64,
    /// Whether people count in cells.
    pub cells: CellsConfig,
    /// Members of a cell in a small fleet, n.
    pub cell: u32,
    /// Members of a cell who must have newer events before those count, m.
    pub changed: u32,
    /// The most people whose contributions are taken.
    pub people: u32,
    /// Noise on the sums; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<NoiseConfig>,
}

impl Default for ListsConfig {
    fn default() -> Self {
        let options = Options::default();
        Self {
            clip: options.clip as u32,
            repeats: options.repeats as u32,
            refresh_s: options.refresh_s,
            publish_s: 3_600,
            k: options.solve.k,
            cells: CellsConfig::On,
            cell: options.cells.least,
            changed: options.cells.changed,
            people: options.cells.people,
            noise: None,
        }
    }
}

impl ListsConfig {
    /// Longest contribution that anybody has reason to send, in bytes.
    pub fn longest(&self) -> usize {
        // An event is an item's identifier, its length, a day, a rating and flags.
        let event = MAX_ID + 16;
        (self.clip as usize * event + MAX_SMALL).min(codec::limit(codec::CONTRIBUTE).unwrap_or(0))
    }

    /// As the tally takes it.
    pub fn options(&self) -> Options {
        let cells = match self.cells {
            CellsConfig::On => CellSettings {
                least: self.cell,
                most: CellSettings::default().most.max(self.cell),
                changed: self.changed,
                people: self.people,
                ..CellSettings::default()
            },
            CellsConfig::Off => CellSettings {
                people: self.people,
                ..CellSettings::off()
            },
        };
        Options {
            cells,
            clip: self.clip as usize,
            repeats: self.repeats as usize,
            refresh_s: self.refresh_s,
            solve: solve::Settings {
                k: self.k,
                ..solve::Settings::default()
            },
            noise: self.noise.map(Into::into),
            ..Options::default()
        }
    }
}
