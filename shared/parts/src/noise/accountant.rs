//! What noise costs: Renyi differential privacy (Mironov, arXiv 1702.07476) of Gaussian noise.
//!
//! A release whose noise has the variance `z^2` in units of the squared L2 sensitivity has Renyi
//! divergence `alpha rho` of every order `alpha`, with `rho = 1 / (2 z^2)`. The discrete Gaussian
//! has the same bound (Canonne, Kamath, Steinke, arXiv 2004.00010, theorem 14). Costs of releases
//! add up, whatever was chosen after the earlier ones. So the accountant is one sum of `rho`, kept
//! as an integer: a **charge**, in units of 1e-12, rounded against the operator.
//!
//! From `rho` to epsilon: proposition 12 of arXiv 2004.00010, over the orders of Google's
//! `dp-accounting`. `fixtures/accountant.py` has made what a test compares with.

/// Charges in one `rho`.
const UNITS: f64 = 1e12;
/// The largest charge: `rho` = 1,000. It stands for no privacy at all.
pub const MOST_CHARGE: u64 = 1_000_000_000_000_000;

/// Orders of the divergence.
fn orders() -> impl Iterator<Item = f64> {
    let small = (1..100u32).map(|x| 1.0 + f64::from(x) / 10.0);
    let whole = (11..64u32).chain([128, 256, 512, 1_024]).map(f64::from);
    small.chain(whole)
}

/// The epsilon of a charge, at a `delta` above 0 and below 1.
pub fn epsilon(charge: u64, delta: f64) -> f64 {
    let rho = charge as f64 / UNITS;
    let of_order = |order: f64| {
        let divergence = order * rho;
        // The divergence of order 1 is no larger: delta <= sqrt(1 - exp(-divergence)).
        if delta * delta + libm::expm1(-divergence) > 0.0 {
            return 0.0;
        }
        divergence + libm::log1p(-1.0 / order) - libm::log(delta * order) / (order - 1.0)
    };
    orders()
        .map(of_order)
        .fold(f64::INFINITY, f64::min)
        .max(0.0)
}

/// The largest charge, up to [`MOST_CHARGE`], whose epsilon is at most this one; by bisection.
pub fn charge(most: f64, delta: f64) -> u64 {
    let mut fits = 0;
    let mut too_large = MOST_CHARGE + 1;
    while too_large - fits > 1 {
        let middle = fits + (too_large - fits) / 2;
        if epsilon(middle, delta) <= most {
            fits = middle;
        } else {
            too_large = middle;
        }
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Releases {
        multiplier: f64,
        releases: u32,
    }

    #[derive(serde::Deserialize)]
    struct Row {
        of: Vec<Releases>,
        delta: f64,
        epsilon: f64,
    }

    fn charged(multiplier: f64) -> u64 {
        (UNITS / (2.0 * multiplier * multiplier)).ceil() as u64
    }

    #[test]
    fn epsilons_are_those_of_the_reference_implementation() {
        let rows: Vec<Row> =
            serde_json::from_str(include_str!("../../fixtures/accountant.json")).expect("rows");
        assert!(rows.len() >= 80);
        for row in rows {
            let of = |r: &Releases| charged(r.multiplier) * u64::from(r.releases);
            let got = epsilon(row.of.iter().map(of).sum(), row.delta);
            let off = (got - row.epsilon).abs() / row.epsilon;
            assert!(off < 1e-6, "{got}, expected {}", row.epsilon);
        }
    }

    #[test]
    fn a_charge_is_the_largest_that_fits() {
        for most in [0.05, 0.1, 1.0, 3.0, 30.0, 100.0] {
            for delta in [1e-9, 1e-6, 1e-3] {
                let fits = charge(most, delta);
                assert!(fits > 0, "{most} {delta}");
                assert!(epsilon(fits, delta) <= most);
                assert!(epsilon(fits + 1, delta) > most);
            }
        }
        assert_eq!(charge(f64::INFINITY, 1e-6), MOST_CHARGE);
        let before = epsilon(charge(1.0, 1e-6), 1e-6);
        assert!(before > 0.999, "{before}");
    }
}
