//! Packed against separate sequences, split against unsplit, one thread against many, gradients
//! against differences.
#![allow(missing_docs, clippy::unwrap_used)]

mod tiles;

use std::sync::atomic::{AtomicUsize, Ordering};

use lethe_learn::seed::Seed;
use lethe_model::ModelError;
use lethe_model::config::ModelConfig;
use lethe_model::frozen::{FrozenStates, InMemory, Recomputed};
use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe, Projection};
use lethe_model::segment::Part;
use lethe_model::source::RandomWeights;
use lethe_model::split::{
    Batch, BatchLoss, DeviceModel, Labels, LocalMiddle, Middle, SplitSpec, Stage,
};
use lethe_model::train::{Packing, Sample, Trainer};

const ANSWERS: [u32; 2] = [3, 4];

fn recipe() -> LoraRecipe {
    LoraRecipe {
        rank: 3,
        alpha: 6.0,
        targets: Projection::ALL.to_vec(),
        last_layers: None,
    }
}

fn adapter(config: &ModelConfig) -> Adapter {
    let shape = AdapterShape::new(config, &recipe(), |_| true);
    let mut rng = Seed::from_u64(8).rng();
    let data = (0..shape.len()).map(|_| 0.2 * rng.normal()).collect();
    Adapter::from_data(&shape, data).unwrap()
}

fn sequences() -> Vec<Vec<u32>> {
    vec![
        vec![7, 8, 9, 1, 2, 3, 4],
        vec![7, 8, 9, 5],
        vec![7, 8, 9, 1, 6, 6, 2, 2, 1, 9, 30],
    ]
}

/// Loss and whole-model gradient with a given split, over packs of the sequences.
fn train(
    config: &ModelConfig,
    spec: SplitSpec,
    packs: &[Vec<Vec<u32>>],
    adapter: &Adapter,
) -> (f64, Vec<f32>) {
    let source = RandomWeights::new(config.clone(), 5);
    let device = DeviceModel::load(&source, spec, Compute::F32).unwrap();
    let on_device = |l| spec.on_device(l, config.layers);
    let edge = adapter.select(on_device);
    let segment = DeviceModel::load_middle(&source, spec, Compute::F32).unwrap();
    let mut middle = LocalMiddle::new(segment, adapter.select(|l| !on_device(l)));
    let mut grads = vec![0.0; edge.data.len()];
    let mut total = BatchLoss::default();
    let mut k = 0;
    for pack in packs {
        let (layout, ids) = Layout::pack(pack);
        let labels: Vec<bool> = pack
            .iter()
            .map(|_| {
                k += 1;
                k % 2 == 0
            })
            .collect();
        let batch = Batch {
            layout: &layout,
            ids: &ids,
            labels: Labels::Hard(&labels),
            answers: ANSWERS,
            scale: 1.0,
        };
        total.sum += device
            .train_batch(&batch, &edge, &mut grads, &mut middle)
            .unwrap()
            .sum;
    }
    let mut all = adapter.clone();
    all.paste(&Adapter::from_data(edge.shape(), grads).unwrap())
        .unwrap();
    all.paste(&Adapter::from_data(middle.adapter.shape(), middle.grads.clone()).unwrap())
        .unwrap();
    (total.sum, all.data)
}

/// The device holds all layers.
fn unsplit(c: &ModelConfig) -> SplitSpec {
    SplitSpec {
        k_in: 0,
        k_out: c.layers,
    }
}

fn close(a: &(f64, Vec<f32>), b: &(f64, Vec<f32>)) {
    assert!((a.0 - b.0).abs() < 1e-5, "{} against {}", a.0, b.0);
    let norm = b.1.iter().map(|v| v * v).sum::<f32>().sqrt();
    let diff =
        a.1.iter()
            .zip(&b.1)
            .map(|(x, y)| (x - y).powi(2))
            .sum::<f32>()
            .sqrt();
    assert!(diff < 1e-4 * norm, "gradients differ by {diff} of {norm}");
}

#[test]
fn packing_with_a_shared_prefix_changes_nothing_but_rounding() {
    let c = ModelConfig::tiny();
    let a = adapter(&c);
    let together = train(&c, unsplit(&c), &[sequences()], &a);
    let apart: Vec<_> = sequences().into_iter().map(|s| vec![s]).collect();
    let apart = train(&c, unsplit(&c), &apart, &a);
    close(&together, &apart);
}

#[test]
fn split_and_unsplit_agree_bit_for_bit() {
    let c = ModelConfig::tiny();
    let a = adapter(&c);
    let whole = train(&c, unsplit(&c), &[sequences()], &a);
    for spec in [
        SplitSpec { k_in: 1, k_out: 1 },
        SplitSpec { k_in: 2, k_out: 1 },
        SplitSpec { k_in: 0, k_out: 3 },
    ] {
        assert!(train(&c, spec, &[sequences()], &a) == whole, "{spec:?}");
    }
    // Without a layer of its own at the end the device cannot leave out what the answer does not
    // read: other sums.
    close(
        &train(&c, SplitSpec { k_in: 1, k_out: 0 }, &[sequences()], &a),
        &whole,
    );
}

