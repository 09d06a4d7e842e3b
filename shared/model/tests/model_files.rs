//! Model files with something that the engine does not compute: refused by name, with what is
//! supported. Cases 10 and 21 of docs/faults.md.
#![allow(missing_docs, clippy::unwrap_used)]

mod foreign;

use std::path::Path;

use foreign::{Gguf, copy, edit, fixture, read_all, read_tensors, write_tensors};
use lethe_model::source::open;
use serde_json::{Value, json};

/// Why the model at `path` is refused; its tokenizer is not looked at.
fn refused(path: &Path) -> String {
    open(path).map(|_| ()).expect_err("refused").to_string()
}

fn says(got: &str, words: &[&str]) {
    for word in words {
        assert!(got.contains(word), "{word:?} is not in: {got}");
    }
}

#[test]
fn case_10_keys_of_a_config_that_are_not_computed_are_refused_by_name() {
    let llama = [
        (
            json!({"quantization_config": {"quant_method": "fp8"}}),
            "quantization_config",
        ),
        (
            json!({"hidden_act": "gelu"}),
            "hidden_act = \"gelu\"; supported: \"silu\"",
        ),
        (json!({"hidden_act": "gelu_pytorch_tanh"}), "hidden_act"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            "in two ways",
        ),
        (json!({"rope_scaling": {"rope_type": "yarn"}}), "\"yarn\""),
        (
            json!({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}),
            "rope_parameters.low_freq_factor is missing",
        ),
        (
            json!({"rope_parameters": {"full_attention": {}}}),
            "full_attention",
        ),
        (json!({"rope_theta": 500.0}), "rope_theta is"),
        (
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor = 0.5",
        ),
        (json!({"rope_interleaved": true}), "rope_interleaved"),
        (json!({"sliding_window": 64}), "sliding_window"),
        (
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            "sliding_attention",
        ),
        (json!({"num_local_experts": 8}), "num_local_experts"),
        (
            json!({"attn_logit_softcapping": 50.0}),
            "attn_logit_softcapping",
        ),
        (
            json!({"auto_map": {"AutoModelForCausalLM": "x.Y"}}),
            "auto_map",
        ),
        (
            json!({"architectures": ["LlamaForSequenceClassification"]}),
            "architectures",
        ),
        (
            json!({"model_type": "mistral"}),
            "model_type = \"mistral\"; supported: llama, qwen2",
        ),
        (
            json!({"residual_multiplier": 0.2}),
            "residual_multiplier = 0.2; this key is not known",
        ),
        (
            json!({"num_hidden_layers": "two"}),
            "num_hidden_layers = \"two\"",
        ),
        (
            json!({"num_hidden_layers": 1_000_000_000u64}),
            "num_hidden_layers = 1000000000",
        ),
        (json!({"vocab_size": 1u64 << 40}), "vocab_size"),
        (json!({"hidden_size": -32}), "hidden_size = -32"),
        (json!({"rms_norm_eps": 1e39}), "epsilon"),
        (
            json!({"max_position_embeddings": null}),
            "max_position_embeddings is missing",
        ),
    ];
    for (change, why) in &llama {
        let dir = copy("hf/llama-untied");
        edit(&dir.path().join("config.json"), change);
        says(&refused(dir.path()), &[why, "config.json"]);
    }
    let qwen = [
        (json!({"use_sliding_window": true}), "use_sliding_window"),
        (json!({"attention_bias": false}), "attention_bias"),
        (
            json!({"num_key_value_heads": null}),
            "num_key_value_heads is missing",
        ),
        (
            json!({"architectures": ["LlamaForCausalLM"]}),
            "architectures",
        ),
    ];
    for (change, why) in &qwen {
        let dir = copy("hf/qwen2-tied");
        edit(&dir.path().join("config.json"), change);
        says(&refused(dir.path()), &[why]);
    }
}

