//! Templates of a tokenizer's post-processor: the `tokenizers` crate looks up their parts without a
//! check, and would panic in the middle of a text.

use serde_json::Value;

/// Checks that every template of `post_processor` names special tokens that it has, and one text.
///
/// # Errors
/// What is wrong.
pub(crate) fn check(post_processor: &Value) -> Result<(), String> {
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
