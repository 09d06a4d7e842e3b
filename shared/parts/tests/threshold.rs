//! A high threshold hides many pairs: what is left may have negative eigenvalues. Tables are solved
//! all the same.
#![allow(missing_docs, clippy::unwrap_used)]

mod people;

use lethe_parts::contribution::Contribution;
use lethe_parts::history::Interaction;
use lethe_parts::rows::Row;
use lethe_parts::solve::{Form, Settings, solve};
use lethe_parts::sums::Sums;
use lethe_parts::tables::Tables;
use people::{bounds, content};

/// Items of each of two kinds.
const OF_A_KIND: u32 = 6;
const ITEMS: usize = 2 * OF_A_KIND as usize;

/// Every two items of one kind with every two of the other, eight times over: 1,800 people. Two
/// items of a kind share 120 people, two of different kinds share 200, and everybody's is met by
/// 600.
fn two_kinds() -> Sums {
    let pairs = |first: u32| {
        let items = first..first + OF_A_KIND;
        let two = move |a: u32| (a + 1..first + OF_A_KIND).map(move |b| [a, b]);
        items.flat_map(two).collect::<Vec<_>>()
    };
    let mut sums = Sums::new(ITEMS);
    for left in pairs(0) {
        for right in pairs(OF_A_KIND) {
            let event = |item: u32| Interaction {
                item,
                day: 10,
                seen: true,
                half_stars: None,
                liked: true,
                hidden: false,
            };
            let events: Vec<Interaction> = left.into_iter().chain(right).map(event).collect();
            let one = Contribution::new(&events, &bounds(ITEMS)).unwrap();
            for _ in 0..8 {
                sums.fold(&one).unwrap();
            }
        }
    }
    sums
}

#[test]
fn tables_are_solved_whatever_the_threshold_hides() {
    let sums = two_kinds();
    for form in [Form::Dense, Form::Neighbourhood] {
        for k in [1, 150, 400, 1_000] {
            let settings = Settings {
                k,
                form,
                rank: 0,
                ..Settings::default()
            };
            let solved = solve(&sums, &content(ITEMS), &settings, 20).unwrap();
            let largest = largest(&solved.tables);
            // An item adds less than one to the score of another.
            assert!(largest < 1.0, "{form:?} with k = {k}: {largest}");
            assert_eq!(largest > 0.0, k <= 200, "{form:?} with k = {k}");
        }
    }
}

/// The largest weight between two items.
fn largest(tables: &Tables) -> f32 {
    let mut largest = 0.0f32;
    for item in 0..ITEMS as u32 {
        let mut row = Row::default();
        tables.ease().read(item, &mut row);
        for column in 0..ITEMS as u32 {
            let weight = row.get(column);
            assert!(weight.is_finite());
            largest = largest.max(weight.abs());
        }
    }
    largest
}
