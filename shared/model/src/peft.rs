//! Folders of adapters as PEFT (huggingface/peft) has them: `adapter_config.json` and
//! `adapter_model.safetensors`. What they say is applied, known to be without effect, or refused
//! by name.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::ModelError;
use crate::config::ModelConfig;
use crate::files::keys::Keys;
use crate::files::quoted;
use crate::files::tensors::header;
use crate::lora::{Adapter, AdapterShape, LoraRecipe, Projection};
use crate::lora_io::{check, failed, names, recipe_of, to_bytes};
use crate::source::RawTensor;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// Highest rank.
const RANK: usize = 1 << 16;

/// Keys without effect on what an adapter adds: how it was made, and settings of what is off.
const WITHOUT_EFFECT: &[&str] = &[
    "peft_version",
    "auto_mapping",
    "revision",
    "inference_mode",
    // Training only.
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
];

/// Keys that change what an adapter adds, or to what, unless they say "nothing".
const NOTHING: &[&str] = &[
    "fan_in_fan_out",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "exclude_modules",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "ensure_weight_tying",
    "alora_invocation_tokens",
    "megatron_config",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
];

/// An adapter from a folder.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its values, in f32.
    pub adapter: Adapter,
    /// What gives its shape. `alpha` is such that `alpha / rank` is the adapter's scale, also for
    /// one that was scaled by the root of its rank (rsLoRA, arXiv 2312.03732).
    pub recipe: LoraRecipe,
    /// The model that it was trained on, as the folder says. Only its shape can be compared with
    /// the model that is used.
    pub base: Option<String>,
}

/// Reads the folder of an adapter for a model of shape `model`.
///
/// # Errors
/// [`ModelError::Refused`] with key and value, or the tensor, for whatever is not applied;
/// [`ModelError::Tensor`] for tensors that are missing or of another shape.
pub fn open(folder: &Path, model: &ModelConfig) -> Result<Opened, ModelError> {
    let path = folder.join(TENSORS);
    let config = folder.join(CONFIG);
    for (file, what) in [(&config, CONFIG), (&path, TENSORS)] {
        if !file.exists() {
            let found = format!("it has no {what}");
            let supported = "supported: a LoRA adapter's folder as PEFT saves it, with \
                             adapter_config.json and adapter_model.safetensors (*.bin is not read)";
            return Err(ModelError::refused(folder, found, supported));
        }
    }
    let mut keys = Keys::read(&config)?;
    let recipe = read_config(&config, &mut keys, model)?;
    let base = keys.take("base_model_name_or_path", "a name")?;
    keys.without_effect(WITHOUT_EFFECT);
    keys.finish()?;
    let shape = AdapterShape::new(model, &recipe, |_| true);
    let file = File::open(&path).map_err(ModelError::io(&path))?;
    let length = file.metadata().map_err(ModelError::io(&path))?.len();
    let header = header(&path, &mut BufReader::new(&file), length)?;
    check(&path, &header, &shape)?;
    let own = recipe_of(&header)?;
    if let Some(own) = own.filter(|own| !same(own, &recipe, model.layers)) {
        return Err(ModelError::refused(
            &path,
            format!("its own recipe is {own:?}"),
            format!("{CONFIG} says {recipe:?}: one of the two is wrong"),
        ));
    }
    let mut data = vec![0.0; shape.len()];
    for e in shape.entries() {
        let (a, b) = shape.ranges(e);
        for (name, range) in names(e).into_iter().zip([a, b]) {
            let Some(stored) = header.tensors.get(&name) else {
                continue;
            };
            let dtype = stored.dtype(&path, &name)?;
            let read = RawTensor::read(&file, &path, stored.start, stored.bytes, dtype)?;
            data[range].copy_from_slice(&read.values()?);
        }
    }
    let adapter = Adapter::from_data(&shape, data)?;
    Ok(Opened {
        adapter,
        recipe,
        base,
    })
}

/// Whether two recipes give one adapter: ranks differ where adapters were joined, the scale stays.
fn same(a: &LoraRecipe, b: &LoraRecipe, layers: usize) -> bool {
    let scale = |r: &LoraRecipe| r.alpha / r.rank.max(1) as f32;
    let targets = |r: &LoraRecipe| r.targets.iter().copied().collect::<BTreeSet<_>>();
    (scale(a) - scale(b)).abs() <= 1e-6 * scale(b).abs()
        && targets(a) == targets(b)
        && a.first_trained(layers) == b.first_trained(layers)
}

/// What adapter_config.json says that is applied; what is not is refused.
fn read_config(
    path: &Path,
    keys: &mut Keys,
    model: &ModelConfig,
) -> Result<LoraRecipe, ModelError> {
    let kind: String = keys.need("peft_type", "\"LORA\"")?;
    if kind != "LORA" {
        return Err(keys.refuse("peft_type", &kind.into(), "supported: \"LORA\""));
    }
    keys.only("task_type", &[json!("CAUSAL_LM")])?;
    keys.nothing(NOTHING)?;
    keys.only("bias", &[json!("none")])?;
    // Others take something out of the base model, or draw ranks of their own.
    let plain = [
        json!(true),
        json!(false),
        json!("gaussian"),
        json!("orthogonal"),
    ];
    keys.only("init_lora_weights", &plain)?;
    let rank = keys.need_count("r", RANK)?;
    let alpha: f64 = keys.need("lora_alpha", "a number")?;
    let by_root = keys.take("use_rslora", "true or false")?.unwrap_or(false);
    let alpha = match by_root {
        true => alpha * (rank as f64).sqrt(),
        false => alpha,
    } as f32;
    if !alpha.is_finite() {
        return Err(keys.refuse("lora_alpha", &Value::Null, "expected a finite number"));
    }
    let (targets, last_layers) = targets(path, keys, model)?;
    Ok(LoraRecipe {
        rank,
        alpha,
        targets,
        last_layers,
    })
}

