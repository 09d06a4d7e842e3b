//! EASE (Steck, WWW 2019, arXiv 1905.03375): a linear model from the items of a history to the next
//! one, in closed form over the pair counts.

use rayon::prelude::*;

use crate::linalg::{Matrix, NotPositive, cholesky, inverse};
use crate::matrix::SumMatrix;
use crate::rows::Row;

/// Ridge penalty.
pub(crate) const LAMBDA: f64 = 500.0;
/// Smallest pivot that a factor may have, as a share of the ridge penalty. Pair counts of people
/// never have one below the penalty itself; pairs that the threshold hides may lower it.
const LEAST_PIVOT: f64 = 0.05;
/// Most doublings of the ridge penalty: more than any counts need.
const DOUBLINGS: u32 = 64;
/// Up to this many items EASE is solved as one dense system.
pub const DENSE_SOLVE: usize = 4_096;
/// Neighbours of an item in the other form.
pub const NEIGHBOURS: usize = 100;
/// Damping of the cosine that chooses them, in people.
const DAMPING: f64 = 20.0;

/// A view of the pair counts that hides entries below the threshold.
pub(crate) struct Shared<'a> {
    pub(crate) met: &'a SumMatrix,
    pub(crate) k: u64,
}

impl Shared<'_> {
    /// Non-zero entries of a row that at least `k` people share.
    pub(crate) fn for_row(&self, row: u32, mut f: impl FnMut(u32, u64)) {
        let k = self.k;
        self.met.for_row(row, |column, count| {
            if count >= k {
                f(column, count);
            }
        });
    }
}

/// The Cholesky factor of `counts + lambda I`.
///
/// Counts of pairs are positive semidefinite. They may be so no longer once the threshold has
/// hidden the small ones: with a high threshold and many items `lambda` = 500 is not enough. Then
/// it is doubled until it is. What is hidden has no part in that.
fn factor(counts: impl Fn() -> Matrix) -> Result<Matrix, NotPositive> {
    let mut ridge = LAMBDA;
    let mut tried = 0;
    loop {
        let mut gram = counts();
        let n = gram.rows;
        for i in 0..n {
            gram.row_mut(i)[i] += ridge;
        }
        let failed = match cholesky(&mut gram) {
            Ok(()) => low_pivot(&gram),
            Err(failed) => Some(failed),
        };
        let Some(failed) = failed else {
            return Ok(gram);
        };
        if tried == DOUBLINGS {
            return Err(failed);
        }
        tried += 1;
        ridge *= 2.0;
    }
}

/// A pivot so small that the inverse says more of the hidden pairs than of the shown ones.
fn low_pivot(factor: &Matrix) -> Option<NotPositive> {
    (0..factor.rows).find_map(|row| {
        let root = factor.at(row, row);
        let pivot = root * root;
        (pivot < LEAST_PIVOT * LAMBDA).then_some(NotPositive { row, pivot })
    })
}

/// All rows of `B` with `B_ij = -P_ij / P_jj`, `P = (G + lambda I)^-1`, zero diagonal. The
/// background of a row is the mean of its entries. `lambda` grows where `factor` says.
///
/// # Errors
/// [`NotPositive`] for counts that are no numbers: damaged sums.
pub(crate) fn dense(shared: &Shared<'_>) -> Result<Vec<Row>, NotPositive> {
    let n = shared.met.items();
    let counts = || {
        let mut counts = Matrix::zeros(n, n);
        for i in 0..n {
            let row = counts.row_mut(i);
            shared.for_row(i as u32, |j, count| row[j as usize] = count as f64);
        }
        counts
    };
    let gram = factor(counts)?;
    let p = inverse(&gram);
    drop(gram);
    let scale: Vec<f64> = (0..n).map(|j| -1.0 / p.at(j, j)).collect();
    Ok((0..n)
        .into_par_iter()
        .map(|i| {
            let own: Vec<f64> = p.row(i).iter().zip(&scale).map(|(x, s)| x * s).collect();
            let others = (n - 1).max(1) as f64;
            let sum: f64 = own.iter().sum::<f64>() - own[i];
            let background = (sum / others) as f32;
            let mut columns = Vec::with_capacity(n);
            let mut values = Vec::with_capacity(n);
            for (j, value) in own.iter().enumerate() {
                let value = if j == i { 0.0 } else { *value as f32 };
                columns.push(j as u32);
                values.push(value - background);
            }
            Row {
                background,
                columns,
                values,
            }
        })
        .collect())
}

