//! A frozen linear map with the products that a layer needs, in the form that is fastest on this
//! CPU.

use super::gemm::{Mat, Threads, matmul};
use super::panels::{Compute, Panels, to_bf16};
use super::quant::Quantised;
use super::stored::{Rows, Stored};
use super::tile::Kernel;
use crate::ModelError;
use crate::dtype::dequantise;

/// Frozen weights `[outputs, inputs]`, held once: on a CPU with the tile kernels a backward product
/// makes the form that it needs, for that product only; so does a forward product of weights that
/// are held as their file has them.
#[derive(Debug)]
pub struct Linear {
    outputs: usize,
    inputs: usize,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// Row-major, multiplied by the `gemm` crate; with bf16 arithmetic every factor is rounded
    /// first.
    Plain { weights: Vec<f32>, compute: Compute },
    /// Quantised panels, for scoring.
    Quantised(Quantised),
    /// Panels for the tile kernels.
    Packed(Panels),
    /// As in the file: each product makes panels.
    Stored(Stored),
}

impl Linear {
    /// From row-major weights.
    ///
    /// # Panics
    /// If there are not `outputs * inputs` weights: a programming error, sources check their
    /// tensors.
    pub fn new(weights: Vec<f32>, outputs: usize, inputs: usize, compute: Compute) -> Self {
        assert_eq!(
            weights.len(),
            outputs * inputs,
            "weights of {outputs} x {inputs}"
        );
        let quantised = (compute == Compute::Int8)
            .then(|| Quantised::new(&weights, outputs, inputs))
            .flatten();
        let form = if let Some(q) = quantised {
            Form::Quantised(q)
        } else if let Some(kernel) = Kernel::best(compute) {
            Self::packed(&weights, outputs, inputs, kernel)
        } else {
            Self::plain(weights, compute)
        };
        Self {
            outputs,
            inputs,
            form,
        }
    }

    /// From rows as their file stores them, which are kept so where that is smaller than panels,
    /// and the tile kernels run: with the same results.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if the rows are not `outputs * inputs` values.
    pub(crate) fn stored(
        rows: Vec<Rows>,
        outputs: usize,
        inputs: usize,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let kernel = Kernel::best(compute).filter(|_| compute != Compute::Int8);
        let rows = match kernel {
            None => rows,
            Some(kernel) => match Stored::new(kernel, outputs, inputs, rows) {
                Ok(stored) => {
                    return Ok(Self {
                        outputs,
                        inputs,
                        form: Form::Stored(stored),
                    });
                }
                Err(rows) => rows,
            },
        };
        let mut values = Vec::with_capacity(outputs * inputs);
        for rows in rows {
            let blocks = rows.bytes.len() / rows.dtype.block_bytes();
            let count = blocks * rows.dtype.block_values();
            values.extend(dequantise(rows.dtype, &rows.bytes, count)?);
        }
        if values.len() != outputs * inputs {
            return Err(ModelError::Shape(format!(
                "{} weights, expected {outputs} x {inputs}",
                values.len()
            )));
        }
        Ok(Self::new(values, outputs, inputs, compute))
    }

    /// From row-major weights, multiplied without the tile kernels: what a CPU without them does.
    pub fn portable(weights: Vec<f32>, outputs: usize, inputs: usize, compute: Compute) -> Self {
        assert_eq!(
            weights.len(),
            outputs * inputs,
            "weights of {outputs} x {inputs}"
        );
        Self {
            outputs,
            inputs,
            form: Self::plain(weights, compute),
        }
    }

    fn packed(weights: &[f32], outputs: usize, inputs: usize, kernel: Kernel) -> Form {
        let weight = |n, k| weights[n * inputs + k];
        Form::Packed(Panels::pack(kernel, outputs, inputs, weight))
    }

    fn plain(mut weights: Vec<f32>, compute: Compute) -> Form {
        round(&mut weights, compute);
        Form::Plain { weights, compute }
    }

