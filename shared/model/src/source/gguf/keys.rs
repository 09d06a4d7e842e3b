//! The metadata of a GGUF file: each key is consumed, known to be without effect, or refused by
//! name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::read::{Content, Value};
use crate::ModelError;
use crate::config::{self, ModelConfig};
use crate::files::quoted;

/// Names in front of keys that describe a file and who made it.
const DESCRIPTIVE: &[&str] = &["general.", "quantize.", "mradermacher.", "sampling."];

/// The metadata, and which keys of it were taken.
pub(crate) struct Metadata<'a> {
    path: &'a Path,
    values: &'a BTreeMap<String, Value>,
    taken: BTreeSet<String>,
}

impl<'a> Metadata<'a> {
    pub(crate) fn new(path: &'a Path, values: &'a BTreeMap<String, Value>) -> Self {
        Self {
            path,
            values,
            taken: BTreeSet::new(),
        }
    }

    /// Takes a key.
    pub(crate) fn take(&mut self, key: &str) -> Option<&'a Value> {
        self.taken.insert(key.to_owned());
        self.values.get(key)
    }

    /// Takes a key that is a text.
    ///
    /// # Errors
    /// [`ModelError::Refused`] if it is something else.
    pub(crate) fn text(&mut self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.refuse(key, "expected a text")),
        }
    }

    /// Takes a key that says yes or no.
    ///
    /// # Errors
    /// [`ModelError::Refused`] if it is something else.
    pub(crate) fn flag(&mut self, key: &str) -> Result<bool, ModelError> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(yes)) => Ok(*yes),
            Some(_) => Err(self.refuse(key, "expected true or false")),
        }
    }

    /// Takes a number from 1 to `most`.
    ///
    /// # Errors
    /// [`ModelError::Refused`] if it is something else.
    fn count(&mut self, key: &str, most: usize) -> Result<Option<usize>, ModelError> {
        let n = match self.take(key) {
            None => return Ok(None),
            Some(Value::Unsigned(n)) => usize::try_from(*n).ok(),
            Some(Value::Signed(n)) => usize::try_from(*n).ok(),
            Some(_) => None,
        };
        match n.filter(|n| (1..=most).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(self.refuse(key, &format!("expected a whole number from 1 to {most}"))),
        }
    }

    fn need(&mut self, key: &str, most: usize) -> Result<usize, ModelError> {
        self.count(key, most)?.ok_or_else(|| {
            let what = format!("metadata {key} is missing");
            ModelError::refused(self.path, what, "expected a whole number")
        })
    }

    fn float(&mut self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Float(f)) => Ok(Some(*f as f32)),
            Some(_) => Err(self.refuse(key, "expected a number")),
        }
    }

    /// Takes a key that may be there if it has one of these values.
    ///
    /// # Errors
    /// [`ModelError::Refused`] with key and value otherwise.
    pub(crate) fn only(&mut self, key: &str, values: &[Value]) -> Result<(), ModelError> {
        match self.take(key) {
            Some(found) if !values.contains(found) => {
                let list: Vec<String> = values.iter().map(shown).collect();
                Err(self.refuse(key, &format!("supported: {}", list.join(", "))))
            }
            _ => Ok(()),
        }
    }

    /// Takes keys whose value has no effect.
    pub(crate) fn without_effect(&mut self, keys: &[&str]) {
        self.taken.extend(keys.iter().map(|k| (*k).to_owned()));
    }

    /// What is wrong with `key`.
    pub(crate) fn refuse(&self, key: &str, supported: &str) -> ModelError {
        let what = match self.values.get(key) {
            Some(value) => format!("metadata {key} = {}", shown(value)),
            None => format!("metadata {key} is missing"),
        };
        ModelError::refused(self.path, what, supported)
    }

    /// Refuses keys that nobody took, but descriptive ones and those that begin with one of `skip`.
    ///
    /// # Errors
    /// [`ModelError::Refused`] with key and value.
    pub(crate) fn finish(&self, skip: &[&str]) -> Result<(), ModelError> {
        let known = |key: &str| {
            self.taken.contains(key) || DESCRIPTIVE.iter().chain(skip).any(|p| key.starts_with(p))
        };
        match self.values.iter().find(|(key, _)| !known(key)) {
            None => Ok(()),
            Some((key, value)) => Err(ModelError::refused(
                self.path,
                format!("metadata {} = {}", quoted(key), shown(value)),
                "this key is not known, and may change what is computed: remove it if it does not",
            )),
        }
    }
}

/// A value as it is quoted in an error.
fn shown(value: &Value) -> String {
    match value {
        Value::Unsigned(n) => n.to_string(),
        Value::Signed(n) => n.to_string(),
        Value::Float(f) => f.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Text(t) => quoted(t),
        Value::Texts(t) => format!("a list of {} texts", t.len()),
        Value::Numbers(n) => format!("a list of {} numbers", n.len()),
        Value::List(n) => format!("a list of {n} values"),
    }
}

