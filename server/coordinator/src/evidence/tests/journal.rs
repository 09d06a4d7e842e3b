//! The journal: batches that are whole or absent, crashes, entries of the first version.

use std::path::{Path, PathBuf};

use lethe_ledger::{Accepted, Event};
use lethe_proto::codec;
use lethe_proto::message::Refusal;
use lethe_store::keyfile;
use lethe_store::logfile::LogFile;

use super::driver::{Driver, NAME, SEED, erase, erase_item};
use crate::CoordinatorError;
use crate::evidence::Evidence;
use crate::evidence::journal::Journal;

fn accepted(id: u64, name: &str) -> Accepted {
    Accepted {
        id,
        request: erase(name),
        salt: [id as u8; 32],
        at: 1_700_000_000_000,
        batch: 3,
        task: None,
        reference: "case 7".into(),
    }
}

fn batch() -> Vec<Accepted> {
    let mut all = vec![accepted(2, "ben"), accepted(3, "cleo"), accepted(4, "dora")];
    all[2].request = erase_item("dora", "5");
    all[2].task = Some(9);
    all[2].reference = "case 8".into();
    all
}

/// The journal's files: itself and its copy, each with its count.
fn files(folder: &Path) -> [PathBuf; 4] {
    [
        "journal",
        "journal.copy",
        "journal.count",
        "journal.copy.count",
    ]
    .map(|f| folder.join(f))
}

fn entries(folder: &Path) -> usize {
    let file = LogFile::open(&folder.join("journal")).unwrap();
    file.entries().len()
}

#[test]
fn a_batch_is_whole_or_absent_wherever_the_file_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let (mut journal, none) = Journal::open(folder).unwrap();
    assert!(none.is_empty());
    journal.add(vec![accepted(1, "ada")]).unwrap();
    let before = files(folder).map(|f| std::fs::read(f).unwrap());
    journal.add(batch()).unwrap();
    drop(journal);
    let after = files(folder).map(|f| std::fs::read(f).unwrap());
    let whole = [vec![accepted(1, "ada")], batch()].concat();
    let put = |files: [&[u8]; 4]| {
        for (path, bytes) in self::files(folder).iter().zip(files) {
            std::fs::write(path, bytes).unwrap();
        }
    };
    // The crash comes while the first copy is written; nothing is acknowledged.
    for end in before[0].len()..after[0].len() {
        put([&after[0][..end], &before[1], &before[2], &before[3]]);
        let (_, all) = Journal::open(folder).unwrap();
        assert_eq!(all, whole[..1], "{end} bytes");
    }
    // It comes while the second one is written: the first has all of it.
    for end in before[1].len()..=after[1].len() {
        put([&after[0], &after[1][..end], &after[2], &before[3]]);
        let (mut journal, all) = Journal::open(folder).unwrap();
        assert_eq!(all, whole, "{end} bytes");
        journal.add(batch()).unwrap();
        assert_eq!(journal.read().unwrap(), whole, "it is there already");
    }
}

#[test]
fn entries_of_the_first_version_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut file = LogFile::open(&folder.join("journal")).unwrap();
    let key = keyfile::open(&folder.join("journal-key"), true).unwrap();
    for (i, a) in [accepted(1, "ada"), accepted(2, "ben")].iter().enumerate() {
        let plain = codec::to_bytes(a).unwrap();
        let sealed = lethe_seal::seal(&key, &(i as u64).to_le_bytes(), &plain).unwrap();
        file.append(&sealed).unwrap();
    }
    drop(file);
    let (mut journal, all) = Journal::open(folder).unwrap();
    assert_eq!(all, [accepted(1, "ada"), accepted(2, "ben")]);
    journal
        .add(vec![accepted(2, "ben"), accepted(3, "cleo")])
        .unwrap();
    let (journal, all) = Journal::open(folder).unwrap();
    assert_eq!(all.len(), 3);
    assert!(journal.holds(3) && !journal.holds(4));
    // Nor does an entry of either version open at another place.
    let mut file = LogFile::open(&folder.join("journal")).unwrap();
    let moved = file.entries()[2].clone();
    file.append(&moved).unwrap();
    let why = Journal::open(folder).unwrap_err();
    assert!(matches!(why, CoordinatorError::Journal { entry: 3 }));
}

