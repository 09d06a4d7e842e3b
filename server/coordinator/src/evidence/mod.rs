//! What the coordinator keeps outside its data folder: the transparency log and its files for
//! auditors, the journal of accepted deletions, and the highest number that a release ever had.
//!
//! A data folder may be lost or come back from a backup; what was said to others may not. So this
//! is written before the events that it is about ([`Evidence::before`]), and the log holds an
//! entry before the ledger hears of it ([`Evidence::enter`]). Both may be repeated: what is there
//! already is not written again.
//!
//! [`proofs`] has what is made from the log for devices, people who asked, and auditors; [`admin`]
//! has what operators read.

use std::path::{Path, PathBuf};

use lethe_ledger::{Accepted, Before, Event, LogHead, Refused, State};
use lethe_proto::limits::MAX_SMALL;
use lethe_receipt::manifest::Manifest;
use lethe_receipt::note::Signer;
use lethe_receipt::receipt::Cosigned;
use lethe_store::StoreError;
use lethe_store::head::Floor;
use lethe_store::transparency::Transparency;

use crate::CoordinatorError;

pub(crate) mod admin;
mod cosigned;
#[cfg(test)]
pub(crate) mod failing;
mod journal;
mod proofs;
mod served;
pub(crate) mod succession;
#[cfg(test)]
mod tests;

use journal::Journal;

/// Version and build, as it appears in receipts.
pub(crate) const BUILD: &str = concat!("lethe ", env!("CARGO_PKG_VERSION"));

/// The evidence folder, open. Whoever writes has it alone.
#[derive(Debug)]
pub(crate) struct Evidence {
    folder: PathBuf,
    log: Transparency,
    signer: Signer,
    journal: Journal,
    floor: Floor,
    /// What [`Self::floor`] says.
    used: Option<u64>,
    /// Notes of exchanges of the log's key.
    changes: Vec<String>,
    /// The newest head that witnesses have signed.
    pub(crate) cosigned: Option<Cosigned>,
}

/// What the folder held when it was opened: for `Command::Started`.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Highest number that a release ever had.
    pub(crate) floor: Option<u64>,
    /// All requests that were ever accepted, by number.
    pub(crate) journal: Vec<Accepted>,
}

/// An entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entered {
    /// Where it is.
    pub(crate) index: u64,
    /// How far the log is.
    pub(crate) head: LogHead,
}

/// Some entries of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogPage {
    /// Fewer than all when they do not fit into a message.
    pub(crate) entries: Vec<Vec<u8>>,
    /// The signed head.
    pub(crate) checkpoint: String,
}

impl Evidence {
    /// Opens or creates the folder. Compare it with what the data folder knows ([`Self::check`])
    /// before anything else is done with it.
    pub(crate) fn open(
        folder: &Path,
        log_name: &str,
        log_seed: &[u8; 32],
    ) -> Result<(Self, Opened), CoordinatorError> {
        std::fs::create_dir_all(folder).map_err(|source| StoreError::Io {
            path: folder.to_owned(),
            source,
        })?;
        let signer = Signer::from_seed(log_name, log_seed)?;
        let log = Transparency::open(folder)?;
        let (journal, accepted) = Journal::open(folder)?;
        let (floor, used) = Floor::open(&folder.join("releases"))?;
        let evidence = Self {
            folder: folder.to_owned(),
            log,
            signer,
            journal,
            floor,
            used,
            changes: vec![],
            cosigned: None,
        };
        let opened = Opened {
            floor: used,
            journal: accepted,
        };
        Ok((evidence, opened))
    }

    /// Refuses an evidence folder that does not continue the log that the data folder knows: an
    /// older copy of it, or another's. A data folder that is older than the evidence (a restored
    /// backup) is fine.
    pub(crate) fn check(&self, known: &LogHead, folder: &Path) -> Result<(), CoordinatorError> {
        let folder = folder.to_owned();
        let knows = known.entries;
        // A log without entries has no head that was ever written down.
        if knows == 0 {
            return Ok(());
        }
        let Some(root) = self.log.tree().root_of(knows) else {
            let has = self.log.tree().len();
            return Err(CoordinatorError::Evidence { folder, has, knows });
        };
        if root != known.root {
            return Err(CoordinatorError::OtherLog { folder, knows });
        }
        Ok(())
    }

