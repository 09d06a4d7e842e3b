//! Measurements: the same seed draws the same cells, and who counts is told with the version that
//! does.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{NOW, content, events, handle, offer, options};
use lethe_learn::seed::Seed;
use lethe_store::memory::MemoryStorage;
use lethe_tally::cells::Fold;
use lethe_tally::{Tally, Version};

fn tally(seed: u64, folder: &Path) -> Tally {
    Tally::open_seeded(
        &|_| Ok(Box::<MemoryStorage>::default()),
        folder,
        Arc::new(content()),
        options(),
        Seed::from_u64(seed),
        NOW,
    )
    .unwrap()
}

fn fold(seed: u64) -> Fold {
    let folder = tempfile::tempdir().unwrap();
    let tally = tally(seed, folder.path());
    for who in 0..40 {
        tally
            .contribute(&offer(handle(who), &events(who, 5)), NOW)
            .unwrap();
    }
    assert!(tally.open_cells(NOW).unwrap() > 4);
    tally.fold(NOW).unwrap()
}

#[test]
fn the_same_seed_draws_the_same_cells() {
    assert_eq!(fold(1), fold(1));
    assert_ne!(fold(1), fold(2));
}

#[test]
fn who_counts_is_told_with_the_version_that_does() {
    let folder = tempfile::tempdir().unwrap();
    let tally = tally(1, folder.path());
    for who in 0..24 {
        tally
            .contribute(&offer(handle(who), &events(who, 5)), NOW)
            .unwrap();
    }
    assert!(
        tally.counting(NOW).unwrap().is_empty(),
        "nobody counts before a cell opens"
    );
    tally.open_cells(NOW).unwrap();
    let first = tally.counting(NOW).unwrap();
    assert_eq!(first.len(), tally.status(NOW).unwrap().counting);
    assert!(first.values().all(|v| *v == Version(1)));
    // All of one cell have newer events; nobody else has.
    let later = NOW + 200;
    let cell: Vec<_> = (0..24)
        .filter(|w| first.contains_key(&handle(*w)))
        .collect();
    for who in &cell {
        tally
            .contribute(&offer(handle(*who), &events(*who, 8)), later)
            .unwrap();
    }
    tally.open_cells(later).unwrap();
    let second = tally.counting(later).unwrap();
    assert!(
        cell.iter()
            .all(|w| second.get(&handle(*w)) == Some(&Version(2)))
    );
    tally.leave(&[handle(cell[0])], later).unwrap();
    assert!(
        !tally
            .counting(later)
            .unwrap()
            .contains_key(&handle(cell[0]))
    );
}
