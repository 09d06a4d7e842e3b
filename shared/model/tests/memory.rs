//! What a training pass is said to need is what it needs. Large buffers have pages of their own,
//! which no allocator counts: the system does, on Linux.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_model::config::ModelConfig;
use lethe_model::frozen::Recomputed;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::source::RandomWeights;
use lethe_model::split::{DeviceModel, LocalMiddle, SplitSpec};
use lethe_model::train::{Packing, Sample, Trainer};

/// A line of this process's status, in bytes: `VmRSS` is in memory now, `VmHWM` was at most.
fn memory(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with(name)).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// The most that was in memory counts anew from here on.
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// One test alone in its program: the system counts for everybody.
#[test]
fn the_estimate_bounds_what_is_allocated() {
    let config = ModelConfig {
        hidden: 192,
        layers: 8,
        heads: 6,
        kv_heads: 2,
        head_dim: 32,
        intermediate: 512,
        vocab: 300,
        max_positions: 512,
        ..ModelConfig::tiny()
    };
    let spec = SplitSpec {
        k_in: 0,
        k_out: config.layers,
    };
    let source = RandomWeights::new(config.clone(), 5);
    let device = DeviceModel::load(&source, spec, Compute::F32).unwrap();
    let middle = DeviceModel::load_middle(&source, spec, Compute::F32).unwrap();
    let samples: Vec<Sample> = (0..3)
        .map(|s| Sample {
            ids: (0..200).map(|i| (i * 7 + s) % 300).collect(),
            label: s == 1,
        })
        .collect();
    // Freed buffers are kept for the next pass: all that was ever taken counts, so the smaller pass
    // goes first.
    let before = memory("VmRSS");
    for last in [Some(3), None] {
        let recipe = LoraRecipe {
            last_layers: last,
            ..LoraRecipe::default()
        };
        let shape = AdapterShape::new(&config, &recipe, |_| true);
        let adapter = Adapter::init(&shape, &lethe_learn::seed::Seed::from_u64(1));
        let mut grads = vec![0.0; shape.len()];
        let trainer = Trainer {
            device: &device,
            answers: [3, 4],
            packing: Packing { max_tokens: 1000 },
            frozen: &Recomputed,
        };
        let mut middle = LocalMiddle::new(middle.clone(), adapter.select(|_| false));
        reset_peak();
        trainer
            .accumulate(&samples, &adapter, &mut grads, &mut middle)
            .unwrap();
        let used = memory("VmHWM") - before;
        let said = device.training_bytes(600, shape.first_trained());
        assert!(
            used <= said && said <= 3 * used,
            "{last:?}: {used} bytes were used, {said} said"
        );
    }
}
