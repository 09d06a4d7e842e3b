//! Steps of a tokenizer that the `tokenizers` crate does not check: it looks up the parts of a
//! post-processor's template in the middle of a text, and expects that a decoder is JSON and that a
//! table of normalised characters is whole. It would panic.

use serde::Deserialize;
use serde_json::Value;

/// The steps of a tokenizer.json. That they are read whole says that they are JSON.
#[derive(Debug, Deserialize)]
pub(crate) struct Steps {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

impl Steps {
    /// Checks what the crate does not.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        for step in [&self.normalizer, &self.pre_tokenizer, &self.decoder] {
            if step.to_string().contains("\"Precompiled\"") {
                return Err("normalizers of type Precompiled are not supported".into());
            }
        }
        check(&self.post_processor)
    }
}

/// Checks that every template of `post_processor` names special tokens that it has, and one text.
///
/// # Errors
/// What is wrong.
fn check(post_processor: &Value) -> Result<(), String> {
    let mut left = vec![post_processor];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(list) => left.extend(list),
            Value::Object(map) => {
                if let Some(Value::Array(pieces)) = map.get("single") {
                    pieces
                        .iter()
                        .try_for_each(|p| piece(p, map.get("special_tokens")))?;
                }
                left.extend(map.values());
            }
            _ => {}
        }
    }
    Ok(())
}

fn piece(piece: &Value, special: Option<&Value>) -> Result<(), String> {
    let id = |kind: &str| {
        piece
            .get(kind)
            .and_then(|p| p.get("id"))
            .and_then(Value::as_str)
    };
    match (id("Sequence"), id("SpecialToken")) {
        (Some("A"), None) => Ok(()),
        (None, Some(token)) if special.is_some_and(|s| s.get(token).is_some()) => Ok(()),
        (None, Some(token)) => Err(format!(
            "its template names {}, which special_tokens has not",
            super::quoted(token)
        )),
        _ => Err("its template for one text has a part that is none of it".into()),
    }
}
