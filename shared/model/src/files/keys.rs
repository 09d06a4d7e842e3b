//! The keys of a JSON object: each is taken, known to be without effect, or refused by name.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::quoted;
use crate::ModelError;

/// Longest configuration that is read, in bytes: real ones have some kilobytes.
const LONGEST: u64 = 1 << 20;

/// Keys of config.json that say nothing about what is computed in inference: how the file was
/// made, which tokens a generator stops at, how states are kept, how a training began, and defaults
/// of generators.
pub(crate) const WITHOUT_EFFECT: &[&str] = &[
    "_name_or_path",
    "transformers_version",
    "transformers.js_config",
    "unsloth_fixed",
    "unsloth_version",
    "is_llama_config",
    // The tensors say themselves how they are stored.
    "torch_dtype",
    "dtype",
    // Ids that generators use; prompts get their special tokens from the tokenizer.
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "tokenizer_class",
    "prefix",
    // Where and how, not what.
    "use_cache",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "use_flash_attn",
    "torchscript",
    "use_bfloat16",
    "tf_legacy_loss",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    // The same sums in slices.
    "pretraining_tp",
    // Training only.
    "initializer_range",
    "attention_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "gradient_checkpointing",
    "resid_pdrop",
    "embd_pdrop",
    // Heads of classifiers, of which this model has none.
    "id2label",
    "label2id",
    "num_labels",
    "finetuning_task",
    "problem_type",
    "task_specific_params",
    // Defaults of generators.
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
];

/// The keys of an object that nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Keys {
    path: PathBuf,
    /// What stands before a key's name: the key that the object is the value of.
    within: String,
    left: Map<String, Value>,
}

impl Keys {
    /// The object in the file at `path`.
    ///
    /// # Errors
    /// [`ModelError::Refused`] if it is longer than 1 MiB or is no object.
    pub(crate) fn read(path: &Path) -> Result<Self, ModelError> {
        let bytes = super::read(path, LONGEST)?;
        let left = serde_json::from_slice(&bytes).map_err(|e| {
            ModelError::refused(path, format!("it is no JSON object ({e})"), "expected one")
        })?;
        Ok(Self {
            path: path.to_owned(),
            within: String::new(),
            left,
        })
    }

    /// The keys of the object that is the value of `key`; `None` if it is absent, null or empty.
    ///
    /// # Errors
    /// [`ModelError::Refused`] if it is no object.
    pub(crate) fn inner(&mut self, key: &str) -> Result<Option<Self>, ModelError> {
        let left: Option<Map<String, Value>> = self.take(key, "an object")?;
        Ok(left.filter(|l| !l.is_empty()).map(|left| Self {
            path: self.path.clone(),
            within: format!("{}{key}.", self.within),
            left,
        }))
    }

