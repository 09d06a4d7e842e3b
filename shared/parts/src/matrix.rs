//! Square matrices of unsigned 64-bit sums over items.

use std::collections::BTreeSet;

use rayon::prelude::*;

use crate::codec::{Reader, Writer};
use crate::part::Refused;

/// Up to this many items rows are dense; above, rows hold their non-zero entries. Of few items most
/// pairs occur, of many hardly any.
pub const DENSE_ITEMS: usize = 4_096;

/// One entry of a matrix: row, column, amount.
pub(crate) type Entry = (u32, u32, u64);

/// A square matrix of sums. Which layout it has depends on its size alone, so that equal sums have
/// equal bytes.
///
/// Rows and columns of cleared items stay zero whatever is added or subtracted later: people who
/// met such an item before it was taken down can still be taken out exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SumMatrix {
    rows: Vec<Row>,
    cleared: BTreeSet<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Row {
    Dense(Vec<u64>),
    /// Ascending columns; no value is zero.
    Sparse(Vec<u32>, Vec<u64>),
}

impl Row {
    fn empty(items: usize) -> Self {
        if items <= DENSE_ITEMS {
            Self::Dense(vec![0; items])
        } else {
            Self::Sparse(vec![], vec![])
        }
    }

    fn get(&self, column: u32) -> u64 {
        match self {
            Self::Dense(values) => values[column as usize],
            Self::Sparse(columns, values) => {
                columns.binary_search(&column).map_or(0, |i| values[i])
            }
        }
    }

    /// Adds entries with ascending columns.
    fn add(&mut self, entries: &[(u32, u64)]) {
        match self {
            Self::Dense(values) => {
                for (column, amount) in entries {
                    values[*column as usize] += amount;
                }
            }
            Self::Sparse(columns, values) => {
                let mut merged_columns = Vec::with_capacity(columns.len() + entries.len());
                let mut merged_values = Vec::with_capacity(columns.len() + entries.len());
                let mut old = 0;
                for (column, amount) in entries {
                    while old < columns.len() && columns[old] < *column {
                        merged_columns.push(columns[old]);
                        merged_values.push(values[old]);
                        old += 1;
                    }
                    let mut sum = *amount;
                    if old < columns.len() && columns[old] == *column {
                        sum += values[old];
                        old += 1;
                    }
                    merged_columns.push(*column);
                    merged_values.push(sum);
                }
                merged_columns.extend_from_slice(&columns[old..]);
                merged_values.extend_from_slice(&values[old..]);
                *columns = merged_columns;
                *values = merged_values;
            }
        }
    }

    /// Subtracts entries with ascending columns that are known to be there.
    fn subtract(&mut self, entries: &[(u32, u64)]) {
        match self {
            Self::Dense(values) => {
                for (column, amount) in entries {
                    values[*column as usize] -= amount;
                }
            }
            Self::Sparse(columns, values) => {
                for (column, amount) in entries {
                    if let Ok(i) = columns.binary_search(column) {
                        values[i] -= amount;
                    }
                }
                let mut kept = 0;
                for i in 0..columns.len() {
                    if values[i] > 0 {
                        columns[kept] = columns[i];
                        values[kept] = values[i];
                        kept += 1;
                    }
                }
                columns.truncate(kept);
                values.truncate(kept);
            }
        }
    }

    /// Whether every sum of `row` that counts is at most what is here.
    fn holds_all(&self, row: &RowSum, counts: impl Fn(u32) -> bool) -> bool {
        let mut touched = row.touched.iter().filter(|c| counts(**c));
        match self {
            Self::Dense(values) => touched.all(|c| values[*c as usize] >= row.of(*c)),
            Self::Sparse(columns, values) => {
                let entries = columns.iter().zip(values);
                let held = |e: &(&u32, &u64)| (1..=*e.1).contains(&row.of(*e.0));
                // A column that is not here, or has less, is not counted. No entry is of a column
                // that does not count.
                entries.filter(held).count() == touched.count()
            }
        }
    }

    /// Subtracts a row that it [`Self::holds_all`] of.
    fn subtract_all(&mut self, row: &RowSum, counts: impl Fn(u32) -> bool) {
        match self {
            Self::Dense(values) => {
                for column in row.touched.iter().filter(|c| counts(**c)) {
                    values[*column as usize] -= row.of(*column);
                }
            }
            Self::Sparse(columns, values) => {
                let mut kept = 0;
                for i in 0..columns.len() {
                    let left = values[i] - row.of(columns[i]);
                    if left > 0 {
                        columns[kept] = columns[i];
                        values[kept] = left;
                        kept += 1;
                    }
                }
                columns.truncate(kept);
                values.truncate(kept);
            }
        }
    }

