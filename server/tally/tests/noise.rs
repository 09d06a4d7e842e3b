//! Snapshots with noise: what is signed, what they cost, and the end of the budget.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{DAY, Disk, ITEMS, NOW, content, events, handle, offer, options};
use lethe_parts::content::{Content, Description};
use lethe_parts::contribution::Contribution;
use lethe_parts::noise::{Settings, Unfit, accountant};
use lethe_parts::{Refused, refold, snapshot};
use lethe_store::memory::MemoryStorage;
use lethe_tally::{Finished, Options, Served, SnapshotNoise, Statement, Tally, TallyError};

const PEOPLE: u8 = 36;

fn noisy(budget: f64) -> Options {
    Options {
        noise: Some(Settings {
            epsilon: 1.0,
            delta: 1e-6,
            budget,
        }),
        ..options()
    }
}

fn come(tally: &Tally) {
    for who in 0..PEOPLE {
        let events = events(who, 10);
        tally.contribute(&offer(handle(who), &events), NOW).unwrap();
    }
    tally.open_cells(NOW).unwrap();
}

fn statement(tally: &Tally) -> Statement {
    let Served::Snapshot(published) = tally.served() else {
        panic!("nothing is served")
    };
    Statement::open(&published.note, tally.verifier()).unwrap()
}

fn noise(tally: &Tally) -> SnapshotNoise {
    statement(tally).noise.unwrap()
}

/// Folds who counts again, as an auditor does, and compares both digests.
fn is_equal(tally: &Tally, who: &[u8]) -> bool {
    let audited = tally.audited(NOW).unwrap().unwrap();
    assert_eq!(audited.people, who.len());
    let items = ITEMS as usize;
    let drawn = audited.method.noise;
    let one = |who: &u8| match drawn.map(|d| d.mechanism) {
        Some(m) => refold::clipped(true, &events(*who, 10), items, m.clip, m.repeats),
        None => refold::contribution(true, &events(*who, 10), items),
    };
    let all: Result<Vec<Contribution>, Refused> = who.iter().map(one).collect();
    let sums = refold::fold(items, &audited.taken_down, [all]).unwrap();
    let stated = Statement::open(&audited.note, tally.verifier()).unwrap();
    let (solve, packing) = (&audited.method.solve, &audited.method.packing);
    let bytes = match &drawn {
        Some(d) => refold::noised_snapshot(&sums, d, &content(), solve, packing, stated.day),
        None => refold::snapshot(&sums, &content(), solve, packing, stated.day),
    };
    let digest = snapshot::digest(&sums.to_bytes());
    refold::salted(&audited.salt, &digest) == stated.sums
        && snapshot::digest(&bytes.unwrap()) == stated.snapshot
}

fn counting(tally: &Tally) -> Vec<u8> {
    let counts = |who: &u8| tally.held(&handle(*who), NOW).unwrap().cell > 0;
    (0..PEOPLE).filter(counts).collect()
}

fn tables(tally: &Tally) -> BTreeSet<String> {
    let mut tables = BTreeSet::new();
    tally
        .each(|table, _, _| {
            tables.insert(table.to_owned());
        })
        .unwrap();
    tables
}

#[test]
fn each_snapshot_has_noise_of_its_own_says_what_it_costs_and_can_be_made_again() {
    let disk = Disk::default();
    let tally = disk.try_open(noisy(100.0)).unwrap();
    come(&tally);
    let mut seeds = BTreeSet::new();
    let mut charge = 0;
    for release in 1..=3 {
        tally.publish(DAY, NOW).unwrap();
        assert!(is_equal(&tally, &counting(&tally)));
        let drawn = tally.audited(NOW).unwrap().unwrap().method.noise.unwrap();
        assert!(seeds.insert(drawn.seed), "a seed came again");
        charge += drawn.mechanism.charge;
        let spent = (accountant::epsilon(charge, 1e-6) * 1e6).ceil() as u64;
        let said = noise(&tally);
        assert_eq!(said.spent_millionths, spent);
        assert!((999_000..=1_000_000).contains(&said.epsilon_millionths));
        assert_eq!(
            (said.releases, said.delta_trillionths),
            (release, 1_000_000)
        );
        assert_eq!((said.clip, said.repeats), (20, 3));
    }
    let before = statement(&tally);
    drop(tally);
    let tally = disk.try_open(noisy(100.0)).unwrap();
    assert_eq!(statement(&tally), before);
    assert!(is_equal(&tally, &counting(&tally)));
    let refolded = tally.refold(NOW).unwrap().unwrap();
    assert_eq!(refolded.stated, Some(true));
    tally.publish(DAY, NOW).unwrap();
    assert_eq!(
        noise(&tally).releases,
        4,
        "what was spent is known after a restart"
    );
}

