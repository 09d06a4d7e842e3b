//! Signed notes and checkpoints in the C2SP formats (signed-note and tlog-checkpoint).
//!
//! A note has one form: what is not of it is refused, down to the last byte. Signatures of keys
//! that nobody asked for are skipped, as the specification demands; whoever needs every byte
//! checked asks for all keys ([`SignedNote::only`]).

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
    /// A key has signed it that was not the log's any more.
    #[error(
        "its head has {size} entries and is signed with a key of the log that was exchanged after \
         {most}: whoever signed it was not to have that key any more"
    )]
    Outlived {
        /// Entries of the head.
        size: u64,
        /// Entries of the last head of that key.
        most: u64,
    },
    /// This build does not verify signatures of this kind.
    #[error(
        "the key of {0} signs with ML-DSA-44, which this build does not verify: use `lethe-verify`"
    )]
    Algorithm(String),
    /// A signature of a key that nobody named.
    #[error("it carries a signature of {0}, whose key is not known here")]
    Unknown(String),
}

/// Most signatures of a note: the log, and the most witnesses of a policy.
pub const MOST_SIGNATURES: usize = 65;
/// Longest note that is read, in bytes.
pub const MAX_NOTE: usize = 1 << 20;

/// How a key signs: the signature types of C2SP signed-note that are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Ed25519 over the text: a log, or a tally.
    Ed25519,
    /// Ed25519 with a time: a witness.
    Cosignature,
    /// ML-DSA-44 with a time: a witness.
    MlDsa44,
}

impl Algorithm {
    fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Ed25519),
            4 => Some(Self::Cosignature),
            6 => Some(Self::MlDsa44),
            _ => None,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Ed25519 => 1,
            Self::Cosignature => 4,
            Self::MlDsa44 => 6,
        }
    }

    /// Length of a public key, in bytes.
    fn key_len(self) -> usize {
        match self {
            Self::Ed25519 | Self::Cosignature => 32,
            Self::MlDsa44 => 1312,
        }
    }
}

/// The public key of a log or of a witness: `NAME+KEYID+BASE64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    algorithm: Algorithm,
    public: Vec<u8>,
}

impl VerifierKey {
    /// Parses the text form. Blanks around it do not matter; everything else does.
    ///
    /// # Errors
    /// [`NoteError::Key`].
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let text = text.trim_matches([' ', '\t', '\n', '\r']);
        let mut parts = text.splitn(3, '+');
        let name = parts.next().unwrap_or_default();
        let key = parts.nth(1).ok_or(NoteError::Key)?;
        let bytes = BASE64.decode(key).map_err(|_| NoteError::Key)?;
        let (first, public) = bytes.split_first().ok_or(NoteError::Key)?;
        let algorithm = Algorithm::of(*first).ok_or(NoteError::Key)?;
        let key = Self::new(name, algorithm, public.to_vec())?;
        // One key has one text.
        if key.text() == text {
            Ok(key)
        } else {
            Err(NoteError::Key)
        }
    }

    /// From its parts.
    pub(crate) fn new(
        name: &str,
        algorithm: Algorithm,
        public: Vec<u8>,
    ) -> Result<Self, NoteError> {
        check_name(name)?;
        if public.len() != algorithm.key_len() {
            return Err(NoteError::Key);
        }
        Ok(Self {
            name: name.to_owned(),
            algorithm,
            public,
        })
    }

    /// The public key.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// How it signs.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The first four bytes of the signatures of this key.
    pub fn id(&self) -> [u8; 4] {
        let kind = [self.algorithm.byte()];
        let data = [self.name.as_bytes(), b"\n", &kind, &self.public].concat();
        let d = digest(&SHA256, &data);
        [d.as_ref()[0], d.as_ref()[1], d.as_ref()[2], d.as_ref()[3]]
    }

    /// The text form.
    pub fn text(&self) -> String {
        let key = [&[self.algorithm.byte()][..], &self.public].concat();
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

    /// Whether a line is a signature of this key, as far as its name and identifier say.
    fn made(&self, line: &SignatureLine<'_>) -> bool {
        line.name == self.name && line.id == self.id()
    }
}

