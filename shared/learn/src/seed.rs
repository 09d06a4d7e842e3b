//! Keyed randomness: every random choice is a function of a named seed, never of position or time.
//!
//! Keying by subject and sample (not by order) is what lets a deletion leave the rest untouched:
//! see SISA, arXiv 1912.03817, and `docs/ARCHITECTURE.md`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// A 256-bit seed from which further seeds are derived by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seed(pub [u8; 32]);

impl Seed {
    /// The root seed for a user-given number.
    pub fn from_u64(n: u64) -> Self {
        Self([0; 32]).derive("lethe-root", &[&n.to_le_bytes()])
    }

    /// A seed for `label` and `parts`; each is length-prefixed, so no two different inputs collide
    /// by concatenation.
    pub fn derive(&self, label: &str, parts: &[&[u8]]) -> Self {
        let mut ctx = Context::new(&SHA256);
        ctx.update(&self.0);
        for part in std::iter::once(label.as_bytes()).chain(parts.iter().copied()) {
            ctx.update(&(part.len() as u64).to_le_bytes());
            ctx.update(part);
        }
        let mut out = [0; 32];
        out.copy_from_slice(ctx.finish().as_ref());
        Self(out)
    }

    /// A stream of random numbers for this seed.
    pub fn rng(&self) -> Stream {
        Stream(ChaCha8Rng::from_seed(self.0))
    }

    /// A 64-bit rank for `key`: sorting by it is a seeded shuffle that does not depend on what else
    /// is present.
    pub fn rank(&self, label: &str, key: &[u8]) -> u64 {
        let d = self.derive(label, &[key]).0;
        u64::from_le_bytes([d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
    }
}

/// A deterministic random stream (ChaCha8).
#[derive(Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// Uniform in `[0, 1)` with 24 bits.
    pub fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in `[lo, hi)`.
    pub fn uniform(&mut self, lo: f32, hi: f32) -> f32 {
        lo + (hi - lo) * self.unit()
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        let u = 1.0 - f64::from(self.unit());
        let v = f64::from(self.unit());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    /// Uniform in `0..n`; `n` must be positive.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivation_separates_labels_and_parts() {
        let s = Seed::from_u64(1);
        assert_ne!(s.derive("a", &[b"bc"]), s.derive("ab", &[b"c"]));
        assert_ne!(s.derive("a", &[b"b", b"c"]), s.derive("a", &[b"bc"]));
        assert_eq!(
            s.derive("a", &[b"b"]),
            Seed::from_u64(1).derive("a", &[b"b"])
        );
    }

    #[test]
    fn streams_repeat_and_cover() {
        let mut a = Seed::from_u64(7).rng();
        let mut b = Seed::from_u64(7).rng();
        let mean: f32 = (0..4000).map(|_| a.normal()).sum::<f32>() / 4000.0;
        assert!(mean.abs() < 0.06, "mean of 4,000 normals was {mean}");
        for _ in 0..4000 {
            b.normal();
        }
        assert_eq!(a.below(1000), b.below(1000));
    }
}
