//! AVX-512 VNNI: VPDPBUSD sums the products of four unsigned bytes by four signed ones.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512i, _mm256_load_si256, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_load_si512, _mm512_mul_ps, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_srli_epi16,
};

use super::{Bits, Line, Packed, QUADS};
use crate::kernels::tile::{Tile, store};

macro_rules! kernel {
    ($name:ident, $bits:expr, $quad:expr) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        unsafe fn $name<const M: usize>(rows: &Packed, panel: &[Line], out: Tile) {
            const LINES: usize = $bits.lines();
            let mut sums = [[_mm512_setzero_ps(); 2]; M];
            let mut quads = rows.quads.as_ptr();
            let mut scales = rows.scales.as_ptr();
            for block in panel.chunks_exact(LINES) {
                let lines = block.as_ptr();
                let mut acc = [[_mm512_setzero_si512(); 2]; M];
                // SAFETY: `rows` holds 8 quads and one pair of scales per block and row; a
                // block holds LINES lines.
                unsafe {
                    for quad in 0..QUADS {
                        let w: [__m512i; 2] = $quad(lines, quad);
                        for i in 0..M {
                            let x = _mm512_set1_epi32(*quads.add(quad * M + i) as i32);
                            acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], w[0], x);
                            acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], w[1], x);
                        }
                    }
                    quads = quads.add(QUADS * M);
                    let halves = |line: usize| {
                        let at = lines.add(line).cast::<std::arch::x86_64::__m256i>();
                        [
                            _mm512_cvtph_ps(_mm256_load_si256(at)),
                            _mm512_cvtph_ps(_mm256_load_si256(at.add(1))),
                        ]
                    };
                    let (d, m) = (halves(LINES - 2), halves(LINES - 1));
                    for i in 0..M {
                        let [scale, sum] = *scales.add(i);
                        let (scale, sum) = (_mm512_set1_ps(scale), _mm512_set1_ps(sum));
                        for h in 0..2 {
                            let products = _mm512_cvtepi32_ps(acc[i][h]);
                            sums[i][h] =
                                _mm512_fmadd_ps(products, _mm512_mul_ps(scale, d[h]), sums[i][h]);
                            sums[i][h] = _mm512_fmadd_ps(sum, m[h], sums[i][h]);
                        }
                    }
                    scales = scales.add(M);
                }
            }
            // SAFETY: the tile is the caller's.
            unsafe { store(&sums, out) }
        }
    };
}

/// Both halves of a quad of 4-bit weights.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn four(lines: *const Line, quad: usize) -> [__m512i; 2] {
    let low = _mm512_set1_epi8(15);
    let half = |h: usize| {
        // SAFETY: within the block's lines.
        let both = unsafe { _mm512_load_si512(lines.add(quad / 2 * 2 + h).cast()) };
        let shifted = if quad.is_multiple_of(2) {
            both
        } else {
            _mm512_srli_epi16::<4>(both)
        };
        _mm512_and_si512(shifted, low)
    };
    [half(0), half(1)]
}

/// Both halves of a quad of 8-bit weights.
#[target_feature(enable = "avx512f")]
unsafe fn eight(lines: *const Line, quad: usize) -> [__m512i; 2] {
    // SAFETY: within the block's lines.
    unsafe {
        [
            _mm512_load_si512(lines.add(quad * 2).cast()),
            _mm512_load_si512(lines.add(quad * 2 + 1).cast()),
        ]
    }
}

kernel!(tile_four, Bits::Four, |lines, quad| four(lines, quad));
kernel!(tile_eight, Bits::Eight, |lines, quad| eight(lines, quad));

pub(super) unsafe fn run(bits: Bits, rows: &Packed, count: usize, panel: &[Line], out: Tile) {
    debug_assert_eq!(rows.scales.len(), panel.len() / bits.lines() * count);
    macro_rules! by_rows {
        ($kernel:ident) => {
            match count {
                1 => $kernel::<1>(rows, panel, out),
                2 => $kernel::<2>(rows, panel, out),
                3 => $kernel::<3>(rows, panel, out),
                4 => $kernel::<4>(rows, panel, out),
                5 => $kernel::<5>(rows, panel, out),
                _ => $kernel::<6>(rows, panel, out),
            }
        };
    }
    // SAFETY: the caller's promises.
    unsafe {
        match bits {
            Bits::Four => by_rows!(tile_four),
            Bits::Eight => by_rows!(tile_eight),
        }
    }
}
