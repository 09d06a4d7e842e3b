//! The largest eigenpairs of a symmetric matrix.
//!
//! Subspace iteration with Rayleigh-Ritz at the end (Golub and Van Loan, Matrix Computations,
//! section 8.2.4). The start is fixed, the number of steps is fixed: equal input gives equal bytes.

use super::product::{Panels, Target, add};
use super::{Matrix, cholesky};

/// Vectors beside those that are asked for: they make the last of these converge.
const SPARE: usize = 20;
/// Multiplications by the matrix.
const STEPS: usize = 12;

/// Eigenvalues, largest first, and their vectors as columns.
pub(crate) struct Eigen {
    pub(crate) values: Vec<f64>,
    /// `[n][values.len()]`.
    pub(crate) vectors: Matrix,
}

/// The `wanted` (or as many as there are) algebraically largest eigenpairs of symmetric `a`, whose
/// large eigenvalues are positive.
pub(crate) fn largest(a: &Matrix, wanted: usize) -> Eigen {
    let n = a.rows;
    let width = (wanted + SPARE).min(n);
    let left = Panels::pack(n, n, |row, k| a.at(row, k));
    let mut basis = start(n, width);
    orthonormal(&mut basis);
    for _ in 1..STEPS {
        basis = times(&left, n, &basis);
        orthonormal(&mut basis);
    }
    let image = times(&left, n, &basis);
    let mut small = cross(&basis, &image);
    // Equal but for rounding; the small solver reads one triangle.
    for i in 0..width {
        for j in 0..i {
            small.data[j * width + i] = small.data[i * width + j];
        }
    }
    let (values, rotation) = symmetric(small);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order.truncate(wanted.min(width));
    let mut chosen = Matrix::zeros(width, order.len());
    for k in 0..width {
        for (to, from) in order.iter().enumerate() {
            chosen.row_mut(k)[to] = rotation.at(k, *from);
        }
    }
    let vectors = multiply(&basis, &chosen);
    Eigen {
        values: order.iter().map(|i| values[*i]).collect(),
        vectors,
    }
}

/// A fixed matrix of signs with full rank for all practical purposes.
fn start(n: usize, width: usize) -> Matrix {
    let mut out = Matrix::zeros(n, width);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for value in &mut out.data {
        // xorshift64 (Marsaglia, Journal of Statistical Software 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *value = (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
    }
    out
}

fn times(left: &Panels<{ super::product::TALL }>, n: usize, x: &Matrix) -> Matrix {
    let width = x.columns;
    let right = Panels::pack(width, n, |column, k| x.at(k, column));
    let mut out = Matrix::zeros(n, width);
    let target = Target {
        data: &mut out.data,
        stride: width,
        first: 0,
        columns: width,
    };
    add(target, left, &right, |_, _| 0..n);
    out
}

/// `A B`.
fn multiply(a: &Matrix, b: &Matrix) -> Matrix {
    let left = Panels::pack(a.rows, a.columns, |row, k| a.at(row, k));
    let right = Panels::pack(b.columns, a.columns, |column, k| b.at(k, column));
    let mut out = Matrix::zeros(a.rows, b.columns);
    let target = Target {
        data: &mut out.data,
        stride: b.columns,
        first: 0,
        columns: b.columns,
    };
    add(target, &left, &right, |_, _| 0..a.columns);
    out
}

/// `A' B`.
fn cross(a: &Matrix, b: &Matrix) -> Matrix {
    let left = Panels::pack(a.columns, a.rows, |row, k| a.at(k, row));
    let right = Panels::pack(b.columns, a.rows, |column, k| b.at(k, column));
    let mut out = Matrix::zeros(a.columns, b.columns);
    let target = Target {
        data: &mut out.data,
        stride: b.columns,
        first: 0,
        columns: b.columns,
    };
    add(target, &left, &right, |_, _| 0..a.rows);
    out
}

/// Makes the columns orthonormal: twice Cholesky QR (Yamamoto et al., ETNA 2015), whose second pass
/// removes what rounding left. Where the columns are dependent, Gram-Schmidt with fresh vectors.
fn orthonormal(x: &mut Matrix) {
    for _ in 0..2 {
        let mut gram = cross(x, x);
        if cholesky(&mut gram).is_err() {
            gram_schmidt(x);
            return;
        }
        solve_right(x, &gram);
    }
}

