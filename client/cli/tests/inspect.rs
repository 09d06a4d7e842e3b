//! Cases 10, 20 and 21 of docs/faults.md on the command line: what is not computed is an error
//! that names it, and an adapter belongs to the model that was given.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use lethe_tests::files::write_data;
use serde_json::Value;

fn lethe(args: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lethe"));
    let out = command.args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.success(), text(&out.stdout), text(&out.stderr))
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/model/tests/fixtures")
        .join(name)
}

#[test]
fn case_20_an_adapter_is_of_the_model_that_was_given_and_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    lethe_tests::tiny::write_model(Path::new(&at("model"))).unwrap();
    write_data(Path::new(&at("data")), 5, 40);
    let (success, _, err) = lethe(&[
        "train-central",
        "--model",
        &at("model"),
        "--data",
        &at("data"),
        "--samples",
        "8",
        "--batch",
        "2",
        "--lr",
        "0.01",
        "--test",
        "4",
        "--split",
        "per-user",
        "--no-untrained",
        "--last-layers",
        "2",
        "--save",
        &at("adapter"),
    ]);
    assert!(success, "{err}");
    let config = std::fs::read(dir.path().join("adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let model = dir.path().join("model").canonicalize().unwrap();
    assert_eq!(
        config["base_model_name_or_path"],
        model.display().to_string()
    );
    assert_eq!(config["layers_to_transform"], serde_json::json!([2, 3]));
    let plain = ["inspect", "--model", &at("model")];
    let (success, plain_out, err) = lethe(&plain);
    assert!(success, "{err}");
    let (success, out, err) = lethe(&[&plain[..], &["--adapter", &at("adapter")]].concat());
    assert!(success, "{err}");
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(read(&out)["adapter"]["recipe"]["last_layers"], 2);
    assert_ne!(read(&out)["answers"], read(&plain_out)["answers"]);
    let (success, _, err) = lethe(&[
        "inspect",
        "--model",
        &at("model"),
        "--adapter",
        &fixture("peft/refused/dora").display().to_string(),
    ]);
    assert!(!success && err.contains("use_dora = true"), "{err}");
}

#[test]
fn case_10_and_21_what_is_not_computed_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    lethe_tests::tiny::write_model(&model).unwrap();
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["hidden_act"] = "gelu".into();
    std::fs::write(&path, config.to_string()).unwrap();
    let (success, _, err) = lethe(&["inspect", "--model", &model.display().to_string()]);
    assert!(!success && err.contains("hidden_act = \"gelu\""), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    // A file without a tokenizer.
    let file = fixture("gguf/Q4_0.gguf").display().to_string();
    let (success, _, err) = lethe(&["inspect", "--model", &file]);
    assert!(!success && err.contains("tokenizer.ggml.model"), "{err}");
    let file = fixture("gguf/begins.gguf").display().to_string();
    let (success, out, err) = lethe(&["inspect", "--model", &file, "--prompt", "a"]);
    assert!(success, "{err}");
    let read: Value = serde_json::from_str(&out).unwrap();
    // The token that begins a text, and "a".
    assert_eq!(read["tokens"], serde_json::json!([0, 65]));
}
