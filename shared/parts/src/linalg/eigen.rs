//! The largest eigenpairs of a symmetric matrix.
//!
//! Subspace iteration with Chebyshev filters and Rayleigh-Ritz (Zhou, Saad, Tiago and Chelikowsky,
//! Journal of Computational Physics 2006). The start and the number of steps are fixed: equal input
//! gives equal bytes.

use rayon::prelude::*;

use super::product::{Panels, TALL, Target, WIDE, add};
use super::solve::SolveRight;
use super::{Matrix, add_scaled, cholesky, dot, vectorised};

/// Vectors beside those that are asked for: they make the last of these converge.
const SPARE: usize = 60;
/// Plain multiplications before the first filter.
const WARM_UP: usize = 3;
/// Degrees of the filters, each followed by Rayleigh-Ritz. The first is low: a filter of high
/// degree would let the first vectors drown the last.
const DEGREES: [usize; 3] = [5, 14, 14];
/// First vectors that have converged after the first filter. Later filters work beside them, so
/// these can be of high degree.
const LOCKED: usize = 16;
/// Steps of the Lanczos process that bounds the spectrum from below.
const LANCZOS: usize = 16;

/// Eigenvalues, largest first, and their vectors as columns.
pub(crate) struct Eigen {
    pub(crate) values: Vec<f64>,
    /// `[n][values.len()]`.
    pub(crate) vectors: Matrix,
}

/// A matrix that is multiplied by often.
struct Operator {
    n: usize,
    panels: Panels<TALL>,
}

/// A basis of Ritz vectors, their images, and their values, largest first.
struct Ritz {
    basis: Matrix,
    image: Matrix,
    values: Vec<f64>,
}

/// The `wanted` (or as many as there are) algebraically largest eigenpairs of symmetric `a`, whose
/// large eigenvalues are positive.
pub(crate) fn largest(a: &Matrix, wanted: usize) -> Eigen {
    let n = a.rows;
    let width = (wanted + SPARE).min(n);
    let operator = Operator {
        n,
        panels: Panels::pack(n, n, |row, k| a.at(row, k)),
    };
    let mut basis = start(n, width);
    orthonormal(&mut basis);
    for _ in 0..WARM_UP {
        basis = operator.times(&basis);
        orthonormal(&mut basis);
    }
    let mut ritz = operator.ritz(basis);
    let lowest = lower_bound(a);
    for (round, degree) in DEGREES.into_iter().enumerate() {
        let highest = ritz.values[width - 1];
        let locked = if round == 0 { 0 } else { LOCKED.min(width / 4) };
        // With a basis of the whole space there is nothing to filter.
        if width == n || highest <= lowest {
            break;
        }
        let mut filtered = operator.filter(&ritz, lowest, highest, degree, locked);
        normalise(&mut filtered);
        orthonormal(&mut filtered);
        ritz = operator.ritz(filtered);
    }
    let kept = wanted.min(width);
    let mut vectors = Matrix::zeros(n, kept);
    for row in 0..n {
        vectors
            .row_mut(row)
            .copy_from_slice(&ritz.basis.row(row)[..kept]);
    }
    ritz.values.truncate(kept);
    fix_signs(&mut vectors);
    Eigen {
        values: ritz.values,
        vectors,
    }
}

/// An eigenvector's sign is free: the element of largest magnitude is made positive, so that a
/// small change of the matrix does not turn all signs.
fn fix_signs(vectors: &mut Matrix) {
    for column in 0..vectors.columns {
        let mut largest = 0.0f64;
        for row in 0..vectors.rows {
            let value = vectors.at(row, column);
            if value.abs() > largest.abs() {
                largest = value;
            }
        }
        if largest < 0.0 {
            for row in 0..vectors.rows {
                vectors.row_mut(row)[column] *= -1.0;
            }
        }
    }
}

impl Operator {
    fn times(&self, x: &Matrix) -> Matrix {
        let width = x.columns;
        let right = Panels::pack(width, self.n, |column, k| x.at(k, column));
        let mut out = Matrix::zeros(self.n, width);
        let target = Target {
            data: &mut out.data,
            stride: width,
            first: 0,
            columns: width,
        };
        add(target, &self.panels, &right, |_, _| 0..self.n);
        out
    }

    /// Rayleigh-Ritz in an orthonormal basis.
    fn ritz(&self, basis: Matrix) -> Ritz {
        let width = basis.columns;
        let image = self.times(&basis);
        let mut small = cross(&basis, &image);
        // Equal but for rounding; the small solver needs one of the two.
        for i in 0..width {
            for j in 0..i {
                small.data[j * width + i] = small.data[i * width + j];
            }
        }
        let (values, rotation) = symmetric(small);
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
        let mut sorted = Matrix::zeros(width, width);
        for k in 0..width {
            for (to, from) in order.iter().enumerate() {
                sorted.row_mut(k)[to] = rotation.at(k, *from);
            }
        }
        Ritz {
            basis: multiply(&basis, &sorted),
            image: multiply(&image, &sorted),
            values: order.iter().map(|i| values[*i]).collect(),
        }
    }

