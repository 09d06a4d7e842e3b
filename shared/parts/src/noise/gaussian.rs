//! Exact samples of the discrete Gaussian (Canonne, Kamath, Steinke, The Discrete Gaussian for
//! Differential Privacy, arXiv 2004.00010, algorithms 1 to 3). Integers only: no rounding gives
//! anything away (Mironov, CCS 2012), and every machine draws the same.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

/// The largest variance: with it no product below leaves 128 bits.
pub(super) const MOST_VARIANCE: u64 = 1 << 50;
/// The most steps of a geometric draw. One that is longer has a chance of `e^-1000`.
const MOST_STEPS: u64 = 1_000;

/// Integers `y` with chances proportional to `exp(-y^2 / (2 variance))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gaussian {
    variance: u64,
    /// Scale of the discrete Laplace distribution that is drawn from first.
    scale: u64,
}

impl Gaussian {
    /// `variance`: 1 to [`MOST_VARIANCE`].
    pub(super) fn new(variance: u64) -> Self {
        let variance = variance.clamp(1, MOST_VARIANCE);
        Self {
            variance,
            scale: variance.isqrt() + 1,
        }
    }

    pub(super) fn draw(&self, rng: &mut ChaCha20Rng) -> i64 {
        let variance = u128::from(self.variance);
        let scale = u128::from(self.scale);
        loop {
            let drawn = laplace(self.scale, rng);
            let away = (u128::from(drawn.unsigned_abs()) * scale).abs_diff(variance);
            if exp_minus(away * away, 2 * variance * scale * scale, rng) {
                return drawn;
            }
        }
    }
}

/// Integers with chances proportional to `exp(-|y| / scale)`.
fn laplace(scale: u64, rng: &mut ChaCha20Rng) -> i64 {
    loop {
        let low = below(scale, rng);
        if !exp_minus_fraction(u128::from(low), u128::from(scale), rng) {
            continue;
        }
        let mut steps = 0;
        while steps < MOST_STEPS && exp_minus_fraction(1, 1, rng) {
            steps += 1;
        }
        // At most 2^26 times 1,000.
        let size = (low + scale * steps) as i64;
        let negative = rng.next_u32() & 1 == 1;
        if negative && size == 0 {
            continue;
        }
        return if negative { -size } else { size };
    }
}

/// True with a chance of `exp(-n / d)`.
fn exp_minus(n: u128, d: u128, rng: &mut ChaCha20Rng) -> bool {
    let mut left = n;
    while left > d {
        if !exp_minus_fraction(1, 1, rng) {
            return false;
        }
        left -= d;
    }
    exp_minus_fraction(left, d, rng)
}

/// True with a chance of `exp(-n / d)`, for `n <= d`.
fn exp_minus_fraction(n: u128, d: u128, rng: &mut ChaCha20Rng) -> bool {
    let mut tries = 1;
    while happens(n, d * tries, rng) {
        tries += 1;
    }
    tries % 2 == 1
}

/// True with a chance of `n / d`.
fn happens(n: u128, d: u128, rng: &mut ChaCha20Rng) -> bool {
    if n >= d {
        return true;
    }
    if n == 0 {
        return false;
    }
    if let Ok(d) = u64::try_from(d) {
        return u128::from(below(d, rng)) < n;
    }
    let mask = u128::MAX >> (d - 1).leading_zeros();
    loop {
        let high = u128::from(rng.next_u64()) << 64;
        let drawn = (high | u128::from(rng.next_u64())) & mask;
        if drawn < d {
            return drawn < n;
        }
    }
}

/// Uniform in `0..n`, for a positive `n`.
fn below(n: u64, rng: &mut ChaCha20Rng) -> u64 {
    if n == 1 {
        return 0;
    }
    let mask = u64::MAX >> (n - 1).leading_zeros();
    loop {
        let drawn = rng.next_u64() & mask;
        if drawn < n {
            return drawn;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn drawn(variance: u64, count: usize) -> Vec<i64> {
        let mut rng = ChaCha20Rng::from_seed([3; 32]);
        let gaussian = Gaussian::new(variance);
        (0..count).map(|_| gaussian.draw(&mut rng)).collect()
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        // Of the discrete Gaussian with a variance of 1 and more they differ from the normal
        // distribution's by less than 1e-7.
        let count = 40_000;
        for variance in [1, 2, 7, 400, 1_000_003, 1 << 40, MOST_VARIANCE] {
            let all = drawn(variance, count);
            let scale = (variance as f64).sqrt();
            let moment = |power: i32| {
                let sum: f64 = all.iter().map(|y| (*y as f64 / scale).powi(power)).sum();
                sum / count as f64
            };
            let error = 1.0 / (count as f64).sqrt();
            assert!(moment(1).abs() < 5.0 * error, "{variance}: {}", moment(1));
            let second = (moment(2) - 1.0).abs();
            assert!(second < 5.0 * 2f64.sqrt() * error, "{variance}: {second}");
            assert!(moment(3).abs() < 5.0 * 15f64.sqrt() * error);
            let fourth = (moment(4) - 3.0).abs();
            assert!(fourth < 5.0 * 96f64.sqrt() * error, "{variance}: {fourth}");
        }
    }

    #[test]
    fn each_integer_has_its_chance() {
        let count = 200_000;
        for variance in [1u64, 3, 20] {
            let all = drawn(variance, count);
            let weight = |y: i64| (-((y * y) as f64) / (2.0 * variance as f64)).exp();
            let total: f64 = (-400..=400).map(weight).sum();
            for y in -12..=12 {
                let chance = weight(y) / total;
                let got = all.iter().filter(|d| **d == y).count() as f64 / count as f64;
                let error = (chance * (1.0 - chance) / count as f64).sqrt();
                let off = (got - chance).abs();
                assert!(off < 5.0 * error + 1e-5, "{variance}, {y}: {got}, {chance}");
            }
        }
    }

    #[test]
    fn every_machine_draws_the_same() {
        assert_eq!(drawn(1_000_000, 8), GOLDEN);
    }

    /// Drawn once: another draw would make what was published impossible to repeat.
    const GOLDEN: [i64; 8] = [-1313, -1251, 759, 1025, 101, -2548, -564, 1727];
}
