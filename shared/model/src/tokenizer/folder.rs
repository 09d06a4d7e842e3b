//! A tokenizer from tokenizer.json and what tokenizer_config.json adds to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokenizers::Tokenizer as Inner;

use super::Tokenizer;
use crate::ModelError;
use crate::files::keys::Keys;
use crate::files::{quoted, read, templates};

/// Longest tokenizer.json that is read, in bytes; that of 262,144 tokens has 33 MB.
const LONGEST: u64 = 128 << 20;
const SUPPORTED: &str = "supported: byte-level BPE (as of GPT-2, SmolLM2, Llama 3, Qwen2)";

/// What is looked at here; the `tokenizers` crate reads all of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "named, so that other names are refused")]
struct Said {
    #[serde(default)]
    version: IgnoredAny,
    #[serde(default)]
    truncation: IgnoredAny,
    #[serde(default)]
    padding: IgnoredAny,
    #[serde(default)]
    added_tokens: Vec<Numbered>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: IgnoredAny,
    #[serde(default)]
    decoder: IgnoredAny,
    model: Model,
}

/// An added token; how it is found in a text is for the `tokenizers` crate.
#[derive(Deserialize)]
struct Numbered {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "named, so that other names are refused")]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: IgnoredAny,
    merges: Option<IgnoredAny>,
    dropout: Option<f64>,
    byte_fallback: Option<bool>,
    #[serde(default)]
    unk_token: IgnoredAny,
    #[serde(default)]
    unk_id: IgnoredAny,
    #[serde(default)]
    continuing_subword_prefix: IgnoredAny,
    #[serde(default)]
    end_of_word_suffix: IgnoredAny,
    #[serde(default)]
    max_input_chars_per_word: IgnoredAny,
    #[serde(default)]
    fuse_unk: IgnoredAny,
    #[serde(default)]
    ignore_merges: IgnoredAny,
}

impl Tokenizer {
    /// From the tokenizer files of `folder`, whose embedding has `rows` rows.
    ///
    /// # Errors
    /// [`ModelError::Refused`] with what is not supported.
    pub(crate) fn of_folder(folder: &Path, rows: usize) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(ModelError::refused(
                folder,
                "it has no tokenizer.json",
                format!(
                    "{SUPPORTED}, from tokenizer.json (tokenizer.model is of SentencePiece, and \
                     vocab.json with merges.txt is not read)"
                ),
            ));
        }
        let bytes = read(&path, LONGEST)?;
        let whole = "expected a tokenizer.json that is whole: ids without a gap, one for a token";
        let damaged = |what: String| ModelError::refused(&path, what, whole);
        let steps: templates::Steps = serde_json::from_slice(&bytes)
            .map_err(|e| damaged(format!("it cannot be read ({e})")))?;
        let said: Said = serde_json::from_slice(&bytes)
            .map_err(|e| damaged(format!("it cannot be read ({e})")))?;
        supported(&path, &said)?;
        steps.check().map_err(&damaged)?;
        drop(steps);
        let mut inner =
            Inner::from_bytes(&bytes).map_err(|e| damaged(format!("it cannot be read ({e})")))?;
        drop(bytes);
        // Defaults of those who call it; a prompt is encoded whole, by itself.
        inner
            .with_truncation(None)
            .map_err(|e| damaged(e.to_string()))?
            .with_padding(None);
        // The crate gives a token the next free id, whatever the file says.
        for token in &said.added_tokens {
            if inner.token_to_id(&token.content) != Some(token.id) {
                let name = quoted(&token.content);
                return Err(damaged(format!("added token {name} with id {}", token.id)));
            }
        }
        let prefix = prefix(&path, &inner)?;
        configured(folder, &inner, &said, &prefix)?;
        Self::of(&path, inner, prefix, rows)
    }
}

