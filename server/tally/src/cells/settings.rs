//! How large cells are, and what that is worth.

use serde::{Deserialize, Serialize};

/// The largest cell that can be asked for.
const MOST: u32 = 65_536;

/// The sizes of cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellSettings {
    /// Members of a cell in a small fleet, n. 1: cells are off.
    pub least: u32,
    /// Members of a cell at most.
    pub most: u32,
    /// In between, a cell has one person of so many.
    pub share: u32,
    /// Members of a cell who must have grown before what grew counts, m.
    pub changed: u32,
    /// A cell opens when so many times its size wait.
    pub wait: u32,
    /// The most people whose contributions are taken.
    pub people: u32,
}

/// Why settings are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cells: {what} = {got}, expected {least} to {most}")]
pub struct SettingsError {
    /// Which number.
    pub what: &'static str,
    /// What was given.
    pub got: u32,
    /// The least that is allowed.
    pub least: u32,
    /// The most that is allowed.
    pub most: u32,
}

impl Default for CellSettings {
    /// 16 people; one of 64 in larger fleets, at most 1,024; m = 8; one million people.
    fn default() -> Self {
        Self {
            least: 16,
            most: 1_024,
            share: 64,
            changed: 8,
            wait: 4,
            people: 1_000_000,
        }
    }
}

impl CellSettings {
    /// `cells = "off"`: everybody counts alone. [`Self::gives_away`] says what that means.
    pub fn off() -> Self {
        Self {
            least: 1,
            most: 1,
            changed: 1,
            wait: 1,
            ..Self::default()
        }
    }

    /// Whether cells are off.
    pub fn is_off(&self) -> bool {
        self.most == 1
    }

    /// What these settings give away; nothing to say when cells are on.
    pub fn gives_away(&self) -> Option<&'static str> {
        self.is_off().then_some(
            "cells are off: whoever holds the snapshots before and after one person comes, \
             contributes again or leaves can work out what that person contributed",
        )
    }

    /// Checks that the numbers fit each other.
    ///
    /// # Errors
    /// [`SettingsError`] names the first that does not.
    pub fn check(&self) -> Result<(), SettingsError> {
        // One who counts, changes or waits alone would be seen alone.
        let two = self.most.min(2);
        within("cell", self.least, two, MOST)?;
        within("most", self.most, self.least, MOST)?;
        within("share", self.share, 1, u32::MAX)?;
        within("changed", self.changed, two, self.least)?;
        within("wait", self.wait, two, 1_000)?;
        within("people", self.people, 1, u32::MAX)
    }

    /// Members of the next cell, where so many people contribute.
    pub fn size(&self, people: usize) -> usize {
        let share = people / self.share as usize;
        share.clamp(self.least as usize, self.most as usize)
    }

    /// People who must wait before a cell of `size` opens.
    pub fn waiting(&self, size: usize) -> usize {
        size * self.wait as usize
    }

    /// Members of a cell of `size` who may have been together before, in a cell that was published:
    /// it takes m dissolved cells to fill a new one.
    pub fn together(&self, size: usize) -> usize {
        (size / self.changed as usize).max(1)
    }
}

fn within(what: &'static str, got: u32, least: u32, most: u32) -> Result<(), SettingsError> {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    Err(SettingsError {
        what,
        got,
        least,
        most,
    })
}
