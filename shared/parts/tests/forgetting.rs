//! What is forgotten is gone, bit for bit, from the sums to the snapshot.
#![allow(missing_docs, clippy::unwrap_used)]

mod people;

use lethe_learn::seed::Seed;
use lethe_parts::contribution::Contribution;
use lethe_parts::history::Interaction;
use lethe_parts::score::{CountsPart, PairsPart, TransitionsPart};
use lethe_parts::snapshot::{self, Packing};
use lethe_parts::solve::{Before, Form, Settings, recent, solve, solve_again};
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
    snapshot::encode(&solved.tables, &Packing::default()).unwrap()
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
        for threads in 1..=8 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                let mut sums = Sums::new(items);
                let (first, second) = everybody.split_at(8 * threads);
                sums.fold_all(second).unwrap();
                sums.fold_all(first).unwrap();
                assert_eq!(sums, one_by_one);
                sums.unfold_all(first).unwrap();
                assert_eq!(sums, folded(items, second));
            });
        }
        assert_eq!(
            Sums::from_bytes(&one_by_one.to_bytes(), items).unwrap(),
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
    // Together with people who were: nothing changes either, whichever of the sums refuses.
    for items in [ITEMS, DENSE_ITEMS + 7] {
        let everybody = contributions(20, items, 4);
        let mut sums = folded(items, &everybody[..19]);
        let before = sums.clone();
        let refused = sums.unfold_all(&everybody[10..]).unwrap_err();
        assert!(matches!(refused, Refused::NotFolded { .. }), "{refused}");
        let twice = [everybody[0].clone(), everybody[0].clone()];
        assert!(sums.unfold_all(&twice).is_err());
        let mut all = everybody.clone();
        all.extend(twice);
        assert!(sums.unfold_all(&all).is_err(), "more people than there are");
        assert_eq!(sums, before);
        sums.unfold_all(&everybody[..19]).unwrap();
        assert_eq!(sums, Sums::new(items));
    }
    assert!(matches!(
        sums.unfold_all(&larger),
        Err(Refused::Items { .. })
    ));
    let bytes = before.to_bytes();
    for cut in (0..bytes.len()).step_by(97) {
        assert!(Sums::from_bytes(&bytes[..cut], ITEMS).is_err());
    }
}

/// What is solved again after `change`, and how many columns that took of how many.
fn solve_twice(
    everybody: &[Contribution],
    items: usize,
    touched: &[u32],
    change: impl Fn(&mut Sums),
) -> [usize; 2] {
    let settings = Settings {
        form: Form::Neighbourhood,
        rank: 4,
        ..Settings::default()
    };
    let content = content(items);
    let mut sums = folded(items, everybody);
    let whole = solve(&sums, &content, &settings, 400).unwrap();
    change(&mut sums);
    let before = Before {
        solved: &whole,
        touched,
    };
    let again = solve_again(&before, &sums, &content, &settings, 400).unwrap();
    let fresh = solve(&sums, &content, &settings, 400).unwrap();
    assert!(again.tables == fresh.tables, "not what solving gives");
    assert!(again.tables != whole.tables, "nothing changed");
    // Other settings: nothing of the earlier result may be used.
    let other = Settings { k: 2, ..settings };
    let again_other = solve_again(&before, &sums, &content, &other, 400).unwrap();
    let fresh_other = solve(&sums, &content, &other, 400).unwrap();
    assert!(
        again_other.tables == fresh_other.tables,
        "not what solving gives"
    );
    assert!(again_other.tables != again.tables, "nothing changed");
    [again.columns_solved, fresh.columns_solved]
}