    /// Makes durable what has to be before these events are written: accepted deletions, all of
    /// them or none, and numbers of releases. What is there already is skipped.
    pub(crate) fn before(&mut self, events: &[Event]) -> Result<(), CoordinatorError> {
        let mut accepted = vec![];
        let mut floor = None;
        for event in events {
            match (event.before(), event) {
                (Some(Before::Journal(id)), Event::DeletionAccepted { deletion, .. }) => {
                    accepted.push(Accepted::of(id, deletion));
                }
                (Some(Before::Floor(no)), _) => floor = floor.max(Some(no)),
                _ => {}
            }
        }
        self.journal.add(accepted)?;
        match floor {
            Some(no) => self.raise(no),
            None => Ok(()),
        }
    }

    /// No release has a lower number from now on.
    fn raise(&mut self, no: u64) -> Result<(), CoordinatorError> {
        if self.used.is_none_or(|used| used < no) {
            #[cfg(test)]
            failing::set(&self.folder.join("releases"), no)?;
            self.floor.set(no)?;
            self.used = Some(no);
        }
        Ok(())
    }

    /// Puts into the journal the deletions that it lacks: it was lost, and the data folder was not.
    pub(crate) fn lacking(&mut self, state: &State) -> Result<(), CoordinatorError> {
        for (id, deletion) in state.deletions() {
            if !self.journal.holds(*id) {
                self.journal.add(vec![Accepted::of(*id, deletion)])?;
            }
        }
        Ok(())
    }

    /// What the folder holds now: for the `Command::Started` after a state was rebuilt, since the
    /// write that failed may have come after an entry of the journal.
    pub(crate) fn held(&self) -> Result<Opened, CoordinatorError> {
        Ok(Opened {
            floor: self.used,
            journal: self.journal.read()?,
        })
    }

    /// Enters something into the log, unless it is there. When it returns, the entry is durable.
    pub(crate) fn enter(&mut self, entry: &[u8]) -> Result<Entered, CoordinatorError> {
        #[cfg(test)]
        if self.log.place_of(entry).is_none() {
            failing::append(&self.folder.join("log"), entry)?;
        }
        let index = self.log.enter(entry)?;
        if let Err(e) = self.publish() {
            tracing::error!(
                "the log's files for auditors are behind: {e}; the next entry or start writes \
                 them again"
            );
        }
        Ok(Entered {
            index,
            head: self.head(),
        })
    }

    /// Writes the log's files for auditors, those that are not written yet. After a start that is
    /// all of them: somebody may have removed some.
    pub(crate) fn publish(&mut self) -> std::io::Result<()> {
        self.log.publish(&self.signer)
    }

    /// How far the log is.
    pub(crate) fn head(&self) -> LogHead {
        LogHead {
            entries: self.log.tree().len(),
            root: self.log.tree().root(),
        }
    }

    /// Public key of the log (verifier key text).
    pub(crate) fn log_key(&self) -> String {
        self.signer.verifier().text()
    }

    /// The signed head of the log.
    pub(crate) fn checkpoint(&self) -> String {
        self.signer
            .checkpoint(self.log.tree().len(), &self.log.tree().root())
    }

    /// The signed manifest of a version of the catalogue.
    pub(crate) fn sign_manifest(&self, manifest: &Manifest) -> Result<String, CoordinatorError> {
        Ok(manifest.sign(&self.signer)?)
    }

    /// Entries from `from` on that fit into a message, and the head.
    pub(crate) fn page(&self, from: u64) -> LogPage {
        let all = self.log.entries();
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(all.len());
        let mut room = MAX_SMALL / 2;
        let fits = |e: &&Vec<u8>| {
            room = room.saturating_sub(e.len() + 8);
            room > 0
        };
        let entries = all[from..].iter().take_while(fits).cloned().collect();
        LogPage {
            entries,
            checkpoint: self.published_head(),
        }
    }
}

/// What the ledger refuses, as this crate says it.
fn refused(why: Refused) -> CoordinatorError {
    CoordinatorError::refuse(why.code, why.message)
}
