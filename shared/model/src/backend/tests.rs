//! Every engine against our kernels on the CPU, on everything that an engine does.

use lethe_learn::seed::Seed;

use crate::config::ModelConfig;
use crate::engine::Engine;
use crate::generate::Generator;
use crate::kernels::panels::Compute;
use crate::layout::Layout;
use crate::lora::{Adapter, AdapterShape, LoraRecipe, Projection};
use crate::segment::{Part, Segment};
use crate::source::RandomWeights;
use crate::split::{Batch, DeviceModel, Labels, LocalMiddle, SplitSpec};

/// All engines of this build and computer but `cpu`. A GPU that is not there is said, and with
/// `LETHE_GPU=required` refused.
fn others() -> Vec<Engine> {
    let mut engines = vec![];
    #[cfg(feature = "candle")]
    engines.push(Engine::named("candle-cpu").expect("built in"));
    #[cfg(feature = "wgpu")]
    engines.extend(super::gpu::tests::open().map(Engine::of));
    engines
}

fn adapter(c: &ModelConfig) -> Adapter {
    let recipe = LoraRecipe {
        rank: 2,
        alpha: 4.0,
        targets: Projection::ALL.to_vec(),
        last_layers: None,
    };
    let shape = AdapterShape::new(c, &recipe, |_| true);
    let mut rng = Seed::from_u64(4).rng();
    let data = (0..shape.len()).map(|_| 0.2 * rng.normal()).collect();
    Adapter::from_data(&shape, data).expect("same length")
}

fn near(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let norm = b.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (x, y) in a.iter().zip(b) {
        assert!(
            (x - y).abs() < 1e-4 * norm + 1e-7,
            "{what}: {x} against {y}"
        );
    }
}

/// One head, grouped queries, biases; sequences of one token, ragged, with and without a common
/// prefix.
fn shapes() -> Vec<(ModelConfig, Vec<Vec<u32>>)> {
    let (tiny, biased) = (
        ModelConfig::tiny(),
        ModelConfig {
            qkv_bias: true,
            ..ModelConfig::tiny()
        },
    );
    let single = ModelConfig {
        heads: 1,
        kv_heads: 1,
        ..ModelConfig::tiny()
    };
    let ragged = vec![
        vec![7, 8, 9, 1, 2, 3, 4, 20, 41],
        vec![7, 8, 5],
        vec![7, 8, 9, 1, 1, 1],
    ];
    vec![
        (tiny.clone(), ragged.clone()),
        (tiny, vec![vec![5], vec![6], vec![9, 9]]),
        (biased, ragged.clone()),
        (single.clone(), ragged),
        (single, vec![vec![3]]),
    ]
}

/// Loss and gradients with a device's layers and a middle.
fn train(
    on: &Engine,
    c: &ModelConfig,
    sequences: &[Vec<u32>],
    adapter: &Adapter,
) -> (f64, Vec<f32>, Vec<f32>) {
    let source = RandomWeights::new(c.clone(), 5);
    let spec = SplitSpec { k_in: 1, k_out: 1 };
    let device = DeviceModel::load_on(on, &source, spec, Compute::F32).expect("loads");
    let segment = DeviceModel::load_middle_on(on, &source, spec, Compute::F32).expect("loads");
    let edge = adapter.select(|l| spec.on_device(l, c.layers));
    let mut middle = LocalMiddle::new(segment, adapter.select(|l| !spec.on_device(l, c.layers)));
    let (layout, ids) = Layout::pack(sequences);
    let labels: Vec<bool> = (0..sequences.len()).map(|i| i % 2 == 0).collect();
    let batch = Batch {
        layout: &layout,
        ids: &ids,
        labels: Labels::Hard(&labels),
        answers: [3, 4],
        scale: 1.0,
    };
    let mut grads = vec![0.0; edge.data.len()];
    let loss = device
        .train_batch(&batch, &edge, &mut grads, &mut middle)
        .expect("runs");
    (loss.sum, grads, middle.grads)
}