#[test]
fn the_seed_goes_with_the_key_of_its_generation() {
    let disk = Disk::default();
    let tally = disk.try_open(noisy(100.0)).unwrap();
    come(&tally);
    tally.publish(DAY, NOW).unwrap();
    assert!(tables(&tally).contains("tally-noise"));
    tally.leave(&[handle(counting(&tally)[0])], NOW).unwrap();
    assert!(!tables(&tally).contains("tally-noise"));
}

#[test]
fn at_the_end_of_the_budget_what_is_served_stays_and_after_a_deletion_nobody_is_in_it() {
    let disk = Disk::default();
    let tally = disk.try_open(noisy(1.6)).unwrap();
    come(&tally);
    let mut published = 0;
    let refused = loop {
        match tally.publish(DAY, NOW) {
            Ok(Finished::Published(_)) => published += 1,
            Ok(Finished::TooLate) => panic!("too late"),
            Err(e) => break e,
        }
    };
    // Two cost sqrt 2 and a little, three more than 1.6.
    assert_eq!(published, 2);
    assert!(matches!(refused, TallyError::Budget { .. }), "{refused}");
    let last = statement(&tally);
    assert_eq!((last.number, noise(&tally).releases), (2, 2));
    assert!(noise(&tally).spent_millionths <= 1_600_000);
    let status = tally.status(NOW).unwrap().noise.unwrap();
    assert!(status.exhausted && status.budget_millionths == 1_600_000);
    // A restart does not help.
    drop(tally);
    let tally = disk.try_open(noisy(1.6)).unwrap();
    let refused = tally.publish(DAY, NOW);
    assert!(matches!(refused, Err(TallyError::Budget { .. })));
    assert_eq!(statement(&tally), last);
    // A deletion recalls it all the same; the next has nobody in it, and costs nothing.
    let gone = counting(&tally)[0];
    tally.leave(&[handle(gone)], NOW).unwrap();
    assert!(matches!(tally.served(), Served::Out { .. }));
    tally.publish(DAY, NOW).unwrap();
    let empty = statement(&tally);
    assert_eq!((empty.number, empty.people, empty.cell), (3, 0, 0));
    let said = noise(&tally);
    assert_eq!((said.epsilon_millionths, said.releases), (0, 2));
    assert_eq!(tally.audited(NOW).unwrap().unwrap().method.noise, None);
    assert!(is_equal(&tally, &[]));
    let refused = tally.publish(DAY, NOW);
    assert!(matches!(refused, Err(TallyError::Budget { .. })));
    // With a larger budget who counts is in it again.
    drop(tally);
    let tally = disk.try_open(noisy(10.0)).unwrap();
    tally.publish(DAY, NOW).unwrap();
    let people = counting(&tally);
    assert!(!people.is_empty() && !people.contains(&gone));
    assert_eq!(statement(&tally).people, people.len() as u64);
    assert!(is_equal(&tally, &people));
    assert_eq!(noise(&tally).releases, 3);
}

#[test]
fn snapshots_of_a_later_state_of_the_folder_are_charged() {
    let disk = Disk::default();
    let tally = disk.try_open(noisy(100.0)).unwrap();
    come(&tally);
    tally.publish(DAY, NOW).unwrap();
    tally.skip_to(5, NOW).unwrap();
    tally.skip_to(5, NOW).unwrap();
    assert_eq!(tally.status(NOW).unwrap().noise.unwrap().releases, 5);
    tally.publish(DAY, NOW).unwrap();
    assert_eq!(noise(&tally).releases, 6);
}

#[test]
fn what_was_sealed_under_larger_settings_is_cut_to_what_the_noise_is_made_for() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally);
    tally.publish(DAY, NOW).unwrap();
    assert_eq!(statement(&tally).noise, None);
    drop(tally);
    let small = Options {
        clip: 4,
        repeats: 1,
        ..noisy(100.0)
    };
    let tally = disk.try_open(small).unwrap();
    // The sums in the folder were folded without a cut.
    tally.publish(DAY, NOW).unwrap();
    assert_eq!((noise(&tally).clip, noise(&tally).repeats), (4, 1));
    assert!(is_equal(&tally, &counting(&tally)));
    let cut = refold::clipped(true, &events(1, 10), ITEMS as usize, 4, 1).unwrap();
    assert_eq!(cut.seen().len(), 4);
    assert!(cut.starts().is_empty(), "the first event was left out");
}

#[test]
fn a_catalogue_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let content = Arc::new(Content::new(&vec![Description::default(); 4_097]));
    let engine = |_: &std::path::Path| -> Result<Box<dyn lethe_store::Storage>, _> {
        Ok(Box::<MemoryStorage>::default())
    };
    let opened = Tally::open(&engine, folder.path(), content, noisy(10.0), NOW);
    let refused = opened.unwrap_err();
    let TallyError::Noise(Unfit::Items { got, most }) = refused else {
        panic!("{refused}")
    };
    assert_eq!((got, most), (4_097, 4_096));
}
