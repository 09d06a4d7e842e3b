//! Fixed-size sketches of updates (count sketch; Charikar et al., ICALP 2002), so that the
//! coordinator can estimate cosines between clients without holding their updates.

use crate::seed::Seed;

/// Buckets of a sketch.
pub const SKETCH_LEN: usize = 1024;

/// Sketches vectors of one length with one seed. Inner products of its sketches estimate inner
/// products of the vectors without bias, with error about `1/sqrt(SKETCH_LEN)`.
///
/// ```
/// use lethe_learn::seed::Seed;
/// use lethe_learn::sketch::{SKETCH_LEN, Sketcher, cosine};
/// let sketcher = Sketcher::new(&Seed::from_u64(1), 3);
/// let a = sketcher.sketch(&[1.0, 0.0, 2.0]);
/// assert_eq!(a.len(), SKETCH_LEN);
/// assert_eq!(cosine(&a, &a), 1.0);
/// ```
#[derive(Clone, Debug)]
pub struct Sketcher {
    /// Of every coordinate: twice its bucket, and one more where the sign is negative. Drawing them
    /// costs more than adding, and they are the same for every vector.
    places: Vec<u16>,
}

impl Sketcher {
    /// For vectors of `len` values: each coordinate has a seeded bucket and a seeded sign.
    pub fn new(seed: &Seed, len: usize) -> Self {
        let mut rng = seed.derive("sketch", &[]).rng();
        let place = |_| rng.below(SKETCH_LEN * 2) as u16;
        Self {
            places: (0..len).map(place).collect(),
        }
    }

    /// The sketch of `delta`, `[SKETCH_LEN]`. Values beyond the length that this was made for are
    /// not in it.
    pub fn sketch(&self, delta: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; SKETCH_LEN];
        for (place, d) in self.places.iter().zip(delta) {
            let sign = if place & 1 == 0 { 1.0 } else { -1.0 };
            out[usize::from(place >> 1)] += sign * d;
        }
        out
    }
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
        let s = Sketcher::new(&Seed::from_u64(9), a.len());
        let exact = cosine(&a, &b);
        let est = cosine(&s.sketch(&a), &s.sketch(&b));
        assert!((exact - est).abs() < 0.1, "exact {exact}, sketched {est}");
    }
}
