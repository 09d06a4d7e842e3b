//! The item field: how ratings of items vary together, for Gaussian-process regression on the
//! device (Rasmussen and Williams, Gaussian Processes for Machine Learning, chapter 2).

use rayon::prelude::*;

use crate::content::Content;
use crate::linalg::{Matrix, dot, largest};
use crate::sums::Pairs;

/// Up to this many items the field is estimated from ratings; above, it is one number: the level
/// that all ratings of a person share.
pub const FIELD_ITEMS: usize = 6_000;
/// Eigenpairs that are kept by default: as good as 150 on validation rows, at less than half the
/// size (`docs/recommend.md`).
pub const RANK: usize = 64;
/// Prior strength of the covariance, in people.
const PRIOR: f64 = 600.0;
/// How much of the prior covariance content explains.
const CONTENT: f64 = 0.1;
/// Variance of an item of its own.
const OWN: f64 = 0.1;
/// Variance of a person's level where no two items were rated by the same people.
const SIGMA_WITHOUT_PAIRS: f64 = 0.2;

/// The factor of a covariance: the covariance of two items is the product of their rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    width: usize,
    values: Values,
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    Plain(Vec<f32>),
    /// One scale per column.
    Packed(Vec<i8>, Vec<f32>),
}

impl Field {
    /// From rows of `width` numbers.
    pub(crate) fn plain(width: usize, values: Vec<f32>) -> Self {
        Self {
            width,
            values: Values::Plain(values),
        }
    }

    /// From codes and one scale per column.
    pub(crate) fn packed(codes: Vec<i8>, scales: Vec<f32>) -> Self {
        Self {
            width: scales.len(),
            values: Values::Packed(codes, scales),
        }
    }

    /// Numbers per item.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Writes an item's row into `out`.
    pub fn read(&self, item: u32, out: &mut Vec<f64>) {
        out.clear();
        let start = item as usize * self.width;
        let known = match &self.values {
            Values::Plain(values) => values.len(),
            Values::Packed(codes, _) => codes.len(),
        };
        // Of an item that is newer than the field nothing is known.
        if start + self.width > known {
            out.resize(self.width, 0.0);
            return;
        }
        match &self.values {
            Values::Plain(values) => {
                let row = &values[start..start + self.width];
                out.extend(row.iter().map(|v| f64::from(*v)));
            }
            Values::Packed(codes, scales) => {
                let row = &codes[start..start + self.width];
                let scaled = row.iter().zip(scales);
                out.extend(scaled.map(|(c, s)| f64::from(*c) * f64::from(*s)));
            }
        }
    }

    /// The first `rank` columns.
    #[must_use]
    pub fn narrow(&self, rank: usize) -> Self {
        let width = rank.min(self.width);
        let mut values = vec![];
        let mut row = vec![];
        let items = match &self.values {
            Values::Plain(values) => values.len(),
            Values::Packed(codes, _) => codes.len(),
        } / self.width.max(1);
        for item in 0..items as u32 {
            self.read(item, &mut row);
            values.extend(row[..width].iter().map(|v| *v as f32));
        }
        Self::plain(width, values)
    }
}

/// Means of the items and the overall mean, in stars.
pub(crate) struct Means<'a> {
    pub(crate) of_items: &'a [f64],
}

/// The mean covariance of two different items' ratings, `sigma_b^2`.
pub(crate) fn shared_variance(pairs: &Pairs, means: &Means<'_>, k: u64) -> f64 {
    let rows: Vec<(f64, u64)> = (0..pairs.rated.items() as u32)
        .into_par_iter()
        .map(|i| {
            let mut covariance = 0.0;
            let mut people = 0;
            for_row(pairs, means, i, k, |j, sum, n| {
                if j != i {
                    covariance += sum;
                    people += n;
                }
            });
            (covariance, people)
        })
        .collect();
    let mut covariance = 0.0;
    let mut people = 0;
    for (sum, n) in rows {
        covariance += sum;
        people += n;
    }
    if people == 0 {
        return SIGMA_WITHOUT_PAIRS;
    }
    (covariance / people as f64).max(0.0)
}

/// Calls `f(j, E_ij, N_ij)` for items that at least `k` people rated beside `i`: the sum over these
/// people of the product of both residuals.
fn for_row(pairs: &Pairs, means: &Means<'_>, i: u32, k: u64, mut f: impl FnMut(u32, f64, u64)) {
    let own = means.of_items[i as usize];
    pairs.rated.for_row(i, |j, n| {
        if n < k {
            return;
        }
        let other = means.of_items[j as usize];
        // Sums are in half stars, means in stars.
        let product = pairs.products.get(i, j) as f64 / 4.0;
        let by_i = pairs.ratings.get(i, j) as f64 / 2.0;
        let by_j = pairs.ratings.get(j, i) as f64 / 2.0;
        let sum = product - by_i * other - by_j * own + n as f64 * own * other;
        f(j, sum, n);
    });
}

