//! Decoders take any bytes. Fuzz targets, too: `cargo bolero test -p lethe-parts --test decoders
//! mutated_snapshots_never_panic`.
#![allow(missing_docs, clippy::unwrap_used)]

mod people;

use lethe_parts::history::History;
use lethe_parts::score::{Options, Ranker, Request};
use lethe_parts::snapshot::{self, Packing};
use lethe_parts::solve::{Settings, solve};
use lethe_parts::sums::Sums;
use people::{all_events, content, contributions};

const ITEMS: usize = 30;

fn sums() -> Sums {
    let mut sums = Sums::new(ITEMS);
    sums.fold_all(&contributions(40, ITEMS, 1)).unwrap();
    sums
}

fn snapshots() -> [Vec<u8>; 2] {
    let settings = Settings {
        rank: 4,
        ..Settings::default()
    };
    [
        Packing::default(),
        Packing {
            rank: 2,
            ..Packing::default()
        },
    ]
    .map(|packing| {
        let solved = solve(&sums(), &content(ITEMS), &settings, 400).unwrap();
        snapshot::encode(&solved.tables, &packing).unwrap()
    })
}

fn edited(valid: &[u8], edits: &[(u16, u8)]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for (at, value) in edits {
        let i = *at as usize % bytes.len();
        bytes[i] = *value;
    }
    bytes
}

#[test]
fn decoders_never_panic() {
    let [old, _] = snapshots();
    bolero::check!().for_each(|bytes: &[u8]| {
        let _ = snapshot::decode(bytes);
        let _ = snapshot::apply(&old, bytes);
        let _ = Sums::from_bytes(bytes, ITEMS);
    });
}

/// Starts from valid bytes, so that mutations reach deep; what decodes can be ranked with.
#[test]
fn mutated_snapshots_never_panic() {
    let [valid, _] = snapshots();
    let content = content(ITEMS);
    let events = &all_events(1, ITEMS, 2)[0];
    let history = History::of_events(events, &lethe_parts::event::Meaning::default());
    let request = Request {
        history: &history,
        today: 401,
    };
    bolero::check!()
        .with_type::<Vec<(u16, u8)>>()
        .for_each(|edits| {
            if let Ok(tables) = snapshot::decode(&edited(&valid, edits))
                && tables.items() == ITEMS
            {
                let options = Options::default();
                Ranker::default().page(&tables, &content, &request, &options);
            }
        });
}

#[test]
fn mutated_sums_and_deltas_never_panic() {
    let valid = sums().to_bytes();
    let one = contributions(1, ITEMS, 3).remove(0);
    let content = content(ITEMS);
    let settings = Settings {
        rank: 4,
        ..Settings::default()
    };
    let [old, new] = snapshots();
    let delta = snapshot::delta(&old, &new).unwrap();
    bolero::check!()
        .with_type::<Vec<(u16, u8)>>()
        .for_each(|edits| {
            if let Ok(mut sums) = Sums::from_bytes(&edited(&valid, edits), ITEMS) {
                assert_eq!(Sums::from_bytes(&sums.to_bytes(), ITEMS).unwrap(), sums);
                // What decodes can be worked with; damaged sums may have no solution.
                let _ = sums.unfold(&one);
                sums.fold(&one).unwrap();
                if let Ok(solved) = solve(&sums, &content, &settings, 400) {
                    snapshot::encode(&solved.tables, &Packing::default()).unwrap();
                }
            }
            if let Ok(applied) = snapshot::apply(&old, &edited(&delta, edits)) {
                assert_eq!(applied, new);
            }
        });
}
