//! The deletion journal: every accepted request, outside the data folder. A data folder that comes
//! back from a backup is behind it, and is not served before what it lacks has been done again.

use std::collections::BTreeMap;
use std::path::Path;

use lethe_plan::Request;
use lethe_proto::codec;
use lethe_store::keyfile;
use lethe_store::logfile::LogFile;
use serde::{Deserialize, Serialize};

use crate::CoordinatorError;
use crate::records::DeletionRecord;

/// Largest request, in bytes.
const MAX_ENTRY: usize = 1 << 20;

/// A request as it was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) id: u64,
    pub(crate) request: Request,
    pub(crate) salt: [u8; 32],
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) batch: u32,
    /// Number of the devices' task: they may have been told already.
    pub(crate) task: Option<u64>,
    pub(crate) reference: String,
}

/// The journal on disk; entries are sealed under a key of its own beside it.
#[derive(Debug)]
pub(crate) struct Journal {
    file: LogFile,
    key: [u8; 32],
}

impl Journal {
    /// Opens or creates it; returns what it holds, by number.
    pub(crate) fn open(folder: &Path) -> Result<(Self, BTreeMap<u64, Accepted>), CoordinatorError> {
        let file = LogFile::open(&folder.join("journal"))?;
        let key = keyfile::open(&folder.join("journal-key"), file.entries().is_empty())?;
        let mut entries = BTreeMap::new();
        for (i, sealed) in file.entries().iter().enumerate() {
            let plain = lethe_seal::unseal(&key, &(i as u64).to_le_bytes(), sealed);
            let accepted = plain.and_then(|p| codec::from_bytes::<Accepted>(&p, MAX_ENTRY).ok());
            let accepted = accepted.ok_or(CoordinatorError::Journal { entry: i as u64 })?;
            entries.insert(accepted.id, accepted);
        }
        Ok((Self { file, key }, entries))
    }

    /// Adds a request; when it returns, the request is durable.
    pub(crate) fn append(&mut self, accepted: &Accepted) -> Result<(), CoordinatorError> {
        let encode = |why: String| lethe_store::StoreError::Encode {
            table: "journal",
            why,
        };
        let plain = codec::to_bytes(accepted).map_err(|e| encode(e.to_string()))?;
        let index = self.file.entries().len() as u64;
        self.file
            .append(&lethe_seal::seal(&self.key, &index.to_le_bytes(), &plain)?)?;
        Ok(())
    }
}

impl Accepted {
    pub(crate) fn of(id: u64, d: &DeletionRecord) -> Self {
        let (request, reference) = (d.request.clone(), d.reference.clone());
        Self {
            id,
            request,
            salt: d.salt,
            at: d.accepted_at,
            batch: d.batch,
            task: d.task,
            reference,
        }
    }
}
