//! Typed records, each sealed under a key that can be destroyed, with an authenticated inventory of all of them.

use std::collections::BTreeMap;
use std::path::Path;

use lethe_proto::codec;
use lethe_seal::{seal, unseal};
use ring::digest::{SHA256, digest};
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::head::Head;
use crate::keyring::{Key, Keyring};
use crate::{Class, Persisted, Storage, StoreError, Write};

/// Largest record, in bytes.
const MAX_RECORD: usize = 256 << 20;
const ROOT: &[u8] = b"root";
const INDEX_KEY: &str = "store:index";

/// The name of a key: whose data it seals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyName {
    name: String,
    class: Class,
}

impl KeyName {
    /// A subject's key.
    pub fn subject(id: &str) -> Self {
        Self { name: format!("subject:{id}"), class: Class::Subject }
    }

    /// A key for what was derived from a shard's subjects, such as one checkpoint.
    pub fn shard(name: &str) -> Self {
        Self { name: format!("shard:{name}"), class: Class::Shard }
    }

    /// The key of one deletion's request and receipt.
    pub fn evidence(deletion: u64) -> Self {
        Self { name: format!("evidence:{deletion}"), class: Class::Evidence }
    }

    /// The key of one other piece of evidence, such as a proposal.
    pub fn evidence_of(name: &str) -> Self {
        Self { name: format!("evidence:{name}"), class: Class::Evidence }
    }

    fn class_of(name: &str) -> Class {
        match name.split(':').next() {
            Some("subject") => Class::Subject,
            Some("shard") => Class::Shard,
            Some("evidence") => Class::Evidence,
            _ => Class::Public,
        }
    }

    /// The key of public records.
    pub fn public() -> Self {
        Self { name: "public".into(), class: Class::Public }
    }
}

/// Changes that are applied together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    writes: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    table: &'static str,
    key: String,
    value: Option<(KeyName, Vec<u8>)>,
}

impl Batch {
    /// No change yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores `value` under `key`, sealed with `owner`'s key, whose class must be the type's.
    pub fn put<T: Persisted>(mut self, owner: &KeyName, key: &str, value: &T) -> Result<Self, StoreError> {
        let encode = |why: String| StoreError::Encode { table: T::TABLE, why };
        if owner.class != T::CLASS {
            return Err(encode(format!("it is of class {:?}, the key of {:?}", T::CLASS, owner.class)));
        }
        let bytes = codec::to_bytes(value).map_err(|e| encode(e.to_string()))?;
        self.writes.push(Change { table: T::TABLE, key: key.to_owned(), value: Some((owner.clone(), bytes)) });
        Ok(self)
    }

    /// Deletes a record.
    pub fn delete<T: Persisted>(mut self, key: &str) -> Self {
        self.writes.push(Change { table: T::TABLE, key: key.to_owned(), value: None });
        self
    }
}

/// What is known about a stored record without opening it.
#[derive(Clone, Debug)]
struct Entry {
    raw_key: Vec<u8>,
    mark: [u8; 32],
    owner: [u8; 16],
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Root {
    count: u64,
    mark: [u8; 32],
    /// Writes so far: an older database is a consistent one, this tells it apart.
    writes: u64,
}

#[derive(Serialize, Deserialize)]
struct Plain {
    table: String,
    key: String,
    value: Vec<u8>,
}

/// A store of sealed records.
pub struct SealedStore {
    storage: Box<dyn Storage>,
    keys: Keyring,
    inventory: BTreeMap<(String, String), Entry>,
    /// Records whose key is gone and that are still to be removed: `(raw key, mark)`.
    orphans: Vec<(Vec<u8>, [u8; 32])>,
    root: Root,
    head: Head,
    /// A write failed: whether the database has it will be seen before the next one.
    doubt: bool,
    name: String,
}

impl std::fmt::Debug for SealedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealedStore({}, {} records)", self.name, self.root.count)
    }
}

