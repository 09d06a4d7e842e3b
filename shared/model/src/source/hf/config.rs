//! config.json of the Llama and Qwen2 families: each key is consumed, known to be without effect,
//! or refused by name.

use std::path::Path;

use serde_json::json;

use crate::ModelError;
use crate::config::{self, ModelConfig};
use crate::files::keys::{Keys, WITHOUT_EFFECT};

/// Keys that change what is computed, unless they say "nothing".
const NOTHING: &[&str] = &[
    "quantization_config",
    "compression_config",
    "auto_map",
    "mlp_bias",
    "rope_interleaved",
    "pruned_heads",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "add_cross_attention",
    "cross_attention_hidden_size",
    "tie_encoder_decoder",
    "is_decoder",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "n_routed_experts",
    "moe_intermediate_size",
    "qk_layernorm",
    "use_qk_norm",
    "no_rope_layers",
    "use_mrope",
    "use_sliding_window",
];

/// The shape that config.json in `folder` describes.
///
/// # Errors
/// [`ModelError::Refused`] with key and value for what the engine does not compute.
pub(super) fn read(folder: &Path) -> Result<ModelConfig, ModelError> {
    let path = folder.join("config.json");
    let mut keys = Keys::read(&path)?;
    let family: String = keys.need("model_type", "llama or qwen2")?;
    let (qwen, class) = match family.as_str() {
        "llama" => (false, "LlamaForCausalLM"),
        "qwen2" => (true, "Qwen2ForCausalLM"),
        other => {
            let why = "supported: llama, qwen2";
            return Err(keys.refuse("model_type", &other.into(), why));
        }
    };
    keys.only("architectures", &[json!([class]), json!([])])?;
    keys.nothing(NOTHING)?;
    keys.only("hidden_act", &[json!("silu"), json!("swish")])?;
    match qwen {
        // A family with such biases, and no key for them.
        true => keys.only("attention_bias", &[json!(true)])?,
        false => keys.nothing(&["attention_bias"])?,
    }
    let heads = keys.need_count("num_attention_heads", config::HEADS)?;
    let hidden = keys.need_count("hidden_size", config::WIDTH)?;
    let kv_heads = match keys.count("num_key_value_heads", config::HEADS)? {
        Some(n) => n,
        None if qwen => {
            let what = "num_key_value_heads is missing";
            return Err(ModelError::refused(&path, what, "expected a whole number"));
        }
        None => heads,
    };
    let layers = keys.need_count("num_hidden_layers", config::LAYERS)?;
    let head_dim = match keys.count("head_dim", config::WIDTH)? {
        Some(n) => n,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let what = format!("hidden_size {hidden} does not divide over {heads} heads");
            return Err(ModelError::refused(&path, what, "expected head_dim, too"));
        }
    };
    let turns = rope(&path, &mut keys)?;
    sliding(&path, &mut keys, qwen)?;
    let read = ModelConfig {
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate: keys.need_count("intermediate_size", config::WIDTH)?,
        vocab: keys.need_count("vocab_size", config::VOCAB)?,
        max_positions: keys.need_count("max_position_embeddings", config::POSITIONS)?,
        rope_theta: turns.theta,
        rope_factors: turns.factors(head_dim),
        rms_eps: keys.need("rms_norm_eps", "a number")?,
        qkv_bias: qwen,
        tied_head: keys
            .take("tie_word_embeddings", "true or false")?
            .unwrap_or(false),
    };
    keys.without_effect(WITHOUT_EFFECT);
    keys.finish()?;
    read.check()
        .map_err(|why| ModelError::refused(&path, why, "no such model can be computed"))?;
    Ok(read)
}

/// The rotary embedding: its base, and how its frequencies are scaled.
struct Rope {
    theta: f32,
    scaling: Scaling,
}

#[derive(Clone, Copy, PartialEq)]
enum Scaling {
    None,
    /// Positions are divided by a factor (Chen et al., arXiv 2306.15595).
    Linear(f64),
    /// Long waves are divided by `factor`, short ones not at all (Llama 3.1; `llama3` in
    /// `modeling_rope_utils.py` of transformers).
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        context: f64,
    },
}