/// One column of the neighbourhood form: weights of the item's neighbours.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Column {
    /// Neighbours, ascending.
    pub neighbours: Vec<u32>,
    /// What each adds to the item's score.
    pub weights: Vec<f32>,
}

/// The neighbourhood form: for every item a ridge over its [`NEIGHBOURS`] nearest items by damped
/// cosine `G_ij / sqrt((pop_i + 20)(pop_j + 20))`.
pub(crate) fn neighbourhood(
    shared: &Shared<'_>,
    people: &[u64],
    which: &[u32],
) -> Result<Vec<Column>, NotPositive> {
    which
        .par_iter()
        .map_init(
            || Scratch::new(people.len()),
            |scratch, item| column(shared, people, *item, scratch),
        )
        .collect()
}

/// Where in the neighbourhood an item is; one more than its place, 0 for the rest.
struct Scratch {
    place: Vec<u8>,
}

impl Scratch {
    fn new(items: usize) -> Self {
        Self {
            place: vec![0; items],
        }
    }
}

fn column(
    shared: &Shared<'_>,
    people: &[u64],
    item: u32,
    scratch: &mut Scratch,
) -> Result<Column, NotPositive> {
    let neighbours = nearest(shared, people, item);
    let m = neighbours.len();
    for (at, neighbour) in neighbours.iter().enumerate() {
        scratch.place[*neighbour as usize] = at as u8 + 1;
    }
    let mut counts = Matrix::zeros(m, m);
    for (at, neighbour) in neighbours.iter().enumerate() {
        let row = counts.row_mut(at);
        shared.for_row(*neighbour, |other, count| {
            let place = scratch.place[other as usize];
            if place > 0 {
                row[usize::from(place) - 1] = count as f64;
            }
        });
    }
    let mut right = vec![0.0; m];
    shared.for_row(item, |other, count| {
        let place = scratch.place[other as usize];
        if place > 0 {
            right[usize::from(place) - 1] = count as f64;
        }
    });
    for neighbour in &neighbours {
        scratch.place[*neighbour as usize] = 0;
    }
    let factor = factor(|| counts.clone())?;
    let solved = substitute(&factor, right);
    Ok(Column {
        neighbours,
        weights: solved.iter().map(|w| *w as f32).collect(),
    })
}

/// The nearest items, ascending; of equal ones the lower ones.
pub(crate) fn nearest(shared: &Shared<'_>, people: &[u64], item: u32) -> Vec<u32> {
    let own = people[item as usize] as f64 + DAMPING;
    let mut found: Vec<(f64, u32)> = vec![];
    shared.for_row(item, |other, count| {
        if other != item {
            let product = own * (people[other as usize] as f64 + DAMPING);
            found.push((count as f64 / product.sqrt(), other));
        }
    });
    let nearer = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if found.len() > NEIGHBOURS {
        found.select_nth_unstable_by(NEIGHBOURS - 1, nearer);
        found.truncate(NEIGHBOURS);
    }
    let mut out: Vec<u32> = found.into_iter().map(|f| f.1).collect();
    out.sort_unstable();
    out
}

/// Solves `L L' x = b`.
pub(crate) fn substitute(factor: &Matrix, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let mut sum = b[i];
        for (k, earlier) in b[..i].iter().enumerate() {
            sum -= factor.at(i, k) * earlier;
        }
        b[i] = sum / factor.at(i, i);
    }
    for i in (0..n).rev() {
        let mut sum = b[i];
        for (k, later) in b.iter().enumerate().skip(i + 1) {
            sum -= factor.at(k, i) * later;
        }
        b[i] = sum / factor.at(i, i);
    }
    b
}

/// Rows (by item of the history) from columns (by item that is scored).
pub(crate) fn transpose(columns: &[Column]) -> Vec<Row> {
    let mut rows = vec![Row::default(); columns.len()];
    for (item, column) in columns.iter().enumerate() {
        for (neighbour, weight) in column.neighbours.iter().zip(&column.weights) {
            let row = &mut rows[*neighbour as usize];
            row.columns.push(item as u32);
            row.values.push(*weight);
        }
    }
    rows
}
