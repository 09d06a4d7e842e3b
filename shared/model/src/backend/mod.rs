//! What runs the layers of a segment: our kernels on the CPU, or candle on a CPU, CUDA or Metal
//! device.
//!
//! Nothing above [`crate::segment::Segment`] knows which of them runs. Results on different devices
//! agree up to rounding, not bit for bit: a federation whose deletions are to be replayed byte for
//! byte trains on devices of one kind.

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::Device;

use crate::ModelError;
use crate::config::ModelConfig;
use crate::kernels::panels::Compute;
use crate::layout::Layout;
use crate::lora::Adapter;
use crate::source::WeightSource;

mod composed;
mod cpu;

/// Rows that belong together: a packed batch and the adapter that applies to it.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// How the rows lie.
    pub layout: &'a Layout,
    /// The adapter, if any.
    pub adapter: Option<&'a Adapter>,
}

/// The model, and the number of an engine's first layer in it.
#[derive(Clone, Copy)]
pub(crate) struct First<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) layer: usize,
}

/// Where layers run.
#[derive(Clone, Debug)]
pub(crate) enum On {
    /// Our kernels.
    Cpu,
    /// Candle's operations.
    Candle(Device),
}

/// The device that the environment variable `LETHE_DEVICE` names: `cpu` (our kernels; the default),
/// `cuda` or `cuda:N`, `metal`, or `candle-cpu` (for comparisons).
pub(crate) fn chosen() -> Result<On, ModelError> {
    static CHOSEN: OnceLock<Result<On, String>> = OnceLock::new();
    let named = || On::named(&std::env::var("LETHE_DEVICE").unwrap_or_else(|_| "cpu".into()));
    CHOSEN
        .get_or_init(named)
        .clone()
        .map_err(ModelError::Device)
}

/// What computes the layers in this process: build, device and vector units. Where it is equal,
/// results are equal bit for bit; where it differs they may not be.
pub fn engine() -> String {
    let on = match chosen() {
        Ok(On::Cpu) => format!(
            "{:?} {}",
            crate::kernels::tile::units(),
            std::env::consts::ARCH
        ),
        Ok(On::Candle(device)) => format!("candle {:?}", device.location()),
        Err(e) => e.to_string(),
    };
    format!("lethe-model {} {on}", env!("CARGO_PKG_VERSION"))
}

impl On {
    fn named(name: &str) -> Result<Self, String> {
        let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
        let number: usize = number
            .parse()
            .map_err(|_| format!("LETHE_DEVICE={name}: no device number {number:?}"))?;
        let device = match kind {
            "cpu" => return Ok(Self::Cpu),
            "candle-cpu" => Ok(Device::Cpu),
            "cuda" => Device::new_cuda(number),
            "metal" => Device::new_metal(number),
            _ => {
                return Err(format!(
                    "LETHE_DEVICE={name}: expected cpu, cuda, cuda:N, metal or candle-cpu"
                ));
            }
        };
        let missing = |e| {
            format!(
                "LETHE_DEVICE={name}: {e}; builds with the feature `cuda` or `metal` can use one"
            )
        };
        device.map(Self::Candle).map_err(missing)
    }
}

/// Layers on some device. Cloning shares the weights.
#[derive(Clone, Debug)]
pub(crate) enum Engine {
    Cpu(cpu::Layers),
    Candle(composed::Layers),
}

/// What an engine keeps between forward and backward.
#[derive(Debug)]
pub(crate) enum EngineTape {
    Cpu(Vec<crate::layer::LayerTape>),
    Candle(Box<composed::Tape>),
}

/// Keys and values of an engine's layers.
#[derive(Debug)]
pub(crate) enum EngineCache {
    Cpu(Vec<crate::layer::LayerCache>),
    Candle(Vec<composed::LayerCache>),
}

fn other() -> ModelError {
    ModelError::Shape("what an earlier pass kept belongs to a segment on another device".into())
}

