//! Typed records, each sealed under a key that can be destroyed: the main database, which is kept
//! twice, and one database for every shard, so that damage to one takes only what that shard can
//! learn again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use lethe_proto::codec;
use ring::digest::{SHA256, digest};

use crate::batch::Absent;
pub use crate::batch::{Batch, KeyName};
pub use crate::database::Quarantined;
use crate::database::{self, set_aside};
use crate::head::Head;
use crate::keyring::{Key, Keyring, Notes, take_over};
use crate::keys::Folders;
use crate::memory::MemoryStorage;
use crate::mirror::Mirror;
use crate::part::{
    Acknowledged, Entry, Id, Loaded, MAX_RECORD, Part, Plain, Root, Sealer, Written,
};
use crate::{Class, Persisted, Storage, StoreError, Write};

pub(crate) const INDEX_KEY: &str = "store:index";

/// Opens or creates the database in a folder.
pub type Engine = dyn Fn(&Path) -> Result<Box<dyn Storage>, StoreError>;

/// The same, for whoever opens more databases later.
pub type SharedEngine =
    Arc<dyn Fn(&Path) -> Result<Box<dyn Storage>, StoreError> + Send + Sync + 'static>;

/// A store of sealed records, to be shared by threads. One writes at a time; the others read
/// meanwhile, and do not wait for the disk.
pub struct SealedStore {
    /// As `Index::parts`. Whoever writes holds it until the write is durable.
    written: Mutex<Vec<Written>>,
    /// Held for moments. Whoever holds `written` may take it, never the other way round.
    index: RwLock<Index>,
    folder: PathBuf,
}

/// What finds and opens a record.
struct Index {
    /// The main database, then those of the shards. It only grows: one that was removed leaves an
    /// empty one.
    parts: Vec<Arc<Part>>,
    /// Places of the shards' databases in `parts`.
    names: BTreeMap<String, usize>,
    quarantined: Vec<Quarantined>,
    keys: Keyring,
    inventory: BTreeMap<Id, (usize, Entry)>,
}

/// A poisoned lock: a thread panicked while it changed the state of the store.
fn poisoned<T>(e: PoisonError<T>) -> T {
    // What a panic left half-done is what a crash leaves: the databases hold the truth, and a part
    // in doubt is read again before the next write.
    e.into_inner()
}

impl std::fmt::Debug for SealedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "SealedStore({}, {} records)",
            self.folder.display(),
            self.index().inventory.len()
        )
    }
}

impl SealedStore {
    /// Opens the records of a folder with its keys, and checks that none is lost or altered. Keys
    /// that an earlier build kept in the folder are moved out of it first. Besides `databases`,
    /// those are opened that keys exist for. What one copy of the main database lost comes from
    /// the other. A shard's database that is damaged is renamed, its keys are destroyed and the
    /// shard is empty ([`Self::quarantined`]).
    ///
    /// # Errors
    /// [`StoreError::NoKeys`]: there are records, and no keys for them. [`StoreError::OldKeys`]:
    /// the keys were put back from an older copy. [`StoreError::Corrupt`], [`StoreError::Io`].
    pub fn open(
        engine: &Engine,
        folders: impl Into<Folders>,
        databases: &[String],
    ) -> Result<Self, StoreError> {
        let Folders {
            records: folder,
            keys: source,
        } = folders.into();
        let folder = folder.as_path();
        take_over(&folder.join("keys"), &source)?;
        if folder.join("db").exists() && !source.has_keyring()? {
            return Err(StoreError::NoKeys {
                folder: folder.to_owned(),
                place: source.place().into(),
            });
        }
        std::fs::create_dir_all(folder).map_err(StoreError::io(folder))?;
        let mut keys = Keyring::open(&source, Some(folder))?;
        database::end_removals(folder)?;
        keys.ensure(&[INDEX_KEY, "public"])?;
        let key = index_key(folder, &keys)?;
        let names = database::all_names(databases, &keys)?;
        let main = open_main(engine, folder, &key, &keys)?;
        let mut index = Index {
            parts: vec![],
            names: BTreeMap::new(),
            quarantined: vec![],
            keys,
            inventory: BTreeMap::new(),
        };
        let mut written = vec![index.add(None, main)];
        for name in names {
            let (opened, damaged) = database::open(engine, folder, &name, &key, &mut index.keys)?;
            index.quarantined.extend(damaged);
            written.push(index.add(Some(&name), opened));
        }
        for (part, own) in index.parts.iter().zip(&mut written) {
            own.remove_orphans(part)?;
        }
        Ok(Self {
            written: Mutex::new(written),
            index: RwLock::new(index),
            folder: folder.to_owned(),
        })
    }

