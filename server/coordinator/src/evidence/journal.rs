//! The deletion journal: every accepted request, outside the data folder. A data folder that comes
//! back from a backup is behind it, and is not served before what it lacks has been done again.
//!
//! An entry is sealed under the journal's own key, for the place at which it stands. It holds all
//! requests of a list that was decided together: either all of them are accepted, or none. An entry
//! of the first version holds one request; it is sealed for another purpose, so that neither can be
//! taken for the other.

use std::collections::BTreeMap;
use std::path::Path;

use lethe_ledger::Accepted;
use lethe_proto::codec;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::Digest;
use lethe_proto::message::Refusal;
use lethe_store::logfile::LogFile;
use lethe_store::{StoreError, keyfile};
use serde::{Deserialize, Serialize};

use crate::CoordinatorError;

/// Longest entry, in bytes, before it is sealed: with what sealing adds it fits into the file.
const MAX_ENTRY: usize = (1 << 20) - 64;

/// Version of entries that hold a list. Those of one request have none.
const VERSION: u32 = 2;

/// Purpose of an entry that holds a list.
const LIST: &[u8] = b"lethe-journal-list";

/// The requests of one entry.
#[derive(Debug, Serialize, Deserialize)]
struct List {
    /// [`VERSION`].
    version: u32,
    /// What came with requests. It may be long, and is the same for all of a batch.
    references: Vec<String>,
    /// In the order in which they were accepted.
    requests: Vec<Listed>,
}

/// An [`Accepted`] in a list.
#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    id: u64,
    request: DeletionRequest,
    salt: [u8; 32],
    at: u64,
    batch: u32,
    task: Option<u64>,
    /// Position in [`List::references`].
    reference: u32,
}

/// The journal on disk.
#[derive(Debug)]
pub(super) struct Journal {
    file: LogFile,
    key: [u8; 32],
    /// By number, a digest of what the journal holds. It names nobody.
    known: BTreeMap<u64, Digest>,
    #[cfg(test)]
    path: std::path::PathBuf,
}

impl Journal {
    /// Opens or creates it; returns what it holds, by number.
    pub(super) fn open(folder: &Path) -> Result<(Self, Vec<Accepted>), CoordinatorError> {
        let file = LogFile::open(&folder.join("journal"))?;
        let key = keyfile::open(&folder.join("journal-key"), file.entries().is_empty())?;
        let mut journal = Self {
            file,
            key,
            known: BTreeMap::new(),
            #[cfg(test)]
            path: folder.join("journal"),
        };
        let all = journal.read()?;
        for accepted in &all {
            journal.known.insert(accepted.id, digest(accepted)?);
        }
        Ok((journal, all))
    }

    /// Everything that it holds, by number.
    pub(super) fn read(&self) -> Result<Vec<Accepted>, CoordinatorError> {
        let mut all = BTreeMap::new();
        for (i, sealed) in self.file.entries().iter().enumerate() {
            let entry = i as u64;
            let read = self.entry(entry, sealed);
            let read = read.ok_or(CoordinatorError::Journal { entry })?;
            all.extend(read.into_iter().map(|a| (a.id, a)));
        }
        Ok(all.into_values().collect())
    }

    /// The requests of an entry, of either version.
    fn entry(&self, place: u64, sealed: &[u8]) -> Option<Vec<Accepted>> {
        if let Some(plain) = lethe_seal::unseal(&self.key, &purpose(place), sealed) {
            let list: List = codec::from_bytes(&plain, MAX_ENTRY).ok()?;
            return (list.version == VERSION).then(|| list.open())?;
        }
        let plain = lethe_seal::unseal(&self.key, &place.to_le_bytes(), sealed)?;
        Some(vec![codec::from_bytes(&plain, plain.len()).ok()?])
    }

    /// Whether it holds a request of this number.
    pub(super) fn holds(&self, id: u64) -> bool {
        self.known.contains_key(&id)
    }

    /// Adds requests, all or none of them; when it returns, they are durable. Those that it holds
    /// already are skipped.
    pub(super) fn add(&mut self, accepted: Vec<Accepted>) -> Result<(), CoordinatorError> {
        let mut new = BTreeMap::new();
        let mut list = vec![];
        for a in accepted {
            let digest = digest(&a)?;
            match self.known.get(&a.id) {
                Some(known) if *known == digest => {}
                Some(_) => return Err(other(a.id)),
                None => {
                    new.insert(a.id, digest);
                    list.push(a);
                }
            }
        }
        if list.is_empty() {
            return Ok(());
        }
        let plain = bytes(&List::of(list))?;
        if plain.len() > MAX_ENTRY {
            return Err(too_long(plain.len()));
        }
        let place = self.file.entries().len() as u64;
        let sealed = lethe_seal::seal(&self.key, &purpose(place), &plain)?;
        #[cfg(test)]
        super::failing::append(&self.path, &sealed)?;
        self.file.append(&sealed)?;
        self.known.extend(new);
        Ok(())
    }
}

impl List {
    fn of(all: Vec<Accepted>) -> Self {
        let mut references: Vec<String> = vec![];
        let mut requests = vec![];
        for a in all {
            let known = references.iter().position(|r| *r == a.reference);
            let reference = known.unwrap_or(references.len());
            if known.is_none() {
                references.push(a.reference);
            }
            requests.push(Listed {
                id: a.id,
                request: a.request,
                salt: a.salt,
                at: a.at,
                batch: a.batch,
                task: a.task,
                reference: reference as u32,
            });
        }
        Self {
            version: VERSION,
            references,
            requests,
        }
    }

    fn open(self) -> Option<Vec<Accepted>> {
        let accepted = |l: Listed| {
            Some(Accepted {
                id: l.id,
                request: l.request,
                salt: l.salt,
                at: l.at,
                batch: l.batch,
                task: l.task,
                reference: self.references.get(l.reference as usize)?.clone(),
            })
        };
        self.requests.into_iter().map(accepted).collect()
    }
}

/// What an entry with a list is sealed for, at its place.
fn purpose(place: u64) -> Vec<u8> {
    [&place.to_le_bytes()[..], LIST].concat()
}

fn bytes(value: &impl Serialize) -> Result<Vec<u8>, CoordinatorError> {
    let encode = |e: codec::CodecError| StoreError::Encode {
        table: "journal",
        why: e.to_string(),
    };
    Ok(codec::to_bytes(value).map_err(encode)?)
}

fn digest(accepted: &Accepted) -> Result<Digest, CoordinatorError> {
    Ok(Digest::of(&[&bytes(accepted)?]))
}

/// The state that decided this was not told what the journal holds.
fn other(id: u64) -> CoordinatorError {
    let message = format!(
        "the deletion journal holds another request under number {id}: restart the coordinator, so \
         that it reads the journal again"
    );
    CoordinatorError::refuse(Refusal::Internal, message)
}

fn too_long(got: usize) -> CoordinatorError {
    let message = format!(
        "these requests take {got} bytes of the deletion journal, at most {MAX_ENTRY} are accepted \
         at once: divide them"
    );
    CoordinatorError::refuse(Refusal::Invalid, message)
}
