//! What the base model learns from made-up people before anybody's data: the same for every method,
//! and out of reach of every deletion.

use std::path::Path;

use anyhow::{Context, ensure};
use lethe_client::encode::Encoder;
use lethe_learn::seed::Seed;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe, Projection};
use lethe_model::source::{WeightSource, open};
use lethe_model::split::{DeviceModel, SplitSpec};
use lethe_model::train::{Central, CentralRecipe, Sample, epoch_batches};
use lethe_proto::ids::Digest;
use lethe_recsys::data::Dataset;
use lethe_recsys::prompt::Template;
use lethe_recsys::synthetic::people;

use super::eprint_line;

/// One seed for all experiments: the base model is public, and part of none of them.
const SEED: u64 = 1;
const RANK: usize = 16;
const LR: f32 = 5e-4;
const BATCH: usize = 8;

/// The adapter that `n` made-up people give: LoRA on all projections of all layers, one pass,
/// AdamW. Kept in `folder`.
pub(super) fn adapter(
    model: &Path,
    data: &Dataset,
    template: Template,
    n: usize,
    compute: Compute,
    folder: &Path,
) -> anyhow::Result<Adapter> {
    let source = open(model)?;
    let recipe = LoraRecipe {
        rank: RANK,
        alpha: 2.0 * RANK as f32,
        targets: Projection::ALL.to_vec(),
        ..LoraRecipe::default()
    };
    let shape = AdapterShape::new(source.config(), &recipe, |_| true);
    let seed = Seed::from_u64(SEED).derive("prior", &[]);
    let encoder = Encoder::new(source.tokenizer()?, template)?;
    let made_up = people(&data.items, n, &seed);
    let samples: Vec<Sample> = made_up
        .iter()
        .map(|s| Ok(encoder.sample(&s.prompt(data), s.label)?))
        .collect::<anyhow::Result<_>>()?;
    let path = folder.join(format!("{}.prior", &name(model, &samples, compute)?[..32]));
    if let Ok(bytes) = std::fs::read(&path) {
        let values: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
            .collect();
        ensure!(
            values.len() == shape.len(),
            "{} holds {} values, expected {}: remove it",
            path.display(),
            values.len(),
            shape.len()
        );
        return Ok(Adapter::from_data(&shape, values)?);
    }
    eprint_line(&format!(
        "{n} made-up people teach the base: {}",
        path.display()
    ));
    let trained = train(
        source.as_ref(),
        compute,
        encoder.answers,
        Adapter::init(&shape, &seed),
        &samples,
        &seed,
    )?;
    let bytes: Vec<u8> = trained.data.iter().flat_map(|v| v.to_le_bytes()).collect();
    let next = path.with_extension(format!("next-{}", std::process::id()));
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&next, bytes))
        .and_then(|()| std::fs::rename(&next, &path))
        .with_context(|| path.display().to_string())?;
    Ok(trained)
}

fn name(model: &Path, samples: &[Sample], compute: Compute) -> anyhow::Result<String> {
    let size = std::fs::metadata(model)
        .with_context(|| model.display().to_string())?
        .len()
        .to_le_bytes();
    let mut what = format!(
        "{} {compute:?} {SEED} {RANK} {LR} {BATCH}",
        lethe_model::engine::kind_from_env()
    )
    .into_bytes();
    for s in samples {
        what.extend(s.ids.iter().flat_map(|t| t.to_le_bytes()));
        what.push(u8::from(s.label));
    }
    Ok(Digest::of(&[&size, &what]).hex())
}

fn train(
    source: &dyn WeightSource,
    compute: Compute,
    answers: [u32; 2],
    start: Adapter,
    samples: &[Sample],
    seed: &Seed,
) -> anyhow::Result<Adapter> {
    let whole = SplitSpec {
        k_in: 0,
        k_out: source.config().layers,
    };
    let device = DeviceModel::load(source, whole, compute)?;
    let middle = DeviceModel::load_middle(source, whole, compute)?;
    let recipe = CentralRecipe {
        batch: BATCH,
        lr: LR,
        ..CentralRecipe::default()
    };
    let steps = samples.len().div_ceil(recipe.batch);
    let mut central = Central::new(&device, middle, start, answers, recipe, steps);
    let mut recent = vec![];
    for (i, batch) in (1..).zip(epoch_batches(samples, recipe.batch, 0, seed)) {
        recent.push(central.step(&batch)?);
        if i % 16 == 0 || i == steps {
            let loss = recent.iter().sum::<f64>() / recent.len() as f64;
            eprint_line(&format!(
                "made-up people: step {i} of {steps}, mean loss {loss:.3}"
            ));
            recent.clear();
        }
    }
    Ok(central.adapter()?)
}
