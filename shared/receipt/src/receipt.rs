//! The receipt of a deletion.

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::merkle::{Hash, Tree, verify_inclusion};
use crate::note::{NoteError, Signer, VerifierKey, open_checkpoint};

/// Why a receipt does not verify.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// Not a receipt, or not in canonical form.
    #[error("not a receipt as issued: {0}")]
    Format(String),
    /// The signed checkpoint is not accepted.
    #[error(transparent)]
    Checkpoint(#[from] NoteError),
    /// The statement is not in the log.
    #[error("the statement is not the log's entry {index}: it was altered after it was issued")]
    NotIncluded {
        /// Claimed index.
        index: u64,
    },
    /// The subject is not the one the statement is about.
    #[error("the subject or salt does not match the statement's commitment")]
    Subject,
}

/// A shard that the deletion touched. Hashes are SHA-256 of adapters, hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AffectedShard {
    /// Number of the shard.
    pub shard: u16,
    /// First stage that was retrained.
    pub from_stage: u16,
    /// Adapter served before.
    pub before: String,
    /// Adapter served at once: a checkpoint that never saw the data.
    pub rolled_back_to: String,
    /// Adapter after retraining.
    pub after: String,
    /// Checkpoint key of the final stage: a hash over the surviving subjects and their data commitments.
    pub lineage: String,
    /// Rounds retrained.
    pub rounds: u32,
}

/// What the coordinator states; its canonical JSON is the log's entry. It names nobody: the subject is a salted hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Format version, 1.
    pub version: u32,
    /// `erase-subject` or `erase-items`.
    pub kind: String,
    /// Number of the deletion at this coordinator.
    pub deletion: u64,
    /// SHA-256 of salt and subject (and items), hexadecimal.
    pub commitment: String,
    /// Seconds since 1970 when the request was accepted.
    pub accepted_at: u64,
    /// Milliseconds until the served model was free of the data.
    pub exact_after_ms: u64,
    /// Milliseconds until the affected shards were retrained and released.
    pub retrained_after_ms: u64,
    /// Encryption keys destroyed.
    pub keys_destroyed: u32,
    /// Shards touched.
    pub affected: Vec<AffectedShard>,
    /// Adapter hash of every shard not touched, as `[shard, hash]`; the same before and after.
    pub untouched: Vec<(u16, String)>,
    /// Release that dropped the data.
    pub release: u64,
    /// Digest of the recipe.
    pub recipe: String,
    /// Digest of the base model file.
    pub base_model: String,
    /// Version and build of the coordinator.
    pub build: String,
}

/// A receipt as handed to the requester. `subject`, `items` and `salt` open the commitment;
/// the coordinator keeps them too, encrypted under a key of this deletion alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// What was done.
    pub statement: Statement,
    /// Who was deleted.
    pub subject: String,
    /// Which items; empty: everything.
    pub items: Vec<String>,
    /// Salt of the commitment, hexadecimal.
    pub salt: String,
    /// Index of the log entry.
    pub index: u64,
    /// Audit path, hexadecimal.
    pub proof: Vec<String>,
    /// Signed head of the log.
    pub checkpoint: String,
}

/// `SHA-256(salt || len(subject) || subject || len(item) || item ...)`, hexadecimal.
pub fn commitment(salt: &[u8], subject: &str, items: &[String]) -> String {
    let mut ctx = Context::new(&SHA256);
    ctx.update(salt);
    for part in std::iter::once(subject).chain(items.iter().map(String::as_str)) {
        ctx.update(&(part.len() as u64).to_le_bytes());
        ctx.update(part.as_bytes());
    }
    hex(ctx.finish().as_ref())
}

fn canonical(value: &impl Serialize) -> Result<Vec<u8>, VerifyError> {
    serde_json::to_vec_pretty(value).map_err(|e| VerifyError::Format(e.to_string()))
}

/// The log entry of a statement.
pub fn entry(statement: &Statement) -> Result<Vec<u8>, VerifyError> {
    canonical(statement)
}

