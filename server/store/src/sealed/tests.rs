use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::*;
use crate::Record;
use crate::memory::MemoryStorage;
use crate::sled_backend::SledStorage;

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Row(String);
impl Persisted for Row {
    const TABLE: &'static str = "rows";
    const CLASS: Class = Class::Subject;
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Learned(u32);
impl Persisted for Learned {
    const TABLE: &'static str = "learned";
    const CLASS: Class = Class::Shard;
}

fn names() -> [String; 2] {
    ["0", "1"].map(str::to_owned)
}

fn open(dir: &Path) -> Result<SealedStore, StoreError> {
    SealedStore::open(&SledStorage::engine, dir, &names())
}

fn put(s: &mut SealedStore, owner: &str, id: &str) -> Result<(), StoreError> {
    s.write(
        Batch::new()
            .put(
                &KeyName::subject(owner),
                id,
                &Row(format!("secret-{owner}")),
            )
            .expect("encodes"),
    )
}

fn quarantined(s: &SealedStore) -> Vec<String> {
    let all = s.quarantined().into_iter();
    all.map(|q| q.database).collect()
}

fn filled(dir: &Path) -> SealedStore {
    let mut s = open(dir).expect("opens");
    for i in 0..5 {
        put(&mut s, &format!("canary-{}", i % 2), &i.to_string()).expect("writes");
    }
    for shard in [0, 1] {
        let b = Batch::new()
            .put(
                &KeyName::stage(&shard.to_string(), "1"),
                &shard.to_string(),
                &Learned(7),
            )
            .expect("encodes");
        s.write(b).expect("writes");
    }
    s
}

fn rows(path: &Path) -> Vec<Record> {
    SledStorage::open(path)
        .expect("opens")
        .scan()
        .expect("scans")
}

#[test]
fn destroying_a_key_takes_exactly_its_records() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut s = filled(dir.path());
    assert_eq!(
        s.destroy(&[KeyName::subject("canary-1"), KeyName::stage("1", "1")])
            .expect("destroys"),
        2
    );
    for _ in 0..2 {
        assert_eq!(
            (s.keys::<Row>(), s.keys::<Learned>()),
            (vec!["0".into(), "2".into(), "4".into()], vec!["0".into()])
        );
        drop(s);
        s = open(dir.path()).expect("opens");
    }
    assert_eq!(s.all::<Row>().expect("reads").len(), 3);
}

#[test]
fn no_identifier_or_content_is_on_disk_in_clear() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path()));
    let mut stack = vec![dir.path().to_owned()];
    while let Some(p) = stack.pop() {
        if p.is_dir() {
            stack.extend(
                std::fs::read_dir(&p)
                    .expect("reads")
                    .map(|e| e.expect("entry").path()),
            );
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(&p).expect("reads")).into_owned();
            assert!(
                !text.contains("canary") && !text.contains("secret-"),
                "{}",
                p.display()
            );
        }
    }
}

/// Loss, swap and alteration of records.
fn damages(records: &[Record]) -> [Vec<Write>; 3] {
    let (a, b) = (records[0].clone(), records[1].clone());
    let mut flipped = a.1.clone();
    flipped[30] ^= 1;
    [
        vec![(a.0.clone(), None)],
        vec![
            (a.0.clone(), Some(b.1.clone())),
            (b.0.clone(), Some(a.1.clone())),
        ],
        vec![(a.0.clone(), Some(flipped))],
    ]
}

