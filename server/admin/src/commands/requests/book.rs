//! The operator's book of requests, `requests.json`: ids, addresses and what was last answered. It
//! names nobody: who a request is about is there as a salted digest only.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lethe_dsr::blind;
use lethe_dsr::opendsr::Status;
use serde::{Deserialize, Serialize};

use super::{Reference, used_before};

/// A request in the book.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Booked {
    /// What came with it, without the token (which names the person).
    pub(crate) reference: Reference,
    /// Salt and salted digest of whom it is about.
    about: (String, String),
    /// Nobody of that name is known: nothing had to be done.
    pub(crate) unknown: bool,
    /// Withdrawn while it was pending.
    pub(crate) cancelled: bool,
    /// Status that each callback address was told last.
    #[serde(default)]
    pub(crate) told: BTreeMap<String, Status>,
}

impl Booked {
    /// Refuses an id that was used for somebody else.
    pub(crate) fn check(&self, subject: &str) -> anyhow::Result<()> {
        if blind(subject, Some(&self.about.0))? != self.about {
            return Err(used_before(&self.reference.id));
        }
        Ok(())
    }
}

/// All of them, by [`Reference::key`].
pub(crate) type Requests = BTreeMap<String, Booked>;

/// The book on disk.
#[derive(Debug)]
pub(crate) struct Book(PathBuf);

impl Book {
    pub(crate) fn of(home: &Path) -> Self {
        Self(home.join("requests.json"))
    }

    pub(crate) fn read(&self) -> anyhow::Result<Requests> {
        match std::fs::read(&self.0) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| self.0.display().to_string()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Requests::new()),
            Err(e) => Err(e).with_context(|| self.0.display().to_string()),
        }
    }

    /// Keeps other processes of this operator out until the file is dropped.
    pub(crate) fn lock(&self) -> anyhow::Result<File> {
        let path = self.0.with_extension("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        file.lock().with_context(|| path.display().to_string())?;
        Ok(file)
    }

    /// Reads, changes and writes the book; the caller holds the lock.
    pub(crate) fn change(
        &self,
        f: impl FnOnce(&mut Requests) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut all = self.read()?;
        f(&mut all)?;
        let next = self.0.with_extension("next");
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options
            .open(&next)
            .with_context(|| next.display().to_string())?;
        serde_json::to_writer_pretty(&file, &all)?;
        file.sync_all()?;
        std::fs::rename(&next, &self.0).with_context(|| self.0.display().to_string())
    }

    /// Enters a request that is not there yet.
    pub(crate) fn enter(
        &self,
        reference: &Reference,
        subject: &str,
        unknown: bool,
    ) -> anyhow::Result<()> {
        let about = blind(subject, None)?;
        let mut reference = reference.clone();
        reference.token = None;
        self.change(|all| {
            let fresh = Booked {
                reference,
                about,
                unknown,
                cancelled: false,
                told: BTreeMap::new(),
            };
            let entry = all.entry(fresh.reference.key()).or_insert(fresh);
            // One that was unknown, lost or withdrawn and is taken again is what it is now.
            (entry.unknown, entry.cancelled) = (unknown, false);
            Ok(())
        })
    }
}
