//! Case 20 of docs/faults.md: adapters from PEFT are applied as they are meant, or refused by name.
//! `logits.rs` compares those that are applied.
#![allow(missing_docs, clippy::unwrap_used)]

mod foreign;

use std::path::Path;

use foreign::{copy, edit, fixture, read_tensors, write_tensors};
use lethe_model::config::ModelConfig;
use lethe_model::lora::{AdapterShape, LoraRecipe};
use lethe_model::source::open;
use lethe_model::{lora_io, peft};
use serde_json::json;

fn model() -> ModelConfig {
    open(&fixture("hf/llama-untied")).unwrap().config().clone()
}

fn refused(folder: &Path) -> String {
    let got = peft::open(folder, &model());
    got.map(|_| ()).expect_err("refused").to_string()
}

#[test]
fn case_20_what_peft_writes_and_is_not_applied_is_refused_by_name() {
    for (name, why) in [
        ("dora", "use_dora = true"),
        ("lora-bias", "lora_bias = true"),
        ("bias", "bias = \"lora_only\"; supported: \"none\""),
        ("rank-pattern", "rank_pattern"),
        ("alpha-pattern", "alpha_pattern"),
        ("modules-to-save", "modules_to_save"),
        ("first-layer", "in the last of them"),
        ("head", "lm_head"),
        ("pattern", "target_modules"),
        ("pissa", "init_lora_weights"),
    ] {
        let got = refused(&fixture(&format!("peft/refused/{name}")));
        assert!(
            got.contains(why) && got.contains("adapter_config.json"),
            "{name}: {got}"
        );
    }
}

#[test]
fn case_20_keys_of_an_adapter_config_are_refused_by_name() {
    for (change, why) in [
        (
            json!({"peft_type": "LOHA"}),
            "peft_type = \"LOHA\"; supported: \"LORA\"",
        ),
        (json!({"task_type": "SEQ_CLS"}), "task_type"),
        (json!({"fan_in_fan_out": true}), "fan_in_fan_out"),
        (json!({"init_lora_weights": "olora"}), "\"olora\""),
        (json!({"init_lora_weights": "eva"}), "\"eva\""),
        (json!({"loftq_config": {"loftq_bits": 4}}), "loftq_config"),
        (json!({"layer_replication": [[0, 2]]}), "layer_replication"),
        (
            json!({"trainable_token_indices": [1]}),
            "trainable_token_indices",
        ),
        (json!({"exclude_modules": ["q_proj"]}), "exclude_modules"),
        (json!({"layers_pattern": "blocks"}), "layers_pattern"),
        (
            json!({"layers_to_transform": [7]}),
            "layers_to_transform = [7]",
        ),
        (
            json!({"target_modules": ["q_proj", "embed_tokens"]}),
            "embed_tokens",
        ),
        (
            json!({"target_modules": ["q_proj"]}),
            "v_proj.lora_A.weight",
        ),
        (
            json!({"target_modules": ["q_proj", "k_proj", "v_proj"]}),
            "k_proj.lora_A.weight: ",
        ),
        (json!({"r": 8}), "shape [4, 32], expected [8, 32]"),
        (json!({"r": 0}), "r = 0"),
        (json!({"r": 1u64 << 60}), "r = "),
        (json!({"r": null}), "r is missing"),
        (json!({"lora_alpha": "8"}), "lora_alpha = \"8\""),
        (
            json!({"use_new_thing": true}),
            "use_new_thing = true; this key is not known",
        ),
        (json!({"use_new_thing": false}), "use_new_thing"),
    ] {
        let dir = copy("peft/plain");
        edit(&dir.path().join("adapter_config.json"), &change);
        let got = refused(dir.path());
        assert!(got.contains(why), "{change}: {got}");
    }
}

#[test]
fn case_20_tensors_of_an_adapter_are_all_applied_or_refused_by_name() {
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    type Change = fn(&mut foreign::Tensors, &str);
    let changes: [(Change, &str); 5] = [
        (|t, n| drop(t.remove(n)), "the adapter file lacks it"),
        (
            |t, n| t.get_mut(n).unwrap().1 = vec![32, 4],
            "expected [4, 32]",
        ),
        (
            |t, n| t.get_mut(n).unwrap().0 = "I32".into(),
            "\"I32\"; supported: F32, F16, BF16",
        ),
        (
            |t, n| drop(t.insert(n.replace("_A.weight", "_magnitude_vector"), t[n].clone())),
            "lora_magnitude_vector",
        ),
        (
            |t, n| drop(t.insert("base_model.model.lm_head.weight".into(), t[n].clone())),
            "lm_head.weight",
        ),
    ];
    for (change, why) in changes {
        let dir = copy("peft/plain");
        let file = dir.path().join("adapter_model.safetensors");
        let mut tensors = read_tensors(&file);
        change(&mut tensors, name);
        write_tensors(&file, &tensors);
        let got = refused(dir.path());
        assert!(got.contains(why), "{why}: {got}");
    }
    // The tensors alone do not say how they are scaled.
    let shape = AdapterShape::new(&model(), &recipe(4, 8.0), |_| true);
    let bytes = std::fs::read(fixture("peft/root-of-rank/adapter_model.safetensors")).unwrap();
    let got = lora_io::from_bytes(&bytes, &shape);
    let got = got.expect_err("refused").to_string();
    assert!(
        got.contains("adapter_config.json (lethe_model::peft::open)"),
        "{got}"
    );
    let dir = copy("peft/plain");
    std::fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    std::fs::write(dir.path().join("adapter_model.bin"), b"x").unwrap();
    let got = refused(dir.path());
    assert!(
        got.contains("no adapter_model.safetensors") && got.contains("*.bin"),
        "{got}"
    );
}

fn recipe(rank: usize, alpha: f32) -> LoraRecipe {
    LoraRecipe {
        rank,
        alpha,
        ..LoraRecipe::default()
    }
}

/// The tensors do not say how they are scaled; those that Lethe wrote do.
#[test]
fn case_20_an_adapter_of_ours_is_not_read_with_another_scale() {
    let read = peft::open(&fixture("peft/plain"), &model()).unwrap();
    let bytes = lora_io::to_bytes(&read.adapter, &read.recipe).unwrap();
    assert_eq!(lora_io::recipe(&bytes).unwrap(), Some(read.recipe.clone()));
    let other = AdapterShape::new(&model(), &recipe(4, 9.0), |_| true);
    let got = lora_io::from_bytes(&bytes, &other)
        .expect_err("refused")
        .to_string();
    assert!(got.contains("scale 2"), "{got}");
    let dir = tempfile::tempdir().unwrap();
    peft::save(dir.path(), &read.adapter, &read.recipe, "base").unwrap();
    edit(
        &dir.path().join("adapter_config.json"),
        &json!({"lora_alpha": 9.0}),
    );
    let got = refused(dir.path());
    assert!(got.contains("one of the two is wrong"), "{got}");
}
