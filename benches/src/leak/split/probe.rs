//! A linear guess of the token behind a state: which tokens to try first.
//!
//! Least squares from states to embeddings of their tokens, on texts that the attacker makes; then
//! the log-likelihood ratio of each token under the residuals' covariance (linear discriminant
//! analysis over the whole vocabulary).

use anyhow::Context;
use lethe_model::kernels::gemm::{Mat, Threads, matmul};
use nalgebra::{Cholesky, DMatrix, Dyn};

pub(super) struct Probe {
    width: usize,
    vocab: usize,
    /// Mean state.
    mean: Vec<f32>,
    /// From centred states to whitened guesses, `[hidden, hidden]`, a row for each output.
    map: Vec<f32>,
    /// Whitened centred embeddings, `[vocab, hidden]`.
    words: Vec<f32>,
    /// What is taken off each token's product.
    offsets: Vec<f32>,
    /// Half the logarithm of how much narrower the residuals are than the embeddings.
    gain: f32,
}

/// `a [rows, inner]` times `b [cols, inner]` transposed.
fn product(a: &[f32], b: &[f32], inner: usize) -> Vec<f32> {
    let (rows, cols) = (a.len() / inner, b.len() / inner);
    let mut out = vec![0.0; rows * cols];
    matmul(
        &mut out,
        cols,
        false,
        1.0,
        Mat::new(a, rows, inner, inner),
        Mat::new(b, cols, inner, inner).t(),
        Threads::Pool,
    );
    out
}

/// `a` transposed times `b` over `n` rows: the mean, as a matrix.
fn covariance(a: &[f32], b: &[f32], width: usize) -> DMatrix<f64> {
    let n = a.len() / width;
    let mut out = vec![0.0; width * width];
    matmul(
        &mut out,
        width,
        false,
        1.0 / n as f32,
        Mat::new(a, n, width, width).t(),
        Mat::new(b, n, width, width),
        Threads::Pool,
    );
    DMatrix::from_row_iterator(width, width, out.into_iter().map(f64::from))
}

fn centre(rows: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let n = (rows.len() / width).max(1) as f64;
    let mut sums = vec![0.0f64; width];
    for row in rows.chunks_exact(width) {
        sums.iter_mut()
            .zip(row)
            .for_each(|(s, v)| *s += f64::from(*v));
    }
    let mean: Vec<f32> = sums.iter().map(|s| (s / n) as f32).collect();
    (minus(rows, &mean), mean)
}

fn minus(rows: &[f32], mean: &[f32]) -> Vec<f32> {
    rows.chunks_exact(mean.len())
        .flat_map(|row| row.iter().zip(mean).map(|(v, m)| v - m))
        .collect()
}

fn factor(mut m: DMatrix<f64>, ridge: f64) -> anyhow::Result<Cholesky<f64, Dyn>> {
    for i in 0..m.nrows() {
        m[(i, i)] += ridge;
    }
    m.cholesky().context("a covariance is not positive")
}

fn inverse_factor(c: &Cholesky<f64, Dyn>) -> anyhow::Result<DMatrix<f64>> {
    let n = c.l().nrows();
    c.l()
        .solve_lower_triangular(&DMatrix::identity(n, n))
        .context("a factor is singular")
}

fn rows_of(m: &DMatrix<f64>) -> Vec<f32> {
    m.transpose().iter().map(|v| *v as f32).collect()
}

fn log_det(c: &Cholesky<f64, Dyn>) -> f64 {
    2.0 * c.l().diagonal().iter().map(|v| v.ln()).sum::<f64>()
}

