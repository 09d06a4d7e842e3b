//! Messages as bounded bytes. The only module that names bincode.
//!
//! A frame is an 8-byte header and a body: version (u8), codec (u8, 1 = bincode 2 with the standard
//! configuration), message type (u16 LE), body length (u32 LE). The type decides the largest body;
//! a longer one is refused before it is read. `tests/fixtures/golden-bytes` pins every message.
//!
//! Peers of one version and different minor versions understand each other: what a minor version
//! adds to a message comes after its value, as extensions (tag u16, length u16, bytes), and who
//! does not know a tag skips it. A new message is sent only to peers whose minor version
//! ([`crate::message::Request::Hello`]) has it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::catalogue::CatalogueChange;
use crate::limits::{MAX_ACTIVATIONS, MAX_ADAPTER, MAX_SMALL, VERSION};
use crate::lists::Watched;
use crate::message::{Reply, Request, ServedAdapter, Task};
use crate::tally::{MAX_ENVELOPE, TallyReply};

/// Bytes before the body.
pub const HEADER: usize = 8;
/// Type of [`Request::Enrol`].
pub const ENROL: u16 = 1;
/// Type of [`Request::Forward`].
pub const FORWARD: u16 = 5;
/// Type of [`Request::Backward`].
pub const BACKWARD: u16 = 6;
/// Type of [`Request::Update`].
pub const UPDATE: u16 = 7;
/// Type of [`Request::Admin`].
pub const ADMIN: u16 = 12;
/// Type of [`Request::Renew`].
pub const RENEW: u16 = 14;
/// Type of [`Request::Contribute`].
pub const CONTRIBUTE: u16 = 16;
/// Type of [`Request::ContributeSealed`].
pub const CONTRIBUTE_SEALED: u16 = 21;
/// Type of [`Request::Tally`].
pub const TALLY: u16 = 22;
/// Type of [`Request::Standing`].
pub const STANDING: u16 = 29;
/// Type of [`Request::OrdersSince`].
pub const ORDERS_SINCE: u16 = 30;
/// Type of [`Request::Logged`].
pub const LOGGED: u16 = 31;
/// Type of [`Request::LogKeys`].
pub const LOG_KEYS: u16 = 32;
const BINCODE: u8 = 1;

/// Why bytes are not a message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CodecError {
    /// The peer speaks another version.
    #[error("protocol version {got}, this build speaks {VERSION}: update the older side")]
    Version {
        /// Version of the peer.
        got: u8,
    },
    /// The codec byte is unknown.
    #[error("codec {got}, expected {BINCODE}: the peer is newer or the bytes are damaged")]
    Codec {
        /// Codec byte.
        got: u8,
    },
    /// The type is unknown.
    #[error("message type {got} is unknown: the peer is newer or the bytes are damaged")]
    Type {
        /// Type.
        got: u16,
    },
    /// A peer without a certificate sent something else than a request to enrol.
    #[error("message type {got} needs a certificate: enrol first")]
    NotEnrolled {
        /// Type.
        got: u16,
    },
    /// The body is too long for its type.
    #[error("a body of {got} bytes, message type {kind} allows {allowed}")]
    TooLong {
        /// Type.
        kind: u16,
        /// Length.
        got: usize,
        /// Limit.
        allowed: usize,
    },
    /// The body does not parse, or bytes are left over.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// The fields of a frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Message type.
    pub kind: u16,
    /// Body length, within the type's limit.
    pub len: usize,
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard()
}

/// Any value as bytes (for storage and hashing); the same value always gives the same bytes.
pub fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, config()).map_err(|e| CodecError::Malformed(e.to_string()))
}

/// Appends a value's bytes. Where the buffer has room for them, it does not move: for secrets.
pub fn append_bytes<T: Serialize>(to: &mut Vec<u8>, value: &T) -> Result<(), CodecError> {
    let written = bincode::serde::encode_into_std_write(value, to, config());
    written
        .map(drop)
        .map_err(|e| CodecError::Malformed(e.to_string()))
}

/// A value from exactly these bytes, at most `limit` of them (also bounding what is allocated).
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    let (value, used) = prefix_from(bytes, limit)?;
    if used != bytes.len() {
        return Err(CodecError::Malformed(format!(
            "{} bytes are left over",
            bytes.len() - used
        )));
    }
    Ok(value)
}