#[test]
fn case_10_tensors_that_no_part_of_the_model_is_are_refused_by_name() {
    type Change = fn(&mut foreign::Tensors);
    fn add(t: &mut foreign::Tensors, name: &str, n: u64) {
        t.insert(
            name.into(),
            ("F32".into(), vec![n], vec![0; 4 * n as usize]),
        );
    }
    let changes: [(Change, &[&str]); 9] = [
        (
            |t| drop(t.remove("lm_head.weight")),
            &["lm_head.weight", "missing", "tie_word_embeddings"],
        ),
        (
            |t| drop(t.remove("model.layers.1.mlp.up_proj.weight")),
            &["model.layers.1.mlp.up_proj.weight", "missing"],
        ),
        (
            |t| add(t, "model.layers.0.self_attn.o_proj.bias", 32),
            &[
                "model.layers.0.self_attn.o_proj.bias",
                "no part of the model",
            ],
        ),
        (
            |t| add(t, "model.layers.0.mlp.up_proj.bias", 64),
            &["mlp.up_proj.bias"],
        ),
        (
            |t| add(t, "model.layers.0.self_attn.q_norm.weight", 8),
            &["q_norm"],
        ),
        (
            |t| add(t, "model.layers.0.self_attn.q_proj.weight_scale", 1),
            &["q_proj.weight_scale"],
        ),
        (
            |t| {
                let head = t.get_mut("lm_head.weight").unwrap();
                head.0 = "F8_E4M3".into();
                head.2.truncate(32 * 96);
            },
            &["lm_head.weight", "F8_E4M3", "supported: F32, F16, BF16"],
        ),
        (
            |t| {
                let q = t.get_mut("model.layers.0.self_attn.q_proj.weight").unwrap();
                q.1 = vec![16, 64];
            },
            &["q_proj", "[16, 64], expected [32, 32]"],
        ),
        (
            |t| {
                let third = t.remove("model.layers.1.mlp.up_proj.weight").unwrap();
                t.insert("model.layers.2.mlp.up_proj.weight".into(), third);
            },
            &["model.layers.1.mlp.up_proj.weight"],
        ),
    ];
    for (change, words) in changes {
        let dir = copy("hf/llama-untied");
        let file = dir.path().join("model.safetensors");
        let mut tensors = read_tensors(&file);
        change(&mut tensors);
        write_tensors(&file, &tensors);
        says(&refused(dir.path()), words);
    }
    // What old checkpoints have beside the weights, and transformers computes, too.
    let dir = copy("hf/llama-untied");
    let file = dir.path().join("model.safetensors");
    let mut tensors = read_tensors(&file);
    add(
        &mut tensors,
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        4,
    );
    write_tensors(&file, &tensors);
    read_all(dir.path(), false).unwrap();
}

#[test]
fn case_10_a_tied_head_that_differs_is_refused_and_one_that_does_not_is_read() {
    let dir = copy("hf/llama-tied");
    let file = dir.path().join("model.safetensors");
    let mut tensors = read_tensors(&file);
    let same = tensors["model.embed_tokens.weight"].clone();
    tensors.insert("lm_head.weight".into(), same);
    write_tensors(&file, &tensors);
    read_all(dir.path(), false).unwrap();
    tensors.get_mut("lm_head.weight").unwrap().2[7] ^= 1;
    write_tensors(&file, &tensors);
    says(
        &refused(dir.path()),
        &["lm_head.weight", "differs from the embedding"],
    );
}

#[test]
fn case_10_the_files_of_a_sharded_model_are_those_of_its_index() {
    let index = "model.safetensors.index.json";
    let shard = "model-00002-of-00004.safetensors";
    let norm = "model.norm.weight";
    let edited = |change: &dyn Fn(&mut Value)| {
        let dir = copy("hf/llama-sharded");
        let file = dir.path().join(index);
        let mut value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(&file, value.to_string()).unwrap();
        dir
    };
    read_all(edited(&|_| {}).path(), false).unwrap();
    let dir = edited(&|v| drop(v["weight_map"].as_object_mut().unwrap().remove(norm)));
    says(&refused(dir.path()), &[norm, "does not list it"]);
    let dir = edited(&|v| v["weight_map"]["model.layers.9.x"] = json!(shard));
    says(
        &refused(dir.path()),
        &["model.layers.9.x", "lacks the tensor"],
    );
    let dir = edited(&|v| v["weight_map"][norm] = json!(shard));
    says(&refused(dir.path()), &[norm]);
    let dir = edited(&|v| v["weight_map"][norm] = json!("../other.safetensors"));
    says(&refused(dir.path()), &["../other.safetensors"]);
    let dir = edited(&|v| v["more"] = json!(1));
    says(&refused(dir.path()), &["more"]);
    let dir = copy("hf/llama-sharded");
    std::fs::remove_file(dir.path().join(shard)).unwrap();
    says(&refused(dir.path()), &[shard]);
    // Left over from another download.
    for (name, folder) in [
        ("model-00009.safetensors", "sharded"),
        ("old.safetensors", "tied"),
    ] {
        let dir = copy(&format!("hf/llama-{folder}"));
        let from = fixture("hf/llama-mqa/model.safetensors");
        std::fs::copy(from, dir.path().join(name)).unwrap();
        says(&refused(dir.path()), &[name, "no part of the model"]);
    }
    let dir = copy("hf/llama-sharded");
    let from = fixture("hf/llama-mqa/model.safetensors");
    std::fs::copy(from, dir.path().join("model.safetensors")).unwrap();
    says(&refused(dir.path()), &["model.safetensors is there, too"]);
    let dir = copy("hf/llama-tied");
    std::fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    says(&refused(dir.path()), &["adapter"]);
    std::fs::remove_file(dir.path().join("adapter_config.json")).unwrap();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    says(&refused(dir.path()), &["no weights", "*.bin"]);
}

