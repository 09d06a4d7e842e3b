//! The passes, on the GPU or, when that failed, on the CPU.

use std::ops::Range;
use std::sync::Arc;

use lethe_gpu::{GpuError, Lora, Pair, PairGrad, Rows, Run};

use super::super::{First, Kept, Part, See};
use super::Device;
use super::host::Host;
use crate::ModelError;
use crate::config::ModelConfig;
use crate::kernels::rope::RopeTable;
use crate::layout::Layout;
use crate::lora::{Adapter, AdapterShape, Entry, Projection};

/// Layers on a GPU, some of those that the host has.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    device: Arc<Device>,
    /// None if there was no room for them.
    gpu: Option<lethe_gpu::Layers>,
    host: Arc<Host>,
    range: Range<usize>,
}

/// What a training forward kept.
#[derive(Debug)]
enum Tape {
    /// With the pass's input, to do it again on the CPU.
    Gpu {
        tape: Box<lethe_gpu::Tape>,
        x: Vec<f32>,
    },
    Cpu(Kept),
}

/// Keys and values so far.
#[derive(Debug)]
struct Cache {
    gpu: lethe_gpu::Cache,
    /// All inputs so far, to compute the keys and values again on the CPU.
    x: Vec<f32>,
    positions: usize,
    cpu: Option<Kept>,
}

impl Layers {
    pub(super) fn load(device: &Arc<Device>, host: Host) -> Result<Self, ModelError> {
        let uploaded = match device.has_failed() {
            true => None,
            false => Some(host.upload(&device.gpu)?),
        };
        if let Some(Err(e @ GpuError::TooLarge { .. })) = &uploaded {
            let what = format!("{e}, or use the engine \"cpu\" (LETHE_DEVICE)");
            return Err(ModelError::Device(what));
        }
        let gpu = match uploaded {
            Some(uploaded) => device.attempt(|| uploaded)?,
            None => None,
        };
        Ok(Self {
            device: device.clone(),
            gpu,
            range: 0..host.len(),
            host: Arc::new(host),
        })
    }

    /// What the GPU computes; nothing if the CPU has to.
    fn on_gpu<T>(
        &self,
        run: impl FnOnce(&lethe_gpu::Layers) -> Result<T, GpuError>,
    ) -> Result<Option<T>, ModelError> {
        match &self.gpu {
            Some(layers) if !layers.is_empty() => self.device.attempt(|| run(layers)),
            _ => Ok(None),
        }
    }

    fn on_cpu(&self) -> Result<Arc<dyn super::super::Layers>, ModelError> {
        self.host.cpu(self.range.clone())
    }

    /// The numbers that the layers have in the model.
    fn numbers(&self, first: First<'_>) -> Range<usize> {
        first.layer..first.layer + self.range.len()
    }

    fn lora<'a>(&self, pairs: &'a [Pair<'a>], part: Part<'_>) -> Option<Lora<'a>> {
        let shape = part.adapter?.shape();
        Some(Lora {
            rank: shape.rank(),
            scale: shape.scale(),
            pairs,
        })
    }

    fn pairs<'a>(&self, first: First<'_>, adapter: Option<&'a Adapter>) -> Vec<Pair<'a>> {
        let numbers = self.numbers(first);
        let Some(adapter) = adapter else {
            return vec![];
        };
        let shape = adapter.shape();
        let pair = |e: &Entry| {
            let (a, b) = shape.ranges(e);
            Pair {
                layer: e.layer - first.layer,
                projection: projection(e.proj),
                a: &adapter.data[a],
                b: &adapter.data[b],
            }
        };
        entries(shape, numbers).map(pair).collect()
    }

    /// Runs something over the rows of `part` with its adapter.
    fn with<T>(
        &self,
        first: First<'_>,
        part: Part<'_>,
        run: impl FnOnce(&lethe_gpu::Layers, &Rows<'_>, Option<&Lora<'_>>) -> Result<T, GpuError>,
    ) -> Result<Option<T>, ModelError> {
        let runs = runs(part.layout);
        let turns = Turns::new(first.config, &part.layout.positions());
        let pairs = self.pairs(first, part.adapter);
        let lora = self.lora(&pairs, part);
        let rows = Rows {
            runs: &runs,
            cos: &turns.cos,
            sin: &turns.sin,
        };
        self.on_gpu(|layers| run(layers, &rows, lora.as_ref()))
    }
}