impl Rope {
    /// What each frequency is divided by.
    fn factors(&self, head_dim: usize) -> Vec<f32> {
        let half = head_dim / 2;
        match self.scaling {
            Scaling::None => vec![],
            Scaling::Linear(factor) => vec![factor as f32; half],
            Scaling::Llama3 {
                factor,
                low,
                high,
                context,
            } => (0..half)
                .map(|i| {
                    let exponent = 2.0 * i as f64 / head_dim as f64;
                    let wave = std::f64::consts::TAU * f64::from(self.theta).powf(exponent);
                    // How many waves the context of the first training has: few are long waves.
                    let waves = context / wave;
                    let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 / ((1.0 - kept) / factor + kept)) as f32
                })
                .collect(),
        }
    }
}

/// The rotary embedding, wherever the version of transformers that wrote the file puts it. Partial
/// rotations, and scalings that are not implemented, are refused.
fn rope(path: &Path, keys: &mut Keys) -> Result<Rope, ModelError> {
    keys.only("partial_rotary_factor", &[json!(1)])?;
    let mut found: Vec<f32> = keys.take("rope_theta", "a number")?.into_iter().collect();
    let mut scalings = vec![];
    for key in ["rope_scaling", "rope_parameters"] {
        if let Some(mut inner) = keys.inner(key)? {
            scalings.push(scaling(&mut inner)?);
            inner.only("partial_rotary_factor", &[json!(1)])?;
            found.extend(inner.take::<f32>("rope_theta", "a number")?);
            inner.finish()?;
        }
    }
    if let [first, second] = scalings.as_slice()
        && first != second
    {
        return Err(ModelError::refused(
            path,
            "rope_scaling and rope_parameters scale rotations in two ways",
            "expected one of the two",
        ));
    }
    let scaling = scalings.first().copied().unwrap_or(Scaling::None);
    let theta = match found.as_slice() {
        [] => 10_000.0,
        [first, rest @ ..] if rest.iter().all(|r| r == first) => *first,
        several => {
            return Err(ModelError::refused(
                path,
                format!("rope_theta is {several:?}"),
                "expected one value: it is there twice",
            ));
        }
    };
    Ok(Rope { theta, scaling })
}

/// How an object scales rotations.
fn scaling(inner: &mut Keys) -> Result<Scaling, ModelError> {
    const SUPPORTED: &str = "supported: \"default\", \"linear\", \"llama3\"";
    let mut kinds = vec![];
    for name in ["rope_type", "type"] {
        kinds.extend(inner.take::<String>(name, "a name")?);
    }
    let kind = kinds.first().map_or("default", String::as_str);
    if let Some(other) = kinds.iter().find(|k| *k != kind) {
        return Err(inner.refuse("type", &json!(other), "it has two types"));
    }
    let mut number = |name: &str| -> Result<f64, ModelError> {
        let value: f64 = inner.need(name, "a number")?;
        match value.is_finite() && value > 0.0 {
            true => Ok(value),
            false => Err(inner.refuse(name, &json!(value), "expected a positive number")),
        }
    };
    match kind {
        "default" => {
            inner.only("factor", &[json!(1)])?;
            Ok(Scaling::None)
        }
        "linear" => Ok(Scaling::Linear(number("factor")?)),
        "llama3" => {
            let factor = number("factor")?;
            let low = number("low_freq_factor")?;
            let high = number("high_freq_factor")?;
            let context = number("original_max_position_embeddings")?;
            match low < high {
                true => Ok(Scaling::Llama3 {
                    factor,
                    low,
                    high,
                    context,
                }),
                false => {
                    let why = format!("expected more than low_freq_factor, {low}");
                    Err(inner.refuse("high_freq_factor", &json!(high), &why))
                }
            }
        }
        other => Err(inner.refuse("rope_type", &json!(other), SUPPORTED)),
    }
}

/// Sliding windows are refused where they are in use. Qwen2 names a window also where it is not.
fn sliding(path: &Path, keys: &mut Keys, qwen: bool) -> Result<(), ModelError> {
    match qwen {
        true => keys.without_effect(&["sliding_window", "max_window_layers"]),
        false => keys.nothing(&["sliding_window", "max_window_layers"])?,
    }
    let kinds: Option<Vec<String>> = keys.take("layer_types", "a list of names")?;
    match kinds.into_iter().flatten().find(|k| k != "full_attention") {
        None => Ok(()),
        Some(kind) => Err(ModelError::refused(
            path,
            format!("layer_types has {}", crate::files::quoted(&kind)),
            "supported: full_attention in every layer",
        )),
    }
}
