//! A sentence encoder: MiniLM (Wang et al., NeurIPS 2020, arXiv 2002.10957) as trained by
//! sentence-transformers. It runs once over a catalogue, so it is candle's plain operations.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::{D, Device, Tensor};
use serde_json::json;
use tokenizers::{Tokenizer, TruncationParams};

use crate::ModelError;
use crate::config;
use crate::files::keys::{Keys, WITHOUT_EFFECT};
use crate::files::templates::Steps;
use crate::files::tensors::{Stored, header};
use crate::files::{quoted, read};
use crate::source::RawTensor;

/// Tokens of a text that are read.
const TOKENS: usize = 64;
/// Texts that are encoded together.
const BATCH: usize = 64;

/// Longest tokenizer.json that is read, in bytes; that of MiniLM has 0.5 MB.
const TOKENIZER: u64 = 64 << 20;

struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    positions: usize,
    kinds: usize,
    layer_norm_eps: f64,
}

impl Config {
    /// Reads config.json: each key is consumed, known to be without effect, or refused by name.
    fn read(path: &Path) -> Result<Self, ModelError> {
        let mut keys = Keys::read(path)?;
        let kind: String = keys.need("model_type", "bert")?;
        if kind != "bert" {
            return Err(keys.refuse("model_type", &kind.into(), "supported: bert"));
        }
        keys.only("architectures", &[json!(["BertModel"])])?;
        keys.only("hidden_act", &[json!("gelu")])?;
        keys.only("position_embedding_type", &[json!("absolute")])?;
        keys.nothing(&[
            "quantization_config",
            "auto_map",
            "is_decoder",
            "add_cross_attention",
            "is_encoder_decoder",
            "pruned_heads",
            "chunk_size_feed_forward",
        ])?;
        let read = Self {
            hidden_size: keys.need_count("hidden_size", config::WIDTH)?,
            intermediate_size: keys.need_count("intermediate_size", config::WIDTH)?,
            num_hidden_layers: keys.need_count("num_hidden_layers", config::LAYERS)?,
            num_attention_heads: keys.need_count("num_attention_heads", config::HEADS)?,
            vocab_size: keys.need_count("vocab_size", config::VOCAB)?,
            positions: keys.need_count("max_position_embeddings", config::POSITIONS)?,
            kinds: keys.need_count("type_vocab_size", config::VOCAB)?,
            layer_norm_eps: keys.need("layer_norm_eps", "a number")?,
        };
        keys.without_effect(WITHOUT_EFFECT);
        // There is no head to tie.
        keys.without_effect(&["tie_word_embeddings"]);
        keys.finish()?;
        match read.hidden_size.is_multiple_of(read.num_attention_heads) {
            true => Ok(read),
            false => Err(ModelError::refused(
                path,
                format!("hidden_size {}", read.hidden_size),
                format!("it does not divide over {} heads", read.num_attention_heads),
            )),
        }
    }
}

/// Texts to vectors of unit length.
pub struct Encoder {
    config: Config,
    tokenizer: Tokenizer,
    words: Tensor,
    positions: Tensor,
    kind: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    attended_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

struct Linear {
    /// `[inputs, outputs]`.
    weight: Tensor,
    bias: Tensor,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Linear {
    fn run(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let flat = x.reshape((batch * tokens, width))?;
        let out = flat.matmul(&self.weight)?.broadcast_add(&self.bias)?;
        out.reshape((batch, tokens, ()))
    }
}

impl Norm {
    fn run(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let unit = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        unit.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// Reads named tensors, and knows which of them nobody has asked for.
struct Weights {
    path: PathBuf,
    file: File,
    left: BTreeMap<String, Stored>,
}

impl Weights {
    fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        let length = file.metadata().map_err(ModelError::io(path))?.len();
        let left = header(path, &mut BufReader::new(&file), length)?.tensors;
        Ok(Self {
            path: path.to_owned(),
            file,
            left,
        })
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let stored = self.left.remove(name);
        let stored = stored.ok_or_else(|| ModelError::tensor(name, "it is missing"))?;
        if !stored
            .shape
            .iter()
            .copied()
            .eq(shape.iter().map(|d| *d as u64))
        {
            let why = format!("shape {:?}, expected {shape:?}", stored.shape);
            return Err(ModelError::tensor(name, why));
        }
        let dtype = stored.dtype(&self.path, name)?;
        let read = RawTensor::read(&self.file, &self.path, stored.start, stored.bytes, dtype)?;
        Ok(Tensor::from_vec(read.values()?, shape, &Device::Cpu)?)
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Linear, ModelError> {
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        Ok(Linear {
            weight: weight.t()?.contiguous()?,
            bias: self.tensor(&format!("{name}.bias"), &[outputs])?,
        })
    }

    fn norm(&mut self, name: &str, width: usize, eps: f64) -> Result<Norm, ModelError> {
        Ok(Norm {
            weight: self.tensor(&format!("{name}.weight"), &[width])?,
            bias: self.tensor(&format!("{name}.bias"), &[width])?,
            eps,
        })
    }

    /// Refuses tensors that nobody has asked for. The pooler is not run here (vectors are means of
    /// states), and positions are counted.
    fn finish(self) -> Result<(), ModelError> {
        let known = |n: &str| n.starts_with("pooler.dense.") || n == "embeddings.position_ids";
        match self.left.iter().find(|(name, _)| !known(name)) {
            None => Ok(()),
            Some((name, stored)) => Err(ModelError::refused(
                &self.path,
                format!("tensor {} of shape {:?}", quoted(name), stored.shape),
                "no part of the encoder that config.json describes: it would be left out",
            )),
        }
    }
}

impl Encoder {
    /// Reads `config.json`, `tokenizer.json` and `model.safetensors` of a folder.
    ///
    /// # Errors
    /// [`ModelError`] if a file is missing or is not a BERT model.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let config = Config::read(&folder.join("config.json"))?;
        let path = folder.join("tokenizer.json");
        let failed = |e: tokenizers::Error| {
            ModelError::refused(&path, e.to_string(), "expected a tokenizer that is whole")
        };
        let bytes = read(&path, TOKENIZER)?;
        let steps: Steps = serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?;
        steps.check().map_err(|e| failed(e.into()))?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(failed)?;
        tokenizer.with_padding(None);
        let cut = TruncationParams {
            max_length: TOKENS,
            ..TruncationParams::default()
        };
        tokenizer.with_truncation(Some(cut)).map_err(failed)?;
        let last = tokenizer.get_vocab(true).into_values().max();
        if last.is_some_and(|id| id as usize >= config.vocab_size) {
            let what = format!("a token has id {}", last.unwrap_or(0));
            let why = format!("the embedding has {} rows", config.vocab_size);
            return Err(ModelError::refused(&path, what, why));
        }
        let mut weights = Weights::open(&folder.join("model.safetensors"))?;
        let eps = config.layer_norm_eps;
        let d = config.hidden_size;
        let inner = config.intermediate_size;
        let mut layers = vec![];
        for at in 0..config.num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{at}.{part}");
            layers.push(Layer {
                query: weights.linear(&name("attention.self.query"), d, d)?,
                key: weights.linear(&name("attention.self.key"), d, d)?,
                value: weights.linear(&name("attention.self.value"), d, d)?,
                attended: weights.linear(&name("attention.output.dense"), d, d)?,
                attended_norm: weights.norm(&name("attention.output.LayerNorm"), d, eps)?,
                up: weights.linear(&name("intermediate.dense"), d, inner)?,
                down: weights.linear(&name("output.dense"), inner, d)?,
                norm: weights.norm(&name("output.LayerNorm"), d, eps)?,
            });
        }
        let words = "embeddings.word_embeddings.weight";
        let positions = "embeddings.position_embeddings.weight";
        let kinds = "embeddings.token_type_embeddings.weight";
        let read = Self {
            words: weights.tensor(words, &[config.vocab_size, d])?,
            positions: weights.tensor(positions, &[config.positions, d])?,
            kind: weights.tensor(kinds, &[config.kinds, d])?.narrow(0, 0, 1)?,
            norm: weights.norm("embeddings.LayerNorm", d, eps)?,
            layers,
            config,
            tokenizer,
        };
        weights.finish()?;
        Ok(read)
    }

