//! Typed records, each sealed under a key that can be destroyed: the main database, which is kept
//! twice, and one database for every shard, so that damage to one takes only what that shard can
//! learn again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use lethe_proto::codec;
use ring::digest::{SHA256, digest};

pub use crate::batch::{Batch, KeyName};
use crate::head::Head;
use crate::keyring::{Key, Keyring};
use crate::mirror::Mirror;
use crate::part::{
    Acknowledged, Entry, Id, Loaded, MAX_RECORD, Part, Plain, Root, Sealer, Written,
};
use crate::{Class, Persisted, Storage, StoreError, Write};

const INDEX_KEY: &str = "store:index";

/// Opens or creates the database in a folder.
pub type Engine = dyn Fn(&Path) -> Result<Box<dyn Storage>, StoreError>;

/// A damaged database that was set aside; its shard starts from nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The shard.
    pub shard: u16,
    /// What was found.
    pub why: String,
}

/// A store of sealed records, to be shared by threads. One writes at a time; the others read
/// meanwhile, and do not wait for the disk.
pub struct SealedStore {
    /// The main database, then those of the shards.
    parts: Vec<Part>,
    /// As `parts`. Whoever writes holds it until the write is durable.
    written: Mutex<Vec<Written>>,
    /// Held for moments. Whoever holds `written` may take it, never the other way round.
    index: RwLock<Index>,
    quarantined: Vec<Quarantined>,
    folder: PathBuf,
}