/// A value from the first of these bytes, and how many they are.
fn prefix_from<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<(T, usize), CodecError> {
    if bytes.len() > limit {
        return Err(CodecError::Malformed(format!(
            "{} bytes, at most {limit}",
            bytes.len()
        )));
    }
    // bincode's own limit is a constant: it counts claimed lengths before it allocates.
    let limited = bincode::config::standard().with_limit::<{ 256 << 20 }>();
    bincode::serde::decode_from_slice(bytes, limited)
        .map_err(|e| CodecError::Malformed(e.to_string()))
}

fn request_kind(r: &Request) -> u16 {
    match r {
        Request::Enrol { .. } => ENROL,
        Request::Hello { .. } => 2,
        Request::Join { .. } => 3,
        Request::Poll => 4,
        Request::Forward { .. } => FORWARD,
        Request::Backward { .. } => BACKWARD,
        Request::Update { .. } => UPDATE,
        Request::Release { .. } => 8,
        Request::Weigh { .. } => 9,
        Request::Errors { .. } => 10,
        Request::Erased { .. } => 11,
        Request::Admin(_) => ADMIN,
        Request::Decline { .. } => 13,
        Request::Renew { .. } => RENEW,
        Request::Orders { .. } => 15,
        Request::Contribute(_) => CONTRIBUTE,
        Request::Uncontribute => 17,
        Request::Snapshot { .. } => 18,
        Request::Watch { .. } => 19,
        Request::Terms => 20,
        Request::ContributeSealed(_) => CONTRIBUTE_SEALED,
        Request::Tally(_) => TALLY,
        Request::Epochs => 23,
        Request::JoinEpoch { .. } => 24,
        Request::Await { .. } => 25,
        Request::Lacks { .. } => 26,
        Request::Served { .. } => 27,
        Request::Catalogue { .. } => 28,
        Request::Standing => STANDING,
        Request::OrdersSince { .. } => ORDERS_SINCE,
        Request::Logged { .. } => LOGGED,
        Request::LogKeys => LOG_KEYS,
    }
}

fn reply_kind(r: &Reply) -> u16 {
    match r {
        Reply::Enrolled { .. } => 101,
        Reply::Welcome { .. } => 102,
        Reply::Joined { .. } => 103,
        Reply::Task { .. } => 104,
        Reply::Hidden(_) => 105,
        Reply::Ack => 106,
        Reply::Release(_) => 107,
        Reply::Omega(_) => 108,
        Reply::Admin(_) => 109,
        Reply::Refused { .. } => 110,
        Reply::Orders(_) => 111,
        Reply::Snapshot(_) => 112,
        Reply::Watched(_) => 113,
        Reply::Terms(_) => 114,
        Reply::Confided(_) => 115,
        Reply::Tally(_) => 116,
        Reply::Epochs(_) => 117,
        Reply::JoinedEpoch(_) => 118,
        Reply::Awaited(_) => 119,
        Reply::Served(_) => 120,
        Reply::Catalogue(_) => 121,
        Reply::Standing(_) => 122,
        Reply::Logged(_) => 123,
        Reply::LogKeys(_) => 124,
    }
}

/// Largest body of a message type; `None` for unknown types.
pub fn limit(kind: u16) -> Option<usize> {
    match kind {
        1..=4 | 8..=9 | 11 | 13..=15 | 17..=20 | 23..=28 => Some(MAX_SMALL),
        101 | 103 | 106 | 108 | 110 | 114 | 115 | 118 => Some(MAX_SMALL),
        STANDING | ORDERS_SINCE | LOGGED | LOG_KEYS | 122 => Some(MAX_SMALL),
        5 | 6 | 105 => Some(MAX_ACTIVATIONS),
        7 | 104 | 107 | 112 | 113 | 119 | 120 => Some(MAX_ADAPTER),
        // Several contributions to the tally; its tables, with what leads to them from before.
        TALLY => Some(16 << 20),
        116 => Some(4 * MAX_ADAPTER),
        // A statement, and a head with the signatures of witnesses.
        123 => Some(512 << 10),
        // At most 64 notes of at most 4 KiB.
        124 => Some(512 << 10),
        12 | 16 => Some(1 << 20),
        CONTRIBUTE_SEALED => Some(MAX_ENVELOPE + MAX_SMALL),
        10 | 102 | 109 | 111 | 117 | 121 => Some(4 << 20),
        _ => None,
    }
}

