//! A tokenizer from the metadata of a GGUF file.

use std::collections::BTreeMap;
use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::Tokenizer;
use crate::ModelError;
use crate::files::quoted;
use crate::source::metadata::{Metadata, Value};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const KINDS: &str = "tokenizer.ggml.token_type";

/// Keys without effect on the tokens of a text: ids and templates that generators use, scores that
/// byte-level BPE does not have, and copies in another form.
const WITHOUT_EFFECT: &[&str] = &[
    "tokenizer.ggml.scores",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.separator_token_id",
    "tokenizer.ggml.cls_token_id",
    "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.prefix_token_id",
    "tokenizer.ggml.suffix_token_id",
    "tokenizer.ggml.middle_token_id",
    "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.ggml.fim_suf_token_id",
    "tokenizer.ggml.fim_mid_token_id",
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
    "tokenizer.chat_template",
    "tokenizer.chat_templates",
    "tokenizer.huggingface.json",
];

impl Tokenizer {
    /// From the metadata of the GGUF file at `path`, whose embedding has `rows` rows.
    ///
    /// # Errors
    /// [`ModelError::Refused`] with key and value for what is not supported.
    pub(crate) fn of_gguf(
        path: &Path,
        metadata: &BTreeMap<String, Value>,
        rows: usize,
    ) -> Result<Self, ModelError> {
        let mut meta = Metadata::new(path, metadata);
        let model = meta.text(MODEL)?;
        if model != Some("gpt2") {
            return Err(meta.refuse(MODEL, &kind(model)));
        }
        let pre = pre_tokenizer(&mut meta)?;
        let tokens = texts(&mut meta, TOKENS)?;
        let merges = texts(&mut meta, MERGES)?;
        let special = added(&mut meta, tokens)?;
        let prefix = prefix(&mut meta, tokens.len())?;
        meta.without_effect(WITHOUT_EFFECT);
        for key in metadata
            .keys()
            .filter(|k| k.starts_with("tokenizer.chat_template."))
        {
            meta.without_effect(&[key.as_str()]);
        }
        // Whatever is not about the tokenizer was taken or refused with the shape.
        meta.finish(&["llama.", "split."])?;
        if tokens.len() != rows {
            let what = format!("{TOKENS} has {} tokens", tokens.len());
            let why = format!("expected as many as the embedding has rows: {rows}");
            return Err(ModelError::refused(path, what, why));
        }
        let mut vocabulary = Vocab::default();
        for (id, token) in tokens.iter().enumerate() {
            if vocabulary.insert(token.clone(), id as u32).is_some() {
                let what = format!("{TOKENS} has {} twice", quoted(token));
                return Err(ModelError::refused(path, what, "expected it once"));
            }
        }
        let failed = |e: String| ModelError::refused(path, e, "expected a tokenizer that is whole");
        let mut pairs = vec![];
        for merge in merges {
            match merge.split_once(' ') {
                Some((a, b)) => pairs.push((a.to_owned(), b.to_owned())),
                None => return Err(failed(format!("merge {} has no space", quoted(merge)))),
            }
        }
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, pairs)
            .build()
            .map_err(|e| failed(format!("{MERGES}: {e}")))?;
        let mut inner = Inner::new(model);
        inner.with_pre_tokenizer(Some(pre));
        inner
            .add_tokens(special)
            .map_err(|e| failed(format!("{KINDS}: {e}")))?;
        Self::of(path, inner, prefix, rows)
    }
}

/// What is said about a kind of tokenizer that is not supported.
fn kind(model: Option<&str>) -> String {
    let words = match model {
        Some("llama") => "SentencePiece tokenizers (as of Llama 2 and Mistral) are not supported",
        Some("t5") => "Unigram tokenizers (as of T5) are not supported",
        Some("bert") => "WordPiece tokenizers (as of BERT) are not supported",
        Some("rwkv") => "tokenizers of RWKV are not supported",
        _ => "this kind of tokenizer is not supported",
    };
    format!("{words}, neither here nor in a folder; supported: \"gpt2\" (byte-level BPE)")
}

fn texts<'a>(meta: &mut Metadata<'a>, key: &str) -> Result<&'a [String], ModelError> {
    match meta.take(key) {
        Some(Value::Texts(list)) => Ok(list),
        _ => Err(meta.refuse(key, "expected a list of texts")),
    }
}

/// The tokens that are found in a text before it is cut: control tokens and those of the user.
fn added(meta: &mut Metadata<'_>, tokens: &[String]) -> Result<Vec<AddedToken>, ModelError> {
    const UNKNOWN: i64 = 2;
    const CONTROL: i64 = 3;
    const OF_USER: i64 = 4;
    let kinds: &[i64] = match meta.take(KINDS) {
        None => return Ok(vec![]),
        Some(Value::Numbers(kinds)) if kinds.len() == tokens.len() => kinds,
        Some(_) => {
            let why = format!("expected a number for each of {} tokens", tokens.len());
            return Err(meta.refuse(KINDS, &why));
        }
    };
    let mut added = vec![];
    for (token, kind) in tokens.iter().zip(kinds) {
        match *kind {
            // Normal, and unused.
            1 | 5 => {}
            UNKNOWN | CONTROL => added.push(AddedToken::from(token.as_str(), true)),
            OF_USER => added.push(AddedToken::from(token.as_str(), false)),
            other => {
                let what = format!("token {} is of kind {other}", quoted(token));
                let why = "supported: 1 to 5 (6, a byte, belongs to SentencePiece tokenizers)";
                return Err(meta.refuse(KINDS, &format!("{what}; {why}")));
            }
        }
    }
    Ok(added)
}

/// What stands before every prompt.
fn prefix(meta: &mut Metadata<'_>, tokens: usize) -> Result<Vec<u32>, ModelError> {
    for key in [
        "tokenizer.ggml.add_eos_token",
        "tokenizer.ggml.add_sep_token",
        "tokenizer.ggml.add_space_prefix",
        "tokenizer.ggml.remove_extra_whitespaces",
    ] {
        meta.only(key, &[Value::Bool(false)])?;
    }
    let wanted = meta.flag("tokenizer.ggml.add_bos_token")?;
    let begin = "tokenizer.ggml.bos_token_id";
    let id = match meta.take(begin) {
        Some(Value::Unsigned(n)) => u32::try_from(*n).ok(),
        Some(Value::Signed(n)) => u32::try_from(*n).ok(),
        _ => None,
    };
    match id.filter(|id| (*id as usize) < tokens) {
        _ if !wanted => Ok(vec![]),
        Some(id) => Ok(vec![id]),
        None => Err(meta.refuse(begin, "add_bos_token is true: expected the id of a token")),
    }
}

/// How a text is cut before tokens are merged: names as llama.cpp has them (`llama-vocab.cpp`).
fn pre_tokenizer(meta: &mut Metadata<'_>) -> Result<PreTokenizerWrapper, ModelError> {
    let bytes = || ByteLevel::new(false, true, true).into();
    match meta.text(PRE)? {
        Some("smollm") => Ok(Sequence::new(vec![Digits::new(true).into(), bytes()]).into()),
        Some("gpt-2") => Ok(bytes()),
        _ => Err(meta.refuse(
            PRE,
            "this pre-tokenizer is not supported; supported: \"smollm\", \"gpt-2\", and those of \
             byte-level BPE in the model's Hugging Face folder",
        )),
    }
}
