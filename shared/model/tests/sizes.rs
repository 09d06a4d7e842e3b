//! Audit L of docs/faults.md: what a file claims is compared with its length before anything is
//! allocated. One test alone in its program: the allocator counts for everybody.
#![allow(missing_docs, clippy::unwrap_used)]

mod foreign;

use std::path::Path;

use foreign::{Gguf, copy, edit, fixture, read_all, read_tensors, write_tensors};
use lethe_model::peft;
use lethe_model::source::open;
use peak_alloc::PeakAlloc;
use serde_json::json;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What readers use besides the file's contents: buffers, names, errors.
const SLACK: usize = 256 << 10;
/// Bytes of memory for a byte of a file: names and lists of a header are kept as texts.
const TIMES: usize = 16;

fn bytes_of(path: &Path) -> usize {
    if path.is_file() {
        return std::fs::metadata(path).unwrap().len() as usize;
    }
    let entries = std::fs::read_dir(path).unwrap();
    entries
        .map(|e| e.unwrap().metadata().unwrap().len() as usize)
        .sum()
}

/// The same for configurations, which have at most a mebibyte: a number is two bytes there.
const TIMES_CONFIG: usize = 64;

/// Runs `read` on a hostile file: it is refused, and takes memory in proportion to the file only.
fn bounded<T>(name: &str, path: &Path, read: impl FnOnce() -> Result<T, String>) {
    bounded_by(TIMES, name, path, read);
}

fn bounded_by<T>(times: usize, name: &str, path: &Path, read: impl FnOnce() -> Result<T, String>) {
    let all = bytes_of(path);
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let got = read().map(|_| ()).expect_err(name);
    let used = MEMORY.peak_usage().saturating_sub(before);
    assert!(
        used <= times * all + SLACK,
        "{name}: {used} bytes for a file of {all} ({got})"
    );
}

