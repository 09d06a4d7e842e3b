//! A tiny seeded Llama checkpoint and a tiny data set, written as a user's own files would be.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use lethe_client::LocalEvent;
use lethe_learn::seed::Seed;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

const HIDDEN: usize = 24;
const LAYERS: usize = 4;
const VOCAB: usize = 258;
const FF: usize = 40;
const KV: usize = 12;

/// Items in the catalogue.
pub const ITEMS: u32 = 30;

/// Writes config.json, tokenizer.json and model.safetensors of a random Llama with four layers.
pub fn write_model(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FF,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCAB, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true,
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    std::fs::write(folder.join("tokenizer.json"), tokenizer().to_string())?;
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ]);
    for l in 0..LAYERS {
        let parts = [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV, HIDDEN]),
            ("self_attn.v_proj", vec![KV, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![FF, HIDDEN]),
            ("mlp.up_proj", vec![FF, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FF]),
        ];
        shapes.extend(
            parts
                .into_iter()
                .map(|(n, s)| (format!("model.layers.{l}.{n}.weight"), s)),
        );
    }
    let raw: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let mut rng = Seed::from_u64(11).derive("tiny", &[name.as_bytes()]).rng();
            let (spread, centre) = if name.contains("norm") {
                (0.1, 1.0)
            } else {
                (0.2, 0.0)
            };
            let n = shape.iter().product::<usize>();
            let bytes = (0..n)
                .flat_map(|_| (centre + spread * rng.normal()).to_le_bytes())
                .collect();
            (name, shape, bytes)
        })
        .collect();
    let views = raw.iter().map(|(n, s, b)| {
        (
            n,
            TensorView::new(Dtype::F32, s.clone(), b).expect("bytes fit the shape"),
        )
    });
    let bytes = safetensors::serialize(views, None).expect("a valid file");
    std::fs::write(folder.join("model.safetensors"), bytes)
}

/// GPT-2's byte alphabet, and two merges so that the answers differ in their first token.
fn tokenizer() -> serde_json::Value {
    let printable =
        |b: &u32| (33..=126).contains(b) || (161..=172).contains(b) || (174..=255).contains(b);
    let mut alphabet: Vec<char> = (0..256u32)
        .filter(printable)
        .filter_map(char::from_u32)
        .collect();
    alphabet.extend((0..256 - alphabet.len() as u32).filter_map(|i| char::from_u32(256 + i)));
    let mut vocab: BTreeMap<String, usize> = alphabet
        .iter()
        .enumerate()
        .map(|(i, c)| (c.to_string(), i))
        .collect();
    vocab.insert("\u{120}N".into(), 256);
    vocab.insert("\u{120}Y".into(), 257);
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true,
        },
        "post_processor": null, "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": [["\u{120}", "N"], ["\u{120}", "Y"]],
        },
    })
}

/// Writes dataset.toml and a catalogue of [`ITEMS`] films in three genres (the histories stay with
/// the clients).
pub fn write_catalogue(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let spec = "[interactions]\nfile = \"none.csv\"\nuser = \"u\"\nitem = \"i\"\nrating = \
                \"r\"\nlike_above = 3.0\n\
                [items]\nfile = \"items.csv\"\nitem = \"id\"\ntitle = \"title\"\ntags = \"tags\"\n";
    std::fs::write(folder.join("dataset.toml"), spec)?;
    let mut rows = String::from("id,title,tags\n");
    for i in 0..ITEMS {
        let genre = ["Drama", "Comedy", "Action"][i as usize % 3];
        let _ = writeln!(rows, "i{i},F{i},{genre} T{}", i % 5);
    }
    std::fs::write(folder.join("items.csv"), rows)
}

/// When the t-th event of a history happened, in seconds since 1970.
pub fn time(t: i64) -> i64 {
    1_700_000_000 + t
}

/// The history of a subject: 16 films, liked by genre.
pub fn history(subject: u32) -> Vec<LocalEvent> {
    let mut rng = Seed::from_u64(3)
        .derive("history", &[&subject.to_le_bytes()])
        .rng();
    let mut items: Vec<u32> = (0..ITEMS).collect();
    rng.shuffle(&mut items);
    let event = |(t, i): (usize, u32)| {
        let liked = (i % 3 == subject % 3) != (rng.unit() < 0.1);
        match liked {
            true => LocalEvent::liked(format!("i{i}"), time(t as i64)),
            false => LocalEvent::disliked(format!("i{i}"), time(t as i64)),
        }
    };
    items.into_iter().take(16).enumerate().map(event).collect()
}