#[test]
fn solving_again_gives_the_bytes_of_solving() {
    const MANY: usize = 400;
    let everybody = contributions(300, MANY, 6);
    let one = &everybody[7];
    // Both layouts of the sums.
    for items in [MANY, DENSE_ITEMS + 7] {
        let [again, all] = solve_twice(&everybody, items, one.distinct(), |sums| {
            sums.unfold(one).unwrap();
        });
        assert!(again < all, "{again} of {all} columns for one person");
    }
    let newcomer = &contributions(1, MANY, 20)[0];
    solve_twice(&everybody, MANY, newcomer.distinct(), |sums| {
        sums.fold(newcomer).unwrap();
    });
    let several: Vec<u32> = everybody[..9]
        .iter()
        .flat_map(|c| c.distinct().to_vec())
        .collect();
    solve_twice(&everybody, MANY, &several, |sums| {
        everybody[..9].iter().for_each(|c| sums.unfold(c).unwrap());
    });
    // An item that the catalogue does not have is no reason to fail.
    solve_twice(&everybody, MANY, &[5, MANY as u32 + 3], |sums| {
        sums.clear_items(&[5]).unwrap();
    });
}

/// The end of a history, so that it says nothing about beginnings: items at these positions, each
/// rated with 4 stars, all on one day.
fn tail(items: &[u32]) -> Contribution {
    let interactions: Vec<Interaction> = items
        .iter()
        .map(|item| Interaction {
            item: *item,
            day: 390,
            seen: true,
            half_stars: Some(8),
            liked: true,
            hidden: false,
        })
        .collect();
    Contribution::tail(&interactions, &people::bounds(ITEMS)).unwrap()
}

#[test]
fn a_pair_counts_from_the_third_person_who_shares_it() {
    // Two items that nobody else meets: the crowd is over the other ones.
    let a = ITEMS as u32 - 1;
    let b = ITEMS as u32 - 2;
    let crowd: Vec<Contribution> = contributions(120, ITEMS, 7)
        .into_iter()
        .filter(|c| !c.distinct().contains(&a) && !c.distinct().contains(&b))
        .collect();
    let tables = |together: usize, k: u64, form: Form| {
        let mut sums = folded(ITEMS, &crowd);
        // Ten people meet each of the two; `together` of them meet both.
        for person in 0..10 {
            if person < together {
                sums.fold(&tail(&[a, b])).unwrap();
            } else {
                sums.fold(&tail(&[a])).unwrap();
                sums.fold(&tail(&[b])).unwrap();
            }
        }
        let settings = Settings {
            k,
            form,
            rank: 12,
            ..Settings::default()
        };
        solve(&sums, &content(ITEMS), &settings, 400)
            .unwrap()
            .tables
    };
    for form in [Form::Dense, Form::Neighbourhood] {
        let apart = tables(0, 3, form);
        assert!(tables(2, 3, form) == apart, "two people, threshold three");
        for [people, k] in [[3, 3], [2, 2]] {
            let together = tables(people, k as u64, form);
            let apart = tables(0, k as u64, form);
            assert!(together.ease() != apart.ease(), "ease");
            assert!(together.next() != apart.next(), "next");
            assert!(together.near() != apart.near(), "near");
            assert!(together.field() != apart.field(), "field");
            assert_eq!(together.columns(), apart.columns());
        }
    }
}

#[test]
fn an_item_counts_from_the_third_person_who_met_it() {
    let item = ITEMS as u32 - 1;
    let crowd: Vec<Contribution> = contributions(120, ITEMS, 8)
        .into_iter()
        .filter(|c| !c.distinct().contains(&item))
        .collect();
    let tables = |people: usize| {
        let mut sums = folded(ITEMS, &crowd);
        let own = Interaction {
            item,
            day: 390,
            seen: true,
            half_stars: Some(4),
            liked: true,
            hidden: false,
        };
        let one = Contribution::new(&[own], &people::bounds(ITEMS)).unwrap();
        for _ in 0..people {
            sums.fold(&one).unwrap();
        }
        let settings = Settings {
            rank: 4,
            ..Settings::default()
        };
        let content = content(ITEMS);
        let tables = solve(&sums, &content, &settings, 400).unwrap().tables;
        let alone = recent(&folded(ITEMS, &crowd), 3, 400);
        assert_eq!(recent(&sums, 3, 400) == alone, people < 3);
        tables
    };
    let nobody = tables(0);
    assert!(tables(2) == nobody, "two people, threshold three");
    assert!(tables(3) != nobody, "three people count");
}