    /// Names of the shards' databases that are in a folder.
    pub fn databases_in(folder: &Path) -> Result<Vec<String>, StoreError> {
        database::names_in(folder)
    }

    /// Opens or creates one more database, with the engine that the others were opened with; does
    /// nothing when it is open. Nobody reads or writes meanwhile.
    pub fn open_database(&self, engine: &Engine, name: &str) -> Result<(), StoreError> {
        let mut written = self.written();
        let mut index = self.index_mut();
        if index.names.contains_key(name) {
            return Ok(());
        }
        let key = index_key(&self.folder, &index.keys)?;
        let (opened, damaged) = database::open(engine, &self.folder, name, &key, &mut index.keys)?;
        index.quarantined.extend(damaged);
        let mut own = index.add(Some(name), opened);
        if let Some(part) = index.parts.last() {
            own.remove_orphans(part)?;
        }
        written.push(own);
        Ok(())
    }

    /// Names of the shards' databases that are open.
    pub fn databases(&self) -> Vec<String> {
        self.index().names.keys().cloned().collect()
    }

    /// Removes a database that nothing is in any more, with its folder; does nothing when there is
    /// none of this name.
    ///
    /// # Errors
    /// [`StoreError::Encode`]: there are keys, or records, for it; [`StoreError::Io`].
    pub fn remove_database(&self, name: &str) -> Result<(), StoreError> {
        let _nobody_writes = self.written();
        let mut index = self.index_mut();
        let Some(at) = index.names.get(name).copied() else {
            return Ok(());
        };
        let keyed = database::has_keys(&index.keys, name);
        if keyed || index.inventory.values().any(|(part, _)| *part == at) {
            return Err(StoreError::Encode {
                table: "records",
                why: format!("database {name} cannot be removed: something is in it"),
            });
        }
        let key = index_key(&self.folder, &index.keys)?;
        index.names.remove(name);
        // Places in `parts` stay what they are: this one is empty from now on.
        index.parts[at] = Arc::new(Part {
            storage: Box::new(MemoryStorage::default()),
            sealer: Sealer::new(format!("{name}, which was removed"), &key),
        });
        database::remove(&self.folder, name)
    }

