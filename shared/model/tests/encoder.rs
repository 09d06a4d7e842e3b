//! The sentence encoder: what is accepted gives the vectors of transformers, what is not is refused
//! by name.
#![allow(missing_docs, clippy::unwrap_used)]

mod foreign;

use foreign::{copy, edit, edited, expected, fixture, read_tensors, write_tensors};
use lethe_model::encoder::Encoder;
use serde_json::json;

#[test]
fn vectors_are_those_of_transformers() {
    let all = expected();
    let list = |key: &str| all[key].as_array().unwrap().clone();
    let texts: Vec<String> = list("sentences")
        .iter()
        .map(|t| t.as_str().unwrap().to_owned())
        .collect();
    let encoder = Encoder::open(&fixture("bert")).unwrap();
    let got = encoder.encode(&texts).unwrap();
    assert_eq!(got.len(), texts.len() * encoder.width());
    for (got, want) in got.chunks(encoder.width()).zip(list("vectors")) {
        for (g, w) in got.iter().zip(want.as_array().unwrap()) {
            let w = w.as_f64().unwrap() as f32;
            assert!((g - w).abs() < 1e-5, "{g} against {w}");
        }
    }
}

#[test]
fn what_the_encoder_does_not_compute_is_refused_by_name() {
    let refused = |dir: &tempfile::TempDir| {
        let got = Encoder::open(dir.path()).map(|_| ());
        got.expect_err("refused").to_string()
    };
    for (change, why) in [
        (
            json!({"hidden_act": "relu"}),
            "hidden_act = \"relu\"; supported: \"gelu\"",
        ),
        (
            json!({"position_embedding_type": "relative_key"}),
            "position_embedding_type",
        ),
        (json!({"model_type": "roberta"}), "model_type = \"roberta\""),
        (
            json!({"quantization_config": {"bits": 8}}),
            "quantization_config",
        ),
        (
            json!({"embedding_size": 8}),
            "embedding_size = 8; this key is not known",
        ),
        (json!({"hidden_size": 15}), "does not divide"),
        (json!({"num_hidden_layers": 1}), "encoder.layer.1."),
        (json!({"num_hidden_layers": 3}), "encoder.layer.2."),
        (json!({"vocab_size": 83}), "the embedding has 83 rows"),
        (json!({"vocab_size": 1 << 24}), "expected [16777216, 16]"),
        (json!({"layer_norm_eps": null}), "layer_norm_eps is missing"),
    ] {
        let dir = copy("bert");
        edit(&dir.path().join("config.json"), &change);
        let got = refused(&dir);
        assert!(got.contains(why), "{change}: {got}");
    }
    let dir = copy("bert");
    let file = dir.path().join("model.safetensors");
    let mut tensors = read_tensors(&file);
    let extra = tensors["embeddings.LayerNorm.bias"].clone();
    tensors.insert("encoder.layer.0.adapter.bias".into(), extra);
    write_tensors(&file, &tensors);
    let got = refused(&dir);
    assert!(got.contains("encoder.layer.0.adapter.bias"), "{got}");
}

/// A fuzz target, too: `cargo bolero test -p lethe-model --test encoder any_bytes`.
#[test]
fn any_bytes_are_refused_or_read() {
    let names = ["config.json", "tokenizer.json", "model.safetensors"];
    let dir = copy("bert");
    let files = names.map(|n| std::fs::read(fixture("bert").join(n)).unwrap());
    let path = dir.path().to_owned();
    bolero::check!()
        .with_test_time(std::time::Duration::from_secs(2))
        .with_type::<(u8, Vec<(u32, u8)>)>()
        .for_each(|(which, edits): &(u8, Vec<(u32, u8)>)| {
            let at = usize::from(*which) % names.len();
            std::fs::write(path.join(names[at]), edited(&files[at], edits)).unwrap();
            if let Ok(encoder) = Encoder::open(&path) {
                let _ = encoder.encode(&["the movie (1996)".to_owned()]);
            }
            std::fs::write(path.join(names[at]), &files[at]).unwrap();
        });
}
