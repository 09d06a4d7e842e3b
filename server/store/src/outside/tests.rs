use super::*;
use crate::memory::MemoryStorage;
use crate::sled_backend::SledStorage;

type Store = Outside<MemoryStorage>;

fn open(inner: MemoryStorage, dir: &Path) -> Store {
    Outside::open(inner, dir).expect("opens")
}

fn put(key: &str, byte: u8, len: usize) -> Write {
    (key.as_bytes().to_vec(), Some(vec![byte; len]))
}

fn gone(key: &str) -> Write {
    (key.as_bytes().to_vec(), None)
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

#[test]
fn conforms_over_both_engines() {
    let dir = tempfile::tempdir().expect("tempdir");
    crate::conformance(&open(MemoryStorage::default(), &dir.path().join("values")));
    let path = dir.path().join("db");
    let sled = SledStorage::engine(&path).expect("opens");
    crate::conformance(sled.as_ref());
    let before = sled.scan().expect("reads");
    drop(sled);
    assert_eq!(
        SledStorage::engine(&path)
            .expect("opens again")
            .scan()
            .expect("reads"),
        before
    );
}

#[test]
fn values_change_their_size_and_are_what_was_written_last() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut s = open(MemoryStorage::default(), dir.path());
    for (byte, len) in [
        (1, 10),
        (2, LARGE),
        (3, LARGE * 3),
        (4, LARGE - 1),
        (5, LARGE),
    ] {
        s.apply(&[put("k", byte, len), put("other", 9, LARGE)])
            .expect("writes");
        assert_eq!(s.get(b"k").expect("reads"), Some(vec![byte; len]));
        assert_eq!(s.scan().expect("reads").len(), 2);
        s = open(s.inner.clone(), dir.path());
        assert_eq!(s.get(b"k").expect("reads"), Some(vec![byte; len]));
    }
    // The same key twice in one write.
    s.apply(&[
        put("k", 6, LARGE),
        put("k", 7, 1),
        gone("other"),
        put("other", 8, LARGE),
    ])
    .expect("writes");
    assert_eq!(
        (s.get(b"k").expect("reads"), s.get(b"other").expect("reads")),
        (Some(vec![7]), Some(vec![8; LARGE]))
    );
    s.apply(&[gone("k"), gone("other"), gone("nobody")])
        .expect("writes");
    assert!(s.scan().expect("reads").is_empty() && s.inner.scan().expect("reads").is_empty());
    assert_eq!(
        files(dir.path()),
        0,
        "nothing is left of what nobody refers to"
    );
}

#[test]
fn what_a_crash_left_is_removed_and_not_taken_for_a_value() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = open(MemoryStorage::default(), dir.path());
    s.apply(&[put("kept", 1, LARGE)]).expect("writes");
    let before = s.inner.clone();
    // The value is in its segment, and the process ends before the database has the reference.
    s.apply(&[put("lost", 2, LARGE)]).expect("writes");
    let s = open(before, dir.path());
    assert_eq!(
        (
            s.get(b"kept").expect("reads"),
            s.get(b"lost").expect("reads")
        ),
        (Some(vec![1; LARGE]), None)
    );
    s.apply(&[put("new", 3, LARGE), gone("kept")])
        .expect("writes");
    assert_eq!(s.get(b"new").expect("reads"), Some(vec![3; LARGE]));
    assert_eq!(
        files(dir.path()),
        1,
        "the segment with the value that was lost is gone"
    );
    // A database that is empty, or older, may be put right again: nothing is removed before it is
    // written to.
    let s = open(MemoryStorage::default(), dir.path());
    assert_eq!((s.scan().expect("reads").len(), files(dir.path())), (0, 1));
    s.apply(&[put("x", 1, 1)]).expect("writes");
    assert_eq!(files(dir.path()), 0);
}

