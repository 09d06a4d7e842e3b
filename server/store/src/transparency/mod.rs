//! A transparency log: the file, its Merkle tree, and its files for auditors.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lethe_receipt::merkle::{Hash, Tree, leaf_hash};
use lethe_receipt::note::Signer;

use crate::StoreError;
use crate::logfile::LogFile;

pub mod tiles;

use tiles::Published;

/// A log in a folder, open: the file `log`, and `tiles` for auditors. Whoever writes has it alone.
#[derive(Debug)]
pub struct Transparency {
    folder: PathBuf,
    log: LogFile,
    tree: Tree,
    /// Where the log holds an entry, by its leaf hash; the last place, should there be several.
    places: HashMap<Hash, u64>,
    /// Entries whose files for auditors are written.
    published: u64,
}

impl Transparency {
    /// Opens or creates the log of a folder, which must be there.
    ///
    /// # Errors
    /// [`StoreError`]: it cannot be read, or is damaged.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let log = LogFile::open(&folder.join("log"))?;
        let tree = Tree::from_leaves(log.entries().iter().map(|e| leaf_hash(e)).collect());
        let places = tree.leaves().iter().copied().zip(0..).collect();
        Ok(Self {
            folder: folder.to_owned(),
            log,
            tree,
            places,
            published: 0,
        })
    }

    /// All entries, in order.
    pub fn entries(&self) -> &[Vec<u8>] {
        self.log.entries()
    }

    /// Their Merkle tree (RFC 6962).
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Where an entry is; none: it is not there.
    pub fn place_of(&self, entry: &[u8]) -> Option<u64> {
        self.places.get(&leaf_hash(entry)).copied()
    }

    /// Enters something, unless it is there. When it returns, the entry is durable. Returns where
    /// it is.
    ///
    /// # Errors
    /// [`StoreError`]; the log is as it was then.
    pub fn enter(&mut self, entry: &[u8]) -> Result<u64, StoreError> {
        if let Some(index) = self.place_of(entry) {
            return Ok(index);
        }
        let index = self.log.append(entry)?;
        self.tree.push(entry);
        self.places.insert(leaf_hash(entry), index);
        Ok(index)
    }

    /// Writes the log's files for auditors, those that are not written yet. After a start that is
    /// all of them: somebody may have removed some.
    ///
    /// # Errors
    /// A file cannot be written; the next call writes it.
    pub fn publish(&mut self, signer: &Signer) -> std::io::Result<()> {
        let size = self.tree.len();
        // A log without entries has a signed head, too.
        if self.published == size && size > 0 {
            return Ok(());
        }
        let checkpoint = signer.checkpoint(size, &self.tree.root());
        let all = Published {
            entries: self.log.entries(),
            tree: &self.tree,
            checkpoint: &checkpoint,
        };
        all.write(&self.folder.join("tiles"), self.published)?;
        self.published = size;
        Ok(())
    }

    /// Writes the signed head again: another key signs from now on.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn resign(&mut self, signer: &Signer) -> std::io::Result<()> {
        self.published = 0;
        self.publish(signer)
    }
}
