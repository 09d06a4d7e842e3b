//! The keyring, with its files damaged, torn and left over.

use super::*;

#[test]
fn a_destroyed_key_is_nowhere_and_old_masters_are_gone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ring = Keyring::in_folder(dir.path()).expect("opens");
    ring.ensure(&["a", "b"]).expect("writes");
    let old = fs::read(dir.path().join("keyring-1")).expect("exists");
    let secret = ring.get("a").expect("made").secret.clone();
    assert_eq!(
        ring.destroy(&["a", "zz"], &Notes::new()).expect("destroys"),
        1
    );
    fs::write(dir.path().join("keyring-1"), old).expect("an old copy comes back");
    let ring = Keyring::in_folder(dir.path()).expect("opens");
    assert!(ring.get("a").is_none() && ring.get("b").is_some());
    for f in fs::read_dir(dir.path()).expect("reads") {
        let bytes = fs::read(f.expect("entry").path()).expect("reads");
        assert!(!bytes.windows(32).any(|w| w == *secret));
    }
}

#[test]
fn additions_are_appended_survive_and_lose_only_what_was_torn() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ring = Keyring::in_folder(dir.path()).expect("opens");
    ring.ensure(&["a"]).expect("writes");
    ring.ensure(&["b", "c"]).expect("appends");
    ring.ensure(&["d"]).expect("appends");
    let all: Vec<(String, Key)> = ring.iter().map(|(n, k)| (n.clone(), k.clone())).collect();
    assert_eq!(
        (ring.generation, ring.made()),
        (1, 4),
        "nothing was rewritten"
    );
    let same = |r: &Keyring| {
        r.iter()
            .map(|(n, k)| (n.clone(), k.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(same(&Keyring::in_folder(dir.path()).expect("opens")), all);
    // A crash after the first copy, at every byte: the other one has everything.
    let added = path(dir.path(), "added", 1, COPY);
    let whole = fs::read(&added).expect("exists");
    for n in 0..whole.len() {
        let other = tempfile::tempdir().expect("tempdir");
        for f in fs::read_dir(dir.path())
            .expect("reads")
            .filter_map(Result::ok)
        {
            fs::copy(f.path(), other.path().join(f.file_name())).expect("copies");
        }
        fs::write(path(other.path(), "added", 1, COPY), &whole[..n]).expect("writes");
        let ring = Keyring::in_folder(other.path()).expect("opens");
        assert_eq!((same(&ring), ring.made()), (all.clone(), 4));
    }
    // Both torn: the newest key is not there, and the count says so.
    for copy in COPIES {
        fs::write(
            path(dir.path(), "added", 1, copy),
            &whole[..whole.len() - 3],
        )
        .expect("writes");
    }
    let mut ring = Keyring::in_folder(dir.path()).expect("opens");
    assert!(ring.get("c").is_some() && ring.get("d").is_none() && ring.made() == 3);
    assert_eq!(ring.destroy(&["b"], &Notes::new()).expect("destroys"), 1);
    assert_eq!(
        (
            Keyring::in_folder(dir.path()).expect("opens").made(),
            ring.made()
        ),
        (3, 3)
    );
    // Many additions are written together at last.
    for i in 0..200 {
        ring.ensure(&[&format!("k{i}")]).expect("writes");
    }
    assert!(ring.generation > 2 && Keyring::in_folder(dir.path()).expect("opens").made() == 203);
}

#[test]
fn an_old_master_that_could_not_be_wiped_is_wiped_by_the_retry() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ring = Keyring::in_folder(dir.path()).expect("opens");
    ring.ensure(&["a", "b"]).expect("writes");
    // A folder in the place of the old keyring makes its removal fail, as an I/O error would.
    let old = dir.path().join("keyring-1");
    fs::remove_file(&old).expect("exists");
    fs::create_dir(&old).expect("creates");
    assert!(ring.destroy(&["a"], &Notes::new()).is_err());
    fs::remove_dir(&old).expect("exists");
    fs::write(&old, b"").expect("writes");
    ring.destroy(&["a"], &Notes::new())
        .expect("the retry finishes");
    assert!(!old.exists() && ring.get("a").is_none());
}

#[test]
fn a_crash_between_generations_keeps_the_newer() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ring = Keyring::in_folder(dir.path()).expect("opens");
    ring.ensure(&["a"]).expect("writes");
    let names = ["master-1", "keyring-1", "master-1.copy", "keyring-1.copy"];
    let keep: Vec<(PathBuf, Vec<u8>)> = names
        .iter()
        .map(|n| {
            (
                dir.path().join(n),
                fs::read(dir.path().join(n)).expect("exists"),
            )
        })
        .collect();
    ring.ensure(&["b", "c"]).expect("writes");
    ring.destroy(&["c"], &Notes::new())
        .expect("writes another generation");
    keep.into_iter()
        .for_each(|(p, b)| fs::write(p, b).expect("writes"));
    let ring = Keyring::in_folder(dir.path()).expect("opens");
    assert!(ring.get("b").is_some());
    assert!(!dir.path().join("master-1").exists());
}

