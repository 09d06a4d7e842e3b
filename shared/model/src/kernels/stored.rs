//! Frozen weights as their file stores them: each product makes panels of them, for itself only.
//!
//! A value of a file takes 4 to 16 bits, one of a panel 16 or 32: on a phone panels are most of
//! what the model takes. Making them is one pass over the weights, which a product over some
//! hundred rows hardly notices. The results have the bits that kept panels give.

use rayon::prelude::*;

use super::math::vectorised;
use super::panels::{Line, Panels, to_bf16};
use super::tile::{Kernel, WIDTH};
use crate::dtype::{Dtype, decode};

/// Values that are decoded together: a block of the file.
const BLOCK: usize = 32;
/// Lines of a unit: [`WIDTH`] outputs.
const LINES: usize = WIDTH / 16;
/// Values that a thread decodes at least.
const SHARE: usize = 1 << 16;

/// Some rows of a matrix, as they are stored.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) dtype: Dtype,
    /// Row-major.
    pub(crate) bytes: Vec<u8>,
}

impl Rows {
    /// Bytes of [`BLOCK`] values; none if values are not stored so, or panels are no larger.
    fn step(&self, kernel: Kernel) -> Option<usize> {
        let values = self.dtype.block_values();
        if !BLOCK.is_multiple_of(values) {
            return None;
        }
        let bytes = BLOCK / values * self.dtype.block_bytes();
        let in_panels = kernel.depth(BLOCK) * size_of::<u32>();
        (bytes < in_panels).then_some(bytes)
    }
}

/// Rows, and the number of the first.
#[derive(Debug)]
struct Piece {
    first: usize,
    step: usize,
    rows: Rows,
}

/// A matrix `[outputs, inputs]`.
#[derive(Debug)]
pub(crate) struct Stored {
    kernel: Kernel,
    n: usize,
    k: usize,
    pieces: Vec<Piece>,
}