impl SealedStore {
    /// Opens the records in `storage` with the keys in `folder`, and checks that none is lost or altered.
    pub fn open(storage: Box<dyn Storage>, folder: &Path) -> Result<Self, StoreError> {
        let mut keys = Keyring::open(&folder.join("keys"))?;
        keys.ensure(&[INDEX_KEY, "public"])?;
        let name = folder.display().to_string();
        let root = Root { count: 0, mark: [0; 32], writes: 0 };
        let secret = keys.get(INDEX_KEY).map(|k| k.secret).unwrap_or_default();
        let (head, acknowledged) = Head::open(&folder.join("head"), &secret)?;
        let mut store =
            Self { storage, keys, inventory: BTreeMap::new(), orphans: vec![], root, head, doubt: false, name };
        store.load(acknowledged)?;
        Ok(store)
    }

    fn corrupt(&self, why: impl Into<String>) -> StoreError {
        StoreError::Corrupt { name: self.name.clone(), why: why.into() }
    }

    fn index_key(&self) -> Result<&Key, StoreError> {
        self.keys.get(INDEX_KEY).ok_or_else(|| self.corrupt("its index key is gone"))
    }

    fn load(&mut self, acknowledged: Option<u64>) -> Result<(), StoreError> {
        let by_handle: BTreeMap<[u8; 16], Key> = self.keys.iter().map(|(_, k)| (k.handle, *k)).collect();
        let mut found = Root { count: 0, mark: [0; 32], writes: 0 };
        let mut root = None;
        for (raw_key, raw) in self.storage.scan()? {
            if raw_key == ROOT {
                root = Some(raw);
                continue;
            }
            let mark = self.mark(&raw_key, &raw)?;
            found.count += 1;
            xor(&mut found.mark, &mark);
            let owner: [u8; 16] =
                raw.get(..16).and_then(|h| h.try_into().ok()).ok_or_else(|| self.corrupt("a short record"))?;
            // A key that is gone was destroyed: a crash came between that and the removal of its records.
            let Some(key) = by_handle.get(&owner) else {
                self.orphans.push((raw_key, mark));
                continue;
            };
            let plain = self.open_record(key, &raw_key, &raw)?;
            self.inventory.insert((plain.table, plain.key), Entry { raw_key, mark, owner });
        }
        match root {
            None if found.count == 0 && acknowledged.is_none() => return Ok(()),
            None => return Err(self.corrupt("its inventory is missing")),
            Some(raw) => {
                let plain = unseal(&self.index_key()?.secret, ROOT, &raw)
                    .ok_or_else(|| self.corrupt("its inventory is altered"))?;
                let want: Root = codec::from_bytes(&plain, 256).map_err(|e| self.corrupt(e.to_string()))?;
                found.writes = want.writes;
                if want != found {
                    return Err(
                        self.corrupt(format!("{} records of {}, or some were altered", found.count, want.count))
                    );
                }
            }
        }
        match acknowledged {
            // The crash came before the first write was acknowledged.
            None if found.writes <= 1 => {}
            None => return Err(self.corrupt("the file `head`, which counts its writes, is missing")),
            Some(n) if found.writes < n => {
                let lost = n - found.writes;
                return Err(self.corrupt(format!("its last {lost} of {n} acknowledged writes are lost")));
            }
            Some(_) => {}
        }
        self.root = found;
        self.remove_orphans()
    }

