//! Where weights come from: a GGUF file, a Hugging Face folder, or a seed.

use std::path::Path;

use lethe_learn::seed::Seed;

use crate::ModelError;
use crate::config::ModelConfig;
use crate::embedding::Table;
use crate::layer::LayerWeights;
use crate::tokenizer::Tokenizer;

mod gguf;
mod hf;
mod merged;
mod raw;

/// What tokenizers read of a GGUF file.
pub(crate) mod metadata {
    pub(crate) use super::gguf::keys::Metadata;
    pub(crate) use super::gguf::read::Value;
}

pub use gguf::GgufFile;
pub use hf::HfFolder;
pub use merged::Merged;
pub(crate) use raw::RawTensor;

/// A source of frozen weights.
pub trait WeightSource: Sealed + Send + Sync {
    /// Shape of the model.
    fn config(&self) -> &ModelConfig;
    /// The embedding table.
    fn embedding(&self) -> Result<Table, ModelError>;
    /// The head, when it is not tied to the embedding.
    fn head(&self) -> Result<Table, ModelError>;
    /// Gain of the final norm.
    fn final_norm(&self) -> Result<Vec<f32>, ModelError>;
    /// Tokenizer that belongs to the weights.
    fn tokenizer(&self) -> Result<Tokenizer, ModelError>;
}

/// Reads the tensors of a layer; kept out of the public trait because their types are the engines'
/// own.
pub trait Sealed {
    /// One tensor as it is stored, its rows in the order of the original checkpoint.
    #[doc(hidden)]
    #[allow(private_interfaces)]
    fn raw(&self, layer: usize, part: Part) -> Result<RawTensor, ModelError>;
}

/// The weights of a layer, as f32 and fused.
///
/// # Errors
/// Of the source.
pub(crate) fn layer(source: &dyn WeightSource, layer: usize) -> Result<LayerWeights, ModelError> {
    fuse(source.config(), |part| source.raw(layer, part)?.values())
}

/// Opens a model: a file is read as GGUF, a folder as a Hugging Face checkpoint.
pub fn open(path: &Path) -> Result<Box<dyn WeightSource>, ModelError> {
    if path.is_dir() {
        Ok(Box::new(HfFolder::open(path)?))
    } else {
        Ok(Box::new(GgufFile::open(path)?))
    }
}

/// The f32 tensors of one layer, joined into the fused layout.
pub(crate) fn fuse(
    config: &ModelConfig,
    read: impl Fn(Part) -> Result<Vec<f32>, ModelError>,
) -> Result<LayerWeights, ModelError> {
    let mut qkv = read(Part::Q)?;
    qkv.extend(read(Part::K)?);
    qkv.extend(read(Part::V)?);
    let qkv_bias = if config.qkv_bias {
        let mut bias = read(Part::QBias)?;
        bias.extend(read(Part::KBias)?);
        bias.extend(read(Part::VBias)?);
        Some(bias)
    } else {
        None
    };
    let mut gate_up = read(Part::Gate)?;
    gate_up.extend(read(Part::Up)?);
    Ok(LayerWeights {
        attn_norm: read(Part::AttnNorm)?,
        qkv,
        qkv_bias,
        out: read(Part::Out)?,
        mlp_norm: read(Part::MlpNorm)?,
        gate_up,
        down: read(Part::Down)?,
    })
}

/// The tensors of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    AttnNorm,
    Q,
    K,
    V,
    QBias,
    KBias,
    VBias,
    Out,
    MlpNorm,
    Gate,
    Up,
    Down,
}

impl Part {
    /// Its dimensions, slowest first.
    pub(crate) fn shape(self, c: &ModelConfig) -> Vec<u64> {
        let d = c.hidden as u64;
        let q = c.heads as u64 * c.head_dim as u64;
        let kv = c.kv_heads as u64 * c.head_dim as u64;
        let ff = c.intermediate as u64;
        match self {
            Self::AttnNorm | Self::MlpNorm => vec![d],
            Self::Q => vec![q, d],
            Self::K | Self::V => vec![kv, d],
            Self::QBias => vec![q],
            Self::KBias | Self::VBias => vec![kv],
            Self::Out => vec![d, q],
            Self::Gate | Self::Up => vec![ff, d],
            Self::Down => vec![d, ff],
        }
    }
}

/// The tensors that every layer of `config` has.
pub(crate) fn parts_of(config: &ModelConfig) -> impl Iterator<Item = Part> + use<> {
    let biases = config.qkv_bias;
    [
        Part::AttnNorm,
        Part::Q,
        Part::K,
        Part::V,
        Part::QBias,
        Part::KBias,
        Part::VBias,
        Part::Out,
        Part::MlpNorm,
        Part::Gate,
        Part::Up,
        Part::Down,
    ]
    .into_iter()
    .filter(move |p| biases || !matches!(p, Part::QBias | Part::KBias | Part::VBias))
}

/// Random weights from a seed: a small real model for tests, with a byte tokenizer.
#[derive(Debug, Clone)]
pub struct RandomWeights {
    config: ModelConfig,
    seed: Seed,
}

impl RandomWeights {
    /// Weights of `config` drawn from `seed`.
    pub fn new(config: ModelConfig, seed: u64) -> Self {
        Self {
            config,
            seed: Seed::from_u64(seed),
        }
    }

    fn draw(&self, name: &str, index: usize, n: usize, spread: f32, centre: f32) -> Vec<f32> {
        let mut rng = self
            .seed
            .derive(name, &[&(index as u64).to_le_bytes()])
            .rng();
        (0..n).map(|_| centre + spread * rng.normal()).collect()
    }
}

impl Sealed for RandomWeights {
    #[allow(private_interfaces)]
    fn raw(&self, layer: usize, part: Part) -> Result<RawTensor, ModelError> {
        let centre = if matches!(part, Part::AttnNorm | Part::MlpNorm) {
            1.0
        } else {
            0.0
        };
        let n = part.shape(&self.config).iter().product::<u64>() as usize;
        let values = self.draw(&format!("{part:?}"), layer, n, 0.25, centre);
        Ok(RawTensor::of(&values))
    }
}

impl WeightSource for RandomWeights {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding(&self) -> Result<Table, ModelError> {
        let n = self.config.vocab * self.config.hidden;
        Ok(Table::dense(
            self.draw("embedding", 0, n, 0.5, 0.0),
            self.config.hidden,
        ))
    }

    fn head(&self) -> Result<Table, ModelError> {
        self.embedding()
    }

    fn final_norm(&self) -> Result<Vec<f32>, ModelError> {
        Ok(self.draw("norm", 0, self.config.hidden, 0.1, 1.0))
    }

    fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        Tokenizer::bytes(self.config.vocab)
    }
}