/// Assembles the receipt of a statement that is entry `index` of `tree`.
pub fn issue(
    statement: Statement,
    opening: (String, Vec<String>, &[u8]),
    index: u64,
    tree: &Tree,
    signer: &Signer,
) -> Result<Vec<u8>, VerifyError> {
    let proof = tree.inclusion(index).ok_or(VerifyError::NotIncluded { index })?;
    let (subject, items, salt) = opening;
    let receipt = Receipt {
        statement,
        subject,
        items,
        salt: hex(salt),
        index,
        proof: proof.iter().map(|h| hex(h)).collect(),
        checkpoint: signer.checkpoint(tree.len(), &tree.root()),
    };
    let mut bytes = canonical(&receipt)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Verifies a receipt offline. The bytes must be exactly as issued.
pub fn verify(bytes: &[u8], key: &VerifierKey) -> Result<Receipt, VerifyError> {
    let receipt: Receipt = serde_json::from_slice(bytes).map_err(|e| VerifyError::Format(e.to_string()))?;
    let mut again = canonical(&receipt)?;
    again.push(b'\n');
    if again != bytes {
        return Err(VerifyError::Format("its bytes differ from the canonical form".into()));
    }
    if receipt.statement.version != 1 {
        return Err(VerifyError::Format(format!("version {}, this build knows 1", receipt.statement.version)));
    }
    let (size, root) = open_checkpoint(&receipt.checkpoint, key)?;
    let proof: Option<Vec<Hash>> = receipt.proof.iter().map(|h| unhex(h)?.try_into().ok()).collect();
    let proof = proof.ok_or_else(|| VerifyError::Format("a proof hash is not hexadecimal".into()))?;
    if !verify_inclusion(&entry(&receipt.statement)?, receipt.index, size, &proof, &root) {
        return Err(VerifyError::NotIncluded { index: receipt.index });
    }
    let salt = unhex(&receipt.salt).ok_or(VerifyError::Subject)?;
    if commitment(&salt, &receipt.subject, &receipt.items) != receipt.statement.commitment {
        return Err(VerifyError::Subject);
    }
    Ok(receipt)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || text.bytes().any(|b| !b.is_ascii_hexdigit() || b.is_ascii_uppercase()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Vec<u8>, Signer) {
        let statement = Statement {
            version: 1,
            kind: "erase-subject".into(),
            deletion: 1,
            commitment: commitment(&[5; 32], "alice", &[]),
            accepted_at: 1_700_000_000,
            exact_after_ms: 12,
            retrained_after_ms: 3400,
            keys_destroyed: 3,
            affected: vec![AffectedShard {
                shard: 2,
                from_stage: 1,
                before: "aa".into(),
                rolled_back_to: "bb".into(),
                after: "cc".into(),
                lineage: "dd".into(),
                rounds: 8,
            }],
            untouched: vec![(0, "ee".into())],
            release: 2,
            recipe: "ff".into(),
            base_model: "00".into(),
            build: "test".into(),
        };
        let signer = Signer::from_seed("lethe-test", &[1; 32]).expect("a seed");
        let mut tree = Tree::default();
        tree.push(b"other");
        let index = tree.push(&entry(&statement).expect("serialises"));
        tree.push(b"later");
        let bytes = issue(statement, ("alice".into(), vec![], &[5; 32]), index, &tree, &signer).expect("issues");
        (bytes, signer)
    }

    #[test]
    fn verifies_as_issued() {
        let (bytes, signer) = sample();
        assert_eq!(verify(&bytes, signer.verifier()).expect("verifies").subject, "alice");
    }

    #[test]
    fn any_altered_byte_is_refused() {
        let (bytes, signer) = sample();
        for i in 0..bytes.len() {
            for flip in [0x01, 0x20, 0x80] {
                let mut b = bytes.clone();
                b[i] ^= flip;
                assert!(verify(&b, signer.verifier()).is_err(), "byte {i} xor {flip:#x}");
            }
        }
        assert!(verify(&[&bytes[..], b" "].concat(), signer.verifier()).is_err());
    }
}