    fn mark(&self, raw_key: &[u8], raw: &[u8]) -> Result<[u8; 32], StoreError> {
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &self.index_key()?.secret);
        let data = [raw_key, digest(&SHA256, raw).as_ref()].concat();
        let mut out = [0; 32];
        out.copy_from_slice(hmac::sign(&mac, &data).as_ref());
        Ok(out)
    }

    fn open_record(&self, key: &Key, raw_key: &[u8], raw: &[u8]) -> Result<Plain, StoreError> {
        let plain =
            unseal(&key.secret, raw_key, &raw[16..]).ok_or_else(|| self.corrupt("a record is altered or was moved"))?;
        codec::from_bytes(&plain, MAX_RECORD).map_err(|e| self.corrupt(e.to_string()))
    }

    /// Names nobody: a keyed hash of table and key.
    fn raw_key(&self, table: &str, key: &str) -> Result<Vec<u8>, StoreError> {
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &self.index_key()?.secret);
        Ok(hmac::sign(&mac, format!("{table}\0{key}").as_bytes()).as_ref()[..20].to_vec())
    }

    fn root_write(&self, root: &Root) -> Result<Write, StoreError> {
        let plain = codec::to_bytes(root).map_err(|e| StoreError::Encode { table: "root", why: e.to_string() })?;
        Ok((ROOT.to_vec(), Some(seal(&self.index_key()?.secret, ROOT, &plain)?)))
    }

    /// Applies a batch; when it returns, everything is durable.
    pub fn write(&mut self, batch: Batch) -> Result<(), StoreError> {
        self.settle()?;
        self.remove_orphans()?;
        let owners: Vec<&str> = batch.writes.iter().filter_map(|c| Some(c.value.as_ref()?.0.name.as_str())).collect();
        self.keys.ensure(&owners)?;
        let mut root = Root { count: self.root.count, mark: self.root.mark, writes: self.root.writes + 1 };
        let mut staged: BTreeMap<(String, String), Option<Entry>> = BTreeMap::new();
        let mut writes: Vec<Write> = vec![];
        for change in batch.writes {
            let id = (change.table.to_owned(), change.key.clone());
            let raw_key = self.raw_key(change.table, &change.key)?;
            let old = staged.get(&id).cloned().unwrap_or_else(|| self.inventory.get(&id).cloned());
            if let Some(old) = &old {
                root.count -= 1;
                xor(&mut root.mark, &old.mark);
            }
            let entry = match change.value {
                None => {
                    writes.push((raw_key, None));
                    None
                }
                Some((owner, value)) => {
                    let key = *self.keys.get(&owner.name).ok_or_else(|| self.corrupt("a key vanished"))?;
                    let plain = Plain { table: change.table.into(), key: change.key, value };
                    let plain = codec::to_bytes(&plain)
                        .map_err(|e| StoreError::Encode { table: change.table, why: e.to_string() })?;
                    let raw = [&key.handle[..], &seal(&key.secret, &raw_key, &plain)?].concat();
                    let mark = self.mark(&raw_key, &raw)?;
                    root.count += 1;
                    xor(&mut root.mark, &mark);
                    writes.push((raw_key.clone(), Some(raw)));
                    Some(Entry { raw_key, mark, owner: key.handle })
                }
            };
            staged.insert(id, entry);
        }
        writes.push(self.root_write(&root)?);
        self.apply(&writes)?;
        self.root = root;
        for (id, entry) in staged {
            match entry {
                Some(e) => self.inventory.insert(id, e),
                None => self.inventory.remove(&id),
            };
        }
        self.head.set(self.root.writes)
    }

    fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        self.doubt = true;
        self.storage.apply(writes)?;
        self.doubt = false;
        Ok(())
    }

    /// After a failed write the database may hold it or not (an engine may have taken it and failed to sync): what it holds
    /// is read again.
    fn settle(&mut self) -> Result<(), StoreError> {
        if self.doubt {
            let acknowledged = Some(self.root.writes).filter(|n| *n > 0);
            (self.inventory, self.orphans) = (BTreeMap::new(), vec![]);
            self.doubt = false;
            if let Err(e) = self.load(acknowledged) {
                self.doubt = true;
                return Err(e);
            }
        }
        Ok(())
    }

    /// The record under `key`.
    pub fn get<T: Persisted>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let Some(entry) = self.inventory.get(&(T::TABLE.to_owned(), key.to_owned())) else { return Ok(None) };
        let raw = self.storage.get(&entry.raw_key)?.ok_or_else(|| self.corrupt("a record vanished"))?;
        // The handle that the record carries: after a failed write it may be another than the one that was known.
        let handle = raw.get(..16).and_then(|h| h.try_into().ok()).unwrap_or(entry.owner);
        let key = self.keys.by_handle(&handle).map(|(_, k)| *k);
        let key = key.ok_or_else(|| self.corrupt("the key of a record vanished"))?;
        let plain = self.open_record(&key, &entry.raw_key, &raw)?;
        codec::from_bytes(&plain.value, MAX_RECORD).map(Some).map_err(|e| self.corrupt(e.to_string()))
    }

    /// Keys of a table, in order.
    pub fn keys<T: Persisted>(&self) -> Vec<String> {
        let from = (T::TABLE.to_owned(), String::new());
        self.inventory.range(from..).take_while(|((t, _), _)| t == T::TABLE).map(|((_, k), _)| k.clone()).collect()
    }

    /// All records of a table, in key order.
    pub fn all<T: Persisted>(&self) -> Result<Vec<(String, T)>, StoreError> {
        let keys = self.keys::<T>();
        keys.into_iter().filter_map(|k| self.get(&k).map(|v| Some((k, v?))).transpose()).collect()
    }

    /// Destroys keys first (from then on their records cannot be read by anybody), then removes the records.
    /// Returns how many keys existed. After an error it may be repeated until it succeeds.
    pub fn destroy(&mut self, owners: &[KeyName]) -> Result<usize, StoreError> {
        let names: Vec<&str> = owners.iter().map(|o| o.name.as_str()).collect();
        let gone = self.keys.destroy(&names)?;
        self.settle()?;
        let dead: Vec<(String, String)> = self
            .inventory
            .iter()
            .filter(|(_, e)| self.keys.by_handle(&e.owner).is_none())
            .map(|(id, _)| id.clone())
            .collect();
        self.orphans.extend(dead.iter().filter_map(|id| self.inventory.remove(id)).map(|e| (e.raw_key, e.mark)));
        self.remove_orphans()?;
        Ok(gone)
    }

    /// Digest over all records, decrypted, in order: two stores with the same digest hold the same.
    pub fn content(&self) -> Result<[u8; 32], StoreError> {
        let mut all = vec![];
        self.each(|_, table, key, value| {
            for part in [table.as_bytes(), key.as_bytes(), value] {
                all.extend_from_slice(digest(&SHA256, part).as_ref());
            }
        })?;
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, &all).as_ref());
        Ok(out)
    }

    /// Shows every record, decrypted: class of its key, table, key and value.
    pub fn each(&self, mut see: impl FnMut(Class, &str, &str, &[u8])) -> Result<(), StoreError> {
        for ((table, key), entry) in &self.inventory {
            let raw = self.storage.get(&entry.raw_key)?.ok_or_else(|| self.corrupt("a record vanished"))?;
            let owner = self.keys.by_handle(&entry.owner);
            let (name, secret) = owner.ok_or_else(|| self.corrupt("the key of a record vanished"))?;
            let plain = self.open_record(secret, &entry.raw_key, &raw)?;
            see(KeyName::class_of(name), table, key, &plain.value);
        }
        Ok(())
    }

    /// How many of these keys exist.
    pub fn existing(&self, owners: &[KeyName]) -> usize {
        owners.iter().filter(|o| self.keys.get(&o.name).is_some()).count()
    }

    fn remove_orphans(&mut self) -> Result<(), StoreError> {
        if self.orphans.is_empty() {
            return Ok(());
        }
        let count = self.root.count - self.orphans.len() as u64;
        let mut root = Root { count, mark: self.root.mark, writes: self.root.writes + 1 };
        self.orphans.iter().for_each(|(_, m)| xor(&mut root.mark, m));
        let mut writes: Vec<Write> = self.orphans.iter().map(|(k, _)| (k.clone(), None)).collect();
        writes.push(self.root_write(&root)?);
        self.apply(&writes)?;
        self.root = root;
        self.orphans.clear();
        self.head.set(self.root.writes)
    }
}