#[test]
fn what_was_taken_down_stays_out_and_people_can_still_leave() {
    for items in [ITEMS, DENSE_ITEMS + 7] {
        let everybody = contributions(40, items, 10);
        let gone = [3, 4, 8];
        let mut cleared_first = Sums::new(items);
        cleared_first.clear_items(&gone).unwrap();
        let mut rest = cleared_first.clone();
        cleared_first.fold_all(&everybody).unwrap();
        rest.fold_all(&everybody[..30]).unwrap();
        let mut sums = folded(items, &everybody[..35]);
        sums.clear_items(&gone).unwrap();
        for one in &everybody[35..] {
            sums.fold(one).unwrap();
        }
        assert_eq!(sums, cleared_first);
        assert_eq!(Sums::from_bytes(&sums.to_bytes(), items).unwrap(), sums);
        let mut together = sums.clone();
        together.unfold_all(&everybody[30..]).unwrap();
        for one in &everybody[30..] {
            sums.unfold(one).unwrap();
        }
        assert_eq!(sums, together);
        assert_eq!(sums.to_bytes(), rest.to_bytes());
        assert_eq!(sums.cleared().collect::<Vec<u32>>(), gone);
        assert_eq!(sums.pairs().met.get(3, 7), 0);
        assert!(matches!(
            sums.clear_items(&[items as u32]),
            Err(Refused::UnknownItem { .. })
        ));
    }
}

#[test]
fn a_catalogue_without_items_is_no_reason_to_panic() {
    let empty = content(0);
    for form in [Form::Dense, Form::Neighbourhood] {
        let settings = Settings {
            form,
            ..Settings::default()
        };
        let solved = solve(&Sums::new(0), &empty, &settings, 400).unwrap();
        let bytes = snapshot::encode(&solved.tables, &Packing::default()).unwrap();
        assert_eq!(snapshot::decode(&bytes).unwrap().items(), 0);
    }
    let sums = Sums::new(0);
    assert_eq!(Sums::from_bytes(&sums.to_bytes(), 0).unwrap(), sums);
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
fn catalogues_grow() {
    let everybody = contributions(40, ITEMS, 10);
    let mut sums = folded(ITEMS, &everybody);
    sums.grow(ITEMS + 5);
    let mut grown = Sums::new(ITEMS + 5);
    grown.fold_all(&everybody).unwrap();
    assert_eq!(sums, grown);
}

/// With one person in the sums, what a part says that it takes to forget them is every number that
/// is not zero.
#[test]
fn parts_say_how_many_numbers_change() {
    for one in contributions(30, ITEMS, 11) {
        let sums = folded(ITEMS, [&one]);
        let counts = sums.counts();
        let columns = [
            &counts.seen,
            &counts.rated,
            &counts.half_stars,
            &counts.likes,
            &counts.starts,
            &counts.starters,
        ];
        let in_columns = columns.iter().flat_map(|c| c.iter()).filter(|n| **n > 0);
        let in_days: usize = counts.days.values().map(|day| day.len()).sum();
        let entries = in_columns.count() as u64 + in_days as u64;
        let expected = Forgetting::Withdraw { entries };
        assert_eq!(CountsPart::forgetting(counts, &one), expected);
        let pairs = sums.pairs();
        let tables = [&pairs.met, &pairs.rated, &pairs.products, &pairs.ratings];
        let entries = tables.iter().map(|m| m.entries()).sum();
        let expected = Forgetting::Withdraw { entries };
        assert_eq!(PairsPart::forgetting(pairs, &one), expected);
        let transitions = sums.transitions();
        let entries = transitions.near.entries() + transitions.far.entries();
        let expected = Forgetting::Withdraw { entries };
        assert_eq!(TransitionsPart::forgetting(transitions, &one), expected);
    }
}
