//! The newest head that was signed of each log, on disk.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use lethe_receipt::hex::hex;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::witness::Seen;
use ring::digest::{SHA256, digest};
use thiserror::Error;

/// Why a witness has no state that it can go on from.
#[derive(Debug, Error)]
pub enum StateError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Another process has the folder.
    #[error("{path}: another witness has this folder: end it first")]
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// A file does not say which head was signed.
    #[error(
        "{path}: {why}. A witness that does not know what it signed must not sign: put the file \
         back, or begin with another name and key"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// The newest head of each log, by origin.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    seen: BTreeMap<String, Seen>,
    /// Nobody else has the folder.
    _lock: File,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StateError + '_ {
    |source| StateError::Io {
        path: path.to_owned(),
        source,
    }
}

/// An origin may have any characters; its digest is a file's name.
fn file_of(folder: &Path, origin: &str) -> PathBuf {
    let name = hex(digest(&SHA256, origin.as_bytes()).as_ref());
    folder.join(format!("{name}.json"))
}

impl State {
    /// Opens or begins a folder, for these logs.
    ///
    /// # Errors
    /// [`StateError`]: nothing is signed then.
    pub fn open(folder: &Path, logs: &[VerifierKey]) -> Result<Self, StateError> {
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let lock = folder.join("lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let held = options.open(&lock).map_err(io(&lock))?;
        if held.try_lock().is_err() {
            let path = folder.to_owned();
            return Err(StateError::Taken { path });
        }
        let mut seen = BTreeMap::new();
        for log in logs {
            let path = file_of(folder, log.name());
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(io(&path)(e)),
            };
            let read = serde_json::from_slice(&bytes).map_err(|e| StateError::Damaged {
                path,
                why: e.to_string(),
            })?;
            seen.insert(log.name().to_owned(), read);
        }
        Ok(Self {
            folder: folder.to_owned(),
            seen,
            _lock: held,
        })
    }

    /// The newest head that was signed of a log.
    pub fn seen(&self, origin: &str) -> Seen {
        self.seen.get(origin).cloned().unwrap_or_default()
    }

    /// Remembers a head. When it returns, that is durable.
    ///
    /// # Errors
    /// [`StateError::Io`]: the signature must not be given out.
    pub fn keep(&mut self, origin: &str, now: Seen) -> Result<(), StateError> {
        if self.seen(origin) == now {
            return Ok(());
        }
        let path = file_of(&self.folder, origin);
        let next = path.with_extension("next");
        let bytes = serde_json::to_vec(&now).map_err(|e| StateError::Damaged {
            path: path.clone(),
            why: e.to_string(),
        })?;
        let written = File::create(&next).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(io(&next))?;
        std::fs::rename(&next, &path).map_err(io(&path))?;
        // The rename is durable with the folder.
        let folder = File::open(&self.folder).and_then(|f| f.sync_all());
        folder.map_err(io(&self.folder))?;
        self.seen.insert(origin.to_owned(), now);
        Ok(())
    }
}
