//! Dense linear algebra with one order of operations.
//!
//! Every element of a product of matrices is accumulated over the inner index in ascending order,
//! with one fused multiply-add a term; small sums are added up in fixed lanes without fusing. IEEE
//! 754 defines each of these roundings, so the result does not depend on tile sizes, on the width
//! of vectors, on the number of threads or on the family of the CPU: AVX2, AVX-512 and NEON give
//! the same bytes, and so does a CPU without fused multiply-add, where the compiler's library
//! computes it slowly.

mod eigen;
mod product;
mod solve;

pub(crate) use eigen::largest;
pub use solve::NotPositive;
pub(crate) use solve::{cholesky, inverse};

/// A dense matrix of `f64` in rows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) data: Vec<f64>,
}

impl Matrix {
    pub(crate) fn zeros(rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            data: vec![0.0; rows * columns],
        }
    }

    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.columns..(row + 1) * self.columns]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.data[row * self.columns..(row + 1) * self.columns]
    }

    pub(crate) fn at(&self, row: usize, column: usize) -> f64 {
        self.data[row * self.columns + column]
    }
}

/// Runs a kernel compiled for the widest vectors of this CPU. Kernels are types, not closures:
/// only what is inlined into [`pulp::NullaryFnOnce::call`] is compiled with these instructions, and
/// a fused multiply-add outside of them is a slow call on most x86 builds.
#[inline(always)]
pub(crate) fn vectorised<K: pulp::NullaryFnOnce>(kernel: K) -> K::Output {
    pulp::Arch::new().dispatch(kernel)
}

/// Lanes of [`dot`].
const LANES: usize = 8;

/// Sum of products in eight fixed lanes, multiplications and additions rounded one by one: fast and
/// the same on any CPU without choosing instructions at run time.
#[inline(always)]
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let left = a.chunks_exact(LANES);
    let right = b.chunks_exact(LANES);
    let mut rest = 0.0;
    for (x, y) in left.remainder().iter().zip(right.remainder()) {
        rest += x * y;
    }
    for (x, y) in left.zip(right) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    let low = (lanes[0] + lanes[4]) + (lanes[2] + lanes[6]);
    let high = (lanes[1] + lanes[5]) + (lanes[3] + lanes[7]);
    low + high + rest
}

/// `y += scale x`, rounded as [`dot`].
#[inline(always)]
pub(crate) fn add_scaled(scale: f64, x: &[f64], y: &mut [f64]) {
    for (to, from) in y.iter_mut().zip(x) {
        *to += scale * from;
    }
}
