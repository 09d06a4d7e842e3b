//! What nobody outside can see: what was published last, and how much is kept of it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use lethe_parts::content::Description;
use lethe_parts::history::Interaction;
use lethe_store::sled_backend::SledStorage;

use super::*;
use crate::cells::{CellSettings, Fault};
use crate::ids::Version;

const NOW: u64 = 20_000 * 86_400;

fn open(folder: &Path) -> Tally {
    let content = Arc::new(Content::new(&vec![Description::default(); 5]));
    let cells = CellSettings {
        least: 4,
        most: 8,
        share: 1_000,
        changed: 2,
        ..CellSettings::default()
    };
    let options = Options {
        cells,
        ..Options::default()
    };
    Tally::open(&SledStorage::engine, folder, content, options, NOW).unwrap()
}

fn come(tally: &Tally, people: u8) {
    for who in 0..people {
        let events = [Interaction {
            item: u32::from(who) % 5,
            day: 19_990,
            seen: true,
            half_stars: None,
            liked: false,
            hidden: false,
        }];
        let offer = Offer {
            handle: Handle([who; 16]),
            source: [1; 16],
            whole: true,
            events: &events,
        };
        tally.contribute(&offer, NOW).unwrap();
    }
    tally.open_cells(NOW).unwrap();
}

fn last(tally: &Tally) -> Last {
    tally.lock().last.clone().unwrap()
}

#[test]
fn what_was_published_last_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let tally = open(folder.path());
    assert!(tally.lock().last.is_none());
    come(&tally, 24);
    tally.publish(20_000, NOW).unwrap();
    let first = last(&tally).fold;
    assert_eq!(first.people(), 12, "three cells of four");
    // Everybody leaves: the cells that were published are still known.
    tally
        .leave(&(0..20).map(|w| Handle([w; 16])).collect::<Vec<_>>(), NOW)
        .unwrap();
    drop(tally);
    let tally = open(folder.path());
    assert!(matches!(tally.served(), Served::Out { .. }));
    assert_eq!(last(&tally).fold, first);
    tally.publish(20_000, NOW).unwrap();
    let second = last(&tally).fold;
    assert!(second.cells.keys().all(|c| first.cells.contains_key(c)));
    assert!(second.people() < first.people());
    drop(tally);
    let tally = open(folder.path());
    assert_eq!(last(&tally).fold, second, "what is gone was removed");
}

#[test]
fn what_would_tell_on_somebody_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let tally = open(folder.path());
    come(&tally, 24);
    tally.publish(20_000, NOW).unwrap();
    let served = tally.served();
    // As if one of a cell had counted with an older version, alone.
    let mut altered = last(&tally);
    let cell = altered.fold.cells.values_mut().next().unwrap();
    *cell.values_mut().next().unwrap() = Version(0);
    tally.lock().last = Some(altered);
    let refused = tally.publish(20_000, NOW).unwrap_err();
    let few = TallyError::Lint(Fault::Few {
        before: 1,
        after: 2,
        cell: 1,
        got: 1,
        least: 2,
    });
    assert_eq!(refused.to_string(), few.to_string());
    assert_eq!(tally.served(), served);
}

#[test]
fn ten_thousand_notes_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let tally = open(folder.path());
    tally.publish(20_000, NOW).unwrap();
    let last = last(&tally);
    let mut snapshot = tally.lock().kept[0].clone();
    for number in [2, 10_000, 10_001] {
        snapshot.number = number;
        snapshot.note = number.to_string();
        let inner = &mut *tally.lock();
        let changed = inner.state.take_changed();
        tally
            .vault
            .publish(&inner.state, &changed, &snapshot, &[], None, &last)
            .unwrap();
    }
    assert_eq!(tally.published().unwrap(), ["2", "10000", "10001"]);
}
