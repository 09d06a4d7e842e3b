//! What is accepted computes what the file says: logits of transformers for every combination
//! (`fixtures/make.py`), and the tokens of its tokenizers.
#![allow(missing_docs, clippy::unwrap_used)]

mod foreign;
mod tiles;

use foreign::{copy, expected, fixture, logits};
use lethe_learn::seed::Seed;
use lethe_model::engine::Engine;
use lethe_model::frozen::Recomputed;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe, Projection};
use lethe_model::source::{WeightSource, open};
use lethe_model::split::{DeviceModel, LocalMiddle, SplitSpec};
use lethe_model::train::{Packing, Sample, Trainer};
use lethe_model::{lora_io, peft};
use serde_json::Value;

fn numbers(v: &Value) -> Vec<f32> {
    let list = v.as_array().unwrap();
    list.iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn compare(name: &str, source: &dyn WeightSource, adapter: Option<&Adapter>, want: &Value) {
    let all = expected();
    let sequences = all["sequences"].as_array().unwrap();
    for (ids, want) in sequences.iter().zip(want.as_array().unwrap()) {
        let ids: Vec<u32> = numbers(ids).into_iter().map(|n| n as u32).collect();
        let got = logits(source, adapter, &ids).unwrap();
        let want = numbers(want);
        assert_eq!(got.len(), want.len(), "{name}");
        for (id, (g, w)) in got.iter().zip(&want).enumerate() {
            // The largest of these logits is 4.3; the reference is rounded to six decimals.
            assert!((g - w).abs() < 1e-4, "{name}: logit {id}: {g} against {w}");
        }
    }
}

fn path(name: &str) -> std::path::PathBuf {
    match name.strip_prefix("gguf/") {
        Some(_) => fixture(&format!("{name}.gguf")),
        None => fixture(name),
    }
}

#[test]
fn models_give_the_logits_of_transformers() {
    let all = expected();
    let models = all["models"].as_object().unwrap();
    assert!(models.len() >= 32, "{}", models.len());
    for (name, want) in models {
        let source = open(&path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        compare(name, source.as_ref(), None, want);
    }
}

#[test]
fn adapters_give_the_logits_of_peft() {
    let all = expected();
    let source = open(&fixture("hf/llama-untied")).unwrap();
    let adapters = all["adapters"].as_object().unwrap();
    assert!(adapters.len() >= 7, "{}", adapters.len());
    for (name, want) in adapters {
        let read = peft::open(&fixture(name), source.config());
        let read = read.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(read.base.as_deref(), Some("hf/llama-untied"));
        compare(name, source.as_ref(), Some(&read.adapter), want);
        // Ours, written and read again, is the same.
        let dir = tempfile::tempdir().unwrap();
        peft::save(dir.path(), &read.adapter, &read.recipe, "base").unwrap();
        let ours = peft::open(dir.path(), source.config()).unwrap();
        assert_eq!(ours.adapter, read.adapter, "{name}");
        assert_eq!(ours.recipe, read.recipe, "{name}");
        assert_eq!(ours.base.as_deref(), Some("base"));
        let bytes = lora_io::to_bytes(&read.adapter, &read.recipe).unwrap();
        let again = lora_io::from_bytes(&bytes, read.adapter.shape()).unwrap();
        assert_eq!(again, read.adapter, "{name}");
    }
}

/// The gradient of a training step of the whole model, and the memory of its weights.
fn step(engine: &Engine, source: &dyn WeightSource, compute: Compute) -> (Vec<f32>, usize) {
    let spec = SplitSpec {
        k_in: 0,
        k_out: source.config().layers,
    };
    let recipe = LoraRecipe {
        targets: Projection::ALL.to_vec(),
        ..LoraRecipe::default()
    };
    let shape = AdapterShape::new(source.config(), &recipe, |_| true);
    let mut rng = Seed::from_u64(8).rng();
    let drawn = (0..shape.len()).map(|_| 0.1 * rng.normal()).collect();
    let adapter = Adapter::from_data(&shape, drawn).unwrap();
    let device = DeviceModel::load_on(engine, source, spec, compute).unwrap();
    let none = DeviceModel::load_middle_on(engine, source, spec, compute).unwrap();
    let mut middle = LocalMiddle::new(none, adapter.select(|_| false));
    let trainer = Trainer {
        device: &device,
        answers: [3, 4],
        packing: Packing { max_tokens: 64 },
        frozen: &Recomputed,
    };
    let samples = [vec![5, 9, 3, 20, 7], vec![5, 9, 11], vec![8]].map(|ids| Sample {
        label: ids.len() > 2,
        ids,
    });
    let mut grads = vec![0.0; adapter.data.len()];
    trainer
        .accumulate(&samples, &adapter, &mut grads, &mut middle)
        .unwrap();
    (grads, device.weight_bytes())
}

#[test]
fn weights_that_stay_as_they_are_stored_give_the_same_gradients() {
    let all = expected();
    let mut smaller = 0;
    for name in all["models"].as_object().unwrap().keys() {
        let source = open(&path(name)).unwrap();
        for compute in [Compute::F32, Compute::Bf16] {
            let (want, panels) = step(&Engine::cpu(), source.as_ref(), compute);
            let (got, stored) = step(&Engine::compact(), source.as_ref(), compute);
            assert!(want.iter().any(|g| *g != 0.0), "{name}");
            assert!(got == want, "{name}, {compute:?}");
            assert!(stored <= panels, "{name}, {compute:?}");
            smaller += usize::from(stored < panels);
        }
    }
    // Where the tile kernels do not run, weights are plain in both.
    let tiles = tiles::tile_kernels_run();
    assert!(!tiles || smaller > 8, "only {smaller} are smaller");
}

#[test]
fn prompts_have_the_tokens_of_transformers() {
    let all = expected();
    let texts = all["texts"].as_array().unwrap();
    for (name, want) in all["tokens"].as_object().unwrap() {
        let tokenizer = open(&path(name)).unwrap().tokenizer().unwrap();
        for (text, want) in texts.iter().zip(want.as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let want: Vec<u32> = numbers(want).into_iter().map(|n| n as u32).collect();
            assert_eq!(tokenizer.prompt(text).unwrap(), want, "{name}: {text:?}");
            // Without what begins a text: answers.
            assert_eq!(tokenizer.encode(text).unwrap(), want[1..], "{name}");
        }
    }
}

/// Scaled rotations, as earlier versions of transformers and of the GGUF converter wrote them.
#[test]
fn scaled_rotations_are_read_as_they_were_written_before() {
    let all = expected();
    for (name, kind) in [
        ("linear", "type"),
        ("linear", "rope_type"),
        ("llama3", "type"),
    ] {
        let dir = copy(&format!("hf/llama-rope-{name}"));
        let mut scaling = serde_json::json!({ kind: name, "factor": 8.0 });
        match name {
            "linear" => scaling["factor"] = 4.into(),
            _ => {
                scaling["low_freq_factor"] = 1.0.into();
                scaling["high_freq_factor"] = 4.0.into();
                scaling["original_max_position_embeddings"] = 128.into();
            }
        }
        let change = serde_json::json!({
            "rope_parameters": null, "rope_scaling": scaling, "rope_theta": 10000.0,
        });
        foreign::edit(&dir.path().join("config.json"), &change);
        let source = open(dir.path()).unwrap();
        let want = &all["models"][&format!("hf/llama-rope-{name}")];
        compare(name, source.as_ref(), None, want);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = foreign::Gguf::read("Q8_0").float("llama.rope.scale_linear", 4.0);
    let source = open(&file.write(dir.path())).unwrap();
    compare(
        "legacy",
        source.as_ref(),
        None,
        &all["models"]["gguf/rope-linear"],
    );
}

/// Values that mean "nothing", as files write them.
#[test]
fn keys_that_change_nothing_are_read() {
    let dir = copy("hf/llama-tied");
    let change = serde_json::json!({
        "rope_scaling": {"rope_type": "default"}, "attention_bias": false, "mlp_bias": false,
        "rope_theta": 10000, "partial_rotary_factor": 1.0, "torch_dtype": "bfloat16",
        "pretraining_tp": 2, "quantization_config": {}, "sliding_window": false,
        "layer_types": ["full_attention", "full_attention"], "rope_interleaved": false,
        "transformers.js_config": {"kv_cache_dtype": {}}, "temperature": 0.6,
    });
    foreign::edit(&dir.path().join("config.json"), &change);
    let source = open(dir.path()).unwrap();
    compare(
        "nothing",
        source.as_ref(),
        None,
        &expected()["models"]["hf/llama-tied"],
    );
    let plain = foreign::Gguf::read("Q8_0");
    let said = plain
        .text("llama.rope.scaling.type", "none")
        .float("llama.rope.scaling.factor", 1.0)
        .number("llama.expert_count", 0)
        .number("llama.attention.key_length", 8)
        .number("llama.attention.value_length", 8)
        .text("general.license", "mit")
        .with("split.count", 2, &1u16.to_le_bytes())
        .tensor("rope_freqs.weight", &[4]);
    let path = said.write(dir.path());
    let source = open(&path).unwrap();
    compare(
        "nothing",
        source.as_ref(),
        None,
        &expected()["models"]["gguf/Q8_0"],
    );
}
