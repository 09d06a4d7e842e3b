//! The weights on the host, as they are stored.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use lethe_gpu::{Format, Gpu, GpuError, LayerWeights, Matrix, Shape};

use super::super::{Layers, cpu};
use crate::ModelError;
use crate::config::ModelConfig;
use crate::dtype::Dtype;
use crate::kernels::panels::Compute;
use crate::source::{Part, RawTensor, WeightSource, fuse, parts_of};

/// Weights of some layers, and these layers on the CPU once they were needed there.
#[derive(Debug)]
pub(super) struct Host {
    config: ModelConfig,
    layers: Vec<Stored>,
    cpu: Mutex<Option<Arc<dyn Layers>>>,
}

/// The tensors of a layer.
#[derive(Debug)]
struct Stored(HashMap<Part, RawTensor>);

impl Stored {
    fn read(source: &dyn WeightSource, layer: usize) -> Result<Self, ModelError> {
        let read = |part| Ok((part, source.raw(layer, part)?));
        parts_of(source.config())
            .map(read)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn tensor(&self, part: Part) -> Result<&RawTensor, ModelError> {
        let found = self.0.get(&part);
        found.ok_or_else(|| ModelError::tensor(&format!("{part:?}"), "it was not read"))
    }

    fn values(&self, part: Part) -> Result<Vec<f32>, ModelError> {
        self.tensor(part)?.values()
    }

    /// The tensor for the GPU: as it is stored if the kernels read that, in f32 otherwise.
    fn matrix(&self, part: Part, config: &ModelConfig) -> Result<Matrix<'_>, ModelError> {
        let tensor = self.tensor(part)?;
        let shape = part.shape(config);
        let (format, bytes) = match format_of(tensor.dtype) {
            Some(format) => (format, Cow::Borrowed(&tensor.bytes[..])),
            None => {
                let values = RawTensor::of(&tensor.values()?);
                (Format::F32, Cow::Owned(values.bytes))
            }
        };
        let side = |i: usize| shape.get(i).map_or(0, |n| *n as usize);
        Ok(Matrix {
            rows: side(0),
            cols: side(1),
            format,
            bytes,
        })
    }
}

/// How the kernels name a stored type, if they read it.
fn format_of(dtype: Dtype) -> Option<Format> {
    match dtype {
        Dtype::F32 => Some(Format::F32),
        Dtype::F16 => Some(Format::F16),
        Dtype::Bf16 => Some(Format::Bf16),
        Dtype::Q4_0 => Some(Format::Q4_0),
        Dtype::Q4_1 => Some(Format::Q4_1),
        Dtype::Q8_0 => Some(Format::Q8_0),
        Dtype::Q5_0
        | Dtype::Q5_1
        | Dtype::Q2K
        | Dtype::Q3K
        | Dtype::Q4K
        | Dtype::Q5K
        | Dtype::Q6K => None,
    }
}

impl Host {
    pub(super) fn read(source: &dyn WeightSource, range: Range<usize>) -> Result<Self, ModelError> {
        let layers = range.map(|l| Stored::read(source, l));
        Ok(Self {
            config: source.config().clone(),
            layers: layers.collect::<Result<_, _>>()?,
            cpu: Mutex::default(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.layers.len()
    }

    /// Some of these layers on the CPU, where all are made when one is needed for the first time.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if a tensor cannot be decoded.
    pub(super) fn cpu(&self, range: Range<usize>) -> Result<Arc<dyn Layers>, ModelError> {
        if range.is_empty() {
            let none = cpu::Layers::new(&self.config, std::iter::empty(), Compute::F32)?;
            return Ok(Arc::new(none));
        }
        // Held while they are made: passes that need them together wait for one of them.
        let mut held = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layers) = &*held {
            return Ok(layers.part(range));
        }
        let read = self
            .layers
            .iter()
            .map(|layer| fuse(&self.config, |part| layer.values(part)));
        let made: Arc<dyn Layers> = Arc::new(cpu::Layers::new(&self.config, read, Compute::F32)?);
        let part = made.part(range);
        *held = Some(made);
        Ok(part)
    }

    /// Puts the layers on a GPU, one after the other.
    ///
    /// # Errors
    /// The outer one if a tensor cannot be decoded, the inner one is the GPU's.
    pub(super) fn upload(
        &self,
        gpu: &Arc<Gpu>,
    ) -> Result<Result<lethe_gpu::Layers, GpuError>, ModelError> {
        let c = &self.config;
        let shape = Shape {
            hidden: c.hidden,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            intermediate: c.intermediate,
            rms_eps: c.rms_eps,
        };
        let mut all = match lethe_gpu::Layers::load(gpu.clone(), shape, &[]) {
            Ok(none) => none,
            Err(e) => return Ok(Err(e)),
        };
        for layer in &self.layers {
            let attn_norm = layer.values(Part::AttnNorm)?;
            let mlp_norm = layer.values(Part::MlpNorm)?;
            let qkv_bias = match c.qkv_bias {
                true => Some(bias(layer)?),
                false => None,
            };
            let weights = LayerWeights {
                attn_norm: &attn_norm,
                q: layer.matrix(Part::Q, c)?,
                k: layer.matrix(Part::K, c)?,
                v: layer.matrix(Part::V, c)?,
                qkv_bias: qkv_bias.as_deref(),
                out: layer.matrix(Part::Out, c)?,
                mlp_norm: &mlp_norm,
                gate: layer.matrix(Part::Gate, c)?,
                up: layer.matrix(Part::Up, c)?,
                down: layer.matrix(Part::Down, c)?,
            };
            if let Err(e) = all.push(&weights) {
                return Ok(Err(e));
            }
        }
        Ok(Ok(all))
    }
}

fn bias(layer: &Stored) -> Result<Vec<f32>, ModelError> {
    let mut bias = layer.values(Part::QBias)?;
    bias.extend(layer.values(Part::KBias)?);
    bias.extend(layer.values(Part::VBias)?);
    Ok(bias)
}
