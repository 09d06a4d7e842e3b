//! Signed notes and checkpoints in the C2SP formats (signed-note and tlog-checkpoint), Ed25519.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use thiserror::Error;

use crate::merkle::Hash;

/// Why a note or key is not accepted.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NoteError {
    /// A verifier key that does not parse.
    #[error("not a verifier key: expected NAME+KEYID+BASE64 as printed by `lethe-admin status`")]
    Key,
    /// Not a signed checkpoint.
    #[error("not a signed checkpoint: {0}")]
    Format(&'static str),
    /// No signature by the given key.
    #[error("the checkpoint carries no valid signature of {0}")]
    Signature(String),
}

/// Signature types of C2SP signed-note: Ed25519, and timestamped Ed25519 cosignatures of witnesses.
const ED25519_NOTE: u8 = 1;
const COSIGNATURE: u8 = 4;

/// The public key of a log or of a witness: `NAME+KEYID+BASE64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    algorithm: u8,
    public: [u8; 32],
}

impl VerifierKey {
    /// Parses the text form.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (name, id, key) = (parts.next(), parts.next(), parts.next());
        let bytes = key
            .and_then(|k| BASE64.decode(k).ok())
            .filter(|b| b.len() == 33);
        let bytes = bytes.filter(|b| [ED25519_NOTE, COSIGNATURE].contains(&b[0]));
        let (Some(name), Some(id), Some(bytes)) = (name, id, bytes) else {
            return Err(NoteError::Key);
        };
        let mut public = [0; 32];
        public.copy_from_slice(&bytes[1..]);
        let key = Self {
            name: name.to_owned(),
            algorithm: bytes[0],
            public,
        };
        if name.is_empty() || u32::from_str_radix(id, 16) != Ok(u32::from_be_bytes(key.id())) {
            return Err(NoteError::Key);
        }
        Ok(key)
    }

    /// A witness's key.
    pub(crate) fn cosigner(name: &str, public: [u8; 32]) -> Result<Self, NoteError> {
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            algorithm: COSIGNATURE,
            public,
        })
    }

    pub(crate) fn public(&self) -> &[u8; 32] {
        &self.public
    }

    pub(crate) fn id(&self) -> [u8; 4] {
        let data = [self.name.as_bytes(), b"\n", &[self.algorithm], &self.public].concat();
        let d = digest(&SHA256, &data);
        [d.as_ref()[0], d.as_ref()[1], d.as_ref()[2], d.as_ref()[3]]
    }

    /// The text form.
    pub fn text(&self) -> String {
        let key = [&[self.algorithm][..], &self.public].concat();
        format!(
            "{}+{:08x}+{}",
            self.name,
            u32::from_be_bytes(self.id()),
            BASE64.encode(key)
        )
    }

    /// The log's name, which is also the checkpoint's origin.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn check_name(name: &str) -> Result<(), NoteError> {
    if name.is_empty() || name.contains(['+', ' ', '\n']) {
        Err(NoteError::Key)
    } else {
        Ok(())
    }
}

/// The decoded signatures under `name` in a signed note.
pub(crate) fn signatures(text: &str, name: &str) -> Vec<Vec<u8>> {
    let prefix = format!("\u{2014} {name} ");
    let lines = text.split_once("\n\n").map_or("", |(_, s)| s).lines();
    lines
        .filter_map(|l| l.strip_prefix(&prefix))
        .filter_map(|s| BASE64.decode(s).ok())
        .collect()
}

/// The log's private key.
#[derive(Debug)]
pub struct Signer {
    pair: Ed25519KeyPair,
    key: VerifierKey,
}