impl Probe {
    /// Learns from `states` `[n, hidden]` and the tokens behind them; `words` is `[vocab, hidden]`.
    pub(super) fn fit(
        states: &[f32],
        ids: &[u32],
        words: &[f32],
        width: usize,
    ) -> anyhow::Result<Self> {
        let (x, mean) = centre(states, width);
        let targets: Vec<f32> = ids
            .iter()
            .flat_map(|id| &words[*id as usize * width..][..width])
            .copied()
            .collect();
        let (y, centre_of_words) = centre(&targets, width);
        let xx = covariance(&x, &x, width);
        let mut scale: Vec<f64> = xx.diagonal().iter().copied().collect();
        scale.sort_by(f64::total_cmp);
        let solved = factor(xx, 1e-5 * scale[width / 2])?.solve(&covariance(&x, &y, width));
        let residual = minus_products(&x, &y, &rows_of(&solved.transpose()), width);
        let spread = covariance(&y, &y, width);
        let ridge = 1e-4 * spread.trace() / width as f64;
        let narrow = factor(covariance(&residual, &residual, width), ridge)?;
        let wide = factor(spread, ridge)?;
        let (white, prior) = (inverse_factor(&narrow)?, inverse_factor(&wide)?);
        let centred = minus(words, &centre_of_words);
        let whitened = product(&centred, &rows_of(&white), width);
        let plain = product(&centred, &rows_of(&prior), width);
        let half = |rows: &[f32]| {
            rows.chunks_exact(width)
                .map(|r| r.iter().map(|v| v * v).sum::<f32>() / 2.0)
                .collect::<Vec<f32>>()
        };
        let (own, base) = (half(&whitened), half(&plain));
        Ok(Self {
            width,
            vocab: words.len() / width,
            mean,
            map: rows_of(&(white * solved.transpose())),
            words: whitened,
            offsets: own.iter().zip(base).map(|(o, b)| o - b).collect(),
            gain: ((log_det(&wide) - log_det(&narrow)) / 2.0) as f32,
        })
    }

    /// How much more likely each token is behind each state than behind any, as a logarithm,
    /// `[rows, vocab]`.
    pub(super) fn ratios(&self, states: &[f32]) -> Vec<f32> {
        let guesses = product(&minus(states, &self.mean), &self.map, self.width);
        let mut out = product(&guesses, &self.words, self.width);
        let rows = out
            .chunks_exact_mut(self.vocab)
            .zip(guesses.chunks_exact(self.width));
        for (row, guess) in rows {
            let own = guess.iter().map(|v| v * v).sum::<f32>() / 2.0 - self.gain;
            row.iter_mut()
                .zip(&self.offsets)
                .for_each(|(v, o)| *v -= o + own);
        }
        out
    }
}

/// `y - x map^T`.
fn minus_products(x: &[f32], y: &[f32], map: &[f32], width: usize) -> Vec<f32> {
    let guessed = product(x, map, width);
    y.iter().zip(guessed).map(|(a, b)| a - b).collect()
}

/// The positions of the `n` largest values, largest first.
pub(super) fn largest(values: &[f32], n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    let down = |a: &u32, b: &u32| values[*b as usize].total_cmp(&values[*a as usize]);
    if n < order.len() {
        order.select_nth_unstable_by(n, down);
        order.truncate(n);
    }
    order.sort_by(|a, b| down(a, b).then(a.cmp(b)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use lethe_learn::seed::Seed;

    #[test]
    fn tokens_are_found_behind_a_linear_map_of_their_embeddings() {
        let mut rng = Seed::from_u64(1).rng();
        let (width, vocab) = (8, 300);
        let words: Vec<f32> = (0..vocab * width).map(|_| rng.normal()).collect();
        let turn: Vec<f32> = (0..width * width).map(|_| rng.normal()).collect();
        let mut state = |id: u32| {
            let row = product(&words[id as usize * width..][..width], &turn, width);
            row.iter()
                .map(|v| v + 0.05 * rng.normal())
                .collect::<Vec<f32>>()
        };
        let ids: Vec<u32> = (0..200).collect();
        let states: Vec<f32> = ids.iter().flat_map(|i| state(*i)).collect();
        let probe = Probe::fit(&states, &ids, &words, width).expect("fits");
        let found = (200..300).filter(|id| {
            let row = probe.ratios(&state(*id));
            largest(&row, 1) == [*id] && row[*id as usize] > 0.0
        });
        let found = found.count();
        assert!(found > 90, "{found} of 100 that it has not met");
    }

    #[test]
    fn the_largest_come_in_order() {
        assert_eq!(largest(&[1.0, 5.0, 3.0, 5.0], 3), [1, 3, 2]);
        assert_eq!(largest(&[1.0], 3), [0]);
    }
}
