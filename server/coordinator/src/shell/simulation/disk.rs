//! Databases that outlive the coordinator, on a disk that fails when told to; and copies of the
//! whole data folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lethe_store::memory::MemoryStorage;
use lethe_store::{Record, Storage, StoreError, Write};

use crate::copy::copy;

/// How the disk fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// Writes of databases that still work. One batch is one for each shard that it is about, then
    /// two for the main database and its copy.
    pub(super) after: u32,
    /// The failing write is there all the same.
    pub(super) written: bool,
    /// Nothing works from then on, until the machine is started again.
    pub(super) dead: bool,
}

#[derive(Default)]
struct State {
    databases: BTreeMap<PathBuf, MemoryStorage>,
    fault: Option<Fault>,
    dead: bool,
    /// There is no space as long as this file is there.
    full: Option<PathBuf>,
    failed: u64,
    /// Writes that failed after another database had taken its share of the same batch.
    half: u64,
    /// The database that was written last.
    last: Option<PathBuf>,
}

/// All databases of a coordinator.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<State>>);

/// A data folder as it once was.
pub(super) struct Backup {
    folder: tempfile::TempDir,
    databases: BTreeMap<PathBuf, MemoryStorage>,
}

fn broken(path: &Path) -> StoreError {
    StoreError::Io {
        path: path.to_owned(),
        source: std::io::Error::other("the simulated disk failed"),
    }
}

/// In memory where there is such a folder: the files beside the databases are synced often.
pub(super) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A database is a folder, as in earnest: one that was renamed is not there any more.
    pub(super) fn open(&self, path: &Path) -> Result<Box<dyn Storage>, StoreError> {
        if !path.exists() {
            std::fs::create_dir_all(path).unwrap();
            self.state().databases.remove(path);
        }
        Ok(Box::new(Database {
            disk: self.clone(),
            path: path.to_owned(),
        }))
    }

    pub(super) fn fail(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    /// There is no space as long as this file is there; none: there is some.
    pub(super) fn fill(&self, unless: Option<PathBuf>) {
        self.state().full = unless;
    }

    /// The machine is started again.
    pub(super) fn revive(&self) {
        let mut state = self.state();
        state.fault = None;
        state.dead = false;
    }

    pub(super) fn failed(&self) -> u64 {
        self.state().failed
    }

    pub(super) fn half(&self) -> u64 {
        self.state().half
    }

    /// Copies a data folder.
    pub(super) fn back_up(&self, data: &Path) -> Backup {
        let to = folder();
        copy(data, to.path());
        Backup {
            folder: to,
            databases: self.state().databases.clone(),
        }
    }

    /// Puts a copy in place of a data folder.
    pub(super) fn restore(&self, data: &Path, backup: Backup) {
        std::fs::remove_dir_all(data).unwrap();
        copy(backup.folder.path(), data);
        self.state().databases = backup.databases;
    }

    /// A database is gone, or what it holds is damaged.
    pub(super) fn damage(&self, path: &Path, gone: bool) {
        if gone {
            let _ = std::fs::remove_dir_all(path);
            return;
        }
        let state = self.state();
        let Some(database) = state.databases.get(path) else {
            return;
        };
        let mut all = database.scan().unwrap();
        if let Some((key, value)) = all.pop() {
            let half = value[..value.len() / 2].to_vec();
            database.apply(&[(key, Some(half))]).unwrap();
        }
    }
}

struct Database {
    disk: Disk,
    path: PathBuf,
}

impl Database {
    fn read<T>(
        &self,
        f: impl FnOnce(&MemoryStorage) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut state = self.disk.state();
        if state.dead {
            return Err(broken(&self.path));
        }
        f(state.databases.entry(self.path.clone()).or_default())
    }

    fn is_main(path: &Path) -> bool {
        path.parent()
            .and_then(Path::parent)
            .is_none_or(|p| !p.ends_with("shards"))
    }
}

impl Storage for Database {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|db| db.get(key))
    }

    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut state = self.disk.state();
        if state.dead || state.full.as_ref().is_some_and(|path| path.exists()) {
            state.failed += 1;
            return Err(broken(&self.path));
        }
        let due = state.fault.filter(|f| f.after == 0);
        state.fault = state.fault.and_then(|f| {
            Some(Fault {
                after: f.after.checked_sub(1)?,
                ..f
            })
        });
        let before = state.last.replace(self.path.clone());
        let db = state.databases.entry(self.path.clone()).or_default();
        let Some(fault) = due else {
            return db.apply(writes);
        };
        if fault.written {
            db.apply(writes)?;
        }
        state.failed += 1;
        let shard_before = before.is_some_and(|p| !Self::is_main(&p));
        state.half += u64::from(Self::is_main(&self.path) && shard_before);
        state.dead = fault.dead;
        Err(broken(&self.path))
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        self.read(|db| db.scan())
    }
}