#[test]
fn training_agrees() {
    for (c, sequences) in shapes() {
        let adapter = adapter(&c);
        let ours = train(&Engine::cpu(), &c, &sequences, &adapter);
        for engine in others() {
            let kind = engine.kind();
            let theirs = train(&engine, &c, &sequences, &adapter);
            let apart = (ours.0 - theirs.0).abs();
            assert!(apart < 1e-5, "{kind}: loss {} for {}", theirs.0, ours.0);
            near(&format!("{kind}: device"), &theirs.1, &ours.1);
            near(&format!("{kind}: middle"), &theirs.2, &ours.2);
        }
    }
}

#[test]
fn all_forms_of_the_forward_pass_agree() {
    for (c, sequences) in shapes() {
        let source = RandomWeights::new(c.clone(), 5);
        let adapter = adapter(&c);
        let load =
            |on: &Engine| Segment::load_on(on, &source, 0..c.layers, Compute::F32).expect("loads");
        let (layout, ids) = Layout::pack(&sequences);
        let rows = DeviceModel::load(&source, SplitSpec { k_in: 0, k_out: 0 }, Compute::F32)
            .expect("loads");
        let x = rows.embed(&ids).expect("embeds");
        let run = |s: &Segment| {
            let twice: Vec<f32> = x.iter().chain(&x).copied().collect();
            let parts = [
                Part {
                    layout: &layout,
                    adapter: None,
                },
                Part {
                    layout: &layout,
                    adapter: Some(&adapter),
                },
            ];
            let many = s.forward_many(&parts, twice).expect("runs");
            let last = s
                .forward_last(&layout, x.clone(), Some(&adapter))
                .expect("runs");
            let all = s
                .forward_train(&layout, x.clone(), &adapter)
                .expect("runs")
                .0;
            let few = s
                .part(1..2)
                .forward(&layout, x.clone(), Some(&adapter))
                .expect("runs");
            [many, last, all, few]
        };
        let ours = run(&load(&Engine::cpu()));
        for engine in others() {
            let theirs = run(&load(&engine));
            for (form, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                near(&format!("{}: form {form}", engine.kind()), theirs, ours);
            }
        }
    }
}

#[test]
fn generation_agrees() {
    let source = RandomWeights::new(ModelConfig::tiny(), 9);
    let spec = SplitSpec { k_in: 1, k_out: 1 };
    let generate = |on: &Engine| {
        let device = DeviceModel::load_on(on, &source, spec, Compute::F32).expect("loads");
        let middle = DeviceModel::load_middle_on(on, &source, spec, Compute::F32).expect("loads");
        let generator = Generator::new(device, middle, Compute::F32).expect("loads");
        generator
            .generate(&[5, 9, 2], 8, None, None)
            .expect("generates")
    };
    let ours = generate(&Engine::cpu());
    for engine in others() {
        assert_eq!(generate(&engine), ours, "{}", engine.kind());
    }
}

#[test]
fn devices_are_named_and_refused() {
    assert_eq!(Engine::named("cpu").expect("always there"), Engine::cpu());
    for (name, part) in [
        ("gpu", "expected cpu"),
        ("cpu:1", "expected cpu"),
        ("candle-cpu:2", "expected cpu"),
        ("wgpu:x", "no device number"),
        ("wgpu:99", "engine \"wgpu:99\""),
        ("cuda:x", "no device number"),
        ("cuda:99", "engine \"cuda:99\""),
    ] {
        let e = Engine::named(name).expect_err(name).to_string();
        assert!(e.contains(part), "{e}");
    }
    let source = RandomWeights::new(ModelConfig::tiny(), 9);
    for engine in others() {
        assert_ne!(engine, Engine::cpu());
        let e = Segment::load_on(&engine, &source, 0..1, Compute::Bf16)
            .expect_err("f32 only")
            .to_string();
        assert!(e.contains("set compute"), "{e}");
    }
}
