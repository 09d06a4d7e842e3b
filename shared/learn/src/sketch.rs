//! Fixed-size sketches of updates (count sketch; Charikar et al., ICALP 2002), so that the
//! coordinator can estimate cosines between clients without holding their updates.

use crate::seed::Seed;

/// Buckets of a sketch.
pub const SKETCH_LEN: usize = 1024;

/// Sketches `delta`: each coordinate is added, with a seeded sign, to a seeded bucket. Inner
/// products of sketches made with one seed estimate inner products of the updates without bias,
/// with error about `1/sqrt(SKETCH_LEN)`.
pub fn sketch(seed: &Seed, delta: &[f32]) -> Vec<f32> {
    let mut rng = seed.derive("sketch", &[]).rng();
    let mut out = vec![0.0; SKETCH_LEN];
    for d in delta {
        let r = rng.below(SKETCH_LEN * 2);
        let sign = if r & 1 == 0 { 1.0 } else { -1.0 };
        out[r >> 1] += sign * d;
    }
    out
}

/// Cosine of two vectors, in double precision; 0 when one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| {
        x.iter()
            .zip(y)
            .map(|(p, q)| f64::from(*p) * f64::from(*q))
            .sum::<f64>()
    };
    let norm = (dot(a, a) * dot(b, b)).sqrt();
    if norm == 0.0 {
        0.0
    } else {
        (dot(a, b) / norm).clamp(-1.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sketched_cosine_is_near() {
        let mut rng = Seed::from_u64(3).rng();
        let a: Vec<f32> = (0..20_000).map(|_| rng.normal()).collect();
        let b: Vec<f32> = a.iter().map(|x| x + rng.normal()).collect();
        let s = Seed::from_u64(9);
        let (exact, est) = (cosine(&a, &b), cosine(&sketch(&s, &a), &sketch(&s, &b)));
        assert!((exact - est).abs() < 0.1, "exact {exact}, sketched {est}");
    }
}
