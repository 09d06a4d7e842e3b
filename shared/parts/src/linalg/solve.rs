//! Cholesky factor and inverse of a symmetric positive definite matrix.

use rayon::prelude::*;

use super::product::{Panels, Target, add};
use super::{Matrix, vectorised};

/// Rows of a block. The result does not depend on it.
const BLOCK: usize = 96;

/// The matrix is not positive definite (to rounding).
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("the matrix is not positive definite at row {row}: pivot {pivot}, expected above 0")]
pub struct NotPositive {
    /// Row of the pivot.
    pub row: usize,
    /// The pivot.
    pub pivot: f64,
}

/// Replaces the lower triangle of `a` by `L` with `L L' = a` and clears the rest.
///
/// Element `(i, j)` is `(a_ij - sum over k < j of l_ik l_jk) / l_jj`, terms in ascending `k`.
pub(crate) fn cholesky(a: &mut Matrix) -> Result<(), NotPositive> {
    let n = a.rows;
    let mut start = 0;
    while start < n {
        let end = (start + BLOCK).min(n);
        factor_block(a, start, end)?;
        if end < n {
            solve_below(a, start, end);
            update_rest(a, start, end);
        }
        start = end;
    }
    for row in 0..n {
        a.row_mut(row)[row + 1..].fill(0.0);
    }
    Ok(())
}

/// The diagonal block, whose elements have the terms of earlier blocks already.
fn factor_block(a: &mut Matrix, start: usize, end: usize) -> Result<(), NotPositive> {
    vectorised(FactorBlock { a, start, end })
}

struct FactorBlock<'a> {
    a: &'a mut Matrix,
    start: usize,
    end: usize,
}

impl pulp::NullaryFnOnce for FactorBlock<'_> {
    type Output = Result<(), NotPositive>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        let Self { a, start, end } = self;
        let size = end - start;
        // The transpose: what a pivot changes lies side by side.
        let mut upper = [0.0; BLOCK * BLOCK];
        for row in 0..size {
            for column in 0..=row {
                upper[column * BLOCK + row] = a.at(start + row, start + column);
            }
        }
        for k in 0..size {
            let (head, tail) = upper.split_at_mut((k + 1) * BLOCK);
            let own = &mut head[k * BLOCK..k * BLOCK + size];
            let pivot = own[k];
            // `!(> 0)` holds for numbers that are not, too.
            if !(pivot > 0.0 && pivot.is_finite()) {
                let row = start + k;
                return Err(NotPositive { row, pivot });
            }
            let root = pivot.sqrt();
            own[k] = root;
            for value in &mut own[k + 1..] {
                *value /= root;
            }
            for i in k + 1..size {
                let row = &mut tail[(i - k - 1) * BLOCK..][i..size];
                let factor = -own[i];
                for (value, x) in row.iter_mut().zip(&own[i..]) {
                    *value = f64::mul_add(factor, *x, *value);
                }
            }
        }
        for row in 0..size {
            for column in 0..=row {
                a.row_mut(start + row)[start + column] = upper[column * BLOCK + row];
            }
        }
        Ok(())
    }
}

/// Rows that are solved side by side.
const LANES: usize = 8;

/// The rows below the diagonal block: `X L' = A`.
fn solve_below(a: &mut Matrix, start: usize, end: usize) {
    let n = a.columns;
    let (above, below) = a.data.split_at_mut(end * n);
    let above = &*above;
    below.par_chunks_mut((LANES * n).max(1)).for_each(|rows| {
        vectorised(SolveRight {
            rows,
            stride: n,
            first: start,
            factor: above,
            factor_stride: n,
            from: start,
            size: end - start,
        });
    });
}

/// Solves `x L' = row` for up to [`LANES`] rows; terms in ascending order.
pub(super) struct SolveRight<'a> {
    /// The rows, `stride` apart.
    pub(super) rows: &'a mut [f64],
    pub(super) stride: usize,
    /// The first column that is solved.
    pub(super) first: usize,
    /// Where `L` is: row and column `from` of a matrix.
    pub(super) factor: &'a [f64],
    pub(super) factor_stride: usize,
    pub(super) from: usize,
    /// Size of `L`.
    pub(super) size: usize,
}

