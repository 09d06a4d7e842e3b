//! The price of noise on the sums: hits in a list of ten, for people of MovieLens and for a made-up
//! fleet.

use std::collections::BTreeMap;

use lethe_learn::seed::Seed;
use lethe_parts::content::Content;
use lethe_parts::contribution::Contribution;
use lethe_parts::history::Interaction;
use lethe_parts::noise::{
    Drawn, Mechanism, Settings as Noise, Shape, noised, noised_as, noised_recent,
};
use lethe_parts::refold::clipped;
use lethe_parts::score::Weights;
use lethe_parts::solve::{Settings, recent_of, solve};
use lethe_parts::sums::Sums;
use lethe_recsys::evaluation::Ranking;
use rayon::prelude::*;

use crate::made_up::MadeUp;
use crate::next::{Event, Fleet, PLAIN, Target, Variant, ranks, targets};
use crate::size::made_up_ranks;
use crate::world::{World, sum};
use lethe_benches::figures::Row;

/// Epsilons of a release.
const EPSILONS: [f64; 4] = [30.0, 10.0, 3.0, 1.0];
/// Below one in the number of people, for both fleets.
const DELTA: f64 = 1e-6;
/// Items of the made-up fleet: as many as MovieLens has.
const ITEMS: usize = 1_682;
/// Its people.
const PEOPLE: usize = 100_000;
/// People of it whose contributions are in memory together.
const CHUNK: usize = 20_000;
/// Settings that are compared on validation events: the most events of a person.
const CLIPS: [u32; 3] = [200, 50, 20];

fn drawn(epsilon: f64, clip: u32, items: usize, run: u64, day: i32) -> anyhow::Result<Drawn> {
    let noise = Noise {
        epsilon,
        delta: DELTA,
        budget: 1_000.0,
    };
    let seed = Seed::from_u64(run).derive("noise", &[&day.to_le_bytes()]);
    Ok(Drawn {
        mechanism: Mechanism::new(&noise, clip as usize, 1, items)?,
        seed: seed.0,
    })
}

fn settings() -> Settings {
    Settings { k: 3, ..PLAIN }
}

/// HR@10 and NDCG@10 of people whose sums have noise. What was met lately is noised anew for each
/// day: each is a release.
fn of_people(
    shape: &Shape,
    world: &World,
    sums: &Sums,
    targets: &[Target],
    noise: &Drawn,
    run: u64,
) -> anyhow::Result<Ranking> {
    let noised = noised_as(shape, sums, noise, 0)?;
    let mut fleet = Fleet {
        tables: solve(&noised, &world.content, &settings(), 0)?.tables,
        sums: &noised,
        content: &world.content,
        k: settings().k,
    };
    let mut by_day: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for (at, target) in targets.iter().enumerate() {
        by_day.entry(target.today).or_default().push(at);
    }
    let mut found = vec![None; targets.len()];
    let composition = [Variant::composition("composition", Weights::PUBLIC)];
    for (day, members) in by_day {
        let seed = Seed::from_u64(run).derive("noise of a day", &[&day.to_le_bytes()]);
        let of_day = Drawn {
            seed: seed.0,
            ..*noise
        };
        let seen = &noised.counts().seen;
        let counts = noised_recent(shape, sums, seen, &of_day, day)?;
        let lately = recent_of(&counts, settings().k, day);
        let those: Vec<&Target> = members.iter().map(|at| &targets[*at]).collect();
        let ranked = crate::next::ranks_of_day(&mut fleet, lately, &those, &composition);
        for (at, ranks) in members.into_iter().zip(ranked) {
            found[at] = ranks[0];
        }
    }
    Ok(Ranking::of(&found))
}

/// HR@10 without noise, of the same clip.
fn exact_people(world: &World, sums: &Sums, targets: &[Target]) -> anyhow::Result<Ranking> {
    let mut fleet = Fleet {
        tables: solve(sums, &world.content, &settings(), 0)?.tables,
        sums,
        content: &world.content,
        k: settings().k,
    };
    let composition = [Variant::composition("composition", Weights::PUBLIC)];
    Ok(Ranking::of(&ranks(&mut fleet, targets, &composition)[0]))
}

fn cut(world: &World, clip: u32) -> anyhow::Result<Sums> {
    let mut all = vec![];
    for events in &world.histories {
        let kept = &events[..events.len().saturating_sub(2)];
        let read = Interaction::read(kept, &world.meaning);
        all.push(clipped(true, &read, world.items(), clip, 1)?);
    }
    sum(world.items(), &all)
}

