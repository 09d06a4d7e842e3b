//! One LoRA training step of the real model, unsplit: seconds, minimum, median and maximum over repeats.

use std::io::Write;
use std::time::Instant;

use clap::Parser;
use lethe_learn::seed::Seed;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::source::open;
use lethe_model::split::{DeviceModel, LocalMiddle, SplitSpec};
use lethe_model::train::{Packing, Sample, accumulate};

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
    /// bf16 products.
    #[arg(long)]
    bf16: bool,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |_| {})?;
    let source = open(&files.model)?;
    let compute = if cli.bf16 { Compute::Bf16 } else { Compute::F32 };
    let spec = SplitSpec { k_in: 0, k_out: source.config().layers };
    let device = DeviceModel::load(source.as_ref(), spec, compute)?;
    let shape = AdapterShape::new(source.config(), &LoraRecipe::default(), |_| true);
    let adapter = Adapter::init(&shape, &Seed::from_u64(1));
    let mut grads = vec![0.0; adapter.data.len()];
    let mut middle =
        LocalMiddle::new(DeviceModel::load_middle(source.as_ref(), spec, compute)?, adapter.select(|_| false));
    let mut rng = Seed::from_u64(2).rng();
    let mut sample = |i: usize| {
        let mut ids = vec![1000 + i as u32];
        ids.extend((1..cli.tokens).map(|_| rng.below(source.config().vocab) as u32));
        Sample { ids, label: i.is_multiple_of(2) }
    };
    let samples: Vec<Sample> = (0..cli.batch).map(&mut sample).collect();
    let mut seconds = vec![];
    for _ in 0..=cli.repeats {
        let started = Instant::now();
        accumulate(
            &device,
            &samples,
            [2838, 9230],
            Packing { max_tokens: cli.pack },
            &adapter,
            &mut grads,
            &mut middle,
        )?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    let (min, median, max) = (seconds[0], seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
    writeln!(
        std::io::stdout(),
        "{} x {} tokens: min {min:.3} s, median {median:.3} s, max {max:.3} s",
        cli.batch,
        cli.tokens
    )?;
    Ok(())
}
