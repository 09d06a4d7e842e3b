//! Tokenizers: built from a GGUF file's own metadata, or read from tokenizer.json.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::ModelError;

/// Longest text that is encoded, in bytes: a bound on work, far above any prompt.
pub const MAX_TEXT: usize = 1 << 20;

/// Text to token ids.
#[derive(Debug)]
pub struct Tokenizer {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Bpe(Box<Inner>),
    Bytes(usize),
}

impl Tokenizer {
    /// From `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let inner = Inner::from_file(path)
            .map_err(|e| ModelError::Tokenizer(format!("{}: {e}", path.display())))?;
        Ok(Self {
            kind: Kind::Bpe(Box::new(inner)),
        })
    }

    /// A tokenizer for tests: each byte modulo the vocabulary is a token.
    pub(crate) fn bytes(vocab: usize) -> Result<Self, ModelError> {
        Ok(Self {
            kind: Kind::Bytes(vocab),
        })
    }

    pub(crate) fn from_gguf(meta: &HashMap<String, Value>) -> Result<Self, ModelError> {
        let text = |key: &str| {
            meta.get(key)
                .and_then(|v| v.to_string().ok())
                .map_or("", String::as_str)
        };
        if text("tokenizer.ggml.model") != "gpt2" {
            return Err(ModelError::Tokenizer(format!(
                "GGUF tokenizer {:?}; supported is gpt2 (byte-level BPE): use the Hugging Face \
                 folder instead",
                text("tokenizer.ggml.model")
            )));
        }
        let tokens = strings(meta, "tokenizer.ggml.tokens")?;
        let merges = strings(meta, "tokenizer.ggml.merges")?
            .iter()
            .map(|m| m.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| ModelError::Tokenizer("a merge rule of the GGUF has no space".into()))?;
        let vocab: tokenizers::models::bpe::Vocab = tokens
            .iter()
            .enumerate()
            .map(|(i, t)| ((*t).to_owned(), i as u32))
            .collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .build()
            .map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let mut inner = Inner::new(model);
        inner.with_pre_tokenizer(Some(pre_tokenizer(text("tokenizer.ggml.pre"))?));
        let special = special_tokens(meta, &tokens);
        inner
            .add_special_tokens(special)
            .map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(Self {
            kind: Kind::Bpe(Box::new(inner)),
        })
    }

    /// Token ids of `text`, without special tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        if text.len() > MAX_TEXT {
            return Err(ModelError::Tokenizer(format!(
                "a text of {} bytes, at most {MAX_TEXT}",
                text.len()
            )));
        }
        match &self.kind {
            Kind::Bytes(vocab) => Ok(text.bytes().map(|b| u32::from(b) % *vocab as u32).collect()),
            Kind::Bpe(inner) => {
                let e = inner
                    .encode_fast(text, false)
                    .map_err(|e| ModelError::Tokenizer(e.to_string()))?;
                Ok(e.get_ids().to_vec())
            }
        }
    }

    /// The first token of `text`: used for answers, whose first token is scored.
    pub fn first(&self, text: &str) -> Result<u32, ModelError> {
        let ids = self.encode(text)?;
        ids.first()
            .copied()
            .ok_or_else(|| ModelError::Tokenizer(format!("{text:?} has no token")))
    }
}

fn strings<'a>(meta: &'a HashMap<String, Value>, key: &str) -> Result<Vec<&'a str>, ModelError> {
    let missing = || {
        ModelError::Tokenizer(format!(
            "metadata {key} is missing or not a list of strings"
        ))
    };
    let list = meta
        .get(key)
        .and_then(|v| v.to_vec().ok())
        .ok_or_else(missing)?;
    list.iter()
        .map(|v| v.to_string().map(String::as_str))
        .collect::<Result<_, _>>()
        .map_err(|_| missing())
}

fn special_tokens(meta: &HashMap<String, Value>, tokens: &[&str]) -> Vec<AddedToken> {
    const CONTROL: i32 = 3;
    let kinds = meta
        .get("tokenizer.ggml.token_type")
        .and_then(|v| v.to_vec().ok());
    let control = |i: usize| kinds.and_then(|k| k.get(i)?.to_i32().ok()) == Some(CONTROL);
    tokens
        .iter()
        .enumerate()
        .filter(|(i, _)| control(*i))
        .map(|(_, t)| AddedToken::from(*t, true))
        .collect()
}

fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper, ModelError> {
    let bytes = |regex| ByteLevel::new(false, true, regex).into();
    match name {
        "smollm" => Ok(Sequence::new(vec![Digits::new(true).into(), bytes(true)]).into()),
        "gpt-2" | "default" => Ok(bytes(true)),
        other => Err(ModelError::Tokenizer(format!(
            "GGUF pre-tokenizer {other:?}; supported are smollm and gpt-2: use the Hugging Face \
             folder instead"
        ))),
    }
}
