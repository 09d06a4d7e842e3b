//! Tables of one sparse row per item: what is added to a score when the item is in a history.

/// One row, decoded: ascending columns with their values, over a background.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// What columns without an entry have; each table says in which unit.
    pub background: f32,
    /// Columns, ascending.
    pub columns: Vec<u32>,
    /// Difference from the background, for each column.
    pub values: Vec<f32>,
}

impl Row {
    /// The value in a column, less the background.
    pub fn get(&self, column: u32) -> f32 {
        self.columns
            .binary_search(&column)
            .map_or(0.0, |i| self.values[i])
    }

    /// The `keep` entries of largest magnitude; of equal ones those with lower columns.
    #[must_use]
    pub fn cut(&self, keep: usize) -> Self {
        self.cut_by(keep, |_, value| f64::from(value.abs()))
    }

    /// The `keep` most important entries; of equally important ones those with lower columns.
    #[must_use]
    pub fn cut_by(&self, keep: usize, importance: impl Fn(u32, f32) -> f64) -> Self {
        if self.columns.len() <= keep {
            return self.clone();
        }
        let weights: Vec<f64> = self
            .columns
            .iter()
            .zip(&self.values)
            .map(|(column, value)| importance(*column, *value))
            .collect();
        let mut order: Vec<usize> = (0..self.columns.len()).collect();
        let larger = |a: &usize, b: &usize| {
            let by_weight = weights[*b].total_cmp(&weights[*a]);
            by_weight.then(self.columns[*a].cmp(&self.columns[*b]))
        };
        if keep > 0 {
            order.select_nth_unstable_by(keep - 1, larger);
        }
        order.truncate(keep);
        order.sort_unstable();
        Self {
            background: self.background,
            columns: order.iter().map(|i| self.columns[*i]).collect(),
            values: order.iter().map(|i| self.values[*i]).collect(),
        }
    }
}

/// A table: plain on the server, packed on devices.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    /// Every row decoded.
    Plain(Vec<Row>),
    /// Bits, decoded row by row.
    Packed(crate::snapshot::PackedRows),
}

impl Rows {
    /// Reads the row of an item into `out`. Of an item that is newer than the table nothing is
    /// known: its row is empty.
    pub fn read(&self, item: u32, out: &mut Row) {
        if item as usize >= self.len() {
            *out = Row::default();
            return;
        }
        match self {
            Self::Plain(rows) => out.clone_from(&rows[item as usize]),
            Self::Packed(packed) => packed.read(item, out),
        }
    }

    /// One entry, less the background, and the row's background.
    pub fn entry(&self, item: u32, column: u32, scratch: &mut Row) -> (f32, f32) {
        self.read(item, scratch);
        (scratch.get(column), scratch.background)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(rows) => rows.len(),
            Self::Packed(packed) => packed.len(),
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
