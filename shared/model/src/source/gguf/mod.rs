//! GGUF files of architecture `llama`. Everything in them is consumed or refused by name.

pub(crate) mod keys;
pub(crate) mod read;
mod types;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::{Part, RawTensor, Sealed, WeightSource, parts_of};
use crate::ModelError;
use crate::config::ModelConfig;
use crate::embedding::Table;
use crate::files::quoted;
use crate::tokenizer::Tokenizer;
use read::{Content, Stored};

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";
const NORM: &str = "output_norm.weight";
/// What each rotary frequency is divided by.
const FACTORS: &str = "rope_freqs.weight";

/// An open GGUF file; tensors are read when asked for.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    content: Content,
    file: File,
    config: ModelConfig,
}

impl GgufFile {
    /// Reads the header and the metadata.
    ///
    /// # Errors
    /// [`ModelError`] for whatever the engine does not compute: a key, a value, a tensor, a type.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        let length = file.metadata().map_err(ModelError::io(path))?.len();
        let content = read::content(path, BufReader::new(&file), length)?;
        let config = keys::config(path, &content)?;
        let mut open = Self {
            path: path.to_owned(),
            content,
            file,
            config,
        };
        open.check()?;
        open.read_factors()?;
        Ok(open)
    }

    /// Every tensor is one that the metadata asks for, with its shape.
    fn check(&self) -> Result<(), ModelError> {
        let c = &self.config;
        // Before anything is done for each layer.
        if c.layers > self.content.tensors.len() {
            return Err(ModelError::refused(
                &self.path,
                format!("{} tensors", self.content.tensors.len()),
                format!("expected those of {} layers", c.layers),
            ));
        }
        let table = vec![c.vocab as u64, c.hidden as u64];
        let mut known = BTreeSet::from([EMBEDDING, NORM, FACTORS].map(str::to_owned));
        self.find(EMBEDDING, &table)?;
        self.find(NORM, &[c.hidden as u64])?;
        if !c.tied_head {
            self.find(HEAD, &table)?;
            known.insert(HEAD.to_owned());
        }
        for layer in 0..c.layers {
            for part in parts_of(c) {
                let name = tensor_name(layer, part);
                self.find(&name, &part.shape(c))?;
                known.insert(name);
            }
        }
        for (name, stored) in &self.content.tensors {
            if known.contains(name) {
                continue;
            }
            let what = format!("tensor {} of shape {:?}", quoted(name), stored.shape);
            let why = "no part of the model that the metadata describes: what it does is not \
                       known, and would be left out";
            return Err(ModelError::refused(&self.path, what, why));
        }
        Ok(())
    }

    /// Reads the factors of the rotary frequencies, if they are there (Llama 3.1 and later).
    fn read_factors(&mut self) -> Result<(), ModelError> {
        if !self.content.tensors.contains_key(FACTORS) {
            return Ok(());
        }
        let half = self.config.head_dim / 2;
        let mut factors = self.tensor(FACTORS, &[half as u64])?.values()?;
        for (factor, linear) in factors.iter_mut().zip(&self.config.rope_factors) {
            *factor *= linear;
        }
        self.config.rope_factors = factors;
        self.config
            .check()
            .map_err(|why| ModelError::tensor(FACTORS, why))
    }

    fn find(&self, name: &str, shape: &[u64]) -> Result<&Stored, ModelError> {
        let stored = self.content.tensors.get(name);
        let stored = stored.ok_or_else(|| ModelError::tensor(name, "it is missing"))?;
        match stored.shape == shape {
            true => Ok(stored),
            false => {
                let why = format!("shape {:?}, expected {shape:?}", stored.shape);
                Err(ModelError::tensor(name, why))
            }
        }
    }

    fn tensor(&self, name: &str, shape: &[u64]) -> Result<RawTensor, ModelError> {
        let s = self.find(name, shape)?;
        RawTensor::read(&self.file, &self.path, s.start, s.bytes, s.dtype)
    }

    fn table(&self, name: &str) -> Result<Table, ModelError> {
        let c = &self.config;
        let stored = self.find(name, &[c.vocab as u64, c.hidden as u64])?;
        // A handle of its own: rows are read at their places, whatever others do with theirs.
        let file = File::open(&self.path).map_err(ModelError::io(&self.path))?;
        Table::stored(
            file,
            &self.path,
            stored.start,
            stored.dtype,
            c.vocab,
            c.hidden,
        )
    }
}

impl Sealed for GgufFile {
    #[allow(private_interfaces)]
    fn raw(&self, layer: usize, part: Part) -> Result<RawTensor, ModelError> {
        let c = &self.config;
        let tensor = self.tensor(&tensor_name(layer, part), &part.shape(c))?;
        match part {
            Part::Q | Part::QBias => unpermute(tensor, c.heads, c.head_dim),
            Part::K | Part::KBias => unpermute(tensor, c.kv_heads, c.head_dim),
            _ => Ok(tensor),
        }
    }
}

impl WeightSource for GgufFile {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding(&self) -> Result<Table, ModelError> {
        self.table(EMBEDDING)
    }

    fn head(&self) -> Result<Table, ModelError> {
        self.table(HEAD)
    }

    fn final_norm(&self) -> Result<Vec<f32>, ModelError> {
        self.tensor(NORM, &[self.config.hidden as u64])?.values()
    }

    fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        Tokenizer::of_gguf(&self.path, &self.content.metadata, self.config.vocab)
    }
}

fn tensor_name(layer: usize, part: Part) -> String {
    let name = match part {
        Part::AttnNorm => "attn_norm.weight",
        Part::Q => "attn_q.weight",
        Part::K => "attn_k.weight",
        Part::V => "attn_v.weight",
        Part::QBias => "attn_q.bias",
        Part::KBias => "attn_k.bias",
        Part::VBias => "attn_v.bias",
        Part::Out => "attn_output.weight",
        Part::MlpNorm => "ffn_norm.weight",
        Part::Gate => "ffn_gate.weight",
        Part::Up => "ffn_up.weight",
        Part::Down => "ffn_down.weight",
    };
    format!("blk.{layer}.{name}")
}

/// The GGUF converter interleaves the two halves of every query and key head; this restores the
/// order of the original checkpoint, so that rotate-half applies and adapters fit the original
/// projections.
fn unpermute(tensor: RawTensor, heads: usize, head_dim: usize) -> Result<RawTensor, ModelError> {
    let half = head_dim / 2;
    tensor.reordered(heads * head_dim, |to| {
        let head = to / head_dim;
        let which_half = to % head_dim / half;
        let place = to % half;
        head * head_dim + 2 * place + which_half
    })
}
