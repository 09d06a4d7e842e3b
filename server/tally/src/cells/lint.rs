//! Checks what was published, knowing nothing of how it was decided: only folds, as an observer of
//! all snapshots would see them.

use std::collections::{BTreeMap, BTreeSet};

use super::settings::CellSettings;
use crate::ids::{CellNo, Number, Version};

/// Who is in a published snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fold {
    /// Its number.
    pub number: u64,
    /// Who counts in each cell, with which version.
    pub cells: BTreeMap<CellNo, BTreeMap<Number, Version>>,
}

impl Fold {
    /// How many people count.
    pub fn people(&self) -> usize {
        self.cells.values().map(BTreeMap::len).sum()
    }

    fn numbers(&self) -> BTreeSet<Number> {
        self.cells
            .values()
            .flat_map(|c| c.keys().copied())
            .collect()
    }
}

/// Members who left, with the number of the newest fold at that time.
pub type Left = BTreeMap<Number, u64>;

/// What is wrong with published folds: a fault of this program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A cell has fewer members than the least.
    #[error("fold {fold}: cell {cell} has {got} members, expected at least {least}")]
    Small {
        /// The fold.
        fold: u64,
        /// The cell.
        cell: u64,
        /// Its members.
        got: usize,
        /// The least.
        least: usize,
    },
    /// Somebody is in two cells.
    #[error("fold {fold}: somebody is in two cells")]
    Twice {
        /// The fold.
        fold: u64,
    },
    /// A cell has other members than before.
    #[error("folds {before} and {after}: cell {cell} has other members")]
    Mended {
        /// A fold.
        before: u64,
        /// A later one.
        after: u64,
        /// The cell.
        cell: u64,
    },
    /// Too few members of a cell have changed.
    #[error("folds {before} and {after}: {got} of cell {cell} changed, expected none or {least}")]
    Few {
        /// A fold.
        before: u64,
        /// A later one.
        after: u64,
        /// The cell.
        cell: u64,
        /// How many changed.
        got: usize,
        /// The least.
        least: usize,
    },
    /// A version went back.
    #[error("folds {before} and {after}: somebody in cell {cell} has an older version")]
    Older {
        /// A fold.
        before: u64,
        /// A later one.
        after: u64,
        /// The cell.
        cell: u64,
    },
    /// After all that is in both cancels out, too few people are left.
    #[error("folds {before} and {after}: {got} people make the difference, expected {least}")]
    Apart {
        /// A fold.
        before: u64,
        /// A later one.
        after: u64,
        /// People who are in one of the two.
        got: usize,
        /// The least.
        least: usize,
    },
    /// A cell that was gone is back.
    #[error("fold {fold}: cell {cell} was gone before")]
    Back {
        /// The fold.
        fold: u64,
        /// The cell.
        cell: u64,
    },
    /// Somebody who left is in it.
    #[error("fold {fold}: somebody who had left is in it")]
    Leaver {
        /// The fold.
        fold: u64,
    },
}

/// Checks all folds ever published, in the order of their numbers, against each other.
///
/// # Errors
/// The first [`Fault`].
pub fn lint(folds: &[Fold], left: &Left, settings: &CellSettings) -> Result<(), Fault> {
    let mut gone: BTreeSet<CellNo> = BTreeSet::new();
    for (at, fold) in folds.iter().enumerate() {
        if let Some(cell) = fold.cells.keys().find(|c| gone.contains(c)) {
            return Err(Fault::Back {
                fold: fold.number,
                cell: cell.0,
            });
        }
        alone(fold, left, settings)?;
        for before in &folds[..at] {
            lint_pair(before, fold, settings)?;
        }
        let last = at.checked_sub(1).map(|i| &folds[i]);
        let lost = last.into_iter().flat_map(|f| f.cells.keys());
        gone.extend(lost.filter(|c| !fold.cells.contains_key(c)));
    }
    Ok(())
}

/// One fold by itself.
fn alone(fold: &Fold, left: &Left, settings: &CellSettings) -> Result<(), Fault> {
    let least = settings.least as usize;
    if let Some((cell, members)) = fold.cells.iter().find(|c| c.1.len() < least) {
        return Err(Fault::Small {
            fold: fold.number,
            cell: cell.0,
            got: members.len(),
            least,
        });
    }
    let numbers = fold.numbers();
    if numbers.len() != fold.people() {
        return Err(Fault::Twice { fold: fold.number });
    }
    let had_left = |n: &Number| left.get(n).is_some_and(|at| *at < fold.number);
    if numbers.iter().any(had_left) {
        return Err(Fault::Leaver { fold: fold.number });
    }
    Ok(())
}

/// What an observer of two snapshots can tell: the difference must be whole cells, or at least m
/// changed members of a cell; and what is left when everybody who is in both cancels out must be at
/// least n people, or 2m where that is fewer.
///
/// # Errors
/// The first [`Fault`].
pub fn lint_pair(before: &Fold, after: &Fold, settings: &CellSettings) -> Result<(), Fault> {
    for (cell, old) in &before.cells {
        if let Some(new) = after.cells.get(cell) {
            let pair = Pair {
                before: before.number,
                after: after.number,
                cell: cell.0,
            };
            pair.check(old, new, settings.changed as usize)?;
        }
    }
    if before.cells.keys().eq(after.cells.keys()) {
        return Ok(());
    }
    let got = apart(before, after);
    let least = settings.least.min(2 * settings.changed) as usize;
    if got < least {
        return Err(Fault::Apart {
            before: before.number,
            after: after.number,
            got,
            least,
        });
    }
    Ok(())
}

/// A cell in two folds.
#[derive(Clone, Copy)]
struct Pair {
    before: u64,
    after: u64,
    cell: u64,
}

impl Pair {
    fn check(
        self,
        old: &BTreeMap<Number, Version>,
        new: &BTreeMap<Number, Version>,
        least: usize,
    ) -> Result<(), Fault> {
        let Self {
            before,
            after,
            cell,
        } = self;
        if !old.keys().eq(new.keys()) {
            return Err(Fault::Mended {
                before,
                after,
                cell,
            });
        }
        let pairs = || old.values().zip(new.values());
        if pairs().any(|p| p.1 < p.0) {
            return Err(Fault::Older {
                before,
                after,
                cell,
            });
        }
        let got = pairs().filter(|p| p.0 != p.1).count();
        if got > 0 && got < least {
            return Err(Fault::Few {
                before,
                after,
                cell,
                got,
                least,
            });
        }
        Ok(())
    }
}

/// People who are in one of the two folds. What is a cell of both is in both.
fn apart(before: &Fold, after: &Fold) -> usize {
    let only = |one: &Fold, other: &Fold| -> BTreeSet<Number> {
        let cells = one.cells.iter().filter(|c| !other.cells.contains_key(c.0));
        cells.flat_map(|c| c.1.keys().copied()).collect()
    };
    let gone = only(before, after);
    let new = only(after, before);
    gone.symmetric_difference(&new).count()
}
