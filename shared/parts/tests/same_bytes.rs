//! One digest for every CPU family: CI runs this on x86-64 and on aarch64.
#![allow(missing_docs, clippy::unwrap_used)]

mod people;

use lethe_parts::snapshot::{self, Packing};
use lethe_parts::solve::{Form, Settings, solve};
use lethe_parts::sums::Sums;
use people::{content, contributions};

fn hex(bytes: &[u8]) -> String {
    bytes[..8].iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn sums_and_snapshots_have_the_pinned_digests() {
    const ITEMS: usize = 150;
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
        let bytes = snapshot::encode(&solved.tables, &Packing::default());
        found.push(hex(&snapshot::digest(&bytes)));
    }
    assert_eq!(
        found,
        ["89385116a5239257", "445381358e223d36", "00f7f70ae5c92f96"]
    );
}