    fn written(&self) -> MutexGuard<'_, Vec<Written>> {
        self.written.lock().unwrap_or_else(poisoned)
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(poisoned)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(poisoned)
    }

    fn parts(&self) -> Vec<Arc<Part>> {
        self.index().parts.clone()
    }

    /// Whoever uses the store has gone back to the beginning with all shards that were set aside.
    pub fn quarantine_handled(&self) -> Result<(), StoreError> {
        let all = self.quarantined();
        all.iter()
            .try_for_each(|q| database::remove_marker(&self.folder, &q.database))
    }

    /// Databases that were damaged when they were opened.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.index().quarantined.clone()
    }

    fn corrupt(&self, why: impl Into<String>) -> StoreError {
        damaged(&self.folder, why)
    }

    /// Applies a batch; when it returns, everything is durable. After an error a shard's part may
    /// have been applied and the main part not.
    pub fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut written = self.written();
        self.settle(&mut written)?;
        let parts = self.parts();
        self.ensure_keys(&batch)?;
        for (part, own) in parts.iter().zip(written.iter_mut()) {
            own.remove_orphans(part)?;
        }
        let staged = self.stage(batch, &written)?;
        // The main database last: what it says was done is done.
        for (at, (mut root, writes)) in staged.parts.into_iter().rev() {
            root.keys = self.index().keys.made();
            written[at].commit(&parts[at], writes, root)?;
            let inventory = &mut self.index_mut().inventory;
            for (id, entry) in &staged.entries {
                let old = inventory.get(id).map(|(p, _)| *p);
                if entry.as_ref().map(|(p, _)| *p).or(old) != Some(at) {
                    continue;
                }
                match entry {
                    Some(e) => drop(inventory.insert(id.clone(), e.clone())),
                    None => drop(inventory.remove(id)),
                }
            }
        }
        Ok(())
    }

    /// Makes the keys that a batch needs, after it is certain that none is missing that may not be
    /// made.
    fn ensure_keys(&self, batch: &Batch) -> Result<(), StoreError> {
        let index = self.index();
        let owners = |absent: Absent| {
            let changes = batch.changes.iter().filter(move |c| c.absent == absent);
            changes.filter_map(|c| Some((c.table, c.value.as_ref()?.0.name.as_str())))
        };
        // A key for records of a database that is not there would look like a loss of them.
        let values = batch.changes.iter().filter_map(|c| c.value.as_ref());
        for (owner, _) in values {
            index.part_of(owner)?;
        }
        let made: Vec<&str> = owners(Absent::Make).map(|(_, name)| name).collect();
        let known: BTreeSet<&str> = made.iter().copied().collect();
        for (table, name) in owners(Absent::Fail) {
            if index.keys.get(name).is_none() && !known.contains(name) {
                return Err(StoreError::NoKey { table });
            }
        }
        // New keys are written to their files while nobody can read: only where there are some.
        if index.keys.has_all(&made) {
            return Ok(());
        }
        drop(index);
        self.index_mut().keys.ensure(&made)
    }

    /// Seals what a batch holds.
    fn stage(&self, batch: Batch, written: &[Written]) -> Result<Staged, StoreError> {
        let index = self.index();
        let mut staged = Staged::default();
        for change in batch.changes {
            let owner = change.value.as_ref().map(|(owner, _)| &owner.name);
            let skips = change.absent == Absent::Skip;
            if skips && owner.is_some_and(|name| index.keys.get(name).is_none()) {
                continue;
            }
            let id = (change.table.to_owned(), change.key.clone());
            let old = staged
                .entries
                .get(&id)
                .cloned()
                .unwrap_or_else(|| index.inventory.get(&id).cloned());
            let target = match &change.value {
                Some((owner, _)) => Some(index.part_of(owner)?),
                None => None,
            };
            if let Some((at, old)) = &old {
                let (root, writes) = staged.part(*at, written);
                root.remove(&old.mark);
                if target != Some(*at) {
                    writes.push((old.raw_key.clone(), None));
                }
            }
            let entry = match (change.value, target) {
                (Some((owner, value)), Some(at)) => {
                    let key = index.keys.get(&owner.name);
                    let key = key.ok_or_else(|| self.corrupt("a key vanished"))?;
                    let sealer = &index.parts[at].sealer;
                    let raw_key = sealer.raw_key(change.table, &change.key);
                    let plain = Plain {
                        table: change.table.into(),
                        key: change.key,
                        value,
                    };
                    let (raw, entry) = sealer.seal_record(key, &raw_key, &plain)?;
                    let (root, writes) = staged.part(at, written);
                    root.add(&entry.mark);
                    writes.push((raw_key, Some(raw)));
                    Some((at, entry))
                }
                _ => None,
            };
            staged.entries.insert(id, entry);
        }
        Ok(staged)
    }

    /// Databases that a failed write left in doubt are opened and read again. Writing does it too.
    pub fn recover(&self) -> Result<(), StoreError> {
        self.settle(&mut self.written())
    }

    fn settle(&self, written: &mut [Written]) -> Result<(), StoreError> {
        let parts = self.parts();
        for (at, own) in written.iter_mut().enumerate() {
            let found = own.settle(&parts[at], &self.index().keys)?;
            if let Some(entries) = found {
                let inventory = &mut self.index_mut().inventory;
                inventory.retain(|_, (p, _)| *p != at);
                inventory.extend(entries.into_iter().map(|(id, e)| (id, (at, e))));
            }
        }
        Ok(())
    }

    /// A record as it is stored, with its key. `None`: there is none, or it is being changed.
    fn raw(&self, id: &Id) -> Result<Option<Raw>, StoreError> {
        let found = self.index().found(id);
        let Some((part, entry)) = found else {
            return Ok(None);
        };
        let Some(bytes) = part.storage.get(&entry.raw_key)? else {
            return Ok(None);
        };
        // The handle that the record carries: after a failed write it may be another than the one
        // that was known.
        let handle = bytes
            .get(..16)
            .and_then(|h| h.try_into().ok())
            .unwrap_or(entry.owner);
        let key = self.index().keys.by_handle(&handle).map(|(_, k)| k.clone());
        Ok(key.map(|key| Raw {
            part,
            entry,
            key,
            bytes,
        }))
    }

    /// The record under `key`.
    pub fn get<T: Persisted>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let id = (T::TABLE.to_owned(), key.to_owned());
        let raw = match self.raw(&id)? {
            Some(raw) => raw,
            None if !self.index().inventory.contains_key(&id) => return Ok(None),
            None => {
                // Somebody is changing it: look again when that has ended.
                let _nobody_writes = self.written();
                match self.raw(&id)? {
                    Some(raw) => raw,
                    None if !self.index().inventory.contains_key(&id) => return Ok(None),
                    None => return Err(self.corrupt("a record, or its key, vanished")),
                }
            }
        };
        let plain = raw
            .part
            .sealer
            .open_record(&raw.key, &raw.entry.raw_key, &raw.bytes)?;
        codec::from_bytes(&plain.value, MAX_RECORD)
            .map(Some)
            .map_err(|e| self.corrupt(e.to_string()))
    }

    /// Keys of a table, in order.
    pub fn keys<T: Persisted>(&self) -> Vec<String> {
        let from = (T::TABLE.to_owned(), String::new());
        self.index()
            .inventory
            .range(from..)
            .take_while(|((t, _), _)| t == T::TABLE)
            .map(|((_, k), _)| k.clone())
            .collect()
    }

    /// All records of a table, in key order.
    pub fn all<T: Persisted>(&self) -> Result<Vec<(String, T)>, StoreError> {
        let keys = self.keys::<T>();
        keys.into_iter()
            .filter_map(|k| self.get(&k).map(|v| Some((k, v?))).transpose())
            .collect()
    }

    /// Destroys keys first (from then on their records cannot be read by anybody), then removes the
    /// records. Returns how many keys existed. After an error it may be repeated until it succeeds.
    pub fn destroy(&self, owners: &[KeyName]) -> Result<usize, StoreError> {
        self.destroy_noting(owners, vec![])
    }

    /// The same, with notes about those who stay, each under the name of a key: in the same step
    /// they are kept with the keys, outside of the folder ([`Self::notes`]). A note goes when a key
    /// of its name is destroyed again.
    pub fn destroy_noting(
        &self,
        owners: &[KeyName],
        notes: Vec<(KeyName, Vec<u8>)>,
    ) -> Result<usize, StoreError> {
        let mut written = self.written();
        let names: Vec<&str> = owners.iter().map(|o| o.name.as_str()).collect();
        let notes = notes.into_iter().map(|(key, note)| (key.name, note));
        let notes: Notes = notes.collect();
        let gone = self.index_mut().keys.destroy(&names, &notes)?;
        self.settle(&mut written)?;
        {
            let mut index = self.index_mut();
            let Index {
                keys, inventory, ..
            } = &mut *index;
            inventory.retain(|_, (at, e)| {
                let alive = keys.by_handle(&e.owner).is_some();
                if !alive {
                    written[*at].orphaned(e.clone());
                }
                alive
            });
        }
        for (part, own) in self.parts().iter().zip(written.iter_mut()) {
            own.remove_orphans(part)?;
        }
        Ok(gone)
    }

    /// Drops the notes under these names.
    ///
    /// # Errors
    /// [`StoreError::Io`]: repeat it.
    pub fn drop_notes(&self, names: &[KeyName]) -> Result<(), StoreError> {
        let _nobody_writes = self.written();
        let names: Vec<&str> = names.iter().map(|n| n.name.as_str()).collect();
        self.index_mut().keys.drop_notes(&names)
    }

    /// Notes about those who stayed when their keys were destroyed, in the order of their names.
    pub fn notes(&self) -> Vec<Vec<u8>> {
        self.index().keys.notes().values().cloned().collect()
    }

    /// Digest over all records, decrypted, in order: two stores with the same digest hold the same.
    pub fn content(&self) -> Result<[u8; 32], StoreError> {
        self.digest(|_| true)
    }

    /// The same over what is in the main database.
    pub fn main_content(&self) -> Result<[u8; 32], StoreError> {
        self.digest(|at| at == 0)
    }

    /// The same over what is in a database with this name.
    pub fn database_content(&self, name: &str) -> Result<[u8; 32], StoreError> {
        let own = self.index().names.get(name).copied();
        self.digest(|at| Some(at) == own)
    }

    fn digest(&self, part: impl Fn(usize) -> bool) -> Result<[u8; 32], StoreError> {
        let mut all = vec![];
        self.see(part, |_, table, key, value| {
            for part in [table.as_bytes(), key.as_bytes(), value] {
                all.extend_from_slice(digest(&SHA256, part).as_ref());
            }
        })?;
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, &all).as_ref());
        Ok(out)
    }

    /// Shows every record, decrypted: class of its key, table, key and value.
    pub fn each(&self, see: impl FnMut(Class, &str, &str, &[u8])) -> Result<(), StoreError> {
        self.see(|_| true, see)
    }

    fn see(
        &self,
        part: impl Fn(usize) -> bool,
        mut see: impl FnMut(Class, &str, &str, &[u8]),
    ) -> Result<(), StoreError> {
        // Nobody writes meanwhile: what is shown is one state.
        let _nobody_writes = self.written();
        let index = self.index();
        for ((table, key), (at, entry)) in index.inventory.iter().filter(|(_, (at, _))| part(*at)) {
            let raw = index.parts[*at].storage.get(&entry.raw_key)?;
            let raw = raw.ok_or_else(|| self.corrupt("a record vanished"))?;
            let owner = index.keys.by_handle(&entry.owner);
            let (name, secret) =
                owner.ok_or_else(|| self.corrupt("the key of a record vanished"))?;
            let plain = index.parts[*at]
                .sealer
                .open_record(secret, &entry.raw_key, &raw)?;
            see(KeyName::class_of(name), table, key, &plain.value);
        }
        Ok(())
    }

    /// Writes all keys under a fresh master key, and destroys the master key of before.
    ///
    /// # Errors
    /// The key source cannot be written; after that it may be repeated.
    pub fn rotate_master(&self) -> Result<(), StoreError> {
        let _nobody_writes = self.written();
        self.index_mut().keys.rotate()
    }

    /// How many of these keys exist.
    pub fn existing(&self, owners: &[KeyName]) -> usize {
        let index = self.index();
        owners
            .iter()
            .filter(|o| index.keys.get(&o.name).is_some())
            .count()
    }
}