#[test]
fn damage_to_one_copy_is_repaired_and_to_both_is_an_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = filled(dir.path());
    let want = s.content().expect("reads");
    drop(s);
    let paths = ["db", "db-copy"].map(|p| dir.path().join(p));
    for damage in damages(&rows(&paths[0])) {
        for path in &paths {
            SledStorage::open(path)
                .expect("opens")
                .apply(&damage)
                .expect("writes");
            let s = open(dir.path()).expect("the other copy is whole");
            assert_eq!(
                (s.content().expect("reads"), s.quarantined()),
                (want, vec![]),
                "{damage:?}"
            );
            drop(s);
            assert_eq!(rows(&paths[0]), rows(&paths[1]), "both are whole again");
            assert!(path.with_extension("damaged").exists());
        }
    }
    let damage = damages(&rows(&paths[0]))
        .into_iter()
        .next_back()
        .expect("three");
    for path in &paths {
        SledStorage::open(path)
            .expect("opens")
            .apply(&damage)
            .expect("writes");
    }
    assert!(matches!(open(dir.path()), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_damaged_shard_is_set_aside_alone_and_its_keys_are_gone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = filled(dir.path());
    let want = (
        s.main_content().expect("reads"),
        s.database_content("0").expect("reads"),
    );
    drop(s);
    let path = dir.path().join("shards/1");
    let damage = |how: u32| match how {
        0 => {
            let raw = SledStorage::open(&path.join("db")).expect("opens");
            let all = raw.scan().expect("scans");
            let mut flipped = all[0].1.clone();
            flipped[20] ^= 1;
            raw.apply(&[(all[0].0.clone(), Some(flipped))])
                .expect("writes");
        }
        1 => std::fs::remove_dir_all(path.join("db")).expect("exists"),
        2 => std::fs::write(path.join("head"), b"x").expect("writes"),
        _ => std::fs::remove_dir_all(&path).expect("exists"),
    };
    for how in 0..4 {
        damage(how);
        let mut s = open(dir.path()).expect("opens");
        assert_eq!(quarantined(&s), ["1"], "damage {how}");
        assert_eq!(
            (
                s.main_content().expect("reads"),
                s.database_content("0").expect("reads")
            ),
            want
        );
        assert_eq!(s.keys::<Learned>(), ["0"]);
        drop(s);
        // A crash before anybody went back with the shard: it is said again.
        s = open(dir.path()).expect("opens");
        assert_eq!(s.quarantined().len(), 1);
        s.quarantine_handled().expect("removes the marker");
        assert_eq!(
            s.existing(&[KeyName::stage("0", "1"), KeyName::stage("1", "1")]),
            1
        );
        s.write(
            Batch::new()
                .put(&KeyName::stage("1", "1"), "1", &Learned(8))
                .expect("encodes"),
        )
        .expect("writes");
        drop(s);
        assert!(
            open(dir.path()).expect("opens").quarantined().is_empty(),
            "once"
        );
    }
}

#[test]
fn an_older_database_is_an_error_and_a_crash_before_the_count_is_not() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut s = filled(dir.path());
    let head = std::fs::read(dir.path().join("head")).expect("reads");
    let old = s.parts()[0].storage.scan().expect("scans");
    put(&mut s, "x", "9").expect("writes");
    drop(s);
    // The count is behind the database: the crash came between them, before the write was
    // acknowledged.
    let now = std::fs::read(dir.path().join("head")).expect("reads");
    std::fs::write(dir.path().join("head"), head).expect("writes");
    assert_eq!(open(dir.path()).expect("opens").keys::<Row>().len(), 6);
    // The database is behind the count: an acknowledged write is lost, in one copy and then in
    // both.
    std::fs::write(dir.path().join("head"), &now).expect("writes");
    let older = |name: &str| {
        std::fs::remove_dir_all(dir.path().join(name)).expect("removes");
        let raw = SledStorage::open(&dir.path().join(name)).expect("opens");
        raw.apply(
            &old.iter()
                .cloned()
                .map(|(k, v)| (k, Some(v)))
                .collect::<Vec<_>>(),
        )
        .expect("writes");
    };
    older("db");
    assert_eq!(
        open(dir.path())
            .expect("the copy has it")
            .keys::<Row>()
            .len(),
        6
    );
    older("db");
    older("db-copy");
    assert!(matches!(open(dir.path()), Err(StoreError::Corrupt { .. })));
    for name in ["db", "db-copy"] {
        std::fs::remove_dir_all(dir.path().join(name)).expect("removes");
    }
    assert!(
        matches!(open(dir.path()), Err(StoreError::Corrupt { .. })),
        "empty"
    );
    std::fs::remove_file(dir.path().join("head")).expect("removes");
    assert!(
        matches!(open(dir.path()), Err(StoreError::Corrupt { .. })),
        "empty, and no count"
    );
}

#[test]
fn a_damaged_count_is_made_anew_while_the_copies_agree() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path()));
    let head = dir.path().join("head");
    let now = std::fs::read(&head).expect("reads");
    for bytes in [&now[1..], &[][..]] {
        std::fs::write(&head, bytes).expect("writes");
        assert_eq!(open(dir.path()).expect("opens").keys::<Row>().len(), 5);
        assert_eq!(std::fs::read(&head).expect("reads"), now);
    }
    std::fs::write(&head, &now[1..]).expect("writes");
    std::fs::remove_dir_all(dir.path().join("db")).expect("removes");
    assert!(
        matches!(open(dir.path()), Err(StoreError::Corrupt { .. })),
        "nothing says whether the copy is whole"
    );
}

