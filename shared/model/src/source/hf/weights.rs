//! The weights of a folder: one safetensors file, or the files of an index; every tensor of them
//! is one that the configuration asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::ModelError;
use crate::config::ModelConfig;
use crate::dtype::Dtype;
use crate::embedding::Table;
use crate::files::tensors::{Stored, header};
use crate::files::{quoted, read};
use crate::source::{Part, RawTensor, parts_of};

const ONE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Longest index, in bytes; that of a model of 405 billion values has 0.1 MB.
const LONGEST_INDEX: u64 = 16 << 20;

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const NORM: &str = "model.norm.weight";
pub(super) const HEAD: &str = "lm_head.weight";

/// Where every tensor of the model lies.
#[derive(Debug)]
pub(super) struct Weights {
    tensors: BTreeMap<String, (usize, Stored)>,
    files: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    #[serde(rename = "metadata", default)]
    _metadata: IgnoredAny,
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Reads the headers of the files in `folder`.
    ///
    /// # Errors
    /// [`ModelError::Refused`] for files that are missing, left over or damaged, and for tensors
    /// that the index lists elsewhere, or not.
    pub(super) fn open(folder: &Path) -> Result<Self, ModelError> {
        let listed = listed(folder)?;
        let mut weights = Self {
            tensors: BTreeMap::new(),
            files: vec![],
        };
        let names = match &listed {
            None => BTreeSet::from([ONE.to_owned()]),
            Some(map) => map.values().cloned().collect(),
        };
        left_over(folder, &names)?;
        for name in &names {
            weights.add(&folder.join(name), name, listed.as_ref())?;
        }
        for (tensor, file) in listed.iter().flatten() {
            if !weights.tensors.contains_key(tensor) {
                return Err(ModelError::refused(
                    &folder.join(file),
                    format!("it lacks the tensor {}", quoted(tensor)),
                    format!("{INDEX} says that it is there: fetch the file again"),
                ));
            }
        }
        Ok(weights)
    }

    fn add(
        &mut self,
        path: &Path,
        name: &str,
        listed: Option<&BTreeMap<String, String>>,
    ) -> Result<(), ModelError> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        let length = file.metadata().map_err(ModelError::io(path))?.len();
        let header = header(path, &mut BufReader::new(file), length)?;
        let at = self.files.len();
        self.files.push(path.to_owned());
        for (tensor, stored) in header.tensors {
            let place = listed.map(|map| map.get(&tensor));
            if place.is_some_and(|file| file.map(String::as_str) != Some(name)) {
                return Err(ModelError::refused(
                    path,
                    format!("it has the tensor {}", quoted(&tensor)),
                    format!("{INDEX} does not list it in this file: fetch the model again"),
                ));
            }
            self.tensors.insert(tensor, (at, stored));
        }
        Ok(())
    }

    fn path(&self, file: usize) -> &Path {
        self.files
            .get(file)
            .map_or(Path::new(ONE), PathBuf::as_path)
    }

    /// Checks that the tensors are those of `config`, each with its shape and a type that is read.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] for one that is missing or of another shape, [`ModelError::Refused`]
    /// for one that no part of the model is.
    pub(super) fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        // Before anything is done for each layer.
        if config.layers > self.tensors.len() {
            return Err(ModelError::refused(
                self.path(0),
                format!("{} tensors", self.tensors.len()),
                format!("expected those of {} layers", config.layers),
            ));
        }
        let mut known = BTreeSet::new();
        for (name, shape) in expected(config) {
            self.find(&name, &shape)?;
            known.insert(name);
        }
        for (name, (file, stored)) in &self.tensors {
            if known.contains(name) {
                continue;
            }
            match name.as_str() {
                HEAD if config.tied_head => self.same_as_embedding(config)?,
                // Computed from rope_theta: transformers leaves it out, too.
                n if n.ends_with(".self_attn.rotary_emb.inv_freq")
                    && stored.shape == [config.head_dim as u64 / 2] => {}
                _ => {
                    return Err(ModelError::refused(
                        self.path(*file),
                        format!("tensor {} of shape {:?}", quoted(name), stored.shape),
                        "no part of the model that config.json describes: what it does is not \
                         known, and would be left out",
                    ));
                }
            }
        }
        Ok(())
    }

    fn find(&self, name: &str, shape: &[u64]) -> Result<(&Path, &Stored, Dtype), ModelError> {
        let (file, stored) = self.tensors.get(name).ok_or_else(|| {
            let hint = match name == HEAD {
                true => " (tie_word_embeddings is false)",
                false => "",
            };
            ModelError::tensor(name, format!("it is missing{hint}"))
        })?;
        if stored.shape != shape {
            let why = format!("shape {:?}, expected {shape:?}", stored.shape);
            return Err(ModelError::tensor(name, why));
        }
        let path = self.path(*file);
        Ok((path, stored, stored.dtype(path, name)?))
    }

    /// The table `name` of `config`, left in its file.
    ///
    /// # Errors
    /// As [`Self::check`], and of the file.
    pub(super) fn table(&self, name: &str, config: &ModelConfig) -> Result<Table, ModelError> {
        let (rows, width) = (config.vocab, config.hidden);
        let (path, stored, dtype) = self.find(name, &[rows as u64, width as u64])?;
        let file = File::open(path).map_err(ModelError::io(path))?;
        Table::stored(file, path, stored.start, dtype, rows, width)
    }

    /// The values of `name`, as they are stored.
    ///
    /// # Errors
    /// As [`Self::check`], and of the file.
    pub(super) fn raw(&self, name: &str, shape: &[u64]) -> Result<RawTensor, ModelError> {
        let (path, stored, dtype) = self.find(name, shape)?;
        let file = File::open(path).map_err(ModelError::io(path))?;
        RawTensor::read(&file, path, stored.start, stored.bytes, dtype)
    }

    /// A head beside an embedding that it is tied to: the same values, or there are two answers to
    /// what the model is.
    fn same_as_embedding(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let head = self.table(HEAD, config)?;
        let embedding = self.table(EMBEDDING, config)?;
        for id in 0..config.vocab as u32 {
            if head.rows(&[id])? != embedding.rows(&[id])? {
                return Err(ModelError::tensor(
                    HEAD,
                    "it differs from the embedding, and tie_word_embeddings is true: one of the \
                     two is wrong",
                ));
            }
        }
        Ok(())
    }
}