    /// The Chebyshev polynomial of a degree that stays within 1 on `[lowest, highest]` and grows
    /// above, scaled to about 1 at the largest Ritz value behind the `locked` ones. These stay as
    /// they are, and the rest is kept orthogonal to them.
    fn filter(
        &self,
        ritz: &Ritz,
        lowest: f64,
        highest: f64,
        degree: usize,
        locked: usize,
    ) -> Matrix {
        let fixed = columns(&ritz.basis, 0, locked);
        let free = ritz.basis.columns - locked;
        let half = (highest - lowest) / 2.0;
        let centre = f64::midpoint(highest, lowest);
        let first = half / (ritz.values[locked] - centre);
        let mut sigma = first;
        let mut before = columns(&ritz.basis, locked, free);
        let image = columns(&ritz.image, locked, free);
        let mut current = combine(&image, &before, None, centre, sigma / half, 0.0);
        for _ in 1..degree {
            let next_sigma = 1.0 / (2.0 / first - sigma);
            let scale = 2.0 * next_sigma / half;
            let image = self.times(&current);
            let back = sigma * next_sigma;
            let mut next = combine(&image, &current, Some(&before), centre, scale, back);
            project_out(&fixed, &mut next);
            before = current;
            current = next;
            sigma = next_sigma;
        }
        let mut out = Matrix::zeros(self.n, ritz.basis.columns);
        for row in 0..self.n {
            let (head, tail) = out.row_mut(row).split_at_mut(locked);
            head.copy_from_slice(fixed.row(row));
            tail.copy_from_slice(current.row(row));
        }
        out
    }
}

/// `count` columns from `first`.
fn columns(x: &Matrix, first: usize, count: usize) -> Matrix {
    let mut out = Matrix::zeros(x.rows, count);
    for row in 0..x.rows {
        let from = &x.row(row)[first..first + count];
        out.row_mut(row).copy_from_slice(from);
    }
    out
}

/// `X <- X - V V' X`.
fn project_out(v: &Matrix, x: &mut Matrix) {
    if v.columns == 0 {
        return;
    }
    let mut along = cross(v, x);
    along.data.iter_mut().for_each(|value| *value *= -1.0);
    add_product(v, &along, x);
}

/// `scale (image - centre x) - back before`.
fn combine(
    image: &Matrix,
    x: &Matrix,
    before: Option<&Matrix>,
    centre: f64,
    scale: f64,
    back: f64,
) -> Matrix {
    let mut out = image.clone();
    for (value, x) in out.data.iter_mut().zip(&x.data) {
        *value = scale * (*value - centre * x);
    }
    if let Some(before) = before {
        add_scaled(-back, &before.data, &mut out.data);
    }
    out
}

/// Scales the columns to unit length: a filter leaves them of very different lengths.
fn normalise(x: &mut Matrix) {
    let width = x.columns;
    let mut squares = vec![0.0; width];
    for row in x.data.chunks(width.max(1)) {
        for (sum, value) in squares.iter_mut().zip(row) {
            *sum += value * value;
        }
    }
    let scales: Vec<f64> = squares
        .iter()
        .map(|s| if *s > 0.0 { 1.0 / s.sqrt() } else { 0.0 })
        .collect();
    for row in x.data.chunks_mut(width.max(1)) {
        for (value, scale) in row.iter_mut().zip(&scales) {
            *value *= scale;
        }
    }
}

