//! What the log holds of everything that devices are given to use, before they are: releases of
//! adapters, and snapshots of the lists' tables.
//!
//! Both statements are public, and so is the salt of their entries: the SHA-256 of the statement.
//! Nothing in them is about a person. A device checks that the log holds what it was given
//! ([`Proven`]), under a head that extends the newest one that it has seen, before it uses it.

use ring::digest::{SHA256, digest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::head::{HeadError, SeenHead};
use crate::manifest::Manifest;
use crate::merkle::Hash;
use crate::note::VerifierKey;
use crate::statement::{Kind, canonical, entry};

/// Version of the format of both statements.
pub const SERVED_VERSION: u32 = 1;
/// Longest statement that is read, in bytes.
pub const MAX_STATEMENT: usize = 56 << 10;

/// A release: what devices score with. Digests are SHA-256, hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseStatement {
    /// [`SERVED_VERSION`].
    pub version: u32,
    /// Number of the release.
    pub release: u64,
    /// Epoch that it is of.
    pub epoch: u32,
    /// When it was made, in seconds since 1970.
    pub at: u64,
    /// Digest of the epoch's recipe.
    pub recipe: String,
    /// Digest of the base model file.
    pub base_model: String,
    /// Version of the catalogue that prompts have titles of.
    pub catalogue: u32,
    /// Digest of that version.
    pub catalogue_digest: String,
    /// Version and build of the coordinator.
    pub build: String,
    /// By shard: the whole adapter, as receipts name it.
    pub adapters: Vec<String>,
    /// By shard: the device's part, as it is sent.
    pub parts: Vec<String>,
}

impl ReleaseStatement {
    /// The statement as the log's entry commits to it.
    pub fn bytes(&self) -> Vec<u8> {
        canonical(self)
    }
}

/// A snapshot of the lists' tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotNamed {
    /// [`SERVED_VERSION`].
    pub version: u32,
    /// Number of the snapshot.
    pub number: u64,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
    /// Key that signs snapshots (verifier key text).
    pub key: String,
}

impl SnapshotNamed {
    /// The statement as the log's entry commits to it.
    pub fn bytes(&self) -> Vec<u8> {
        canonical(self)
    }
}

/// The log's entry of a statement of this module.
pub fn public_entry(kind: Kind, statement: &[u8]) -> Vec<u8> {
    let mut salt = [0; 32];
    salt.copy_from_slice(digest(&SHA256, statement).as_ref());
    entry(kind, &salt, statement)
}

/// A statement, and what proves that the log holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proven {
    /// The statement: canonical JSON.
    pub statement: String,
    /// The log's entry.
    pub index: u64,
    /// Audit path.
    pub proof: Vec<Hash>,
    /// Signed head of the log.
    pub checkpoint: String,
    /// Proof that this head extends the one that the device has seen.
    pub consistency: Vec<Hash>,
}

/// Why something that was given is not used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ServedError {
    /// The log's head is not believed.
    #[error("what was served is not used; the log's head: {0}")]
    Head(#[from] HeadError),
    /// The statement does not read.
    #[error("what was served is not used: the log's statement about {what} does not read")]
    Format {
        /// What it should be about.
        what: &'static str,
    },
    /// The log does not hold it.
    #[error("{what} is not used: the log does not hold it")]
    NotLogged {
        /// What was given.
        what: String,
    },
    /// The log holds something else under this name.
    #[error("{what} is not used: its {part} is not the one that the log holds")]
    Other {
        /// What was given.
        what: String,
        /// What differs.
        part: String,
    },
}

impl Proven {
    /// The statement about a release, if the log holds it, and the head to remember.
    ///
    /// # Errors
    /// [`ServedError`].
    pub fn release(
        &self,
        key: &VerifierKey,
        seen: Option<SeenHead>,
    ) -> Result<(ReleaseStatement, SeenHead), ServedError> {
        let statement: ReleaseStatement =
            self.read("a release", |s: &ReleaseStatement| s.version)?;
        let what = || format!("release {}", statement.release);
        let head = self.held(Kind::Release, what, key, seen)?;
        Ok((statement, head))
    }

    /// The statement about a snapshot, if the log holds it, and the head to remember.
    ///
    /// # Errors
    /// [`ServedError`].
    pub fn snapshot(
        &self,
        key: &VerifierKey,
        seen: Option<SeenHead>,
    ) -> Result<(SnapshotNamed, SeenHead), ServedError> {
        let statement: SnapshotNamed = self.read("a snapshot", |s: &SnapshotNamed| s.version)?;
        let what = || format!("snapshot {}", statement.number);
        let head = self.held(Kind::Snapshot, what, key, seen)?;
        Ok((statement, head))
    }

    /// Whether the log holds the manifest of a version of the catalogue; the head to remember.
    ///
    /// # Errors
    /// [`ServedError`].
    pub fn catalogue(
        &self,
        manifest: &Manifest,
        key: &VerifierKey,
        seen: Option<SeenHead>,
    ) -> Result<SeenHead, ServedError> {
        let what = || format!("version {} of the catalogue", manifest.number);
        self.holds(&manifest.entry(), what, key, seen)
    }

    fn read<T: Serialize + DeserializeOwned>(
        &self,
        what: &'static str,
        version: impl Fn(&T) -> u32,
    ) -> Result<T, ServedError> {
        let wrong = ServedError::Format { what };
        if self.statement.len() > MAX_STATEMENT {
            return Err(wrong);
        }
        match serde_json::from_str::<T>(&self.statement) {
            Ok(read)
                if version(&read) == SERVED_VERSION
                    && canonical(&read) == self.statement.as_bytes() =>
            {
                Ok(read)
            }
            _ => Err(wrong),
        }
    }

