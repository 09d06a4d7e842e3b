//! The innermost loops: a tile of up to [`TILE_ROWS`] x [`WIDTH`] results, kept in registers.
//!
//! Every result is one chain of fused multiply-adds in the order of the inputs, so that all CPUs
//! with such units give the same bits in f32.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::panels::to_bf16;
use super::panels::{Compute, Line};

#[cfg(target_arch = "x86_64")]
pub(in crate::kernels) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
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
    /// `[depth][count]`, or the order of the kernel.
    pub(crate) units: &'a [u32],
    /// Rows, at most the kernel's.
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

/// The vector units that the kernels can use; each has all those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Units {
    /// None of those below: plain matrices and the `gemm` crate.
    Plain,
    /// Fused multiply-adds: AVX2, NEON.
    Fused,
    /// AVX-512.
    Avx512,
    /// AVX-512 with dot products of bf16.
    Avx512Bf16,
    /// AMX: tiles of 16 x 16 results (bf16 and 8 bits).
    Amx,
}

impl Units {
    fn of_this_cpu() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let fused = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if !fused || !is_x86_feature_detected!("f16c") {
                Self::Plain
            } else if !is_x86_feature_detected!("avx512f") {
                Self::Fused
            } else if !is_x86_feature_detected!("avx512bf16") {
                Self::Avx512
            } else if amx::permitted() {
                Self::Amx
            } else {
                Self::Avx512Bf16
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

/// What this process uses: what the CPU has, or less with `LETHE_KERNELS=portable`, `fused`,
/// `avx512` or `avx512bf16`, for tests and comparisons.
pub(crate) fn units() -> Units {
    static UNITS: OnceLock<Units> = OnceLock::new();
    *UNITS.get_or_init(|| {
        let most = match std::env::var("LETHE_KERNELS").as_deref() {
            Ok("portable") => Units::Plain,
            Ok("fused") => Units::Fused,
            Ok("avx512") => Units::Avx512,
            Ok("avx512bf16") => Units::Avx512Bf16,
            _ => Units::Amx,
        };
        Units::of_this_cpu().min(most)
    })
}

/// How the factors of a product lie in memory, and what multiplies them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// f32 factors.
    F32,
    /// f32 factors, rows not transposed: AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Pairs of bf16 weights, widened in registers, and rows of rounded f32: AVX2.
    #[cfg(target_arch = "x86_64")]
    Widened,
    /// Pairs of bf16, and an instruction for their dot product: AVX-512.
    #[cfg(target_arch = "x86_64")]
    Dot,
    /// Pairs of bf16 in tiles: AMX.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Kernel {
    /// The fastest that this process may use for `compute`; `None`: no kernels here.
    pub(crate) fn best(compute: Compute) -> Option<Self> {
        Self::all(compute).pop()
    }

    /// All that this process may use for `compute`, the fastest last.
    pub(crate) fn all(compute: Compute) -> Vec<Self> {
        let mut all = vec![];
        if units() == Units::Plain {
            return all;
        }
        if compute != Compute::Bf16 {
            all.push(Self::F32);
            #[cfg(target_arch = "x86_64")]
            if units() == Units::Fused {
                all.push(Self::Avx2);
            }
            return all;
        }
        // Vectors of 256 bits: not where f32 has those of 512.
        #[cfg(target_arch = "x86_64")]
        if units() != Units::Avx512 {
            all.push(Self::Widened);
        }
        #[cfg(target_arch = "x86_64")]
        if units() >= Units::Avx512Bf16 {
            all.push(Self::Dot);
        }
        #[cfg(target_arch = "x86_64")]
        if units() >= Units::Amx {
            all.push(Self::Amx);
        }
        all
    }

    /// Whether a unit of a panel is a pair of bf16.
    pub(crate) fn pairs(self) -> bool {
        match self {
            Self::F32 => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => false,
            #[cfg(target_arch = "x86_64")]
            Self::Widened | Self::Dot | Self::Amx => true,
        }
    }

    /// Units of a panel for `k` inputs.
    pub(crate) fn depth(self, k: usize) -> usize {
        match self {
            Self::F32 => k,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => k,
            #[cfg(target_arch = "x86_64")]
            Self::Amx => k.div_ceil(32) * 16,
            #[cfg(target_arch = "x86_64")]
            Self::Widened | Self::Dot => k.div_ceil(2),
        }
    }

    /// Units of a packed row of `k` inputs.
    pub(crate) fn row_units(self, k: usize) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Widened => avx2::row_units(k),
            _ => self.depth(k),
        }
    }

    /// Most rows of a block.
    pub(crate) fn rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => amx::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Dot => TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Widened => avx2::rows(self.pairs()),
            Self::F32 => most_rows(),
        }
    }
}

/// Most rows of a block of f32: as many as fill the registers once or twice.
pub(crate) fn most_rows() -> usize {
    if units() >= Units::Avx512 {
        TILE_ROWS
    } else {
        2 * fused::ROWS
    }
}

/// Whether this CPU runs the kernels of `compute`.
#[cfg(test)]
pub(crate) fn supported(compute: Compute) -> bool {
    Kernel::best(compute).is_some()
}