#[test]
fn one_damaged_file_is_made_anew_and_two_of_a_kind_are_an_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ring = Keyring::in_folder(dir.path()).expect("opens");
    ring.ensure(&["a"]).expect("writes");
    let want = ring.get("a").expect("made").clone();
    for name in ["keyring", "master"] {
        for copy in COPIES {
            let at = path(
                dir.path(),
                name,
                Keyring::in_folder(dir.path()).expect("opens").generation,
                copy,
            );
            for bytes in [&b"garbage"[..], &[0; 32]] {
                let at = path(
                    dir.path(),
                    name,
                    Keyring::in_folder(dir.path()).expect("opens").generation,
                    copy,
                );
                fs::write(&at, bytes).expect("writes");
                assert_eq!(
                    Keyring::in_folder(dir.path())
                        .expect("the copy is whole")
                        .get("a"),
                    Some(&want)
                );
            }
            assert!(!at.exists(), "the damaged generation is wiped");
        }
    }
    let now = Keyring::in_folder(dir.path()).expect("opens").generation;
    COPIES
        .iter()
        .for_each(|c| fs::write(path(dir.path(), "keyring", now, c), b"garbage").expect("writes"));
    assert!(matches!(
        Keyring::in_folder(dir.path()),
        Err(StoreError::Corrupt { .. })
    ));
}

#[test]
fn l_files_of_a_generation_that_is_gone_are_removed_whatever_a_crash_left() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ring = Keyring::in_folder(dir.path()).expect("opens");
    // A crash in the first write: a master key and nothing else.
    fs::write(dir.path().join("master-1"), [7; 32]).expect("writes");
    assert!(Keyring::in_folder(dir.path()).is_ok());
    assert!(!dir.path().join("master-1").exists());
    ring.ensure(&["a", "b"]).expect("writes");
    ring.ensure(&["c"]).expect("appends");
    let old: Vec<_> = ["master", "keyring", "added"]
        .iter()
        .flat_map(|kind| COPIES.map(|copy| path(dir.path(), kind, 1, copy)))
        .map(|p| (p.clone(), fs::read(p).expect("is there")))
        .collect();
    ring.destroy(&["a"], &Notes::new())
        .expect("writes another generation");
    for (left, bytes) in &old {
        fs::write(left, bytes).expect("a crash left it");
        let ring = Keyring::in_folder(dir.path()).expect("opens");
        assert!(ring.get("a").is_none() && ring.get("c").is_some());
        assert!(!left.exists(), "{}", left.display());
    }
}

