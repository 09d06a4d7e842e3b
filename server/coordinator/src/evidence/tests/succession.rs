//! The log's key is exchanged, and the exchange is cut off at every step.

use std::path::Path;

use lethe_receipt::note::{NoteError, VerifierKey, open_checkpoint};
use lethe_receipt::succession::{MOST_CHANGES, Succession};
use lethe_store::keys::Keys;

use super::driver::{NAME, SEED};
use crate::copy::copy;
use crate::evidence::{Evidence, succession};

fn keys(folder: &Path) -> Keys {
    Keys::in_folder(&folder.join("keys"))
}

/// As a start does it: the newest key that the source has.
fn open(folder: &Path) -> Evidence {
    let keys = keys(folder);
    let newest = keys.numbers("log").unwrap().last().copied().unwrap();
    let seed = keys.secret(&format!("log-{newest}")).unwrap().unwrap();
    let seed: [u8; 32] = seed.as_slice().try_into().unwrap();
    let (mut evidence, _) = Evidence::open(&folder.join("evidence"), NAME, &seed).unwrap();
    let changes = succession::changes(&keys).unwrap();
    evidence.remember(changes).unwrap();
    evidence
}

fn begin(folder: &Path) -> Evidence {
    std::fs::create_dir_all(folder.join("keys")).unwrap();
    keys(folder).keep("log-1", &SEED).unwrap();
    open(folder)
}

fn key(evidence: &Evidence) -> VerifierKey {
    VerifierKey::parse(&evidence.log_key()).unwrap()
}

fn follow(evidence: &Evidence, known: &VerifierKey) -> VerifierKey {
    let changes = evidence.changes();
    let succession = Succession::open(changes.iter().map(String::as_str)).unwrap();
    succession.newest(known)
}

fn names(folder: &Path) -> Vec<String> {
    let all = std::fs::read_dir(folder.join("keys")).unwrap();
    let name = |e: std::io::Result<std::fs::DirEntry>| {
        let name = e.unwrap().file_name().to_string_lossy().into_owned();
        Some(name.strip_suffix(".secret")?.to_owned())
    };
    let mut names: Vec<String> = all.filter_map(name).collect();
    names.sort();
    names
}

#[test]
fn h1_the_log_goes_on_under_another_key_and_the_old_one_is_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut evidence = begin(dir.path());
    evidence.enter(b"one").unwrap();
    let first = key(&evidence);
    let old_head = evidence.checkpoint();
    let second = evidence.exchange(&keys(dir.path())).unwrap().key;
    assert_eq!(key(&evidence), second);
    assert_eq!(names(dir.path()), ["log-2", "log-past-1"]);
    for file in std::fs::read_dir(dir.path().join("keys")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(32).any(|w| w == SEED));
    }
    let published = std::fs::read_to_string(dir.path().join("evidence/tiles/checkpoint"));
    assert!(open_checkpoint(&published.unwrap(), &second).is_ok());
    evidence.enter(b"two").unwrap();
    let third = evidence.exchange(&keys(dir.path())).unwrap().key;
    drop(evidence);
    // A start knows all of it; so does whoever has the published files.
    let evidence = open(dir.path());
    assert_eq!(key(&evidence), third);
    assert_eq!(follow(&evidence, &first), third);
    assert_eq!(follow(&evidence, &second), third);
    assert_eq!(evidence.own_keys(), [first.clone(), second, third.clone()]);
    let file = std::fs::read_to_string(dir.path().join("evidence/tiles/log-keys")).unwrap();
    let public = Succession::parse(&file).unwrap();
    assert_eq!(public.open_checkpoint(&old_head, &third).unwrap().0, 1);
    // The first key signs nothing more that anybody believes.
    let thief = lethe_receipt::note::Signer::from_seed(NAME, &SEED).unwrap();
    let forged = thief.checkpoint(7, &[0; 32]);
    let outlived = NoteError::Outlived { size: 7, most: 1 };
    assert_eq!(public.open_checkpoint(&forged, &third), Err(outlived));
}

#[test]
fn h1_an_exchange_that_is_cut_off_is_undone_or_ended() {
    let dir = tempfile::tempdir().unwrap();
    let [before, after] = ["before", "after"].map(|name| dir.path().join(name));
    let mut evidence = begin(&before);
    evidence.enter(b"one").unwrap();
    let first = key(&evidence);
    drop(evidence);
    copy(&before, &after);
    let second = open(&after).exchange(&keys(&after)).unwrap().key;
    let put = |folder: &Path, name: &str| {
        let secret = keys(&after).secret(name).unwrap().unwrap();
        keys(folder).keep(name, &secret).unwrap();
    };
    // The note was written, and its new key was not: nobody has that key.
    let cut = dir.path().join("cut");
    copy(&before, &cut);
    put(&cut, "log-past-1");
    let evidence = open(&cut);
    assert_eq!(key(&evidence), first);
    assert!(evidence.changes().is_empty());
    assert_eq!(names(&cut), ["log-1"]);
    drop(evidence);
    // Both keys are there: the old one goes.
    put(&cut, "log-past-1");
    put(&cut, "log-2");
    let evidence = open(&cut);
    assert_eq!(key(&evidence), second);
    assert_eq!(follow(&evidence, &first), second);
    assert_eq!(names(&cut), ["log-2", "log-past-1"]);
}

#[test]
fn h1_a_process_whose_key_is_not_the_source_s_exchanges_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut evidence = begin(dir.path());
    keys(dir.path()).keep("log-2", &[9; 32]).unwrap();
    let refused = evidence.exchange(&keys(dir.path())).unwrap_err();
    assert!(
        refused.to_string().contains("restart the server"),
        "{refused}"
    );
    assert_eq!(names(dir.path()), ["log-1", "log-2"]);
}

#[test]
fn h1_only_so_many_exchanges_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut evidence = begin(dir.path());
    evidence.enter(b"one").unwrap();
    for _ in 0..MOST_CHANGES + 2 {
        evidence.exchange(&keys(dir.path())).unwrap();
    }
    let third = evidence.own_keys()[0].clone();
    let now = key(&evidence);
    drop(evidence);
    let evidence = open(dir.path());
    assert_eq!(evidence.changes().len(), MOST_CHANGES);
    assert_eq!(follow(&evidence, &third), now);
}
