//! Databases that outlive the coordinator, on a disk that fails when told to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lethe_store::memory::MemoryStorage;
use lethe_store::{Record, Storage, StoreError, Write};

/// How the disk fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// Writes that still work.
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
}

/// All databases of a coordinator.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<State>>);

fn broken(path: &Path) -> StoreError {
    StoreError::Io {
        path: path.to_owned(),
        source: std::io::Error::other("the simulated disk failed"),
    }
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, path: &Path) -> Result<Box<dyn Storage>, StoreError> {
        self.state().databases.entry(path.to_owned()).or_default();
        Ok(Box::new(Database {
            disk: self.clone(),
            path: path.to_owned(),
        }))
    }

    pub(super) fn fail(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    /// The machine is started again.
    pub(super) fn revive(&self) {
        let mut state = self.state();
        (state.fault, state.dead) = (None, false);
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
}

impl Storage for Database {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|db| db.get(key))
    }

    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut state = self.disk.state();
        if state.dead {
            return Err(broken(&self.path));
        }
        let due = state.fault.filter(|f| f.after == 0);
        state.fault = state.fault.and_then(|f| {
            Some(Fault {
                after: f.after.checked_sub(1)?,
                ..f
            })
        });
        let db = state.databases.entry(self.path.clone()).or_default();
        match due {
            None => db.apply(writes),
            Some(fault) => {
                if fault.written {
                    db.apply(writes)?;
                }
                state.dead = fault.dead;
                Err(broken(&self.path))
            }
        }
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        self.read(|db| db.scan())
    }
}
