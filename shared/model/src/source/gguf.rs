//! GGUF files of architecture `llama`.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};

use super::{Part, Sealed, WeightSource, fuse};
use crate::ModelError;
use crate::config::ModelConfig;
use crate::embedding::{Table, dequantise};
use crate::layer::LayerWeights;
use crate::tokenizer::Tokenizer;

/// An open GGUF file; tensors are read when asked for.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    content: Content,
    file: Mutex<File>,
    config: ModelConfig,
}

impl GgufFile {
    /// Reads the header and the metadata.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        let mut reader = BufReader::new(&file);
        let content = Content::read(&mut reader)
            .map_err(|e| ModelError::unsupported(path, format!("not a GGUF file ({e})")))?;
        let config = config(path, &content)?;
        Ok(Self {
            path: path.to_owned(),
            content,
            file: Mutex::new(file),
            config,
        })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, ModelError> {
        self.content
            .tensor_infos
            .get(name)
            .ok_or_else(|| ModelError::tensor(name, "it is missing"))
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        let info = self.info(name)?;
        let blocks = info.shape.elem_count() / info.ggml_dtype.block_size();
        let mut bytes = vec![0; blocks * info.ggml_dtype.type_size()];
        let mut file = self
            .file
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(
            self.content.tensor_data_offset + info.offset,
        ))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(ModelError::io(&self.path))?;
        Ok(bytes)
    }

    fn tensor(&self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let info = self.info(name)?;
        if info.shape.elem_count() != n {
            return Err(ModelError::tensor(
                name,
                format!("{} values, expected {n}", info.shape.elem_count()),
            ));
        }
        dequantise(info.ggml_dtype, &self.bytes(name)?, n)
    }

    fn table(&self, name: &str) -> Result<Table, ModelError> {
        let info = self.info(name)?;
        if info.shape.dims() != [self.config.vocab, self.config.hidden] {
            return Err(ModelError::tensor(
                name,
                format!("shape {:?}", info.shape.dims()),
            ));
        }
        let start = self.content.tensor_data_offset + info.offset;
        // A handle of its own: rows are read at their places, whatever others do with theirs.
        let file = File::open(&self.path).map_err(ModelError::io(&self.path))?;
        Table::stored(
            file,
            &self.path,
            start,
            info.ggml_dtype,
            self.config.vocab,
            self.config.hidden,
        )
    }
}

impl Sealed for GgufFile {
    #[allow(private_interfaces)]
    fn layer(&self, layer: usize) -> Result<LayerWeights, ModelError> {
        let c = &self.config;
        fuse(c, |part, n| {
            let values = self.tensor(&format!("blk.{layer}.{}", tensor_name(part)), n)?;
            Ok(match part {
                Part::Q | Part::QBias => unpermute(&values, c.heads, c.head_dim),
                Part::K | Part::KBias => unpermute(&values, c.kv_heads, c.head_dim),
                _ => values,
            })
        })
    }
}

impl WeightSource for GgufFile {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding(&self) -> Result<Table, ModelError> {
        self.table("token_embd.weight")
    }

    fn head(&self) -> Result<Table, ModelError> {
        self.table("output.weight")
    }

    fn final_norm(&self) -> Result<Vec<f32>, ModelError> {
        self.tensor("output_norm.weight", self.config.hidden)
    }

    fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        Tokenizer::from_gguf(&self.content.metadata)
    }
}

fn tensor_name(part: Part) -> &'static str {
    match part {
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
    }
}

/// The GGUF converter interleaves the two halves of every query and key head; this restores the
/// order of the original checkpoint, so that rotate-half applies and adapters fit the original
/// projections.
fn unpermute(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let width = values.len() / (heads * head_dim);
    let half = head_dim / 2;
    let mut out = vec![0.0; values.len()];
    for h in 0..heads {
        for t in 0..2 {
            for j in 0..half {
                let to = (h * head_dim + t * half + j) * width;
                let from = (h * head_dim + j * 2 + t) * width;
                out[to..to + width].copy_from_slice(&values[from..from + width]);
            }
        }
    }
    out
}

fn config(path: &Path, content: &Content) -> Result<ModelConfig, ModelError> {
    let meta = |key: &str| content.metadata.get(key);
    let architecture = meta("general.architecture")
        .and_then(|v| v.to_string().ok())
        .map_or("?", String::as_str);
    if architecture != "llama" {
        return Err(ModelError::unsupported(
            path,
            format!("GGUF architecture {architecture:?}"),
        ));
    }
    let number = |key: &str| {
        meta(key)
            .and_then(as_usize)
            .ok_or_else(|| ModelError::unsupported(path, format!("metadata {key} is missing")))
    };
    let float = |key: &str| meta(key).and_then(|v| v.to_f32().ok());
    let (hidden, heads) = (
        number("llama.embedding_length")?,
        number("llama.attention.head_count")?,
    );
    let embedding = content
        .tensor_infos
        .get("token_embd.weight")
        .map(|i| i.shape.dims().to_vec());
    let config = ModelConfig {
        hidden,
        layers: number("llama.block_count")?,
        heads,
        kv_heads: number("llama.attention.head_count_kv").unwrap_or(heads),
        head_dim: number("llama.attention.key_length").unwrap_or(hidden / heads.max(1)),
        intermediate: number("llama.feed_forward_length")?,
        vocab: embedding.and_then(|d| d.first().copied()).unwrap_or(0),
        max_positions: number("llama.context_length")?,
        rope_theta: float("llama.rope.freq_base").unwrap_or(10_000.0),
        rms_eps: float("llama.attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
        qkv_bias: content.tensor_infos.contains_key("blk.0.attn_q.bias"),
        tied_head: !content.tensor_infos.contains_key("output.weight"),
    };
    config
        .check()
        .map_err(|why| ModelError::unsupported(path, why))?;
    if content.metadata.contains_key("llama.rope.scaling.type") {
        return Err(ModelError::unsupported(path, "rotary scaling"));
    }
    Ok(config)
}

fn as_usize(v: &Value) -> Option<usize> {
    v.to_u32()
        .map(|n| n as usize)
        .or_else(|_| v.to_u64().map(|n| n as usize))
        .ok()
}