#[test]
fn a_crash_between_key_and_records_is_finished_at_open() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = filled(dir.path());
    s.index_mut()
        .keys
        .destroy(&["subject:canary-0"], &Notes::new())
        .expect("destroys");
    drop(s);
    assert_eq!(open(dir.path()).expect("opens").keys::<Row>(), ["1", "3"]);
}

#[test]
fn a_crash_between_the_databases_leaves_the_shard_ahead() {
    let dir = tempfile::tempdir().expect("tempdir");
    let fail = Arc::new(AtomicBool::new(false));
    let mut s = with_engine(dir.path(), &fail, false);
    let both = |n: u32| {
        let b = Batch::new()
            .put(&KeyName::subject("x"), "1", &Row(n.to_string()))
            .expect("encodes");
        b.put(&KeyName::stage("0", "1"), "0", &Learned(n))
            .expect("encodes")
    };
    s.write(both(1)).expect("writes");
    fail.store(true, Relaxed);
    assert!(s.write(both(2)).is_err());
    fail.store(false, Relaxed);
    for _ in 0..2 {
        assert_eq!(
            (s.get("1").expect("reads"), s.get("0").expect("reads")),
            (Some(Row("1".into())), Some(Learned(2)))
        );
        drop(s);
        s = with_engine(dir.path(), &fail, false);
    }
}

/// While told to, the main database's writes fail: `taken`, after the fact.
struct Faulty(SledStorage, Arc<AtomicBool>, bool);
impl Storage for Faulty {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(key)
    }
    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        let fails = self.1.load(Relaxed);
        if self.2 || !fails {
            self.0.apply(writes)?;
        }
        if fails {
            Err(StoreError::Backend("no space".into()))
        } else {
            Ok(())
        }
    }
    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        self.0.scan()
    }
}

fn with_engine(dir: &Path, fail: &Arc<AtomicBool>, taken: bool) -> SealedStore {
    let fail = fail.clone();
    let engine = move |path: &Path| -> Result<Box<dyn Storage>, StoreError> {
        let sled = SledStorage::open(path)?;
        let main = !path.to_string_lossy().contains("shards");
        Ok(if main {
            Box::new(Faulty(sled, fail.clone(), taken))
        } else {
            Box::new(sled)
        })
    };
    SealedStore::open(&engine, dir, &names()).expect("opens")
}

#[test]
fn a_failed_removal_is_finished_by_the_next_change() {
    let dir = tempfile::tempdir().expect("tempdir");
    let fail = Arc::new(AtomicBool::new(false));
    let mut s = with_engine(dir.path(), &fail, false);
    put(&mut s, "x", "1").expect("writes");
    fail.store(true, Relaxed);
    assert!(s.destroy(&[KeyName::subject("x")]).is_err() && put(&mut s, "x", "1").is_err());
    fail.store(false, Relaxed);
    put(&mut s, "x", "1").expect("writes again, under a new key");
    drop(s);
    assert_eq!(open(dir.path()).expect("not damaged").keys::<Row>(), ["1"]);
}

#[test]
fn a_write_that_failed_after_the_fact_does_not_damage_the_store() {
    let dir = tempfile::tempdir().expect("tempdir");
    let fail = Arc::new(AtomicBool::new(false));
    let mut s = with_engine(dir.path(), &fail, true);
    put(&mut s, "x", "1").expect("writes");
    fail.store(true, Relaxed);
    assert!(put(&mut s, "y", "1").is_err());
    assert_eq!(s.get("1").expect("readable"), Some(Row("secret-y".into())));
    assert!(put(&mut s, "x", "2").is_err() && s.destroy(&[KeyName::subject("y")]).is_err());
    fail.store(false, Relaxed);
    put(&mut s, "z", "3").expect("writes");
    let want = s.content().expect("reads");
    drop(s);
    let s = open(dir.path()).expect("not damaged");
    assert_eq!(
        (s.content().expect("reads"), s.keys::<Row>()),
        (want, vec!["3".to_owned()])
    );
}

#[test]
fn a_record_cannot_be_sealed_under_a_key_of_another_class() {
    assert!(
        Batch::new()
            .put(&KeyName::public(), "1", &Row("x".into()))
            .is_err()
    );
}

