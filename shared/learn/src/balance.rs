//! PPLR's dynamic balance (FELLRec, arXiv 2402.09959, section 3.2): clients with a high loss learn
//! less from their peers at first, and everybody more as rounds pass; similar clients learn more
//! from each other.

use serde::{Deserialize, Serialize};

use crate::sketch::cosine;

/// Form of the warm-up exponent: the paper prints `t / beta`, its published code uses `t + 1 /
/// beta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exponent {
    /// `w = tanh(alpha / p^(t / beta))`.
    Paper,
    /// `w = tanh(alpha / p^(t + 1 / beta))`.
    Code,
}

/// Parameters of the balance rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalanceParams {
    /// Strength; the paper uses 0.7.
    pub alpha: f64,
    /// Warm-up rate; 1 and 5 in the paper. 1 is a value like any other (the published code switches
    /// off at 1).
    pub beta: f64,
    /// Form of the exponent.
    pub exponent: Exponent,
}

impl Default for BalanceParams {
    fn default() -> Self {
        Self {
            alpha: 0.7,
            beta: 1.0,
            exponent: Exponent::Paper,
        }
    }
}

/// `w_i` per client from its mean training loss of this round; `round` counts from 0.
pub fn learning_speeds(params: &BalanceParams, losses: &[f64], round: u32) -> Vec<f64> {
    let max = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = losses.iter().map(|l| ((l - max) / 0.05).exp()).collect();
    let total: f64 = exps.iter().sum();
    let t = f64::from(round);
    let power = match params.exponent {
        Exponent::Paper => t / params.beta,
        Exponent::Code => t + 1.0 / params.beta,
    };
    exps.iter()
        .map(|e| (params.alpha / (e / total).powf(power)).tanh())
        .collect()
}

/// `s_ij = (1 + cos(u_i, u_j)) / 2` on updates (or sketches of them), row-major `[n, n]`; the
/// diagonal is 0.
pub fn similarities(updates: &[impl AsRef<[f32]>]) -> Vec<f64> {
    let n = updates.len();
    let mut s = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..i {
            let v = (1.0 + cosine(updates[i].as_ref(), updates[j].as_ref())) / 2.0;
            s[i * n + j] = v;
            s[j * n + i] = v;
        }
    }
    s
}

/// The mixing matrix `[n, n]` of the rule: `theta_i <- sum_j m_ij theta_j`, rows summing to 1. It
/// is computed from a snapshot, so the order of clients does not matter (the published code
/// aggregates in place).
pub fn mixing_matrix(speeds: &[f64], similarity: &[f64]) -> Vec<f64> {
    let n = speeds.len();
    let mut m = vec![0.0; n * n];
    for i in 0..n {
        let row = &similarity[i * n..(i + 1) * n];
        let denom = 1.0 + speeds[i] * row.iter().sum::<f64>();
        for j in 0..n {
            m[i * n + j] = if i == j {
                1.0 / denom
            } else {
                speeds[i] * row[j] / denom
            };
        }
    }
    m
}

/// Mode `personalized`: every client's next parameters, from a snapshot of all of them
/// (`[n][len]`).
pub fn personalized(mixing: &[f64], thetas: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let n = thetas.len();
    (0..n)
        .map(|i| {
            let mut out = vec![0.0f64; thetas[i].len()];
            for (j, theta) in thetas.iter().enumerate() {
                let w = mixing[i * n + j];
                out.iter_mut()
                    .zip(theta)
                    .for_each(|(o, t)| *o += w * f64::from(*t));
            }
            out.into_iter().map(|v| v as f32).collect()
        })
        .collect()
}

/// Mode `shared`: one weight per client, the column means of the mixing matrix (they sum to 1), so
/// that `Theta = theta_start + sum_i a_i (theta_i - theta_start)` is the mean of the personalised
/// results.
pub fn shared_weights(mixing: &[f64], n: usize) -> Vec<f32> {
    (0..n)
        .map(|j| ((0..n).map(|i| mixing[i * n + j]).sum::<f64>() / n as f64) as f32)
        .collect()
}