/// All rows of one order of ties.
pub(crate) fn people(world: &World, run: u64) -> anyhow::Result<Vec<Row>> {
    let validation = targets(world, Event::Validation);
    let test = targets(world, Event::Test);
    let mut rows = vec![];
    for clip in CLIPS {
        let sums = cut(world, clip)?;
        let mut add = |name: String, on_validation: &Ranking, on_test: &Ranking| {
            rows.push(
                Row::new("noise on the sums", &world.name, name, run)
                    .with("validation HR@10", on_validation.hr)
                    .with("HR@10", on_test.hr)
                    .with("NDCG@10", on_test.ndcg),
            );
        };
        let exact = exact_people(world, &sums, &validation)?;
        let name = format!("clip {clip}, no noise");
        add(name, &exact, &exact_people(world, &sums, &test)?);
        for epsilon in EPSILONS {
            let noise = drawn(epsilon, clip, world.items(), run, 0)?;
            let of = |t: &[Target]| of_people(&Shape::DEFAULT, world, &sums, t, &noise, run);
            let name = format!("clip {clip}, epsilon {epsilon:>2}");
            add(name, &of(&validation)?, &of(&test)?);
        }
    }
    Ok(rows)
}

/// Shapes that a default can be chosen from, on validation events alone.
pub(crate) fn shapes(world: &World, run: u64) -> anyhow::Result<Vec<Row>> {
    let validation = targets(world, Event::Validation);
    let mut rows = vec![];
    for clip in [50, 20] {
        let sums = cut(world, clip)?;
        for epsilon in [10.0, 3.0, 1.0] {
            let noise = drawn(epsilon, clip, world.items(), run, 0)?;
            for (what, shape) in candidates() {
                let found = of_people(&shape, world, &sums, &validation, &noise, run)?;
                let name = format!("clip {clip}, epsilon {epsilon:>2}, {what}");
                rows.push(
                    Row::new("shapes of noise", &world.name, name, run)
                        .with("validation HR@10", found.hr),
                );
            }
        }
    }
    Ok(rows)
}

/// All rows of the made-up fleet. Its people are drawn anew by nobody: one run.
pub(crate) fn made_up(people: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let people = people.unwrap_or(PEOPLE);
    let fleet = MadeUp::new(ITEMS);
    let content = fleet.content();
    let data = format!("made up, {ITEMS} items, {people} people");
    let mut rows = vec![];
    for clip in CLIPS {
        let sums = made_up_sums(&fleet, people, clip)?;
        let mut add = |name: String, sums: &Sums| -> anyhow::Result<()> {
            let found = made_up_hits(&fleet, &content, sums)?;
            rows.push(
                Row::new("noise on the sums", &data, name, 0)
                    .with("HR@10", found.hr)
                    .with("NDCG@10", found.ndcg),
            );
            Ok(())
        };
        add(format!("clip {clip}, no noise"), &sums)?;
        for epsilon in EPSILONS {
            let noise = drawn(epsilon, clip, ITEMS, 0, 901)?;
            let noised = noised(&sums, &noise, 901)?;
            add(format!("clip {clip}, epsilon {epsilon:>2}"), &noised)?;
        }
    }
    Ok(rows)
}

fn made_up_sums(fleet: &MadeUp, people: usize, clip: u32) -> anyhow::Result<Sums> {
    let mut sums = Sums::new(ITEMS);
    for start in (0..people).step_by(CHUNK) {
        let end = (start + CHUNK).min(people);
        let of = |person: usize| -> anyhow::Result<Contribution> {
            let read = fleet.read(person as u32, 1);
            Ok(clipped(true, &read, ITEMS, clip, 1)?)
        };
        let chunk: anyhow::Result<Vec<Contribution>> =
            (start..end).into_par_iter().map(of).collect();
        sums.fold_all(&chunk?)?;
    }
    Ok(sums)
}

fn made_up_hits(fleet: &MadeUp, content: &Content, sums: &Sums) -> anyhow::Result<Ranking> {
    let tables = solve(sums, content, &settings(), 901)?.tables;
    Ok(Ranking::of(&made_up_ranks(fleet, content, &tables)))
}

fn candidates() -> [(&'static str, Shape); 7] {
    let counts = [45, 20, 4, 6, 15, 4, 3, 2, 1];
    let pairs = [10, 60, 5, 15, 5, 2, 1, 1, 1];
    let low = [0, 2, 2, 2, 0, 0, 1, 0, 1];
    let middle = [1, 3, 3, 3, 1, 1, 1, 0, 1];
    let high = [1, 5, 5, 5, 2, 2, 1, 0, 1];
    let of = |shares: [u32; 9], cuts: [u32; 9]| Shape { shares, cuts };
    let even = [20, 40, 5, 10, 10, 5, 4, 4, 2];
    [
        ("even, low cuts", of(even, low)),
        ("even, middle cuts", of(even, middle)),
        ("even, high cuts", of(even, high)),
        ("counts, low cuts", of(counts, low)),
        ("counts, middle cuts", of(counts, middle)),
        ("counts, high cuts", of(counts, high)),
        ("pairs, middle cuts", of(pairs, middle)),
    ]
}