    /// Takes `key`; `None` if it is absent or null.
    ///
    /// # Errors
    /// [`ModelError::Refused`] if it is of another kind than `expected` says.
    pub(crate) fn take<T: DeserializeOwned>(
        &mut self,
        key: &str,
        expected: &str,
    ) -> Result<Option<T>, ModelError> {
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::deserialize(&value) {
                Ok(read) => Ok(Some(read)),
                Err(_) => Err(self.refuse(key, &value, &format!("expected {expected}"))),
            },
        }
    }

    /// Takes `key`, which has to be there.
    ///
    /// # Errors
    /// As [`Self::take`], and if it is absent.
    pub(crate) fn need<T: DeserializeOwned>(
        &mut self,
        key: &str,
        expected: &str,
    ) -> Result<T, ModelError> {
        self.take(key, expected)?.ok_or_else(|| {
            let what = format!("{}{key} is missing", self.within);
            ModelError::refused(&self.path, what, format!("expected {expected}"))
        })
    }

    /// Takes a number of something, from 1 to `most`: what could not be true of a real model is
    /// refused before anything is multiplied by it.
    ///
    /// # Errors
    /// As [`Self::take`], and outside the bounds.
    pub(crate) fn count(&mut self, key: &str, most: usize) -> Result<Option<usize>, ModelError> {
        let expected = format!("a whole number from 1 to {most}");
        let found: Option<u64> = self.take(key, &expected)?;
        let Some(n) = found else {
            return Ok(None);
        };
        match usize::try_from(n).ok().filter(|n| (1..=most).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(self.refuse(key, &n.into(), &format!("expected {expected}"))),
        }
    }

    /// As [`Self::count`]; it has to be there.
    ///
    /// # Errors
    /// As [`Self::count`], and if it is absent.
    pub(crate) fn need_count(&mut self, key: &str, most: usize) -> Result<usize, ModelError> {
        self.count(key, most)?.ok_or_else(|| {
            let what = format!("{key} is missing");
            ModelError::refused(&self.path, what, "expected a whole number")
        })
    }

    /// Drops keys that have no effect on what is computed, whatever they say.
    pub(crate) fn without_effect(&mut self, keys: &[&str]) {
        for key in keys {
            self.left.remove(*key);
        }
    }

    /// Takes keys that may be there if they say "nothing": null, false, zero, or empty.
    ///
    /// # Errors
    /// [`ModelError::Refused`] with key and value otherwise.
    pub(crate) fn nothing(&mut self, keys: &[&str]) -> Result<(), ModelError> {
        for key in keys {
            let Some(value) = self.left.remove(*key) else {
                continue;
            };
            let nothing = match &value {
                Value::Null | Value::Bool(false) => true,
                Value::Bool(true) => false,
                Value::Number(n) => n.as_f64() == Some(0.0),
                Value::String(s) => s.is_empty(),
                Value::Array(a) => a.is_empty(),
                Value::Object(o) => o.is_empty(),
            };
            if !nothing {
                let supported = format!("supported is a {} without {key}", self.kind());
                return Err(self.refuse(key, &value, &supported));
            }
        }
        Ok(())
    }

    /// Takes a key that may only have one of the values given, or be absent or null.
    ///
    /// # Errors
    /// [`ModelError::Refused`] with key and value otherwise.
    pub(crate) fn only(&mut self, key: &str, values: &[Value]) -> Result<(), ModelError> {
        let found = self.left.remove(key).unwrap_or(Value::Null);
        if found.is_null() || values.iter().any(|v| same(v, &found)) {
            return Ok(());
        }
        let list: Vec<String> = values.iter().map(Value::to_string).collect();
        Err(self.refuse(key, &found, &format!("supported: {}", list.join(", "))))
    }

    /// What is wrong with `key`.
    pub(crate) fn refuse(&self, key: &str, value: &Value, supported: &str) -> ModelError {
        let text = value.to_string();
        let short: String = text.chars().take(120).collect();
        let dots = if short.len() < text.len() { "..." } else { "" };
        let what = format!(
            "{}{} = {}{dots}",
            self.within,
            plain(key),
            short.escape_debug()
        );
        ModelError::refused(&self.path, what.replace("\\\"", "\""), supported)
    }

    /// Refuses what is left, by name.
    ///
    /// # Errors
    /// [`ModelError::Refused`] if a key is left.
    pub(crate) fn finish(self) -> Result<(), ModelError> {
        match self.left.iter().next() {
            None => Ok(()),
            Some((key, value)) => Err(self.refuse(
                key,
                value,
                "this key is not known, and may change what is computed: remove it if it does not",
            )),
        }
    }

    fn kind(&self) -> &'static str {
        match self.path.file_name().and_then(|n| n.to_str()) {
            Some("adapter_config.json") => "LoRA adapter",
            _ => "model",
        }
    }
}

/// A key as it is written in an error.
fn plain(key: &str) -> String {
    let odd = |c: char| !c.is_ascii_graphic();
    match key.len() > 80 || key.contains(odd) {
        true => quoted(key),
        false => key.to_owned(),
    }
}

/// Numbers are compared as numbers: 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
