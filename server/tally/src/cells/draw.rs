//! Who comes into a cell together.

use std::collections::BTreeMap;

use lethe_learn::seed::Seed;

use super::state::State;
use crate::ids::{CellNo, Number};

/// The members of the next cell, ascending; none: too few wait, or too many of them have been
/// together.
///
/// They are those of the lowest rank of a keyed hash of the cell's and their own number: who does
/// not have the key cannot choose whom to be with, by coming at some moment or otherwise.
pub(super) fn draw(state: &State, secret: &Seed, cell: CellNo) -> Option<Vec<Number>> {
    let size = state.size();
    if state.waiting() < state.settings.waiting(size) {
        return None;
    }
    let key = secret.derive("tally cell", &[&cell.0.to_le_bytes()]);
    let rank = |number: &Number| key.rank("member", &number.0.to_le_bytes());
    let waiting = state.index.waiting.iter();
    let mut ranked: Vec<(u64, Number)> = waiting.map(|n| (rank(n), *n)).collect();
    ranked.sort_unstable();
    let most = state.settings.together(size);
    let mut of_past: BTreeMap<CellNo, usize> = BTreeMap::new();
    let mut members = vec![];
    for (_, number) in ranked {
        let past = &state.members.get(&number)?.past;
        if past.iter().any(|p| of_past.get(p) >= Some(&most)) {
            continue;
        }
        past.iter()
            .for_each(|p| *of_past.entry(*p).or_default() += 1);
        members.push(number);
        if members.len() == size {
            members.sort_unstable();
            return Some(members);
        }
    }
    None
}
