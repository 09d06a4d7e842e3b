//! A tally on a disk in memory, a coordinator that asks it, and devices.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use lethe_parts::content::Content;
use lethe_proto::catalogue::CatalogueEntry;
use lethe_proto::lists::{Contributed, LIKED, SEEN, SharedEvent};
use lethe_proto::tally::{
    ANSWER, BringAnswer, Brought, CONTRIBUTION, Confided, SealedContribution, TallyRefusal,
    TallyReply, TallyRequest, TallyState, TallyTables, TallyTerms, bound_to, padded,
};
use lethe_receipt::note::VerifierKey;
use lethe_receipt::sealing::SealingStatement;
use lethe_receipt::vouch::VouchStatement;
use lethe_seal::envelope::{AnswerKey, PublicKey, seal_to};
use lethe_store::keys::{Folders, Keys};
use lethe_store::memory::MemoryStorage;
use lethe_store::sealed::{KeyName, SealedStore};
use lethe_store::transparency::Transparency;
use lethe_store::{Record, Storage, StoreError, Write};
use lethe_tally::Catalogue;
use lethe_tally::settings::ListsConfig;
use lethe_tallyd::{Opening, Service, TallydError};

pub const ITEMS: usize = 12;
pub const DAY: i32 = 20_000;
pub const NOW: u64 = DAY as u64 * 86_400;

pub fn ids() -> Vec<String> {
    (0..ITEMS).map(|i| format!("item-{i}")).collect()
}

pub fn catalogue() -> Catalogue {
    Catalogue::new(ids().iter().map(String::as_str))
}

pub fn items() -> Vec<CatalogueEntry> {
    let item = |i: usize| CatalogueEntry {
        id: format!("item-{i}"),
        title: Some(format!("item {i}")),
        tags: vec![format!("tag {}", i % 3)],
        ..CatalogueEntry::default()
    };
    (0..ITEMS).map(item).collect()
}

pub fn content() -> Content {
    lethe_tally::content_of_entries(&items(), None)
}

pub fn lists() -> ListsConfig {
    ListsConfig {
        clip: 20,
        refresh_s: 100,
        publish_s: 1_000,
        cell: 4,
        changed: 2,
        ..ListsConfig::default()
    }
}

/// Fails after so many more writes; the one that fails is there all the same, or not.
type Fault = Option<(u32, bool)>;

/// Databases in memory that outlive whoever has them open, and fail when told to.
pub struct Disk {
    pub dir: tempfile::TempDir,
    databases: Arc<Mutex<BTreeMap<PathBuf, MemoryStorage>>>,
    fault: Arc<Mutex<Fault>>,
    full: Arc<Mutex<bool>>,
    writes: Arc<AtomicU32>,
    pub lists: ListsConfig,
    pub audits: bool,
}

struct Database {
    path: PathBuf,
    reserve: PathBuf,
    databases: Arc<Mutex<BTreeMap<PathBuf, MemoryStorage>>>,
    fault: Arc<Mutex<Fault>>,
    full: Arc<Mutex<bool>>,
    writes: Arc<AtomicU32>,
}

impl Database {
    fn with<T>(&self, f: impl FnOnce(&MemoryStorage) -> T) -> T {
        let mut all = self.databases.lock().unwrap();
        f(all.entry(self.path.clone()).or_default())
    }
}

impl Storage for Database {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|db| db.get(key))
    }

    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        self.writes.fetch_add(1, Relaxed);
        // There is space as soon as what was set aside is given back.
        if *self.full.lock().unwrap() && self.reserve.exists() {
            return Err(StoreError::Backend("No space left on device".into()));
        }
        let due = {
            let mut fault = self.fault.lock().unwrap();
            match &mut *fault {
                Some((0, written)) => {
                    let written = *written;
                    *fault = None;
                    Some(written)
                }
                Some((after, _)) => {
                    *after -= 1;
                    None
                }
                None => None,
            }
        };
        match due {
            Some(false) => {}
            _ => self.with(|db| db.apply(writes))?,
        }
        match due {
            Some(_) => Err(StoreError::Backend("the simulated disk failed".into())),
            None => Ok(()),
        }
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        self.with(|db| db.scan())
    }
}

/// A data folder as it once was.
pub struct Backup {
    folder: tempfile::TempDir,
    databases: BTreeMap<PathBuf, MemoryStorage>,
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

impl Disk {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self {
            dir: dir.unwrap(),
            databases: Arc::default(),
            fault: Arc::default(),
            full: Arc::default(),
            writes: Arc::default(),
            lists: lists(),
            audits: false,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn keys(&self) -> Keys {
        Keys::in_folder(&self.dir.path().join("keys"))
    }