    /// Memory of the weights, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Plain { weights, .. } => weights.len() * size_of::<f32>(),
            Form::Quantised(q) => q.bytes(),
            Form::Packed(panels) => panels.bytes(),
            Form::Stored(stored) => stored.bytes(),
        }
    }

    /// `dst[rows, outputs] (+)= x[rows, inputs] * W^T`.
    pub fn forward(&self, x: &[f32], rows: usize, dst: &mut [f32], add: bool) {
        match &self.form {
            Form::Packed(panels) => panels.multiply(x, rows, dst, add),
            Form::Stored(stored) => stored.multiply(x, rows, dst, add),
            Form::Quantised(q) => q.multiply(x, rows, dst, add),
            Form::Plain { weights, compute } => {
                let w = Mat::new(weights, self.outputs, self.inputs, self.inputs).t();
                rounded(x, *compute, |x| {
                    let x = Mat::new(x, rows, self.inputs, self.inputs);
                    matmul(dst, self.outputs, add, 1.0, x, w, Threads::Pool);
                });
            }
        }
    }

    /// `dst[rows, inputs] (+)= dy[rows, outputs] * W`.
    ///
    /// # Panics
    /// If the weights are quantised: a segment loaded for scoring refuses to train before it comes
    /// to this.
    pub fn backward(&self, dy: &[f32], rows: usize, dst: &mut [f32], add: bool) {
        match &self.form {
            Form::Packed(panels) => panels.multiply_transposed(dy, rows, dst, add),
            Form::Stored(stored) => stored.multiply_transposed(dy, rows, dst, add),
            Form::Quantised(_) => unreachable!("quantised weights have no backward pass"),
            Form::Plain { weights, compute } => {
                let w = Mat::new(weights, self.outputs, self.inputs, self.inputs);
                rounded(dy, *compute, |dy| {
                    let dy = Mat::new(dy, rows, self.outputs, self.outputs);
                    matmul(dst, self.inputs, add, 1.0, dy, w, Threads::Pool);
                });
            }
        }
    }
}

fn round(values: &mut [f32], compute: Compute) {
    if compute == Compute::Bf16 {
        values
            .iter_mut()
            .for_each(|v| *v = f32::from_bits(to_bf16(*v) << 16));
    }
}

fn rounded(x: &[f32], compute: Compute, f: impl FnOnce(&[f32])) {
    match compute {
        Compute::F32 | Compute::Int8 => f(x),
        Compute::Bf16 => {
            let mut x = x.to_vec();
            round(&mut x, compute);
            f(&x);
        }
    }
}

#[cfg(test)]
mod tests {
    use lethe_learn::seed::Seed;

    use super::*;
    use crate::kernels::tile;

    /// One of every kernel that runs here, AMX through its emulator, and the portable form.
    fn forms(w: &[f32], n: usize, k: usize, compute: Compute) -> Vec<Linear> {
        let kernels = Kernel::all(compute);
        #[cfg(target_arch = "x86_64")]
        let emulated = compute == Compute::Bf16 && tile::amx::emulator::install();
        #[cfg(target_arch = "x86_64")]
        let kernels = kernels.into_iter().chain(emulated.then_some(Kernel::Amx));
        let form = |kernel| Linear {
            outputs: n,
            inputs: k,
            form: Linear::packed(w, n, k, kernel),
        };
        let portable = Linear::portable(w.to_vec(), n, k, compute);
        kernels.into_iter().map(form).chain([portable]).collect()
    }

    fn random(name: &str, n: usize) -> Vec<f32> {
        let mut rng = Seed::from_u64(5).derive(name, &[&n.to_le_bytes()]).rng();
        (0..n).map(|_| rng.normal()).collect()
    }

    fn exact(x: &[f32], w: &[f32], rows: usize, n: usize, k: usize, compute: Compute) -> Vec<f64> {
        let r = |v: f32| match compute {
            Compute::F32 | Compute::Int8 => f64::from(v),
            Compute::Bf16 => f64::from(f32::from_bits(to_bf16(v) << 16)),
        };
        let dot = |i: usize, j: usize| (0..k).map(|l| r(x[i * k + l]) * r(w[j * k + l])).sum();
        (0..rows)
            .flat_map(|i| (0..n).map(move |j| (i, j)))
            .map(|(i, j)| dot(i, j))
            .collect()
    }

    fn close(got: &[f32], want: &[f64], add: f64, k: usize) {
        for (g, w) in got.iter().zip(want) {
            let bound = 2e-6 * (k as f64).sqrt() * (1.0 + w.abs());
            assert!((f64::from(*g) - w - add).abs() < bound, "{g} {w}");
        }
    }

