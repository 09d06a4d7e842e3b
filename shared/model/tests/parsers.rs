//! Readers of foreign files take any bytes: no panic, and what is read can be computed with. Fuzz
//! targets, too: `cargo bolero test -p lethe-model --test parsers gguf`. The corpus of valid files
//! is `fixtures`, written by transformers, peft and gguf.
#![allow(missing_docs, clippy::unwrap_used)]

mod foreign;

use std::path::{Path, PathBuf};
use std::time::Duration;

use foreign::{copy, edited, fixture, read_all};
use lethe_model::lora::{AdapterShape, LoraRecipe};
use lethe_model::source::open;
use lethe_model::{lora_io, peft};

/// How long each of them tries, at most, where no engine drives it.
const TIME: Duration = Duration::from_secs(2);

/// Replaces a file with versions of it that have some bytes changed, and reads it.
fn fuzz(file: &Path, read: impl Fn() + std::panic::RefUnwindSafe) {
    let valid = std::fs::read(file).unwrap();
    let run = |edits: &Vec<(u32, u8)>| {
        std::fs::write(file, edited(&valid, edits)).unwrap();
        read();
    };
    // As it is, and cut at many places.
    run(&vec![]);
    for i in 0..200u32 {
        let at = i * (valid.len() as u32 / 200).max(1);
        std::fs::write(file, &valid[..(at as usize).min(valid.len())]).unwrap();
        read();
    }
    bolero::check!()
        .with_test_time(TIME)
        .with_type::<Vec<(u32, u8)>>()
        .for_each(|edits: &Vec<(u32, u8)>| run(edits));
}

/// The same for edits in the first bytes only: headers, where all decisions are.
fn fuzz_head(file: &Path, head: usize, read: impl Fn() + std::panic::RefUnwindSafe) {
    let valid = std::fs::read(file).unwrap();
    bolero::check!()
        .with_test_time(TIME)
        .with_type::<Vec<(u16, u8)>>()
        .for_each(|edits: &Vec<(u16, u8)>| {
            let mut bytes = valid.clone();
            for (at, value) in edits {
                bytes[*at as usize % head] = *value;
            }
            std::fs::write(file, bytes).unwrap();
            read();
        });
}

fn gguf(name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::copy(fixture(&format!("gguf/{name}.gguf")), &path).unwrap();
    (dir, path)
}

#[test]
fn gguf_files() {
    let (_dir, path) = gguf("begins");
    fuzz(&path, || drop(read_all(&path, true)));
}

#[test]
fn gguf_headers() {
    let (_dir, path) = gguf("Q2_K");
    fuzz_head(&path, 1500, || drop(read_all(&path, true)));
}

#[test]
fn safetensors() {
    let dir = copy("hf/llama-begins");
    let file = dir.path().join("model.safetensors");
    fuzz(&file, || drop(read_all(dir.path(), false)));
}

#[test]
fn safetensors_headers() {
    let dir = copy("hf/llama-begins");
    let file = dir.path().join("model.safetensors");
    fuzz_head(&file, 900, || drop(read_all(dir.path(), false)));
}

#[test]
fn indices() {
    let dir = copy("hf/llama-sharded");
    let file = dir.path().join("model.safetensors.index.json");
    fuzz(&file, || drop(read_all(dir.path(), false)));
}

#[test]
fn configs() {
    let dir = copy("hf/llama-begins");
    let file = dir.path().join("config.json");
    fuzz(&file, || drop(read_all(dir.path(), false)));
}

#[test]
fn tokenizers() {
    let dir = copy("hf/llama-begins");
    let file = dir.path().join("tokenizer.json");
    let source = open(dir.path()).unwrap();
    let source = std::panic::AssertUnwindSafe(source);
    fuzz(&file, || {
        if let Ok(tokenizer) = source.tokenizer() {
            let ids = tokenizer.prompt("Whether \"Amélie\" <|mark|> \u{1f600}\n\n 12");
            let known = |ids: &Vec<u32>| ids.iter().all(|id| *id < 292);
            assert!(ids.as_ref().map_or(true, known), "{ids:?}");
        }
    });
}

#[test]
fn adapters() {
    let model = open(&fixture("hf/llama-untied")).unwrap().config().clone();
    let recipe = LoraRecipe {
        rank: 4,
        ..LoraRecipe::default()
    };
    let shape = AdapterShape::new(&model, &recipe, |_| true);
    // PEFT's, and ours.
    for name in ["adapter_config.json", "adapter_model.safetensors", "ours"] {
        let dir = copy("peft/plain");
        if name == "ours" {
            let read = peft::open(dir.path(), &model).unwrap();
            peft::save(dir.path(), &read.adapter, &read.recipe, "base").unwrap();
        }
        let name = name.replace("ours", "adapter_model.safetensors");
        let file = dir.path().join(name);
        fuzz(&file, || {
            let _ = peft::open(dir.path(), &model);
            let bytes = std::fs::read(&file).unwrap();
            let _ = lora_io::from_bytes(&bytes, &shape);
        });
    }
}