/// The shape that the metadata describes, with what only the tensors say: biases and a head.
///
/// # Errors
/// [`ModelError::Refused`] with key and value for what the engine does not compute.
pub(super) fn config(path: &Path, content: &Content) -> Result<ModelConfig, ModelError> {
    let mut meta = Metadata::new(path, &content.metadata);
    let whole = Value::Text("model".into());
    meta.only("general.type", &[whole])?;
    if meta.text("general.architecture")? != Some("llama") {
        return Err(meta.refuse("general.architecture", "supported: \"llama\""));
    }
    meta.only("general.quantization_version", &[1, 2].map(Value::Unsigned))?;
    let key = |name: &str| format!("llama.{name}");
    let hidden = meta.need(&key("embedding_length"), config::WIDTH)?;
    let heads = meta.need(&key("attention.head_count"), config::HEADS)?;
    let head_dim = match meta.count(&key("attention.key_length"), config::WIDTH)? {
        Some(n) => n,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let why = format!("it does not divide over {heads} heads");
            return Err(meta.refuse(&key("embedding_length"), &why));
        }
    };
    let same = [head_dim as u64].map(Value::Unsigned);
    meta.only(&key("attention.value_length"), &same)?;
    // A smaller one rotates a part of each head.
    meta.only(&key("rope.dimension_count"), &same)?;
    let factor = scaled(&mut meta)?;
    let rope_factors = match factor == 1.0 {
        true => vec![],
        false => vec![factor; head_dim / 2],
    };
    let rows = content.tensors.get("token_embd.weight");
    let vocab = rows.and_then(|t| t.shape.first()).copied().unwrap_or(0);
    let vocab = usize::try_from(vocab).unwrap_or(usize::MAX);
    meta.only(&key("vocab_size"), &[Value::Unsigned(vocab as u64)])?;
    let zero = [Value::Unsigned(0), Value::Signed(0)];
    for name in [
        "expert_count",
        "expert_used_count",
        "attention.sliding_window",
        "pooling_type",
        "leading_dense_block_count",
    ] {
        meta.only(&key(name), &zero)?;
    }
    for name in ["attention.max_alibi_bias", "attention.clamp_kqv"] {
        meta.only(&key(name), &[Value::Float(0.0)])?;
    }
    for name in ["logit_scale", "residual_scale", "embedding_scale"] {
        meta.only(&key(name), &[Value::Float(1.0)])?;
    }
    meta.only(&key("attention.causal"), &[Value::Bool(true)])?;
    meta.only(&key("use_parallel_residual"), &[Value::Bool(false)])?;
    let read = ModelConfig {
        hidden,
        layers: meta.need(&key("block_count"), config::LAYERS)?,
        heads,
        kv_heads: meta
            .count(&key("attention.head_count_kv"), config::HEADS)?
            .unwrap_or(heads),
        head_dim,
        intermediate: meta.need(&key("feed_forward_length"), config::WIDTH)?,
        vocab,
        max_positions: meta.need(&key("context_length"), config::POSITIONS)?,
        rope_factors,
        rope_theta: meta.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        rms_eps: meta
            .float(&key("attention.layer_norm_rms_epsilon"))?
            .ok_or_else(|| {
                let what = "metadata llama.attention.layer_norm_rms_epsilon is missing";
                ModelError::refused(path, what, "expected a number")
            })?,
        qkv_bias: content.tensors.contains_key("blk.0.attn_q.bias"),
        tied_head: !content.tensors.contains_key("output.weight"),
    };
    // One part of one.
    meta.without_effect(&["split.no", "split.tensors.count"]);
    meta.only("split.count", &[0, 1].map(Value::Unsigned))?;
    // The tokenizer takes its own.
    meta.finish(&["tokenizer."])?;
    read.check()
        .map_err(|why| ModelError::refused(path, why, "no such model can be computed"))?;
    Ok(read)
}

/// What positions are divided by. Other scalings are refused.
fn scaled(meta: &mut Metadata<'_>) -> Result<f32, ModelError> {
    let kind = "llama.rope.scaling.type";
    let found = meta.text(kind)?;
    // Without a type, a factor is one of linear scaling, as llama.cpp reads it.
    if found.is_some_and(|t| t != "none" && t != "linear") {
        return Err(meta.refuse(kind, "supported: \"none\", \"linear\""));
    }
    let off = [Value::Float(0.0), Value::Float(1.0)];
    meta.only("llama.rope.scaling.attn_factor", &off)?;
    meta.without_effect(&[
        "llama.rope.scaling.original_context_length",
        "llama.rope.scaling.finetuned",
    ]);
    let key = "llama.rope.scaling.factor";
    let old = "llama.rope.scale_linear";
    if found == Some("none") {
        meta.only(key, &off)?;
        meta.only(old, &off)?;
        return Ok(1.0);
    }
    let earlier = meta.float(old)?;
    let newer = meta.float(key)?;
    match newer.or(earlier) {
        None | Some(0.0) => Ok(1.0),
        Some(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        Some(_) => {
            let name = if newer.is_some() { key } else { old };
            Err(meta.refuse(name, "expected a positive number"))
        }
    }
}
