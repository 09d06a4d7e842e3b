//! A sentence encoder: MiniLM (Wang et al., NeurIPS 2020, arXiv 2002.10957) as trained by
//! sentence-transformers. It runs once over a catalogue, so it is candle's plain operations.

use std::path::Path;

use candle_core::{D, DType, Device, Tensor};
use serde::Deserialize;
use tokenizers::{Tokenizer, TruncationParams};

use crate::ModelError;

/// Tokens of a text that are read.
const TOKENS: usize = 64;
/// Texts that are encoded together.
const BATCH: usize = 64;

#[derive(Deserialize)]
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    layer_norm_eps: f64,
    model_type: String,
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

/// Reads named tensors.
struct Weights(std::collections::HashMap<String, Tensor>);

impl Weights {
    fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        let found = self.0.get(name);
        let found = found.ok_or_else(|| ModelError::tensor(name, "is missing"))?;
        Ok(found.to_dtype(DType::F32)?)
    }

    fn linear(&self, name: &str) -> Result<Linear, ModelError> {
        Ok(Linear {
            weight: self.tensor(&format!("{name}.weight"))?.t()?.contiguous()?,
            bias: self.tensor(&format!("{name}.bias"))?,
        })
    }

    fn norm(&self, name: &str, eps: f64) -> Result<Norm, ModelError> {
        Ok(Norm {
            weight: self.tensor(&format!("{name}.weight"))?,
            bias: self.tensor(&format!("{name}.bias"))?,
            eps,
        })
    }
}

impl Encoder {
    /// Reads `config.json`, `tokenizer.json` and `model.safetensors` of a folder.
    ///
    /// # Errors
    /// [`ModelError`] if a file is missing or is not a BERT model.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(ModelError::io(&path))?;
        let config: Config = serde_json::from_str(&text)
            .map_err(|e| ModelError::unsupported(&path, e.to_string()))?;
        if config.model_type != "bert"
            || !config
                .hidden_size
                .is_multiple_of(config.num_attention_heads.max(1))
        {
            let why = format!("model type {}, expected bert", config.model_type);
            return Err(ModelError::unsupported(&path, why));
        }
        let path = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&path)
            .map_err(|e| ModelError::Tokenizer(format!("{}: {e}", path.display())))?;
        tokenizer.with_padding(None);
        let cut = TruncationParams {
            max_length: TOKENS,
            ..TruncationParams::default()
        };
        tokenizer
            .with_truncation(Some(cut))
            .map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let path = folder.join("model.safetensors");
        if !path.exists() {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(ModelError::io(&path)(missing));
        }
        let weights = Weights(candle_core::safetensors::load(&path, &Device::Cpu)?);
        let eps = config.layer_norm_eps;
        let mut layers = vec![];
        for at in 0..config.num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{at}.{part}");
            layers.push(Layer {
                query: weights.linear(&name("attention.self.query"))?,
                key: weights.linear(&name("attention.self.key"))?,
                value: weights.linear(&name("attention.self.value"))?,
                attended: weights.linear(&name("attention.output.dense"))?,
                attended_norm: weights.norm(&name("attention.output.LayerNorm"), eps)?,
                up: weights.linear(&name("intermediate.dense"))?,
                down: weights.linear(&name("output.dense"))?,
                norm: weights.norm(&name("output.LayerNorm"), eps)?,
            });
        }
        Ok(Self {
            words: weights.tensor("embeddings.word_embeddings.weight")?,
            positions: weights.tensor("embeddings.position_embeddings.weight")?,
            kind: weights
                .tensor("embeddings.token_type_embeddings.weight")?
                .narrow(0, 0, 1)?,
            norm: weights.norm("embeddings.LayerNorm", eps)?,
            layers,
            config,
            tokenizer,
        })
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
