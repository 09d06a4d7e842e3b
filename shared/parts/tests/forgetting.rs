//! What is forgotten is gone, bit for bit, from the sums to the snapshot.
#![allow(missing_docs, clippy::unwrap_used)]

mod people;

use lethe_learn::seed::Seed;
use lethe_parts::contribution::Contribution;
use lethe_parts::score::{CountsPart, PairsPart, TransitionsPart};
use lethe_parts::snapshot::{self, Packing};
use lethe_parts::solve::{Before, Form, Settings, solve, solve_again};
use lethe_parts::sums::{Counts, Pairs, Sums, Transitions};
use lethe_parts::{DENSE_ITEMS, Forgetting, Part, Refused};
use people::{content, contributions};

const ITEMS: usize = 60;

fn folded<'a>(items: usize, all: impl IntoIterator<Item = &'a Contribution>) -> Sums {
    let mut sums = Sums::new(items);
    for one in all {
        sums.fold(one).unwrap();
    }
    sums
}

fn snapshot_of(sums: &Sums, form: Form) -> Vec<u8> {
    let settings = Settings {
        form,
        rank: 8,
        ..Settings::default()
    };
    let solved = solve(sums, &content(sums.items()), &settings, 400).unwrap();
    snapshot::encode(&solved.tables, &Packing::default())
}

#[test]
fn two_hundred_people_in_random_orders_leave_no_bit() {
    let everybody = contributions(90, ITEMS, 1);
    let mut rng = Seed::from_u64(2).rng();
    for turn in 0..200 {
        let mut order: Vec<&Contribution> = everybody.iter().collect();
        rng.shuffle(&mut order);
        let leaver = rng.below(order.len());
        let mut sums = folded(ITEMS, order.iter().copied());
        let before = sums.to_bytes();
        sums.unfold(order[leaver]).unwrap();
        let rest = order.iter().enumerate().filter(|(at, _)| *at != leaver);
        let mut rest: Vec<&Contribution> = rest.map(|(_, c)| *c).collect();
        rng.shuffle(&mut rest);
        let without = folded(ITEMS, rest);
        assert_eq!(sums.to_bytes(), without.to_bytes(), "turn {turn}");
        assert_ne!(before, without.to_bytes(), "turn {turn} changed nothing");
        let form = if turn % 2 == 0 {
            Form::Dense
        } else {
            Form::Neighbourhood
        };
        assert_eq!(snapshot_of(&sums, form), snapshot_of(&without, form));
    }
}

#[test]
fn grouping_and_threads_do_not_matter() {
    for items in [ITEMS, DENSE_ITEMS + 7] {
        let everybody = contributions(70, items, 3);
        let one_by_one = folded(items, &everybody);
        let mut bytes = vec![];
        for threads in 1..=8 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                let mut sums = Sums::new(items);
                let (first, second) = everybody.split_at(8 * threads);
                sums.fold_all(second).unwrap();
                sums.fold_all(first).unwrap();
                assert_eq!(sums, one_by_one);
                if items == ITEMS {
                    bytes.push(snapshot_of(&sums, Form::Dense));
                }
            });
        }
        assert!(bytes.windows(2).all(|w| w[0] == w[1]));
        assert_eq!(
            Sums::from_bytes(&one_by_one.to_bytes()).unwrap(),
            one_by_one
        );
    }
}

#[test]
fn what_was_never_folded_is_refused_and_nothing_changes() {
    let everybody = contributions(20, ITEMS, 4);
    let mut sums = folded(ITEMS, &everybody[..19]);
    let before = sums.clone();
    assert!(matches!(
        sums.unfold(&everybody[19]),
        Err(Refused::NotFolded { .. })
    ));
    let larger = contributions(1, ITEMS + 1, 5);
    assert!(matches!(sums.fold(&larger[0]), Err(Refused::Items { .. })));
    assert!(matches!(
        sums.unfold(&larger[0]),
        Err(Refused::Items { .. })
    ));
    assert_eq!(sums, before);
    let bytes = before.to_bytes();
    for cut in (0..bytes.len()).step_by(97) {
        assert!(Sums::from_bytes(&bytes[..cut]).is_err());
    }
}

