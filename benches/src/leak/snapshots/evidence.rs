//! What a change at a pair of items says about one person having met both: likelihood ratios,
//! counted over cells whose members the attacker knows.

use std::collections::BTreeSet;

use lethe_parts::contribution::Contribution;
use rayon::prelude::*;

use super::view::{CODES, Change, TABLES};

/// Tables, and each seen from both items.
const KINDS: usize = 2 * TABLES;
/// Bins of the people who met the rarer of the two items.
const RARITY: usize = 7;
/// Bins of the members who met the item that is asked about.
const MEMBERS: usize = 5;
/// Bins of the members who met the item that is known.
const ANCHOR: usize = 4;
const CELLS: usize = KINDS * RARITY * MEMBERS * ANCHOR * CODES;
/// What is added to every count.
const PRIOR: f64 = 2.0;

/// Where the counts of one pair are: the first of its codes, table by table.
struct Place {
    context: usize,
    codes: [u8; KINDS],
}

impl Place {
    fn of(change: &Change, anchor: usize, item: usize) -> Self {
        let rarer = change.before[anchor].min(change.before[item]);
        let rarity = match rarer {
            0..=5 => 0,
            6..=11 => 1,
            12..=24 => 2,
            25..=49 => 3,
            50..=99 => 4,
            100..=199 => 5,
            _ => 6,
        };
        let members = match change.members[item] {
            0..=1 => 0,
            2 => 1,
            3 => 2,
            4..=6 => 3,
            _ => 4,
        };
        let of_anchor = match change.members[anchor] {
            0..=1 => 0,
            2 => 1,
            3..=4 => 2,
            _ => 3,
        };
        Self {
            context: (rarity * MEMBERS + members) * ANCHOR + of_anchor,
            codes: change.codes(anchor, item),
        }
    }

    fn at(&self, kind: usize) -> usize {
        (self.context * KINDS + kind) * CODES + usize::from(self.codes[kind])
    }
}

/// Counts over pairs of an item that a person met and another one.
#[derive(Clone)]
pub(super) struct Counts {
    met: Vec<f64>,
    other: Vec<f64>,
}

impl Counts {
    /// Nothing.
    pub(super) fn new() -> Self {
        Self {
            met: vec![0.0; CELLS],
            other: vec![0.0; CELLS],
        }
    }

    /// Adds what one cell shows, for these of its members.
    pub(super) fn add(&mut self, change: &Change, candidates: &[usize], members: &[Contribution]) {
        for member in members {
            let own: BTreeSet<usize> = member.distinct().iter().map(|i| *i as usize).collect();
            for anchor in own.iter().filter(|a| change.members[**a] > 0) {
                for item in candidates.iter().filter(|i| *i != anchor) {
                    let place = Place::of(change, *anchor, *item);
                    let counts = match own.contains(item) {
                        true => &mut self.met,
                        false => &mut self.other,
                    };
                    for kind in 0..KINDS {
                        counts[place.at(kind)] += 1.0;
                    }
                }
            }
        }
    }

    /// Logarithms of likelihood ratios: how much more often a code is seen where the person met
    /// the other item, too.
    pub(super) fn ratios(&self) -> Ratios {
        let mut out = vec![0.0; CELLS];
        let mut start = 0;
        while start < CELLS {
            let group = start..start + CODES;
            let met: f64 = self.met[group.clone()].iter().sum();
            let other: f64 = self.other[group.clone()].iter().sum();
            let all = CODES as f64 * PRIOR;
            for at in group {
                let of_met = (self.met[at] + PRIOR) / (met + all);
                let of_other = (self.other[at] + PRIOR) / (other + all);
                out[at] = (of_met / of_other).ln() as f32;
            }
            start += CODES;
        }
        Ratios(out)
    }
}

/// Log-likelihood ratios of codes.
pub(super) struct Ratios(Vec<f32>);

/// For each pair of candidates, what the tables say of the second if a person met the first.
pub(super) struct Evidence {
    /// Items that a member may have met, ascending.
    pub(super) candidates: Vec<usize>,
    values: Vec<f32>,
}

impl Evidence {
    /// Reads the changes of all pairs.
    pub(super) fn new(change: &Change, ratios: &Ratios) -> Self {
        let candidates = candidates(change);
        let width = candidates.len();
        let mut values = vec![0.0; width * width];
        values
            .par_chunks_mut(width.max(1))
            .zip(&candidates)
            .for_each(|row| {
                for (value, item) in row.0.iter_mut().zip(&candidates) {
                    let place = Place::of(change, *row.1, *item);
                    *value = (0..KINDS).map(|kind| ratios.0[place.at(kind)]).sum();
                }
            });
        Self { candidates, values }
    }

    /// What the candidate at this place says of all candidates.
    pub(super) fn of(&self, place: usize) -> &[f32] {
        let width = self.candidates.len();
        &self.values[place * width..(place + 1) * width]
    }
}

/// Items that somebody of the cell has met.
pub(super) fn candidates(change: &Change) -> Vec<usize> {
    (0..change.items)
        .filter(|i| change.members[*i] > 0)
        .collect()
}
