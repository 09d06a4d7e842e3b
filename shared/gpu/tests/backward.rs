//! Gradients against central differences of the reference in f64.

mod common;

use common::{
    AdapterData, Model, PROJECTIONS, Pairs, Rng, RowData, double, error, gpu, lora, shape,
};
use lethe_gpu::{Format, Gpu, PairGrad, Projection, Shape};
use std::sync::Arc;

/// Largest difference, relative to the largest gradient of the same tensor.
const NEAR: f64 = 1e-4;
/// Step of the central differences; their own error is some 1e-9.
const STEP: f64 = 1e-5;

/// Moves an adapter or an input by a vector.
type MoveBy<'a> = dyn Fn(&mut AdapterData, &mut [f64], &[f64]) + 'a;

struct Setup {
    model: Model,
    rows: RowData,
    adapter: AdapterData,
    x: Vec<f32>,
    /// Weights of the outputs in the loss.
    dy: Vec<f32>,
    last: bool,
}

/// Gradient of the input, and of A and B of each pair.
struct Grads {
    dx: Vec<f32>,
    pairs: Vec<[Vec<f32>; 2]>,
}

impl Setup {
    fn new(
        seed: u64,
        s: Shape,
        format: Format,
        prefix: usize,
        lens: &[usize],
        rank: usize,
        last: bool,
    ) -> Self {
        let mut rng = Rng::new(seed);
        let model = Model::random(&mut rng, s, 2, true, format);
        let rows = RowData::new(&s, prefix, lens);
        let adapter = model.adapter(&mut rng, rank, &PROJECTIONS);
        let count = rows.rows().count();
        let out = if last { lens.len() } else { count };
        Self {
            x: rng.vector(count * s.hidden, 1.0),
            dy: rng.vector(out * s.hidden, 1.0),
            model,
            rows,
            adapter,
            last,
        }
    }

    /// The loss of the reference.
    fn loss(&self, adapter: &AdapterData, x: &[f64]) -> f64 {
        let y = self.model.forward(&self.rows, Some(adapter), x);
        let d = self.model.shape.hidden;
        let rows: Vec<usize> = match self.last {
            true => self.rows.rows().last_rows(),
            false => (0..y.len() / d).collect(),
        };
        let values = rows.iter().flat_map(|r| &y[r * d..(r + 1) * d]);
        values.zip(&self.dy).map(|(y, w)| y * f64::from(*w)).sum()
    }

    /// The GPU's gradients, added to `start` in each element of the pairs'.
    fn grads(&self, gpu: &Arc<Gpu>, start: f32) -> Grads {
        let layers = self.model.load(gpu);
        let pairs = Pairs::new(&self.adapter);
        let list = pairs.list(&self.adapter);
        let lora = lora(&self.adapter, &list);
        let (y, tape) = layers
            .forward_train(&self.rows.rows(), Some(&lora), &self.x, self.last)
            .expect("a pass");
        assert_eq!(y.len(), self.dy.len());
        let mut data: Vec<[Vec<f32>; 2]> = list
            .iter()
            .map(|p| [vec![start; p.a.len()], vec![start; p.b.len()]])
            .collect();
        let mut grads: Vec<_> = data.iter_mut().map(|[a, b]| PairGrad { a, b }).collect();
        let dx = layers
            .backward(&tape, &self.dy, &mut grads)
            .expect("a pass");
        Grads { dx, pairs: data }
    }

    /// Central differences of the loss by each element that `place` shows.
    fn differences(
        &self,
        len: usize,
        place: impl Fn(&mut AdapterData, &mut Vec<f64>, usize, f64),
    ) -> Vec<f64> {
        let mut adapter = self.adapter.clone();
        let mut x = double(&self.x);
        let mut grad = Vec::with_capacity(len);
        for i in 0..len {
            place(&mut adapter, &mut x, i, STEP);
            let up = self.loss(&adapter, &x);
            place(&mut adapter, &mut x, i, -2.0 * STEP);
            let down = self.loss(&adapter, &x);
            place(&mut adapter, &mut x, i, STEP);
            grad.push((up - down) / (2.0 * STEP));
        }
        grad
    }

    /// Compares every element of every gradient.
    fn check_all(&self, gpu: &Arc<Gpu>) {
        let got = self.grads(gpu, 0.0);
        let want = self.differences(self.x.len(), |_, x, i, step| x[i] += step);
        let far = error(&got.dx, &want);
        assert!(far < NEAR, "input: {far}");
        for (p, [a, b]) in got.pairs.iter().enumerate() {
            let name = (
                self.adapter.pairs[p].layer,
                self.adapter.pairs[p].projection,
            );
            let want = self.differences(a.len(), |ad, _, i, step| ad.pairs[p].a[i] += step);
            let far = error(a, &want);
            assert!(far < NEAR, "A of {name:?}: {far}");
            let want = self.differences(b.len(), |ad, _, i, step| ad.pairs[p].b[i] += step);
            let far = error(b, &want);
            assert!(far < NEAR, "B of {name:?}: {far}");
        }
    }

