//! Databases in memory that outlive whoever has them open, and fail when told to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use lethe_store::memory::MemoryStorage;
use lethe_store::{Record, Storage, StoreError, Write};

use super::super::{Durable, Opened};
use crate::CoordinatorError;

/// Fails after so many more writes; the one that fails is there all the same, or not.
type Fault = Option<(u32, bool)>;

pub(super) struct Disk {
    dir: tempfile::TempDir,
    databases: Arc<Mutex<BTreeMap<PathBuf, Arc<MemoryStorage>>>>,
    fault: Arc<Mutex<Fault>>,
    pub(super) writes: Arc<AtomicU64>,
}

struct Database {
    records: Arc<MemoryStorage>,
    fault: Arc<Mutex<Fault>>,
    writes: Arc<AtomicU64>,
}

impl Storage for Database {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.records.get(key)
    }

    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        self.writes.fetch_add(1, Relaxed);
        let mut fault = self.fault.lock().unwrap();
        match &mut *fault {
            Some((0, written)) => {
                if *written {
                    self.records.apply(writes)?;
                }
                *fault = None;
                Err(StoreError::Backend("the simulated disk failed".into()))
            }
            Some((after, _)) => {
                *after -= 1;
                self.records.apply(writes)
            }
            None => self.records.apply(writes),
        }
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        self.records.scan()
    }
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            databases: Arc::default(),
            fault: Arc::default(),
            writes: Arc::default(),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn engine(&self) -> impl Fn(&Path) -> Result<Box<dyn Storage>, StoreError> + use<> {
        let (databases, fault) = (self.databases.clone(), self.fault.clone());
        let writes = self.writes.clone();
        move |path: &Path| {
            let mut all = databases.lock().unwrap();
            Ok(Box::new(Database {
                records: all.entry(path.to_owned()).or_default().clone(),
                fault: fault.clone(),
                writes: writes.clone(),
            }))
        }
    }

    pub(super) fn found(&self) -> Durable {
        let foundation = super::foundation();
        let opened = Durable::found(&self.engine(), self.folder(), foundation, 2).unwrap();
        opened.durable
    }

    pub(super) fn try_open(&self) -> Result<Option<Opened>, CoordinatorError> {
        Durable::open(&self.engine(), self.folder())
    }

    pub(super) fn open(&self) -> Opened {
        self.try_open().unwrap().unwrap()
    }

    pub(super) fn reopen(&self, opened: Opened) -> Opened {
        drop(opened);
        self.open()
    }

    pub(super) fn fail_after(&self, writes: u32, written: bool) {
        *self.fault.lock().unwrap() = Some((writes, written));
    }

    pub(super) fn mend(&self) {
        *self.fault.lock().unwrap() = None;
    }

    /// A shard's database is lost as a whole.
    pub(super) fn lose(&self, name: &str) {
        let path = self.folder().join("shards").join(name);
        std::fs::remove_dir_all(&path).unwrap();
        self.databases.lock().unwrap().remove(&path.join("db"));
    }
}