    pub fn evidence(&self) -> PathBuf {
        self.dir.path().join("evidence")
    }

    pub fn try_open(&self, now: u64) -> Result<Service, TallydError> {
        self.try_open_with(items(), now)
    }

    fn engine(&self) -> impl Fn(&Path) -> Result<Box<dyn Storage>, StoreError> + use<> {
        let databases = self.databases.clone();
        let fault = self.fault.clone();
        let full = self.full.clone();
        let writes = self.writes.clone();
        let reserve = self.data().join("reserve");
        move |path: &Path| {
            std::fs::create_dir_all(path).unwrap();
            Ok(Box::new(Database {
                path: path.to_owned(),
                reserve: reserve.clone(),
                databases: databases.clone(),
                fault: fault.clone(),
                full: full.clone(),
                writes: writes.clone(),
            }))
        }
    }

    /// How many keys of these people exist; nobody has the folder open.
    pub fn keys_of(&self, who: &[u8]) -> usize {
        let folders = Folders {
            records: self.data().join("tally"),
            keys: self.keys().within("tally"),
        };
        let store = SealedStore::open(&self.engine(), folders, &["0".into()]).unwrap();
        let name = |w: &u8| KeyName::subject(&lethe_tally::Handle(handle(*w)).hex());
        store.existing(&who.iter().map(name).collect::<Vec<_>>())
    }

    pub fn try_open_with(
        &self,
        items: Vec<CatalogueEntry>,
        now: u64,
    ) -> Result<Service, TallydError> {
        Service::open(Opening {
            engine: &self.engine(),
            folder: &self.data(),
            keys: self.keys(),
            evidence: &self.evidence(),
            items,
            vectors: None,
            lists: self.lists.clone(),
            audits: self.audits,
            reserve: 4_096,
            now,
        })
    }

    pub fn open(&self, now: u64) -> Service {
        self.try_open(now).unwrap()
    }

    pub fn fail_after(&self, writes: u32, written: bool) {
        *self.fault.lock().unwrap() = Some((writes, written));
    }

    pub fn fill(&self, full: bool) {
        *self.full.lock().unwrap() = full;
    }

    /// No fault is to come from here on.
    pub fn mend(&self) {
        *self.fault.lock().unwrap() = None;
    }

    pub fn writes(&self) -> u32 {
        self.writes.load(Relaxed)
    }

    pub fn back_up(&self) -> Backup {
        let folder = tempfile::tempdir().unwrap();
        copy(&self.data(), folder.path());
        Backup {
            folder,
            databases: self.databases.lock().unwrap().clone(),
        }
    }

    /// Nobody has it open.
    pub fn restore(&self, backup: &Backup) {
        std::fs::remove_dir_all(self.data()).unwrap();
        copy(backup.folder.path(), &self.data());
        *self.databases.lock().unwrap() = backup.databases.clone();
    }

