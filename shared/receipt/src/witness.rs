//! A second signer: a witness that sees every head of the log, signs only heads that extend the one
//! it signed before (C2SP tlog-witness, signatures as in tlog-cosignature), and so makes a split
//! view visible.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::hex::{hex, unhex32};
use crate::merkle::{Hash, verify_consistency};
use crate::note::{
    Algorithm, Head, NoteError, SignedNote, VerifierKey, decimal, open_checkpoint, signature_line,
};

/// Why a witness does not sign.
#[derive(Debug, Error)]
pub enum WitnessError {
    /// The head is not signed by the log, or a key is not usable.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The log shows this witness something else than before.
    #[error(
        "SPLIT VIEW: the head of size {new} does not extend the head of size {old} that this \
         witness signed before; keep both"
    )]
    SplitView {
        /// Size signed before.
        old: u64,
        /// Size now.
        new: u64,
    },
}

/// The last head that a witness signed; it must be stored before the signature is given out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Entries.
    pub size: u64,
    /// Root, hexadecimal.
    pub root: String,
}

impl Seen {
    fn root(&self) -> Result<Hash, NoteError> {
        match self.size {
            0 => Ok([0; 32]),
            _ => unhex32(&self.root).ok_or(NoteError::Format("no root seen")),
        }
    }
}

/// A witness's keys.
#[derive(Debug)]
pub struct Witness {
    pair: Ed25519KeyPair,
    key: VerifierKey,
    #[cfg(feature = "post-quantum")]
    second: Option<(Box<crate::mldsa::Key>, VerifierKey)>,
}

/// What an Ed25519 cosignature is over.
fn message(body: &str, time: u64) -> String {
    format!("cosignature/v1\ntime {time}\n{body}")
}

/// What an ML-DSA-44 cosignature is over: `cosigned_message` of tlog-cosignature, of the whole
/// tree. None: a name is too long for it.
fn cosigned_message(cosigner: &str, time: u64, head: &Head<'_>) -> Option<Vec<u8>> {
    let mut out = b"subtree/v1\n\0".to_vec();
    let name = |out: &mut Vec<u8>, name: &str| {
        out.push(u8::try_from(name.len()).ok()?);
        out.extend(name.as_bytes());
        Some(())
    };
    name(&mut out, cosigner)?;
    out.extend(time.to_be_bytes());
    name(&mut out, head.origin)?;
    out.extend(0u64.to_be_bytes());
    out.extend(head.size.to_be_bytes());
    out.extend(head.root);
    Some(out)
}