/// A number that no eigenvalue is below: the lowest Ritz value of a short Lanczos process, less the
/// norm of its last residual.
fn lower_bound(a: &Matrix) -> f64 {
    let n = a.rows;
    let steps = LANCZOS.min(n);
    let mut basis: Vec<Vec<f64>> = vec![];
    let mut v: Vec<f64> = start(n, 1).data;
    let mut small = Matrix::zeros(steps, steps);
    let mut last = dot(&v, &v).sqrt();
    let mut size = 0;
    for step in 0..steps {
        if last <= 1e-12 {
            break;
        }
        v.iter_mut().for_each(|x| *x /= last);
        basis.push(v.clone());
        let mut image: Vec<f64> = (0..n)
            .into_par_iter()
            .map(|row| dot(a.row(row), &v))
            .collect();
        for _ in 0..2 {
            for (k, earlier) in basis.iter().enumerate() {
                let along = dot(&image, earlier);
                small.data[k * steps + step] += along;
                add_scaled(-along, earlier, &mut image);
            }
        }
        size = step + 1;
        last = dot(&image, &image).sqrt();
        v = image;
    }
    let mut square = Matrix::zeros(size, size);
    for i in 0..size {
        for j in 0..size {
            // The upper triangle holds the projections.
            square.data[i * size + j] = small.at(i.min(j), i.max(j));
        }
    }
    let (values, _) = symmetric(square);
    values.into_iter().fold(0.0, f64::min) - last
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

/// `A B`.
fn multiply(a: &Matrix, b: &Matrix) -> Matrix {
    let mut out = Matrix::zeros(a.rows, b.columns);
    add_product(a, b, &mut out);
    out
}

/// `C += A B`.
fn add_product(a: &Matrix, b: &Matrix, c: &mut Matrix) {
    let left = Panels::pack(a.rows, a.columns, |row, k| a.at(row, k));
    let right = Panels::pack(b.columns, a.columns, |column, k| b.at(k, column));
    add_panels(&left, &right, a.columns, c);
}

/// Adds the product of packed lines of `depth` elements to the whole of `c`.
fn add_panels(left: &Panels<TALL>, right: &Panels<WIDE>, depth: usize, c: &mut Matrix) {
    let target = Target {
        stride: c.columns,
        first: 0,
        columns: c.columns,
        data: &mut c.data,
    };
    add(target, left, right, |_, _| 0..depth);
}

/// `A' B`.
fn cross(a: &Matrix, b: &Matrix) -> Matrix {
    let left = Panels::pack(a.columns, a.rows, |row, k| a.at(k, row));
    let right = Panels::pack(b.columns, a.rows, |column, k| b.at(k, column));
    let mut out = Matrix::zeros(a.columns, b.columns);
    add_panels(&left, &right, a.rows, &mut out);
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
    let width = x.columns;
    x.data.par_chunks_mut((width * 8).max(1)).for_each(|rows| {
        vectorised(SolveRight {
            rows,
            stride: width,
            first: 0,
            factor: &l.data,
            factor_stride: width,
            from: 0,
            size: width,
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
            let before = dot(&v, &v).sqrt();
            for _ in 0..2 {
                for earlier in &columns {
                    let along = dot(&v, earlier);
                    add_scaled(-along, earlier, &mut v);
                }
            }
            let length = dot(&v, &v).sqrt();
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
    let length = dot(&v, &v).sqrt();
    if length == 0.0 {
        return;
    }
    let sign = if v[0] < 0.0 { -1.0 } else { 1.0 };
    v[0] += sign * length;
    let scale = dot(&v, &v);
    if scale == 0.0 {
        return;
    }
    let m = v.len();
    // p = 2 A v / (v'v); A <- A - v w' - w v' with w = p - (p'v / v'v) v.
    let mut p: Vec<f64> = (0..m)
        .map(|i| 2.0 * dot(&a.row(k + 1 + i)[k + 1..], &v) / scale)
        .collect();
    let along = dot(&p, &v) / scale;
    add_scaled(-along, &v, &mut p);
    for i in 0..m {
        let row = &mut a.row_mut(k + 1 + i)[k + 1..];
        add_scaled(-v[i], &p, row);
        add_scaled(-p[i], &v, row);
    }
    a.row_mut(k + 1)[k] = -sign * length;
    a.row_mut(k)[k + 1] = -sign * length;
    for i in k + 2..n {
        a.row_mut(i)[k] = 0.0;
        a.row_mut(k)[i] = 0.0;
    }
    for i in 0..n {
        let row = &mut q.row_mut(i)[k + 1..];
        let along = 2.0 * dot(row, &v) / scale;
        add_scaled(-along, &v, row);
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
    let root = |x: f64| (x * x + 1.0).sqrt();
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
        let r = (f * f + g * g).sqrt();
        e[i + 1] = r;
        if r == 0.0 {
            d[i + 1] -= p;
            e[m] = 0.0;
            return;
        }
        sine = f / r;
        cosine = g / r;
        let g2 = d[i + 1] - p;
        let r2 = (d[i] - g2) * sine + 2.0 * cosine * b;
        p = sine * r2;
        d[i + 1] = g2 + p;
        g = cosine * r2 - b;
        rotate(vectors, i, sine, cosine);
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0.0;
}

fn rotate(vectors: &mut Matrix, i: usize, sine: f64, cosine: f64) {
    let n = vectors.columns;
    let (low, high) = vectors.data[i * n..(i + 2) * n].split_at_mut(n);
    for (a, b) in low.iter_mut().zip(high) {
        let f = *b;
        *b = sine * *a + cosine * f;
        *a = cosine * *a - sine * f;
    }
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
