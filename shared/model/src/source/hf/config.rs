//! config.json of the Llama and Qwen2 families: each key is consumed, known to be without effect,
//! or refused by name.

use std::path::Path;

use serde_json::{Map, Value, json};

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
    let rope_theta = rope(&path, &mut keys)?;
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
        rope_theta,
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

/// The base of the rotary embedding, wherever the version of transformers that wrote the file puts
/// it. Scaled and partial rotations are refused.
fn rope(path: &Path, keys: &mut Keys) -> Result<f32, ModelError> {
    keys.only("partial_rotary_factor", &[json!(1)])?;
    let mut found: Vec<f32> = keys.take("rope_theta", "a number")?.into_iter().collect();
    for key in ["rope_scaling", "rope_parameters"] {
        let inner: Option<Map<String, Value>> = keys.take(key, "an object")?;
        let Some(inner) = inner else {
            continue;
        };
        let mut inner = Keys::new(path, inner);
        for kind in ["rope_type", "type"] {
            let found: Option<Value> = inner.take(kind, "a name")?;
            if let Some(value) = found.filter(|v| *v != json!("default")) {
                let why = "supported: \"default\" (rotary scaling is not implemented)";
                return Err(inner.refuse(&format!("{key}.{kind}"), &value, why));
            }
        }
        inner.only("partial_rotary_factor", &[json!(1)])?;
        inner.only("factor", &[json!(1)])?;
        found.extend(inner.take::<f32>("rope_theta", "a number")?);
        inner.finish()?;
    }
    match found.as_slice() {
        [] => Ok(10_000.0),
        [first, rest @ ..] if rest.iter().all(|r| r == first) => Ok(*first),
        several => Err(ModelError::refused(
            path,
            format!("rope_theta is {several:?}"),
            "expected one value: it is there twice",
        )),
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
