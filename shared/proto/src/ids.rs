//! Typed identifiers and hashes.

use std::fmt;
use std::sync::Arc;

use ring::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::limits::MAX_ID;

/// An identifier that cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "identifier {shown:?} is not usable: it must have 1 to {MAX_ID} bytes and no control characters"
)]
pub struct IdError {
    shown: String,
}

/// A person, as the operator names them. Copies share the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SubjectId(Arc<str>);

impl SubjectId {
    /// Checks and wraps an identifier.
    pub fn new(id: impl Into<String>) -> Result<Self, IdError> {
        let id = id.into();
        if id.is_empty() || id.len() > MAX_ID || id.chars().any(char::is_control) {
            return Err(IdError {
                shown: id.chars().take(40).collect(),
            });
        }
        Ok(Self(id.into()))
    }

    /// The identifier.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Refuses what may not become a new identifier. (Folders of earlier versions may hold such
    /// ones: their people can be named, and deleted.)
    ///
    /// # Errors
    /// It holds a character that nobody sees ([`hidden_character`]).
    pub fn check_new(&self) -> Result<(), HiddenCharacter> {
        hidden_character(&self.0).map_or(Ok(()), Err)
    }
}

/// A character of an identifier that nobody sees, and that makes two of them look alike or one look
/// like another: it turns the direction of what follows, or has no width (Unicode Technical Report
/// 36, sections 2.4 and 3.6; CVE-2021-42574).
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "an identifier holds the character U+{0:04X}, which nobody sees: expected one without control \
     characters, marks of direction and characters without width"
)]
pub struct HiddenCharacter(u32);

/// The first character of an identifier that nobody sees, if there is one.
pub fn hidden_character(id: &str) -> Option<HiddenCharacter> {
    let hidden = |c: &char| {
        c.is_control()
            || matches!(
                c,
                '\u{ad}'
                    | '\u{61c}'
                    | '\u{180e}'
                    | '\u{200b}'..='\u{200f}'
                    | '\u{2028}'..='\u{202e}'
                    | '\u{2060}'..='\u{206f}'
                    | '\u{feff}'
                    | '\u{fff9}'..='\u{fffb}'
                    | '\u{e0000}'..='\u{e007f}'
            )
    };
    id.chars().find(hidden).map(|c| HiddenCharacter(c as u32))
}

impl TryFrom<String> for SubjectId {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        Self::new(s)
    }
}

impl From<SubjectId> for String {
    fn from(s: SubjectId) -> Self {
        s.0.as_ref().to_owned()
    }
}

impl fmt::Display for SubjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A shard of the data, with an adapter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}", self.0)
    }
}

/// An epoch: what a recipe, a base model, a catalogue and a partition fix. The first one has the
/// number 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EpochNo(pub u32);

impl EpochNo {
    /// The first epoch.
    pub const FIRST: Self = Self(1);
}

impl fmt::Display for EpochNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

/// A round of a shard's training. `generation` distinguishes runs of the same stage before and
/// after a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoundKey {
    /// The epoch.
    pub epoch: EpochNo,
    /// The shard.
    pub shard: ShardId,
    /// Run of the shard: grows with every rollback and replay.
    pub generation: u32,
    /// 1-based stage: stage r trains on slices 1..=r.
    pub stage: u16,
    /// 0-based round of the stage.
    pub round: u16,
}

/// A SHA-256 digest; hexadecimal as text and in JSON, 32 bytes elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.serialize_str(&self.hex()),
            false => self.0.serialize(serializer),
        }
    }
}

/// A digest in JSON; earlier builds wrote its bytes as numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes([u8; 32]),
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return <[u8; 32]>::deserialize(deserializer).map(Self);
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => Self::parse(&text)
                .ok_or_else(|| serde::de::Error::custom("a digest is not 64 hexadecimal digits")),
        }
    }
}

impl Digest {
    /// Digest of the parts, each length-prefixed.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut ctx = digest::Context::new(&digest::SHA256);
        for p in parts {
            ctx.update(&(p.len() as u64).to_le_bytes());
            ctx.update(p);
        }
        Self::from_ring(ctx)
    }

    /// Digest of f32 values as little-endian bytes.
    pub fn of_values(values: &[f32]) -> Self {
        let mut ctx = digest::Context::new(&digest::SHA256);
        for chunk in values.chunks(4096) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
            ctx.update(&bytes);
        }
        Self::from_ring(ctx)
    }

    fn from_ring(ctx: digest::Context) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(ctx.finish().as_ref());
        Self(out)
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let nibble = |b: u8| char::from(b).to_digit(16);
        let byte = |pair: &[u8]| Some((nibble(pair[0])? * 16 + nibble(pair[1])?) as u8);
        let bytes: Option<Vec<u8>> = digits.chunks_exact(2).map(byte).collect();
        Some(Self(bytes?.try_into().ok()?))
    }

    /// Lower-case hexadecimal.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The first eight hexadecimal digits, for people.
    pub fn short(&self) -> String {
        self.hex()[..8].to_owned()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_checked_wherever_they_come_from() {
        assert!(SubjectId::new("").is_err());
        assert!(SubjectId::new("a\nb").is_err());
        assert!(SubjectId::new("x".repeat(MAX_ID + 1)).is_err());
        for plain in [
            "anna@example.org",
            "\u{5d0}\u{5d1}",
            "J\u{fc}rg 7",
            "\u{1f600}",
        ] {
            assert_eq!(hidden_character(plain), None, "{plain}");
        }
        let bytes = crate::codec::to_bytes(&"bad\u{7}").expect("a string");
        assert!(crate::codec::from_bytes::<SubjectId>(&bytes, 100).is_err());
    }

    #[test]
    fn digests_separate_parts() {
        assert_ne!(Digest::of(&[b"ab", b"c"]), Digest::of(&[b"a", b"bc"]));
        assert_eq!(Digest::of_values(&[1.0]).hex().len(), 64);
    }

    #[test]
    fn digests_are_hexadecimal_in_json_and_bytes_on_the_wire() {
        let digest = Digest::of(&[b"a"]);
        let json = serde_json::to_string(&digest).expect("JSON");
        assert_eq!(json, format!("\"{}\"", digest.hex()));
        let numbers = serde_json::to_string(&digest.0).expect("JSON");
        for text in [json, numbers] {
            assert_eq!(serde_json::from_str::<Digest>(&text).expect(&text), digest);
        }
        assert!(serde_json::from_str::<Digest>("\"ab\"").is_err());
        let bytes = crate::codec::to_bytes(&digest).expect("bytes");
        assert_eq!(bytes, digest.0);
        assert_eq!(
            crate::codec::from_bytes::<Digest>(&bytes, 64).expect("a digest"),
            digest
        );
    }
}