    fn for_each(&self, mut f: impl FnMut(u32, u64)) {
        match self {
            Self::Dense(values) => {
                for (column, value) in values.iter().enumerate() {
                    if *value > 0 {
                        f(column as u32, *value);
                    }
                }
            }
            Self::Sparse(columns, values) => {
                for (column, value) in columns.iter().zip(values) {
                    f(*column, *value);
                }
            }
        }
    }
}

/// A row that is being added up: dense while it is written, read in ascending order of columns.
pub(crate) struct RowSum {
    values: Vec<u64>,
    /// Columns that have something.
    touched: Vec<u32>,
    /// Whether they are noted: not where the values are the row's own.
    notes: bool,
}

impl RowSum {
    fn new(items: usize) -> Self {
        Self {
            values: vec![0; items],
            touched: vec![],
            notes: true,
        }
    }

    /// Lets `write` add to a row itself.
    fn into(&mut self, row: &mut Vec<u64>, write: impl FnOnce(&mut Self)) {
        std::mem::swap(&mut self.values, row);
        self.notes = false;
        write(self);
        self.notes = true;
        std::mem::swap(&mut self.values, row);
    }

    /// Adds to one column.
    pub(crate) fn add(&mut self, column: u32, amount: u64) {
        let value = &mut self.values[column as usize];
        if self.notes && *value == 0 && amount > 0 {
            self.touched.push(column);
        }
        *value += amount;
    }

    fn of(&self, column: u32) -> u64 {
        self.values[column as usize]
    }

    /// Forgets the row.
    fn clear(&mut self) {
        for column in self.touched.drain(..) {
            self.values[column as usize] = 0;
        }
    }

    /// Empties the row.
    fn drain(&mut self) -> Vec<(u32, u64)> {
        self.touched.sort_unstable();
        self.touched
            .drain(..)
            .map(|column| (column, std::mem::take(&mut self.values[column as usize])))
            .collect()
    }
}

impl SumMatrix {
    /// Zeros over `items` items.
    pub fn new(items: usize) -> Self {
        Self {
            rows: (0..items).map(|_| Row::empty(items)).collect(),
            cleared: BTreeSet::new(),
        }
    }

    /// From whole rows, each as long as there are rows; at most [`DENSE_ITEMS`].
    pub(crate) fn of_rows(rows: Vec<Vec<u64>>) -> Self {
        Self {
            rows: rows.into_iter().map(Row::Dense).collect(),
            cleared: BTreeSet::new(),
        }
    }

    /// Number of rows, and of columns.
    pub fn items(&self) -> usize {
        self.rows.len()
    }

    /// One entry.
    pub fn get(&self, row: u32, column: u32) -> u64 {
        self.rows[row as usize].get(column)
    }

    /// Calls `f(column, value)` for the non-zero entries of a row, columns ascending.
    pub fn for_row(&self, row: u32, f: impl FnMut(u32, u64)) {
        self.rows[row as usize].for_each(f);
    }

    /// Number of non-zero entries.
    pub fn entries(&self) -> u64 {
        let count = |row: &Row| match row {
            Row::Dense(values) => values.iter().filter(|v| **v > 0).count(),
            Row::Sparse(columns, _) => columns.len(),
        };
        self.rows.par_iter().map(|row| count(row) as u64).sum()
    }

    /// Bytes of memory for entries.
    pub fn memory(&self) -> u64 {
        let bytes = |row: &Row| match row {
            Row::Dense(values) => values.capacity() * 8,
            Row::Sparse(columns, values) => columns.capacity() * 4 + values.capacity() * 8,
        };
        self.rows.iter().map(|row| bytes(row) as u64).sum()
    }

    /// Sum of all entries. It cannot overflow for the sums of this crate that tests add up.
    pub fn total(&self) -> u128 {
        let mut total = 0;
        for row in 0..self.rows.len() as u32 {
            self.for_row(row, |_, value| total += u128::from(value));
        }
        total
    }

    /// Whether an entry counts: neither its row nor its column was cleared.
    pub(crate) fn counts(&self, row: u32, column: u32) -> bool {
        self.cleared.is_empty() || !(self.cleared.contains(&row) || self.cleared.contains(&column))
    }

    /// Adds entries that are sorted by row, then column, each pair once.
    pub(crate) fn add(&mut self, entries: &[Entry]) {
        for (row, columns) in self.by_row(entries) {
            self.rows[row as usize].add(&columns);
        }
    }

    /// Whether every entry that counts is at most what the matrix holds.
    pub(crate) fn holds(&self, entries: &[Entry]) -> bool {
        entries
            .iter()
            .all(|(row, column, n)| self.get(*row, *column) >= *n || !self.counts(*row, *column))
    }

