use super::*;
use crate::content::{Content, Description};
use crate::contribution::Contribution;
use crate::history::Interaction;
use crate::refold::{self, clipped};
use crate::snapshot::{Packing, digest};
use crate::solve;

const ITEMS: usize = 40;
const DAY: i32 = 1_000;
const SETTINGS: Settings = Settings {
    epsilon: 10.0,
    delta: 1e-6,
    budget: 30.0,
};

fn of(who: u32) -> Contribution {
    let one = |n: u32| Interaction {
        item: (who * 7 + n * n) % ITEMS as u32,
        day: DAY - 40 + n as i32,
        seen: true,
        half_stars: Some(2 + ((who + n) % 9) as u8),
        liked: (who + n).is_multiple_of(2),
        hidden: false,
    };
    let events: Vec<Interaction> = (0..12).map(one).collect();
    clipped(true, &events, ITEMS, 20, 1).expect("within bounds")
}

fn sums(people: u32) -> Sums {
    let mut sums = Sums::new(ITEMS);
    let all: Vec<Contribution> = (0..people).map(of).collect();
    sums.fold_all(&all).expect("folds");
    sums
}

fn drawn(settings: &Settings, seed: u8) -> Drawn {
    Drawn {
        mechanism: Mechanism::new(settings, 20, 1, ITEMS).expect("fits"),
        seed: [seed; 32],
    }
}

#[test]
fn the_noise_has_the_variance_that_was_promised_also_where_nobody_is() {
    let shape = Shape {
        cuts: [0; 9],
        ..Shape::DEFAULT
    };
    for people in [0, 500] {
        let sums = sums(people);
        let queries = Queries::of(&sums, DAY);
        for group in Group::ALL {
            let mut squares = 0.0;
            let mut count = 0.0;
            let mut zeros = 0.0;
            for seed in 0..20 {
                let drawn = drawn(&SETTINGS, seed);
                let noising = Noising {
                    shape: &shape,
                    queries: Queries::of(&sums, DAY),
                    drawn: &drawn,
                    counts: vec![true; ITEMS],
                };
                let got = noising.signed(group).expect("draws");
                for (row, numbers) in got.iter().enumerate() {
                    for (n, exact) in numbers.iter().zip(queries.row(group, row as u32)) {
                        squares += ((n - exact) as f64).powi(2);
                        zeros += f64::from(u8::from(*n == exact));
                        count += 1.0;
                    }
                }
            }
            let variance = promised(group);
            let off = (squares / count / variance - 1.0).abs();
            let error = (2.0f64 / count).sqrt();
            assert!(off < 5.0 * error, "{group:?}, {people}: {off}, {error}");
            assert!(
                zeros / count < 1.0 / variance.sqrt() + 5.0 * error,
                "{group:?}"
            );
        }
    }
}

fn promised(group: Group) -> f64 {
    let mechanism = drawn(&SETTINGS, 0).mechanism;
    mechanism.deviation(group).expect("fits").powi(2)
}

#[test]
fn shares_are_of_the_whole_charge_and_variances_spend_no_more() {
    assert_eq!(Shape::DEFAULT.shares.iter().sum::<u32>(), 100);
    for settings in [
        SETTINGS,
        Settings {
            epsilon: 0.3,
            ..SETTINGS
        },
    ] {
        let mechanism = drawn(&settings, 0).mechanism;
        let rho = |group: Group| {
            let squared = sensitivity::squared(group, mechanism.clip, mechanism.repeats) as f64;
            squared / 2.0 / mechanism.variance(group, &Shape::DEFAULT).expect("fits") as f64
        };
        let spent: f64 = Group::ALL.into_iter().map(rho).sum();
        let charge = (spent * 1e12) as u64;
        assert!(charge <= mechanism.charge + 9, "{charge}, {mechanism:?}");
        assert!(charge as f64 > 0.9 * mechanism.charge as f64);
        let epsilon = accountant::epsilon(charge, settings.delta);
        assert!(epsilon <= settings.epsilon + 1e-9);
    }
}

#[test]
fn one_seed_gives_one_snapshot_on_every_number_of_threads() {
    let sums = sums(300);
    let content = Content::new(&vec![Description::default(); ITEMS]);
    let settings = solve::Settings::default();
    let make = |seed: u8, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().expect("threads");
        let packing = Packing::default();
        let drawn = drawn(&SETTINGS, seed);
        pool.install(|| refold::noised_snapshot(&sums, &drawn, &content, &settings, &packing, DAY))
            .expect("is made")
    };
    let one = digest(&make(1, 1));
    assert_eq!(digest(&make(1, 2)), one);
    assert_ne!(digest(&make(2, 2)), one);
    let plain = refold::snapshot(&sums, &content, &settings, &Packing::default(), DAY);
    assert_ne!(digest(&plain.expect("is made")), one);
}

#[test]
fn noised_sums_agree_with_themselves_and_leave_out_what_was_taken_down() {
    let mut sums = sums(300);
    sums.clear_items(&[3, 17]).expect("has them");
    let noised = noised(&sums, &drawn(&SETTINGS, 5), DAY).expect("draws");
    let counts = noised.counts();
    for i in 0..ITEMS as u32 {
        let at = i as usize;
        let seen = counts.seen[at];
        assert_eq!(noised.pairs().met.get(i, i), seen);
        assert!((2 * counts.rated[at]..=10 * counts.rated[at]).contains(&counts.half_stars[at]));
        assert!(counts.likes[at] <= counts.rated[at]);
        for j in 0..ITEMS as u32 {
            let met = noised.pairs().met.get(i, j);
            assert_eq!(met, noised.pairs().met.get(j, i));
            assert!(met <= seen);
            let down = [3, 17].iter().any(|d| [i, j].contains(d));
            let far = noised.transitions().far.get(i, j);
            assert!(!down || (met == 0 && far == 0));
        }
    }
    assert_eq!((counts.seen[3], counts.rated[17]), (0, 0));
    let days: Vec<i32> = counts.days.keys().copied().collect();
    assert_eq!(days, [DAY - 1]);
}

#[test]
fn what_cannot_be_noised_is_refused() {
    let refused = |settings: Settings, items| Mechanism::new(&settings, 200, 3, items);
    let many = refused(SETTINGS, DENSE_ITEMS + 1);
    assert!(matches!(many, Err(Unfit::Items { got: 4_097, .. })));
    let ranges = [
        Settings {
            epsilon: 0.0,
            ..SETTINGS
        },
        Settings {
            epsilon: f64::NAN,
            ..SETTINGS
        },
        Settings {
            epsilon: 31.0,
            ..SETTINGS
        },
        Settings {
            delta: 0.5,
            ..SETTINGS
        },
        Settings {
            budget: f64::INFINITY,
            ..SETTINGS
        },
    ];
    for settings in ranges {
        let refused = refused(settings, ITEMS);
        assert!(matches!(refused, Err(Unfit::Range { .. })), "{settings:?}");
    }
    let little = Settings {
        epsilon: 0.05,
        delta: 1e-12,
        ..SETTINGS
    };
    let large = Mechanism::new(&little, MAX_CLIP, MAX_CLIP, ITEMS);
    assert!(matches!(large, Err(Unfit::Large { .. })), "{large:?}");
    let hostile = Mechanism {
        charge: 0,
        clip: u32::MAX,
        repeats: 1,
    };
    assert!(hostile.check(ITEMS).is_err());
}
