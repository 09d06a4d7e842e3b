//! Heads that witnesses have signed: published, kept, and put under receipts.

use std::path::Path;

use lethe_receipt::merkle::Hash;
use lethe_receipt::note::{SignedNote, VerifierKey, open_checkpoint};
use lethe_receipt::policy::Policy;
use lethe_receipt::receipt::{Cosigned, verify};
use lethe_receipt::succession::Succession;
use lethe_receipt::witness::add_cosignatures;
use lethe_store::StoreError;

use super::Evidence;
use crate::CoordinatorError;
use crate::witnesses::Unsigned;

/// File in the evidence folder.
const FILE: &str = "cosigned";

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError + '_ {
    |source| StoreError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Evidence {
    /// The head that witnesses are to sign, of `of` witnesses that are asked; none: they have, all
    /// of them or, unless `again`, some.
    pub(crate) fn to_cosign(&self, of: usize, again: bool) -> Option<Unsigned> {
        let size = self.log.tree().len();
        let known = self.cosigned.as_ref().filter(|c| c.size == size);
        let enough = known.is_some_and(|c| c.witnesses.len() >= of || !again);
        (size > 0 && !enough).then(|| Unsigned {
            size,
            checkpoint: self.checkpoint(),
        })
    }

    /// The head as it is published: with the signatures of witnesses, if they have signed it.
    pub(crate) fn published_head(&self) -> String {
        let size = self.log.tree().len();
        let signed = self.cosigned.as_ref().filter(|c| c.size == size);
        signed.map_or_else(|| self.checkpoint(), |c| c.checkpoint.clone())
    }

    /// Proof that the tree of the first `size` entries extends that of the first `old`.
    pub(crate) fn extends(&self, old: u64, size: u64) -> Option<Vec<Hash>> {
        self.log.tree().consistency_of(old, size)
    }

    /// Takes what witnesses have signed: it is published as long as the log has not grown, and goes
    /// under receipts that are given out from now on.
    pub(crate) fn take_cosigned(&mut self, signed: Cosigned) -> Result<(), CoordinatorError> {
        let newer = |c: &Cosigned| {
            let fewer = c.size == signed.size && c.witnesses.len() > signed.witnesses.len();
            c.size > signed.size || fewer
        };
        if self.cosigned.as_ref().is_some_and(newer) {
            return Ok(());
        }
        // Meanwhile the log's key may have been exchanged.
        if open_checkpoint(&signed.checkpoint, self.signer.verifier()).is_err() {
            return Ok(());
        }
        let path = self.folder.join(FILE);
        replace(&path, &signed.checkpoint)?;
        let grown = self.log.tree().len() > signed.size;
        if !grown {
            replace(&self.folder.join("tiles/checkpoint"), &signed.checkpoint)?;
        }
        tracing::info!(
            entries = signed.size,
            witnesses = signed.witnesses.len(),
            "witnesses have signed the head"
        );
        self.cosigned = Some(signed);
        Ok(())
    }

    /// What was signed before the start, if it is of this log and of witnesses of this policy.
    pub(crate) fn recall_cosigned(&mut self, policy: &Policy) -> Result<(), CoordinatorError> {
        let path = self.folder.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(io(&path)(e).into()),
        };
        self.cosigned = self.read_cosigned(&text, policy);
        let Some(signed) = &self.cosigned else {
            tracing::warn!(
                "{} is not of this log and this policy: witnesses are asked anew",
                path.display()
            );
            return Ok(());
        };
        if signed.size == self.log.tree().len() {
            replace(&self.folder.join("tiles/checkpoint"), &signed.checkpoint)?;
        }
        Ok(())
    }

    fn read_cosigned(&self, text: &str, policy: &Policy) -> Option<Cosigned> {
        let (size, root) = open_checkpoint(text, self.signer.verifier()).ok()?;
        if self.log.tree().root_of(size) != Some(root) {
            return None;
        }
        let note = SignedNote::parse(text).ok()?;
        let lines: String = note.signatures.iter().map(|line| line.text).collect();
        let keys: Vec<&VerifierKey> = policy.witnesses.iter().map(|w| &w.key).collect();
        // Without those that the policy names no more, and in its order.
        let plain = self.signer.checkpoint(size, &root);
        let (checkpoint, by) = add_cosignatures(&plain, &lines, &keys).ok()?;
        (!by.is_empty()).then(|| Cosigned {
            size,
            checkpoint,
            witnesses: by.iter().map(|key| key.text()).collect(),
        })
    }

    /// A receipt under the newest head that witnesses have signed, if that holds all that the
    /// receipt names; else as it was issued.
    pub(crate) fn with_witnesses(&self, issued: Vec<u8>) -> Vec<u8> {
        let Some(signed) = &self.cosigned else {
            return issued;
        };
        let key = self.signer.verifier();
        let changes = self.changes.iter().map(String::as_str);
        let succession = Succession::open(changes).unwrap_or_default();
        let Ok(receipt) = succession.verify(&issued, key) else {
            return issued;
        };
        let under = receipt.under(signed, self.log.tree()).map(|r| r.bytes());
        // What does not verify is not given out.
        under
            .filter(|bytes| verify(bytes, key).is_ok())
            .unwrap_or(issued)
    }
}

/// Writes a file so that a reader finds the old or the new content, nothing between.
fn replace(path: &Path, text: &str) -> Result<(), StoreError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io(folder))?;
    }
    let next = path.with_extension("next");
    std::fs::write(&next, text).map_err(io(&next))?;
    std::fs::rename(&next, path).map_err(io(path))
}