#[test]
fn batches_of_several_clients_get_the_bits_that_they_get_alone() {
    let c = ModelConfig::tiny();
    let source = RandomWeights::new(c.clone(), 5);
    let spec = SplitSpec { k_in: 0, k_out: 0 };
    let segment = DeviceModel::load_middle(&source, spec, Compute::F32).unwrap();
    let device = DeviceModel::load(&source, spec, Compute::F32).unwrap();
    let a = adapter(&c);
    let mut other = a.clone();
    other.data.iter_mut().for_each(|v| *v *= -0.5);
    let packs = [sequences(), vec![vec![4, 5]], vec![vec![9; 17], vec![9; 3]]];
    let adapters = [Some(&a), None, Some(&other)];
    let packed: Vec<_> = packs.iter().map(|p| Layout::pack(p)).collect();
    let parts: Vec<Part<'_>> = packed
        .iter()
        .zip(adapters)
        .map(|((layout, _), adapter)| Part { layout, adapter })
        .collect();
    let x: Vec<f32> = packed
        .iter()
        .flat_map(|(_, ids)| device.embed(ids).unwrap())
        .collect();
    let alone = packed
        .iter()
        .zip(adapters)
        .flat_map(|((layout, ids), adapter)| {
            segment
                .forward(layout, device.embed(ids).unwrap(), adapter)
                .unwrap()
        });
    let (many, alone) = (
        segment.forward_many(&parts, x.clone()).unwrap(),
        alone.collect::<Vec<_>>(),
    );
    assert!(
        many.iter()
            .zip(&alone)
            .all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + b.abs()))
    );
    assert!(
        many == alone || !tiles::tile_kernels_run(),
        "bit for bit where the tile kernels run"
    );
    assert!(segment.forward_many(&parts, x[1..].to_vec()).is_err());
    assert!(segment.forward_many(&parts[..2], x).is_err());
}

#[test]
fn gradients_match_differences_for_every_projection() {
    let c = ModelConfig::tiny();
    let a = adapter(&c);
    let packs = [sequences()];
    let (_, grads) = train(&c, unsplit(&c), &packs, &a);
    for e in a.shape().entries() {
        let (ra, rb) = a.shape().ranges(e);
        for range in [ra, rb] {
            // Along the gradient itself the difference is largest, so rounding matters least.
            let norm = grads[range.clone()]
                .iter()
                .map(|v| v * v)
                .sum::<f32>()
                .sqrt();
            assert!(
                norm > 0.0,
                "{:?} of layer {} gets no gradient",
                e.proj,
                e.layer
            );
            let at = |t: f32| {
                let mut moved = a.clone();
                moved.data[range.clone()]
                    .iter_mut()
                    .zip(&grads[range.clone()])
                    .for_each(|(x, g)| *x += t * g / norm);
                train(&c, unsplit(&c), &packs, &moved).0
            };
            let slope = (at(5e-3) - at(-5e-3)) / 1e-2;
            let want = f64::from(norm);
            assert!(
                (slope - want).abs() < 0.02 * want + 2e-4,
                "{:?} {}: {slope} against {want}",
                e.proj,
                e.layer
            );
        }
    }
}

#[test]
fn odd_shapes_run() {
    let c = ModelConfig {
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        hidden: 5,
        intermediate: 3,
        layers: 2,
        ..ModelConfig::tiny()
    };
    let a = adapter(&c);
    let (loss, grads) = train(
        &c,
        unsplit(&c),
        &[vec![vec![1]], vec![vec![1], vec![1, 2]]],
        &a,
    );
    assert!(loss.is_finite() && grads.iter().all(|g| g.is_finite()));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    // Wide enough that products, norms and attention are divided over tasks.
    let c = ModelConfig {
        hidden: 192,
        intermediate: 512,
        heads: 6,
        kv_heads: 2,
        head_dim: 32,
        ..ModelConfig::tiny()
    };
    let a = adapter(&c);
    let long: Vec<Vec<u32>> = (0..5)
        .map(|i| (0..60 + i * 7).map(|t| (t * (i + 1)) % 60).collect())
        .collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| train(&c, unsplit(&c), std::slice::from_ref(&long), &a))
    };
    let one = run(1);
    for threads in [2, 3, 8] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

/// Keeps what it is given and counts.
#[derive(Debug, Default)]
struct Counted {
    kept: InMemory,
    puts: AtomicUsize,
}

impl FrozenStates for Counted {
    fn get(&self, ids: &[u32]) -> Option<Vec<f32>> {
        self.kept.get(ids)
    }

    fn put(&self, ids: &[u32], states: &[f32]) {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.kept.put(ids, states);
    }
}

