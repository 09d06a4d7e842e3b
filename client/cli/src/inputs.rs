//! Model and data as the user names them, fetched when not named.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lethe_model::source::{WeightSource, open};
use lethe_recsys::data::{DataSpec, Dataset, FileReading, Item, load, read_items};

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Inputs {
    /// GGUF file (llama) or Hugging Face folder (Llama or Qwen2); fetched SmolLM2-135M when absent.
    #[arg(long)]
    pub(crate) model: Option<PathBuf>,
    /// Folder with dataset.toml, interactions and items; fetched MovieLens-100K when absent.
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// Refuse a data set with malformed rows, or with something that has to be guessed, instead of
    /// leaving rows out and saying so.
    #[arg(long)]
    pub(crate) strict: bool,
}

impl Inputs {
    /// Paths of the model and the data, fetching what is not named.
    pub(crate) fn paths(&self) -> anyhow::Result<(PathBuf, PathBuf)> {
        if let (Some(m), Some(d)) = (&self.model, &self.data) {
            return Ok((m.clone(), d.clone()));
        }
        let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |line| {
            let _ = writeln!(std::io::stderr(), "{line}");
        })?;
        Ok((
            self.model.clone().unwrap_or(files.model),
            self.data.clone().unwrap_or(files.movielens),
        ))
    }

    /// The path of a model, fetched when it is not named.
    pub(crate) fn model_of(named: Option<&Path>) -> anyhow::Result<PathBuf> {
        if let Some(path) = named {
            return Ok(path.to_owned());
        }
        let files = lethe_assets::fetch(&lethe_assets::default_home()?, &mut |line| {
            let _ = writeln!(std::io::stderr(), "{line}");
        })?;
        Ok(files.model)
    }

    /// What an adapter's folder says that it belongs to: where the model lies, or what the one that
    /// is fetched is called where it comes from.
    pub(crate) fn base(&self) -> anyhow::Result<String> {
        let Some(path) = &self.model else {
            return Ok("HuggingFaceTB/SmolLM2-135M-Instruct".into());
        };
        let whole = path
            .canonicalize()
            .with_context(|| path.display().to_string())?;
        Ok(whole.display().to_string())
    }

    /// The data's folder, fetched when it is not named.
    pub(crate) fn data_folder(&self) -> anyhow::Result<PathBuf> {
        match &self.data {
            Some(folder) => Ok(folder.clone()),
            None => Ok(self.paths()?.1),
        }
    }

    pub(crate) fn open(&self) -> anyhow::Result<(Box<dyn WeightSource>, Dataset)> {
        let (model, folder) = self.paths()?;
        let source = open(&model).context("loading the model")?;
        let data = load(&folder, &DataSpec::of_folder(&folder)?, self.strict)
            .context("loading the data")?;
        say(&data.readings);
        Ok((source, data))
    }
}

/// Says on standard error what became of the rows of files, where something is to be said.
pub(crate) fn say(readings: &[FileReading]) {
    for line in readings.iter().flat_map(FileReading::lines) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// The catalogue of a data folder; what became of its rows is said.
pub(crate) fn items(folder: &Path, strict: bool) -> anyhow::Result<Vec<Item>> {
    let read = read_items(folder, &DataSpec::of_folder(folder)?, strict)?;
    say(&[read.reading]);
    Ok(read.items)
}