impl pulp::NullaryFnOnce for SolveRight<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let lanes = self.rows.len() / self.stride;
        let mut x = vec![[0.0; LANES]; self.size];
        for column in 0..self.size {
            let mut sums = [0.0; LANES];
            for (lane, sum) in sums.iter_mut().take(lanes).enumerate() {
                *sum = self.rows[lane * self.stride + self.first + column];
            }
            let start = (self.from + column) * self.factor_stride + self.from;
            let line = &self.factor[start..start + column + 1];
            for (factor, earlier) in line[..column].iter().zip(&x) {
                let factor = -*factor;
                for (sum, value) in sums.iter_mut().zip(earlier) {
                    *sum = f64::mul_add(factor, *value, *sum);
                }
            }
            for sum in &mut sums {
                *sum /= line[column];
            }
            x[column] = sums;
        }
        for (column, values) in x.iter().enumerate() {
            for (lane, value) in values.iter().take(lanes).enumerate() {
                self.rows[lane * self.stride + self.first + column] = *value;
            }
        }
    }
}

/// Subtracts the block's terms from the lower triangle behind it.
fn update_rest(a: &mut Matrix, start: usize, end: usize) {
    let n = a.columns;
    let depth = end - start;
    let rows = n - end;
    let left = Panels::pack(rows, depth, |row, k| -a.at(end + row, start + k));
    let right = Panels::pack(rows, depth, |column, k| a.at(end + column, start + k));
    let target = Target {
        data: &mut a.data[end * n..],
        stride: n,
        first: end,
        columns: rows,
    };
    let terms = |row: usize, column: usize| {
        // A tile that touches the lower triangle.
        let below = column < row + super::product::TALL;
        0..if below { depth } else { 0 }
    };
    add(target, &left, &right, terms);
}

/// The inverse of `a = L L'` from its factor: `M' M` with `M = L^-1`.
///
/// Element `(i, j)` of `M` is `(d_ij - sum over j <= k < i of l_ik m_kj) / l_ii`, terms in
/// ascending `k`; of the inverse, the sum over `k >= max(i, j)` of `m_ki m_kj`, ascending.
pub(crate) fn inverse(factor: &Matrix) -> Matrix {
    let lower = invert_lower(factor);
    let n = lower.rows;
    let mut out = Matrix::zeros(n, n);
    let left = Panels::pack(n, n, |row, k| lower.at(k, row));
    let right = Panels::pack(n, n, |column, k| lower.at(k, column));
    let target = Target {
        data: &mut out.data,
        stride: n,
        first: 0,
        columns: n,
    };
    // Only the lower triangle; terms before the tile's first row are products with zero.
    let terms = |row: usize, column: usize| {
        let below = column < row + super::product::TALL;
        row..if below { n } else { row }
    };
    add(target, &left, &right, terms);
    for row in 0..n {
        for column in row + 1..n {
            out.data[row * n + column] = out.data[column * n + row];
        }
    }
    out
}

fn invert_lower(factor: &Matrix) -> Matrix {
    let n = factor.rows;
    let mut m = Matrix::zeros(n, n);
    let mut start = 0;
    while start < n {
        let end = (start + BLOCK).min(n);
        let rows = end - start;
        let mut band = vec![0.0; rows * n];
        if start > 0 {
            let left = Panels::pack(rows, start, |row, k| -factor.at(start + row, k));
            let right = Panels::pack(start, start, |column, k| m.at(k, column));
            let target = Target {
                data: &mut band,
                stride: n,
                first: 0,
                columns: start,
            };
            // `m[k][column]` is zero for `k < column`.
            add(target, &left, &right, |_, column| column..start);
        }
        for row in 0..rows {
            band[row * n + start + row] = 1.0;
        }
        substitute(factor, &mut band, start, end);
        m.data[start * n..end * n].copy_from_slice(&band);
        start = end;
    }
    m
}