#[test]
fn a_segment_with_little_left_is_emptied() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = open(MemoryStorage::default(), dir.path());
    let many: Vec<Write> = (0..40)
        .map(|i| put(&format!("update {i:02}"), i, LARGE))
        .collect();
    s.apply(&many).expect("writes");
    s.apply(&[put("checkpoint", 77, LARGE)]).expect("writes");
    // Another segment is written to now.
    s.log().current = None;
    let counted: Vec<Write> = (0..40).map(|i| gone(&format!("update {i:02}"))).collect();
    s.apply(&counted[..20]).expect("writes");
    // Also when the process has ended meanwhile; and not for a few bytes.
    let s = open(s.inner.clone(), dir.path());
    s.apply(&counted[20..]).expect("writes");
    assert_eq!(s.places()[&b"checkpoint"[..]].segment, 0);
    s.log().waste = 40 * LARGE as u64;
    s.apply(&[put("x", 1, 1)]).expect("writes");
    assert_eq!(
        (s.places()[&b"checkpoint"[..]].segment, files(dir.path())),
        (1, 1)
    );
    assert_eq!(s.get(b"checkpoint").expect("reads"), Some(vec![77; LARGE]));
    let s = open(s.inner.clone(), dir.path());
    assert_eq!(s.get(b"checkpoint").expect("reads"), Some(vec![77; LARGE]));
}

/// What is written anew every day does not fill a segment with what it was before, also where
/// something in the same segment stays.
#[test]
fn a_value_that_is_written_again_and_again_needs_little_room() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = open(MemoryStorage::default(), dir.path());
    let waste = 40 * LARGE;
    s.log().waste = waste as u64;
    let bytes = || -> u64 {
        let all = fs::read_dir(dir.path()).expect("reads");
        all.map(|e| e.expect("reads").metadata().expect("reads").len())
            .sum()
    };
    let mut most = 0;
    for day in 0..200u8 {
        if day % 20 == 0 {
            let kept = format!("kept {}", day / 20);
            s.apply(&[put(&kept, day, LARGE)]).expect("writes");
        }
        s.apply(&[put("sums", day, 8 * LARGE)]).expect("writes");
        most = most.max(bytes());
    }
    // Ten that stay, the newest sums, what may be wasted, and a write more.
    assert!(
        most <= (10 * LARGE + 2 * 8 * LARGE + waste + 8 * LARGE) as u64,
        "{most}"
    );
    let s = open(s.inner.clone(), dir.path());
    assert_eq!(s.get(b"sums").expect("reads"), Some(vec![199; 8 * LARGE]));
    for kept in 0..10u8 {
        let key = format!("kept {kept}");
        let value = s.get(key.as_bytes()).expect("reads");
        assert_eq!(value, Some(vec![20 * kept; LARGE]), "{key}");
    }
}

/// A value that is larger than what may be wasted leaves nothing behind.
#[test]
fn a_large_value_goes_with_its_segment() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = open(MemoryStorage::default(), dir.path());
    s.log().waste = 8 * LARGE as u64;
    s.apply(&[put("kept", 1, LARGE), put("sums", 0, 9 * LARGE)])
        .expect("writes");
    for day in 1..60u8 {
        s.apply(&[put("sums", day, 9 * LARGE), put("small", day, LARGE)])
            .expect("writes");
        let number = s.places()[&b"sums"[..]].segment;
        let length = fs::metadata(s.path(number)).expect("is there").len();
        assert_eq!(
            (length, files(dir.path()) < 6),
            (9 * LARGE as u64, true),
            "{day}"
        );
    }
    let s = open(s.inner.clone(), dir.path());
    assert_eq!(s.get(b"sums").expect("reads"), Some(vec![59; 9 * LARGE]));
    assert_eq!(s.get(b"kept").expect("reads"), Some(vec![1; LARGE]));
}

#[test]
fn a_value_that_cannot_be_read_keeps_nothing_else_from_being_written() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = open(MemoryStorage::default(), dir.path());
    let many: Vec<Write> = (0..8).map(|i| put(&format!("{i}"), i, LARGE)).collect();
    s.apply(&many).expect("writes");
    s.log().current = None;
    s.log().waste = 0;
    OpenOptions::new()
        .write(true)
        .open(s.path(0))
        .expect("opens")
        .set_len(10)
        .expect("cuts");
    let gone: Vec<Write> = (0..7).map(|i| gone(&format!("{i}"))).collect();
    s.apply(&gone).expect("writes");
    assert!(matches!(s.get(b"7"), Err(StoreError::Corrupt { .. })) && s.log().stuck.contains(&0));
    s.apply(&[put("8", 8, LARGE)]).expect("writes");
    assert_eq!(s.get(b"8").expect("reads"), Some(vec![8; LARGE]));
}