#[test]
fn an_entry_of_a_later_version_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    drop(Journal::open(folder).unwrap());
    let mut file = LogFile::open(&folder.join("journal")).unwrap();
    let key = keyfile::open(&folder.join("journal-key"), true).unwrap();
    let nothing: Vec<String> = vec![];
    let plain = codec::to_bytes(&(3u32, &nothing, &nothing)).unwrap();
    let purpose = [&0u64.to_le_bytes()[..], b"lethe-journal-list"].concat();
    file.append(&lethe_seal::seal(&key, &purpose, &plain).unwrap())
        .unwrap();
    let why = Journal::open(folder).unwrap_err();
    assert!(matches!(why, CoordinatorError::Journal { entry: 0 }));
}

#[test]
fn what_does_not_fit_is_refused_before_any_of_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path()).unwrap();
    let long = |id: u64| Accepted {
        reference: format!("{id}").repeat(90_000),
        ..accepted(id, "ada")
    };
    // A batch has one reference, however many its requests are.
    let same = |id: u64| Accepted { id, ..long(1) };
    journal.add((1..800).map(same).collect()).unwrap();
    let why = journal.add((1000..1009).map(long).collect()).unwrap_err();
    assert!(matches!(
        why,
        CoordinatorError::Refused {
            code: Refusal::Invalid,
            ..
        }
    ));
    assert_eq!(journal.read().unwrap().len(), 799);
    assert!(!journal.holds(1000));
}

#[test]
fn a_request_that_the_store_did_not_get_is_done_after_the_crash() {
    let mut d = Driver::trained();
    let command = d.propose(vec![erase("ada"), erase_item("ben", "5")], "case 7");
    let events = d.decide(command);
    d.evidence.before(&events).unwrap();
    // Crash: nothing of it is in the state.
    d.reopen();
    assert!(d.state.deletions().is_empty());
    let journal = d.evidence.held().unwrap().journal;
    let again = d.start().unwrap();
    let done = again
        .iter()
        .filter(|e| matches!(e, Event::DeletionAccepted { .. }));
    assert_eq!(done.count(), 2);
    let known = d.state.deletions().iter();
    let known: Vec<Accepted> = known.map(|(id, d)| Accepted::of(*id, d)).collect();
    assert_eq!(known, journal, "the same numbers, salts and times");
    assert_eq!(entries(d.folder.path()), 1, "it was in the journal already");
    d.until(|s| s.deletions().values().all(|d| d.receipt.is_some()));
}

#[test]
fn a_number_does_not_come_to_mean_another_request() {
    let mut d = Driver::trained();
    let command = d.propose(vec![erase("ada")], "");
    let events = d.decide(command);
    d.evidence.before(&events).unwrap();
    // The write failed, and the state was not told what the journal holds.
    let command = d.propose(vec![erase("ben")], "");
    let other = d.decide(command);
    let why = d.evidence.before(&other).unwrap_err();
    assert!(why.to_string().contains("another request under number 1"));
    d.start().unwrap();
    let command = d.propose(vec![erase("ben")], "");
    d.run(command).unwrap();
    assert_eq!(d.state.deletions().len(), 2);
}

#[test]
fn a_journal_that_was_lost_is_made_again() {
    let mut d = Driver::trained();
    d.forget(vec![erase("ada"), erase("ben")]);
    d.forget(vec![erase("cleo")]);
    let held = d.evidence.held().unwrap().journal;
    for file in files(d.folder.path()) {
        std::fs::remove_file(file).unwrap();
    }
    d.reopen();
    assert!(d.evidence.held().unwrap().journal.is_empty());
    for _ in 0..2 {
        d.evidence.lacking(&d.state).unwrap();
        assert_eq!(d.evidence.held().unwrap().journal, held);
    }
    assert_eq!(entries(d.folder.path()), 3);
}

#[test]
fn no_release_has_a_number_below_the_floor() {
    let d = Driver::trained();
    let folder = d.folder.path();
    assert_eq!(d.evidence.held().unwrap().floor, Some(1));
    let (mut evidence, opened) = Evidence::open(folder, NAME, &SEED).unwrap();
    assert_eq!(opened.floor, Some(1));
    let release = d.state.releases()[&1].clone();
    let released = |no| {
        let release = Box::new(release.clone());
        Event::Released { no, release }
    };
    evidence.before(&[released(7), released(5)]).unwrap();
    evidence.before(&[released(3)]).unwrap();
    let (_, opened) = Evidence::open(folder, NAME, &SEED).unwrap();
    assert_eq!(opened.floor, Some(7));
}