/// What `config` asks for: names and shapes.
fn expected(config: &ModelConfig) -> impl Iterator<Item = (String, Vec<u64>)> + '_ {
    let table = vec![config.vocab as u64, config.hidden as u64];
    let head = (!config.tied_head).then(|| (HEAD.to_owned(), table.clone()));
    let whole = [
        (EMBEDDING.to_owned(), table),
        (NORM.to_owned(), vec![config.hidden as u64]),
    ];
    let layers = (0..config.layers).flat_map(move |layer| {
        parts_of(config).map(move |part| (layer_name(layer, part), part.shape(config)))
    });
    whole.into_iter().chain(head).chain(layers)
}

/// The index of `folder`: which tensor is in which file. `None`: one file has them all.
fn listed(folder: &Path) -> Result<Option<BTreeMap<String, String>>, ModelError> {
    let path = folder.join(INDEX);
    let adapter = folder.join("adapter_config.json");
    if adapter.exists() {
        return Err(ModelError::refused(
            &adapter,
            "an adapter lies in the model's folder",
            "a model that is loaded without it is another one: merge it, or take it out",
        ));
    }
    match (folder.join(ONE).exists(), path.exists()) {
        (true, false) => return Ok(None),
        (true, true) => {
            let why = format!("expected {ONE} alone, or an index and its files");
            return Err(ModelError::refused(
                &path,
                format!("{ONE} is there, too"),
                why,
            ));
        }
        (false, false) => {
            let why = format!(
                "expected {ONE}, or {INDEX} and the files that it lists (weights in other \
                 formats, as *.bin, are not read)"
            );
            return Err(ModelError::refused(folder, "it has no weights", why));
        }
        (false, true) => {}
    }
    let index: Index = serde_json::from_slice(&read(&path, LONGEST_INDEX)?).map_err(|e| {
        let what = format!("it cannot be read ({e})");
        ModelError::refused(&path, what, "expected a weight_map of tensors and files")
    })?;
    for file in index.weight_map.values() {
        let plain = Path::new(file)
            .file_name()
            .is_some_and(|n| n == file.as_str());
        if !plain || !file.ends_with(".safetensors") {
            return Err(ModelError::refused(
                &path,
                format!("it lists the file {}", quoted(file)),
                "expected names of *.safetensors files in the same folder",
            ));
        }
    }
    Ok(Some(index.weight_map))
}

/// Refuses weights that nobody would read: it is not known which of them are meant.
fn left_over(folder: &Path, names: &BTreeSet<String>) -> Result<(), ModelError> {
    let entries = std::fs::read_dir(folder).map_err(ModelError::io(folder))?;
    let mut other: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|x| x == "safetensors"))
        .filter(|p| {
            let name = p.file_name().and_then(|n| n.to_str());
            !name.is_some_and(|n| names.contains(n))
        })
        .collect();
    other.sort();
    match other.first() {
        None => Ok(()),
        Some(path) => Err(ModelError::refused(
            path,
            "no part of the model",
            format!("expected {ONE} alone, or the files of {INDEX}: take it out"),
        )),
    }
}

/// The name of a part of layer `layer`.
pub(super) fn layer_name(layer: usize, part: Part) -> String {
    let name = match part {
        Part::AttnNorm => "input_layernorm.weight",
        Part::Q => "self_attn.q_proj.weight",
        Part::K => "self_attn.k_proj.weight",
        Part::V => "self_attn.v_proj.weight",
        Part::QBias => "self_attn.q_proj.bias",
        Part::KBias => "self_attn.k_proj.bias",
        Part::VBias => "self_attn.v_proj.bias",
        Part::Out => "self_attn.o_proj.weight",
        Part::MlpNorm => "post_attention_layernorm.weight",
        Part::Gate => "mlp.gate_proj.weight",
        Part::Up => "mlp.up_proj.weight",
        Part::Down => "mlp.down_proj.weight",
    };
    format!("model.layers.{layer}.{name}")
}