/// `X <- X L^-T`, row by row.
fn solve_right(x: &mut Matrix, l: &Matrix) {
    use rayon::prelude::*;
    const LANES: usize = 8;
    let width = x.columns;
    x.data.par_chunks_mut(width * LANES).for_each(|rows| {
        pulp::Arch::new().dispatch(|| {
            let lanes = rows.len() / width;
            let mut solved = vec![[0.0; LANES]; width];
            for column in 0..width {
                let mut sums = [0.0; LANES];
                for (lane, sum) in sums.iter_mut().take(lanes).enumerate() {
                    *sum = rows[lane * width + column];
                }
                for (k, earlier) in solved[..column].iter().enumerate() {
                    let term = -l.at(column, k);
                    for (sum, value) in sums.iter_mut().zip(earlier) {
                        *sum = f64::mul_add(term, *value, *sum);
                    }
                }
                let pivot = l.at(column, column);
                for sum in &mut sums {
                    *sum /= pivot;
                }
                solved[column] = sums;
            }
            for (column, values) in solved.iter().enumerate() {
                for (lane, value) in values.iter().take(lanes).enumerate() {
                    rows[lane * width + column] = *value;
                }
            }
        });
    });
}

/// The slow and certain way; a column that vanishes is replaced by the next unit vector.
fn gram_schmidt(x: &mut Matrix) {
    let n = x.rows;
    let width = x.columns;
    let mut columns: Vec<Vec<f64>> = vec![];
    let mut unit = 0;
    for column in 0..width {
        let mut v: Vec<f64> = (0..n).map(|row| x.at(row, column)).collect();
        loop {
            let before = super::dot(&v, &v).sqrt();
            for _ in 0..2 {
                for earlier in &columns {
                    let along = super::dot(&v, earlier);
                    for (value, direction) in v.iter_mut().zip(earlier) {
                        *value = f64::mul_add(-along, *direction, *value);
                    }
                }
            }
            let length = super::dot(&v, &v).sqrt();
            if length > 1e-8 * before && length > 0.0 {
                v.iter_mut().for_each(|value| *value /= length);
                break;
            }
            v = vec![0.0; n];
            v[unit % n] = 1.0;
            unit += 1;
        }
        columns.push(v);
    }
    for (column, v) in columns.iter().enumerate() {
        for (row, value) in v.iter().enumerate() {
            x.data[row * width + column] = *value;
        }
    }
}

/// All eigenpairs of a small symmetric matrix: Householder reduction to a tridiagonal matrix, then
/// implicit QL (Golub and Van Loan, sections 8.3.1 and 8.3.3). Values in no order, vectors in the
/// columns.
fn symmetric(mut a: Matrix) -> (Vec<f64>, Matrix) {
    let n = a.rows;
    let mut q = Matrix::zeros(n, n);
    for i in 0..n {
        q.data[i * n + i] = 1.0;
    }
    for k in 0..n.saturating_sub(2) {
        reflect(&mut a, &mut q, k);
    }
    let mut diagonal: Vec<f64> = (0..n).map(|i| a.at(i, i)).collect();
    let mut beside: Vec<f64> = (1..n).map(|i| a.at(i, i - 1)).collect();
    beside.push(0.0);
    // Rows of the transpose are the columns that rotations mix: contiguous memory.
    let mut vectors = Matrix::zeros(n, n);
    for i in 0..n {
        for j in 0..n {
            vectors.data[j * n + i] = q.at(i, j);
        }
    }
    implicit_ql(&mut diagonal, &mut beside, &mut vectors);
    let mut out = Matrix::zeros(n, n);
    for i in 0..n {
        for j in 0..n {
            out.data[i * n + j] = vectors.at(j, i);
        }
    }
    (diagonal, out)
}

/// One Householder reflection from both sides: clears column `k` below the subdiagonal.
fn reflect(a: &mut Matrix, q: &mut Matrix, k: usize) {
    let n = a.rows;
    let mut v: Vec<f64> = (k + 1..n).map(|i| a.at(i, k)).collect();
    let length = super::dot(&v, &v).sqrt();
    if length == 0.0 {
        return;
    }
    let sign = if v[0] < 0.0 { -1.0 } else { 1.0 };
    v[0] += sign * length;
    let scale = super::dot(&v, &v);
    if scale == 0.0 {
        return;
    }
    let m = v.len();
    // p = 2 A v / (v'v); A <- A - v w' - w v' with w = p - (p'v / v'v) v.
    let mut p: Vec<f64> = (0..m)
        .map(|i| 2.0 * super::dot(&a.row(k + 1 + i)[k + 1..], &v) / scale)
        .collect();
    let along = super::dot(&p, &v) / scale;
    for (value, direction) in p.iter_mut().zip(&v) {
        *value = f64::mul_add(-along, *direction, *value);
    }
    for i in 0..m {
        let row = &mut a.row_mut(k + 1 + i)[k + 1..];
        for (j, value) in row.iter_mut().enumerate() {
            *value = f64::mul_add(-v[i], p[j], *value);
            *value = f64::mul_add(-p[i], v[j], *value);
        }
    }
    a.row_mut(k + 1)[k] = -sign * length;
    a.row_mut(k)[k + 1] = -sign * length;
    for i in k + 2..n {
        a.row_mut(i)[k] = 0.0;
        a.row_mut(k)[i] = 0.0;
    }
    for i in 0..n {
        let row = &mut q.row_mut(i)[k + 1..];
        let along = 2.0 * super::dot(row, &v) / scale;
        for (value, direction) in row.iter_mut().zip(&v) {
            *value = f64::mul_add(-along, *direction, *value);
        }
    }
}