impl Engine {
    pub(crate) fn load(
        on: &On,
        source: &dyn WeightSource,
        range: Range<usize>,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        match on {
            On::Cpu => Ok(Self::Cpu(cpu::Layers::load(source, range, compute)?)),
            On::Candle(device) => Ok(Self::Candle(composed::Layers::load(
                device, source, range, compute,
            )?)),
        }
    }

    /// Some of the layers, by their position in this engine.
    pub(crate) fn part(&self, layers: Range<usize>) -> Self {
        match self {
            Self::Cpu(e) => Self::Cpu(e.part(layers)),
            Self::Candle(e) => Self::Candle(e.part(layers)),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Cpu(e) => e.bytes(),
            Self::Candle(e) => e.bytes(),
        }
    }

    /// Hidden states after the layers; `see` is shown those after each of them.
    pub(crate) fn forward(
        &self,
        first: First<'_>,
        parts: &[Part<'_>],
        x: Vec<f32>,
        see: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<Vec<f32>, ModelError> {
        match self {
            Self::Cpu(e) => Ok(e.forward(first, parts, x, see)),
            Self::Candle(e) => e.forward(first, parts, x, see),
        }
    }

    /// Those of each sequence's last row.
    pub(crate) fn forward_last(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
    ) -> Result<Vec<f32>, ModelError> {
        match self {
            Self::Cpu(e) => Ok(e.forward_last(first, part, x, false).0),
            Self::Candle(e) => e.forward_last(first, part, x),
        }
    }

    /// Forward, of all rows or of the `last`, for a backward.
    pub(crate) fn forward_train(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
        last: bool,
    ) -> Result<(Vec<f32>, EngineTape), ModelError> {
        match self {
            Self::Cpu(e) => {
                let (y, tape) = if last {
                    e.forward_last(first, part, x, true)
                } else {
                    e.forward_train(first, part, x)
                };
                Ok((y, EngineTape::Cpu(tape)))
            }
            Self::Candle(e) => {
                let (y, tape) = e.forward_train(first, part, x, last)?;
                Ok((y, EngineTape::Candle(Box::new(tape))))
            }
        }
    }

    /// Gradient of the input, from that of all rows or of the `last`; the adapter's is added to
    /// `grads`.
    pub(crate) fn backward(
        &self,
        first: First<'_>,
        part: Part<'_>,
        last: bool,
        tape: &EngineTape,
        dy: Vec<f32>,
        grads: &mut [f32],
    ) -> Result<Vec<f32>, ModelError> {
        match (self, tape) {
            (Self::Cpu(e), EngineTape::Cpu(tape)) if last => {
                Ok(e.backward_last(first, part, tape, dy, grads))
            }
            (Self::Cpu(e), EngineTape::Cpu(tape)) => Ok(e.backward(first, part, tape, dy, grads)),
            (Self::Candle(e), EngineTape::Candle(tape)) => e.backward(part, tape, &dy, grads),
            _ => Err(other()),
        }
    }

    pub(crate) fn cache(&self, config: &ModelConfig, positions: usize) -> EngineCache {
        match self {
            Self::Cpu(e) => EngineCache::Cpu(e.cache(config, positions)),
            Self::Candle(e) => EngineCache::Candle(e.cache()),
        }
    }

    /// Forward of the tokens that come after `before` others in the cache.
    pub(crate) fn extend(
        &self,
        first: First<'_>,
        part: Part<'_>,
        cache: &mut EngineCache,
        before: usize,
        x: Vec<f32>,
    ) -> Result<Vec<f32>, ModelError> {
        match (self, cache) {
            (Self::Cpu(e), EngineCache::Cpu(cache)) => Ok(e.extend(first, part, cache, before, x)),
            (Self::Candle(e), EngineCache::Candle(cache)) => {
                e.extend(first, part, cache, before, x)
            }
            _ => Err(other()),
        }
    }
}

#[cfg(test)]
mod tests;
