//! Sums of updates in fixed point, so that whoever adds them up needs to see none of them.
//!
//! Secure aggregation (Bonawitz et al., CCS 2017) hides each update under masks that cancel in the
//! sum. Masks cancel in modular integers only: a device clips its update, rounds it to a grid that
//! all devices share, and adds modulo 2^32 or 2^64. The sum of all is the sum of the rounded
//! updates, exactly and in any order, as long as the grid leaves room for everybody. This module is
//! the arithmetic; who draws masks, and who removes those of a device that was lost, is not here.
//!
//! **What it excludes.** Whoever has only the sum cannot weigh an update by its likeness to others
//! (PPLR's balance), nor drop, trim or shorten a strange one (robust aggregation, a bound that
//! follows the median length), nor check one client's error feedback, nor keep a client's update to
//! replay a round without it: a person who leaves costs their rounds again. The bound on each
//! coordinate is the device's word; a device that lies can spoil a sum, which range proofs would
//! have to prevent. And a sum is no noise: a suspected sample is found in it (`docs/leaks.md`).
//!
//! ```
//! use lethe_learn::secure_sum::Grid;
//! let grid = Grid::new(1.0, 32, 100)?;
//! let updates = [[0.25, -0.5], [0.5, 0.125]];
//! let mut sum = vec![0; 2];
//! for update in &updates {
//!     grid.add(&mut sum, &grid.encode(update)?)?;
//! }
//! let decoded = grid.decode(&sum, 2)?;
//! assert!((decoded[0] - 0.75).abs() <= grid.error(2));
//! # Ok::<(), lethe_learn::secure_sum::GridError>(())
//! ```

use thiserror::Error;

/// Why values do not fit a grid.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum GridError {
    /// A grid that could not hold the sum of all.
    #[error(
        "a grid of {bits} bits for {clients} clients within {clip}, expected 8 to 64 bits, 1 to \
         2^(bits - 2) - 1 clients and a positive bound: give more bits or fewer clients"
    )]
    Grid {
        /// Largest magnitude of a value.
        clip: f32,
        /// Bits of the sum.
        bits: u32,
        /// Most updates.
        clients: u32,
    },
    /// An infinite value, or none at all.
    #[error("value {index} is not finite: the client's training diverged")]
    NotFinite {
        /// Which.
        index: usize,
    },
    /// Vectors of different lengths.
    #[error("{got} values, expected {expected}: the client trained another adapter shape")]
    Length {
        /// Values of the sum.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// A value that no sum on this grid has.
    #[error(
        "value {index} of the sum is beyond what {clients} updates can give: one was encoded on \
         another grid, masks did not cancel, or a device lied"
    )]
    Overflow {
        /// Which.
        index: usize,
        /// Updates in the sum.
        clients: u32,
    },
    /// More updates than the grid has room for, or none.
    #[error("a sum of {got} updates, expected 1 to {most}")]
    Clients {
        /// Updates given.
        got: u32,
        /// Updates that the grid was made for.
        most: u32,
    },
}

/// A fixed-point grid that all devices of a round share: values within `-clip..=clip`, sums modulo
/// `2^bits`, room for a number of updates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    clip: f32,
    bits: u32,
    clients: u32,
    /// Codes of one update are within `-top..=top`.
    top: i64,
}

/// Codes of more than this are not exact in double precision, in which they are computed.
const MOST_CODE: i64 = 1 << 52;

impl Grid {
    /// A grid for values within `-clip..=clip`, sums modulo `2^bits` and at most `clients` updates.
    /// A code has as many values as fit: `clients * top < 2^(bits - 1)`, so that no sum wraps.
    ///
    /// # Errors
    /// [`GridError::Grid`] where not even one step each has room.
    pub fn new(clip: f32, bits: u32, clients: u32) -> Result<Self, GridError> {
        let wrong = GridError::Grid {
            clip,
            bits,
            clients,
        };
        let in_range = clip.is_finite() && clip > 0.0 && (8..=64).contains(&bits);
        if !in_range || clients == 0 {
            return Err(wrong);
        }
        let half = (1u64 << (bits - 1)) - 1;
        let top = half / u64::from(clients);
        if top < 2 {
            return Err(wrong);
        }
        Ok(Self {
            clip,
            bits,
            clients,
            top: i64::try_from(top).unwrap_or(i64::MAX).min(MOST_CODE),
        })
    }

    /// Distance of two neighbours on the grid.
    pub fn step(&self) -> f64 {
        f64::from(self.clip) / self.top as f64
    }

    /// The most by which a value of the decoded sum of `clients` updates differs from the sum of
    /// their clipped values: half a step each, and the rounding to single precision at the end.
    pub fn error(&self, clients: u32) -> f32 {
        let n = f64::from(clients);
        let rounding = n * f64::from(self.clip) * f64::from(f32::EPSILON);
        (n * self.step() / 2.0 * (1.0 + 1e-9) + rounding) as f32
    }

    /// Bits that one value of an update or of a sum takes on the way.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// An update on the grid, `[values]`, each below `2^bits`. Values beyond the bound are cut to
    /// it, coordinate by coordinate; whoever wants a bound on the length clips that before
    /// ([`crate::aggregate::clip`]).
    ///
    /// # Errors
    /// [`GridError::NotFinite`].
    pub fn encode(&self, update: &[f32]) -> Result<Vec<u64>, GridError> {
        let code = |(index, v): (usize, &f32)| {
            if !v.is_finite() {
                return Err(GridError::NotFinite { index });
            }
            let scaled = f64::from(v.clamp(-self.clip, self.clip)) / f64::from(self.clip);
            let code = (scaled * self.top as f64).round_ties_even() as i64;
            // Two's complement: a negative code is its distance below 2^bits.
            Ok(code.clamp(-self.top, self.top) as u64 & self.mask())
        };
        update.iter().enumerate().map(code).collect()
    }

