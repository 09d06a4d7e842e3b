//! NEON with the dot products of Armv8.2 (SDOT): sums of products of four signed bytes. Weights of
//! 8 bits are unsigned: 128 is taken off each of them, and 128 times the sum of the activations is
//! added again. Integers are exact, and the scaling is in the order of the AVX-512 form: both give
//! the same bits.
//!
//! The instructions are written as assembly: their intrinsics are not in stable Rust.
#![allow(unsafe_code)]

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, uint16x4_t, vandq_u8, vcvtq_f32_s32,
    vdupq_n_f32, vdupq_n_s32, vdupq_n_u8, vdupq_n_u32, veorq_u8, vfmaq_f32, vld1_u16, vld1q_u8,
    vmulq_f32, vreinterpretq_s8_u8, vreinterpretq_s8_u32, vshrq_n_u8, vst1q_f32,
};
use std::arch::asm;

use super::{Bits, Line, Packed, QUADS};
use crate::kernels::tile::Tile;

/// Outputs of a vector.
const LANES: usize = 4;
/// Vectors that are summed together: half a panel.
const VECTORS: usize = 4;
/// Rows that are summed together: 12 sums of integers and 12 of scaled ones fill 24 registers.
const ROWS: usize = 3;
/// Bytes of a vector.
const BYTES: usize = 16;

/// Whether this CPU has SDOT.
pub(super) fn supported() -> bool {
    std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Adds to each of 4 sums the products of 4 signed bytes of `w` and of `x`.
///
/// # Safety
/// [`supported`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot(mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the CPU has the instruction; it reads and writes registers only.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Four halves as f32.
///
/// # Safety
/// None but NEON, which every CPU of this family has.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn widened(halves: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: the instruction reads and writes registers only.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = out(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    wide
}

/// Weights of a quad and a vector of outputs, as signed bytes.
///
/// # Safety
/// `lines` is a block of `bits` bits; the vector is one of the 8 of a quad.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn weights(bits: Bits, lines: *const Line, quad: usize, vector: usize) -> int8x16_t {
    let line = match bits {
        Bits::Four => quad / 2,
        Bits::Eight => quad,
    };
    // SAFETY: a quad has two lines of four vectors.
    let held: uint8x16_t = unsafe {
        let at = lines.add(2 * line).cast::<u8>();
        vld1q_u8(at.add(vector * BYTES))
    };
    let signed = match bits {
        Bits::Four if quad % 2 == 0 => vandq_u8(held, vdupq_n_u8(15)),
        Bits::Four => vshrq_n_u8::<4>(held),
        Bits::Eight => veorq_u8(held, vdupq_n_u8(128)),
    };
    vreinterpretq_s8_u8(signed)
}

/// `R` rows from `first` on by 16 outputs from `16 * part` on.
///
/// # Safety
/// [`supported`]; `rows` holds 8 quads, a pair of scales and a sum for each block and each of
/// `count` rows; the tile is the caller's.
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const R: usize>(
    bits: Bits,
    rows: Block<'_>,
    part: usize,
    panel: &[Line],
    out: Tile,
) {
    let per = bits.lines();
    let mut totals = [[vdupq_n_f32(0.0); VECTORS]; R];
    for (b, block) in panel.chunks_exact(per).enumerate() {
        let lines = block.as_ptr();
        let row = |i: usize| b * rows.count + rows.first + i;
        let mut sums = [[vdupq_n_s32(0); VECTORS]; R];
        if bits == Bits::Eight {
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = [vdupq_n_s32(128 * rows.packed.sums[row(i)]); VECTORS];
            }
        }
        for quad in 0..QUADS {
            let quads = &rows.packed.quads[(b * QUADS + quad) * rows.count + rows.first..][..R];
            for vector in 0..VECTORS {
                // SAFETY: the caller's promises.
                unsafe {
                    let w = weights(bits, lines, quad, part * VECTORS + vector);
                    for (sums, x) in sums.iter_mut().zip(quads) {
                        let x = vreinterpretq_s8_u32(vdupq_n_u32(*x));
                        sums[vector] = dot(sums[vector], w, x);
                    }
                }
            }
        }
        for vector in 0..VECTORS {
            let halves = |line: usize| {
                // SAFETY: a line of scales holds 32 halves.
                unsafe {
                    let at = lines.add(line).cast::<u16>();
                    widened(vld1_u16(at.add((part * VECTORS + vector) * LANES)))
                }
            };
            let d = halves(per - 2);
            let m = halves(per - 1);
            for (i, totals) in totals.iter_mut().enumerate() {
                let [scale, sum] = rows.packed.scales[row(i)];
                let products = vcvtq_f32_s32(sums[i][vector]);
                let scaled = vmulq_f32(vdupq_n_f32(scale), d);
                totals[vector] = vfmaq_f32(totals[vector], products, scaled);
                totals[vector] = vfmaq_f32(totals[vector], vdupq_n_f32(sum), m);
            }
        }
    }
    let columns = VECTORS * LANES;
    let cols = (out.cols - part * columns).min(columns);
    for (i, totals) in totals.into_iter().enumerate() {
        let mut values = [0.0f32; VECTORS * LANES];
        for (vector, total) in totals.into_iter().enumerate() {
            // SAFETY: `values` takes four vectors.
            unsafe { vst1q_f32(values.as_mut_ptr().add(vector * LANES), total) };
        }
        // SAFETY: the tile's rows and columns are the caller's.
        let to = unsafe {
            let at = out.at.add((rows.first + i) * out.stride + part * columns);
            std::slice::from_raw_parts_mut(at, cols)
        };
        for (to, v) in to.iter_mut().zip(values) {
            *to = if out.add { v + *to } else { v };
        }
    }
}

/// Some rows of a packed block.
#[derive(Clone, Copy)]
struct Block<'a> {
    packed: &'a Packed,
    /// All rows of the block.
    count: usize,
    first: usize,
}

/// # Safety
/// [`supported`]; `rows` holds `count` rows of as many blocks as `panel`; the tile is the caller's.
pub(super) unsafe fn run(bits: Bits, rows: &Packed, count: usize, panel: &[Line], out: Tile) {
    debug_assert_eq!(rows.scales.len(), panel.len() / bits.lines() * count);
    // As even as possible: few sums leave the units idle.
    let groups = count.div_ceil(ROWS);
    for g in 0..groups {
        let first = count * g / groups;
        let end = count * (g + 1) / groups;
        let rows = Block {
            packed: rows,
            count,
            first,
        };
        for part in 0..out.cols.div_ceil(VECTORS * LANES) {
            // SAFETY: the caller's promises.
            unsafe {
                match (bits, end - first) {
                    (Bits::Four, 1) => tile::<1>(Bits::Four, rows, part, panel, out),
                    (Bits::Four, 2) => tile::<2>(Bits::Four, rows, part, panel, out),
                    (Bits::Four, _) => tile::<ROWS>(Bits::Four, rows, part, panel, out),
                    (Bits::Eight, 1) => tile::<1>(Bits::Eight, rows, part, panel, out),
                    (Bits::Eight, 2) => tile::<2>(Bits::Eight, rows, part, panel, out),
                    (Bits::Eight, _) => tile::<ROWS>(Bits::Eight, rows, part, panel, out),
                }
            }
        }
    }
}