/// Checks a header.
pub fn decode_header(bytes: &[u8; HEADER]) -> Result<Header, CodecError> {
    if bytes[0] != VERSION {
        return Err(CodecError::Version { got: bytes[0] });
    }
    if bytes[1] != BINCODE {
        return Err(CodecError::Codec { got: bytes[1] });
    }
    let kind = u16::from_le_bytes([bytes[2], bytes[3]]);
    let len = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
    let allowed = limit(kind).ok_or(CodecError::Type { got: kind })?;
    if len > allowed {
        return Err(CodecError::TooLong {
            kind,
            got: len,
            allowed,
        });
    }
    Ok(Header { kind, len })
}

/// What a newer minor version adds to a message: tag and bytes, each at most [`u16::MAX`] long.
pub type Extension = (u16, Vec<u8>);

/// Most extensions of a message.
const MAX_EXTENSIONS: usize = 16;

fn extend(body: &mut Vec<u8>, extensions: &[Extension]) -> Result<(), CodecError> {
    for (tag, bytes) in extensions {
        let len = u16::try_from(bytes.len())
            .map_err(|_| CodecError::Malformed("an extension is too long".into()))?;
        body.extend(tag.to_le_bytes());
        body.extend(len.to_le_bytes());
        body.extend(bytes);
    }
    Ok(())
}

/// Checks what comes after a message; this version knows no extension, and skips all.
fn skip_extensions(mut rest: &[u8]) -> Result<(), CodecError> {
    let bad = |n: usize| CodecError::Malformed(format!("{n} bytes are left over"));
    for _ in 0..MAX_EXTENSIONS {
        if rest.is_empty() {
            return Ok(());
        }
        let (head, after) = rest.split_at_checked(4).ok_or_else(|| bad(rest.len()))?;
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        rest = after.get(len..).ok_or_else(|| bad(rest.len()))?;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(bad(rest.len()))
    }
}

