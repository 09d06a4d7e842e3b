//! `lethe train-central`: the centralised reference.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use lethe_client::encode::Encoder;
use lethe_learn::metrics::{auc, uauc};
use lethe_learn::seed::Seed;
use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::segment::Segment;
use lethe_model::split::{DeviceModel, SplitSpec};
use lethe_model::train::{Central, CentralRecipe, Packing, Sample, epoch_batches};
use lethe_recsys::data::Dataset;
use lethe_recsys::prompt::Template;
use lethe_recsys::references::{NAMES, References};
use lethe_recsys::samples::{HISTORY, Part, Samples, Split, TaskSample, training_events};

use crate::inputs::Inputs;
use crate::progress::bar;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    inputs: Inputs,
    /// Training samples, chosen by seed from the training part.
    #[arg(long, default_value_t = 1024)]
    samples: usize,
    /// Test samples, chosen by seed from the test part.
    #[arg(long, default_value_t = 1000)]
    test: usize,
    /// Passes over the samples; the test figures are printed after each.
    #[arg(long, default_value_t = 1)]
    epochs: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 5e-4)]
    lr: f32,
    /// Samples per optimiser step.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Split by time: over everybody, or within each user.
    #[arg(long, value_enum, default_value = "global")]
    split: SplitArg,
    /// Seed of the choice of samples, their order and the adapter's initialisation. Results vary by
    /// seed (README): quote several.
    #[arg(long, default_value_t = 2)]
    seed: u64,
    /// Arithmetic of the products with frozen weights.
    #[arg(long, value_enum, default_value = "f32")]
    compute: ComputeArg,
    /// Adapt only this many of the last layers (all when absent).
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    last_layers: Option<u16>,
    /// Skip the untrained model's figures.
    #[arg(long)]
    no_untrained: bool,
    /// Write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Save the adapter as a PEFT folder.
    #[arg(long)]
    save: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum SplitArg {
    /// Chronological over all users.
    Global,
    /// Chronological within each user.
    PerUser,
}

