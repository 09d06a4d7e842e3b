//! What a device reads out of a snapshot, and what two of them differ in.

use lethe_parts::rows::{Row, Rows};
use lethe_parts::tables::Tables;

/// Prior strength of the far transitions, as `docs/recommend.md` has it: it is public.
const FAR_PRIOR: f32 = 320.0;
/// Levels per factor of two of a packed value.
const PER_OCTAVE: f32 = 8.0;
/// Levels per factor of two of what was met lately.
const RECENT_PER_OCTAVE: f64 = 32.0;
/// Level 0 of what was met lately, in encounters.
const RECENT_UNIT: f64 = 0.05;

/// Tables of items by items.
pub(super) const TABLES: usize = 3;
/// What can be seen at one place of a table.
pub(super) const CODES: usize = 10;

/// One snapshot, decoded. Tables are items by items; NaN: there is no entry.
pub(super) struct View {
    items: usize,
    pub(super) seen: Vec<u64>,
    recent: Vec<f64>,
    /// Sums of the far transitions, near log-lifts, EASE's weights.
    tables: [Vec<f32>; TABLES],
}

impl View {
    /// Reads tables as any device can.
    pub(super) fn of(tables: &Tables) -> Self {
        let items = tables.items();
        // The background of a row is 320 / (row sum + 320).
        let far = |value: f32, background: f32| value * FAR_PRIOR / background;
        let near = |value: f32, background: f32| value + background;
        let ease = |value: f32, _: f32| value;
        Self {
            items,
            seen: tables.columns().seen.clone(),
            recent: tables.recent().iter().map(|r| f64::from(*r)).collect(),
            tables: [
                dense(tables.next(), items, far),
                dense(tables.near(), items, near),
                dense(tables.ease(), items, ease),
            ],
        }
    }
}

fn dense(rows: &Rows, items: usize, of: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    let mut out = vec![f32::NAN; items * items];
    let mut row = Row::default();
    for item in 0..items {
        rows.read(item as u32, &mut row);
        for (column, value) in row.columns.iter().zip(&row.values) {
            if *value != 0.0 {
                out[item * items + *column as usize] = of(*value, row.background);
            }
        }
    }
    out
}

/// What changed between two snapshots.
pub(super) struct Change {
    pub(super) items: usize,
    /// People before.
    pub(super) before: Vec<u64>,
    /// Members of the cell who met the item; where the threshold hides it afterwards, the least
    /// number that explains that. 0 where nothing is visible.
    pub(super) members: Vec<u64>,
    /// Whether the threshold hides the item afterwards.
    pub(super) hidden: Vec<bool>,
    /// By how much what was met lately fell: least and most.
    pub(super) lately: Vec<[f64; 2]>,
    /// A code for each place of the three tables.
    codes: [Vec<u8>; TABLES],
}

impl Change {
    /// From the snapshots before and after a cell has gone. `exact`: tables are whole, not packed.
    pub(super) fn new(before: &View, after: &View, k: u64, exact: bool) -> Self {
        let items = before.items;
        let pairs = || before.seen.iter().zip(&after.seen);
        let members = pairs().map(|(b, a)| match *a {
            0 if *b > 0 => (*b + 1).saturating_sub(k).max(1),
            _ => b.saturating_sub(*a),
        });
        let hidden: Vec<bool> = pairs().map(|(b, a)| *a == 0 && *b > 0).collect();
        let lately = (0..items).map(|i| {
            let [b_least, b_most] = interval(before.recent[i], exact);
            let [a_least, a_most] = interval(after.recent[i], exact);
            match hidden[i] {
                true => [0.0, b_most],
                false => [(b_least - a_most).max(0.0), (b_most - a_least).max(0.0)],
            }
        });
        let still = if exact { 1e-3 } else { 0.15 };
        let codes = |table: usize| -> Vec<u8> {
            let old = before.tables[table].iter();
            let both = old.zip(&after.tables[table]);
            both.map(|(b, a)| code(table, *b, *a, still)).collect()
        };
        Self {
            items,
            members: members.collect(),
            before: before.seen.clone(),
            lately: lately.collect(),
            hidden,
            codes: [codes(0), codes(1), codes(2)],
        }
    }

    /// Codes of a place and of its mirror image in every table.
    pub(super) fn codes(&self, row: usize, column: usize) -> [u8; 2 * TABLES] {
        let at = row * self.items + column;
        let mirror = column * self.items + row;
        let [far, near, ease] = &self.codes;
        [
            far[at],
            far[mirror],
            near[at],
            near[mirror],
            ease[at],
            ease[mirror],
        ]
    }
}

/// Bounds of a number that was given as a level.
fn interval(recent: f64, exact: bool) -> [f64; 2] {
    let half = (0.5 / RECENT_PER_OCTAVE).exp2();
    match recent {
        // Single precision of a sum.
        r if exact => [r * (1.0 - 1e-6), r * (1.0 + 1e-6)],
        r if r <= 0.0 => [0.0, RECENT_UNIT * half],
        r => [r / half, r * half],
    }
}

/// How a value changed, in levels of its packing.
fn code(table: usize, before: f32, after: f32, still: f32) -> u8 {
    let fall = match (before.is_nan(), after.is_nan()) {
        (true, true) => return 0,
        (false, true) => return 1,
        (true, false) => return 2,
        // Log-lifts are logarithms already.
        _ if table == 1 => (before - after) * std::f32::consts::LOG2_E * PER_OCTAVE,
        _ if before.signum() != after.signum() => return 9,
        _ => (before.abs() / after.abs()).log2() * PER_OCTAVE,
    };
    match fall {
        f if f.abs() < still => 3,
        f if f < -0.7 => 4,
        f if f < 0.0 => 5,
        f if f < 0.7 => 6,
        f if f < 1.5 => 7,
        f if f < 3.0 => 8,
        _ => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vanishes_falls_and_stays_has_codes_of_its_own() {
        let none = f32::NAN;
        let codes = [
            code(0, none, none, 0.15),
            code(0, 5.0, none, 0.15),
            code(0, none, 5.0, 0.15),
            code(0, 5.0, 5.0, 0.15),
            code(0, 5.0, 5.5, 0.15),
            code(0, 5.0, 5.2, 0.15),
            code(0, 5.0, 4.8, 0.15),
            code(0, 5.0, 4.6, 0.15),
            code(0, 5.0, 4.2, 0.15),
            code(0, 5.0, 2.0, 0.15),
        ];
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(
            code(2, 0.1, -0.1, 0.15),
            9,
            "a weight that changes its sign"
        );
        assert_eq!(code(1, -0.5, -0.5, 0.15), 3);
    }

    #[test]
    fn a_level_stands_for_an_interval() {
        let [least, most] = interval(0.05 * 4.0, false);
        assert!(least < 0.2 && 0.2 < most && most / least < 1.03);
        assert_eq!(interval(0.0, false)[0], 0.0);
    }
}