#[test]
fn solving_again_gives_the_bytes_of_solving() {
    let everybody = contributions(300, 400, 6);
    let settings = Settings {
        form: Form::Neighbourhood,
        rank: 4,
        ..Settings::default()
    };
    let content = content(400);
    let mut sums = folded(400, &everybody);
    let whole = solve(&sums, &content, &settings, 400).unwrap();
    sums.unfold(&everybody[7]).unwrap();
    let before = Before {
        solved: &whole,
        touched: everybody[7].distinct(),
    };
    let again = solve_again(&before, &sums, &content, &settings, 400).unwrap();
    let fresh = solve(&sums, &content, &settings, 400).unwrap();
    assert_eq!(again.tables, fresh.tables);
    assert!(again.columns_solved < fresh.columns_solved);
    assert_ne!(again.tables, whole.tables);
}

#[test]
fn pairs_that_few_people_share_count_as_nothing() {
    // Two people share a pair that nobody else has.
    let mut everybody = contributions(60, ITEMS, 7);
    let few = contributions(2, ITEMS, 8);
    let mut sums = folded(ITEMS, &everybody);
    let settings = Settings {
        k: 1_000,
        rank: 2,
        ..Settings::default()
    };
    // With a threshold above the number of people nothing is left of anybody.
    let nobody = solve(&Sums::new(ITEMS), &content(ITEMS), &settings, 400).unwrap();
    let hidden = solve(&sums, &content(ITEMS), &settings, 400).unwrap();
    let bytes = |s: &lethe_parts::solve::Solved| snapshot::encode(&s.tables, &Packing::default());
    assert_eq!(bytes(&nobody), bytes(&hidden));
    everybody.extend(few);
    sums = folded(ITEMS, &everybody);
    let shown = solve(&sums, &content(ITEMS), &Settings { k: 3, ..settings }, 400).unwrap();
    assert_ne!(bytes(&shown), bytes(&hidden));
}

#[test]
fn parts_fold_and_unfold_alone_as_in_the_sums() {
    let everybody = contributions(12, ITEMS, 9);
    let mut counts = Counts::new(ITEMS);
    let mut pairs = Pairs::new(ITEMS);
    let mut transitions = Transitions::new(ITEMS);
    for one in &everybody {
        CountsPart::fold(&mut counts, one).unwrap();
        PairsPart::fold(&mut pairs, one).unwrap();
        TransitionsPart::fold(&mut transitions, one).unwrap();
    }
    let sums = folded(ITEMS, &everybody);
    assert_eq!(*sums.counts(), counts);
    assert_eq!(*sums.pairs(), pairs);
    assert_eq!(*sums.transitions(), transitions);
    let one = &everybody[3];
    let n = one.distinct().len() as u64;
    let rated = one.rated().len() as u64;
    assert_eq!(
        PairsPart::forgetting(&pairs, one),
        Forgetting::Withdraw {
            entries: n * n + 3 * rated * rated
        }
    );
    for one in &everybody {
        CountsPart::unfold(&mut counts, one).unwrap();
        PairsPart::unfold(&mut pairs, one).unwrap();
        TransitionsPart::unfold(&mut transitions, one).unwrap();
    }
    assert_eq!(counts, Counts::new(ITEMS));
    assert_eq!(pairs, Pairs::new(ITEMS));
    assert_eq!(transitions, Transitions::new(ITEMS));
    assert!(PairsPart::unfold(&mut pairs, one).is_err());
}

#[test]
fn catalogues_grow_and_lose_items() {
    let everybody = contributions(40, ITEMS, 10);
    let mut sums = folded(ITEMS, &everybody);
    sums.grow(ITEMS + 5);
    let mut grown = Sums::new(ITEMS + 5);
    grown.fold_all(&everybody).unwrap();
    assert_eq!(sums, grown);
    sums.clear_items(&[3, 4]);
    assert_eq!(sums.counts().seen[3], 0);
    assert_eq!(sums.pairs().met.get(3, 8), 0);
    assert_eq!(sums.pairs().met.get(8, 3), 0);
    assert_eq!(sums.pairs().met.get(8, 9), grown.pairs().met.get(8, 9));
}
