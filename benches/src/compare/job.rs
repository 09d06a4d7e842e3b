//! The job that all sides run: token ids, so that no tokenizer differs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use lethe_client::encode::Encoder;
use lethe_learn::seed::Seed;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::source::open;
use lethe_model::train::{Sample, epoch_batches};
use lethe_recsys::data::{DataSpec, load};
use lethe_recsys::prompt::Template;
use lethe_recsys::samples::{Part, Samples, Split, TaskSample, prompt};
use serde::{Deserialize, Serialize};

/// A prompt and its answer.
#[derive(Serialize, Deserialize)]
pub(crate) struct Labelled {
    pub(crate) ids: Vec<u32>,
    pub(crate) label: bool,
}

/// What is run.
#[derive(Serialize, Deserialize)]
pub(crate) struct Job {
    /// GGUF file.
    pub(crate) model: PathBuf,
    /// Token ids of no and yes.
    pub(crate) answers: [u32; 2],
    /// 8 sequences of 128 tokens without a common prefix.
    pub(crate) step: Vec<Labelled>,
    /// Training batches in order.
    pub(crate) batches: Vec<Vec<Labelled>>,
    /// Test samples.
    pub(crate) test: Vec<Labelled>,
    /// 100 candidates for one person.
    pub(crate) rank: Vec<Vec<u32>>,
    /// A prompt to continue.
    pub(crate) prompt: Vec<u32>,
}

impl Job {
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("job.json");
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

impl Labelled {
    pub(crate) fn sample(&self) -> Sample {
        Sample {
            ids: self.ids.clone(),
            label: self.label,
        }
    }

    fn of(s: &Sample) -> Self {
        Self {
            ids: s.ids.clone(),
            label: s.label,
        }
    }
}

pub(crate) fn export(dir: &Path, samples: usize, test: usize, seed: u64) -> anyhow::Result<()> {
    let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |_| {})?;
    let source = open(&files.model)?;
    let data = load(
        &files.movielens,
        &DataSpec::of_folder(&files.movielens)?,
        false,
    )?;
    let encoder = Encoder::new(source.tokenizer()?, Template::movie())?;
    let seed = Seed::from_u64(seed);
    let all = Samples::build(&data, Split::Global);
    let encode = |chosen: &[TaskSample]| -> anyhow::Result<Vec<Sample>> {
        chosen
            .iter()
            .map(|s| Ok(encoder.sample(&s.prompt(&data), s.label)?))
            .collect()
    };
    let train = encode(&all.choose(Part::Train, samples, &seed.derive("train", &[])))?;
    let tests = all.choose(Part::Test, test, &seed.derive("test", &[]));
    let first = tests.first().context("no test samples")?;
    let mut items: Vec<u32> = (0..data.items.len() as u32).collect();
    seed.derive("candidates", &[]).rng().shuffle(&mut items);
    let history: Vec<(u32, bool)> = first.history.clone();
    let candidates = items
        .iter()
        .filter(|i| history.iter().all(|(h, _)| h != *i))
        .take(100);
    let rank = candidates
        .map(|i| Ok(encoder.ids(&prompt(&data, &history, *i))?))
        .collect::<anyhow::Result<_>>()?;
    let mut rng = seed.derive("step", &[]).rng();
    let vocab = source.config().vocab;
    let random = |i: usize| -> Vec<u32> {
        std::iter::once(1000 + i as u32)
            .chain((1..128).map(|_| rng.below(vocab) as u32))
            .collect()
    };
    let sequences: Vec<Vec<u32>> = (0..8).map(random).collect();
    let step = sequences
        .into_iter()
        .enumerate()
        .map(|(i, ids)| Labelled {
            ids,
            label: i % 2 == 0,
        })
        .collect();
    let batches = epoch_batches(&train, 16, 0, &seed);
    let prompt = train.first().context("no training samples")?.ids.clone();
    let test: Vec<Sample> = encode(&tests)?;
    let job = Job {
        model: files.model.clone(),
        answers: encoder.answers,
        step,
        batches: batches
            .iter()
            .map(|b| b.iter().map(Labelled::of).collect())
            .collect(),
        test: test.iter().map(Labelled::of).collect(),
        rank,
        prompt,
    };
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("job.json"), serde_json::to_vec(&job)?)?;
    let recipe = LoraRecipe::default();
    let adapter = Adapter::init(
        &AdapterShape::new(source.config(), &recipe, |_| true),
        &seed.derive("adapter", &[]),
    );
    Ok(lethe_model::lora_io::save_peft(
        &dir.join("adapter"),
        &adapter,
        &recipe,
        "SmolLM2-135M-Instruct",
    )?)
}
