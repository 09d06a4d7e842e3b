//! Products with frozen weights alone: GFLOP/s of a layer's four shapes, forward and backward, on
//! one and on all threads.

use std::io::Write;
use std::time::Instant;

use clap::Parser;
use lethe_learn::seed::Seed;
use lethe_model::kernels::linear::Linear;
use lethe_model::kernels::panels::Compute;

/// Measures the products of SmolLM2-135M's layers.
#[derive(Parser)]
struct Cli {
    /// Rows (tokens).
    #[arg(long, default_value_t = 1024)]
    rows: usize,
    /// Timed repeats of each; the best counts.
    #[arg(long, default_value_t = 7)]
    repeats: usize,
}

/// Weights of the form `d * q + m` with `q` of four bits, per block of 32.
fn four_bits(w: &[f32]) -> Vec<f32> {
    let block = |b: &[f32]| -> Vec<f32> {
        b.iter()
            .map(|v| (v * 3.0).round().clamp(-7.0, 8.0) * 0.25)
            .collect()
    };
    w.chunks(32).flat_map(block).collect()
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut out = std::io::stdout();
    for threads in [1, rayon::current_num_threads()] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        for (name, n, k) in [
            ("qkv", 960, 576),
            ("out", 576, 576),
            ("gate_up", 3072, 576),
            ("down", 576, 1536),
        ] {
            let mut rng = Seed::from_u64(1).rng();
            let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal()).collect() };
            let (w, x, dy) = (random(n * k), random(cli.rows * k), random(cli.rows * n));
            let (mut y, mut dx) = (vec![0.0; cli.rows * n], vec![0.0; cli.rows * k]);
            let work = 2.0 * (cli.rows * n * k) as f64 / 1e9;
            let best = |f: &mut (dyn FnMut() + Send)| {
                let once = |f: &mut (dyn FnMut() + Send)| {
                    let started = Instant::now();
                    pool.install(&mut *f);
                    started.elapsed().as_secs_f64()
                };
                once(f);
                work / (0..cli.repeats)
                    .map(|_| once(f))
                    .fold(f64::INFINITY, f64::min)
            };
            let mut row = format!("{threads} threads  {name:<8}");
            let forms = [
                ("portable", Linear::portable(w.clone(), n, k, Compute::F32)),
                ("f32", Linear::new(w.clone(), n, k, Compute::F32)),
                ("bf16", Linear::new(w.clone(), n, k, Compute::Bf16)),
                (
                    "int8 (8-bit weights)",
                    Linear::new(w.clone(), n, k, Compute::Int8),
                ),
                (
                    "int8 (4-bit weights)",
                    Linear::new(four_bits(&w), n, k, Compute::Int8),
                ),
            ];
            for (form, linear) in &forms {
                let forward = best(&mut || linear.forward(&x, cli.rows, &mut y, false));
                row += &format!("  {form} {forward:.0}");
                if !form.starts_with("int8") {
                    let backward = best(&mut || linear.backward(&dy, cli.rows, &mut dx, false));
                    row += &format!("/{backward:.0}");
                }
            }
            writeln!(out, "{row}  GFLOP/s forward/backward")?;
        }
    }
    Ok(())
}