/// Gradients of an adapter on the last layers: those of the whole adapter, wherever the boundary
/// and the split lie, with kept states bit for bit as without.
#[test]
fn an_adapter_on_the_last_layers_gets_the_gradients_of_the_whole() {
    let c = ModelConfig {
        layers: 4,
        ..ModelConfig::tiny()
    };
    let source = RandomWeights::new(c.clone(), 5);
    let samples: Vec<Sample> = sequences()
        .into_iter()
        .zip([true, false, true])
        .map(|(ids, label)| Sample { ids, label })
        .collect();
    for last in 1..=4 {
        // Zero below the boundary: what a frozen layer has.
        let mut whole = adapter(&c);
        let zero = whole.select(|l| l + last < c.layers);
        whole
            .paste(&Adapter::from_data(zero.shape(), vec![0.0; zero.data.len()]).unwrap())
            .unwrap();
        let shape = AdapterShape::new(
            &c,
            &LoraRecipe {
                last_layers: Some(last),
                ..recipe()
            },
            |_| true,
        );
        assert_eq!(shape.first_trained(), c.layers - last);
        let upper =
            Adapter::from_data(&shape, whole.select(|l| l + last >= c.layers).data).unwrap();
        let mut bits: Vec<Vec<u32>> = vec![];
        for spec in [
            unsplit(&c),
            SplitSpec { k_in: 1, k_out: 1 },
            SplitSpec { k_in: 2, k_out: 2 },
        ] {
            let device = DeviceModel::load(&source, spec, Compute::F32).unwrap();
            let segment = || DeviceModel::load_middle(&source, spec, Compute::F32).unwrap();
            let on_device = |l: usize| spec.on_device(l, c.layers);
            let run = |adapter: &Adapter, frozen: &dyn FrozenStates| {
                let edge = adapter.select(on_device);
                let mut middle = LocalMiddle::new(segment(), adapter.select(|l| !on_device(l)));
                let mut grads = vec![0.0; edge.data.len()];
                let trainer = Trainer {
                    device: &device,
                    answers: ANSWERS,
                    packing: Packing { max_tokens: 99 },
                    frozen,
                };
                let loss = trainer
                    .accumulate(&samples, &edge, &mut grads, &mut middle)
                    .unwrap();
                let mut all = adapter.clone();
                all.paste(&Adapter::from_data(edge.shape(), grads).unwrap())
                    .unwrap();
                all.paste(&Adapter::from_data(middle.adapter.shape(), middle.grads).unwrap())
                    .unwrap();
                (loss.sum, all)
            };
            let (loss, all) = run(&whole, &Recomputed);
            let counted = Counted::default();
            let first = run(&upper, &counted);
            close(
                &(first.0, first.1.data.clone()),
                &(loss, all.select(|l| l + last >= c.layers).data),
            );
            let again = run(&upper, &counted);
            assert_eq!(first, again);
            assert_eq!(first, run(&upper, &Recomputed));
            assert_eq!(
                counted.puts.into_inner(),
                if last < c.layers { samples.len() } else { 0 }
            );
            bits.push(first.1.data.iter().map(|v| v.to_bits()).collect());
        }
        assert!(
            bits.iter().all(|b| *b == bits[0]),
            "the split changes nothing"
        );
    }
}

/// A middle that must not be asked.
struct Nobody;

impl Middle for Nobody {
    fn forward(&mut self, _: &Layout, _: Vec<f32>, _: Stage) -> Result<Vec<f32>, ModelError> {
        Err(ModelError::Shape("states crossed".into()))
    }

    fn backward(&mut self, _: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Err(ModelError::Shape("a gradient crossed".into()))
    }
}

#[test]
fn nothing_crosses_when_the_device_has_all_layers() {
    let config = ModelConfig::tiny();
    let source = RandomWeights::new(config.clone(), 5);
    let (layout, ids) = Layout::pack(&sequences());
    for k_in in 0..=config.layers {
        let spec = SplitSpec {
            k_in,
            k_out: config.layers - k_in,
        };
        let device = DeviceModel::load(&source, spec, Compute::F32).unwrap();
        for last_layers in [None, Some(1), Some(2)] {
            let recipe = LoraRecipe {
                last_layers,
                ..recipe()
            };
            let shape = AdapterShape::new(&config, &recipe, |_| true);
            let adapter = Adapter::init(&shape, &Seed::from_u64(2));
            let mut grads = vec![0.0; shape.len()];
            let batch = Batch {
                layout: &layout,
                ids: &ids,
                labels: Labels::Hard(&[true, false, true]),
                answers: ANSWERS,
                scale: 1.0,
            };
            device
                .train_batch(&batch, &adapter, &mut grads, &mut Nobody)
                .unwrap();
            assert!(grads.iter().any(|g| *g != 0.0));
            device
                .score(&layout, &ids, ANSWERS, Some(&adapter), &mut Nobody)
                .unwrap();
        }
    }
}
