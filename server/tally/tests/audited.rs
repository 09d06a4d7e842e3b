//! Whoever has the contributions, and what an auditor is given, makes the same bytes.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::{DAY, Disk, ITEMS, NOW, content, events, handle, offer};
use lethe_parts::contribution::Contribution;
use lethe_parts::refold::{self, salted};
use lethe_parts::{Refused, snapshot};
use lethe_proto::lists::{Placed, PlacedEvent};
use lethe_tally::{Audited, Served, Statement, Tally};

/// Nobody has the same events as somebody else.
const PEOPLE: u8 = 36;
const SALT: [u8; 32] = [6; 32];

/// A tally in which everybody has contributed `count` events; what was published.
fn published(disk: &Disk, count: u32) -> Tally {
    let tally = disk.open();
    come(&tally, 0..PEOPLE, count, NOW);
    tally.open_cells(NOW).unwrap();
    tally.publish(DAY, NOW).unwrap();
    tally
}

fn come(tally: &Tally, who: std::ops::Range<u8>, count: u32, now: u64) {
    for who in who {
        let events = events(who, count);
        tally.contribute(&offer(handle(who), &events), now).unwrap();
    }
}

/// As a device would have sent it: the tally's own code has no part in this.
fn digest_of(who: u8, count: u32) -> [u8; 32] {
    let placed = |e: &lethe_parts::history::Interaction| PlacedEvent {
        item: e.item,
        day: e.day,
        half_stars: e.half_stars.unwrap(),
        flags: u8::from(e.seen) + 2 * u8::from(e.liked),
    };
    let events = events(who, count).iter().map(placed).collect();
    let placed = Placed {
        whole: true,
        events,
    };
    salted(&SALT, &snapshot::digest(&placed.to_bytes().unwrap()))
}

fn people(tally: &Tally, of: &Audited) -> Option<Vec<[u8; 32]>> {
    let mut all = vec![];
    while all.len() < of.people {
        let page = tally
            .audited_people(of.number, &SALT, all.len(), 5, NOW)
            .unwrap()?;
        assert!((1..=5).contains(&page.len()));
        all.extend(page.iter().map(|d| d.0));
    }
    Some(all)
}

/// Folds these people, and compares with what is signed and served.
fn equal(tally: &Tally, of: &Audited, who: &[u8], count: u32) -> [bool; 2] {
    let one = |who: &u8| refold::contribution(true, &events(*who, count), ITEMS as usize);
    let all: Result<Vec<Contribution>, Refused> = who.iter().map(one).collect();
    let sums = refold::fold(ITEMS as usize, &of.taken_down, [all]).unwrap();
    let statement = Statement::open(&of.note, tally.verifier()).unwrap();
    let method = &of.method;
    let (solve, packing) = (&method.solve, &method.packing);
    let bytes = refold::snapshot(&sums, &content(), solve, packing, statement.day).unwrap();
    let digest = snapshot::digest(&sums.to_bytes());
    [
        salted(&of.salt, &digest) == statement.sums,
        snapshot::digest(&bytes) == statement.snapshot,
    ]
}

#[test]
fn who_counts_is_found_by_digest_and_folds_to_what_is_signed() {
    let disk = Disk::default();
    let tally = published(&disk, 6);
    let of = tally.audited(NOW).unwrap().unwrap();
    assert_eq!(of.content, content().digest());
    let digests = people(&tally, &of).unwrap();
    assert!((16..PEOPLE as usize).contains(&digests.len()), "some wait");
    let by_digest: BTreeMap<[u8; 32], u8> = (0..PEOPLE).map(|w| (digest_of(w, 6), w)).collect();
    let who: Vec<u8> = digests.iter().map(|d| by_digest[d]).collect();
    assert_eq!(equal(&tally, &of, &who, 6), [true, true]);
    let fewer = equal(&tally, &of, &who[1..], 6);
    assert!(!fewer[0]);
    let others = equal(&tally, &of, &who, 5);
    assert_eq!(others, [false, false]);
    // Past the end there is nobody.
    let past = tally.audited_people(of.number, &SALT, 1_000, 5, NOW);
    assert_eq!(past.unwrap(), Some(vec![]));
    assert_eq!(
        tally
            .audited_people(of.number + 1, &SALT, 0, 5, NOW)
            .unwrap(),
        None
    );
}

#[test]
fn what_is_recalled_is_not_audited_and_what_follows_is() {
    let disk = Disk::default();
    let tally = published(&disk, 6);
    let before = tally.audited(NOW).unwrap().unwrap();
    let all = people(&tally, &before).unwrap();
    let gone = (0..PEOPLE)
        .find(|w| all.contains(&digest_of(*w, 6)))
        .unwrap();
    tally.leave(&[handle(gone)], NOW).unwrap();
    assert_eq!(tally.audited(NOW).unwrap(), None);
    assert_eq!(people(&tally, &before), None);
    tally.take_down(&[3], NOW).unwrap();
    tally.publish(DAY, NOW).unwrap();
    let after = tally.audited(NOW).unwrap().unwrap();
    assert_eq!(after.taken_down, [3]);
    let digests = people(&tally, &after).unwrap();
    assert!(!digests.contains(&digest_of(gone, 6)));
    let who: Vec<u8> = (0..PEOPLE)
        .filter(|w| digests.contains(&digest_of(*w, 6)))
        .collect();
    assert_eq!(equal(&tally, &after, &who, 6), [true, true]);
}

#[test]
fn newer_versions_that_count_only_in_the_next_snapshot_are_not_given() {
    let disk = Disk::default();
    let tally = published(&disk, 6);
    let of = tally.audited(NOW).unwrap().unwrap();
    let before = people(&tally, &of).unwrap();
    come(&tally, 0..PEOPLE, 8, NOW + 1_000);
    // The newer ones wait: what counts is what it was.
    assert_eq!(people(&tally, &of), Some(before.clone()));
    tally.open_cells(NOW + 1_000).unwrap();
    // Cells were renewed: what counted in the served one is not there any more.
    assert!(matches!(tally.served(), Served::Snapshot(_)));
    assert_eq!(people(&tally, &of), None);
    tally.publish(DAY, NOW + 1_000).unwrap();
    let next = tally.audited(NOW + 1_000).unwrap().unwrap();
    let digests = people(&tally, &next).unwrap();
    let who: Vec<u8> = (0..PEOPLE)
        .filter(|w| digests.contains(&digest_of(*w, 8)))
        .collect();
    assert_eq!(who.len(), next.people);
    assert_eq!(equal(&tally, &next, &who, 8), [true, true]);
    // A restart changes nothing.
    drop(tally);
    let tally = disk.open();
    assert_eq!(tally.audited(NOW).unwrap(), Some(next.clone()));
    assert_eq!(people(&tally, &next), Some(digests));
}