/// [`shared_weights`] of [`mixing_matrix`] and [`similarities`] in time and memory linear in the
/// number of clients: sums over cosines are inner products with sums of unit vectors. Equal but for
/// rounding.
pub fn shared_weights_of(speeds: &[f64], updates: &[impl AsRef<[f32]>]) -> Vec<f32> {
    let (n, width) = (
        speeds.len(),
        updates.first().map_or(0, |u| u.as_ref().len()),
    );
    let units: Vec<f64> = updates
        .iter()
        .map(|u| {
            let norm = u
                .as_ref()
                .iter()
                .map(|v| f64::from(*v) * f64::from(*v))
                .sum::<f64>()
                .sqrt();
            if norm > 0.0 { 1.0 / norm } else { 0.0 }
        })
        .collect();
    let sum = |factor: &dyn Fn(usize) -> f64| {
        let mut out = vec![0.0f64; width];
        for (i, u) in updates.iter().enumerate() {
            let f = factor(i) * units[i];
            out.iter_mut()
                .zip(u.as_ref())
                .for_each(|(o, v)| *o += f * f64::from(*v));
        }
        out
    };
    // Inner product of a unit vector with such a sum, and its own part in it.
    let with = |i: usize, s: &[f64]| {
        updates[i]
            .as_ref()
            .iter()
            .zip(s)
            .map(|(v, s)| f64::from(*v) * s)
            .sum::<f64>()
            * units[i]
    };
    let own = |i: usize| if units[i] > 0.0 { 1.0 } else { 0.0 };
    let all = sum(&|_| 1.0);
    let row = |i: usize| ((n - 1) as f64 + with(i, &all) - own(i)) / 2.0;
    let denominators: Vec<f64> = (0..n).map(|i| 1.0 + speeds[i] * row(i)).collect();
    let shares: Vec<f64> = (0..n).map(|i| speeds[i] / denominators[i]).collect();
    let (total, weighted) = (shares.iter().sum::<f64>(), sum(&|i| shares[i]));
    (0..n)
        .map(|j| {
            let others = (total - shares[j] + with(j, &weighted) - shares[j] * own(j)) / 2.0;
            ((1.0 / denominators[j] + others) / n as f64) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(losses: &[f64], updates: &[Vec<f32>], round: u32) -> Vec<f64> {
        let w = learning_speeds(&BalanceParams::default(), losses, round);
        mixing_matrix(&w, &similarities(updates))
    }

    #[test]
    fn high_loss_learns_less_after_warm_up_starts() {
        let w = learning_speeds(&BalanceParams::default(), &[0.9, 0.5], 1);
        assert!(w[0] < w[1], "{w:?}");
        let w0 = learning_speeds(&BalanceParams::default(), &[0.9, 0.5], 0);
        assert_eq!(
            w0[0], w0[1],
            "at t = 0 the paper's exponent is 0 and all start alike"
        );
    }

    #[test]
    fn weights_sum_to_one_and_follow_their_clients() {
        let u = vec![vec![1.0, 0.0], vec![0.5, 0.5], vec![-1.0, 0.2]];
        let a = shared_weights(&matrix(&[0.7, 0.6, 0.8], &u, 2), 3);
        assert!((a.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let swapped = vec![u[2].clone(), u[1].clone(), u[0].clone()];
        let b = shared_weights(&matrix(&[0.8, 0.6, 0.7], &swapped, 2), 3);
        for (x, y) in a.iter().zip(b.iter().rev()) {
            assert!((x - y).abs() < 1e-6, "{a:?} against {b:?}");
        }
    }

    #[test]
    fn the_linear_form_gives_the_same_weights() {
        let mut rng = crate::seed::Seed::from_u64(5).rng();
        let mut u: Vec<Vec<f32>> = (0..40)
            .map(|_| (0..64).map(|_| 0.3 + rng.normal()).collect())
            .collect();
        u[7].fill(0.0);
        let losses: Vec<f64> = (0..40).map(|i| 0.5 + f64::from(i % 9) / 40.0).collect();
        for round in [0, 3] {
            let slow = shared_weights(&matrix(&losses, &u, round), 40);
            let fast = shared_weights_of(
                &learning_speeds(&BalanceParams::default(), &losses, round),
                &u,
            );
            for (a, b) in slow.iter().zip(&fast) {
                assert!((a - b).abs() < 1e-6, "{a} {b}");
            }
        }
        assert!(shared_weights_of(&[], &Vec::<Vec<f32>>::new()).is_empty());
    }

    #[test]
    fn shared_is_the_mean_of_personalized() {
        let u = vec![vec![1.0f32, 0.0], vec![0.25, 0.75], vec![-1.0, 0.5]];
        let m = matrix(&[0.7, 0.6, 0.9], &u, 1);
        let p = personalized(&m, &u);
        let a = shared_weights(&m, 3);
        for c in 0..2 {
            let mean: f32 = p.iter().map(|v| v[c]).sum::<f32>() / 3.0;
            let agg: f32 = u.iter().zip(&a).map(|(v, w)| v[c] * w).sum();
            assert!((mean - agg).abs() < 1e-6);
        }
    }
}
