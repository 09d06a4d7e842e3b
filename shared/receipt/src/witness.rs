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
use crate::note::{NoteError, VerifierKey, open_checkpoint};

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

/// A witness's key pair.
#[derive(Debug)]
pub struct Witness {
    pair: Ed25519KeyPair,
    key: VerifierKey,
}

fn message(body: &str, time: u64) -> String {
    format!("cosignature/v1\ntime {time}\n{body}")
}

fn body_of(checkpoint: &str) -> Result<String, NoteError> {
    let (body, _) = checkpoint
        .split_once("\n\n")
        .ok_or(NoteError::Format("no signature part"))?;
    Ok(format!("{body}\n"))
}

impl Witness {
    /// From a 32-byte seed; `name` must hold no space or plus.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoteError::Key)?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        let key = VerifierKey::cosigner(name, public)?;
        Ok(Self { pair, key })
    }

    /// The public key.
    pub fn verifier(&self) -> &VerifierKey {
        &self.key
    }

    /// Checks that `checkpoint` extends what was `seen` and cosigns it at `time` (Unix seconds).
    /// Returns the checkpoint with the signature added, and what is seen now.
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
        let old = if seen.size == 0 {
            [0; 32]
        } else {
            unhex32(&seen.root).ok_or(NoteError::Format("no root seen"))?
        };
        if !verify_consistency((seen.size, &old), (size, &root), consistency) {
            return Err(split);
        }
        let signature = self
            .pair
            .sign(message(&body_of(checkpoint)?, time).as_bytes());
        let blob = [&self.key.id()[..], &time.to_be_bytes(), signature.as_ref()].concat();
        let line = format!("\u{2014} {} {}\n", self.key.name(), BASE64.encode(blob));
        Ok((
            format!("{checkpoint}{line}"),
            Seen {
                size,
                root: hex(&root),
            },
        ))
    }
}

/// Verifies a witness's cosignature on a checkpoint; returns when it was given, in Unix seconds.
pub fn verify_cosignature(checkpoint: &str, witness: &VerifierKey) -> Result<u64, NoteError> {
    let body = body_of(checkpoint)?;
    for blob in crate::note::signatures(checkpoint, witness.name()) {
        if blob.len() != 76 || blob[..4] != witness.id() {
            continue;
        }
        let mut time = [0; 8];
        time.copy_from_slice(&blob[4..12]);
        let time = u64::from_be_bytes(time);
        let public = UnparsedPublicKey::new(&ED25519, witness.public());
        if public
            .verify(message(&body, time).as_bytes(), &blob[12..])
            .is_ok()
        {
            return Ok(time);
        }
    }
    Err(NoteError::Signature(witness.name().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::Tree;
    use crate::note::Signer;

    #[test]
    fn cosigns_what_extends_and_refuses_a_split_view() {
        let log = Signer::from_seed("log.example", &[1; 32]).expect("a seed");
        let witness = Witness::from_seed("witness.example", &[2; 32]).expect("a seed");
        let (mut one, mut other) = (Tree::default(), Tree::default());
        one.push(b"a");
        other.push(b"x");
        let head = |t: &Tree| log.checkpoint(t.len(), &t.root());
        let (text, seen) = witness
            .cosign(&head(&one), log.verifier(), &Seen::default(), &[], 5)
            .expect("the first head");
        let key = VerifierKey::parse(&witness.verifier().text()).expect("own text");
        assert_eq!(verify_cosignature(&text, &key), Ok(5));
        assert!(
            open_checkpoint(&text, log.verifier()).is_ok(),
            "the log's own signature stays"
        );
        assert!(verify_cosignature(&text.replace("\n1\n", "\n2\n"), &key).is_err());

        one.push(b"b");
        other.push(b"b");
        let proof = one.consistency(seen.size).expect("inside");
        assert!(
            witness
                .cosign(&head(&one), log.verifier(), &seen, &proof, 6)
                .is_ok()
        );
        let proof = other.consistency(seen.size).expect("inside");
        let refused = witness.cosign(&head(&other), log.verifier(), &seen, &proof, 6);
        assert!(matches!(
            refused,
            Err(WitnessError::SplitView { old: 1, new: 2 })
        ));
        let back = witness.cosign(&head(&Tree::default()), log.verifier(), &seen, &[], 6);
        assert!(
            matches!(back, Err(WitnessError::SplitView { .. })),
            "a log that shrank"
        );
        let foreign = Signer::from_seed("log.example", &[9; 32]).expect("a seed");
        let forged = foreign.checkpoint(one.len(), &one.root());
        assert!(matches!(
            witness.cosign(&forged, log.verifier(), &seen, &[], 6),
            Err(WitnessError::Note(_))
        ));
    }
}