/// What finds and opens a record.
struct Index {
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
    /// Opens the records of a folder with the keys in it, and checks that none is lost or altered.
    /// What one copy of the main database lost comes from the other. A shard's database that is
    /// damaged is renamed, its keys are destroyed and the shard is empty ([`Self::quarantined`]).
    pub fn open(engine: &Engine, folder: &Path, shards: usize) -> Result<Self, StoreError> {
        let mut keys = Keyring::open(&folder.join("keys"))?;
        keys.ensure(&[INDEX_KEY, "public"])?;
        let index = *keys
            .get(INDEX_KEY)
            .ok_or_else(|| damaged(folder, "its index key is gone"))?;
        let mut store = Opening {
            keys,
            parts: vec![],
            written: vec![],
            inventory: BTreeMap::new(),
        };
        let mut quarantined = vec![];
        let main = open_main(engine, folder, &index, &store.keys)?;
        store.add(main);
        for shard in 0..shards as u16 {
            let path = folder.join("shards").join(shard.to_string());
            let marker = path.with_extension("quarantined");
            let part = match open_shard(engine, &path, shard, &index, &store.keys) {
                Err(StoreError::Corrupt { why, .. }) => {
                    // An engine that cannot start its threads fails like a damaged file: keys go
                    // only if it fails again.
                    std::thread::Builder::new()
                        .spawn(|| ())
                        .map_err(StoreError::io(&path))?;
                    match open_shard(engine, &path, shard, &index, &store.keys) {
                        Err(StoreError::Corrupt { .. }) => {}
                        other => {
                            store.add(other?);
                            continue;
                        }
                    }
                    // Until whoever uses the store has gone back with the shard, every opening says
                    // so.
                    write_marker(&marker, &why)?;
                    set_aside(&path)?;
                    store.forget_shard(shard)?;
                    quarantined.push(Quarantined { shard, why });
                    open_shard(engine, &path, shard, &index, &store.keys)?
                }
                other => {
                    if let Ok(why) = std::fs::read_to_string(&marker) {
                        quarantined.push(Quarantined { shard, why });
                    }
                    other?
                }
            };
            store.add(part);
        }
        for (part, written) in store.parts.iter().zip(&mut store.written) {
            written.remove_orphans(part)?;
        }
        Ok(Self {
            parts: store.parts,
            written: Mutex::new(store.written),
            index: RwLock::new(Index {
                keys: store.keys,
                inventory: store.inventory,
            }),
            quarantined,
            folder: folder.to_owned(),
        })
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

    /// Whoever uses the store has gone back to the beginning with all shards that were set aside.
    pub fn quarantine_handled(&self) -> Result<(), StoreError> {
        for q in &self.quarantined {
            let marker = self
                .folder
                .join("shards")
                .join(format!("{}.quarantined", q.shard));
            match std::fs::remove_file(&marker) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::io(&marker)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Databases that were damaged when the store was opened.
    pub fn quarantined(&self) -> &[Quarantined] {
        &self.quarantined
    }

    fn corrupt(&self, why: impl Into<String>) -> StoreError {
        damaged(&self.folder, why)
    }

    /// The database of an owner's records.
    fn part_of(&self, owner: &KeyName) -> Result<usize, StoreError> {
        let at = owner.shard.map_or(0, |s| usize::from(s) + 1);
        let encode = || StoreError::Encode {
            table: "records",
            why: format!("there is no {}", owner.name),
        };
        (at < self.parts.len()).then_some(at).ok_or_else(encode)
    }

    /// Applies a batch; when it returns, everything is durable. After an error a shard's part may
    /// have been applied and the main part not.
    pub fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut written = self.written();
        self.settle(&mut written)?;
        self.ensure_keys(&batch)?;
        for (part, own) in self.parts.iter().zip(written.iter_mut()) {
            own.remove_orphans(part)?;
        }
        let staged = self.stage(batch, &written)?;
        // The main database last: what it says was done is done.
        for (at, (mut root, writes)) in staged.parts.into_iter().rev() {
            root.keys = self.index().keys.made();
            written[at].commit(&self.parts[at], writes, root)?;
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

    fn ensure_keys(&self, batch: &Batch) -> Result<(), StoreError> {
        let needed = batch.changes.iter().filter(|c| !c.existing);
        let values = needed.filter_map(|c| c.value.as_ref());
        let owners: Vec<&str> = values.map(|(owner, _)| owner.name.as_str()).collect();
        // New keys are written to their files while nobody can read: only where there are some.
        if self.index().keys.has_all(&owners) {
            return Ok(());
        }
        self.index_mut().keys.ensure(&owners)
    }

    /// Seals what a batch holds.
    fn stage(&self, batch: Batch, written: &[Written]) -> Result<Staged, StoreError> {
        let index = self.index();
        let mut staged = Staged::default();
        for change in batch.changes {
            let owner = change.value.as_ref().map(|(owner, _)| &owner.name);
            if change.existing && owner.is_some_and(|name| index.keys.get(name).is_none()) {
                continue;
            }
            let id = (change.table.to_owned(), change.key.clone());
            let old = staged
                .entries
                .get(&id)
                .cloned()
                .unwrap_or_else(|| index.inventory.get(&id).cloned());
            let target = match &change.value {
                Some((owner, _)) => Some(self.part_of(owner)?),
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
                    let sealer = &self.parts[at].sealer;
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
        for (at, own) in written.iter_mut().enumerate() {
            let found = own.settle(&self.parts[at], &self.index().keys)?;
            if let Some(entries) = found {
                let inventory = &mut self.index_mut().inventory;
                inventory.retain(|_, (p, _)| *p != at);
                inventory.extend(entries.into_iter().map(|(id, e)| (id, (at, e))));
            }
        }
        Ok(())
    }

    /// A record as it is stored, with its key. `None`: there is none, or it is being changed.
    fn raw(&self, id: &Id) -> Result<Option<Raw<'_>>, StoreError> {
        let found = self.index().inventory.get(id).cloned();
        let Some((at, entry)) = found else {
            return Ok(None);
        };
        let part = &self.parts[at];
        let Some(bytes) = part.storage.get(&entry.raw_key)? else {
            return Ok(None);
        };
        // The handle that the record carries: after a failed write it may be another than the one
        // that was known.
        let handle = bytes
            .get(..16)
            .and_then(|h| h.try_into().ok())
            .unwrap_or(entry.owner);
        let key = self.index().keys.by_handle(&handle).map(|(_, k)| *k);
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
        let mut written = self.written();
        let names: Vec<&str> = owners.iter().map(|o| o.name.as_str()).collect();
        let gone = self.index_mut().keys.destroy(&names)?;
        self.settle(&mut written)?;
        {
            let mut index = self.index_mut();
            let Index { keys, inventory } = &mut *index;
            inventory.retain(|_, (at, e)| {
                let alive = keys.by_handle(&e.owner).is_some();
                if !alive {
                    written[*at].orphaned(e.clone());
                }
                alive
            });
        }
        for (part, own) in self.parts.iter().zip(written.iter_mut()) {
            own.remove_orphans(part)?;
        }
        Ok(gone)
    }

    /// Digest over all records, decrypted, in order: two stores with the same digest hold the same.
    pub fn content(&self) -> Result<[u8; 32], StoreError> {
        self.digest(|_| true)
    }

    /// The same over what is in the main database.
    pub fn main_content(&self) -> Result<[u8; 32], StoreError> {
        self.digest(|at| at == 0)
    }

    /// The same over what is in a shard's database.
    pub fn shard_content(&self, shard: u16) -> Result<[u8; 32], StoreError> {
        self.digest(|at| at == usize::from(shard) + 1)
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
            let raw = self.parts[*at].storage.get(&entry.raw_key)?;
            let raw = raw.ok_or_else(|| self.corrupt("a record vanished"))?;
            let owner = index.keys.by_handle(&entry.owner);
            let (name, secret) =
                owner.ok_or_else(|| self.corrupt("the key of a record vanished"))?;
            let plain = self.parts[*at]
                .sealer
                .open_record(secret, &entry.raw_key, &raw)?;
            see(KeyName::class_of(name), table, key, &plain.value);
        }
        Ok(())
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
struct Raw<'a> {
    part: &'a Part,
    entry: Entry,
    key: Key,
    bytes: Vec<u8>,
}

/// What a store is made of, while it is being opened.
struct Opening {
    keys: Keyring,
    parts: Vec<Part>,
    written: Vec<Written>,
    inventory: BTreeMap<Id, (usize, Entry)>,
}

impl Opening {
    fn add(&mut self, opened: Opened) {
        let at = self.parts.len();
        self.parts.push(opened.part);
        self.written.push(opened.written);
        let entries = opened.entries.into_iter();
        self.inventory.extend(entries.map(|(id, e)| (id, (at, e))));
    }

    /// Destroys all keys of a shard: what a damaged database still holds is unreadable.
    fn forget_shard(&mut self, shard: u16) -> Result<(), StoreError> {
        let prefix = KeyName::shard_prefix(shard);
        let names: Vec<String> = self
            .keys
            .iter()
            .map(|(n, _)| n.clone())
            .filter(|n| n.starts_with(&prefix))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.keys.destroy(&names).map(drop)
    }
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
struct Opened {
    part: Part,
    written: Written,
    entries: BTreeMap<Id, Entry>,
}

impl Opened {
    fn new(storage: Box<dyn Storage>, sealer: Sealer, head: Head, loaded: Loaded) -> Self {
        let (written, entries) = Written::new(head, loaded);
        Self {
            part: Part { storage, sealer },
            written,
            entries,
        }
    }
}

fn open_shard(
    engine: &Engine,
    path: &Path,
    shard: u16,
    index: &Key,
    keys: &Keyring,
) -> Result<Opened, StoreError> {
    std::fs::create_dir_all(path).map_err(StoreError::io(path))?;
    let sealer = Sealer::new(path.display().to_string(), index);
    let (mut head, count) = Head::open(&path.join("head"), &index.secret)?;
    let prefix = KeyName::shard_prefix(shard);
    if count.is_none() && keys.iter().any(|(n, _)| n.starts_with(&prefix)) {
        return Err(sealer.corrupt("there are keys for its records, and no records"));
    }
    if count.is_none() {
        // From here on keys without records are not yet a loss: a kill may come between them.
        head.set(0)?;
    }
    let storage = engine(&path.join("db"))?;
    let acknowledged = count
        .filter(|n| *n > 0)
        .map_or(Acknowledged::None, Acknowledged::AtLeast);
    let loaded = Loaded::read(storage.as_ref(), &sealer, keys, acknowledged)?;
    Ok(Opened::new(storage, sealer, head, loaded))
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
                return Err(sealer.corrupt("there are keys for its records, and no records"));
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

fn write_marker(path: &Path, why: &str) -> Result<(), StoreError> {
    let file = std::fs::File::create(path).map_err(StoreError::io(path))?;
    let write = |mut f: std::fs::File| {
        std::io::Write::write_all(&mut f, why.as_bytes()).and_then(|()| f.sync_all())
    };
    write(file).map_err(StoreError::io(path))
}

/// Renames a damaged folder to `NAME.damaged`, in place of an earlier one. It is for people to look
/// at; nothing reads it.
fn set_aside(path: &Path) -> Result<(), StoreError> {
    let to = path.with_extension("damaged");
    let gone = |r: std::io::Result<()>| match r {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    gone(std::fs::remove_dir_all(&to)).map_err(StoreError::io(&to))?;
    gone(std::fs::rename(path, &to)).map_err(StoreError::io(path))
}

#[cfg(test)]
mod tests;