#[test]
fn a_count_that_cannot_be_written_does_not_damage_the_store() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = filled(dir.path());
    // Counting fails, as on an I/O error.
    let broken = Head::open(&dir.path().join("elsewhere"), &[0; 32])
        .expect("opens")
        .0;
    let broken = broken.read_only().expect("reopens");
    let whole = std::mem::replace(&mut s.written()[0].head, broken);
    let long = KeyName::subject("y");
    let batch = Batch::new()
        .put(&long, "9", &Row("late".into()))
        .expect("encodes");
    assert!(s.write(batch.clone()).is_err() && s.destroy(&[KeyName::subject("canary-0")]).is_err());
    s.written()[0].head = whole;
    s.write(batch).expect("the retry succeeds");
    let want = s.content().expect("reads");
    drop(s);
    let s = open(dir.path()).expect("not damaged");
    assert_eq!(
        (s.content().expect("reads"), s.keys::<Row>()),
        (want, vec!["1".into(), "3".into(), "9".into()])
    );
}

#[test]
fn a_keyring_that_lost_its_newest_keys_is_not_taken_for_one_that_destroyed_them() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(filled(dir.path()));
    let added: Vec<_> = std::fs::read_dir(dir.path().join("keys"))
        .expect("reads")
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("added-"))
        })
        .collect();
    assert_eq!(added.len(), 2, "kept twice");
    let whole = std::fs::read(&added[0]).expect("reads");
    // One copy: repaired.
    std::fs::write(&added[0], &whole[..whole.len() / 2]).expect("writes");
    assert_eq!(open(dir.path()).expect("opens").keys::<Row>().len(), 5);
    // What the repair wrote holds all keys; the next are appended again, and both copies of them
    // are lost.
    let mut s = open(dir.path()).expect("opens");
    put(&mut s, "late", "late").expect("writes");
    drop(s);
    for entry in std::fs::read_dir(dir.path().join("keys"))
        .expect("reads")
        .filter_map(Result::ok)
    {
        if entry.file_name().to_string_lossy().starts_with("added-") {
            std::fs::write(entry.path(), b"").expect("writes");
        }
    }
    let error = open(dir.path()).expect_err("refuses").to_string();
    assert!(
        error.contains("newest 1 keys of the keyring are lost"),
        "{error}"
    );
}

/// Waits in the middle of a write until it is let go.
struct Slow {
    inner: MemoryStorage,
    started: std::sync::mpsc::Sender<()>,
    go: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
    slow: Arc<AtomicBool>,
}

impl Storage for Slow {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key)
    }
    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        if self.slow.load(Relaxed) {
            self.started.send(()).expect("somebody waits");
            let go = self.go.lock().expect("not poisoned");
            go.recv().expect("is let go");
        }
        self.inner.apply(writes)
    }
    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        self.inner.scan()
    }
}

#[test]
fn who_reads_does_not_wait_for_the_disk() {
    let dir = tempfile::tempdir().expect("tempdir");
    let slow = Arc::new(AtomicBool::new(false));
    let (started, has_started) = std::sync::mpsc::channel();
    let (let_go, go) = std::sync::mpsc::channel();
    let slot = std::sync::Mutex::new(Some((started, go)));
    let engine = {
        let slow = slow.clone();
        move |path: &Path| -> Result<Box<dyn Storage>, StoreError> {
            let inner = MemoryStorage::default();
            if path.ends_with("db") {
                let (started, go) = slot.lock().expect("fine").take().expect("opened once");
                return Ok(Box::new(Slow {
                    inner,
                    started,
                    go: std::sync::Mutex::new(go),
                    slow: slow.clone(),
                }));
            }
            Ok(Box::new(inner))
        }
    };
    let store = SealedStore::open(&engine, dir.path(), &[]).expect("opens");
    let row = |key: &str, value: &str| {
        Batch::new()
            .put(&KeyName::subject("x"), key, &Row(value.into()))
            .expect("encodes")
    };
    store.write(row("1", "before")).expect("writes");
    slow.store(true, Relaxed);
    std::thread::scope(|s| {
        let write = s.spawn(|| store.write(row("1", "after")));
        has_started.recv().expect("the write is under way");
        let read = store.get("1").expect("reads meanwhile");
        assert_eq!(read, Some(Row("before".into())));
        let_go.send(()).expect("it waits");
        write.join().expect("no panic").expect("writes");
    });
    assert_eq!(store.get("1").expect("reads"), Some(Row("after".into())));
}