#[test]
fn case_10_metadata_and_tensors_of_a_gguf_file_are_refused_by_name() {
    let plain = || Gguf::read("F32");
    let changed: [(Gguf, &[&str]); 27] = [
        (
            plain().filled("rope_freqs.weight", &[4], -8.0),
            &["rope_freqs.weight", "positive"],
        ),
        (
            plain().tensor("blk.0.attn_output.bias", &[32]),
            &["blk.0.attn_output.bias"],
        ),
        (
            plain().tensor("blk.1.ffn_up.bias", &[64]),
            &["blk.1.ffn_up.bias"],
        ),
        (
            plain().tensor("blk.0.attn_q_norm.weight", &[8]),
            &["attn_q_norm"],
        ),
        (
            plain().tensor("blk.0.attn_q.bias", &[32]),
            &["attn_k.bias", "missing"],
        ),
        (
            plain().tensor("blk.0.ffn_gate_inp.weight", &[32, 4]),
            &["ffn_gate_inp"],
        ),
        (
            plain().without("blk.1.attn_q.weight"),
            &["blk.1.attn_q.weight", "missing"],
        ),
        (
            plain()
                .without("output.weight")
                .with("split.count", 2, &2u16.to_le_bytes()),
            &["of 2 of a split file", "merge"],
        ),
        (
            plain()
                .text("llama.rope.scaling.type", "none")
                .float("llama.rope.scale_linear", 4.0),
            &["llama.rope.scale_linear = 4"],
        ),
        (
            plain().text("llama.rope.scaling.type", "yarn"),
            &["\"yarn\"", "\"none\""],
        ),
        (
            plain().tensor("rope_freqs.weight", &[3]),
            &["rope_freqs.weight", "[3], expected [4]"],
        ),
        (
            plain().float("llama.rope.scaling.factor", -2.0),
            &["llama.rope.scaling.factor"],
        ),
        (
            plain().number("llama.rope.dimension_count", 4),
            &["llama.rope.dimension_count = 4"],
        ),
        (
            plain().number("llama.attention.value_length", 4),
            &["llama.attention.value_length"],
        ),
        (
            plain().number("llama.attention.sliding_window", 64),
            &["sliding_window = 64"],
        ),
        (
            plain().number("llama.expert_count", 8),
            &["llama.expert_count = 8"],
        ),
        (
            plain().number("llama.vocab_size", 97),
            &["llama.vocab_size = 97; supported: 96"],
        ),
        (
            plain().float("llama.logit_scale", 0.5),
            &["llama.logit_scale"],
        ),
        (
            plain().number("llama.block_count", 0xffff_ffff),
            &["llama.block_count = 4294967295"],
        ),
        (plain().number("llama.block_count", 1), &["blk.1."]),
        (
            plain().number("llama.embedding_length", 64),
            &["llama.rope.dimension_count = 8", "16"],
        ),
        (
            plain().number("llama.feed_forward_length", 1 << 20),
            &["ffn_gate.weight", "shape"],
        ),
        (
            plain().float("llama.new_key", 1.0),
            &["llama.new_key", "not known"],
        ),
        (plain().float("other.key", 1.0), &["other.key", "not known"]),
        (
            plain().text("general.type", "adapter"),
            &["general.type = \"adapter\""],
        ),
        (
            plain().text("general.architecture", "qwen2"),
            &["\"qwen2\"; supported: \"llama\""],
        ),
        (
            plain().text("llama.rope.freq_base", "big"),
            &["llama.rope.freq_base = \"big\""],
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (file, words) in changed {
        says(&refused(&file.write(dir.path())), words);
    }
}

#[test]
fn case_21_quantisations_that_are_not_read_say_so_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (id, name) in [
        (20, "IQ4_NL"),
        (23, "IQ4_XS"),
        (39, "MXFP4"),
        (34, "TQ1_0"),
        (9, "Q8_1"),
    ] {
        let mut file = Gguf::read("Q8_0");
        file.tensors[3].2 = id;
        let got = refused(&file.write(dir.path()));
        says(
            &got,
            &[
                &format!("quantisation {name} is not supported"),
                "Q4_K",
                &file.tensors[3].0,
            ],
        );
    }
    let mut file = Gguf::read("Q8_0");
    file.tensors[3].2 = 99;
    says(&refused(&file.write(dir.path())), &["values of type 99"]);
}

#[test]
fn case_21_a_part_of_a_split_file_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = Gguf::read("F32")
        .without("blk.1.attn_q.weight")
        .with("split.no", 2, &0u16.to_le_bytes())
        .with("split.count", 2, &2u16.to_le_bytes())
        .with("split.tensors.count", 5, &30i32.to_le_bytes());
    says(
        &refused(&file.write(dir.path())),
        &["part 1 of 2 of a split file", "merge the parts"],
    );
}