fn frame<T: Serialize>(
    kind: u16,
    value: &T,
    extensions: &[Extension],
) -> Result<Vec<u8>, CodecError> {
    let mut out = vec![VERSION, BINCODE];
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    let mut body = to_bytes(value)?;
    extend(&mut body, extensions)?;
    let allowed = limit(kind).ok_or(CodecError::Type { got: kind })?;
    if body.len() > allowed {
        return Err(CodecError::TooLong {
            kind,
            got: body.len(),
            allowed,
        });
    }
    out[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend(body);
    Ok(out)
}

fn unframe<T: DeserializeOwned>(
    bytes: &[u8],
    kind_of: impl Fn(&T) -> u16,
) -> Result<T, CodecError> {
    let short = || CodecError::Malformed(format!("{} bytes are no frame", bytes.len()));
    let header = decode_header(
        bytes
            .get(..HEADER)
            .and_then(|h| h.try_into().ok())
            .ok_or_else(short)?,
    )?;
    if bytes.len() != HEADER + header.len {
        return Err(short());
    }
    let (value, used) = prefix_from(&bytes[HEADER..], header.len)?;
    skip_extensions(&bytes[HEADER + used..])?;
    if kind_of(&value) != header.kind {
        return Err(CodecError::Type { got: header.kind });
    }
    Ok(value)
}

/// A request as a frame.
pub fn encode_request(r: &Request) -> Result<Vec<u8>, CodecError> {
    encode_request_with(r, &[])
}

/// A request with extensions, as a frame.
pub fn encode_request_with(r: &Request, extensions: &[Extension]) -> Result<Vec<u8>, CodecError> {
    frame(request_kind(r), r, extensions)
}

/// A request from a whole frame.
pub fn decode_request(bytes: &[u8]) -> Result<Request, CodecError> {
    unframe(bytes, request_kind)
}

/// A reply as a frame.
pub fn encode_reply(r: &Reply) -> Result<Vec<u8>, CodecError> {
    frame(reply_kind(r), r, &[])
}

/// About how long a reply's frame is, from what it carries: small ones count as nothing.
pub fn payload_bytes(r: &Reply) -> usize {
    match r {
        Reply::Task {
            task: Task::Train(start),
            ..
        } => start.adapter.bytes.len(),
        Reply::Hidden(payload) => payload.bytes.len(),
        Reply::Release(release) => release
            .adapters
            .iter()
            .map(|a| match a {
                ServedAdapter::New(packed) => packed.bytes.len(),
                ServedAdapter::Same(_) => 0,
            })
            .sum(),
        Reply::Snapshot(snapshot) => {
            snapshot.tables.len() + snapshot.items.iter().map(String::len).sum::<usize>()
        }
        Reply::Catalogue(page) => page.changes.iter().map(CatalogueChange::size).sum(),
        Reply::Tally(TallyReply::Tables(Some(tables))) => {
            let deltas = tables.deltas.iter().map(|d| d.bytes.len());
            tables.bytes.len() + deltas.sum::<usize>()
        }
        Reply::Watched(Watched {
            task: Task::Train(start),
            ..
        }) => start.adapter.bytes.len(),
        Reply::Welcome {
            recipe, anchors, ..
        } => recipe.len() + 4 * anchors.iter().map(Vec::len).sum::<usize>(),
        _ => 0,
    }
}

/// A reply from a whole frame.
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, CodecError> {
    unframe(bytes, reply_kind)
}

/// Many values as bytes, little-endian, for `#[serde(with)]`: one copy in place of one call a
/// value.
pub mod values {
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    /// Writes them.
    pub fn serialize<S: Serializer>(values: &[f32], s: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        serde_bytes::serialize(&bytes, s)
    }

    /// Reads them.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<f32>, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(d)?;
        if !bytes.len().is_multiple_of(4) {
            return Err(D::Error::custom(format!(
                "{} bytes are no values of four",
                bytes.len()
            )));
        }
        Ok(bytes
            .chunks_exact(4)
            .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_bad_headers_before_reading_bodies() {
        let good = encode_request(&Request::Poll).expect("encodes");
        let with = |i: usize, v: u8| {
            let mut b = good.clone();
            b[i] = v;
            decode_request(&b)
        };
        assert_eq!(with(0, 9), Err(CodecError::Version { got: 9 }));
        assert_eq!(with(1, 2), Err(CodecError::Codec { got: 2 }));
        assert_eq!(with(2, 77), Err(CodecError::Type { got: 77 }));
        assert!(matches!(with(6, 0xff), Err(CodecError::TooLong { .. })));
        assert!(matches!(
            with(2, 2),
            Err(CodecError::Malformed(_) | CodecError::Type { .. })
        ));
        assert!(decode_request(&good[..5]).is_err());
    }

    #[test]
    fn extensions_of_a_newer_minor_version_are_skipped() {
        let r = Request::Orders { task: 3, seen: 0 };
        let extended =
            encode_request_with(&r, &[(7, vec![1, 2, 3]), (9, vec![])]).expect("encodes");
        assert_eq!(decode_request(&extended), Ok(r.clone()));
        let reply = frame(106, &Reply::Ack, &[(1, vec![0; 300])]).expect("encodes");
        assert_eq!(decode_reply(&reply), Ok(Reply::Ack));
        // Cut off, or more than allowed: not taken for a message.
        let mut cut = extended.clone();
        cut.pop();
        assert!(decode_request(&cut).is_err());
        let many = vec![(1, vec![]); MAX_EXTENSIONS + 1];
        assert!(decode_request(&encode_request_with(&r, &many).expect("encodes")).is_err());
    }

    #[test]
    fn a_claimed_length_is_not_allocated() {
        // A vector that claims 2^60 bytes inside a short body.
        let mut body = vec![253];
        body.extend((1u64 << 60).to_le_bytes());
        assert!(from_bytes::<Vec<u8>>(&body, 1000).is_err());
    }

    #[test]
    fn every_truncation_and_bit_flip_is_handled() {
        let r = Request::Join {
            anchor: Some(2),
            samples: 9,
            commitment: crate::ids::Digest([7; 32]),
        };
        let good = encode_request(&r).expect("encodes");
        for n in 0..good.len() {
            assert!(decode_request(&good[..n]).is_err());
        }
        for bit in 0..good.len() * 8 {
            let mut b = good.clone();
            b[bit / 8] ^= 1 << (bit % 8);
            let _ = decode_request(&b); // Must not panic; a flipped value may still be a message.
        }
    }
}