impl Witness {
    /// From a 32-byte seed; `name` must hold no space or plus. It signs with Ed25519.
    ///
    /// # Errors
    /// [`NoteError::Key`].
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoteError::Key)?;
        let public = pair.public_key().as_ref().to_vec();
        let key = VerifierKey::new(name, Algorithm::Cosignature, public)?;
        Ok(Self {
            pair,
            key,
            #[cfg(feature = "post-quantum")]
            second: None,
        })
    }

    /// It signs with ML-DSA-44, too. That key's seed is SHA-256 of a label and the seed.
    ///
    /// # Errors
    /// [`NoteError::Key`].
    #[cfg(feature = "post-quantum")]
    pub fn with_ml_dsa(mut self, seed: &[u8; 32]) -> Result<Self, NoteError> {
        let label = b"lethe witness ml-dsa-44\n";
        let derived = ring::digest::digest(&ring::digest::SHA256, &[&label[..], seed].concat());
        let mut own = [0; 32];
        own.copy_from_slice(derived.as_ref());
        let key = crate::mldsa::key(&own);
        let public = crate::mldsa::public(&key);
        let verifier = VerifierKey::new(self.key.name(), Algorithm::MlDsa44, public)?;
        self.second = Some((Box::new(key), verifier));
        Ok(self)
    }

    /// The public key.
    pub fn verifier(&self) -> &VerifierKey {
        &self.key
    }

    /// All public keys: Ed25519, and ML-DSA-44 where it has one.
    pub fn verifiers(&self) -> Vec<&VerifierKey> {
        #[cfg(feature = "post-quantum")]
        let second = self.second.as_ref().map(|(_, key)| key);
        #[cfg(not(feature = "post-quantum"))]
        let second = None;
        [&self.key].into_iter().chain(second).collect()
    }

    /// The signature lines of a head, whatever was signed before.
    fn lines(&self, body: &str, time: u64) -> Result<String, NoteError> {
        let stamped = |signature: &[u8]| [&time.to_be_bytes()[..], signature].concat();
        let signature = self.pair.sign(message(body, time).as_bytes());
        #[cfg_attr(not(feature = "post-quantum"), allow(unused_mut))]
        let mut out = signature_line(&self.key, &stamped(signature.as_ref()));
        #[cfg(feature = "post-quantum")]
        if let Some((key, verifier)) = &self.second {
            let head = Head::parse(body)?;
            let message = cosigned_message(verifier.name(), time, &head);
            let message = message.ok_or(NoteError::Format("its origin is too long"))?;
            let signature = crate::mldsa::sign(key, &message).ok_or(NoteError::Key)?;
            out += &signature_line(verifier, &stamped(&signature));
        }
        Ok(out)
    }

    /// Checks that `checkpoint` extends what was `seen` and cosigns it at `time` (Unix seconds).
    /// Returns the checkpoint with the signatures added (in place of older ones of this witness),
    /// and what is seen now.
    ///
    /// # Errors
    /// [`WitnessError`].
    pub fn cosign(
        &self,
        checkpoint: &str,
        log: &VerifierKey,
        seen: &Seen,
        consistency: &[Hash],
        time: u64,
    ) -> Result<(String, Seen), WitnessError> {
        let (size, root) = open_checkpoint(checkpoint, log)?;
        let split = WitnessError::SplitView {
            old: seen.size,
            new: size,
        };
        let old = seen.root()?;
        if !verify_consistency((seen.size, &old), (size, &root), consistency) {
            return Err(split);
        }
        let note = SignedNote::parse(checkpoint)?;
        let lines = self.lines(note.text, time)?;
        let signed = with_lines(&note, &lines, &self.verifiers());
        let root = hex(&root);
        Ok((signed, Seen { size, root }))
    }

    /// Answers an `add-checkpoint` request: the signature lines, and what is seen now, which must
    /// be durable before the lines are given out.
    ///
    /// # Errors
    /// [`AddError`], with the status that the specification asks for.
    pub fn add(
        &self,
        request: &AddCheckpoint,
        logs: &[VerifierKey],
        seen: impl FnOnce(&str) -> Seen,
        time: u64,
    ) -> Result<(String, Seen), AddError> {
        let note = SignedNote::parse(&request.checkpoint)?;
        let head = Head::parse(note.text)?;
        let mut of_origin = logs.iter().filter(|k| k.name() == head.origin).peekable();
        if of_origin.peek().is_none() {
            return Err(AddError::UnknownLog);
        }
        if !of_origin.any(|key| note.verify(key).is_ok()) {
            return Err(AddError::NotSigned);
        }
        if request.old > head.size {
            return Err(AddError::Malformed(
                "the old size is larger than the checkpoint's".into(),
            ));
        }
        let seen = seen(head.origin);
        if request.old != seen.size {
            return Err(AddError::Conflict { size: seen.size });
        }
        let old = seen.root()?;
        if seen.size == head.size && seen.size > 0 && old != head.root {
            return Err(AddError::Conflict { size: seen.size });
        }
        let later = (head.size, &head.root);
        if !verify_consistency((seen.size, &old), later, &request.consistency) {
            return Err(AddError::BadProof);
        }
        let lines = self.lines(note.text, time)?;
        let root = hex(&head.root);
        Ok((
            lines,
            Seen {
                size: head.size,
                root,
            },
        ))
    }
}

/// The note with these signature lines behind its own, without earlier ones of these keys.
fn with_lines(note: &SignedNote<'_>, lines: &str, keys: &[&VerifierKey]) -> String {
    let made = |line: &crate::note::SignatureLine<'_>| {
        let mut keys = keys.iter();
        keys.any(|k| k.name() == line.name && k.id() == line.id)
    };
    let kept = note.signatures.iter().filter(|line| !made(line));
    let kept: String = kept.map(|line| line.text).collect();
    format!("{}\n{kept}{lines}", note.text)
}

/// Longest `add-checkpoint` request, in bytes: the most hashes, and a note with the most
/// signatures.
pub const MAX_REQUEST: usize = 256 << 10;
/// Most lines of a consistency proof.
const MOST_HASHES: usize = 63;

/// The body of an `add-checkpoint` request (C2SP tlog-witness).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// Size of the head that the witness signed last, as the log believes; 0: none.
    pub old: u64,
    /// Proof that the checkpoint extends it.
    pub consistency: Vec<Hash>,
    /// The checkpoint.
    pub checkpoint: String,
}

/// Why a witness refuses a request.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AddError {
    /// The request does not read.
    #[error("the request does not read: {0}")]
    Malformed(String),
    /// Nobody has told this witness of the log.
    #[error("this witness does not know the checkpoint's origin")]
    UnknownLog,
    /// The log has not signed it.
    #[error("no key that this witness knows of the log has signed the checkpoint")]
    NotSigned,
    /// The witness has seen another size, or another root at this size.
    #[error("the newest head that this witness has signed has {size} entries")]
    Conflict {
        /// What it has seen.
        size: u64,
    },
    /// The checkpoint is not shown to extend the one before.
    #[error("the checkpoint is not shown to extend the head that was signed before")]
    BadProof,
}

