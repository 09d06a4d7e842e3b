//! What is kept outside the data folder: the log of all that was signed, and the highest number of
//! a snapshot. A restored backup is behind it.

use std::path::{Path, PathBuf};

use lethe_proto::ids::Digest;
use lethe_receipt::note::{Signer, VerifierKey};
use lethe_receipt::sealing::SealingStatement;
use lethe_store::StoreError;
use lethe_store::head::Floor;
use lethe_store::transparency::Transparency;

use crate::TallydError;
use crate::office::{LogRow, Office};

/// File of the highest number of a snapshot; one more as long as that one is recalled.
const NUMBERS: &str = "snapshots";
/// The longest note that is an entry; of a longer one, its digest is. Files for auditors hold less
/// than 64 KiB an entry.
const LONGEST: usize = 60_000;

/// The evidence folder, open.
pub(crate) struct Evidence {
    folder: PathBuf,
    log: Transparency,
    floor: Floor,
    number: u64,
}

/// What the log holds of a note: the note, or its digest where it is long.
pub(crate) fn entry_of(note: &str) -> Vec<u8> {
    match note.len() <= LONGEST {
        true => note.as_bytes().to_vec(),
        false => {
            let digest = Digest::of(&[note.as_bytes()]);
            format!("lethe tally long note 1\nsha256 {digest}\n").into_bytes()
        }
    }
}

impl Evidence {
    /// Opens or creates the folder. It must continue the log that the data folder knows.
    pub(crate) fn open(folder: &Path, known: &LogRow) -> Result<Self, TallydError> {
        std::fs::create_dir_all(folder).map_err(|source| StoreError::Io {
            path: folder.to_owned(),
            source,
        })?;
        let (floor, number) = Floor::open(&folder.join(NUMBERS))?;
        let evidence = Self {
            folder: folder.to_owned(),
            log: Transparency::open(folder)?,
            floor,
            number: number.unwrap_or(0),
        };
        evidence.check(known)?;
        Ok(evidence)
    }

    fn check(&self, known: &LogRow) -> Result<(), TallydError> {
        let knows = known.entries;
        if knows == 0 {
            return Ok(());
        }
        let tree = self.log.tree();
        let folder = self.folder.clone();
        match tree.root_of(knows) {
            Some(root) if root == known.root => Ok(()),
            Some(_) => Err(TallydError::OtherLog { folder, knows }),
            None => Err(TallydError::Evidence {
                folder,
                has: tree.len(),
                knows,
            }),
        }
    }

    /// The highest number of a snapshot, or one more.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// No snapshot has a lower number from now on.
    pub(crate) fn raise(&mut self, number: u64) -> Result<(), StoreError> {
        if number > self.number {
            self.floor.set(number)?;
            self.number = number;
        }
        Ok(())
    }

    /// Enters a note, unless it is there. When it returns, that is durable, and the data folder
    /// knows of it.
    pub(crate) fn enter(
        &mut self,
        note: &str,
        office: &Office,
        signer: &Signer,
    ) -> Result<(), TallydError> {
        let entry = entry_of(note);
        if self.log.place_of(&entry).is_some() {
            return Ok(());
        }
        self.log.enter(&entry)?;
        let tree = self.log.tree();
        office.keep_log(&LogRow {
            entries: tree.len(),
            root: tree.root(),
        })?;
        self.publish(signer);
        Ok(())
    }

    /// Writes the files for auditors; what cannot be written now is with the next entry.
    pub(crate) fn publish(&mut self, signer: &Signer) {
        if let Err(e) = self.log.publish(signer) {
            tracing::error!(
                "the log's files for auditors are behind: {e}; the next entry or start writes \
                 them again"
            );
        }
    }

    /// The newest statement of a sealing key.
    pub(crate) fn newest_sealing(&self, key: &VerifierKey) -> Option<String> {
        let entries = self.log.entries().iter().rev();
        let mut notes = entries.filter_map(|e| std::str::from_utf8(e).ok());
        let newest = notes.find(|note| SealingStatement::open(note, key).is_ok());
        newest.map(str::to_owned)
    }

    /// Whether the log has a note.
    pub(crate) fn holds(&self, note: &str) -> bool {
        self.log.place_of(&entry_of(note)).is_some()
    }

    /// Entries of the log.
    pub(crate) fn entries(&self) -> u64 {
        self.log.tree().len()
    }
}
