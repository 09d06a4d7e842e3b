//! One digest for every CPU family: CI runs this on x86-64 and on aarch64.
#![allow(missing_docs, clippy::unwrap_used)]

mod people;

use lethe_parts::DENSE_ITEMS;
use lethe_parts::snapshot::{self, Packing};
use lethe_parts::solve::{Form, Settings, solve};
use lethe_parts::sums::Sums;
use people::{content, contributions};

fn hex(bytes: &[u8]) -> String {
    bytes[..8].iter().map(|b| format!("{b:02x}")).collect()
}

/// More items than the blocks of a Cholesky factorisation, and than the basis of the eigenpairs.
const ITEMS: usize = 400;

#[test]
fn sums_and_snapshots_have_the_pinned_digests_on_any_number_of_threads() {
    for threads in [1, 2, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let found = pool.build().unwrap().install(digests);
        assert_eq!(found, PINNED, "{threads} threads");
    }
}

const PINNED: [&str; 4] = [
    "6aa7ded5b6d48858",
    "5804bbe63662feb4",
    "7ed10c52bffb8347",
    "f538672b7b6dd306",
];

fn digests() -> Vec<String> {
    let mut sums = Sums::new(ITEMS);
    sums.fold_all(&contributions(250, ITEMS, 11)).unwrap();
    let mut found = vec![hex(&sums.digest())];
    // Text vectors from a fixed sequence: the encoder is not part of this crate.
    let text: Vec<f32> = (0..ITEMS * 24)
        .map(|i| ((i * 7_919 % 1_009) as f32 / 1_009.0) - 0.5)
        .collect();
    let content = content(ITEMS).with_text(&text).unwrap();
    for form in [Form::Dense, Form::Neighbourhood] {
        let settings = Settings {
            form,
            rank: 24,
            ..Settings::default()
        };
        let solved = solve(&sums, &content, &settings, 400).unwrap();
        let bytes = snapshot::encode(&solved.tables, &Packing::default()).unwrap();
        found.push(hex(&snapshot::digest(&bytes)));
    }
    // The layout of many items, without a field.
    let many = DENSE_ITEMS + 7;
    let mut sums = Sums::new(many);
    sums.fold_all(&contributions(250, many, 12)).unwrap();
    let settings = Settings {
        rank: 0,
        ..Settings::default()
    };
    let solved = solve(&sums, &people::content(many), &settings, 400).unwrap();
    let bytes = snapshot::encode(&solved.tables, &Packing::default()).unwrap();
    found.push(hex(&snapshot::digest(&bytes)));
    found
}