    /// Compares the slope along random directions of the input and of each pair.
    fn check_slopes(&self, gpu: &Arc<Gpu>) {
        let got = self.grads(gpu, 0.0);
        let mut rng = Rng::new(99);
        let mut check = |grad: &[f32], move_by: &MoveBy<'_>| {
            // Along the gradient's own signs, so that the slope is far from zero.
            let sign = |(g, r): (&f32, f32)| f64::from(g.signum() * (1.0 + 0.5 * r));
            let along = rng.vector(grad.len(), 1.0);
            let along: Vec<f64> = grad.iter().zip(along).map(sign).collect();
            let slope: f64 = grad
                .iter()
                .zip(&along)
                .map(|(g, d)| f64::from(*g) * d)
                .sum();
            let loss = |step: f64| {
                let mut adapter = self.adapter.clone();
                let mut x = double(&self.x);
                let along: Vec<f64> = along.iter().map(|d| d * step).collect();
                move_by(&mut adapter, &mut x, &along);
                self.loss(&adapter, &x)
            };
            let want = (loss(1e-6) - loss(-1e-6)) / 2e-6;
            let far = (slope - want).abs() / want.abs();
            assert!(far < NEAR, "{slope} for {want}: {far}");
        };
        let add = |to: &mut [f64], by: &[f64]| to.iter_mut().zip(by).for_each(|(t, b)| *t += b);
        check(&got.dx, &|_, x, by| add(x, by));
        for (p, [a, b]) in got.pairs.iter().enumerate() {
            check(a, &|ad, _, by| add(&mut ad.pairs[p].a, by));
            check(b, &|ad, _, by| add(&mut ad.pairs[p].b, by));
        }
    }
}

#[test]
fn every_gradient_agrees_with_differences() {
    let Some(gpu) = gpu() else { return };
    Setup::new(1, shape(16, 4, 2, 6, 20), Format::F32, 0, &[5], 2, false).check_all(&gpu);
}

#[test]
fn every_gradient_agrees_with_a_prefix_and_last_rows() {
    let Some(gpu) = gpu() else { return };
    Setup::new(
        2,
        shape(12, 2, 1, 6, 14),
        Format::F32,
        3,
        &[2, 1, 3],
        1,
        true,
    )
    .check_all(&gpu);
}

#[test]
fn slopes_agree_in_all_formats_and_long_runs() {
    let Some(gpu) = gpu() else { return };
    for (i, format) in common::FORMATS.into_iter().enumerate() {
        let s = shape(64, 4, 2, 16, 96);
        let last = i % 2 == 0;
        Setup::new(10 + i as u64, s, format, 9, &[6, 11], 4, last).check_slopes(&gpu);
    }
    // More keys, queries and dims than one step of 64 takes.
    let s = shape(40, 2, 1, 130, 72);
    Setup::new(20, s, Format::F32, 70, &[3, 67], 32, false).check_slopes(&gpu);
}

#[test]
fn gradients_are_added_and_have_the_same_bits_each_time() {
    let Some(gpu) = gpu() else { return };
    let setup = Setup::new(3, shape(24, 4, 2, 6, 40), Format::F32, 2, &[4, 3], 3, false);
    let first = setup.grads(&gpu, 0.0);
    let again = setup.grads(&gpu, 0.0);
    assert_eq!(first.dx, again.dx);
    assert_eq!(first.pairs, again.pairs);
    let more = setup.grads(&gpu, 1.0);
    for (a, b) in first
        .pairs
        .iter()
        .flatten()
        .zip(more.pairs.iter().flatten())
    {
        assert!(a.iter().zip(b).all(|(a, b)| 1.0 + a == *b));
    }
}

#[test]
fn without_an_adapter_only_the_input_has_a_gradient() {
    let Some(gpu) = gpu() else { return };
    let mut setup = Setup::new(4, shape(16, 2, 2, 4, 24), Format::F16, 0, &[4], 1, false);
    setup.adapter.pairs.clear();
    setup.check_all(&gpu);
    // Some projections only.
    let mut rng = Rng::new(5);
    setup.adapter = setup
        .model
        .adapter(&mut rng, 2, &[Projection::O, Projection::Down]);
    setup.check_all(&gpu);
}