#[test]
fn what_is_only_for_existing_keys_brings_nobody_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path()).expect("opens");
    let of = |b: Batch, who: &str| {
        b.put_existing(&KeyName::subject(who), who, &Row(who.into()))
            .expect("encodes")
    };
    let first = Batch::new().put(&KeyName::subject("stays"), "0", &Row("0".into()));
    store.write(first.expect("encodes")).expect("writes");
    store
        .write(of(of(Batch::new(), "gone"), "stays"))
        .expect("writes what it can");
    assert_eq!(
        store.get("stays").expect("reads"),
        Some(Row("stays".into()))
    );
    assert_eq!(store.get::<Row>("gone").expect("reads"), None);
    assert_eq!(store.existing(&[KeyName::subject("gone")]), 0);
}

#[test]
fn what_requires_a_key_fails_without_it_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path()).expect("opens");
    let stage = KeyName::stage("1", "7/1");
    let first = |b: Batch| b.put(&stage, "a", &Learned(1)).expect("encodes");
    let more = |b: Batch| b.put_required(&stage, "b", &Learned(2)).expect("encodes");
    let other = |b: Batch| b.put(&KeyName::stage("0", "7/1"), "c", &Learned(3));
    let both = more(other(Batch::new()).expect("encodes"));
    assert!(matches!(store.write(both), Err(StoreError::NoKey { .. })));
    assert_eq!(store.keys::<Learned>(), Vec::<String>::new());
    assert_eq!(store.existing(&[KeyName::stage("0", "7/1")]), 0);
    // What makes the key may stand in the same batch, in any place.
    store.write(first(more(Batch::new()))).expect("writes");
    assert_eq!(store.keys::<Learned>(), ["a", "b"]);
    store
        .destroy(std::slice::from_ref(&stage))
        .expect("destroys");
    assert!(store.write(more(Batch::new())).is_err(), "it stays away");
}

#[test]
fn a_database_that_is_added_later_is_found_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = filled(dir.path());
    let owner = KeyName::stage("2-0", "9/1");
    let batch = || Batch::new().put(&owner, "x", &Learned(9)).expect("encodes");
    assert!(store.write(batch()).is_err(), "there is no such database");
    for _ in 0..2 {
        store
            .open_database(&SledStorage::engine, "2-0")
            .expect("opens");
    }
    store.write(batch()).expect("writes");
    let bad = store.open_database(&SledStorage::engine, "../x");
    assert!(bad.is_err(), "no path");
    drop(store);
    let found = SealedStore::databases_in(dir.path()).expect("reads");
    assert_eq!(found, ["0", "1", "2-0"]);
    // Also without being named: there are keys for it. So its loss does not go unseen.
    let store = open(dir.path()).expect("opens");
    assert_eq!(store.get("x").expect("reads"), Some(Learned(9)));
    drop(store);
    std::fs::remove_dir_all(dir.path().join("shards/2-0")).expect("removes");
    let store = open(dir.path()).expect("opens");
    assert_eq!(quarantined(&store), ["2-0"]);
    assert_eq!(store.keys::<Learned>(), ["0", "1"]);
    store.quarantine_handled().expect("removes the marker");
}

#[test]
fn a_database_is_removed_when_nothing_is_in_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = filled(dir.path());
    let refused = s.remove_database("1").expect_err("it holds a record");
    assert!(
        refused.to_string().contains("something is in it"),
        "{refused}"
    );
    s.destroy(&[KeyName::stage("1", "1")]).expect("destroys");
    s.remove_database("1").expect("removes");
    s.remove_database("1").expect("there is none any more");
    assert_eq!(s.databases(), ["0"]);
    let shards = dir.path().join("shards");
    assert!(!shards.join("1").exists());
    // The others go on, also when everything is read again, and a new one may have the name.
    let before = s.content().expect("reads");
    s.recover().expect("reads");
    let learn = |s: &SealedStore, name: &str| {
        let key = KeyName::stage(name, "2");
        s.write(
            Batch::new()
                .put(&key, "again", &Learned(8))
                .expect("encodes"),
        )
    };
    assert!(learn(&s, "1").is_err(), "there is no such database");
    learn(&s, "0").expect("writes");
    assert_ne!(s.content().expect("reads"), before);
    drop(s);
    // A removal that was cut off is ended at the next start, and is no damage.
    std::fs::create_dir_all(shards.join("1.removed/db")).expect("creates");
    let names = SealedStore::databases_in(dir.path()).expect("reads");
    assert_eq!(names, ["0"]);
    let s = SealedStore::open(&SledStorage::engine, dir.path(), &names).expect("opens");
    assert!(!shards.join("1.removed").exists());
    assert_eq!(quarantined(&s), Vec::<String>::new());
    s.open_database(&SledStorage::engine, "1").expect("opens");
    learn(&s, "1").expect("writes");
}