/// `C = (E + 600 (sigma_b^2 + .1 k)) / (N + 600)` with the diagonal `sigma_b^2 + .2` (`+ .1`
/// without content), its `rank` largest eigenpairs, negative ones cut.
pub(crate) fn estimated(
    pairs: &Pairs,
    means: &Means<'_>,
    sigma: f64,
    content: Option<&Content>,
    k: u64,
    rank: usize,
) -> Field {
    let n = pairs.rated.items();
    let mut c = Matrix::zeros(n, n);
    // The lower triangle; the other one is its mirror image.
    c.data
        .par_chunks_mut(n.max(1))
        .enumerate()
        .for_each(|(i, row)| {
            let item = i as u32;
            for (j, value) in row[..i].iter_mut().enumerate() {
                let likeness = content.map_or(0.0, |c| c.likeness(item, j as u32));
                *value = sigma + CONTENT * likeness;
            }
            for_row(pairs, means, item, k, |j, sum, people| {
                if (j as usize) < i {
                    let value = &mut row[j as usize];
                    *value = (sum + PRIOR * *value) / (people as f64 + PRIOR);
                }
            });
            row[i] = sigma + OWN + if content.is_some() { CONTENT } else { 0.0 };
        });
    for i in 0..n {
        for j in 0..i {
            c.data[j * n + i] = c.at(i, j);
        }
    }
    let pairs = largest(&c, rank);
    let width = pairs.values.iter().filter(|v| **v > 0.0).count();
    let scales: Vec<f64> = pairs.values[..width].iter().map(|v| v.sqrt()).collect();
    let mut values = Vec::with_capacity(n * width);
    for item in 0..n {
        let row = &pairs.vectors.row(item)[..width];
        values.extend(row.iter().zip(&scales).map(|(v, s)| (v * s) as f32));
    }
    Field::plain(width, values)
}

/// Without pair sums: a level that all ratings of a person share, nothing else.
pub(crate) fn level(items: usize, sigma: f64) -> Field {
    Field::plain(1, vec![sigma.sqrt() as f32; items])
}

/// Rating regression over one history.
pub(crate) struct Regression {
    factor: Matrix,
    residuals: Vec<f64>,
    history: Vec<Vec<f64>>,
}

/// One rated event for the regression.
pub(crate) struct Observation {
    pub(crate) item: u32,
    pub(crate) residual: f64,
}

/// What the regression says of one item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Predicted {
    /// Stars above the item's mean.
    pub(crate) above_mean: f64,
    /// Variance, in stars squared.
    pub(crate) variance: f64,
}

/// Variance of what changes with time in a person's ratings.
const DRIFT: f64 = 0.1;
/// Its range, in events.
const RANGE: f64 = 10.0;

impl Regression {
    /// `K = C_HH + .1 exp(-|age difference| / 10) + diag(.8 (1 + .005 age) + 1e-6)`; observations
    /// are newest first, their position is their age.
    pub(crate) fn new(field: &Field, observations: &[Observation]) -> Self {
        let n = observations.len();
        let history: Vec<Vec<f64>> = observations
            .iter()
            .map(|o| {
                let mut row = vec![];
                field.read(o.item, &mut row);
                row
            })
            .collect();
        let drift: Vec<f64> = (0..n)
            .map(|d| DRIFT * libm::exp(-(d as f64) / RANGE))
            .collect();
        let mut k = Matrix::zeros(n, n);
        for i in 0..n {
            for j in 0..=i {
                let mut value = dot(&history[i], &history[j]) + drift[i - j];
                if i == j {
                    value += 0.8 * (1.0 + 0.005 * i as f64) + 1e-6;
                }
                k.data[i * n + j] = value;
            }
        }
        // A covariance with noise on its diagonal is positive definite; should rounding ever say
        // otherwise, the history says nothing.
        let solved = crate::linalg::cholesky(&mut k).is_ok();
        let residuals: Vec<f64> = observations.iter().map(|o| o.residual).collect();
        if !solved {
            return Self {
                factor: Matrix::zeros(0, 0),
                residuals: vec![],
                history: vec![],
            };
        }
        let residuals = crate::ease::substitute(&k, residuals);
        Self {
            factor: k,
            residuals,
            history,
        }
    }

    pub(crate) fn predict(&self, field: &Field, item: u32) -> Predicted {
        let mut own = vec![];
        field.read(item, &mut own);
        let mut variance = dot(&own, &own) + DRIFT;
        if self.history.is_empty() {
            return Predicted {
                above_mean: 0.0,
                variance: dot(&own, &own),
            };
        }
        let c: Vec<f64> = self
            .history
            .iter()
            .enumerate()
            .map(|(age, row)| dot(row, &own) + DRIFT * libm::exp(-(age as f64 + 1.0) / RANGE))
            .collect();
        // c K^-1 c' = |L^-1 c|^2.
        let mut y = c.clone();
        for i in 0..y.len() {
            let mut sum = y[i];
            for (k, earlier) in y[..i].iter().enumerate() {
                sum -= self.factor.at(i, k) * earlier;
            }
            y[i] = sum / self.factor.at(i, i);
        }
        variance -= dot(&y, &y);
        Predicted {
            above_mean: dot(&c, &self.residuals),
            variance,
        }
    }
}