impl From<SplitArg> for Split {
    fn from(a: SplitArg) -> Self {
        match a {
            SplitArg::Global => Self::Global,
            SplitArg::PerUser => Self::PerUser,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum ComputeArg {
    /// f32 throughout.
    F32,
    /// bf16 factors, f32 sums.
    Bf16,
}

impl From<ComputeArg> for Compute {
    fn from(a: ComputeArg) -> Self {
        match a {
            ComputeArg::F32 => Self::F32,
            ComputeArg::Bf16 => Self::Bf16,
        }
    }
}

struct Job {
    data: Dataset,
    encoder: Encoder,
    device: DeviceModel,
    middle: Segment,
    test: Vec<TaskSample>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let out = figures_of(args)?;
    if let Some(path) = &args.json {
        lethe_run::files::write(path, &serde_json::to_vec_pretty(&out)?)
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The run with defaults but for its size: for the demo.
pub(crate) fn reference(
    inputs: &Inputs,
    samples: usize,
    split: SplitArg,
    seed: u64,
) -> anyhow::Result<serde_json::Value> {
    let defaults = CentralRecipe::default();
    figures_of(&Args {
        inputs: inputs.clone(),
        samples,
        test: 300,
        epochs: 1,
        lr: defaults.lr,
        batch: defaults.batch,
        split,
        seed,
        last_layers: None,
        no_untrained: true,
        compute: ComputeArg::F32,
        json: None,
        save: None,
    })
}

fn figures_of(args: &Args) -> anyhow::Result<serde_json::Value> {
    let seed = Seed::from_u64(args.seed);
    let split = Split::from(args.split);
    let (source, data) = args.inputs.open()?;
    let samples = Samples::build(&data, split);
    let test = samples.choose(Part::Test, args.test, &seed.derive("test", &[]));
    let chosen = samples.choose(Part::Train, args.samples, &seed.derive("train", &[]));
    check_samples(args, &data, &chosen, &test)?;
    let encoder =
        Encoder::new(source.tokenizer()?, Template::movie())?.within(source.config().max_positions);
    let spec = SplitSpec {
        k_in: 0,
        k_out: source.config().layers,
    };
    let (device, segment) = (
        DeviceModel::load(source.as_ref(), spec, args.compute.into())?,
        DeviceModel::load_middle(source.as_ref(), spec, args.compute.into())?,
    );
    say(&format!(
        "weights: {:.0} MiB",
        (device.weight_bytes() + segment.weight_bytes()) as f64 / 1048576.0
    ));
    let recipe = LoraRecipe {
        last_layers: args.last_layers.map(usize::from),
        ..LoraRecipe::default()
    };
    let shape = AdapterShape::new(source.config(), &recipe, |_| true);
    let adapter = Adapter::init(&shape, &seed.derive("adapter", &[]));
    let job = Job {
        data,
        encoder,
        device,
        middle: segment,
        test,
    };
    let train = encode(&job, &chosen)?;
    let tokens: usize = train.iter().map(|s| s.ids.len()).sum();
    say(&format!(
        "{} training samples, {:.0} tokens on average",
        train.len(),
        tokens as f64 / train.len() as f64
    ));

    let mut out =
        serde_json::json!({ "seed": args.seed, "samples": train.len(), "test": job.test.len() });
    out["data"] = serde_json::to_value(&job.data.readings)?;
    out["references"] = references(&job, &seed, split)?;
    if !args.no_untrained {
        out["untrained"] = evaluate(&job, "untrained", None)?;
    }
    let recipe_central = CentralRecipe {
        lr: args.lr,
        batch: args.batch,
        epochs: args.epochs,
        ..Default::default()
    };
    let steps = train.len().div_ceil(args.batch) * args.epochs;
    let progress = bar(steps, "training");
    let started = Instant::now();
    let mut window = vec![];
    let middle = job.middle.clone();
    let mut central = Central::new(
        &job.device,
        middle,
        adapter,
        job.encoder.answers,
        recipe_central,
        steps,
    );
    let batches =
        (0..args.epochs).flat_map(|epoch| epoch_batches(&train, args.batch, epoch, &seed));
    for (i, batch) in (1..).zip(batches) {
        let loss: f64 = central.step(&batch)?;
        window.push(loss);
        progress.inc(1);
        progress.set_message(format!("loss {loss:.3}"));
        if i % 16 == 0 || i == steps {
            say(&format!(
                "step {i} of {steps}, mean loss {:.4}",
                window.iter().sum::<f64>() / window.len() as f64
            ));
            window.clear();
        }
    }
    let trained = central.adapter()?;
    progress.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    let per_sample = seconds / (train.len() * args.epochs) as f64;
    say(&format!(
        "trained in {seconds:.0} s, {per_sample:.3} s a sample"
    ));
    out["trained"] = evaluate(&job, "trained", Some(&trained))?;
    out["seconds"] = seconds.into();
    out["seconds_per_sample"] = per_sample.into();
    if let Some(folder) = &args.save {
        // Two files, which belong together.
        let _unbroken = lethe_run::files::unbroken();
        lethe_model::peft::save(folder, &trained, &recipe, &args.inputs.base()?)?;
    }
    Ok(out)
}

/// Refuses a run that would train or measure nothing, before anything is loaded: it would end with
/// an untrained adapter and figures that are no numbers.
fn check_samples(
    args: &Args,
    data: &Dataset,
    train: &[TaskSample],
    test: &[TaskSample],
) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.samples > 0 && args.epochs > 0 && args.batch > 0,
        "--samples, --epochs and --batch must be at least 1: nothing would be trained"
    );
    for (what, found) in [("training", train.len()), ("test", test.len())] {
        if found > 0 {
            continue;
        }
        let mut events = vec![0usize; data.users.len()];
        data.events
            .iter()
            .for_each(|e| events[e.user as usize] += 1);
        let most = events.iter().max().copied().unwrap_or(0);
        let enough = events.iter().filter(|n| **n > HISTORY).count();
        anyhow::bail!(
            "there is no {what} sample: a person needs more than {HISTORY} events for one (the \
             first {HISTORY} are the history of the next), and some of each part; {enough} of {} \
             people have that many, the most that anybody has is {most}",
            data.users.len()
        );
    }
    Ok(())
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn encode(job: &Job, chosen: &[TaskSample]) -> anyhow::Result<Vec<Sample>> {
    chosen
        .iter()
        .map(|s| Ok(job.encoder.sample(&s.prompt(&job.data), s.label)?))
        .collect()
}

fn references(job: &Job, seed: &Seed, split: Split) -> anyhow::Result<serde_json::Value> {
    let events = training_events(&job.data, split);
    let models = References::fit(&events, job.data.users.len(), job.data.items.len(), seed);
    let rows: Vec<[f32; 4]> = job.test.iter().map(|s| models.scores(s)).collect();
    let mut out = serde_json::Map::new();
    for (k, name) in NAMES.iter().enumerate() {
        let scores: Vec<f32> = rows.iter().map(|r| r[k]).collect();
        out.insert(
            (*name).into(),
            figures(job, &format!("{name} ({} events)", events.len()), &scores),
        );
    }
    Ok(out.into())
}

fn figures(job: &Job, name: &str, scores: &[f32]) -> serde_json::Value {
    let labels: Vec<bool> = job.test.iter().map(|s| s.label).collect();
    let users: Vec<u32> = job.test.iter().map(|s| s.user).collect();
    let (a, u) = (auc(scores, &labels), uauc(&users, scores, &labels));
    let show = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.4}"));
    say(&format!("{name:<32} AUC {}  UAUC {}", show(a), show(u)));
    serde_json::json!({ "auc": a, "uauc": u })
}

fn evaluate(job: &Job, name: &str, adapter: Option<&Adapter>) -> anyhow::Result<serde_json::Value> {
    let test = encode(job, &job.test)?;
    let progress = bar(test.len(), "scoring");
    let mut scores = Vec::with_capacity(test.len());
    for pack in (Packing { max_tokens: 1600 }).split(&test) {
        let sequences: Vec<Vec<u32>> = pack.iter().map(|s| s.ids.clone()).collect();
        let (layout, ids) = Layout::pack(&sequences);
        let mut middle = job.middle.clone();
        let logits = job.device.score(
            &layout,
            &ids,
            job.encoder.answers,
            adapter,
            &mut (&mut middle, None),
        )?;
        scores.extend(logits.iter().map(|l| l[1] - l[0]));
        progress.inc(pack.len() as u64);
    }
    progress.finish_and_clear();
    Ok(figures(job, name, &scores))
}
