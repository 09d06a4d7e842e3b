//! AVX2: VPMADDUBSW multiplies unsigned weights by signed activations and adds pairs in 16 bits.
//! Weights of 8 bits would overflow there, so their upper and lower four bits are multiplied apart:
//! eight quads of at most `2 * 15 * 127` stay below `2^15`. Integers are exact, and the scaling is
//! in the order of the AVX-512 form: both give the same bits.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m256, __m256i, _mm_load_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256,
    _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_load_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srli_epi16,
    _mm256_storeu_ps,
};

use super::{Bits, Line, Packed, QUADS};
use crate::kernels::tile::{Tile, WIDTH};

/// Outputs of a vector.
const LANES: usize = 8;

/// Sums of products of one block: `M` rows by the 8 outputs from `8 * part` on.
///
/// # Safety
/// The CPU has AVX2; `lines` is a block of `bits` bits, `quads` 8 quads of `M` rows.
#[target_feature(enable = "avx2")]
unsafe fn products<const M: usize>(
    bits: Bits,
    lines: *const Line,
    quads: *const u32,
    part: usize,
) -> [__m256i; M] {
    let low = _mm256_set1_epi8(15);
    let mut sums = [[_mm256_setzero_si256(); 2]; M];
    for quad in 0..QUADS {
        let line = if bits == Bits::Four { quad / 2 } else { quad };
        // SAFETY: a part is half a line; quads are within the rows' block.
        unsafe {
            let at = lines.add(2 * line + part / 2).cast::<__m256i>();
            let both = _mm256_load_si256(at.add(part % 2));
            let lower = _mm256_and_si256(both, low);
            let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_epi32(*quads.add(quad * M + i) as i32);
                match bits {
                    Bits::Four => {
                        let w = if quad % 2 == 0 { lower } else { upper };
                        sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(w, x));
                    }
                    Bits::Eight => {
                        sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(lower, x));
                        sums[1] = _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(upper, x));
                    }
                }
            }
        }
    }
    let ones = _mm256_set1_epi16(1);
    sums.map(|[lower, upper]| {
        let lower = _mm256_madd_epi16(lower, ones);
        let upper = _mm256_madd_epi16(upper, ones);
        _mm256_add_epi32(lower, _mm256_slli_epi32::<4>(upper))
    })
}

/// `M` rows by 32 outputs.
///
/// # Safety
/// The CPU has the features; `rows` holds 8 quads and one pair of scales per block and row;
/// the tile is the caller's.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const M: usize>(bits: Bits, rows: &Packed, panel: &[Line], out: Tile) {
    let per = bits.lines();
    for part in 0..out.cols.div_ceil(LANES) {
        let mut sums = [_mm256_setzero_ps(); M];
        for (b, block) in panel.chunks_exact(per).enumerate() {
            let lines = block.as_ptr();
            // SAFETY: the caller's promises.
            unsafe {
                let quads = rows.quads.as_ptr().add(b * QUADS * M);
                let acc = match bits {
                    Bits::Four => products::<M>(Bits::Four, lines, quads, part),
                    Bits::Eight => products::<M>(Bits::Eight, lines, quads, part),
                };
                let halves = |line: usize| -> __m256 {
                    let at = lines.add(line).cast::<std::arch::x86_64::__m128i>();
                    _mm256_cvtph_ps(_mm_load_si128(at.add(part)))
                };
                let d = halves(per - 2);
                let m = halves(per - 1);
                for (i, (total, acc)) in sums.iter_mut().zip(acc).enumerate() {
                    let [scale, sum] = *rows.scales.get_unchecked(b * M + i);
                    let scaled = _mm256_mul_ps(_mm256_set1_ps(scale), d);
                    *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), scaled, *total);
                    *total = _mm256_fmadd_ps(_mm256_set1_ps(sum), m, *total);
                }
            }
        }
        let cols = (out.cols - part * LANES).min(LANES);
        for (i, total) in sums.into_iter().enumerate() {
            let mut values = [0.0f32; WIDTH / 4];
            // SAFETY: `values` takes a vector; the tile's rows and columns are the caller's.
            let to = unsafe {
                _mm256_storeu_ps(values.as_mut_ptr(), total);
                let at = out.at.add(i * out.stride + part * LANES);
                std::slice::from_raw_parts_mut(at, cols)
            };
            for (to, v) in to.iter_mut().zip(values) {
                *to = if out.add { v + *to } else { v };
            }
        }
    }
}

pub(super) unsafe fn run(bits: Bits, rows: &Packed, count: usize, panel: &[Line], out: Tile) {
    debug_assert_eq!(rows.scales.len(), panel.len() / bits.lines() * count);
    // SAFETY: the caller's promises.
    unsafe {
        match count {
            1 => tile::<1>(bits, rows, panel, out),
            2 => tile::<2>(bits, rows, panel, out),
            3 => tile::<3>(bits, rows, panel, out),
            4 => tile::<4>(bits, rows, panel, out),
            5 => tile::<5>(bits, rows, panel, out),
            _ => tile::<6>(bits, rows, panel, out),
        }
    }
}