/// Diagonalises; `vectors` holds the vectors in its rows.
fn implicit_ql(d: &mut [f64], e: &mut [f64], vectors: &mut Matrix) {
    let n = d.len();
    for l in 0..n {
        // Thirty sweeps are far more than any matrix needs (two or three are usual).
        for _ in 0..30 {
            let m = (l..n - 1)
                .find(|m| e[*m].abs() <= f64::EPSILON * (d[*m].abs() + d[*m + 1].abs()))
                .unwrap_or(n - 1);
            if m == l {
                break;
            }
            sweep(d, e, vectors, l, m);
        }
    }
}

fn sweep(d: &mut [f64], e: &mut [f64], vectors: &mut Matrix, l: usize, m: usize) {
    let root = |x: f64| f64::mul_add(x, x, 1.0).sqrt();
    let mut g = (d[l + 1] - d[l]) / (2.0 * e[l]);
    let r = root(g);
    let shift = if g >= 0.0 { r } else { -r };
    g = d[m] - d[l] + e[l] / (g + shift);
    let mut sine = 1.0;
    let mut cosine = 1.0;
    let mut p = 0.0;
    for i in (l..m).rev() {
        let f = sine * e[i];
        let b = cosine * e[i];
        let r = f64::mul_add(f, f, g * g).sqrt();
        e[i + 1] = r;
        if r == 0.0 {
            d[i + 1] -= p;
            e[m] = 0.0;
            return;
        }
        sine = f / r;
        cosine = g / r;
        let g2 = d[i + 1] - p;
        let r2 = f64::mul_add(d[i] - g2, sine, 2.0 * cosine * b);
        p = sine * r2;
        d[i + 1] = g2 + p;
        g = f64::mul_add(cosine, r2, -b);
        rotate(vectors, i, sine, cosine);
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0.0;
}

fn rotate(vectors: &mut Matrix, i: usize, sine: f64, cosine: f64) {
    let n = vectors.columns;
    let (low, high) = vectors.data[i * n..(i + 2) * n].split_at_mut(n);
    pulp::Arch::new().dispatch(|| {
        for (a, b) in low.iter_mut().zip(high) {
            let f = *b;
            *b = f64::mul_add(sine, *a, cosine * f);
            *a = f64::mul_add(cosine, *a, -(sine * f));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sum over k of values[k] u_k u_k'` for an orthonormal cosine basis.
    fn with_values(values: &[f64]) -> Matrix {
        let n = values.len();
        let mut m = Matrix::zeros(n, n);
        let basis = |k: usize, i: usize| {
            let scale = if k == 0 { 1.0 } else { 2.0f64 };
            let angle = std::f64::consts::PI * (i as f64 + 0.5) * k as f64 / n as f64;
            (scale / n as f64).sqrt() * angle.cos()
        };
        for (k, value) in values.iter().enumerate() {
            for i in 0..n {
                for j in 0..n {
                    m.data[i * n + j] += value * basis(k, i) * basis(k, j);
                }
            }
        }
        m
    }

    #[test]
    fn known_eigenvalues_are_found_for_any_threads() {
        let values: Vec<f64> = (0..120).map(|k| 50.0 * 0.8f64.powi(k) - 0.01).collect();
        let a = with_values(&values);
        let mut found = vec![];
        for threads in [1, 2, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().expect("a pool");
            found.push(pool.install(|| largest(&a, 15)));
        }
        for (k, value) in found[0].values.iter().enumerate() {
            assert!((value - values[k]).abs() < 1e-6, "{k}: {value}");
        }
        for i in 0..15 {
            let v: Vec<f64> = (0..120).map(|row| found[0].vectors.at(row, i)).collect();
            for row in 0..120 {
                let image = super::super::dot(a.row(row), &v);
                assert!((image - found[0].values[i] * v[row]).abs() < 1e-4);
            }
        }
        assert!(found[0].vectors == found[1].vectors && found[0].vectors == found[2].vectors);
    }

    #[test]
    fn a_matrix_of_low_rank_has_what_it_has() {
        let mut values = vec![0.0; 40];
        values[0] = 3.0;
        values[5] = 2.0;
        let found = largest(&with_values(&values), 10);
        assert!((found.values[0] - 3.0).abs() < 1e-9);
        assert!((found.values[1] - 2.0).abs() < 1e-9);
        assert!(found.values[2].abs() < 1e-9);
        assert!(found.vectors.data.iter().all(|v| v.is_finite()));
    }
}