/// The pairs of an adapter on these layers.
fn entries(shape: &AdapterShape, numbers: Range<usize>) -> impl Iterator<Item = &Entry> {
    let on = move |e: &&Entry| numbers.contains(&e.layer);
    shape.entries().iter().filter(on)
}

/// The places of `grads` (flat, in the adapter's shape) for the pairs on these layers.
fn places<'a>(
    shape: &AdapterShape,
    numbers: Range<usize>,
    grads: &'a mut [f32],
) -> Vec<PairGrad<'a>> {
    let mut places = vec![];
    let mut rest = grads;
    let mut passed = 0;
    for entry in entries(shape, numbers) {
        let (a, b) = shape.ranges(entry);
        let (_, tail) = rest.split_at_mut(a.start - passed);
        let (of_a, tail) = tail.split_at_mut(a.len());
        let (of_b, tail) = tail.split_at_mut(b.len());
        places.push(PairGrad { a: of_a, b: of_b });
        rest = tail;
        passed = b.end;
    }
    places
}

fn projection(projection: Projection) -> lethe_gpu::Projection {
    match projection {
        Projection::Q => lethe_gpu::Projection::Q,
        Projection::K => lethe_gpu::Projection::K,
        Projection::V => lethe_gpu::Projection::V,
        Projection::O => lethe_gpu::Projection::O,
        Projection::Gate => lethe_gpu::Projection::Gate,
        Projection::Up => lethe_gpu::Projection::Up,
        Projection::Down => lethe_gpu::Projection::Down,
    }
}

fn runs(layout: &Layout) -> Vec<Run> {
    let run = |r: crate::layout::Run| Run {
        start: r.start,
        len: r.len,
        context: r.context,
    };
    layout.runs().into_iter().map(run).collect()
}

/// Rotary angles of some rows.
struct Turns {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turns {
    fn new(config: &ModelConfig, positions: &[usize]) -> Self {
        let most = positions.iter().max().map_or(0, |p| p + 1);
        let table = RopeTable::new(config, most);
        Self {
            cos: positions
                .iter()
                .flat_map(|p| table.cos(*p))
                .copied()
                .collect(),
            sin: positions
                .iter()
                .flat_map(|p| table.sin(*p))
                .copied()
                .collect(),
        }
    }
}

impl super::super::Layers for Layers {
    fn part(&self, layers: Range<usize>) -> Arc<dyn super::super::Layers> {
        Arc::new(Self {
            device: self.device.clone(),
            gpu: self.gpu.as_ref().map(|gpu| gpu.part(layers.clone())),
            host: self.host.clone(),
            range: self.range.start + layers.start..self.range.start + layers.end,
        })
    }

    /// Where the layers run; what the host keeps for a GPU's failure is not counted, nor, after
    /// one, what is on the GPU until the layers are dropped.
    fn bytes(&self) -> usize {
        match &self.gpu {
            Some(gpu) if !self.device.has_failed() => gpu.bytes() as usize,
            _ => self.on_cpu().map_or(0, |layers| layers.bytes()),
        }
    }

    fn forward(
        &self,
        first: First<'_>,
        parts: &[Part<'_>],
        x: Vec<f32>,
        mut see: See<'_>,
    ) -> Result<Vec<f32>, ModelError> {
        let mut out = Vec::with_capacity(x.len());
        for part in parts {
            let end = out.len() + part.layout.rows() * first.config.hidden;
            let part_of_x = &x[out.len()..end];
            let mut show;
            let shown: Option<lethe_gpu::See<'_>> = match &mut see {
                Some(see) => {
                    show = |i: usize, y: &[f32]| see(first.layer + i, y);
                    Some(&mut show)
                }
                None => None,
            };
            let done = self.with(first, *part, |layers, rows, lora| {
                layers.forward(rows, lora, part_of_x, shown)
            })?;
            match done {
                Some(y) => out.extend(y),
                None => return self.on_cpu()?.forward(first, parts, x, see),
            }
        }
        Ok(out)
    }

