//! The log, its files, and whether a folder belongs to a data folder.

use std::path::Path;

use lethe_ledger::LogHead;
use lethe_receipt::merkle::Tree;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::tiles;
use lethe_store::transparency::tiles::Published;

use super::driver::{NAME, SEED};
use crate::CoordinatorError;
use crate::copy::copy;
use crate::evidence::Evidence;

fn open(folder: &Path) -> Evidence {
    Evidence::open(folder, NAME, &SEED).unwrap().0
}

#[test]
fn an_entry_is_entered_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut evidence = open(dir.path());
    let one = evidence.enter(b"one").unwrap();
    assert_eq!(one.index, 0);
    let two = evidence.enter(b"two").unwrap();
    assert_eq!((two.index, two.head.entries), (1, 2));
    let again = evidence.enter(b"one").unwrap();
    assert_eq!(again.index, 0, "a crash kept the caller from knowing");
    assert_eq!(again.head, two.head);
    drop(evidence);
    let mut evidence = open(dir.path());
    assert_eq!(evidence.enter(b"two").unwrap(), two);
    assert_eq!(evidence.enter(b"three").unwrap().index, 2);
    let page = evidence.page(1);
    assert_eq!(page.entries, [b"two".to_vec(), b"three".to_vec()]);
    assert_eq!(page.checkpoint, evidence.checkpoint());
    assert!(evidence.page(u64::MAX).entries.is_empty());
}

#[test]
fn a_page_fits_into_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let mut evidence = open(dir.path());
    for i in 0..6u8 {
        evidence.enter(&[i; 9000]).unwrap();
    }
    assert_eq!(evidence.page(0).entries.len(), 3);
    assert_eq!(evidence.page(4).entries.len(), 2);
}

#[test]
fn an_older_evidence_folder_and_another_log_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [folder, old] = ["evidence", "copy"].map(|f| dir.path().join(f));
    let mut evidence = open(&folder);
    evidence.check(&LogHead::default(), &folder).unwrap();
    let first = evidence.enter(b"one").unwrap().head;
    copy(&folder, &old);
    let known = evidence.enter(b"two").unwrap().head;
    evidence.enter(b"three").unwrap();
    evidence.check(&first, &folder).unwrap();
    // The data folder is older: a backup was restored.
    evidence.check(&known, &folder).unwrap();
    let mut older = open(&old);
    older.check(&first, &old).unwrap();
    let why = older.check(&known, &old).unwrap_err();
    assert!(matches!(
        why,
        CoordinatorError::Evidence {
            has: 1,
            knows: 2,
            ..
        }
    ));
    // It went on from an old copy.
    older.enter(b"another").unwrap();
    let why = older.check(&known, &old).unwrap_err();
    assert!(matches!(why, CoordinatorError::OtherLog { knows: 2, .. }));
}

#[test]
fn auditors_find_the_whole_log() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tiles");
    let mut evidence = open(dir.path());
    let key = VerifierKey::parse(&evidence.log_key()).unwrap();
    for i in 0..260u32 {
        evidence.enter(&i.to_le_bytes()).unwrap();
    }
    let audited = tiles::audit(&folder, &key).unwrap();
    assert_eq!(audited.tree.len(), 260);
    assert_eq!(audited.checkpoint, evidence.checkpoint());
    let parts = std::fs::read_dir(folder.join("tile/entries/001.p")).unwrap();
    assert_eq!(parts.count(), 2, "the newest, and the one before it");
    drop(evidence);
    std::fs::remove_dir_all(&folder).unwrap();
    let mut evidence = open(dir.path());
    evidence.publish().unwrap();
    assert_eq!(tiles::audit(&folder, &key).unwrap().tree.len(), 260);
}

#[test]
fn files_that_could_not_be_written_come_with_the_next_entry() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tiles");
    let mut evidence = open(dir.path());
    let key = VerifierKey::parse(&evidence.log_key()).unwrap();
    for i in 0..10u32 {
        evidence.enter(&i.to_le_bytes()).unwrap();
    }
    let [away, blocked] = [dir.path().join("away"), folder.clone()];
    std::fs::rename(&folder, &away).unwrap();
    std::fs::write(&blocked, b"no folder").unwrap();
    for i in 10..270u32 {
        let entered = evidence.enter(&i.to_le_bytes()).unwrap();
        assert_eq!(entered.index, u64::from(i), "it is in the log all the same");
    }
    assert!(evidence.publish().is_err());
    std::fs::remove_file(&blocked).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    evidence.enter(b"270").unwrap();
    assert_eq!(tiles::audit(&folder, &key).unwrap().tree.len(), 271);
}

#[test]
fn the_files_are_those_of_the_layout() {
    let entries: Vec<Vec<u8>> = (0..66_000u32).map(|i| i.to_le_bytes().to_vec()).collect();
    for (size, from) in [
        (0, 0),
        (1, 0),
        (255, 254),
        (256, 255),
        (257, 256),
        (700, 0),
        (700, 600),
        (66_000, 65_535),
    ] {
        let entries = &entries[..size];
        let mut tree = Tree::default();
        for entry in entries {
            tree.push(entry);
        }
        let published = Published {
            entries,
            tree: &tree,
            checkpoint: "",
        };
        let files = published.files(from).unwrap();
        assert_eq!(Some(files), tiles::files(entries, from as u64), "{size}");
    }
    let tree = Tree::default();
    let published = Published {
        entries: &[vec![0; 70_000]],
        tree: &tree,
        checkpoint: "",
    };
    assert!(published.files(0).is_err());
}