#[test]
fn case_21_what_is_no_gguf_file_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let whole = std::fs::read(fixture("gguf/Q4_0.gguf")).unwrap();
    let mut old = whole.clone();
    old[4] = 1;
    let mut big = whole.clone();
    big[4..8].copy_from_slice(&[0, 0, 0, 3]);
    let mut long = whole.clone();
    long.extend([0; 64]);
    let files: [(&[u8], &str); 8] = [
        (b"", "not a GGUF file"),
        (
            b"<!DOCTYPE html><html>login</html>",
            "it begins with \"<!DOCTYP\"",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "pointer of Git LFS",
        ),
        (&old, "GGUF version 1"),
        (&big, "big-endian"),
        (&whole[..whole.len() / 2], "cut short"),
        (&whole[..whole.len() - 100], "cut short"),
        (&long, "its tensors end at byte"),
    ];
    for (bytes, why) in files {
        std::fs::write(&path, bytes).unwrap();
        says(&refused(&path), &[why, "model.gguf"]);
    }
    says(&refused(&dir.path().join("none.gguf")), &["none.gguf"]);
}

#[test]
fn case_21_tokenizers_of_other_kinds_say_which() {
    let dir = tempfile::tempdir().unwrap();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let file = || Gguf::read("begins");
    let token_of = |file: Gguf| {
        let source = open(&file.write(dir.path())).unwrap();
        source.tokenizer().expect_err("refused").to_string()
    };
    for (model, words) in [
        (
            "llama",
            "SentencePiece tokenizers (as of Llama 2 and Mistral) are not supported",
        ),
        ("t5", "Unigram tokenizers"),
        ("bert", "WordPiece tokenizers"),
        ("plamo2", "this kind of tokenizer is not supported"),
    ] {
        let got = token_of(file().text(&key("model"), model));
        says(&got, &[words, "byte-level BPE"]);
    }
    for (name, words) in [
        (
            "pre",
            "tokenizer.ggml.pre = \"llama-bpe\"; this pre-tokenizer is not supported",
        ),
        ("new", "tokenizer.ggml.new"),
    ] {
        says(&token_of(file().text(&key(name), "llama-bpe")), &[words]);
    }
    for name in [
        "add_eos_token",
        "add_space_prefix",
        "remove_extra_whitespaces",
    ] {
        says(
            &token_of(file().with(&key(name), 7, &[1])),
            &[name, "= true"],
        );
    }
    let begins = token_of(file().number(&key("bos_token_id"), 1 << 20));
    says(&begins, &["bos_token_id", "expected the id of a token"]);
    let quiet = file()
        .with(&key("add_bos_token"), 7, &[0])
        .write(dir.path());
    let quiet = open(&quiet).unwrap().tokenizer().unwrap();
    assert_eq!(quiet.prompt("a b").unwrap(), quiet.encode("a b").unwrap());
    // No tokens for some rows.
    let mut short = file();
    for tensor in &mut short.tensors {
        if tensor.0 == "token_embd.weight" {
            // A row of 32 values in Q8_0 has 34 bytes.
            tensor.1[1] += 1;
            tensor.3.resize(34 * tensor.1[1] as usize, 0);
        }
    }
    let short = short.number("llama.vocab_size", 293);
    says(
        &token_of(short),
        &["tokens", "as many as the embedding has rows"],
    );
}

