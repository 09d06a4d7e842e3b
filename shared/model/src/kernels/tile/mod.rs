//! The innermost loops: a tile of up to [`TILE_ROWS`] x [`WIDTH`] results, kept in registers.
//!
//! Every result is one chain of fused multiply-adds in the order of the inputs, so that all CPUs
//! with such units give the same bits in f32.

use std::sync::OnceLock;

use super::panels::{Compute, Line};

#[cfg(target_arch = "x86_64")]
mod avx512;
mod fused;

#[cfg(target_arch = "x86_64")]
pub(in crate::kernels) use avx512::store;

/// Outputs of a panel.
pub(crate) const WIDTH: usize = 32;
/// Most rows of a tile.
pub(crate) const TILE_ROWS: usize = 14;

/// A packed block of rows.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// `[depth][count]`.
    pub(crate) units: &'a [u32],
    /// Rows, at most [`TILE_ROWS`].
    pub(crate) count: usize,
}

/// Where a tile's results go.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// First result.
    pub(crate) at: *mut f32,
    /// Distance of rows.
    pub(crate) stride: usize,
    /// Valid columns, 1 to [`WIDTH`].
    pub(crate) cols: usize,
    /// Add to what is there.
    pub(crate) add: bool,
}

/// The vector units that the kernels can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Units {
    /// None of those below: plain matrices and the `gemm` crate.
    Plain,
    /// Fused multiply-adds: AVX2, NEON.
    Fused,
    /// AVX-512.
    Avx512,
}

impl Units {
    fn of_this_cpu() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                Self::Fused
            } else {
                Self::Plain
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            Self::Fused
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            Self::Plain
        }
    }
}

/// What this process uses: what the CPU has, or less with `LETHE_KERNELS=fused` or `portable`, for
/// tests and comparisons.
pub(crate) fn units() -> Units {
    static UNITS: OnceLock<Units> = OnceLock::new();
    *UNITS.get_or_init(|| {
        let most = match std::env::var("LETHE_KERNELS").as_deref() {
            Ok("portable") => Units::Plain,
            Ok("fused") => Units::Fused,
            _ => Units::Avx512,
        };
        Units::of_this_cpu().min(most)
    })
}

/// Whether this CPU runs the kernels of `compute`.
pub(crate) fn supported(compute: Compute) -> bool {
    match compute {
        Compute::F32 => units() > Units::Plain,
        Compute::Int8 => units() == Units::Avx512,
        Compute::Bf16 => units() == Units::Avx512 && bf16(),
    }
}

fn bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Computes a tile.
///
/// # Safety
/// `supported(compute)`; `rows.units` holds `count * depth` units where `panel` holds `depth *
/// WIDTH`; `count` is 1 to [`TILE_ROWS`]; the tile's rows and columns are valid to read and write
/// and nobody else uses them meanwhile.
#[allow(unsafe_code)]
pub(crate) unsafe fn run(compute: Compute, rows: Rows<'_>, panel: &[Line], out: Tile) {
    debug_assert_eq!(rows.units.len() * 2, rows.count * panel.len());
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match units() {
            #[cfg(target_arch = "x86_64")]
            Units::Avx512 => avx512::run(compute, rows, panel, out),
            _ => {
                debug_assert_eq!(compute, Compute::F32);
                fused::run(rows, panel, out);
            }
        }
    }
}

/// Packs whole vectors of units of `count` rows of `k` values, `stride` apart, side by side: unit
/// `u` of row `i` goes to `u * apart + i`. Returns how many units of each row are done; the rest is
/// left to the caller.
///
/// # Safety
/// `supported(compute)`; `count` is 1 to 16 and at most `apart`; `x` holds `(count - 1) * stride +
/// k` values, `into` `depth * apart` units.
#[allow(unsafe_code)]
pub(crate) unsafe fn pack(
    compute: Compute,
    x: &[f32],
    stride: usize,
    k: usize,
    count: usize,
    into: &mut [u32],
    apart: usize,
) -> usize {
    debug_assert!(
        x.len() >= (count - 1) * stride + k
            && into.len() >= compute.depth(k) * apart
            && count <= 16
    );
    match units() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promises are passed on.
        Units::Avx512 => unsafe {
            match compute {
                Compute::F32 | Compute::Int8 => avx512::pack_f32(x, stride, k, count, into, apart),
                Compute::Bf16 => avx512::pack_bf16(x, stride, k, count, into, apart),
            }
        },
        _ => 0,
    }
}
