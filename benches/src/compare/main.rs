//! Our side of `benches/compare`: writes the job that all sides run, and runs one work of it on
//! command.
//!
//! `bench-compare export DIR` writes `job.json` (token ids of everything) and the adapter that both
//! sides start from. `bench-compare worker DIR WORK` loads, says `{"ready": true}`, and then
//! answers every line on standard input with the figures of one run, as JSON. The driver alternates
//! between our worker and the peer's.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use clap::{Parser, Subcommand};
use lethe_model::kernels::panels::Compute;
use serde_json::{Value, json};

mod device;
mod job;
mod model;
mod split;

#[derive(Parser)]
#[command(about = "Our side of benches/compare")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the job.
    Export {
        /// Folder to write.
        dir: PathBuf,
        /// Training samples.
        #[arg(long, default_value_t = 1024)]
        samples: usize,
        /// Test samples.
        #[arg(long, default_value_t = 1000)]
        test: usize,
        /// Seed of samples, order and adapter.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run a work on command.
    Worker {
        /// Folder of the job.
        dir: PathBuf,
        /// `lora_step`, `tallrec_epoch`, `rank100`, `rank100_quant`, `generate64`, `device_side` or
        /// `split_overhead`.
        work: String,
        /// Arithmetic: f32, bf16 or (to generate) int8, where the work leaves the choice.
        #[arg(long, default_value = "f32")]
        compute: String,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Export {
            dir,
            samples,
            test,
            seed,
        } => job::export(&dir, samples, test, seed),
        Command::Worker { dir, work, compute } => {
            let compute = match compute.as_str() {
                "f32" => Compute::F32,
                "bf16" => Compute::Bf16,
                "int8" => Compute::Int8,
                other => bail!("arithmetic {other:?}: f32, bf16 or int8"),
            };
            let job = job::Job::read(&dir)?;
            match work.as_str() {
                "lora_step" => model::lora_step(&job, &dir, compute),
                "tallrec_epoch" => model::epoch(&job, &dir, compute),
                "rank100" => model::rank(&job, Compute::F32),
                "rank100_quant" => model::rank(&job, Compute::Int8),
                "generate64" => model::generate(&job, compute),
                "device_side" => device::measure(&job, compute),
                "split_overhead" => split::measure(compute),
                other => bail!("unknown work {other:?}"),
            }
        }
    }
}

/// Answers commands: `run` is timed.
pub(crate) fn serve(mut run: impl FnMut(&str) -> anyhow::Result<Value>) -> anyhow::Result<()> {
    say(&json!({ "ready": true }))?;
    for line in std::io::stdin().lock().lines() {
        let started = Instant::now();
        let mut answer = run(line?.trim())?;
        if answer["seconds"].is_null() {
            answer["seconds"] = started.elapsed().as_secs_f64().into();
        }
        answer["peak_mib"] = status_mib("VmHWM:").into();
        say(&answer)?;
    }
    Ok(())
}

fn say(value: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// A field of this process's status, in MiB (Linux; 0 elsewhere).
pub(crate) fn status_mib(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or(0.0)
        / 1024.0
}
