//! The forms in which a text or a sequence of tokens may be written down.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::ScanError;

/// Fewest bytes of a text, and fewest tokens.
const SHORTEST: usize = 4;

/// What is searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// An identifier, a title, any text.
    Text(String),
    /// Token ids of a text.
    Tokens(Vec<u32>),
}

/// All forms of a secret, each once.
pub(crate) fn of(secret: &Secret) -> Result<BTreeSet<(&'static str, Vec<u8>)>, ScanError> {
    match secret {
        Secret::Text(t) if t.len() < SHORTEST => Err(ScanError::TooShort(t.clone(), SHORTEST)),
        Secret::Tokens(t) if t.len() < SHORTEST => {
            Err(ScanError::TooShort(format!("{t:?}"), SHORTEST))
        }
        Secret::Text(t) => Ok(text(t)),
        Secret::Tokens(t) => Ok(tokens(t)),
    }
}

fn text(t: &str) -> BTreeSet<(&'static str, Vec<u8>)> {
    let hex = |upper: bool| -> String {
        t.bytes()
            .map(|b| {
                if upper {
                    format!("{b:02X}")
                } else {
                    format!("{b:02x}")
                }
            })
            .collect()
    };
    let percent: String = t
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect();
    let mut out = BTreeSet::from([
        ("raw", t.as_bytes().to_vec()),
        (
            "utf-16",
            t.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        ),
        (
            "utf-16",
            t.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        ),
        ("hex", hex(true).into_bytes()),
        ("hex", hex(false).into_bytes()),
    ]);
    if percent != t {
        out.insert(("percent", percent.into_bytes()));
    }
    for before in 0..3 {
        // Only characters that the text alone decides: not those that share bits with what is
        // before or after it.
        let padded = [&vec![0; before][..], t.as_bytes()].concat();
        let (from, to) = ((before * 8).div_ceil(6), padded.len() * 8 / 6);
        for encoded in [
            STANDARD_NO_PAD.encode(&padded),
            URL_SAFE_NO_PAD.encode(&padded),
        ] {
            out.insert(("base64", encoded.as_bytes()[from..to].to_vec()));
        }
    }
    out
}

fn tokens(ids: &[u32]) -> BTreeSet<(&'static str, Vec<u8>)> {
    let listed = |separator: &str| {
        ids.iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(separator)
            .into_bytes()
    };
    let mut out = BTreeSet::from([
        ("tokens", ids.iter().flat_map(|t| t.to_le_bytes()).collect()),
        (
            "tokens",
            ids.iter()
                .flat_map(|t| u64::from(*t).to_le_bytes())
                .collect(),
        ),
        ("tokens", listed(",")),
        ("tokens", listed(", ")),
        ("tokens", listed(" ")),
    ]);
    let short: Option<Vec<u8>> = ids
        .iter()
        .map(|t| u16::try_from(*t))
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .map(|s| s.iter().flat_map(|t| t.to_le_bytes()).collect());
    out.extend(short.map(|s| ("tokens", s)));
    out
}