/// A stored record and what opens it.
struct Raw {
    part: Arc<Part>,
    entry: Entry,
    key: Key,
    bytes: Vec<u8>,
}

impl Index {
    /// Takes a database in.
    fn add(&mut self, name: Option<&str>, opened: Opened) -> Written {
        let at = self.parts.len();
        self.parts.push(Arc::new(opened.part));
        if let Some(name) = name {
            self.names.insert(name.to_owned(), at);
        }
        let entries = opened.entries.into_iter();
        self.inventory.extend(entries.map(|(id, e)| (id, (at, e))));
        opened.written
    }

    /// The database of an owner's records.
    fn part_of(&self, owner: &KeyName) -> Result<usize, StoreError> {
        let found = match &owner.database {
            None => Some(0),
            Some(name) => self.names.get(name).copied(),
        };
        found.ok_or_else(|| StoreError::Encode {
            table: "records",
            why: format!("there is no database for {}", owner.name),
        })
    }

    fn found(&self, id: &Id) -> Option<(Arc<Part>, Entry)> {
        let (at, entry) = self.inventory.get(id)?;
        Some((self.parts.get(*at)?.clone(), entry.clone()))
    }
}

fn index_key(folder: &Path, keys: &Keyring) -> Result<Key, StoreError> {
    let key = keys.get(INDEX_KEY).cloned();
    key.ok_or_else(|| damaged(folder, "its index key is gone"))
}