/// What this process has in memory that it can write, a piece at a time.
#[cfg(target_os = "linux")]
fn memory(mut see: impl FnMut(&[u8])) {
    use std::io::{Read, Seek, SeekFrom};
    let maps = fs::read_to_string("/proc/self/maps").expect("reads");
    let mut file = File::open("/proc/self/mem").expect("opens");
    let mut piece = vec![0_u8; 1 << 20];
    for line in maps.lines() {
        let mut parts = line.split_whitespace();
        let range = parts.next().unwrap_or_default();
        if !parts.next().unwrap_or_default().starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').expect("a range");
        let number = |hex: &str| u64::from_str_radix(hex, 16).expect("an address");
        let mut at = number(from);
        while at < number(to) {
            let length = (number(to) - at).min(piece.len() as u64) as usize;
            file.seek(SeekFrom::Start(at)).expect("seeks");
            // Pages that cannot be read are none of ours.
            if file.read_exact(&mut piece[..length]).is_ok() {
                see(&piece[..length]);
            }
            // What was read is in memory itself: it is not to be found by the next search.
            piece[..].zeroize();
            at += length as u64;
        }
    }
}

/// How often a secret is in memory; `hidden` is it with every bit turned, so that the search does
/// not find itself. Nothing is aligned to less than 4 bytes that copies a key.
#[cfg(target_os = "linux")]
fn found(hidden: &[u8; 32]) -> usize {
    let mut n = 0;
    let first = !hidden[0];
    memory(|piece| {
        let places = piece.windows(32);
        n += places
            .filter(|w| w[0] == first && w.iter().zip(hidden).all(|(a, b)| *a == !*b))
            .count();
    });
    n
}

#[cfg(target_os = "linux")]
#[test]
fn m6_a_destroyed_key_and_its_master_are_nowhere_in_memory() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ring = Keyring::in_folder(dir.path()).expect("opens");
    ring.ensure(&["a", "b"]).expect("makes");
    ring.ensure(&["c"]).expect("appends");
    // What a restart reads is destroyed, too.
    drop(ring);
    let mut ring = Keyring::in_folder(dir.path()).expect("opens");
    let hide = |bytes: &[u8; 32]| bytes.map(|b| !b);
    let of = |ring: &Keyring, name: &str| hide(&ring.get(name).expect("made").secret);
    let gone = [of(&ring, "a"), of(&ring, "c"), hide(&ring.master)];
    let stays = of(&ring, "b");
    for hidden in &gone {
        assert!(found(hidden) > 0, "the search finds what is there");
    }
    assert_eq!(
        ring.destroy(&["a", "c"], &Notes::new()).expect("destroys"),
        2
    );
    // Whatever happens next uses the stack anew.
    ring.ensure(&["d"]).expect("appends");
    for hidden in &gone {
        assert_eq!(found(hidden), 0);
    }
    assert!(found(&stays) > 0);
}

#[test]
fn notes_come_and_go_with_destructions() {
    let dir = tempfile::tempdir().expect("tempdir");
    let open = || Keyring::in_folder(dir.path()).expect("opens");
    let note = |name: &str, text: &str| Notes::from([(name.into(), text.into())]);
    let mut ring = open();
    ring.ensure(&["a", "b"]).expect("writes");
    ring.destroy(&["a", "b"], &note("a", "stays"))
        .expect("destroys");
    assert_eq!(open().notes(), &note("a", "stays"));
    ring.ensure(&["a", "b"]).expect("writes");
    // They are nowhere in the clear.
    for file in fs::read_dir(dir.path()).expect("reads") {
        let bytes = fs::read(file.expect("entry").path()).expect("reads");
        assert!(!bytes.windows(5).any(|w| w == b"stays"));
    }
    // Other keys and rotations leave a note, a damaged copy too.
    ring.destroy(&["b"], &Notes::new()).expect("destroys");
    ring.rotate().expect("writes");
    fs::write(path(dir.path(), "notes", ring.generation, ""), b"damaged").expect("writes");
    let mut ring = open();
    assert_eq!(ring.notes(), &note("a", "stays"));
    ring.destroy(&["a"], &note("a", "still")).expect("destroys");
    assert_eq!(open().notes(), &note("a", "still"));
    // A key that is not there any more takes its note along, too: the destruction is repeated.
    ring.destroy(&["a"], &Notes::new()).expect("destroys");
    assert_eq!(open().notes(), &Notes::new());
    let left = numbers(dir.path(), &["notes"]).expect("reads");
    assert_eq!(left, Vec::<u64>::new());
}
