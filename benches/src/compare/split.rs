//! A training step over QUIC against the same step in one process.

use std::sync::Arc;
use std::time::Instant;

use lethe_benches::Federation;
use lethe_client::Done;
use lethe_client::encode::Encoder;
use lethe_learn::seed::Seed;
use lethe_model::frozen::Recomputed;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_model::split::{DeviceModel, LocalMiddle, SplitSpec, descend};
use lethe_model::train::{Sample, Trainer};
use lethe_recsys::prompt::Template;
use lethe_recsys::samples::prompt;
use serde_json::json;

use crate::serve;

/// Samples of a step: events after the first ten, each with the ten before it.
const SAMPLES: usize = 16;
const HISTORY: usize = 10;

/// `unsplit` runs the step in this process, `split` has the client do it with a coordinator over
/// loopback.
pub(crate) fn measure(compute: Compute) -> anyhow::Result<()> {
    let runtime = Arc::new(
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?,
    );
    let name = if compute == Compute::Bf16 {
        "bf16"
    } else {
        "f32"
    };
    let keys = format!(
        "shards = 1\nanchors = 1\nslices = 1\nrounds = 1000\ncohort = 1\ncompute = \"{name}\"\n\
         [local]\nsamples = {SAMPLES}\nbatch = {SAMPLES}\n"
    );
    let federation = runtime.block_on(Federation::start(&keys, 1))?;
    let events = federation.events(0, HISTORY + SAMPLES);
    let client = runtime.block_on(federation.client(0, &events, events.len()))?;
    let (recipe, data) = (&federation.recipe, &federation.data);

    let source = lethe_benches::model()?;
    let encoder = Encoder::new(source.tokenizer()?, Template::movie())?;
    let whole = SplitSpec {
        k_in: 0,
        k_out: source.config().layers,
    };
    let device = DeviceModel::load(source.as_ref(), whole, compute)?;
    let shape = AdapterShape::new(source.config(), &recipe.lora, |_| true);
    let mut adapter = Adapter::init(&shape, &Seed::from_u64(1));
    let mut grads = vec![0.0; adapter.data.len()];
    let segment = DeviceModel::load_middle(source.as_ref(), whole, compute)?;
    let mut middle = LocalMiddle::new(segment, adapter.select(|_| false));
    let sample = |i: usize| -> anyhow::Result<Sample> {
        let history: Vec<(u32, bool)> = events[i - HISTORY..i]
            .iter()
            .map(|e| (e.item, e.liked))
            .collect();
        Ok(encoder.sample(&prompt(data, &history, events[i].item), events[i].liked)?)
    };
    let samples: Vec<Sample> = (HISTORY..events.len())
        .map(sample)
        .collect::<anyhow::Result<_>>()?;

    let (answers, packing) = (encoder.answers, recipe.packing);
    let trainer = Trainer {
        device: &device,
        answers,
        packing,
        frozen: &Recomputed,
    };
    serve(|command| {
        let started = Instant::now();
        if command == "split" {
            let done = runtime.block_on(client.step())?;
            anyhow::ensure!(done == Done::Trained, "the coordinator asked for {done:?}");
        } else {
            trainer.accumulate(&samples, &adapter, &mut grads, &mut middle)?;
            descend(&mut adapter.data, &mut grads, recipe.local.lr);
        }
        Ok(json!({ "seconds": started.elapsed().as_secs_f64() }))
    })
}
