//! Hugging Face checkpoints: a folder with config.json, tokenizer.json and safetensors, sharded or
//! not. Everything in them is consumed or refused by name.

mod config;
mod weights;

use std::path::{Path, PathBuf};

use super::{Part, RawTensor, Sealed, WeightSource};
use crate::ModelError;
use crate::config::ModelConfig;
use crate::embedding::Table;
use crate::tokenizer::Tokenizer;
use weights::{EMBEDDING, HEAD, NORM, Weights, layer_name};

/// An open checkpoint folder; tensors are read, and converted to f32, when asked for.
#[derive(Debug)]
pub struct HfFolder {
    path: PathBuf,
    config: ModelConfig,
    weights: Weights,
}

impl HfFolder {
    /// Reads the configuration and where the weights lie.
    ///
    /// # Errors
    /// [`ModelError`] for whatever the engine does not compute: a key, a value, a tensor, a file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let config = config::read(path)?;
        let weights = Weights::open(path)?;
        weights.check(&config)?;
        Ok(Self {
            path: path.to_owned(),
            config,
            weights,
        })
    }
}

impl Sealed for HfFolder {
    #[allow(private_interfaces)]
    fn raw(&self, layer: usize, part: Part) -> Result<RawTensor, ModelError> {
        self.weights
            .raw(&layer_name(layer, part), &part.shape(&self.config))
    }
}

impl WeightSource for HfFolder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding(&self) -> Result<Table, ModelError> {
        self.weights.table(EMBEDDING, &self.config)
    }

    fn head(&self) -> Result<Table, ModelError> {
        self.weights.table(HEAD, &self.config)
    }

    fn final_norm(&self) -> Result<Vec<f32>, ModelError> {
        let norm = self.weights.raw(NORM, &[self.config.hidden as u64])?;
        norm.values()
    }

    fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        Tokenizer::of_folder(&self.path, self.config.vocab)
    }
}