    fn forward_last(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
    ) -> Result<Vec<f32>, ModelError> {
        let done = self.with(first, part, |layers, rows, lora| {
            layers.forward_last(rows, lora, &x)
        })?;
        match done {
            Some(y) => Ok(y),
            None => self.on_cpu()?.forward_last(first, part, x),
        }
    }

    fn forward_train(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
        last: bool,
    ) -> Result<(Vec<f32>, Kept), ModelError> {
        let done = self.with(first, part, |layers, rows, lora| {
            layers.forward_train(rows, lora, &x, last)
        })?;
        match done {
            Some((y, tape)) => {
                let tape = Box::new(tape);
                Ok((y, Kept::new(Tape::Gpu { tape, x })))
            }
            None => {
                let (y, kept) = self.on_cpu()?.forward_train(first, part, x, last)?;
                Ok((y, Kept::new(Tape::Cpu(kept))))
            }
        }
    }

    fn backward(
        &self,
        first: First<'_>,
        part: Part<'_>,
        last: bool,
        tape: &Kept,
        dy: Vec<f32>,
        grads: &mut [f32],
    ) -> Result<Vec<f32>, ModelError> {
        let (tape, x) = match tape.get()? {
            Tape::Cpu(kept) => {
                return self.on_cpu()?.backward(first, part, last, kept, dy, grads);
            }
            Tape::Gpu { tape, x } => (tape, x),
        };
        let mut places = match part.adapter {
            Some(adapter) => places(adapter.shape(), self.numbers(first), grads),
            None => vec![],
        };
        let done = self.on_gpu(|layers| layers.backward(tape, &dy, &mut places))?;
        drop(places);
        match done {
            Some(dx) => Ok(dx),
            None => {
                let cpu = self.on_cpu()?;
                let (_, kept) = cpu.forward_train(first, part, x.clone(), last)?;
                cpu.backward(first, part, last, &kept, dy, grads)
            }
        }
    }

    fn cache(&self, _config: &ModelConfig, positions: usize) -> Kept {
        Kept::new(Cache {
            gpu: lethe_gpu::Cache::new(),
            x: vec![],
            positions,
            cpu: None,
        })
    }

    fn extend(
        &self,
        first: First<'_>,
        part: Part<'_>,
        cache: &mut Kept,
        before: usize,
        x: Vec<f32>,
    ) -> Result<Vec<f32>, ModelError> {
        let cache: &mut Cache = cache.get_mut()?;
        let kept = match &mut cache.cpu {
            Some(kept) => kept,
            None => {
                if let Some(y) = self.extend_on_gpu(first, part, &mut cache.gpu, before, &x)? {
                    cache.x.extend(x);
                    return Ok(y);
                }
                let kept = self.again(first, part, cache.x.clone(), cache.positions)?;
                cache.x = vec![];
                cache.cpu.insert(kept)
            }
        };
        self.on_cpu()?.extend(first, part, kept, before, x)
    }
}

impl Layers {
    fn extend_on_gpu(
        &self,
        first: First<'_>,
        part: Part<'_>,
        cache: &mut lethe_gpu::Cache,
        before: usize,
        x: &[f32],
    ) -> Result<Option<Vec<f32>>, ModelError> {
        let positions: Vec<usize> = (before..before + part.layout.rows()).collect();
        let turns = Turns::new(first.config, &positions);
        let pairs = self.pairs(first, part.adapter);
        let lora = self.lora(&pairs, part);
        self.on_gpu(|layers| layers.extend(cache, &turns.cos, &turns.sin, lora.as_ref(), x))
    }

    /// A cache on the CPU that has seen the tokens whose states are `x`.
    fn again(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
        positions: usize,
    ) -> Result<Kept, ModelError> {
        let cpu = self.on_cpu()?;
        let mut kept = cpu.cache(first.config, positions);
        if x.is_empty() {
            return Ok(kept);
        }
        let layout = Layout {
            prefix: 0,
            lens: vec![(x.len() / first.config.hidden) as u32],
        };
        let seen = Part {
            layout: &layout,
            adapter: part.adapter,
        };
        cpu.extend(first, seen, &mut kept, 0, x)?;
        Ok(kept)
    }
}