    /// Takes entries out that the matrix [`Self::holds`].
    pub(crate) fn subtract(&mut self, entries: &[Entry]) {
        for (row, columns) in self.by_row(entries) {
            self.rows[row as usize].subtract(&columns);
        }
    }

    /// The entries that count, row by row.
    fn by_row(&self, entries: &[Entry]) -> Vec<(u32, Vec<(u32, u64)>)> {
        let mut out = vec![];
        for row in entries.chunk_by(|a, b| a.0 == b.0) {
            let counting = row.iter().filter(|e| self.counts(e.0, e.1));
            let columns: Vec<(u32, u64)> = counting.map(|e| (e.1, e.2)).collect();
            if !columns.is_empty() {
                out.push((row[0].0, columns));
            }
        }
        out
    }

    /// Adds what `terms` puts into each row. Rows are independent, so threads do not matter.
    pub(crate) fn add_rows(&mut self, terms: impl Fn(u32, &mut RowSum) + Sync) {
        let items = self.rows.len();
        let cleared = &self.cleared;
        self.rows.par_iter_mut().enumerate().for_each_init(
            || RowSum::new(items),
            |sum, (row, target)| {
                if cleared.contains(&(row as u32)) {
                    return;
                }
                if let Row::Dense(values) = target
                    && cleared.is_empty()
                {
                    return sum.into(values, |sum| terms(row as u32, sum));
                }
                terms(row as u32, sum);
                let mut entries = sum.drain();
                if !cleared.is_empty() {
                    entries.retain(|(column, _)| !cleared.contains(column));
                }
                target.add(&entries);
            },
        );
    }

    /// Takes out what `terms` puts into each row; false if the matrix does not hold all of it, and
    /// nothing was changed.
    pub(crate) fn subtract_rows(&mut self, terms: impl Fn(u32, &mut RowSum) + Sync) -> bool {
        let items = self.rows.len();
        let cleared = &self.cleared;
        let counts = |column: u32| !cleared.contains(&column);
        // A row is checked just before it is changed: large matrices are read once.
        let rows = self.rows.par_iter_mut().enumerate();
        let done = rows.map_init(
            || RowSum::new(items),
            |sum, (row, target)| {
                if !counts(row as u32) {
                    return true;
                }
                terms(row as u32, sum);
                let held = sum.touched.is_empty() || target.holds_all(sum, counts);
                if held && !sum.touched.is_empty() {
                    target.subtract_all(sum, counts);
                }
                sum.clear();
                held
            },
        );
        let done: Vec<bool> = done.collect();
        if done.iter().all(|done| *done) {
            return true;
        }
        self.add_rows(|row, sum| {
            if done[row as usize] {
                terms(row, sum);
            }
        });
        false
    }

    /// Makes room for more items; what is there stays.
    pub fn grow(&mut self, items: usize) {
        if items <= self.rows.len() {
            return;
        }
        let mut grown = Self::new(items);
        for row in 0..self.rows.len() as u32 {
            let mut entries = vec![];
            self.for_row(row, |column, value| entries.push((column, value)));
            grown.rows[row as usize].add(&entries);
        }
        grown.cleared = std::mem::take(&mut self.cleared);
        *self = grown;
    }

    /// Sets rows and columns of the items to zero, now and for whatever comes later.
    pub fn clear_items(&mut self, items: &[u32]) {
        self.cleared.extend(items.iter().copied());
        let gone = &self.cleared;
        let whole = self.rows.len();
        for (at, row) in self.rows.iter_mut().enumerate() {
            if gone.contains(&(at as u32)) {
                *row = Row::empty(whole);
                continue;
            }
            let mut entries = vec![];
            row.for_each(|column, value| {
                if gone.contains(&column) {
                    entries.push((column, value));
                }
            });
            row.subtract(&entries);
        }
    }

    pub(crate) fn encode(&self, out: &mut Writer) {
        for row in &self.rows {
            let mut entries = vec![];
            row.for_each(|column, value| entries.push((column, value)));
            out.number(entries.len() as u64);
            let mut next = 0;
            for (column, value) in entries {
                out.number(u64::from(column - next));
                out.number(value);
                next = column + 1;
            }
        }
    }

    /// Reads [`Self::encode`]; no entry may be above `most`, or be one of a cleared item.
    pub(crate) fn decode(
        items: usize,
        cleared: &BTreeSet<u32>,
        most: u64,
        from: &mut Reader<'_>,
    ) -> Result<Self, Refused> {
        let mut matrix = Self::new(items);
        matrix.cleared.clone_from(cleared);
        for row in 0..items {
            let count = from.count(items, "entries of a row")?;
            let mut entries = Vec::with_capacity(count);
            let mut next = 0u64;
            for _ in 0..count {
                let column = next.saturating_add(from.number()?);
                if column >= items as u64 {
                    return Err(from.bad(format!("column {column}, expected below {items}")));
                }
                let value = from.number()?;
                if value == 0 || value > most {
                    return Err(from.bad(format!("an entry of {value}, expected 1 to {most}")));
                }
                if !matrix.counts(row as u32, column as u32) {
                    return Err(from.bad(format!("an entry of {row}, {column}: one was cleared")));
                }
                entries.push((column as u32, value));
                next = column + 1;
            }
            matrix.rows[row].add(&entries);
        }
        Ok(matrix)
    }
}

