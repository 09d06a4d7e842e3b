//! Rows in few bits.

use serde::{Deserialize, Serialize};

use crate::rows::Row;
use crate::snapshot::bits::{BitReader, BitWriter};

/// Number of levels per factor of two, on a grid that is the same for all rows: a value that
/// changes little keeps its code, so that the next snapshot's delta is small.
const PER_OCTAVE: f64 = 8.0;
/// The largest level: values up to 2^16.
const TOP: i32 = 128;
/// Levels below which a value counts as 0 (under 2^-24).
const BOTTOM: i32 = -192;

/// The most entries of a row: their number has 16 bits.
pub(crate) const MOST_ENTRIES: usize = 65_535;

/// How rows are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowPacking {
    /// Entries of a row of EASE and of the near transitions, 1 to 65,535; half as many of the far
    /// ones.
    pub keep: usize,
    /// Bits of a value's level, 2 to 8. A row spans `2^(2^bits / 8)` from its largest value to its
    /// smallest; smaller ones are rounded up to that.
    pub bits: u32,
}

/// A table of packed rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedRows {
    items: u32,
    bits: u32,
    ends: Vec<u32>,
    bytes: Vec<u8>,
}

impl PackedRows {
    /// No rows yet, over a catalogue of `items`.
    pub(crate) fn new(items: u32, bits: u32) -> Self {
        Self {
            items,
            bits,
            ends: vec![],
            bytes: vec![],
        }
    }

    /// Adds a row that [`pack`] wrote; `None` if it is not one.
    pub(crate) fn push(&mut self, record: &[u8]) -> Option<()> {
        unpack(record, self.items, self.bits, &mut Row::default())?;
        self.bytes.extend_from_slice(record);
        self.ends.push(u32::try_from(self.bytes.len()).ok()?);
        Some(())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Reads a row.
    pub fn read(&self, item: u32, out: &mut Row) {
        let at = item as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        let record = &self.bytes[start as usize..self.ends[at] as usize];
        // Every record was unpacked once when it was added.
        let _ = unpack(record, self.items, self.bits, out);
    }
}

/// Bits of the low part of a gap between columns: about the logarithm of the mean gap.
fn low_bits(items: u32, count: u32) -> u32 {
    let mean = items / count.max(1);
    mean.max(1).ilog2()
}

fn level(value: f32) -> i32 {
    let level = (libm::log2(f64::from(value.abs())) * PER_OCTAVE).round();
    (level as i32).min(TOP)
}

fn of_level(level: i32) -> f32 {
    libm::exp2(f64::from(level) / PER_OCTAVE) as f32
}

/// The row's bytes: background (bfloat16), number of entries, level of the largest; then for each
/// entry its column's gap, its level below the largest, its sign.
pub(crate) fn pack(row: &Row, items: u32, packing: &RowPacking) -> Vec<u8> {
    let kept: Vec<(u32, f32)> = row
        .columns
        .iter()
        .zip(&row.values)
        .filter(|(_, v)| v.is_finite() && **v != 0.0 && level(**v) > BOTTOM)
        .map(|(c, v)| (*c, *v))
        .collect();
    let mut out = BitWriter::default();
    out.bits(u32::from(bfloat16(row.background)), 16);
    out.bits(kept.len() as u32, 16);
    if kept.is_empty() {
        return out.into_bytes();
    }
    let top = kept.iter().map(|(_, v)| level(*v)).max().unwrap_or(0);
    out.bits((top - BOTTOM) as u32, 9);
    let signed = kept.iter().any(|(_, v)| *v < 0.0);
    out.bits(u32::from(signed), 1);
    let low = low_bits(items, kept.len() as u32);
    let most = (1 << packing.bits) - 1;
    let mut next = 0;
    for (column, value) in kept {
        out.rice(column - next, low);
        next = column + 1;
        out.bits((top - level(value)).min(most) as u32, packing.bits);
        if signed {
            out.bits(u32::from(value < 0.0), 1);
        }
    }
    out.into_bytes()
}

/// Reads what [`pack`] wrote; `None` if it is anything else.
fn unpack(record: &[u8], items: u32, bits: u32, out: &mut Row) -> Option<()> {
    out.columns.clear();
    out.values.clear();
    let mut from = BitReader::new(record);
    out.background = f32::from_bits(from.bits(16) << 16);
    let count = from.bits(16);
    if !out.background.is_finite() || from.ended() || count > items {
        return None;
    }
    if count == 0 {
        return from.at_end().then_some(());
    }
    let top = from.bits(9) as i32 + BOTTOM;
    let signed = from.bits(1) == 1;
    let low = low_bits(items, count);
    let mut next = 0u32;
    for _ in 0..count {
        let column = next.checked_add(from.rice(low))?;
        if column >= items || from.ended() {
            return None;
        }
        next = column + 1;
        let value = of_level(top - from.bits(bits) as i32);
        let negative = signed && from.bits(1) == 1;
        out.columns.push(column);
        out.values.push(if negative { -value } else { value });
    }
    (top <= TOP && from.at_end()).then_some(())
}

/// The upper half of a float, rounded.
fn bfloat16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits.saturating_add(0x8000)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_within_its_grid() {
        let row = Row {
            background: -0.25,
            columns: vec![0, 3, 4, 900],
            values: vec![0.5, -0.07, 0.1, 1.0],
        };
        let packing = RowPacking { keep: 3, bits: 5 };
        let record = pack(&row.cut(3), 1000, &packing);
        let mut table = PackedRows::new(1000, 5);
        table.push(&record).expect("a row");
        let mut back = Row::default();
        table.read(0, &mut back);
        assert_eq!(back.columns, [0, 4, 900]);
        assert_eq!(back.background, -0.25);
        for (a, b) in back.values.iter().zip([0.5, 0.1, 1.0]) {
            assert!((a / b - 1.0).abs() < 0.045, "{a} for {b}");
        }
    }

    #[test]
    fn every_cut_or_changed_row_is_refused_or_safe() {
        let row = Row {
            background: 0.0,
            columns: vec![5, 30],
            values: vec![0.5, -0.07],
        };
        let record = pack(&row, 40, &RowPacking { keep: 9, bits: 4 });
        for cut in 0..record.len() {
            assert!(PackedRows::new(40, 4).push(&record[..cut]).is_none());
        }
        for bit in 0..record.len() * 8 {
            let mut other = record.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            let mut table = PackedRows::new(40, 4);
            if table.push(&other).is_some() {
                let mut back = Row::default();
                table.read(0, &mut back);
                assert!(back.columns.iter().all(|c| *c < 40));
                assert!(back.values.iter().all(|v| v.is_finite()));
            }
        }
    }
}