/// Whether products of f32 have kernels here.
pub(crate) fn has_kernels() -> bool {
    units() > Units::Plain
}

/// Computes a tile of f32.
///
/// # Safety
/// [`has_kernels`]; `rows.units` holds `count * depth` units where `panel` holds `depth * WIDTH`;
/// `count` is 1 to [`TILE_ROWS`]; the tile's rows and columns are valid to read and write and
/// nobody else uses them meanwhile.
#[allow(unsafe_code)]
pub(crate) unsafe fn run(rows: Rows<'_>, panel: &[Line], out: Tile) {
    debug_assert_eq!(rows.units.len() * 2, rows.count * panel.len());
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match units() {
            #[cfg(target_arch = "x86_64")]
            Units::Avx512 | Units::Avx512Bf16 | Units::Amx => {
                avx512::run(false, rows, panel, out);
            }
            _ => fused::run(rows, panel, out),
        }
    }
}

/// Computes a tile with `kernel`, inside a [`Session`] of it.
///
/// # Safety
/// The CPU has `kernel`; `rows.units` holds what [`pack_block`] wrote for `count` rows, 1 to
/// `kernel.rows()`, and `panel` as many inputs; the tile is valid as for [`run`].
#[allow(unsafe_code)]
pub(crate) unsafe fn run_with(kernel: Kernel, rows: Rows<'_>, panel: &[Line], out: Tile) {
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match kernel {
            Kernel::F32 => run(rows, panel, out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => avx2::run::<false>(rows, panel, out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Widened => avx2::run::<true>(rows, panel, out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Dot => avx512::run(true, rows, panel, out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Amx => amx::bf16::run(rows, panel, out),
        }
    }
}

/// What a thread sets up before it runs tiles of a kernel and takes down afterwards.
pub(crate) struct Session {
    #[cfg(target_arch = "x86_64")]
    _amx: Option<amx::Configured>,
}

impl Session {
    /// For `kernel`, on this thread.
    ///
    /// # Safety
    /// The CPU has `kernel`; no other session is open on this thread.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn open(kernel: Kernel) -> Self {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = kernel;
        Self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's promises.
            _amx: (kernel == Kernel::Amx).then(|| unsafe { amx::Configured::new(&amx::BF16) }),
        }
    }
}

/// Packs a block of rows of `k` values for [`run_with`] and returns its units.
///
/// # Safety
/// The CPU has `kernel`; a block has 1 to `kernel.rows()` rows.
#[allow(unsafe_code)]
pub(crate) unsafe fn pack_block<'a>(
    kernel: Kernel,
    x: &[f32],
    k: usize,
    into: &'a mut [u32],
) -> &'a [u32] {
    let m = x.len() / k;
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Amx => amx::bf16::pack(x, k, into),
        #[cfg(target_arch = "x86_64")]
        Kernel::Dot => {
            let into = &mut into[..m * kernel.depth(k)];
            // SAFETY: the CPU has the instructions; `into` holds the units of `m` rows, side by
            // side.
            let done = unsafe { avx512::pack_bf16(x, k, k, m, into, m) };
            for (i, row) in x.chunks_exact(k).enumerate() {
                for u in done..kernel.depth(k) {
                    into[u * m + i] = pair(row, u);
                }
            }
            into
        }
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2 | Kernel::Widened => {
            let into = &mut into[..m * kernel.row_units(k)];
            avx2::pack(kernel.pairs(), x, k, into);
            into
        }
        Kernel::F32 => {
            let into = &mut into[..m * k];
            // SAFETY: the kernels run here; `x` holds `m` rows of `k`, `into` as many units.
            let done = unsafe { pack(x, k, k, m, into, m) };
            for (i, row) in x.chunks_exact(k).enumerate() {
                for (u, v) in row.iter().enumerate().skip(done) {
                    into[u * m + i] = v.to_bits();
                }
            }
            into
        }
    }
}

/// Unit `u` of a row in pairs of bf16, the first value in the lower half; zeros past its end.
#[cfg(target_arch = "x86_64")]
fn pair(row: &[f32], u: usize) -> u32 {
    let half = |at: usize| row.get(at).map_or(0, |v| to_bf16(*v));
    half(2 * u) | half(2 * u + 1) << 16
}

/// Packs whole vectors of units of `count` rows of `k` f32 values, `stride` apart, side by side:
/// unit `u` of row `i` goes to `u * apart + i`. Returns how many units of each row are done; the
/// rest is left to the caller.
///
/// # Safety
/// [`has_kernels`]; `count` is 1 to 16 and at most `apart`; `x` holds `(count - 1) * stride + k`
/// values, `into` `k * apart` units.
#[allow(unsafe_code)]
pub(crate) unsafe fn pack(
    x: &[f32],
    stride: usize,
    k: usize,
    count: usize,
    into: &mut [u32],
    apart: usize,
) -> usize {
    debug_assert!(x.len() >= (count - 1) * stride + k && into.len() >= k * apart && count <= 16);
    match units() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promises are passed on.
        Units::Avx512 | Units::Avx512Bf16 | Units::Amx => unsafe {
            avx512::pack_f32(x, stride, k, count, into, apart)
        },
        _ => 0,
    }
}
