//! Tiles of bf16: 32 rows by 32 outputs in four tiles of sums, over 32 inputs a step.
//!
//! TDPBF16PS adds, per step, the chain of the even inputs and that of the odd ones, each in f32,
//! and then both to the sum; denormal numbers count as zero. This order is the same for every row,
//! whatever lies beside it.

use std::arch::asm;
use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_storeu_si512,
};

use super::super::{Kernel, Line, Rows, Tile, WIDTH, pair};
use super::ROWS;

/// Units (pairs of inputs) of a step.
const STEP: usize = 16;
/// Rows of a tile.
const HALF: usize = ROWS / 2;

/// Rows that a block of `count` takes up: whole tiles.
fn padded(count: usize) -> usize {
    count.next_multiple_of(HALF)
}

/// Packs rows as `[step of 32 inputs][row][16 pairs]`, zeros past the last input; rows past the
/// last are whatever was there: their results go nowhere.
pub(in crate::kernels::tile) fn pack<'a>(x: &[f32], k: usize, into: &'a mut [u32]) -> &'a [u32] {
    let count = x.len() / k;
    let rows = padded(count);
    let into = &mut into[..rows * Kernel::Amx.depth(k)];
    let wide = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f");
    for (i, row) in x.chunks_exact(k).enumerate() {
        let whole = k / (2 * STEP);
        if wide {
            // SAFETY: the CPU has the instructions; `into` holds `rows` rows of every step.
            unsafe { pack_wide(row, whole, into, i, rows) };
        } else {
            for step in 0..whole {
                let to = &mut into[(step * rows + i) * STEP..][..STEP];
                to.iter_mut()
                    .enumerate()
                    .for_each(|(u, to)| *to = pair(row, step * STEP + u));
            }
        }
        if !k.is_multiple_of(2 * STEP) {
            let to = &mut into[(whole * rows + i) * STEP..][..STEP];
            to.iter_mut()
                .enumerate()
                .for_each(|(u, to)| *to = pair(row, whole * STEP + u));
        }
    }
    into
}

/// Whole steps of row `i`.
///
/// # Safety
/// The CPU has AVX512-BF16; `row` holds `32 * steps` values, `into` `steps * rows * 16` units.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pack_wide(row: &[f32], steps: usize, into: &mut [u32], i: usize, rows: usize) {
    debug_assert!(row.len() >= 2 * STEP * steps && into.len() >= steps * rows * STEP && i < rows);
    for step in 0..steps {
        // SAFETY: within both, by the caller's promise; every pattern is valid in both types.
        unsafe {
            let from = row.as_ptr().add(2 * STEP * step);
            let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from.add(STEP)), _mm512_loadu_ps(from));
            let to = into.as_mut_ptr().add((step * rows + i) * STEP);
            _mm512_storeu_si512(to.cast(), std::mem::transmute::<__m512bh, __m512i>(pairs));
        }
    }
}

/// 32 x 32 sums.
#[repr(C, align(64))]
struct Sums([[f32; WIDTH]; ROWS]);

/// Computes a tile.
///
/// # Safety
/// As [`super::super::run_with`], with AMX configured for bf16.
pub(in crate::kernels::tile) unsafe fn run(rows: Rows<'_>, panel: &[Line], out: Tile) {
    let steps = panel.len() / 2 / STEP;
    debug_assert_eq!(rows.units.len(), padded(rows.count) * steps * STEP);
    let direct = rows.count == ROWS && out.cols == WIDTH && !out.add;
    let mut sums = Sums([[0.0; WIDTH]; ROWS]);
    let (at, stride) = if direct {
        (out.at, out.stride)
    } else {
        (sums.0.as_mut_ptr().cast::<f32>(), WIDTH)
    };
    if steps > 0 {
        let (units, lines) = (rows.units.as_ptr(), panel.as_ptr());
        // SAFETY: the units hold 16 or 32 rows of every step, the panel 16 units of 32 outputs;
        // `at` takes 16 or 32 rows of 32 values.
        unsafe {
            if rows.count > HALF {
                four(units, lines, steps, at, stride);
            } else {
                two(units, lines, steps, at, stride);
            }
        }
    }
    if direct && steps > 0 {
        return;
    }
    for (i, row) in sums.0.iter().enumerate().take(rows.count) {
        // SAFETY: the tile's rows and columns are valid, and nobody else uses them.
        let to = unsafe { std::slice::from_raw_parts_mut(out.at.add(i * out.stride), out.cols) };
        for (to, v) in to.iter_mut().zip(row) {
            *to = if out.add { *v + *to } else { *v };
        }
    }
}

/// 32 rows by 32 outputs.
///
/// # Safety
/// AMX is configured for bf16; `units` holds `[steps][32][16]`, `lines` `[steps][16][2]`, `steps`
/// is not 0; `at` takes 32 rows of 32 values, `stride` apart.
unsafe fn four(units: *const u32, lines: *const Line, steps: usize, at: *mut f32, stride: usize) {
    // SAFETY: the addresses are those of the caller's promises; tiles and flags are declared.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{b} + {apart}*2]",
            "tileloadd tmm4, [{a} + {apart}*1]",
            "tileloadd tmm7, [{b} + {apart}*2 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a} + {apart}*1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {stride}*1], tmm0",
            "tilestored [{c} + {stride}*1 + 64], tmm1",
            "tilestored [{low} + {stride}*1], tmm2",
            "tilestored [{low} + {stride}*1 + 64], tmm3",
            a = inout(reg) units => _,
            b = inout(reg) lines => _,
            steps = inout(reg) steps => _,
            apart = in(reg) 64usize,
            c = in(reg) at,
            low = in(reg) at.wrapping_add(HALF * stride),
            stride = in(reg) 4 * stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows by 32 outputs.
///
/// # Safety
/// As [`four`], with 16 rows.
unsafe fn two(units: *const u32, lines: *const Line, steps: usize, at: *mut f32, stride: usize) {
    // SAFETY: as in `four`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a} + {apart}*1]",
            "tileloadd tmm6, [{b} + {apart}*2]",
            "tileloadd tmm7, [{b} + {apart}*2 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 1024",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {stride}*1], tmm0",
            "tilestored [{c} + {stride}*1 + 64], tmm1",
            a = inout(reg) units => _,
            b = inout(reg) lines => _,
            steps = inout(reg) steps => _,
            apart = in(reg) 64usize,
            c = in(reg) at,
            stride = in(reg) 4 * stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