    #[test]
    fn all_forms_agree_with_exact_arithmetic_on_odd_shapes() {
        let shapes = [
            (1, 1, 1),
            (1, 33, 7),
            (2, 32, 64),
            (13, 31, 5),
            (14, 64, 3),
            (15, 65, 17),
            (29, 100, 130),
            (57, 48, 96),
            (200, 96, 64),
        ];
        for (rows, n, k) in shapes {
            let (x, w, dy) = (
                random("x", rows * k),
                random("w", n * k),
                random("dy", rows * n),
            );
            let wt: Vec<f32> = (0..k * n).map(|i| w[i % n * k + i / n]).collect();
            for compute in [Compute::F32, Compute::Bf16] {
                for linear in forms(&w, n, k, compute) {
                    let mut y = vec![f32::NAN; rows * n];
                    linear.forward(&x, rows, &mut y, false);
                    let want = exact(&x, &w, rows, n, k, compute);
                    close(&y, &want, 0.0, k);
                    let mut y = vec![1.0; rows * n];
                    linear.forward(&x, rows, &mut y, true);
                    close(&y, &want, 1.0, k);
                    let mut dx = vec![f32::NAN; rows * k];
                    linear.backward(&dy, rows, &mut dx, false);
                    close(&dx, &exact(&dy, &wt, rows, k, n, compute), 0.0, n);
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (rows, n, k) = (317, 200, 96);
        let x = random("x", rows * k);
        let w = random("w", n * k);
        let all = [Compute::F32, Compute::Bf16].map(|compute| forms(&w, n, k, compute));
        for linear in all.into_iter().flatten() {
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .expect("a pool");
                let mut y = vec![0.0; rows * n];
                pool.install(|| linear.forward(&x, rows, &mut y, false));
                y
            };
            let one = run(1);
            assert!(one == run(2) && one == run(3) && one == run(7));
            // A row's result does not depend on the rows beside it (the tile kernels promise it,
            // `gemm` does not).
            if matches!(linear.form, Form::Plain { .. }) {
                continue;
            }
            for row in [0, 100, 316] {
                let mut alone = vec![0.0; n];
                linear.forward(&x[row * k..(row + 1) * k], 1, &mut alone, false);
                assert_eq!(alone, one[row * n..(row + 1) * n]);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_task_leaves_no_tiles_in_use() {
        if !tile::amx::emulator::install() {
            return;
        }
        let linear = Linear {
            outputs: 40,
            inputs: 70,
            form: Linear::packed(&random("w", 40 * 70), 40, 70, Kernel::Amx),
        };
        let mut y = vec![0.0; 3 * 40];
        linear.forward(&random("x", 3 * 70), 3, &mut y, false);
        assert!(!tile::amx::emulator::in_use());
    }

    /// AVX-512, AVX2 and NEON give the same bits: those of one chain of fused multiply-adds.
    #[test]
    fn all_vector_units_give_the_bits_of_one_chain() {
        if !tile::supported(Compute::F32) {
            return;
        }
        for (rows, n, k) in [(1, 1, 1), (3, 33, 40), (15, 47, 96), (14, 64, 7)] {
            let (x, w) = (random("x", rows * k), random("w", n * k));
            let mut y = vec![0.0; rows * n];
            Linear::new(w.clone(), n, k, Compute::F32).forward(&x, rows, &mut y, false);
            for (at, got) in y.iter().enumerate() {
                let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
                let want = x
                    .iter()
                    .zip(w)
                    .fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum));
                assert_eq!(got.to_bits(), want.to_bits(), "{rows} x {n} x {k} at {at}");
            }
        }
    }

    #[test]
    fn first_backward_passes_at_once_do_not_wait_for_each_other() {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .build()
            .expect("a pool");
        for round in 0..200 {
            let (n, k) = (96, 64);
            let linears: Vec<Linear> = (0..4)
                .map(|_| Linear::new(random("w", n * k), n, k, Compute::F32))
                .collect();
            let dy = random("dy", 33 * n);
            let (sum, results) = std::sync::mpsc::channel();
            std::thread::scope(|s| {
                for _ in 0..3 {
                    let (sum, linears, dy, pool) = (sum.clone(), &linears, &dy, &pool);
                    s.spawn(move || {
                        let mut dx = vec![0.0; 33 * k];
                        pool.install(|| {
                            linears
                                .iter()
                                .for_each(|l| l.backward(dy, 33, &mut dx, true))
                        });
                        sum.send(dx).expect("the test waits");
                    });
                }
            });
            let all: Vec<Vec<f32>> = results.iter().take(3).collect();
            assert!(all[0] == all[1] && all[1] == all[2], "round {round}");
        }
    }

    #[test]
    fn rounding_to_bf16_is_to_nearest_even() {
        let to = |x: f32| f32::from_bits(to_bf16(x) << 16);
        assert_eq!(
            (to(1.0), to(1.0 + 1.0 / 256.0), to(1.0 + 3.0 / 256.0)),
            (1.0, 1.0, 1.0 + 4.0 / 256.0)
        );
        assert_eq!(
            (to(f32::INFINITY), to(-0.0).to_bits(), to(f32::MAX)),
            (f32::INFINITY, 0x8000_0000, f32::INFINITY)
        );
        assert!(to(f32::NAN).is_nan());
    }
}
