//! Databases in memory that outlive whoever has them open, and fail when told to; and people.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use lethe_parts::content::{Content, Description};
use lethe_parts::history::Interaction;
use lethe_parts::solve;
use lethe_store::memory::MemoryStorage;
use lethe_store::sealed::{KeyName, SealedStore};
use lethe_store::{Record, Storage, StoreError, Write};
use lethe_tally::cells::CellSettings;
use lethe_tally::{Handle, Offer, Options, Tally, TallyError};

pub const ITEMS: u32 = 12;
pub const DAY: i32 = 20_000;
pub const NOW: u64 = DAY as u64 * 86_400;

/// Fails after so many more writes; the one that fails is there all the same, or not.
type Fault = Option<(u32, bool)>;

pub struct Disk {
    dir: tempfile::TempDir,
    databases: Arc<Mutex<BTreeMap<PathBuf, Arc<MemoryStorage>>>>,
    fault: Arc<Mutex<Fault>>,
    writes: Arc<AtomicU32>,
}

struct Database {
    records: Arc<MemoryStorage>,
    fault: Arc<Mutex<Fault>>,
    writes: Arc<AtomicU32>,
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

impl Default for Disk {
    fn default() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            databases: Arc::default(),
            fault: Arc::default(),
            writes: Arc::default(),
        }
    }
}

impl Disk {
    fn engine(&self) -> impl Fn(&Path) -> Result<Box<dyn Storage>, StoreError> + use<> {
        let databases = self.databases.clone();
        let fault = self.fault.clone();
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

    pub fn try_open(&self, options: Options) -> Result<Tally, TallyError> {
        let content = Arc::new(content());
        Tally::open(&self.engine(), self.dir.path(), content, options, NOW)
    }

    pub fn open(&self) -> Tally {
        self.try_open(options()).unwrap()
    }

    pub fn fail_after(&self, writes: u32, written: bool) {
        *self.fault.lock().unwrap() = Some((writes, written));
    }

    /// Whether a fault is still to come; none is from here on.
    pub fn mend(&self) -> bool {
        self.fault.lock().unwrap().take().is_some()
    }

    pub fn writes(&self) -> u32 {
        self.writes.load(Relaxed)
    }

    /// What is derived is lost as a whole.
    pub fn lose_derived(&self) {
        let path = self.dir.path().join("shards").join("0");
        std::fs::remove_dir_all(&path).unwrap();
        self.databases.lock().unwrap().remove(&path.join("db"));
    }

    /// How many keys of these handles exist; nobody has the folder open.
    pub fn keys_of(&self, handles: &[Handle]) -> usize {
        let store = SealedStore::open(&self.engine(), self.dir.path(), &["0".into()]).unwrap();
        let names = handles.iter().map(|h| KeyName::subject(&h.hex()));
        store.existing(&names.collect::<Vec<_>>())
    }

    /// A handle's key is destroyed, and nothing else: a backup of the rest came back.
    pub fn destroy_key(&self, handle: &Handle) {
        let store = SealedStore::open(&self.engine(), self.dir.path(), &["0".into()]).unwrap();
        store.destroy(&[KeyName::subject(&handle.hex())]).unwrap();
    }
}

pub fn content() -> Content {
    let items = (0..ITEMS).map(|i| Description {
        title: format!("item {i}"),
        tags: vec![format!("tag {}", i % 3)],
        ..Description::default()
    });
    Content::new(&items.collect::<Vec<_>>())
}

pub fn options() -> Options {
    Options {
        cells: CellSettings {
            least: 4,
            most: 8,
            share: 1_000,
            changed: 2,
            ..CellSettings::default()
        },
        clip: 20,
        refresh_s: 100,
        solve: solve::Settings {
            rank: 3,
            ..solve::Settings::default()
        },
        ..Options::default()
    }
}

pub fn handle(who: u8) -> Handle {
    Handle([who; 16])
}

/// A whole history, from a person's first device.
pub fn offer(handle: Handle, events: &[Interaction]) -> Offer<'_> {
    Offer {
        handle,
        source: [1; 16],
        whole: true,
        events,
    }
}

/// The first `count` events of a person.
pub fn events(who: u8, count: u32) -> Vec<Interaction> {
    let one = |n: u32| Interaction {
        item: (u32::from(who) * 5 + n * (1 + u32::from(who % 3))) % ITEMS,
        day: DAY - 50 + n as i32,
        seen: true,
        half_stars: Some(2 + (n as u8 + who) % 9),
        liked: !(n + u32::from(who)).is_multiple_of(3),
        hidden: false,
    };
    (0..count).map(one).collect()
}