#[test]
fn what_could_not_be_written_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = open(MemoryStorage::default(), dir.path());
    s.apply(&[put("a", 1, LARGE)]).expect("writes");
    // A segment of before, which a database that is put right may refer to.
    fs::write(s.path(7), [9]).expect("writes");
    let start = Outside::<MemoryStorage>::end(&s.log());
    s.append(&mut s.log(), &[2; LARGE]).expect("appends");
    s.log().current = None;
    s.append(&mut s.log(), &[2; LARGE])
        .expect("appends to the next");
    s.take_back(&mut s.log(), start);
    assert_eq!(
        (
            fs::metadata(s.path(0)).expect("is there").len(),
            files(dir.path())
        ),
        (LARGE as u64, 2)
    );
    fs::remove_file(s.path(7)).expect("removes");
    // The next segment cannot be made.
    fs::create_dir(s.path(2)).expect("makes");
    assert!(s.apply(&[put("b", 2, LARGE)]).is_err());
    assert_eq!(
        (s.get(b"a").expect("reads"), s.get(b"b").expect("reads")),
        (Some(vec![1; LARGE]), None)
    );
    fs::remove_dir(s.path(2)).expect("removes");
    s.apply(&[put("b", 2, LARGE)]).expect("writes");
    assert_eq!(s.get(b"b").expect("reads"), Some(vec![2; LARGE]));
}

#[test]
fn damage_is_an_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    let s = open(MemoryStorage::default(), dir.path());
    s.apply(&[put("a", 1, LARGE), put("b", 2, LARGE)])
        .expect("writes");
    let inner = s.inner.clone();
    let file = s.path(0);
    let cut = OpenOptions::new().write(true).open(&file).expect("opens");
    cut.set_len(LARGE as u64 + 5).expect("cuts");
    let s = open(inner.clone(), dir.path());
    assert_eq!(s.get(b"a").expect("reads"), Some(vec![1; LARGE]));
    assert!(matches!(s.get(b"b"), Err(StoreError::Corrupt { .. })));
    assert!(matches!(s.scan(), Err(StoreError::Corrupt { .. })));
    fs::remove_file(&file).expect("removes");
    assert!(matches!(
        open(inner, dir.path()).scan(),
        Err(StoreError::Corrupt { .. })
    ));
    let bad = MemoryStorage::default();
    for damaged in [vec![1; 23], vec![255; 24]] {
        bad.apply(&[(reference(b"a"), Some(damaged))])
            .expect("writes");
        assert!(matches!(
            Outside::open(bad.clone(), dir.path()),
            Err(StoreError::Corrupt { .. })
        ));
    }
}

/// A database that takes a write and then says that it failed, or does not take it.
#[derive(Default)]
struct Doubtful(MemoryStorage, Mutex<Option<bool>>);

impl Storage for Doubtful {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(key)
    }
    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        let fails = self.1.lock().expect("not poisoned").take();
        match fails {
            None => self.0.apply(writes),
            Some(taken) => {
                if taken {
                    self.0.apply(writes)?;
                }
                Err(StoreError::Backend("it failed".into()))
            }
        }
    }
    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        self.0.scan()
    }
}

#[test]
fn after_a_failed_write_either_may_be_the_case_and_nothing_else() {
    for taken in [false, true] {
        let dir = tempfile::tempdir().expect("tempdir");
        let s = Outside::open(Doubtful::default(), dir.path()).expect("opens");
        s.apply(&[put("a", 1, LARGE)]).expect("writes");
        *s.inner.1.lock().expect("not poisoned") = Some(taken);
        assert!(s.apply(&[put("a", 2, LARGE), put("b", 2, LARGE)]).is_err());
        s.recover().expect("recovers");
        let want = if taken {
            (Some(vec![2; LARGE]), Some(vec![2; LARGE]))
        } else {
            (Some(vec![1; LARGE]), None)
        };
        assert_eq!(
            (s.get(b"a").expect("reads"), s.get(b"b").expect("reads")),
            want
        );
        // Without being told to, too.
        *s.inner.1.lock().expect("not poisoned") = Some(taken);
        assert!(s.apply(&[put("c", 3, LARGE)]).is_err());
        s.apply(&[put("d", 4, LARGE)]).expect("writes");
        assert_eq!(s.get(b"c").expect("reads").is_some(), taken);
        assert_eq!(s.get(b"d").expect("reads"), Some(vec![4; LARGE]));
    }
}
