//! Who suspects a sample confirms it: an update is a sum of gradients of samples, so a least
//! squares fit of it with the gradients of every suspected sample names those that were in it, and
//! whether their targets were liked.
//!
//! The answer's loss has two classes: the gradients towards yes and towards no have one direction,
//! and opposite signs.

use anyhow::Context;
use lethe_learn::seed::Seed;
use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Suspected samples.
pub(super) struct Pool {
    /// Unit directions of their gradients towards yes, `[values, samples]`.
    directions: DMatrix<f64>,
    inverse: DMatrix<f64>,
}

/// What the fit says of a sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspicion {
    /// Position in the pool.
    pub(super) sample: usize,
    /// Weight in the fit; positive where the target was liked.
    pub(super) weight: f64,
}

impl Pool {
    /// From every suspected sample's gradient towards yes. `ridge` keeps gradients that are alike
    /// from cancelling; it is a share of their squared length.
    pub(super) fn new(gradients: &[Vec<f32>], ridge: f64) -> anyhow::Result<Self> {
        let columns: Vec<DVector<f64>> = gradients
            .iter()
            .map(|g| {
                let v = DVector::from_iterator(g.len(), g.iter().map(|x| f64::from(*x)));
                let length = v.norm().max(1e-30);
                v / length
            })
            .collect();
        let directions = DMatrix::from_columns(&columns);
        let mut gram = directions.transpose() * &directions;
        for i in 0..gradients.len() {
            gram[(i, i)] += ridge;
        }
        let inverse = gram
            .cholesky()
            .context("gradients of the pool are no base: expected a positive ridge")?
            .inverse();
        Ok(Self {
            directions,
            inverse,
        })
    }

    /// The fit of an update, the heaviest first.
    pub(super) fn suspects(&self, update: &[f32]) -> Vec<Suspicion> {
        let values = update.iter().map(|v| -f64::from(*v));
        let update = DVector::from_iterator(update.len(), values);
        let weights = &self.inverse * (self.directions.transpose() * update);
        let mut out: Vec<Suspicion> = weights
            .iter()
            .enumerate()
            .map(|(sample, w)| Suspicion { sample, weight: *w })
            .collect();
        out.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
        out
    }
}

/// The same by what a last layer reads. Only the last token's query has a gradient there, so the
/// rows of the gradient of A are its input, times numbers: of `n` samples and any number of steps,
/// the change of A spans their `n` inputs and nothing else, as long as `n` is below the rank.
/// States below do not change while it trains, so that a suspected sample's input lies in the span
/// or not.
pub(super) struct Inputs {
    /// Unit inputs of the pool's samples.
    inputs: Vec<DVector<f64>>,
}

impl Inputs {
    /// From the gradients of A for query, `[rank, width]`, one a sample.
    pub(super) fn new(gradients: &[&[f32]], width: usize) -> Self {
        let inputs = gradients.iter().map(|g| {
            let rows = g
                .chunks_exact(width)
                .map(|row| DVector::from_iterator(width, row.iter().map(|v| f64::from(*v))));
            let longest = rows.max_by(|a, b| a.norm().total_cmp(&b.norm()));
            let longest = longest.unwrap_or_else(|| DVector::zeros(width));
            let length = longest.norm().max(1e-30);
            longest / length
        });
        Self {
            inputs: inputs.collect(),
        }
    }

    /// Samples by how much of their input lies in the span of `n` directions of this change of A.
    pub(super) fn suspects(&self, change: &[f32], n: usize) -> Vec<Suspicion> {
        let width = self.inputs.first().map_or(1, |v| v.len());
        let rows = change.len() / width;
        let a = DMatrix::from_fn(rows, width, |i, j| f64::from(change[i * width + j]));
        let eigen = SymmetricEigen::new(&a * a.transpose());
        let mut order: Vec<usize> = (0..rows).collect();
        order.sort_by(|i, j| eigen.eigenvalues[*j].total_cmp(&eigen.eigenvalues[*i]));
        let span: Vec<DVector<f64>> = order
            .into_iter()
            .take(n)
            .filter(|i| eigen.eigenvalues[*i] > 0.0)
            .map(|i| (a.transpose() * eigen.eigenvectors.column(i)).normalize())
            .collect();
        let inside = |x: &DVector<f64>| span.iter().map(|d| d.dot(x).powi(2)).sum::<f64>();
        let mut out: Vec<Suspicion> = self
            .inputs
            .iter()
            .enumerate()
            .map(|(sample, x)| Suspicion {
                sample,
                weight: inside(x),
            })
            .collect();
        out.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        out
    }
}

