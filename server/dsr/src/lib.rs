//! The request formats that privacy teams already use: what comes in, as a deletion request; what
//! goes back, signed.
//!
//! - [`opendsr`]: OpenDSR 2.0 (once OpenGDPR): JSON requests, responses, statuses and callbacks.
//! - [`ddrf`]: IAB Tech Lab's Data Deletion Request Framework 1.0: signed tokens ([`jws`]) and
//!   their acknowledgements.
//!
//! No clock, network or file is read here: times are arguments, and `lethe-admin` carries the
//! messages.

pub mod callback;
pub mod ddrf;
pub mod jws;
mod keys;
pub mod opendsr;
pub mod url;

pub use keys::{Jwk, SigningKey, keyed, salted};
use thiserror::Error;

/// Why a request is not taken, or an answer not made.
#[derive(Debug, Error)]
pub enum DsrError {
    /// Not what the format says.
    #[error("{0}")]
    Format(String),
    /// The request asks for something that is not done here.
    #[error("{0}")]
    Unsupported(String),
    /// The kind of identifier is not one that is known here.
    #[error("identifiers of type {got:?}: this installation knows subjects by {want:?}")]
    IdentityType {
        /// What the request has.
        got: Vec<String>,
        /// What is known.
        want: String,
    },
    /// The identifier is hashed, or not one that a subject can have.
    #[error("{0}")]
    IdentityFormat(String),
    /// A time that cannot be.
    #[error("{0}")]
    Time(String),
    /// A key cannot be read or used.
    #[error("key: {0}")]
    Key(String),
    /// No key fits the signature.
    #[error(
        "the signature ({alg}, key {kid:?}) is not by any of the {tried} keys that fit: the token \
         is altered, or the keys are old"
    )]
    Signature {
        /// Algorithm that the token names.
        alg: String,
        /// Key that the token names.
        kid: String,
        /// Keys tried.
        tried: usize,
    },
    /// A callback that cannot be called.
    #[error("{0}")]
    Callback(String),
    /// A version that is not known.
    #[error("{0}")]
    Version(String),
}

/// A time as RFC 3339.
pub(crate) fn rfc3339(unix: i64) -> Result<String, DsrError> {
    let bad = |e: String| DsrError::Time(e);
    let time = time::OffsetDateTime::from_unix_timestamp(unix).map_err(|e| bad(e.to_string()))?;
    time.format(&time::format_description::well_known::Rfc3339)
        .map_err(|e| bad(e.to_string()))
}

pub(crate) fn from_rfc3339(text: &str) -> Result<i64, DsrError> {
    let parsed = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    parsed
        .map(time::OffsetDateTime::unix_timestamp)
        .map_err(|e| {
            DsrError::Time(format!(
                "{text:?} is no time of RFC 3339, such as 2026-11-23T10:30:00Z: {e}"
            ))
        })
}

#[cfg(test)]
mod tests;