    fn held(
        &self,
        kind: Kind,
        what: impl Fn() -> String,
        key: &VerifierKey,
        seen: Option<SeenHead>,
    ) -> Result<SeenHead, ServedError> {
        let entry = public_entry(kind, self.statement.as_bytes());
        self.holds(&entry, what, key, seen)
    }

    fn holds(
        &self,
        entry: &[u8],
        what: impl Fn() -> String,
        key: &VerifierKey,
        seen: Option<SeenHead>,
    ) -> Result<SeenHead, ServedError> {
        let head = SeenHead::next(seen, &self.checkpoint, key, &self.consistency)?;
        match head.includes(entry, self.index, &self.proof) {
            true => Ok(head),
            false => Err(ServedError::NotLogged { what: what() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::Tree;
    use crate::note::Signer;

    fn release(number: u64) -> ReleaseStatement {
        ReleaseStatement {
            version: SERVED_VERSION,
            release: number,
            epoch: 1,
            at: 1_700_000_000,
            recipe: "aa".repeat(32),
            base_model: "bb".repeat(32),
            catalogue: 1,
            catalogue_digest: "cc".repeat(32),
            build: "test".into(),
            adapters: vec!["dd".repeat(32); 2],
            parts: vec!["ee".repeat(32); 2],
        }
    }

    fn proven(statement: &[u8], kind: Kind, tree: &Tree, signer: &Signer, seen: u64) -> Proven {
        let entry = public_entry(kind, statement);
        let place = tree
            .leaves()
            .iter()
            .position(|l| *l == crate::merkle::leaf_hash(&entry));
        let index = place.unwrap_or(0) as u64;
        Proven {
            statement: String::from_utf8(statement.to_vec()).expect("text"),
            index,
            proof: tree.inclusion(index).unwrap_or_default(),
            checkpoint: signer.checkpoint(tree.len(), &tree.root()),
            consistency: tree.consistency(seen).unwrap_or_default(),
        }
    }

    #[test]
    fn what_is_served_is_used_only_if_the_log_holds_it() {
        let signer = Signer::from_seed("log.example", &[1; 32]).expect("a seed");
        let key = signer.verifier();
        let mut tree = Tree::default();
        tree.push(b"first");
        let bytes = release(7).bytes();
        tree.push(&public_entry(Kind::Release, &bytes));
        let good = proven(&bytes, Kind::Release, &tree, &signer, 0);
        let (read, head) = good.release(key, None).expect("is there");
        assert_eq!(read, release(7));
        assert_eq!(head.size, 2);

        let other = proven(&release(8).bytes(), Kind::Release, &tree, &signer, 0);
        let refused = other.release(key, None);
        let what = "release 8".to_owned();
        assert_eq!(refused, Err(ServedError::NotLogged { what }));
        // An entry of another kind with the same bytes is another entry.
        assert!(good.snapshot(key, None).is_err());

        // A head that does not extend the one that was seen.
        let mut fork = Tree::default();
        fork.push(b"another");
        fork.push(&public_entry(Kind::Release, &bytes));
        fork.push(b"more");
        let forked = proven(&bytes, Kind::Release, &fork, &signer, 2);
        assert!(matches!(
            forked.release(key, Some(head)),
            Err(ServedError::Head(HeadError::OtherLog { got: 3, seen: 2 }))
        ));
        // The same proof under the key of somebody else.
        let stranger = Signer::from_seed("log.example", &[2; 32]).expect("a seed");
        let forged = proven(&bytes, Kind::Release, &tree, &stranger, 0);
        assert!(forged.release(key, None).is_err());
        // One statement has one text.
        let spaced = good.statement.replace("\"epoch\": 1", "\"epoch\":  1");
        let spaced = Proven {
            statement: spaced,
            ..good
        };
        let wrong = ServedError::Format { what: "a release" };
        assert_eq!(spaced.release(key, None), Err(wrong));
    }

    #[test]
    fn a_snapshot_is_named_by_number_digest_and_key() {
        let signer = Signer::from_seed("log.example", &[1; 32]).expect("a seed");
        let named = SnapshotNamed {
            version: SERVED_VERSION,
            number: 3,
            sha256: "ab".repeat(32),
            key: signer.verifier().text(),
        };
        let mut tree = Tree::default();
        tree.push(&public_entry(Kind::Snapshot, &named.bytes()));
        let good = proven(&named.bytes(), Kind::Snapshot, &tree, &signer, 0);
        let read = good.snapshot(signer.verifier(), None);
        assert_eq!(read.map(|(named, _)| named), Ok(named.clone()));
        let other = SnapshotNamed {
            sha256: "ac".repeat(32),
            ..named
        };
        let other = proven(&other.bytes(), Kind::Snapshot, &tree, &signer, 0);
        assert!(other.snapshot(signer.verifier(), None).is_err());
    }

    #[test]
    fn the_largest_release_fits() {
        let many = vec!["dd".repeat(32); 256];
        let largest = ReleaseStatement {
            adapters: many.clone(),
            parts: many,
            ..release(u64::MAX)
        };
        let len = largest.bytes().len();
        assert!(len < MAX_STATEMENT, "{len}");
    }
}
