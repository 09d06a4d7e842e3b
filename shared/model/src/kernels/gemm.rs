//! Bounds-checked matrix products over the `gemm` crate.

/// A read-only matrix: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// `rows x cols`, rows `stride` apart.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self {
            data,
            rows,
            cols,
            row_stride: stride,
            col_stride: 1,
        }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// Whether a product may use the thread pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread only (inside a task that is one of many).
    One,
    /// The pool the caller runs in.
    Pool,
}

/// Products smaller than this many multiply-adds stay on one thread.
const POOL_WORK: usize = 1 << 20;

/// `dst = alpha * a * b`, or `dst += ...` with `add`; `dst` is row-major `[a.rows, b.cols]` with
/// rows `stride` apart.
///
/// # Panics
/// If a shape does not fit its slice: a programming error, since shapes come from a checked
/// configuration.
pub fn matmul(
    dst: &mut [f32],
    stride: usize,
    add: bool,
    alpha: f32,
    a: Mat<'_>,
    b: Mat<'_>,
    threads: Threads,
) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    let last = |x: &Mat<'_>| (x.rows - 1) * x.row_stride + (x.cols - 1) * x.col_stride;
    assert!(
        k > 0 && last(&a) < a.data.len() && last(&b) < b.data.len(),
        "a factor is shorter than its shape"
    );
    assert!(
        stride >= n && (m - 1) * stride + n <= dst.len(),
        "the product is longer than its buffer"
    );
    let parallel = match threads {
        Threads::Pool if m * n * k >= POOL_WORK => gemm::Parallelism::Rayon(0),
        _ => gemm::Parallelism::None,
    };
    #[allow(unsafe_code)]
    // SAFETY: the asserts above keep every element that gemm touches inside its slice; `dst` is
    // borrowed mutably and so overlaps neither factor; strides are below isize::MAX because slices
    // are.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallel,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplies_transposed_strided_and_adding() {
        let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let b = [5.0, 6.0, 7.0, 8.0];
        let mut d = [1.0; 4];
        matmul(
            &mut d,
            2,
            true,
            2.0,
            Mat::new(&a, 2, 2, 3),
            Mat::new(&b, 2, 2, 2).t(),
            Threads::One,
        );
        assert_eq!(d, [35.0, 47.0, 79.0, 107.0]);
    }

    #[test]
    #[should_panic(expected = "shorter")]
    fn refuses_short_factors() {
        let mut d = [0.0; 4];
        matmul(
            &mut d,
            2,
            false,
            1.0,
            Mat::new(&[0.0; 3], 2, 2, 2),
            Mat::new(&[0.0; 4], 2, 2, 2),
            Threads::One,
        );
    }
}