impl Stored {
    /// A matrix `[n, k]` whose rows lie one after the other in `all`, for `kernel`, which this CPU
    /// has to have. What cannot be decoded in blocks comes back.
    ///
    /// # Errors
    /// `all`, if inputs are no multiple of 32, or a type has larger blocks or no fewer bits than
    /// panels.
    pub(crate) fn new(
        kernel: Kernel,
        n: usize,
        k: usize,
        all: Vec<Rows>,
    ) -> Result<Self, Vec<Rows>> {
        let blocks = k / BLOCK;
        let mut first = 0;
        for rows in &all {
            match rows.step(kernel) {
                Some(step) if blocks > 0 && rows.bytes.len().is_multiple_of(blocks * step) => {
                    first += rows.bytes.len() / (blocks * step);
                }
                _ => return Err(all),
            }
        }
        if n == 0 || first != n || !k.is_multiple_of(BLOCK) {
            return Err(all);
        }
        let mut pieces = vec![];
        let mut first = 0;
        for rows in all {
            let step = rows.step(kernel).unwrap_or(1);
            let count = rows.bytes.len() / (blocks * step);
            pieces.push(Piece { first, step, rows });
            first += count;
        }
        Ok(Self {
            kernel,
            n,
            k,
            pieces,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.pieces.iter().map(|p| p.rows.bytes.len()).sum()
    }

    /// `dst[rows, n] (+)= x[rows, k] * self^T`.
    pub(crate) fn multiply(&self, x: &[f32], rows: usize, dst: &mut [f32], add: bool) {
        assert_eq!(x.len(), rows * self.k, "{rows} rows of {} inputs", self.k);
        let fill = |lines: &mut [Line]| self.fill(lines);
        Panels::made(self.kernel, self.n, self.k, fill, |panels| {
            panels.multiply(x, rows, dst, add);
        });
    }

    /// `dst[rows, k] (+)= dy[rows, n] * self`.
    pub(crate) fn multiply_transposed(&self, dy: &[f32], rows: usize, dst: &mut [f32], add: bool) {
        assert_eq!(dy.len(), rows * self.n, "{rows} rows of {} outputs", self.n);
        let fill = |lines: &mut [Line]| self.fill_transposed(lines);
        Panels::made(self.kernel, self.k, self.n, fill, |panels| {
            panels.multiply(dy, rows, dst, add);
        });
    }

    /// Values `32 * block..` of a row.
    #[inline(always)]
    fn values(&self, row: usize, block: usize, into: &mut [f32; BLOCK]) {
        // The first piece begins at row 0.
        let piece = self.pieces.partition_point(|p| p.first <= row) - 1;
        let piece = &self.pieces[piece];
        let at = ((row - piece.first) * (self.k / BLOCK) + block) * piece.step;
        decode(
            piece.rows.dtype,
            &piece.rows.bytes[at..at + piece.step],
            into,
        );
    }

    /// Writes the panels of the matrix.
    fn fill(&self, lines: &mut [Line]) {
        let units = self.kernel.depth(BLOCK) * LINES;
        let per_panel = self.kernel.depth(self.k) * LINES;
        let at_once = (SHARE / (self.k * WIDTH)).max(1);
        lines
            .par_chunks_mut(per_panel)
            .with_min_len(at_once)
            .enumerate()
            .for_each(|(p, panel)| {
                vectorised(
                    #[inline(always)]
                    || {
                        let count = (self.n - p * WIDTH).min(WIDTH);
                        let mut tile = [[0.0; BLOCK]; WIDTH];
                        for (block, lines) in panel.chunks_exact_mut(units).enumerate() {
                            for (j, values) in tile[..count].iter_mut().enumerate() {
                                self.values(p * WIDTH + j, block, values);
                            }
                            match self.kernel.pairs() {
                                false => words(&tile, lines),
                                true => pairs(&tile, lines),
                            }
                        }
                    },
                );
            });
    }

    /// Writes the panels of its transpose.
    fn fill_transposed(&self, lines: &mut [Line]) {
        let per_panel = self.kernel.depth(self.n) * LINES;
        let at_once = (SHARE / (self.n * WIDTH)).max(1);
        lines
            .par_chunks_mut(per_panel)
            .with_min_len(at_once)
            .enumerate()
            .for_each(|(block, panel)| {
                vectorised(
                    #[inline(always)]
                    || {
                        for (u, unit) in panel.chunks_exact_mut(LINES).enumerate() {
                            let all = unit.iter_mut().flat_map(|l| l.0.iter_mut());
                            if !self.kernel.pairs() {
                                let mut values = [0.0; BLOCK];
                                self.values(u, block, &mut values);
                                all.zip(values).for_each(|(to, v)| *to = v.to_bits());
                                continue;
                            }
                            let mut two = [[0.0; BLOCK]; 2];
                            for (i, values) in two.iter_mut().enumerate() {
                                if 2 * u + i < self.n {
                                    self.values(2 * u + i, block, values);
                                }
                            }
                            for (to, (a, b)) in all.zip(two[0].iter().zip(&two[1])) {
                                *to = to_bf16(*a) | to_bf16(*b) << 16;
                            }
                        }
                    },
                );
            });
    }
}

/// Units of one value: value `u` of row `j` is output `j` of unit `u`.
#[inline(always)]
fn words(tile: &[[f32; BLOCK]; WIDTH], lines: &mut [Line]) {
    for (u, unit) in lines.chunks_exact_mut(LINES).enumerate() {
        for (j, to) in unit.iter_mut().flat_map(|l| l.0.iter_mut()).enumerate() {
            *to = tile[j][u].to_bits();
        }
    }
}

/// Units of two values.
#[inline(always)]
fn pairs(tile: &[[f32; BLOCK]; WIDTH], lines: &mut [Line]) {
    let mut rounded = [[0u32; BLOCK / 2]; WIDTH];
    for (to, from) in rounded.iter_mut().zip(tile) {
        for (to, pair) in to.iter_mut().zip(from.chunks_exact(2)) {
            *to = to_bf16(pair[0]) | to_bf16(pair[1]) << 16;
        }
    }
    for (u, unit) in lines.chunks_exact_mut(LINES).enumerate() {
        for (j, to) in unit.iter_mut().flat_map(|l| l.0.iter_mut()).enumerate() {
            *to = rounded[j][u];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelError;
    use crate::dtype::dequantise;
    use crate::kernels::linear::Linear;
    use crate::kernels::panels::Compute;

    /// Blocks of any bytes whose scales are small numbers.
    fn rows(dtype: Dtype, values: usize, salt: u32) -> Rows {
        let mut state = salt;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let blocks = values / dtype.block_values();
        let mut bytes: Vec<u8> = (0..blocks * dtype.block_bytes()).map(|_| next()).collect();
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            let scale = half::f16::from_f32(0.03).to_le_bytes();
            block[..2].copy_from_slice(&scale);
            if matches!(dtype, Dtype::Q4_1 | Dtype::Q5_1) {
                block[2..4].copy_from_slice(&half::f16::from_f32(-0.2).to_le_bytes());
            }
        }
        Rows { dtype, bytes }
    }

    const TYPES: [Dtype; 7] = [
        Dtype::F16,
        Dtype::Bf16,
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_0,
        Dtype::Q5_1,
        Dtype::Q8_0,
    ];

    #[test]
    fn panels_that_are_made_are_those_of_the_decoded_values() {
        let kernels = [
            Kernel::F32,
            #[cfg(target_arch = "x86_64")]
            Kernel::Dot,
            #[cfg(target_arch = "x86_64")]
            Kernel::Amx,
        ];
        for (at, dtype) in TYPES.into_iter().enumerate() {
            let other = TYPES[(at + 3) % TYPES.len()];
            // Writing panels takes none of the processor's instructions: all kernels are tested.
            for kernel in kernels {
                if dtype.block_values() == 1 && kernel.pairs() {
                    continue;
                }
                for (first, second, k) in [(1, 0, 32), (33, 7, 64), (64, 31, 96)] {
                    let n = first + second;
                    let other = if kernel.pairs() { Dtype::Q8_0 } else { other };
                    let all = vec![rows(dtype, first * k, 1), rows(other, second * k, 2)];
                    let values: Vec<f32> = all
                        .iter()
                        .zip([first, second])
                        .flat_map(|(r, n)| dequantise(r.dtype, &r.bytes, n * k).expect("blocks"))
                        .collect();
                    let stored = Stored::new(kernel, n, k, all).expect("blocks");
                    let want = Panels::pack(kernel, n, k, |n, i| values[n * k + i]);
                    let mut got = vec![Line([u32::MAX; 16]); want.lines().len()];
                    stored.fill(&mut got);
                    let same =
                        |got: &[Line], want: &[Line]| got.iter().zip(want).all(|(a, b)| a.0 == b.0);
                    assert!(same(&got, want.lines()), "{dtype:?}, {kernel:?}, {n} x {k}");
                    let want = Panels::pack(kernel, k, n, |i, n| values[n * k + i]);
                    let mut got = vec![Line([u32::MAX; 16]); want.lines().len()];
                    stored.fill_transposed(&mut got);
                    assert!(same(&got, want.lines()), "{dtype:?}, {kernel:?}, {k} x {n}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_decoded_in_blocks_comes_back() {
        let new = |n, k, all| Stored::new(Kernel::F32, n, k, all).map(|_| ());
        let whole = |dtype| vec![rows(dtype, 4 * 64, 3)];
        assert!(new(4, 64, whole(Dtype::Q8_0)).is_ok());
        assert!(
            new(4, 64, whole(Dtype::F32)).is_err(),
            "panels are no larger"
        );
        assert!(new(5, 64, whole(Dtype::Q8_0)).is_err(), "rows are missing");
        assert!(
            new(16, 16, whole(Dtype::F16)).is_err(),
            "rows of half a block"
        );
        #[cfg(target_arch = "x86_64")]
        {
            let pairs = |dtype| Stored::new(Kernel::Dot, 4, 64, whole(dtype)).is_ok();
            assert!(pairs(Dtype::Q8_0));
            assert!(!pairs(Dtype::F16), "two bytes, as in panels");
        }
        let large = Rows {
            dtype: Dtype::Q6K,
            bytes: vec![0; 210],
        };
        assert!(new(1, 256, vec![large]).is_err(), "blocks of 256");
    }
    #[test]
    fn products_have_the_bits_of_weights_that_are_kept_as_panels() {
        let shapes: [(&[(Dtype, usize)], usize); 4] = [
            (&[(Dtype::Q4_1, 33)], 64),
            (&[(Dtype::Q8_0, 31), (Dtype::Q4_0, 2)], 96),
            (&[(Dtype::F16, 1)], 32),
            // One that cannot stay as it is: all become panels.
            (&[(Dtype::Q8_0, 5), (Dtype::Q6K, 1)], 256),
        ];
        for (parts, k) in shapes {
            let all = || -> Vec<Rows> {
                let rows = parts.iter().map(|(dtype, n)| rows(*dtype, n * k, 7));
                rows.collect()
            };
            let n: usize = parts.iter().map(|(_, n)| n).sum();
            let values: Vec<f32> = all()
                .iter()
                .zip(parts)
                .flat_map(|(r, (_, n))| dequantise(r.dtype, &r.bytes, n * k).expect("blocks"))
                .collect();
            for compute in [Compute::F32, Compute::Bf16, Compute::Int8] {
                let kept = Linear::new(values.clone(), n, k, compute);
                let stored = Linear::stored(all(), n, k, compute).expect("all rows");
                for (count, add) in [(1, false), (5, true), (40, false)] {
                    let x: Vec<f32> = (0..count * k).map(|i| (i % 17) as f32 - 8.0).collect();
                    let mut want = vec![0.5; count * n];
                    let mut got = want.clone();
                    kept.forward(&x, count, &mut want, add);
                    stored.forward(&x, count, &mut got, add);
                    assert!(got == want, "{parts:?}, {compute:?}, {count} rows");
                    if compute == Compute::Int8 {
                        continue;
                    }
                    let dy: Vec<f32> = (0..count * n).map(|i| (i % 13) as f32 - 6.0).collect();
                    let mut want = vec![0.5; count * k];
                    let mut got = want.clone();
                    kept.backward(&dy, count, &mut want, add);
                    stored.backward(&dy, count, &mut got, add);
                    assert!(
                        got == want,
                        "{parts:?}, {compute:?}, {count} rows, backward"
                    );
                }
            }
            let short = vec![rows(Dtype::Q8_0, k, 7)];
            let refused = Linear::stored(short, n + 1, k, Compute::F32);
            assert!(matches!(refused, Err(ModelError::Shape(_))));
        }
    }
}