#[test]
fn case_21_tokenizers_of_a_folder_say_the_same_words() {
    let piece = "SentencePiece tokenizers (as of Llama 2, Mistral and Gemma) are not supported";
    let changes: [(&str, Value, &str); 10] = [
        ("/model/type", json!("Unigram"), "Unigram tokenizers"),
        ("/model/type", json!("WordPiece"), "WordPiece tokenizers"),
        (
            "/model/type",
            json!("New"),
            "tokenizers of type \"New\" are not supported",
        ),
        ("/model/byte_fallback", json!(true), piece),
        (
            "/normalizer",
            json!({"type": "Prepend", "prepend": "\u{2581}"}),
            piece,
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "\u{2581}"}),
            piece,
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Whitespace"}),
            "without a ByteLevel pre-tokenizer",
        ),
        (
            "/normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "Precompiled",
        ),
        ("/model/dropout", json!(0.1), "model.dropout"),
        ("/version", json!("1.0"), ""),
    ];
    for (place, value, why) in changes {
        let dir = copy("hf/llama-begins");
        let file = dir.path().join("tokenizer.json");
        let mut all: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        *all.pointer_mut(place).unwrap() = value;
        std::fs::write(&file, all.to_string()).unwrap();
        let got = open(dir.path()).unwrap().tokenizer();
        match why {
            "" => drop(got.unwrap()),
            why => says(
                &got.expect_err("refused").to_string(),
                &[why, "tokenizer.json"],
            ),
        }
    }
    // What is no JSON where the crate expects that it is.
    let dir = copy("hf/llama-begins");
    let file = dir.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let broken = text.replace("\"decoder\":", "\"decoder\": \"\\ud800\", \"unused\":");
    std::fs::write(&file, broken).unwrap();
    let got = open(dir.path()).unwrap().tokenizer().expect_err("refused");
    says(&got.to_string(), &["cannot be read"]);
    let dir = copy("hf/llama-begins");
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let got = open(dir.path()).unwrap().tokenizer().expect_err("refused");
    says(&got.to_string(), &["no tokenizer.json", "SentencePiece"]);
    let with = |name: &str, value: Value| {
        let dir = copy("hf/llama-begins");
        edit(&dir.path().join("tokenizer.json"), &json!({ name: value }));
        let got = open(dir.path()).unwrap().tokenizer();
        got.map(|_| ()).map_err(|e| e.to_string())
    };
    says(
        &with("unheard", json!(1)).expect_err("refused"),
        &["unheard"],
    );
    // Defaults of callers: prompts are not cut, nor filled up.
    let cut =
        json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
    with("truncation", cut).unwrap();
    let end = json!({
        "type": "TemplateProcessing", "pair": [],
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
        ],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}},
    });
    says(
        &with("post_processor", end).expect_err("refused"),
        &["none after it"],
    );
    let missing = json!({
        "type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}],
    });
    let two = json!({
        "type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"Sequence": {"id": "B", "type_id": 0}}],
    });
    let far = json!({
        "type": "TemplateProcessing", "pair": [],
        "single": [
            {"SpecialToken": {"id": "x", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "special_tokens": {"x": {"id": "x", "ids": [292], "tokens": ["x"]}},
    });
    for (processor, why) in [
        (missing, "names \"<x>\", which special_tokens has not"),
        (two, "none of it"),
        (far, "token 292 stands before every prompt"),
    ] {
        says(
            &with("post_processor", processor).expect_err("refused"),
            &[why],
        );
    }
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let begin = added(0, "<|begin|>");
    let far = json!([begin, added(291, "<|mark|>"), added(292, "<far>")]);
    let far = with("added_tokens", far).expect_err("refused");
    says(
        &far,
        &["token \"<far>\" has id 292", "the embedding has 292 rows"],
    );
    let gap = json!([begin, added(300, "<gap>")]);
    says(
        &with("added_tokens", gap).expect_err("refused"),
        &["added token \"<gap>\" with id 300"],
    );
}

#[test]
fn case_21_a_tokenizer_config_that_says_something_else_is_refused() {
    for (config, why) in [
        (
            json!({"add_bos_token": false}),
            "add_bos_token = false; tokenizer.json says true",
        ),
        (json!({"add_eos_token": true}), "add_eos_token"),
        (json!({"add_prefix_space": true}), "add_prefix_space"),
        (
            json!({"split_special_tokens": true}),
            "split_special_tokens",
        ),
        (
            json!({"added_tokens_decoder": {"5": {"content": "<new>"}}}),
            "<new>",
        ),
        (
            json!({"add_bos_token": true, "bos_token": "<|begin|>", "legacy": false}),
            "",
        ),
    ] {
        let dir = copy("hf/llama-begins");
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let got = open(dir.path()).unwrap().tokenizer();
        match why {
            "" => drop(got.unwrap()),
            why => says(&got.expect_err("refused").to_string(), &[why]),
        }
    }
}