/// Writes what is added to a row.
type OfRow<'a> = Box<dyn Fn(u32, &mut RowSum) + Sync + 'a>;

/// A matrix, with what is added to its rows or taken out of them.
pub(crate) struct Terms<'a> {
    pub(crate) matrix: &'a mut SumMatrix,
    pub(crate) of_row: OfRow<'a>,
}

impl Terms<'_> {
    fn add(&mut self) {
        self.matrix.add_rows(&self.of_row);
    }
}

/// Adds to all of these matrices.
pub(crate) fn add_all(all: Vec<Terms<'_>>) {
    all.into_iter().for_each(|mut terms| terms.add());
}

/// Takes out of all of these matrices; false if one does not hold it, and nothing was changed.
pub(crate) fn subtract_all(all: &mut [Terms<'_>]) -> bool {
    for at in 0..all.len() {
        let Terms { matrix, of_row } = &mut all[at];
        if !matrix.subtract_rows(&*of_row) {
            all[..at].iter_mut().for_each(Terms::add);
            return false;
        }
    }
    true
}

/// Sorts entries and adds up those of one place.
pub(crate) fn collect(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_unstable_by_key(|e| (e.0, e.1));
    let mut out: Vec<Entry> = Vec::with_capacity(entries.len());
    for entry in entries {
        match out.last_mut() {
            Some(last) if (last.0, last.1) == (entry.0, entry.1) => last.2 += entry.2,
            _ => out.push(entry),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_add_and_subtract_alike() {
        let entries = collect(vec![(1, 2, 5), (0, 0, 1), (1, 2, 3), (1, 0, 2)]);
        assert_eq!(entries, [(0, 0, 1), (1, 0, 2), (1, 2, 8)]);
        for items in [10, DENSE_ITEMS + 1] {
            let mut m = SumMatrix::new(items);
            m.add(&entries);
            m.add(&[(1, 1, 4)]);
            assert_eq!(m.get(1, 2), 8);
            assert_eq!(m.entries(), 4);
            assert!(!m.holds(&[(0, 1, 1)]));
            m.subtract(&entries);
            let mut only = SumMatrix::new(items);
            only.add(&[(1, 1, 4)]);
            assert_eq!(m, only);
        }
    }

    #[test]
    fn a_matrix_grows_over_the_limit_and_loses_items() {
        let mut m = SumMatrix::new(3);
        m.add(&[(0, 1, 2), (2, 2, 3)]);
        m.grow(DENSE_ITEMS + 5);
        assert_eq!((m.get(0, 1), m.get(2, 2), m.entries()), (2, 3, 2));
        m.clear_items(&[1]);
        assert_eq!((m.get(0, 1), m.entries()), (0, 1));
        m.add(&[(0, 1, 2), (1, 2, 7), (2, 2, 3)]);
        assert_eq!((m.get(0, 1), m.get(1, 2), m.get(2, 2)), (0, 0, 6));
        assert!(m.holds(&[(0, 1, 2), (2, 2, 6)]));
        m.subtract(&[(0, 1, 2), (2, 2, 3)]);
        assert_eq!((m.get(2, 2), m.entries()), (3, 1));
    }

    #[test]
    fn encodings_are_checked() {
        let mut m = SumMatrix::new(3);
        m.add(&[(0, 1, 2), (2, 0, 3), (2, 2, 300)]);
        let mut out = Writer::default();
        m.encode(&mut out);
        let bytes = out.into_bytes();
        let nothing = BTreeSet::new();
        let decode = |items: usize, cleared: &BTreeSet<u32>, most: u64, bytes: &[u8]| {
            SumMatrix::decode(items, cleared, most, &mut Reader::new(bytes))
        };
        let back = decode(3, &nothing, 300, &bytes).expect("its own encoding");
        assert_eq!(back, m);
        for cut in 0..bytes.len() {
            assert!(decode(3, &nothing, 300, &bytes[..cut]).is_err());
        }
        assert!(decode(1, &nothing, 300, &bytes).is_err());
        assert!(decode(3, &nothing, 299, &bytes).is_err());
        assert!(decode(3, &BTreeSet::from([0]), 300, &bytes).is_err());
    }
}