/// Columns that are substituted side by side.
const STRIP: usize = 64;

/// Forward substitution with the diagonal block, over all columns at once.
fn substitute(factor: &Matrix, band: &mut [f64], start: usize, end: usize) {
    let n = factor.columns;
    let rows = end - start;
    let solved: Vec<Vec<[f64; STRIP]>> = (0..end.div_ceil(STRIP))
        .into_par_iter()
        .map(|strip| {
            vectorised(Substitute {
                factor,
                band,
                start,
                first: strip * STRIP,
                width: STRIP.min(end - strip * STRIP),
                rows,
            })
        })
        .collect();
    for (strip, lines) in solved.iter().enumerate() {
        let first = strip * STRIP;
        let width = STRIP.min(end - first);
        for (row, line) in lines.iter().enumerate() {
            band[row * n + first..][..width].copy_from_slice(&line[..width]);
        }
    }
}

struct Substitute<'a> {
    factor: &'a Matrix,
    band: &'a [f64],
    start: usize,
    first: usize,
    width: usize,
    rows: usize,
}

impl pulp::NullaryFnOnce for Substitute<'_> {
    type Output = Vec<[f64; STRIP]>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        let n = self.factor.columns;
        let mut x = vec![[0.0; STRIP]; self.rows];
        for row in 0..self.rows {
            let mut sums = [0.0; STRIP];
            sums[..self.width].copy_from_slice(&self.band[row * n + self.first..][..self.width]);
            let line = &self.factor.row(self.start + row)[self.start..];
            for (term, earlier) in line[..row].iter().zip(&x) {
                let term = -*term;
                for (sum, value) in sums.iter_mut().zip(earlier) {
                    *sum = f64::mul_add(term, *value, *sum);
                }
            }
            for sum in &mut sums {
                *sum /= line[row];
            }
            x[row] = sums;
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A symmetric matrix with a strong diagonal, from a fixed sequence.
    fn example(n: usize) -> Matrix {
        let mut m = Matrix::zeros(n, n);
        let mut state = 1u64;
        for i in 0..n {
            for j in 0..=i {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                let value = (state >> 40) as f64 / (1u64 << 24) as f64;
                m.data[i * n + j] = value;
                m.data[j * n + i] = value;
            }
            m.data[i * n + i] += n as f64;
        }
        m
    }

    /// The formula of the docstring, element by element.
    fn plain(a: &Matrix) -> Matrix {
        let n = a.rows;
        let mut l = Matrix::zeros(n, n);
        for j in 0..n {
            for i in j..n {
                let mut sum = a.at(i, j);
                for k in 0..j {
                    sum = f64::mul_add(-l.at(i, k), l.at(j, k), sum);
                }
                l.data[i * n + j] = if i == j { sum.sqrt() } else { sum / l.at(j, j) };
            }
        }
        l
    }

    #[test]
    fn blocks_and_threads_do_not_change_a_bit() {
        for n in [1, 7, 96, 97, 250] {
            let a = example(n);
            let wanted = plain(&a);
            let mut inverses = vec![];
            for threads in [1, 2, 3, 8] {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .expect("a pool");
                let (l, p) = pool.install(|| {
                    let mut l = a.clone();
                    cholesky(&mut l).expect("positive definite");
                    let p = inverse(&l);
                    (l, p)
                });
                assert!(l == wanted, "{n} rows, {threads} threads");
                inverses.push(p);
            }
            assert!(inverses.windows(2).all(|w| w[0] == w[1]));
            for i in 0..n {
                for j in 0..n {
                    let product = super::super::dot(a.row(i), inverses[0].row(j));
                    let unit = f64::from(u8::from(i == j));
                    assert!((product - unit).abs() < 1e-9, "{i} {j}: {product}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_named() {
        let mut m = example(130);
        m.data[120 * 130 + 120] = -5.0;
        let e = cholesky(&mut m).expect_err("a negative diagonal");
        assert_eq!(e.row, 120);
    }
}