fn check_name(name: &str) -> Result<(), NoteError> {
    let bad = |c: char| c == '+' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.contains(bad) {
        Err(NoteError::Key)
    } else {
        Ok(())
    }
}

/// A signature line of a note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureLine<'a> {
    /// The line, with its line feed.
    pub text: &'a str,
    /// Name of the key.
    pub name: &'a str,
    /// Identifier of the key.
    pub id: [u8; 4],
    /// The signature.
    pub signature: Vec<u8>,
}

impl<'a> SignatureLine<'a> {
    /// Reads a line that ends with a line feed.
    ///
    /// # Errors
    /// [`NoteError::Format`].
    pub fn parse(text: &'a str) -> Result<Self, NoteError> {
        const WRONG: NoteError =
            NoteError::Format("a signature line is not `\u{2014} NAME BASE64` and a line feed");
        let rest = text.strip_prefix("\u{2014} ").ok_or(WRONG)?;
        let rest = rest.strip_suffix('\n').ok_or(WRONG)?;
        let (name, signature) = rest.split_once(' ').ok_or(WRONG)?;
        check_name(name).map_err(|_| WRONG)?;
        // The engine refuses blanks, missing padding, and bits behind the last byte.
        let bytes = BASE64.decode(signature).map_err(|_| WRONG)?;
        let (id, signature) = bytes.split_first_chunk().ok_or(WRONG)?;
        if signature.is_empty() {
            return Err(WRONG);
        }
        Ok(Self {
            text,
            name,
            id: *id,
            signature: signature.to_vec(),
        })
    }
}

/// A note whose form was checked. Its signatures were not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedNote<'a> {
    /// The text that is signed, with its last line feed.
    pub text: &'a str,
    /// The signatures.
    pub signatures: Vec<SignatureLine<'a>>,
}

impl<'a> SignedNote<'a> {
    /// Reads a note.
    ///
    /// # Errors
    /// [`NoteError::Format`]: a byte of it is not as the format has it, a key has signed it twice,
    /// or it is too long.
    pub fn parse(note: &'a str) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE {
            return Err(NoteError::Format("it is too long"));
        }
        if note.bytes().any(|b| b < 0x20 && b != b'\n') {
            return Err(NoteError::Format("it has control characters"));
        }
        // The last empty line: the text may have others.
        let at = note
            .rfind("\n\n")
            .ok_or(NoteError::Format("no signature part"))?;
        let (text, lines) = note.split_at(at + 1);
        if text == "\n" {
            return Err(NoteError::Format("no text"));
        }
        let mut signatures: Vec<SignatureLine<'a>> = vec![];
        for line in lines[1..].split_inclusive('\n') {
            let line = SignatureLine::parse(line)?;
            let same = |s: &SignatureLine<'_>| s.name == line.name && s.id == line.id;
            if signatures.iter().any(same) {
                return Err(NoteError::Format("it has two signatures of one key"));
            }
            signatures.push(line);
            if signatures.len() > MOST_SIGNATURES {
                return Err(NoteError::Format("it has too many signatures"));
            }
        }
        if signatures.is_empty() {
            return Err(NoteError::Format("no signature"));
        }
        Ok(Self { text, signatures })
    }

    /// The signature of a key, if there is one. It was not verified.
    pub fn of(&self, key: &VerifierKey) -> Option<&SignatureLine<'a>> {
        self.signatures.iter().find(|line| key.made(line))
    }

    /// Verifies the signature of a log or a tally.
    ///
    /// # Errors
    /// [`NoteError::Signature`].
    pub fn verify(&self, key: &VerifierKey) -> Result<(), NoteError> {
        let missing = || NoteError::Signature(key.name.clone());
        let line = self.of(key).ok_or_else(missing)?;
        if key.algorithm != Algorithm::Ed25519 {
            return Err(missing());
        }
        UnparsedPublicKey::new(&ED25519, &key.public)
            .verify(self.text.as_bytes(), &line.signature)
            .map_err(|_| missing())
    }

    /// Refuses signatures of other keys than these.
    ///
    /// # Errors
    /// [`NoteError::Unknown`].
    pub fn only(&self, keys: &[&VerifierKey]) -> Result<(), NoteError> {
        let known = |line: &SignatureLine<'_>| keys.iter().any(|key| key.made(line));
        match self.signatures.iter().find(|line| !known(line)) {
            None => Ok(()),
            Some(line) => Err(NoteError::Unknown(line.name.to_owned())),
        }
    }
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
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoteError::Key)?;
        let public = pair.public_key().as_ref().to_vec();
        let key = VerifierKey::new(name, Algorithm::Ed25519, public)?;
        Ok(Self { pair, key })
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
        format!("{body}\n{}", self.signature(body))
    }

    /// The line of a signature of this text.
    pub(crate) fn signature(&self, body: &str) -> String {
        let signature = self.pair.sign(body.as_bytes());
        signature_line(&self.key, signature.as_ref())
    }
}

