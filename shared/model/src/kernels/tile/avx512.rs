//! AVX-512 (with BF16 for bf16): 14 rows of two vectors leave registers for the two vectors of
//! weights and one broadcast value; the loop is bound by the multiply-add units.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd,
    _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_load_ps, _mm512_loadu_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
    _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::{Line, Rows, Tile};

/// Adds the products of `depth` units to the tile's accumulators; one function per instruction, so
/// that the compiler keeps the accumulators in registers.
macro_rules! kernel {
    ($name:ident, $features:literal, $broadcast:expr, $step:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const M: usize>(
            units: *const u32,
            panel: *const Line,
            depth: usize,
            out: Tile,
        ) {
            let mut acc = [[_mm512_setzero_ps(); 2]; M];
            for u in 0..depth {
                // SAFETY: the panel holds `2 * depth` lines, aligned to 64 bytes; the block `M *
                // depth` units.
                unsafe {
                    let w0 = _mm512_load_ps(panel.add(2 * u).cast());
                    let w1 = _mm512_load_ps(panel.add(2 * u + 1).cast());
                    for i in 0..M {
                        let x = $broadcast(*units.add(u * M + i));
                        acc[i][0] = $step(acc[i][0], x, w0);
                        acc[i][1] = $step(acc[i][1], x, w1);
                    }
                }
            }
            // SAFETY: the masks keep to the valid columns.
            unsafe { store(&acc, out) }
        }
    };
}

kernel!(
    tile_f32,
    "avx512f",
    |x: u32| _mm512_set1_ps(f32::from_bits(x)),
    |acc, x, w| _mm512_fmadd_ps(x, w, acc)
);
kernel!(
    tile_bf16,
    "avx512f,avx512bf16",
    |x: u32| _mm512_set1_epi32(x as i32),
    |acc, x, w: __m512| {
        // SAFETY: vectors of 512 bits, every pattern is valid in both types.
        let pairs = std::mem::transmute::<__m512i, __m512bh>(x);
        _mm512_dpbf16_ps(acc, pairs, std::mem::transmute::<__m512, __m512bh>(w))
    }
);

#[target_feature(enable = "avx512f")]
pub(in crate::kernels) unsafe fn store<const M: usize>(acc: &[[__m512; 2]; M], out: Tile) {
    for (i, row) in acc.iter().enumerate() {
        for (half, v) in row.iter().enumerate() {
            let left = out.cols.saturating_sub(half * 16).min(16);
            let mask = ((1u32 << left) - 1) as u16;
            // SAFETY: the mask selects columns of the tile only; masked lanes are neither read nor
            // written.
            unsafe {
                let at = out
                    .at
                    .add(i * out.stride + half * 16 * usize::from(left > 0));
                let v = if out.add {
                    _mm512_add_ps(*v, _mm512_maskz_loadu_ps(mask, at))
                } else {
                    *v
                };
                _mm512_mask_storeu_ps(at, mask, v);
            }
        }
    }
}

/// Transposes 16 vectors of 16 units.
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512; 16]) -> [__m512; 16] {
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    // Within each 128-bit lane: quads[4 * i + j] holds column 4 * lane + j of rows 4 * i to 4 * i +
    // 3.
    let mut quads = pairs;
    let (pd, ps) = (_mm512_castps_pd, _mm512_castpd_ps);
    for i in 0..4 {
        let [a, b, c, d] = [
            pairs[4 * i],
            pairs[4 * i + 1],
            pairs[4 * i + 2],
            pairs[4 * i + 3],
        ];
        quads[4 * i] = ps(_mm512_unpacklo_pd(pd(a), pd(c)));
        quads[4 * i + 1] = ps(_mm512_unpackhi_pd(pd(a), pd(c)));
        quads[4 * i + 2] = ps(_mm512_unpacklo_pd(pd(b), pd(d)));
        quads[4 * i + 3] = ps(_mm512_unpackhi_pd(pd(b), pd(d)));
    }
    let mut out = quads;
    for j in 0..4 {
        let [a, b, c, d] = [quads[j], quads[4 + j], quads[8 + j], quads[12 + j]];
        let (ab_even, ab_odd) = (
            _mm512_shuffle_f32x4::<0x88>(a, b),
            _mm512_shuffle_f32x4::<0xdd>(a, b),
        );
        let (cd_even, cd_odd) = (
            _mm512_shuffle_f32x4::<0x88>(c, d),
            _mm512_shuffle_f32x4::<0xdd>(c, d),
        );
        out[j] = _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even);
        out[4 + j] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
        out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even);
        out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd);
    }
    out
}

macro_rules! packer {
    ($name:ident, $features:literal, $per_unit:literal, $load:expr) => {
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(
            x: &[f32],
            stride: usize,
            k: usize,
            count: usize,
            into: &mut [u32],
            apart: usize,
        ) -> usize {
            let whole = k / (16 * $per_unit) * 16;
            let mask = ((1u32 << count) - 1) as u16;
            for u in (0..whole).step_by(16) {
                let mut rows = [_mm512_setzero_ps(); 16];
                for (i, row) in rows.iter_mut().enumerate().take(count) {
                    // SAFETY: `u + 16 <= whole`, so the vector ends inside row `i`.
                    *row = unsafe { $load(x.as_ptr().add(i * stride + u * $per_unit)) };
                }
                for (j, column) in transpose(rows).into_iter().enumerate() {
                    // SAFETY: the mask writes `count <= apart` lanes, which end inside `depth *
                    // apart`.
                    unsafe {
                        _mm512_mask_storeu_ps(
                            into.as_mut_ptr().add((u + j) * apart).cast(),
                            mask,
                            column,
                        )
                    };
                }
            }
            whole
        }
    };
}

packer!(pack_f32, "avx512f", 1, |at: *const f32| _mm512_loadu_ps(at));
packer!(pack_bf16, "avx512f,avx512bf16", 2, |at: *const f32| {
    // The first value of a pair is the lower half. SAFETY of the transmute: vectors of 512 bits.
    std::mem::transmute::<_, __m512>(pairs(_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))))
});

/// 32 consecutive values as bf16, in order.
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(low: __m512, high: __m512) -> __m512bh {
    _mm512_cvtne2ps_pbh(high, low)
}

pub(super) unsafe fn run(bf16: bool, rows: Rows<'_>, panel: &[Line], out: Tile) {
    let (units, lines, depth) = (rows.units.as_ptr(), panel.as_ptr(), panel.len() / 2);
    debug_assert_eq!(rows.units.len(), rows.count * depth);
    macro_rules! by_rows {
        ($kernel:ident) => {
            match rows.count {
                1 => $kernel::<1>(units, lines, depth, out),
                2 => $kernel::<2>(units, lines, depth, out),
                3 => $kernel::<3>(units, lines, depth, out),
                4 => $kernel::<4>(units, lines, depth, out),
                5 => $kernel::<5>(units, lines, depth, out),
                6 => $kernel::<6>(units, lines, depth, out),
                7 => $kernel::<7>(units, lines, depth, out),
                8 => $kernel::<8>(units, lines, depth, out),
                9 => $kernel::<9>(units, lines, depth, out),
                10 => $kernel::<10>(units, lines, depth, out),
                11 => $kernel::<11>(units, lines, depth, out),
                12 => $kernel::<12>(units, lines, depth, out),
                13 => $kernel::<13>(units, lines, depth, out),
                _ => $kernel::<14>(units, lines, depth, out),
            }
        };
    }
    // SAFETY: the caller's promises.
    unsafe {
        if bf16 {
            by_rows!(tile_bf16)
        } else {
            by_rows!(tile_f32)
        }
    }
}
