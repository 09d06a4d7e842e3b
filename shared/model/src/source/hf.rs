//! Hugging Face checkpoints: a folder with config.json, tokenizer.json and safetensors, sharded or
//! not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::{Part, Sealed, WeightSource, fuse};
use crate::ModelError;
use crate::config::ModelConfig;
use crate::embedding::Table;
use crate::layer::LayerWeights;
use crate::tokenizer::Tokenizer;

/// An open checkpoint folder; each file is read once, tensors are converted to f32 when asked for.
#[derive(Debug)]
pub struct HfFolder {
    path: PathBuf,
    config: ModelConfig,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Deserialize)]
struct HfConfig {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rope_theta: Option<f32>,
    rms_norm_eps: f32,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    rope_scaling: Option<serde_json::Value>,
    use_sliding_window: Option<bool>,
    rope_parameters: Option<RopeParameters>,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
}

impl HfFolder {
    /// Reads the configuration and the weights.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = path.join("config.json");
        let text = fs::read_to_string(&file).map_err(ModelError::io(&file))?;
        let raw: HfConfig = serde_json::from_str(&text)
            .map_err(|e| ModelError::unsupported(&file, format!("config.json: {e}")))?;
        let mut config = convert(path, raw)?;
        let mut tensors = BTreeMap::new();
        for file in weight_files(path)? {
            let bytes = fs::read(&file).map_err(ModelError::io(&file))?;
            tensors.extend(candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?);
        }
        config.tied_head |= !tensors.contains_key("lm_head.weight");
        Ok(Self {
            path: path.to_owned(),
            config,
            tensors,
        })
    }

    fn tensor(&self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let t = self
            .tensors
            .get(name)
            .ok_or_else(|| ModelError::tensor(name, "it is missing"))?;
        if t.elem_count() != n {
            return Err(ModelError::tensor(
                name,
                format!("shape {:?}, expected {n} values", t.dims()),
            ));
        }
        Ok(t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    fn table(&self, name: &str) -> Result<Table, ModelError> {
        Ok(Table::dense(
            self.tensor(name, self.config.vocab * self.config.hidden)?,
            self.config.hidden,
        ))
    }
}

impl Sealed for HfFolder {
    #[allow(private_interfaces)]
    fn layer(&self, layer: usize) -> Result<LayerWeights, ModelError> {
        fuse(&self.config, |part, n| {
            self.tensor(&format!("model.layers.{layer}.{}", tensor_name(part)), n)
        })
    }
}

impl WeightSource for HfFolder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding(&self) -> Result<Table, ModelError> {
        self.table("model.embed_tokens.weight")
    }

    fn head(&self) -> Result<Table, ModelError> {
        self.table("lm_head.weight")
    }

    fn final_norm(&self) -> Result<Vec<f32>, ModelError> {
        self.tensor("model.norm.weight", self.config.hidden)
    }

    fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        Tokenizer::from_file(&self.path.join("tokenizer.json"))
    }
}

fn convert(path: &Path, c: HfConfig) -> Result<ModelConfig, ModelError> {
    let refuse = |why: String| Err(ModelError::unsupported(path, why));
    let qwen = match c.model_type.as_str() {
        "llama" => false,
        "qwen2" => true,
        other => return refuse(format!("model_type {other:?}")),
    };
    if c.rope_scaling.is_some_and(|v| !v.is_null()) {
        return refuse("rope_scaling".into());
    }
    if c.rope_parameters
        .as_ref()
        .and_then(|p| p.rope_type.as_deref())
        .is_some_and(|t| t != "default")
    {
        return refuse("rope_parameters with a rope_type other than default".into());
    }
    if c.mlp_bias == Some(true)
        || (c.attention_bias == Some(true) && !qwen)
        || c.use_sliding_window == Some(true)
    {
        return refuse(
            "biases or sliding windows that the Llama and Qwen2 families do not have".into(),
        );
    }
    let theta = c
        .rope_theta
        .or(c.rope_parameters.and_then(|p| p.rope_theta));
    let config = ModelConfig {
        hidden: c.hidden_size,
        layers: c.num_hidden_layers,
        heads: c.num_attention_heads,
        kv_heads: c.num_key_value_heads.unwrap_or(c.num_attention_heads),
        head_dim: c
            .head_dim
            .unwrap_or(c.hidden_size / c.num_attention_heads.max(1)),
        intermediate: c.intermediate_size,
        vocab: c.vocab_size,
        max_positions: c.max_position_embeddings,
        rope_theta: theta.unwrap_or(10_000.0),
        rms_eps: c.rms_norm_eps,
        qkv_bias: qwen,
        tied_head: c.tie_word_embeddings.unwrap_or(false),
    };
    config
        .check()
        .map_err(|why| ModelError::unsupported(path, why))?;
    Ok(config)
}

fn weight_files(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let entries = fs::read_dir(path).map_err(ModelError::io(path))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|x| x == "safetensors"))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(ModelError::unsupported(path, "no *.safetensors file"));
    }
    Ok(files)
}

fn tensor_name(part: Part) -> &'static str {
    match part {
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
    }
}