fn xor(a: &mut [u8; 32], b: &[u8; 32]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sled_backend::SledStorage;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Row(String);
    impl Persisted for Row {
        const TABLE: &'static str = "rows";
        const CLASS: Class = Class::Subject;
    }

    fn open(dir: &Path) -> Result<SealedStore, StoreError> {
        SealedStore::open(Box::new(SledStorage::open(&dir.join("db"))?), dir)
    }

    fn filled(dir: &Path) -> SealedStore {
        let mut s = open(dir).expect("opens");
        for i in 0..5 {
            let owner = KeyName::subject(&format!("canary-{}", i % 2));
            let b = Batch::new().put(&owner, &i.to_string(), &Row(format!("secret-{i}"))).expect("encodes");
            s.write(b).expect("writes");
        }
        s
    }

    #[test]
    fn destroying_a_key_takes_exactly_its_records() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut s = filled(dir.path());
        assert_eq!(s.destroy(&[KeyName::subject("canary-1")]).expect("destroys"), 1);
        assert_eq!(s.keys::<Row>(), ["0", "2", "4"]);
        drop(s);
        let s = open(dir.path()).expect("opens");
        assert_eq!(s.all::<Row>().expect("reads").len(), 3);
    }

    #[test]
    fn no_identifier_or_content_is_on_disk_in_clear() {
        let dir = tempfile::tempdir().expect("tempdir");
        drop(filled(dir.path()));
        let mut stack = vec![dir.path().to_owned()];
        while let Some(p) = stack.pop() {
            if p.is_dir() {
                stack.extend(std::fs::read_dir(&p).expect("reads").map(|e| e.expect("entry").path()));
            } else {
                let text = String::from_utf8_lossy(&std::fs::read(&p).expect("reads")).into_owned();
                assert!(!text.contains("canary") && !text.contains("secret-"), "{}", p.display());
            }
        }
    }

    #[test]
    fn loss_swap_and_alteration_are_errors() {
        let dir = tempfile::tempdir().expect("tempdir");
        drop(filled(dir.path()));
        let mut raw = SledStorage::open(&dir.path().join("db")).expect("opens");
        let records: Vec<_> = raw.scan().expect("scans").into_iter().filter(|(k, _)| k != ROOT).collect();
        let (a, b) = (records[0].clone(), records[1].clone());
        let mut flipped = a.1.clone();
        flipped[30] ^= 1;
        let damages: [Vec<Write>; 3] = [
            vec![(a.0.clone(), None)],
            vec![(a.0.clone(), Some(b.1.clone())), (b.0.clone(), Some(a.1.clone()))],
            vec![(a.0.clone(), Some(flipped))],
        ];
        for damage in damages {
            raw.apply(&damage).expect("writes");
            drop(raw);
            assert!(matches!(open(dir.path()), Err(StoreError::Corrupt { .. })), "{damage:?}");
            raw = SledStorage::open(&dir.path().join("db")).expect("opens");
            raw.apply(&[(a.0.clone(), Some(a.1.clone())), (b.0.clone(), Some(b.1.clone()))]).expect("restores");
        }
        drop(raw);
        assert!(open(dir.path()).is_ok());
    }

    #[test]
    fn an_older_database_is_an_error_and_a_crash_before_the_count_is_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut s = filled(dir.path());
        let head = std::fs::read(dir.path().join("head")).expect("reads");
        let old = s.storage.scan().expect("scans");
        s.write(Batch::new().put(&KeyName::subject("x"), "9", &Row("late".into())).expect("encodes")).expect("writes");
        drop(s);
        // The count is behind the database: the crash came between them, before the write was acknowledged.
        let now = std::fs::read(dir.path().join("head")).expect("reads");
        std::fs::write(dir.path().join("head"), head).expect("writes");
        assert_eq!(open(dir.path()).expect("opens").keys::<Row>().len(), 6);
        // The database is behind the count: an acknowledged write is lost.
        std::fs::write(dir.path().join("head"), &now).expect("writes");
        std::fs::remove_dir_all(dir.path().join("db")).expect("removes");
        let mut raw = SledStorage::open(&dir.path().join("db")).expect("opens");
        raw.apply(&old.into_iter().map(|(k, v)| (k, Some(v))).collect::<Vec<_>>()).expect("writes");
        drop(raw);
        assert!(matches!(open(dir.path()), Err(StoreError::Corrupt { .. })));
        std::fs::remove_dir_all(dir.path().join("db")).expect("removes");
        assert!(matches!(open(dir.path()), Err(StoreError::Corrupt { .. })), "empty");
        std::fs::write(dir.path().join("head"), &now[1..]).expect("writes");
        assert!(matches!(open(dir.path()), Err(StoreError::Corrupt { .. })), "a damaged count");
    }

    #[test]
    fn a_crash_between_key_and_records_is_finished_at_open() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut s = filled(dir.path());
        s.keys.destroy(&["subject:canary-0"]).expect("destroys");
        drop(s);
        let s = open(dir.path()).expect("opens");
        assert_eq!(s.keys::<Row>(), ["1", "3"]);
    }

    /// Fails every write while told to.
    struct Flaky(SledStorage, std::sync::Arc<std::sync::atomic::AtomicBool>);
    impl Storage for Flaky {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.0.get(key)
        }
        fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
            if self.1.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(StoreError::Backend("no space".into()));
            }
            self.0.apply(writes)
        }
        fn scan(&self) -> Result<Vec<crate::Record>, StoreError> {
            self.0.scan()
        }
    }

    #[test]
    fn a_failed_removal_is_finished_by_the_next_change() {
        use std::sync::atomic::Ordering::Relaxed;
        let dir = tempfile::tempdir().expect("tempdir");
        let fail = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let sled = SledStorage::open(&dir.path().join("db")).expect("opens");
        let mut s = SealedStore::open(Box::new(Flaky(sled, fail.clone())), dir.path()).expect("opens");
        let put = |s: &mut SealedStore, id: &str| {
            let b = Batch::new().put(&KeyName::subject("x"), id, &Row("secret".into())).expect("encodes");
            s.write(b)
        };
        put(&mut s, "1").expect("writes");
        fail.store(true, Relaxed);
        assert!(s.destroy(&[KeyName::subject("x")]).is_err() && put(&mut s, "1").is_err());
        fail.store(false, Relaxed);
        put(&mut s, "1").expect("writes again, under a new key");
        drop(s);
        assert_eq!(open(dir.path()).expect("not damaged").keys::<Row>(), ["1"]);
    }

    /// Takes every write and says that it failed, while told to: a sync that failed after the fact.
    struct Liar(SledStorage, std::sync::Arc<std::sync::atomic::AtomicBool>);
    impl Storage for Liar {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.0.get(key)
        }
        fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
            self.0.apply(writes)?;
            match self.1.load(std::sync::atomic::Ordering::Relaxed) {
                true => Err(StoreError::Backend("no sync".into())),
                false => Ok(()),
            }
        }
        fn scan(&self) -> Result<Vec<crate::Record>, StoreError> {
            self.0.scan()
        }
    }

    #[test]
    fn a_write_that_failed_after_the_fact_does_not_damage_the_store() {
        use std::sync::atomic::Ordering::Relaxed;
        let dir = tempfile::tempdir().expect("tempdir");
        let fail = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let sled = SledStorage::open(&dir.path().join("db")).expect("opens");
        let mut s = SealedStore::open(Box::new(Liar(sled, fail.clone())), dir.path()).expect("opens");
        let put = |s: &mut SealedStore, owner: &str, id: &str| {
            s.write(Batch::new().put(&KeyName::subject(owner), id, &Row(format!("{owner}'s"))).expect("encodes"))
        };
        put(&mut s, "x", "1").expect("writes");
        fail.store(true, Relaxed);
        assert!(put(&mut s, "y", "1").is_err() && put(&mut s, "x", "2").is_err());
        assert!(s.destroy(&[KeyName::subject("y")]).is_err());
        assert!(s.get::<Row>("2").expect("readable").is_some());
        fail.store(false, Relaxed);
        put(&mut s, "z", "3").expect("writes");
        let want = s.content().expect("reads");
        drop(s);
        let s = open(dir.path()).expect("not damaged");
        assert_eq!((s.content().expect("reads"), s.keys::<Row>()), (want, vec!["2".to_owned(), "3".to_owned()]));
    }

    #[test]
    fn a_record_cannot_be_sealed_under_a_key_of_another_class() {
        assert!(Batch::new().put(&KeyName::public(), "1", &Row("x".into())).is_err());
    }
}
