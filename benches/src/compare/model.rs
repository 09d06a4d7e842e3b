//! Training steps, ranking and generation on the whole model.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use lethe_model::frozen::Recomputed;
use lethe_model::generate::Generator;
use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::segment::Segment;
use lethe_model::source::open;
use lethe_model::split::{DeviceModel, LocalMiddle, SplitSpec};
use lethe_model::train::{Central, CentralRecipe, Packing, Sample, Trainer};
use serde_json::json;

use crate::job::Job;
use crate::serve;

/// All layers in one piece, which ends with the answer.
const UNSPLIT: SplitSpec = SplitSpec {
    k_in: 0,
    k_out: LAYERS,
};
const LAYERS: usize = 30;

struct Whole {
    device: DeviceModel,
    middle: Segment,
}

impl Whole {
    fn load(job: &Job, compute: Compute) -> anyhow::Result<Self> {
        let source = open(&job.model)?;
        Ok(Self {
            device: DeviceModel::load(source.as_ref(), UNSPLIT, compute)?,
            middle: DeviceModel::load_middle(source.as_ref(), UNSPLIT, compute)?,
        })
    }

    /// `yes - no` for packs that share their prefix.
    fn scores(
        &self,
        job: &Job,
        pack: &[Vec<u32>],
        adapter: Option<&Adapter>,
    ) -> anyhow::Result<Vec<f32>> {
        let (layout, ids) = Layout::pack(pack);
        let mut middle = self.middle.clone();
        let logits = self.device.score(
            &layout,
            &ids,
            job.answers,
            adapter,
            &mut (&mut middle, None),
        )?;
        Ok(logits.iter().map(|l| l[1] - l[0]).collect())
    }
}

/// The adapter that both sides start from.
fn start(dir: &Path, shape: &Arc<AdapterShape>) -> anyhow::Result<Adapter> {
    let bytes = std::fs::read(dir.join("adapter/adapter_model.safetensors"))?;
    Ok(lethe_model::lora_io::from_bytes(&bytes, shape)?)
}

/// One forward and backward pass over 8 x 128 tokens.
pub(crate) fn lora_step(job: &Job, dir: &Path, compute: Compute) -> anyhow::Result<()> {
    let whole = Whole::load(job, compute)?;
    let shape = AdapterShape::new(whole.device.config(), &LoraRecipe::default(), |_| true);
    let adapter = start(dir, &shape)?;
    let mut grads = vec![0.0; adapter.data.len()];
    let mut middle = LocalMiddle::new(whole.middle, adapter.select(|_| false));
    let samples: Vec<Sample> = job.step.iter().map(crate::job::Labelled::sample).collect();
    let packing = Packing { max_tokens: 1024 };
    let trainer = Trainer {
        device: &whole.device,
        answers: job.answers,
        packing,
        frozen: &Recomputed,
    };
    serve(|_| {
        let loss = trainer.accumulate(&samples, &adapter, &mut grads, &mut middle)?;
        let norm = grads
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        grads.fill(0.0);
        Ok(json!({ "loss": loss.sum / loss.samples as f64, "gradient_norm": norm }))
    })
}

/// `step`: the next optimiser step of the epoch; `score`: the test samples with what was learned so
/// far.
pub(crate) fn epoch(job: &Job, dir: &Path, compute: Compute) -> anyhow::Result<()> {
    let whole = Whole::load(job, compute)?;
    let shape = AdapterShape::new(whole.device.config(), &LoraRecipe::default(), |_| true);
    let adapter = start(dir, &shape)?;
    let recipe = CentralRecipe {
        packing: Packing { max_tokens: 1600 },
        ..CentralRecipe::default()
    };
    let total = job.batches.len();
    let mut central = Central::new(
        &whole.device,
        whole.middle.clone(),
        adapter,
        job.answers,
        recipe,
        total,
    );
    let mut batches = job.batches.iter();
    serve(|command| {
        if command == "score" {
            let adapter = central.adapter()?;
            let mut scores = vec![];
            for pack in job.test.chunks(8) {
                let ids: Vec<Vec<u32>> = pack.iter().map(|s| s.ids.clone()).collect();
                scores.extend(whole.scores(job, &ids, Some(&adapter))?);
            }
            return Ok(json!({ "scores": scores }));
        }
        let batch: Vec<Sample> = batches
            .next()
            .context("the epoch is over")?
            .iter()
            .map(|s| s.sample())
            .collect();
        Ok(json!({ "loss": central.step(&batch)? }))
    })
}

/// Scores 100 candidates for one person: everything but the title is computed once.
pub(crate) fn rank(job: &Job, compute: Compute) -> anyhow::Result<()> {
    let whole = Whole::load(job, compute)?;
    serve(|_| Ok(json!({ "scores": whole.scores(job, &job.rank, None)? })))
}

/// 64 tokens after a prompt.
pub(crate) fn generate(job: &Job, compute: Compute) -> anyhow::Result<()> {
    let whole = Whole::load(job, compute)?;
    let generator = Generator::new(whole.device, whole.middle, compute)?;
    serve(|_| {
        let tokens = generator.generate(&job.prompt, 64, None, None)?;
        Ok(json!({ "tokens": tokens }))
    })
}