impl Signer {
    /// From a 32-byte seed; `name` must hold no space or plus.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        check_name(name)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoteError::Key)?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Ok(Self {
            pair,
            key: VerifierKey {
                name: name.to_owned(),
                algorithm: ED25519_NOTE,
                public,
            },
        })
    }

    /// The public key.
    pub fn verifier(&self) -> &VerifierKey {
        &self.key
    }

    /// A signed checkpoint of a tree.
    pub fn checkpoint(&self, size: u64, root: &Hash) -> String {
        let body = format!("{}\n{size}\n{}\n", self.key.name, BASE64.encode(root));
        self.sign(&body)
    }

    /// A signed note of any other text. [`open_note`] reads it.
    ///
    /// # Errors
    /// [`NoteError::Format`] for a text without an end of line at its end or with an empty line,
    /// and for one that could be taken for a checkpoint: its first line is the key's name.
    pub fn note(&self, body: &str) -> Result<String, NoteError> {
        if !body.ends_with('\n') || body.starts_with('\n') || body.contains("\n\n") {
            return Err(NoteError::Format("its lines end with one line break each"));
        }
        if body.lines().next() == Some(self.key.name()) {
            return Err(NoteError::Format("its first line is that of a checkpoint"));
        }
        Ok(self.sign(body))
    }

    fn sign(&self, body: &str) -> String {
        let signature = [&self.key.id()[..], self.pair.sign(body.as_bytes()).as_ref()].concat();
        format!(
            "{body}\n\u{2014} {} {}\n",
            self.key.name,
            BASE64.encode(signature)
        )
    }
}

/// Verifies the signature of a note ([`Signer::note`]); returns its text.
///
/// # Errors
/// [`NoteError::Signature`] when the key has not signed it.
pub fn open_note(text: &str, key: &VerifierKey) -> Result<String, NoteError> {
    let (body, _) = text
        .split_once("\n\n")
        .ok_or(NoteError::Format("no signature part"))?;
    let body = format!("{body}\n");
    let public = UnparsedPublicKey::new(&ED25519, &key.public);
    let valid = |s: &Vec<u8>| {
        s.len() == 68 && s[..4] == key.id() && public.verify(body.as_bytes(), &s[4..]).is_ok()
    };
    if key.algorithm != ED25519_NOTE || !signatures(text, &key.name).iter().any(valid) {
        return Err(NoteError::Signature(key.name.clone()));
    }
    Ok(body)
}

/// Verifies a checkpoint's signature and origin; returns its size and root.
pub fn open_checkpoint(text: &str, key: &VerifierKey) -> Result<(u64, Hash), NoteError> {
    let body = open_note(text, key)?;
    let mut lines = body.lines();
    if lines.next() != Some(key.name()) {
        return Err(NoteError::Format("its origin is another log"));
    }
    let size = lines
        .next()
        .and_then(|l| l.parse().ok())
        .ok_or(NoteError::Format("no tree size"))?;
    let root = lines
        .next()
        .and_then(|l| BASE64.decode(l).ok())
        .and_then(|b| b.try_into().ok());
    Ok((size, root.ok_or(NoteError::Format("no root hash"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_and_refuses_alterations() {
        let s = Signer::from_seed("log.example", &[3; 32]).expect("a seed");
        let key = VerifierKey::parse(&s.verifier().text()).expect("own text");
        let text = s.checkpoint(5, &[9; 32]);
        assert_eq!(open_checkpoint(&text, &key), Ok((5, [9; 32])));
        assert!(open_checkpoint(&text.replace("\n5\n", "\n6\n"), &key).is_err());
        let other = Signer::from_seed("log.example", &[4; 32]).expect("a seed");
        assert!(open_checkpoint(&text, other.verifier()).is_err());
        assert!(VerifierKey::parse("x+00000000+AAAA").is_err());
    }

    #[test]
    fn a_note_is_no_checkpoint() {
        let s = Signer::from_seed("log.example", &[3; 32]).expect("a seed");
        let text = s.note("a text\nof two lines\n").expect("a text");
        let key = s.verifier();
        assert_eq!(
            open_note(&text, key).as_deref(),
            Ok("a text\nof two lines\n")
        );
        assert!(open_note(&text.replace("two", "ten"), key).is_err());
        assert!(open_checkpoint(&text, key).is_err());
        for bad in ["", "no end", "a\n\nb\n", "log.example\n5\n"] {
            assert!(s.note(bad).is_err(), "{bad:?}");
        }
    }
}