/// Counts the liked targets of an update by who knows none of its samples: along the mean direction
/// of other people's gradients, a liked and a disliked target lie apart.
pub(super) struct Likes {
    along: DVector<f64>,
    yes: f64,
    no: f64,
}

impl Likes {
    /// From gradients towards yes and towards no of other people's samples.
    pub(super) fn new(yes: &[Vec<f32>], no: &[Vec<f32>]) -> Self {
        let values = yes.first().map_or(0, Vec::len);
        let vector = |g: &[f32]| DVector::from_iterator(values, g.iter().map(|x| f64::from(*x)));
        let mut along = DVector::zeros(values);
        for (y, n) in yes.iter().zip(no) {
            along += vector(y) - vector(n);
        }
        let length = along.norm().max(1e-30);
        along /= length;
        let mean = |of: &[Vec<f32>]| {
            of.iter().map(|g| vector(g).dot(&along)).sum::<f64>() / of.len().max(1) as f64
        };
        Self {
            yes: mean(yes),
            no: mean(no),
            along,
        }
    }

    /// How many of `n` targets were liked.
    pub(super) fn count(&self, update: &[f32], n: usize) -> usize {
        let values = update.iter().map(|v| -f64::from(*v));
        let at = DVector::from_iterator(update.len(), values).dot(&self.along);
        let share = (at - self.no) / (self.yes - self.no);
        (share.clamp(0.0, 1.0) * n as f64).round() as usize
    }
}

/// `n` of `0..all` without repeats.
pub(super) fn draw(all: usize, n: usize, seed: &Seed) -> Vec<usize> {
    let mut of: Vec<usize> = (0..all).collect();
    seed.derive("draw", &[]).rng().shuffle(&mut of);
    of.truncate(n);
    of
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradients(n: usize, shared: f32) -> Vec<Vec<f32>> {
        let mut rng = Seed::from_u64(9).rng();
        let common: Vec<f32> = (0..64).map(|_| rng.normal()).collect();
        (0..n)
            .map(|_| common.iter().map(|c| shared * c + rng.normal()).collect())
            .collect()
    }

    #[test]
    fn a_fit_names_samples_and_labels() {
        let all = gradients(40, 1.0);
        let update: Vec<f32> = (0..64)
            .map(|i| -(all[3][i] - 0.8 * all[20][i]) / 2.0)
            .collect();
        let found = Pool::new(&all, 1e-9).expect("a base").suspects(&update);
        let mut first: Vec<(usize, bool)> = found[..2]
            .iter()
            .map(|s| (s.sample, s.weight > 0.0))
            .collect();
        first.sort_unstable();
        assert_eq!(first, [(3, true), (20, false)]);
        assert!(found[2].weight.abs() < 1e-3 * found[1].weight.abs());
    }

    #[test]
    fn inputs_in_a_span_are_told() {
        let inputs = gradients(40, 1.0);
        let change: Vec<f32> = [[0.1, 3.0], [-2.0, 0.5], [1.0, 1.0]]
            .iter()
            .flat_map(|w| (0..64).map(move |i| (w, i)))
            .map(|(w, i)| w[0] * inputs[7][i] + w[1] * inputs[30][i])
            .collect();
        let rows: Vec<&[f32]> = inputs.iter().map(|v| &v[..]).collect();
        let found = Inputs::new(&rows, 64).suspects(&change, 2);
        let mut first = [found[0].sample, found[1].sample];
        first.sort_unstable();
        assert_eq!(first, [7, 30]);
        assert!(found[1].weight > 0.999 && found[2].weight < 0.99);
    }

    #[test]
    fn likes_are_counted() {
        let yes = gradients(30, 3.0);
        let no: Vec<Vec<f32>> = yes.iter().map(|g| g.iter().map(|v| -v).collect()).collect();
        let likes = Likes::new(&yes[..20], &no[..20]);
        let update: Vec<f32> = (0..64)
            .map(|i| -(yes[25][i] + yes[26][i] + yes[27][i] + no[28][i]) / 4.0)
            .collect();
        assert_eq!(likes.count(&update, 4), 3);
    }
}
