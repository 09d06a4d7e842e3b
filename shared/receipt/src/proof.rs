//! Proofs of inclusion as other tools of transparency logs read them: C2SP tlog-proof.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use thiserror::Error;

use crate::hex::unhex32;
use crate::merkle::{Hash, verify_inclusion};
use crate::note::MAX_NOTE;
use crate::policy::{Accepted, Policy, Unaccepted};
use crate::receipt::Receipt;
use crate::statement::{Kind, canonical, entry};

const FIRST: &str = "c2sp.org/tlog-proof@v1";

/// Most hashes of a proof: those of a tree of 2^64 entries.
const MOST_HASHES: usize = 64;
/// Longest file that is read, in bytes.
pub const MAX_PROOF: usize = MAX_NOTE + (64 << 10);

/// Why a proof is not accepted.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProofError {
    /// It does not read.
    #[error("not a tlog-proof: {0}")]
    Format(&'static str),
    /// The policy does not accept its checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] Unaccepted),
    /// The log does not hold the entry.
    #[error("the entry is not the log's entry {index}")]
    NotIncluded {
        /// Claimed index.
        index: u64,
    },
    /// A receipt that is not put together as receipts are.
    #[error("the receipt's salt, or a hash of its proof, is not 32 bytes, hexadecimal")]
    Receipt,
}

/// A proof that the log holds an entry. The entry itself travels as the extra data, which nothing
/// vouches for but the proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlogProof {
    /// The extra data.
    pub extra: Option<Vec<u8>>,
    /// Index of the entry.
    pub index: u64,
    /// Audit path.
    pub path: Vec<Hash>,
    /// The checkpoint.
    pub checkpoint: String,
}

impl TlogProof {
    /// The proof of a receipt's entry; the entry is the extra data. It names nobody.
    ///
    /// # Errors
    /// [`ProofError::Receipt`] for one that was not verified.
    pub fn of_receipt(receipt: &Receipt) -> Result<Self, ProofError> {
        let path: Option<Vec<Hash>> = receipt.proof.iter().map(|h| unhex32(h)).collect();
        Ok(Self {
            extra: Some(entry_of(receipt)?),
            index: receipt.index,
            path: path.ok_or(ProofError::Receipt)?,
            checkpoint: receipt.checkpoint.clone(),
        })
    }

    /// The file.
    pub fn text(&self) -> String {
        let mut out = format!("{FIRST}\n");
        if let Some(extra) = &self.extra {
            out += &format!("extra {}\n", BASE64.encode(extra));
        }
        out += &format!("index {}\n", self.index);
        for hash in &self.path {
            out += &BASE64.encode(hash);
            out.push('\n');
        }
        out.push('\n');
        out + &self.checkpoint
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ProofError::Format`]. The checkpoint is read by [`Self::verify`].
    pub fn parse(file: &[u8]) -> Result<Self, ProofError> {
        if file.len() > MAX_PROOF {
            return Err(ProofError::Format("it is too long"));
        }
        let text = std::str::from_utf8(file).map_err(|_| ProofError::Format("it is not UTF-8"))?;
        let mut rest = text;
        let mut line = || {
            let (line, more) = rest
                .split_once('\n')
                .ok_or(ProofError::Format("no empty line before the checkpoint"))?;
            rest = more;
            Ok::<&str, ProofError>(line)
        };
        if line()? != FIRST {
            return Err(ProofError::Format("its first line is another"));
        }
        let mut next = line()?;
        let mut extra = None;
        if let Some(coded) = next.strip_prefix("extra ") {
            let wrong = |_| ProofError::Format("the extra data is no base64");
            extra = Some(BASE64.decode(coded).map_err(wrong)?);
            next = line()?;
        }
        let index = next.strip_prefix("index ").and_then(crate::note::decimal);
        let index = index.ok_or(ProofError::Format("no index"))?;
        let mut path = vec![];
        loop {
            let next = line()?;
            if next.is_empty() {
                break;
            }
            let hash = BASE64.decode(next).ok().and_then(|b| b.try_into().ok());
            path.push(hash.ok_or(ProofError::Format("a line of the proof is no hash"))?);
            if path.len() > MOST_HASHES {
                return Err(ProofError::Format("more than 64 hashes"));
            }
        }
        Ok(Self {
            extra,
            index,
            path,
            checkpoint: rest.to_owned(),
        })
    }

    /// Verifies that the log holds this entry, under a checkpoint that the policy accepts.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn verify(&self, entry: &[u8], policy: &Policy) -> Result<Accepted, ProofError> {
        let accepted = policy.check(&self.checkpoint)?;
        let index = self.index;
        match verify_inclusion(entry, index, accepted.size, &self.path, &accepted.root) {
            true => Ok(accepted),
            false => Err(ProofError::NotIncluded { index }),
        }
    }
}

/// The log's entry of a receipt's statement.
///
/// # Errors
/// [`ProofError::Receipt`].
pub fn entry_of(receipt: &Receipt) -> Result<Vec<u8>, ProofError> {
    let salt = unhex32(&receipt.salt).ok_or(ProofError::Receipt)?;
    let statement = canonical(&receipt.statement);
    Ok(entry(Kind::Deletion, &salt, &statement))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::Tree;
    use crate::note::Signer;

    #[test]
    fn a_proof_has_the_form_of_the_specification_and_is_verified() {
        let log = Signer::from_seed("log.example", &[1; 32]).expect("a seed");
        let mut tree = Tree::default();
        for i in 0..5u8 {
            tree.push(&[i]);
        }
        let proof = TlogProof {
            extra: Some(b"\x03".to_vec()),
            index: 3,
            path: tree.inclusion(3).expect("inside"),
            checkpoint: log.checkpoint(tree.len(), &tree.root()),
        };
        let text = proof.text();
        let head: Vec<&str> = text.lines().take(3).collect();
        assert_eq!(head, [FIRST, "extra Aw==", "index 3"][..]);
        assert_eq!(text.lines().nth(6), Some(""), "three hashes");
        assert_eq!(TlogProof::parse(text.as_bytes()), Ok(proof.clone()));
        let policy = format!("log {}\nquorum none\n", log.verifier().text());
        let policy = Policy::parse(policy.as_bytes()).expect("reads");
        assert_eq!(proof.verify(&[3], &policy).map(|a| a.size), Ok(5));
        let refused = proof.verify(&[4], &policy);
        assert_eq!(refused, Err(ProofError::NotIncluded { index: 3 }));
        let bare = TlogProof {
            extra: None,
            ..proof
        };
        assert_eq!(TlogProof::parse(bare.text().as_bytes()), Ok(bare.clone()));
        for (from, to) in [
            (FIRST, "c2sp.org/tlog-proof@v2"),
            ("index 3", "index 03"),
            ("index 3", "index +3"),
            ("index 3", "index 3 "),
            ("extra Aw==", "extra Aw"),
            ("extra Aw==", "extra Ax=="),
            ("\n", "\r\n"),
            ("\n\n", "\n"),
        ] {
            let bad = text.replacen(from, to, 1);
            let read = TlogProof::parse(bad.as_bytes());
            let accepted = read.and_then(|p| p.verify(&[3], &policy));
            assert!(accepted.is_err(), "{from:?} as {to:?}");
        }
    }
}