    /// Numbers per vector.
    pub fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// One vector of unit length for every text, `[texts][width]`: the mean of the last states of
    /// its first 64 tokens.
    ///
    /// # Errors
    /// [`ModelError`] if a text cannot be encoded.
    pub fn encode(&self, texts: &[String]) -> Result<Vec<f32>, ModelError> {
        let mut ids: Vec<(usize, Vec<u32>)> = vec![];
        for (at, text) in texts.iter().enumerate() {
            let encoded = self.tokenizer.encode(text.as_str(), true);
            let encoded = encoded.map_err(|e| ModelError::Tokenizer(e.to_string()))?;
            ids.push((at, encoded.get_ids().to_vec()));
        }
        // Texts of one length together: no padding, no mask.
        ids.sort_by_key(|(at, ids)| (ids.len(), *at));
        let width = self.width();
        let mut out = vec![0.0; texts.len() * width];
        for of_length in ids.chunk_by(|a, b| a.1.len() == b.1.len()) {
            for batch in of_length.chunks(BATCH) {
                let vectors = self.forward(batch)?.to_vec2::<f32>()?;
                for ((at, _), vector) in batch.iter().zip(vectors) {
                    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
                    let place = &mut out[at * width..(at + 1) * width];
                    for (to, from) in place.iter_mut().zip(vector) {
                        *to = from / length.max(1e-12);
                    }
                }
            }
        }
        Ok(out)
    }

    fn forward(&self, batch: &[(usize, Vec<u32>)]) -> candle_core::Result<Tensor> {
        let tokens = batch[0].1.len();
        let flat: Vec<u32> = batch.iter().flat_map(|b| b.1.iter().copied()).collect();
        let ids = Tensor::from_vec(flat, batch.len() * tokens, &Device::Cpu)?;
        let words = self.words.index_select(&ids, 0)?;
        let words = words.reshape((batch.len(), tokens, self.config.hidden_size))?;
        let places = self.positions.narrow(0, 0, tokens)?;
        let places = places.broadcast_add(&self.kind)?;
        let mut x = self.norm.run(&words.broadcast_add(&places)?)?;
        for layer in &self.layers {
            x = layer.run(&x, self.config.num_attention_heads)?;
        }
        x.mean(1)
    }
}

impl Layer {
    fn run(&self, x: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let size = width / heads;
        let split = |x: Tensor| -> candle_core::Result<Tensor> {
            let x = x.reshape((batch, tokens, heads, size))?;
            x.transpose(1, 2)?.contiguous()
        };
        let query = split(self.query.run(x)?)?;
        let key = split(self.key.run(x)?)?;
        let value = split(self.value.run(x)?)?;
        let scores = (query.matmul(&key.t()?.contiguous()?)? / (size as f64).sqrt())?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let mixed = weights.matmul(&value)?.transpose(1, 2)?;
        let mixed = mixed.reshape((batch, tokens, width))?;
        let x = self.attended_norm.run(&(self.attended.run(&mixed)? + x)?)?;
        let inner = self.up.run(&x)?.gelu_erf()?;
        self.norm.run(&(self.down.run(&inner)? + x)?)
    }
}