#[test]
fn audit_l_nothing_is_allocated_for_what_a_file_only_claims() {
    let dir = tempfile::tempdir().unwrap();
    // Lengths and counts of a GGUF file, and everything that follows from its numbers.
    let file = Gguf::read("begins");
    let plain = file.bytes();
    let mut hostile: Vec<(String, Vec<u8>)> = vec![];
    for at in [8, 16, 24] {
        // The count of tensors, of keys, and the length of the first key.
        for n in [u64::MAX, 1 << 40, 1 << 32, plain.len() as u64] {
            let mut bytes = plain.clone();
            bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
            hostile.push((format!("{n} at byte {at}"), bytes));
        }
    }
    let list = |kind: u32, n: u64| {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend(n.to_le_bytes());
        value
    };
    for kind in [0, 4, 5, 6, 8, 9, 10, 12, 13] {
        for n in [u64::MAX, u64::MAX / 8 + 1, 1 << 34, 1 << 30] {
            let file = file
                .clone()
                .with("tokenizer.ggml.tokens", 9, &list(kind, n));
            hostile.push((format!("a list of {n} of type {kind}"), file.bytes()));
        }
    }
    // Lists in lists, as deep as the file allows.
    let deep = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()]
        .concat()
        .repeat(100_000);
    hostile.push((
        "lists in lists".into(),
        file.clone().with("x", 9, &deep).bytes(),
    ));
    let text = file
        .clone()
        .with("general.name", 8, &(17u64 << 30).to_le_bytes());
    hostile.push(("a text of 17 GB".into(), text.bytes()));
    for dims in [
        vec![1 << 40, 1 << 40],
        vec![1 << 33, 292],
        vec![u64::MAX, 2],
        vec![32, 1 << 57],
        vec![0, 292],
        vec![32, 292, 1 << 31, 1 << 31],
        vec![32; 5],
        vec![],
    ] {
        let mut claims = file.clone();
        claims.tensors[0].1 = dims.clone();
        hostile.push((format!("a tensor of {dims:?}"), claims.bytes()));
    }
    for (key, n) in [
        ("block_count", 1 << 14),
        ("embedding_length", 1 << 20),
        ("feed_forward_length", 1 << 20),
        ("attention.head_count", 1 << 14),
        ("attention.key_length", 1 << 20),
        ("block_count", u32::MAX),
        ("embedding_length", u32::MAX),
        ("context_length", u32::MAX),
    ] {
        let claims = file.clone().number(&format!("llama.{key}"), n);
        hostile.push((format!("llama.{key} = {n}"), claims.bytes()));
    }
    for alignment in [0, 1, 3, 1 << 31] {
        let claims = file.clone().number("general.alignment", alignment);
        hostile.push((format!("alignment {alignment}"), claims.bytes()));
    }
    let path = dir.path().join("model.gguf");
    for (name, bytes) in &hostile {
        std::fs::write(&path, bytes).unwrap();
        bounded(name, &path, || {
            read_all(&path, true).map_err(|e| e.to_string())
        });
    }

    // A folder: the header of its tensors, its index, its numbers.
    let folder = copy("hf/llama-untied");
    let weights = folder.path().join("model.safetensors");
    let plain = std::fs::read(&weights).unwrap();
    for n in [u64::MAX, 1 << 40, plain.len() as u64] {
        let mut bytes = plain.clone();
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        std::fs::write(&weights, bytes).unwrap();
        let read = || open(folder.path()).map_err(|e| e.to_string());
        bounded(&format!("a header of {n}"), folder.path(), read);
    }
    std::fs::write(&weights, &plain).unwrap();
    let huge = [
        json!({"num_hidden_layers": 16_384}),
        json!({"num_hidden_layers": 1_000_000_000}),
        json!({"hidden_size": 1 << 20, "head_dim": 8}),
        json!({"vocab_size": 1 << 24}),
        json!({"vocab_size": 1u64 << 40}),
        json!({"intermediate_size": 1 << 20}),
        json!({"num_attention_heads": 16_384, "num_key_value_heads": 16_384, "head_dim": 1 << 20}),
        json!({"max_position_embeddings": 1u64 << 60}),
        json!({"id2label": "x".repeat(2 << 20)}),
        json!({"bad_words_ids": vec![1; 400_000], "hidden_act": "gelu"}),
        json!({"layer_types": vec![""; 300_000]}),
    ];
    for change in &huge {
        let folder = copy("hf/llama-untied");
        edit(&folder.path().join("config.json"), change);
        let read = || read_all(folder.path(), false).map_err(|e| e.to_string());
        bounded_by(TIMES_CONFIG, &change.to_string()[..20], folder.path(), read);
    }
    let mut tensors = read_tensors(&weights);
    for shape in [vec![1 << 40, 1 << 40], vec![u64::MAX, 2], vec![1; 1 << 14]] {
        tensors.get_mut("lm_head.weight").unwrap().1 = shape;
        write_tensors(&weights, &tensors);
        let read = || open(folder.path()).map_err(|e| e.to_string());
        bounded("a tensor's shape", folder.path(), read);
    }
    // A config, an index and tokenizers full of small things.
    let folder = copy("hf/llama-begins");
    let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for name in [
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    ] {
        let folder = copy("hf/llama-begins");
        std::fs::write(folder.path().join(name), &nested).unwrap();
        let read = || read_all(folder.path(), true).map_err(|e| e.to_string());
        bounded(name, folder.path(), read);
    }
    let long = folder.path().join("tokenizer.json");
    let file = std::fs::File::create(&long).unwrap();
    file.set_len(1 << 30).unwrap();
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let got = open(folder.path()).unwrap().tokenizer();
    assert!(
        got.expect_err("too long")
            .to_string()
            .contains("1073741824 bytes")
    );
    assert!(
        MEMORY.peak_usage() - before < 4 << 20,
        "a gigabyte is not read"
    );

    // Adapters.
    let model = open(&fixture("hf/llama-untied")).unwrap().config().clone();
    for change in [
        json!({"r": 1 << 16}),
        json!({"r": u64::MAX}),
        json!({"layers_to_transform": vec![1; 100_000]}),
        json!({"target_modules": vec!["q_proj"; 50_000], "r": 65_536}),
    ] {
        let folder = copy("peft/plain");
        edit(&folder.path().join("adapter_config.json"), &change);
        let read = || peft::open(folder.path(), &model).map_err(|e| e.to_string());
        let name = &change.to_string()[..9];
        bounded_by(TIMES_CONFIG, name, folder.path(), read);
    }
}