/// The line of a signature.
pub(crate) fn signature_line(key: &VerifierKey, signature: &[u8]) -> String {
    let bytes = [&key.id()[..], signature].concat();
    format!("\u{2014} {} {}\n", key.name, BASE64.encode(bytes))
}

/// Verifies the signature of a note ([`Signer::note`]), which is the only one; returns its text.
///
/// # Errors
/// [`NoteError::Signature`] when the key has not signed it; [`NoteError::Unknown`] when somebody
/// else has, too; [`NoteError::Format`].
pub fn open_note(text: &str, key: &VerifierKey) -> Result<String, NoteError> {
    let note = SignedNote::parse(text)?;
    note.verify(key)?;
    note.only(&[key])?;
    Ok(note.text.to_owned())
}

/// What a checkpoint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// The log's name.
    pub origin: &'a str,
    /// Entries.
    pub size: u64,
    /// Root of their tree.
    pub root: Hash,
    /// It has more lines than these.
    pub extended: bool,
}

impl<'a> Head<'a> {
    /// Reads the text of a checkpoint.
    ///
    /// # Errors
    /// [`NoteError::Format`].
    pub fn parse(text: &'a str) -> Result<Self, NoteError> {
        let mut lines = text.split_inclusive('\n');
        let mut line = |what| {
            let line = lines.next().and_then(|l| l.strip_suffix('\n'));
            line.filter(|l| !l.is_empty())
                .ok_or(NoteError::Format(what))
        };
        let origin = line("no origin")?;
        let size = decimal(line("no tree size")?).ok_or(NoteError::Format("no tree size"))?;
        let root = BASE64.decode(line("no root hash")?).ok();
        let root = root.and_then(|b| b.try_into().ok());
        let root = root.ok_or(NoteError::Format("no root hash"))?;
        let mut extended = false;
        for more in lines {
            if more == "\n" || !more.ends_with('\n') {
                return Err(NoteError::Format("an extension line is empty"));
            }
            extended = true;
        }
        Ok(Self {
            origin,
            size,
            root,
            extended,
        })
    }
}

/// A decimal number without a sign or leading zeros.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let plain = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| plain && digits)
}

/// Verifies a checkpoint's signature and origin; returns its size and root. Signatures of witnesses
/// may follow; whoever knows their keys verifies them ([`crate::witness`]).
///
/// # Errors
/// [`NoteError::Signature`], [`NoteError::Format`]: its origin is another log, or it has lines that
/// checkpoints of this kind of log do not have.
pub fn open_checkpoint(text: &str, key: &VerifierKey) -> Result<(u64, Hash), NoteError> {
    let note = SignedNote::parse(text)?;
    note.verify(key)?;
    let head = Head::parse(note.text)?;
    if head.origin != key.name() {
        return Err(NoteError::Format("its origin is another log"));
    }
    if head.extended {
        return Err(NoteError::Format("it has more than three lines"));
    }
    Ok((head.size, head.root))
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