    /// Adds an encoded (and, on the way, masked) update to a sum, modulo `2^bits`.
    ///
    /// # Errors
    /// [`GridError::Length`]: nothing was added.
    pub fn add(&self, sum: &mut [u64], update: &[u64]) -> Result<(), GridError> {
        if sum.len() != update.len() {
            return Err(GridError::Length {
                expected: sum.len(),
                got: update.len(),
            });
        }
        for (s, u) in sum.iter_mut().zip(update) {
            *s = s.wrapping_add(*u) & self.mask();
        }
        Ok(())
    }

    /// The sum of `clients` updates.
    ///
    /// # Errors
    /// [`GridError::Clients`] and [`GridError::Overflow`]: a sum that these updates cannot have.
    pub fn decode(&self, sum: &[u64], clients: u32) -> Result<Vec<f32>, GridError> {
        if !(1..=self.clients).contains(&clients) {
            return Err(GridError::Clients {
                got: clients,
                most: self.clients,
            });
        }
        // No overflow: `top * clients` is below `2^(bits - 1)`.
        let most = self.top * i64::from(clients);
        let free = 64 - self.bits;
        let value = |(index, s): (usize, &u64)| {
            // The sign is the highest of the bits.
            let code = (s << free) as i64 >> free;
            if code < -most || code > most || s & !self.mask() != 0 {
                return Err(GridError::Overflow { index, clients });
            }
            Ok((code as f64 * self.step()) as f32)
        };
        sum.iter().enumerate().map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn updates(n: usize, values: usize) -> Vec<Vec<f32>> {
        let mut rng = Seed::from_u64(4).rng();
        (0..n)
            .map(|_| (0..values).map(|_| 0.4 * rng.normal()).collect())
            .collect()
    }

    fn total(grid: &Grid, updates: &[Vec<f32>]) -> Vec<u64> {
        let mut sum = vec![0; updates[0].len()];
        for update in updates {
            let codes = grid.encode(update).expect("finite");
            grid.add(&mut sum, &codes).expect("one length");
        }
        sum
    }

    #[test]
    fn a_sum_is_that_of_clipped_floats() {
        let all = updates(100, 500);
        for (bits, clients) in [(16, 100), (32, 100), (32, 4_000), (64, 100), (64, u32::MAX)] {
            let grid = Grid::new(1.0, bits, clients).expect("room");
            let got = grid.decode(&total(&grid, &all), 100).expect("in range");
            let bound = f64::from(grid.error(100));
            for (i, v) in got.iter().enumerate() {
                let want: f64 = all.iter().map(|u| f64::from(u[i].clamp(-1.0, 1.0))).sum();
                let off = (f64::from(*v) - want).abs();
                assert!(off <= bound, "{bits} bits: {off} beyond {bound}");
            }
        }
        let coarse = Grid::new(1.0, 16, 100).expect("room").error(100);
        let fine = Grid::new(1.0, 32, 100).expect("room").error(100);
        assert!(coarse > 0.1 && fine < 1e-4, "{coarse} {fine}");
    }

    #[test]
    fn extremes_of_a_full_round_do_not_wrap() {
        for (bits, clients) in [(8, 60), (32, 1_000), (64, 1_000)] {
            let grid = Grid::new(0.5, bits, clients).expect("room");
            for end in [9.0, -9.0] {
                let all = vec![vec![end]; clients as usize];
                let got = grid.decode(&total(&grid, &all), clients).expect("in range");
                let want = end.signum() * 0.5 * clients as f32;
                assert!((got[0] - want).abs() <= grid.error(clients), "{got:?}");
            }
        }
    }

    #[test]
    fn masks_cancel_and_order_does_not_matter() {
        let grid = Grid::new(1.0, 32, 1_000).expect("room");
        let all = updates(3, 40);
        let plain = total(&grid, &all);
        let mut rng = Seed::from_u64(8).rng();
        let masks: Vec<u64> = (0..40).map(|_| rng.below(1 << 32) as u64).collect();
        let against: Vec<u64> = masks.iter().map(|m| m.wrapping_neg()).collect();
        let mut sum = vec![0; 40];
        grid.add(&mut sum, &against).expect("one length");
        for update in all.iter().rev() {
            grid.add(&mut sum, &grid.encode(update).expect("finite"))
                .expect("one length");
        }
        assert_ne!(sum, plain);
        assert!(grid.decode(&sum, 3).is_err(), "masked values look random");
        grid.add(&mut sum, &masks).expect("one length");
        assert_eq!(sum, plain);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (clip, bits, clients) in [(0.0, 32, 1), (f32::NAN, 32, 1), (1.0, 7, 1), (1.0, 65, 1)] {
            assert!(Grid::new(clip, bits, clients).is_err());
        }
        assert!(Grid::new(1.0, 32, 0).is_err());
        assert!(Grid::new(1.0, 8, 64).is_err());
        let grid = Grid::new(1.0, 8, 63).expect("two steps each");
        assert_eq!(
            grid.encode(&[0.0, f32::INFINITY]),
            Err(GridError::NotFinite { index: 1 })
        );
        let (expected, got) = (1, 2);
        assert_eq!(
            grid.add(&mut [0], &[1, 2]),
            Err(GridError::Length { expected, got })
        );
        assert_eq!(
            grid.decode(&[5], 2),
            Err(GridError::Overflow {
                index: 0,
                clients: 2
            })
        );
        assert_eq!(
            grid.decode(&[0], 64),
            Err(GridError::Clients { got: 64, most: 63 })
        );
    }
}
