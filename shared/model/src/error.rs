use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a model could not be loaded, or a step could not run.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not a model of a supported family.
    #[error(
        "{path}: {why}; supported: a GGUF file of architecture llama, or a folder with \
         config.json (Llama or \
             Qwen2), tokenizer.json and *.safetensors"
    )]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A tensor is missing or has another shape than the configuration says.
    #[error("tensor {name}: {why}; the model file is damaged or of another family")]
    Tensor {
        /// Name in the file.
        name: String,
        /// What was found.
        why: String,
    },
    /// The tokenizer cannot be built or cannot encode a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// An argument does not fit the model.
    #[error("{0}")]
    Shape(String),
    /// The device that should run the layers is not there, or cannot compute as the recipe asks.
    #[error("{0}")]
    Device(String),
    /// A library below failed.
    #[error("candle: {0}")]
    Candle(#[from] candle_core::Error),
    /// The middle layers, wherever they run, failed.
    #[error("the middle layers failed: {0}")]
    Middle(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ModelError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn unsupported(path: &Path, why: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            why: why.into(),
        }
    }

    pub(crate) fn tensor(name: &str, why: impl Into<String>) -> Self {
        Self::Tensor {
            name: name.to_owned(),
            why: why.into(),
        }
    }
}
