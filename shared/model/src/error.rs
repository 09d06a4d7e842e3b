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
    /// A file says something that the engine does not compute: nothing of it is used.
    #[error("{path}: {what}; {supported}")]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// The key, tensor or kind, and its value.
        what: String,
        /// What would be read, and what to do.
        supported: String,
    },
    /// A tensor is missing, or has another shape than the configuration says.
    #[error("tensor {name}: {why}; the file is damaged, or belongs to another model")]
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
    #[cfg(feature = "candle")]
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

    /// `what` was found in the file at `path`, `supported` is what would be read.
    pub(crate) fn refused(
        path: &Path,
        what: impl Into<String>,
        supported: impl Into<String>,
    ) -> Self {
        Self::Refused {
            path: path.to_owned(),
            what: what.into(),
            supported: supported.into(),
        }
    }

    pub(crate) fn tensor(name: &str, why: impl Into<String>) -> Self {
        Self::Tensor {
            name: name.to_owned(),
            why: why.into(),
        }
    }
}
