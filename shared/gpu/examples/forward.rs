//! Times 128 tokens through 30 layers of SmolLM2-135M's shape with random weights: a forward, and a
//! training step (forward and backward of rank 8 on query and value).
//!
//! `cargo run --release -p lethe-gpu --example forward -- [adapter] [repetitions] [layers]`
#![allow(clippy::print_stdout, reason = "an example's output")]

use std::borrow::Cow;
use std::time::Instant;

use lethe_gpu::{
    Format, Gpu, GpuError, LayerWeights, Layers, Lora, Matrix, Pair, PairGrad, Projection, Rows,
    Run, Shape,
};

const TOKENS: usize = 128;
const RANK: usize = 8;
const SHAPE: Shape = Shape {
    hidden: 576,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    intermediate: 1536,
    rms_eps: 1e-5,
};

/// Numbers without a pattern, in -size..size.
fn random(len: usize, size: f32) -> Vec<f32> {
    let mut state = 0x9E37_79B9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 * 2.0 - 1.0) * size
    };
    (0..len).map(|_| next()).collect()
}

/// A matrix of Q8_0 blocks.
fn matrix(rows: usize, cols: usize) -> Matrix<'static> {
    let mut bytes = Vec::with_capacity(rows * cols / 32 * 34);
    for block in random(rows * cols, 127.0).chunks_exact(32) {
        // The half-precision scale 2^-11.
        bytes.extend(0x1000_u16.to_le_bytes());
        bytes.extend(block.iter().map(|v| *v as i8 as u8));
    }
    Matrix {
        rows,
        cols,
        format: Format::Q8_0,
        bytes: Cow::Owned(bytes),
    }
}

/// Median of the times of `run`, in ms; the first, which compiles, does not count.
fn median(
    repetitions: usize,
    mut run: impl FnMut() -> Result<(), GpuError>,
) -> Result<f64, GpuError> {
    run()?;
    let mut times = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[repetitions / 2])
}

fn load(gpu: std::sync::Arc<Gpu>, count: usize) -> Result<Layers, GpuError> {
    let gain = vec![1.0; SHAPE.hidden];
    let (d, ff) = (SHAPE.hidden, SHAPE.intermediate);
    let kv = SHAPE.kv_heads * SHAPE.head_dim;
    let layer = LayerWeights {
        attn_norm: &gain,
        q: matrix(d, d),
        k: matrix(kv, d),
        v: matrix(kv, d),
        qkv_bias: None,
        out: matrix(d, d),
        mlp_norm: &gain,
        gate: matrix(ff, d),
        up: matrix(ff, d),
        down: matrix(d, ff),
    };
    Layers::load(gpu, SHAPE, &vec![layer; count])
}

fn main() -> Result<(), GpuError> {
    let number = |i: usize| std::env::args().nth(i).and_then(|a| a.parse().ok());
    let gpu = Gpu::open(number(1))?;
    let repetitions = number(2).unwrap_or(5).max(1);
    let count = number(3).unwrap_or(30);
    println!("{}", gpu.kind());
    let layers = load(gpu, count)?;
    println!(
        "{} layers, {:.1} MB",
        layers.len(),
        layers.bytes() as f64 / 1e6
    );
    let (d, half) = (SHAPE.hidden, SHAPE.head_dim / 2);
    let angle = |i: usize| {
        let power = -((i % half) as f32) / half as f32;
        (i / half) as f32 * 10_000_f32.powf(power)
    };
    let cos: Vec<f32> = (0..TOKENS * half).map(|i| angle(i).cos()).collect();
    let sin: Vec<f32> = (0..TOKENS * half).map(|i| angle(i).sin()).collect();
    let rows = Rows {
        runs: &[Run {
            start: 0,
            len: TOKENS,
            context: 0,
        }],
        cos: &cos,
        sin: &sin,
    };
    let x = random(TOKENS * d, 1.0);
    let forward = median(repetitions, || {
        layers.forward(&rows, None, &x, None).map(drop)
    })?;
    println!("forward of {TOKENS} tokens: {forward:.1} ms");
    let a = random(RANK * d, 0.04);
    let b = random(d * RANK, 0.04);
    let kv = SHAPE.kv_heads * SHAPE.head_dim;
    let pair = |i: usize| Pair {
        layer: i / 2,
        projection: [Projection::Q, Projection::V][i % 2],
        a: &a,
        b: &b[..[d, kv][i % 2] * RANK],
    };
    let pairs: Vec<Pair<'_>> = (0..2 * count).map(pair).collect();
    let lora = Lora {
        rank: RANK,
        scale: 2.0,
        pairs: &pairs,
    };
    let mut data: Vec<[Vec<f32>; 2]> = pairs
        .iter()
        .map(|p| [vec![0.0; p.a.len()], vec![0.0; p.b.len()]])
        .collect();
    let step = median(repetitions, || {
        let (y, tape) = layers.forward_train(&rows, Some(&lora), &x, true)?;
        let mut grads: Vec<_> = data.iter_mut().map(|[a, b]| PairGrad { a, b }).collect();
        layers.backward(&tape, &y, &mut grads).map(drop)
    })?;
    println!("training step of {TOKENS} tokens: {step:.1} ms");
    Ok(())
}