impl From<NoteError> for AddError {
    fn from(e: NoteError) -> Self {
        Self::Malformed(e.to_string())
    }
}

impl AddError {
    /// The HTTP status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::NotSigned => 403,
            Self::UnknownLog => 404,
            Self::Conflict { .. } => 409,
            Self::BadProof => 422,
        }
    }
}

impl AddCheckpoint {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// [`AddError::Malformed`].
    pub fn parse(body: &[u8]) -> Result<Self, AddError> {
        let bad = |why: &str| AddError::Malformed(why.to_owned());
        if body.len() > MAX_REQUEST {
            return Err(bad("it is too long"));
        }
        let text = std::str::from_utf8(body).map_err(|_| bad("it is not UTF-8"))?;
        let (first, mut rest) = text
            .split_once('\n')
            .ok_or_else(|| bad("no old size line"))?;
        let old = first.strip_prefix("old ").and_then(decimal);
        let old = old.ok_or_else(|| bad("the first line is not `old SIZE`"))?;
        let mut consistency = vec![];
        loop {
            let (line, more) = rest
                .split_once('\n')
                .ok_or_else(|| bad("no empty line before the checkpoint"))?;
            rest = more;
            if line.is_empty() {
                break;
            }
            let hash = BASE64.decode(line).ok().and_then(|b| b.try_into().ok());
            consistency.push(hash.ok_or_else(|| bad("a line of the proof is no hash"))?);
            if consistency.len() > MOST_HASHES {
                return Err(bad("more than 63 lines of proof"));
            }
        }
        Ok(Self {
            old,
            consistency,
            checkpoint: rest.to_owned(),
        })
    }

    /// The body.
    pub fn text(&self) -> String {
        let mut out = format!("old {}\n", self.old);
        for hash in &self.consistency {
            out += &BASE64.encode(hash);
            out.push('\n');
        }
        out.push('\n');
        out + &self.checkpoint
    }
}

/// The signature lines of these witnesses in an answer, verified, behind a checkpoint that may have
/// others already. What other keys have signed is left out. Returns the keys that have signed, too.
///
/// # Errors
/// [`NoteError`]: the answer does not read, or a signature of one of the keys does not verify.
pub fn add_cosignatures<'k>(
    checkpoint: &str,
    answer: &str,
    witnesses: &[&'k VerifierKey],
) -> Result<(String, Vec<&'k VerifierKey>), NoteError> {
    let note = SignedNote::parse(checkpoint)?;
    let whole = format!("{}\n{answer}", note.text);
    let signed = SignedNote::parse(&whole)?;
    let mut lines = String::new();
    let mut keys = vec![];
    for key in witnesses {
        let Some(line) = signed.of(key) else {
            continue;
        };
        time_of(&signed, key)?;
        lines += line.text;
        keys.push(*key);
    }
    Ok((with_lines(&note, &lines, &keys), keys))
}

/// Verifies a witness's cosignature on a checkpoint; returns when it was given, in Unix seconds.
///
/// # Errors
/// [`NoteError::Signature`]; [`NoteError::Algorithm`]: this build has no ML-DSA-44.
pub fn verify_cosignature(checkpoint: &str, witness: &VerifierKey) -> Result<u64, NoteError> {
    time_of(&SignedNote::parse(checkpoint)?, witness)
}

/// As [`verify_cosignature`], of a note that was read.
pub(crate) fn time_of(note: &SignedNote<'_>, witness: &VerifierKey) -> Result<u64, NoteError> {
    let missing = || NoteError::Signature(witness.name().to_owned());
    let line = note.of(witness).ok_or_else(missing)?;
    let (time, signature) = line.signature.split_first_chunk().ok_or_else(missing)?;
    let time = u64::from_be_bytes(*time);
    if i64::try_from(time).is_err() {
        return Err(missing());
    }
    let valid = match witness.algorithm() {
        Algorithm::Ed25519 => false,
        Algorithm::Cosignature => UnparsedPublicKey::new(&ED25519, witness.public())
            .verify(message(note.text, time).as_bytes(), signature)
            .is_ok(),
        Algorithm::MlDsa44 => {
            let head = Head::parse(note.text)?;
            let message = cosigned_message(witness.name(), time, &head).ok_or_else(missing)?;
            crate::mldsa::verify(witness.public(), &message, signature)
                .ok_or_else(|| NoteError::Algorithm(witness.name().to_owned()))?
        }
    };
    match valid {
        true => Ok(time),
        false => Err(missing()),
    }
}

#[cfg(test)]
mod tests;