/// What a batch does to every database.
#[derive(Default)]
struct Staged {
    parts: BTreeMap<usize, (Root, Vec<Write>)>,
    entries: BTreeMap<Id, Option<(usize, Entry)>>,
}

impl Staged {
    fn part(&mut self, at: usize, written: &[Written]) -> (&mut Root, &mut Vec<Write>) {
        let (root, writes) = self
            .parts
            .entry(at)
            .or_insert_with(|| (written[at].root.next(), vec![]));
        (root, writes)
    }
}

fn damaged(path: &Path, why: impl Into<String>) -> StoreError {
    StoreError::Corrupt {
        name: path.display().to_string(),
        why: why.into(),
    }
}

/// A database that was opened, and what it holds.
pub(crate) struct Opened {
    part: Part,
    written: Written,
    entries: BTreeMap<Id, Entry>,
}

impl Opened {
    pub(crate) fn new(
        storage: Box<dyn Storage>,
        sealer: Sealer,
        head: Head,
        loaded: Loaded,
    ) -> Self {
        let (written, entries) = Written::new(head, loaded);
        Self {
            part: Part { storage, sealer },
            written,
            entries,
        }
    }
}

/// Opens both copies of the main database; the one that is whole and newer makes the other anew.
fn open_main(
    engine: &Engine,
    folder: &Path,
    index: &Key,
    keys: &Keyring,
) -> Result<Opened, StoreError> {
    let sealer = Sealer::new(folder.display().to_string(), index);
    let head_path = folder.join("head");
    let (head, acknowledged) = match Head::open(&head_path, &index.secret) {
        Ok((head, Some(n))) => (head, Acknowledged::AtLeast(n)),
        Ok((head, None)) => (head, Acknowledged::Unknown),
        Err(StoreError::Corrupt { .. }) => (
            Head::create(&head_path, &index.secret)?,
            Acknowledged::Unknown,
        ),
        Err(e) => return Err(e),
    };
    let paths = [folder.join("db"), folder.join("db-copy")];
    let [a, b] = [&paths[0], &paths[1]].map(|path| {
        let storage = engine(path)?;
        let loaded = Loaded::read(storage.as_ref(), &sealer, keys, acknowledged)?;
        Ok::<_, StoreError>((storage, loaded))
    });
    let (first, second, loaded) = match (a, b) {
        (Ok((a, in_a)), Ok((b, in_b))) => {
            let most = in_a.root.writes.max(in_b.root.writes);
            // The crash of a first start may have come between the copies.
            if acknowledged == Acknowledged::Unknown && most > 1 && in_a.root != in_b.root {
                return Err(sealer.corrupt(
                    "the count of its writes is damaged or missing, and its two copies differ",
                ));
            }
            if most == 0
                && keys
                    .iter()
                    .any(|(n, _)| KeyName::class_of(n) != Class::Public && n != INDEX_KEY)
            {
                return Err(sealer.corrupt(NO_RECORDS));
            }
            // The second is written last: where it is newer, the first has lost something.
            if in_b.root.writes > in_a.root.writes {
                (b, a, in_b)
            } else {
                (a, b, in_a)
            }
        }
        (Ok((whole, loaded)), Err(e)) => {
            (whole, remake(engine, &paths[1], e, acknowledged)?, loaded)
        }
        (Err(e), Ok((whole, loaded))) => {
            (whole, remake(engine, &paths[0], e, acknowledged)?, loaded)
        }
        (Err(e), Err(_)) => return Err(e),
    };
    let both = Box::new(Mirror::new(first, second)?);
    let mut opened = Opened::new(both, sealer, head, loaded);
    if acknowledged == Acknowledged::Unknown && opened.written.root.writes > 0 {
        opened.written.recount()?;
    }
    Ok(opened)
}

/// A folder that was lost as a whole, or was to be begun anew.
const NO_RECORDS: &str = "there are keys for its records, and no records: put the data folder back \
                          from its newest backup; to begin anew, remove the folder of its keys too";

/// An empty database in the place of a damaged one.
fn remake(
    engine: &Engine,
    path: &Path,
    why: StoreError,
    acknowledged: Acknowledged,
) -> Result<Box<dyn Storage>, StoreError> {
    if !matches!(why, StoreError::Corrupt { .. }) || acknowledged == Acknowledged::Unknown {
        return Err(why);
    }
    set_aside(path)?;
    engine(path)
}

#[cfg(test)]
mod tests;