/// Which projections of which layers are adapted. `target_modules` names projections of all
/// layers, or, as PEFT writes "all-linear", each by its path.
fn targets(
    path: &Path,
    keys: &mut Keys,
    model: &ModelConfig,
) -> Result<(Vec<Projection>, Option<usize>), ModelError> {
    const KEY: &str = "target_modules";
    let supported = "supported: a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, \
                     down_proj";
    let found: Option<Value> = keys.take(KEY, "a list of names")?;
    let list = match found {
        Some(Value::Array(list)) if !list.is_empty() => list,
        other => {
            let value = other.unwrap_or(Value::Null);
            return Err(keys.refuse(KEY, &value, supported));
        }
    };
    let chosen = layers(path, keys, model)?;
    let mut pairs = BTreeSet::new();
    for name in &list {
        let known = name.as_str().and_then(|n| module(n, model.layers));
        match known {
            Some((None, proj)) => {
                let everywhere = |l: &usize| chosen.as_ref().is_none_or(|c| c.contains(l));
                let layers = (0..model.layers).filter(everywhere);
                pairs.extend(layers.map(|l| (l, proj)));
            }
            Some((Some(layer), proj)) if chosen.is_none() => {
                pairs.insert((layer, proj));
            }
            _ => {
                let what = format!("{KEY} has {}", quoted(&name.to_string()));
                return Err(ModelError::refused(path, what, supported));
            }
        }
    }
    let targets: BTreeSet<Projection> = pairs.iter().map(|(_, p)| *p).collect();
    let adapted: BTreeSet<usize> = pairs.iter().map(|(l, _)| *l).collect();
    let count = adapted.len();
    let last = adapted
        .iter()
        .copied()
        .eq(model.layers - count..model.layers);
    if !last || pairs.len() != count * targets.len() {
        return Err(ModelError::refused(
            path,
            format!(
                "it adapts layers {adapted:?}, not each in the same projections or not the last"
            ),
            format!(
                "supported: the same projections in all {} layers, or in the last of them without \
                 a gap",
                model.layers
            ),
        ));
    }
    let last_layers = (count < model.layers).then_some(count);
    Ok((targets.into_iter().collect(), last_layers))
}

/// The projection that `name` names, and the layer, if it names one.
fn module(name: &str, layers: usize) -> Option<(Option<usize>, Projection)> {
    let of = |name: &str| {
        Projection::ALL
            .into_iter()
            .find(|p| p.module() == name || p.module().rsplit('.').next() == Some(name))
    };
    if let Some(proj) = of(name) {
        return Some((None, proj));
    }
    let rest = name.strip_prefix("base_model.model.").unwrap_or(name);
    let rest = rest.strip_prefix("model.").unwrap_or(rest);
    let (layer, module) = rest.strip_prefix("layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok().filter(|l| *l < layers)?;
    let proj = Projection::ALL.into_iter().find(|p| p.module() == module)?;
    Some((Some(layer), proj))
}

/// The layers that `layers_to_transform` names, if it is there.
fn layers(
    path: &Path,
    keys: &mut Keys,
    model: &ModelConfig,
) -> Result<Option<BTreeSet<usize>>, ModelError> {
    const KEY: &str = "layers_to_transform";
    keys.only(
        "layers_pattern",
        &[json!("layers"), json!(["layers"]), json!([])],
    )?;
    let found: Option<Value> = keys.take(KEY, "a list of layers")?;
    let number = |v: &Value| {
        let n = v.as_u64().and_then(|n| usize::try_from(n).ok());
        n.filter(|n| *n < model.layers)
    };
    let listed: Option<BTreeSet<usize>> = match &found {
        None => return Ok(None),
        Some(Value::Array(list)) => list.iter().map(number).collect(),
        Some(one) => number(one).map(|n| BTreeSet::from([n])),
    };
    match listed.filter(|l| !l.is_empty()) {
        Some(layers) => Ok(Some(layers)),
        None => {
            let why = format!("supported: a list of layers below {}", model.layers);
            let value = found.unwrap_or(Value::Null);
            Err(ModelError::refused(path, format!("{KEY} = {value}"), why))
        }
    }
}

/// Writes `adapter_model.safetensors` and `adapter_config.json` into `folder`, as PEFT reads them.
/// `base` is the model that the adapter belongs to: a path, or a name of a hub.
///
/// # Errors
/// [`ModelError`] if they cannot be written.
pub fn save(
    folder: &Path,
    adapter: &Adapter,
    recipe: &LoraRecipe,
    base: &str,
) -> Result<(), ModelError> {
    std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    let targets: Vec<&str> = recipe
        .targets
        .iter()
        .filter_map(|p| p.module().rsplit('.').next())
        .collect();
    let shape: &Arc<AdapterShape> = adapter.shape();
    let alpha = shape.scale() * shape.rank() as f32;
    // Without them PEFT would make adapters of all layers, and miss the values of most.
    let layers: Option<BTreeSet<usize>> = recipe
        .last_layers
        .map(|_| shape.entries().iter().map(|e| e.layer).collect());
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": shape.rank(), "lora_alpha": alpha,
        "lora_dropout": 0.0, "bias": "none", "target_modules": targets,
        "layers_to_transform": layers, "inference_mode": true,
    });
    let files = [
        (TENSORS, to_bytes(adapter, recipe)?),
        (CONFIG, serde_json::to_vec_pretty(&config).map_err(failed)?),
    ];
    for (name, bytes) in files {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(ModelError::io(&path))?;
    }
    Ok(())
}
