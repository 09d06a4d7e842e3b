//! Tokenizers: built from a GGUF file's own metadata, or read from tokenizer.json. Supported is
//! byte-level BPE (as of GPT-2); every other kind is refused by name.

mod folder;
mod gguf;

use std::path::Path;

use tokenizers::Tokenizer as Inner;

use crate::ModelError;

/// Longest text that is encoded, in bytes: a bound on work, far above any prompt.
pub const MAX_TEXT: usize = 1 << 20;

/// Text to token ids.
#[derive(Debug)]
pub struct Tokenizer {
    kind: Kind,
    /// What stands before every prompt, as the tokenizer says: the token that begins a text.
    prefix: Vec<u32>,
}

#[derive(Debug)]
enum Kind {
    Bpe(Box<Inner>),
    Bytes(usize),
}

impl Tokenizer {
    /// A tokenizer for tests: each byte modulo the vocabulary is a token.
    pub(crate) fn bytes(vocab: usize) -> Result<Self, ModelError> {
        Ok(Self {
            kind: Kind::Bytes(vocab),
            prefix: vec![],
        })
    }

    /// A tokenizer whose ids are rows of an embedding with `rows` rows.
    fn of(path: &Path, inner: Inner, prefix: Vec<u32>, rows: usize) -> Result<Self, ModelError> {
        if let Some(id) = prefix.iter().find(|id| **id as usize >= rows) {
            return Err(ModelError::refused(
                path,
                format!("token {id} stands before every prompt"),
                format!("the embedding has {rows} rows"),
            ));
        }
        let vocabulary = inner.get_vocab(true);
        let last = vocabulary.iter().max_by_key(|(_, id)| **id);
        if let Some((token, id)) = last.filter(|(_, id)| **id as usize >= rows) {
            return Err(ModelError::refused(
                path,
                format!("token {} has id {id}", crate::files::quoted(token)),
                format!(
                    "the embedding has {rows} rows: take the token out, or give the embedding a \
                     row for it"
                ),
            ));
        }
        Ok(Self {
            kind: Kind::Bpe(Box::new(inner)),
            prefix,
        })
    }

    /// Token ids of `text`, without special tokens.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`], also for a text longer than [`MAX_TEXT`].
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

    /// Token ids of a whole prompt: [`Self::encode`] after what the tokenizer puts before a text
    /// (Llama 3 and others: the token that begins it).
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = self.prefix.clone();
        ids.extend(self.encode(text)?);
        Ok(ids)
    }

    /// The first token of `text`: used for answers, whose first token is scored.
    ///
    /// # Errors
    /// As [`Self::encode`], and if `text` has no token.
    pub fn first(&self, text: &str) -> Result<u32, ModelError> {
        let ids = self.encode(text)?;
        ids.first()
            .copied()
            .ok_or_else(|| ModelError::Tokenizer(format!("{text:?} has no token")))
    }
}
