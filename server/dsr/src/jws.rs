//! JSON Web Signatures in compact form (RFC 7515), with JSON claims (RFC 7519).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::DsrError;
use crate::keys::{Jwk, SigningKey, decode, encode};

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    /// Extensions that must be understood: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crit: Option<serde_json::Value>,
}

/// Signs claims.
pub fn sign(claims: &impl Serialize, key: &SigningKey, kid: &str) -> Result<String, DsrError> {
    let header = Header {
        alg: key.alg().into(),
        typ: Some("JWT".into()),
        kid: Some(kid.to_owned()),
        crit: None,
    };
    let json =
        |v: Result<Vec<u8>, serde_json::Error>| v.map_err(|e| DsrError::Format(e.to_string()));
    let head = encode(&json(serde_json::to_vec(&header))?);
    let body = encode(&json(serde_json::to_vec(claims))?);
    let message = format!("{head}.{body}");
    let signature = encode(&key.sign(message.as_bytes())?);
    Ok(format!("{message}.{signature}"))
}

fn parts(token: &str) -> Result<(&str, &str, &str, &str), DsrError> {
    let bad = || DsrError::Format("a token has three parts, base64url, with dots between".into());
    if token.len() > MAX_TOKEN {
        return Err(DsrError::Format(format!(
            "a token of {} bytes, at most {MAX_TOKEN}",
            token.len()
        )));
    }
    let (message, signature) = token.rsplit_once('.').ok_or_else(bad)?;
    let (head, body) = message
        .split_once('.')
        .filter(|(_, b)| !b.contains('.'))
        .ok_or_else(bad)?;
    Ok((message, head, body, signature))
}

fn json<T: DeserializeOwned>(part: &str, what: &str) -> Result<T, DsrError> {
    let bytes = decode(part)
        .ok_or_else(|| DsrError::Format(format!("the token's {what} is not base64url")))?;
    serde_json::from_slice(&bytes).map_err(|e| DsrError::Format(format!("the token's {what}: {e}")))
}

/// The claims, not yet verified: only to find out whose keys to ask for.
pub fn unverified<T: DeserializeOwned>(token: &str) -> Result<T, DsrError> {
    json(parts(token)?.2, "claims")
}

/// The claims, if one of the keys signed the token. The key decides which algorithm counts.
pub fn verify<T: DeserializeOwned>(token: &str, keys: &[Jwk]) -> Result<T, DsrError> {
    let (message, head, body, signature) = parts(token)?;
    let header: Header = json(head, "header")?;
    if header.crit.is_some() {
        return Err(DsrError::Format(
            "the token has critical extensions; none is known".into(),
        ));
    }
    let signature = decode(signature)
        .ok_or_else(|| DsrError::Format("the signature is not base64url".into()))?;
    let named = |k: &&Jwk| header.kid.is_none() || k.kid.is_none() || k.kid == header.kid;
    let mut tried = 0;
    for key in keys.iter().filter(named) {
        // Keys of other kinds are a partner's business.
        let Ok(algorithm) = key.algorithm() else {
            continue;
        };
        tried += 1;
        if algorithm == header.alg && key.verify(message.as_bytes(), &signature)? {
            return json(body, "claims");
        }
    }
    Err(DsrError::Signature {
        alg: header.alg,
        kid: header.kid.unwrap_or_default(),
        tried,
    })
}