/// Refuses every kind but byte-level BPE, in the words that people know it by.
fn supported(path: &Path, said: &Said) -> Result<(), ModelError> {
    let refuse = |what: String| Err(ModelError::refused(path, what, SUPPORTED));
    let kind = said.model.kind.as_deref();
    match kind {
        Some("BPE") => {}
        // Files of early versions do not say it.
        None if said.model.merges.is_some() => {}
        Some("Unigram") => {
            return refuse("Unigram tokenizers (as of T5 and XLM-R) are not supported".into());
        }
        Some("WordPiece") => {
            return refuse("WordPiece tokenizers (as of BERT) are not supported".into());
        }
        other => {
            let name = quoted(other.unwrap_or("none"));
            return refuse(format!("tokenizers of type {name} are not supported"));
        }
    }
    let normalizers = types(&said.normalizer);
    let cutters = types(&said.pre_tokenizer);
    let piece = normalizers.contains("Prepend") || cutters.contains("Metaspace");
    if piece || said.model.byte_fallback == Some(true) {
        let what = "SentencePiece tokenizers (as of Llama 2, Mistral and Gemma) are not supported";
        return refuse(what.into());
    }
    if !cutters.contains("ByteLevel") {
        return refuse("a BPE tokenizer without a ByteLevel pre-tokenizer".into());
    }
    match said.model.dropout {
        Some(p) if p != 0.0 => refuse(format!("model.dropout = {p}: tokens drawn at random")),
        _ => Ok(()),
    }
}

/// The names of the steps in a pre-tokenizer or normalizer.
fn types(step: &Value) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    let mut left = vec![step];
    while let Some(value) = left.pop() {
        match value {
            Value::Object(map) => {
                found.extend(map.get("type").and_then(Value::as_str));
                left.extend(map.values());
            }
            Value::Array(list) => left.extend(list),
            _ => {}
        }
    }
    found
}

/// Whether a ByteLevel step of `said` puts a space before a text.
fn spaced(step: &Value) -> bool {
    match step {
        Value::Object(map) => {
            map.get("add_prefix_space") == Some(&json!(true)) || map.values().any(spaced)
        }
        Value::Array(list) => list.iter().any(spaced),
        _ => false,
    }
}

/// What the post-processor puts before a text; one that puts something after it is refused: the
/// model is asked for what follows a prompt.
fn prefix(path: &Path, inner: &Inner) -> Result<Vec<u32>, ModelError> {
    let ids = |special| match inner.encode_fast("a", special) {
        Ok(encoded) => Ok(encoded.get_ids().to_vec()),
        Err(e) => {
            let what = format!("it cannot encode \"a\" ({e})");
            Err(ModelError::refused(path, what, "expected byte-level BPE"))
        }
    };
    let plain: Vec<u32> = ids(false)?;
    let whole: Vec<u32> = ids(true)?;
    match whole.strip_suffix(plain.as_slice()) {
        Some(prefix) if !plain.is_empty() => Ok(prefix.to_vec()),
        _ => Err(ModelError::refused(
            path,
            format!("its post_processor makes {plain:?} {whole:?}"),
            "supported: tokens before a text, none after it",
        )),
    }
}

/// What tokenizer_config.json changes about the tokens of a text has to be what tokenizer.json
/// says; what else is in it is for chats and generators.
fn configured(folder: &Path, inner: &Inner, said: &Said, prefix: &[u32]) -> Result<(), ModelError> {
    let path = folder.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(());
    }
    let mut keys = Keys::read(&path)?;
    keys.nothing(&["add_eos_token", "split_special_tokens"])?;
    for (key, in_json) in [
        ("add_bos_token", !prefix.is_empty()),
        ("add_prefix_space", spaced(&said.pre_tokenizer)),
    ] {
        let found: Option<bool> = keys.take(key, "true or false")?;
        if let Some(value) = found.filter(|f| *f != in_json) {
            let why = format!("tokenizer.json says {in_json}: one of the two is wrong");
            return Err(keys.refuse(key, &value.into(), &why));
        }
    }
    #[derive(Deserialize)]
    struct Added {
        content: String,
    }
    let added: Option<BTreeMap<u32, Added>> =
        keys.take("added_tokens_decoder", "an object of ids and tokens")?;
    for (id, token) in added.into_iter().flatten() {
        if inner.token_to_id(&token.content) != Some(id) {
            let what = format!("added token {} with id {id}", quoted(&token.content));
            let why = "tokenizer.json has it not, or with another id: one of the two is wrong";
            return Err(ModelError::refused(&path, what, why));
        }
    }
    Ok(())
}
