//! One LoRA training step of the real model, unsplit: seconds, minimum, median and maximum over
//! repeats.

use std::io::Write;
use std::time::Instant;

use clap::Parser;
use lethe_learn::seed::Seed;
use lethe_model::frozen::Recomputed;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::split::{DeviceModel, LocalMiddle, SplitSpec};
use lethe_model::train::{Packing, Sample, Trainer};

/// Times one LoRA step (q and v, rank 8, loss at the last token) on SmolLM2-135M.
#[derive(Parser)]
struct Cli {
    /// Sequences per step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens per sequence; sequences share no prefix.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Most tokens in one forward pass.
    #[arg(long, default_value_t = 1024)]
    pack: usize,
    /// Timed repeats, after one that is not.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Layers with an adapter: the last ones.
    #[arg(long, default_value_t = 30)]
    layers: usize,
    /// Threads of the pool (all cores when absent).
    #[arg(long)]
    threads: Option<usize>,
    /// Print one line of CSV: batch, tokens, rank, layers, threads, arithmetic, minimum, median,
    /// maximum seconds, peak MiB.
    #[arg(long)]
    csv: bool,
    /// bf16 products.
    #[arg(long)]
    bf16: bool,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(n) = cli.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build_global()?;
    }
    let source = lethe_benches::model()?;
    let compute = if cli.bf16 {
        Compute::Bf16
    } else {
        Compute::F32
    };
    let spec = SplitSpec {
        k_in: 0,
        k_out: source.config().layers,
    };
    let device = DeviceModel::load(source.as_ref(), spec, compute)?;
    let recipe = LoraRecipe {
        rank: cli.rank,
        last_layers: Some(cli.layers),
        ..LoraRecipe::default()
    };
    let shape = AdapterShape::new(source.config(), &recipe, |_| true);
    let adapter = Adapter::init(&shape, &Seed::from_u64(1));
    let mut grads = vec![0.0; adapter.data.len()];
    let mut middle = LocalMiddle::new(
        DeviceModel::load_middle(source.as_ref(), spec, compute)?,
        adapter.select(|_| false),
    );
    let mut rng = Seed::from_u64(2).rng();
    let mut sample = |i: usize| {
        let mut ids = vec![1000 + i as u32];
        ids.extend((1..cli.tokens).map(|_| rng.below(source.config().vocab) as u32));
        Sample {
            ids,
            label: i.is_multiple_of(2),
        }
    };
    let samples: Vec<Sample> = (0..cli.batch).map(&mut sample).collect();
    let packing = Packing {
        max_tokens: cli.pack,
    };
    let trainer = Trainer {
        device: &device,
        answers: [2838, 9230],
        packing,
        frozen: &Recomputed,
    };
    let mut seconds = vec![];
    for _ in 0..=cli.repeats {
        let started = Instant::now();
        trainer.accumulate(&samples, &adapter, &mut grads, &mut middle)?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    let (min, median, max) = (
        seconds[0],
        seconds[seconds.len() / 2],
        seconds[seconds.len() - 1],
    );
    let mut out = std::io::stdout();
    let arithmetic = if cli.bf16 { "bf16" } else { "f32" };
    let (batch, tokens, threads) = (cli.batch, cli.tokens, rayon::current_num_threads());
    if cli.csv {
        let (rank, layers) = (cli.rank, cli.layers);
        writeln!(
            out,
            "{batch},{tokens},{rank},{layers},{threads},{arithmetic},{min:.3},{median:.3},{max:.3},\
             {:.0}",
            peak_mib()
        )?;
    } else {
        writeln!(
            out,
            "{batch} x {tokens} tokens, {arithmetic}: min {min:.3} s, median {median:.3} s, max \
             {max:.3} s, peak {:.0} MiB",
            peak_mib()
        )?;
    }
    Ok(())
}

/// Peak memory of this process (Linux; 0 elsewhere).
fn peak_mib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or(0.0)
        / 1024.0
}
