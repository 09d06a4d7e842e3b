//! The cells under a seeded scheduler: people who come, come again and leave; writes that are lost,
//! or durable and answered with an error; commands that are repeated; keys that are lost; jobs that
//! come too late. After every published fold, and in the end over all of them, the lint must hold.
//!
//! `LETHE_SIM_SEEDS=FROM-TO cargo test --release -p lethe-tally --test simulation` runs others.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use lethe_tally::cells::{CellSettings, lint};

mod world;

use rayon::prelude::*;
use world::{Count, World};

const STEPS: usize = 160;

fn settings(seed: u64) -> CellSettings {
    let (least, changed) = [(4, 2), (16, 8), (8, 4), (6, 2), (16, 4)][(seed % 5) as usize];
    CellSettings {
        least,
        changed,
        most: least * 3,
        // Some fleets grow into larger cells.
        share: if seed.is_multiple_of(3) { 12 } else { 1_000 },
        people: 200,
        // Where few wait, those of a dissolved cell meet again more often.
        wait: if seed.is_multiple_of(2) { 2 } else { 4 },
    }
}

fn run(seed: u64) -> Count {
    let mut world = World::new(seed, settings(seed));
    for step in 0..STEPS {
        world.step();
        assert!(
            step % 8 != 0 || world.state.is_consistent(),
            "{}",
            world.tell()
        );
    }
    world.settle();
    let fault = lint(&world.published, &world.left, &settings(seed)).err();
    assert_eq!(fault, None, "{}", world.tell());
    world.count
}

#[test]
fn no_two_published_folds_tell_on_anybody() {
    let seeds = std::env::var("LETHE_SIM_SEEDS").unwrap_or("0-2000".into());
    let (from, to) = seeds.split_once('-').unwrap();
    let seeds = from.parse::<u64>().unwrap()..to.parse().unwrap();
    let all = seeds
        .into_par_iter()
        .map(run)
        .reduce(Count::default, Count::and);
    let Count {
        folds,
        opened,
        dissolved,
        renewed,
        returned,
        faults,
        late,
        strays,
        merged,
        nothing_new,
    } = all;
    for (what, n) in [
        ("published folds", folds),
        ("opened cells", opened),
        ("dissolved cells", dissolved),
        ("renewed cells", renewed),
        ("members who came back into a cell", returned),
        ("failed writes", faults),
        ("jobs that came too late", late),
        ("members whose key was gone", strays),
        ("merges of several devices", merged),
        ("contributions that said nothing new", nothing_new),
    ] {
        assert!(n > 0, "{what}: {n}");
    }
}
