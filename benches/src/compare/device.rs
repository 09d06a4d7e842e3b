//! What a device holds: time to load its layers, and memory after loading, after scoring, and after
//! a training pass.

use std::time::Instant;

use lethe_learn::seed::Seed;
use lethe_model::ModelError;
use lethe_model::engine::Engine;
use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::source::open;
use lethe_model::split::{Batch, DeviceModel, Labels, Middle, SplitSpec, Stage};
use serde_json::json;

use crate::job::Job;
use crate::{serve, status_mib};

/// A coordinator far away: what it would answer does not matter for the device's memory.
struct Elsewhere;

impl Middle for Elsewhere {
    fn forward(&mut self, _: &Layout, hidden: Vec<f32>, _: Stage) -> Result<Vec<f32>, ModelError> {
        Ok(hidden)
    }
    fn backward(&mut self, grad: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(grad)
    }
}

pub(crate) fn measure(job: &Job, compute: Compute) -> anyhow::Result<()> {
    let before = status_mib("VmRSS:");
    let started = Instant::now();
    let source = open(&job.model)?;
    let spec = SplitSpec { k_in: 4, k_out: 1 };
    let device = DeviceModel::load_on(&Engine::of_app()?, source.as_ref(), spec, compute)?;
    let load_s = started.elapsed().as_secs_f64();
    drop(source);
    let loaded = status_mib("VmRSS:");
    let layers = device.config().layers;
    let shape = AdapterShape::new(device.config(), &LoraRecipe::default(), |l| {
        spec.on_device(l, layers)
    });
    let adapter = Adapter::init(&shape, &Seed::from_u64(1));
    let mut grads = vec![0.0; adapter.data.len()];
    serve(|_| {
        let sample = &job.batches[0][0];
        let (layout, ids) = Layout::pack(std::slice::from_ref(&sample.ids));
        device.score(&layout, &ids, job.answers, Some(&adapter), &mut Elsewhere)?;
        let scored = status_mib("VmRSS:");
        let labels = [sample.label];
        let batch = Batch {
            layout: &layout,
            ids: &ids,
            labels: Labels::Hard(&labels),
            answers: job.answers,
            scale: 1.0,
        };
        device.train_batch(&batch, &adapter, &mut grads, &mut Elsewhere)?;
        Ok(json!({
            "load_s": load_s, "process_mib": before, "loaded_mib": loaded, "scored_mib": scored,
            "trained_mib": status_mib("VmRSS:"),
            "weights_mib": device.weight_bytes() as f64 / 1048576.0,
        }))
    })
}