    /// Half of the last record of each database of the data folder is gone, in both copies.
    pub fn damage(&self) {
        let databases = self.databases.lock().unwrap();
        for database in databases.values() {
            let mut all = database.scan().unwrap();
            let (key, value) = all.pop().unwrap();
            let half = value[..value.len() / 2].to_vec();
            database.apply(&[(key, Some(half))]).unwrap();
        }
    }
}

/// A device's own side of a contribution.
pub struct Sent {
    pub brought: Brought,
    pub answer: AnswerKey,
}

pub fn handle(who: u8) -> [u8; 16] {
    // Without repetitions: it is searched for.
    std::array::from_fn(|i| (who.wrapping_mul(31) ^ 0x5a).wrapping_add(37 * i as u8))
}

pub fn body(who: u8, events: usize) -> Contributed {
    let event = |n: usize| SharedEvent {
        item: format!(
            "item-{}",
            (usize::from(who) * 5 + n * (1 + usize::from(who % 3))) % ITEMS
        ),
        day: DAY - 50 + n as i32,
        half_stars: 2 + ((n as u8 + who) % 9),
        flags: match (n + usize::from(who)).is_multiple_of(3) {
            true => SEEN,
            false => SEEN | LIKED,
        },
    };
    Contributed {
        source: [1; 16],
        whole: true,
        events: (0..events).map(event).collect(),
    }
}

pub fn seal(note: &str, key: &str, who: u8, ticket: [u8; 32], plain: &[u8]) -> Sent {
    let key = VerifierKey::parse(key).unwrap();
    let statement = SealingStatement::open(note, &key).unwrap();
    let handle = handle(who);
    let aad = bound_to(&handle, &ticket);
    let sealed = seal_to(&PublicKey(statement.key), CONTRIBUTION, &aad, plain, ANSWER).unwrap();
    Sent {
        brought: Brought {
            handle,
            sealed: SealedContribution {
                ticket,
                envelope: sealed.envelope,
            },
        },
        answer: sealed.answer,
    }
}

pub fn read(sent: &Sent, answer: &BringAnswer) -> Confided {
    let BringAnswer::Sealed(bytes) = answer else {
        panic!("unreadable");
    };
    Confided::from_bytes(&sent.answer.open(bytes).unwrap()).unwrap()
}

/// What a coordinator does, in short.
pub trait Asked {
    fn terms(&self, now: u64) -> TallyTerms;
    fn ticket(&self, who: u8, now: u64) -> [u8; 32];
    fn sealed(&self, who: u8, events: usize, now: u64) -> Sent;
    fn bring(&self, sent: &[&Sent], now: u64) -> Vec<BringAnswer>;
    fn contribute(&self, who: u8, events: usize, now: u64) -> Confided;
    fn leave(&self, who: &[u8], now: u64) -> TallyReply;
    fn work(&self, now: u64) -> TallyState;
    fn tables(&self) -> Option<TallyTables>;
    fn vouch(&self, who: &[u8], now: u64) -> Result<VouchStatement, TallyRefusal>;
}

impl Asked for Service {
    fn terms(&self, now: u64) -> TallyTerms {
        let items = catalogue().digest();
        match self.answer(TallyRequest::Open { items, floor: 0 }, now) {
            TallyReply::Opened(terms) => terms,
            other => panic!("{other:?}"),
        }
    }

    fn ticket(&self, who: u8, now: u64) -> [u8; 32] {
        let handles = vec![handle(who)];
        match self.answer(TallyRequest::Tickets { handles }, now) {
            TallyReply::Tickets(tickets) => tickets[0],
            other => panic!("{other:?}"),
        }
    }

    fn sealed(&self, who: u8, events: usize, now: u64) -> Sent {
        let terms = self.terms(now);
        let plain = padded(&body(who, events)).unwrap();
        seal(&terms.note, &terms.key, who, self.ticket(who, now), &plain)
    }

    fn bring(&self, sent: &[&Sent], now: u64) -> Vec<BringAnswer> {
        let sealed = sent.iter().map(|s| s.brought.clone()).collect();
        match self.answer(TallyRequest::Bring { sealed }, now) {
            TallyReply::Answers(answers) => answers,
            other => panic!("{other:?}"),
        }
    }

    fn contribute(&self, who: u8, events: usize, now: u64) -> Confided {
        let sent = self.sealed(who, events, now);
        read(&sent, &self.bring(&[&sent], now)[0])
    }

    fn leave(&self, who: &[u8], now: u64) -> TallyReply {
        let handles = who.iter().map(|w| handle(*w)).collect();
        self.answer(TallyRequest::Leave { handles }, now)
    }

    fn work(&self, now: u64) -> TallyState {
        match self.answer(TallyRequest::Work, now) {
            TallyReply::State(state) => state,
            other => panic!("{other:?}"),
        }
    }

    fn tables(&self) -> Option<TallyTables> {
        let number = self.state().served?.number;
        match self.answer(TallyRequest::Tables { number }, 0) {
            TallyReply::Tables(tables) => tables,
            other => panic!("{other:?}"),
        }
    }

    fn vouch(&self, who: &[u8], now: u64) -> Result<VouchStatement, TallyRefusal> {
        let handles = who.iter().map(|w| handle(*w)).collect();
        match self.answer(TallyRequest::Vouch { handles }, now) {
            TallyReply::Vouched(note) => {
                let key = VerifierKey::parse(&self.key()).unwrap();
                Ok(VouchStatement::open(&note, &key).unwrap())
            }
            TallyReply::Refused { code, .. } => Err(code),
            other => panic!("{other:?}"),
        }
    }
}

/// Entries of the log, with nobody writing.
pub fn log_of(disk: &Disk) -> Vec<String> {
    let log = Transparency::open(&disk.evidence()).unwrap();
    let entries = log.entries().iter();
    entries
        .map(|e| String::from_utf8(e.clone()).unwrap())
        .collect()
}
