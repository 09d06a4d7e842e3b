//! Dense linear algebra with one order of operations.
//!
//! Every element of every product is accumulated over the inner index in ascending order, with one
//! fused multiply-add a term. IEEE 754 defines each of these roundings, so the result does not
//! depend on tile sizes, on the width of vectors, on the number of threads or on the family of the
//! CPU: AVX2, AVX-512 and NEON give the same bytes, and so does a CPU without fused multiply-add,
//! where the compiler's library computes it slowly.

mod eigen;
mod product;
mod solve;

pub(crate) use eigen::largest;
pub(crate) use solve::{cholesky, inverse};
pub use solve::NotPositive;

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

/// Sum of products in ascending order, for short vectors.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sum = 0.0;
    for (x, y) in a.iter().zip(b) {
        sum = f64::mul_add(*x, *y, sum);
    }
    sum
}
