//! A year of made-up people: whether the server stays as it is. Nothing is predicted, and nobody
//! starts it again.

use lethe_benches::lists::world::World;
use lethe_learn::seed::Seed;
use lethe_parts::content::Content;
use lethe_parts::event::Kind;
use lethe_recsys::data::{DataSpec, Dataset, Event, Item};
use lethe_recsys::histories::{descriptions, histories};
use serde_json::{Value, json};

use super::data::Months;
use super::run::{Day, Left, Lived, Plan};
use super::table::times;

const PEOPLE: u32 = 1_000;
const ITEMS: u32 = 1_000;
const DAYS: i64 = 365;
/// People come over so many days.
const COMING: usize = 28;
/// Items that share a tag; somebody has three such groups.
const GROUP: u32 = 40;
/// Chance of a visit on a day, and the most events of one.
const VISIT: f32 = 0.2;
const MOST: usize = 4;
/// Events that somebody brings along, as many as count: otherwise contributions grow all year, and
/// with them what is stored.
const BROUGHT: usize = 200;
const DAY_S: i64 = 86_400;
const QUARTER: i32 = 91;
/// What memory and disk may grow by after the first quarter.
const GROWTH: f64 = 0.1;

/// A year of 1,000 people who come in the first four weeks, with a history, and rate one film in
/// two days.
pub(crate) fn months(seed: u64) -> anyhow::Result<Months> {
    let mut data = Dataset {
        users: (0..PEOPLE).map(|p| p.to_string()).collect(),
        items: (0..ITEMS)
            .map(|i| Item {
                id: format!("i{i}"),
                title: format!("Title {i}"),
                year: Some(1970),
                tags: vec![format!("group{}", i / GROUP)],
            })
            .collect(),
        ..Dataset::default()
    };
    let seed = Seed::from_u64(seed).derive("year", &[]);
    for user in 0..PEOPLE {
        events(&seed, user, &mut data.events);
    }
    data.events.sort_by_key(|e| e.time);
    let spec = DataSpec::movielens();
    let world = World {
        name: "a year".into(),
        meaning: spec.meaning(&data)?,
        content: Content::new(&descriptions(&data)),
        histories: histories(&data),
        data,
    };
    Months::new(&world, spec, None)
}

fn events(seed: &Seed, user: u32, into: &mut Vec<Event>) {
    let mut rng = seed.derive("person", &[&user.to_le_bytes()]).rng();
    let groups: Vec<u32> = (0..3).map(|_| skewed(rng.unit(), ITEMS / GROUP)).collect();
    let first = rng.below(COMING) as i64;
    // 2001, so that all items are of an earlier year.
    let begin = (31 * 365 + 8) * DAY_S;
    for day in first..DAYS {
        if day > first && rng.unit() >= VISIT {
            continue;
        }
        let mut time = begin + day * DAY_S + rng.below(80_000) as i64;
        let more = if day == first { BROUGHT } else { 0 };
        for _ in 0..=more + rng.below(MOST) {
            let item = match rng.unit() < 0.75 {
                true => groups[rng.below(groups.len())] * GROUP + skewed(rng.unit(), GROUP),
                false => skewed(rng.unit(), ITEMS),
            };
            let rating = (1 + (item / 3 + user + rng.below(2) as u32) % 5) as f32;
            time += 1 + rng.below(60) as i64;
            into.push(Event {
                user,
                item,
                rating,
                time,
                liked: rating > 3.0,
                kind: Kind::Rating,
            });
        }
    }
}

/// Low numbers more often: the density falls off as `1 / sqrt`.
fn skewed(unit: f32, count: u32) -> u32 {
    ((unit * unit * count as f32) as u32).min(count - 1)
}

/// Memory and disk by quarter, and whether they stay.
pub(crate) fn figures(lived: &Lived, plan: &Plan) -> Value {
    let last = lived.days.last().map_or(0, |d| d.day);
    let quarters: Vec<Value> = (0..=last / QUARTER)
        .map(|quarter| {
            let is = |d: &&Day| d.day / QUARTER == quarter;
            let days: Vec<&Day> = lived.days.iter().filter(is).collect();
            let mean = |of: fn(&Day) -> f64| {
                days.iter().map(|d| of(d)).sum::<f64>() / days.len().max(1) as f64
            };
            json!({
                "quarter": quarter + 1,
                "days": days.len(),
                "memory_bytes": mean(|d| d.memory_bytes as f64),
                "folder_bytes": mean(|d| d.folder_bytes as f64),
                "cpu_s_a_day": mean(|d| d.cpu_s),
                "up_bytes_a_day": mean(|d| d.up_bytes as f64),
                "counting": mean(|d| d.counting as f64),
                "waiting": mean(|d| d.waiting as f64),
                "releases": days.iter().map(|d| d.releases).sum::<usize>(),
            })
        })
        .collect();
    let stays = |what: &str| {
        let values: Vec<f64> = quarters.iter().filter_map(|q| q[what].as_f64()).collect();
        let second = *values.get(1)?;
        // The last day of the year is a quarter of its own.
        let later = values.get(2..4)?;
        let most = later.iter().copied().fold(0.0, f64::max);
        Some(most / second - 1.0)
    };
    let memory = stays("memory_bytes");
    let disk = stays("folder_bytes");
    let within = |growth: Option<f64>| growth.map(|g| g <= GROWTH);
    let of = |deleted: bool| -> Vec<&Left> {
        lived.left.iter().filter(|l| l.deleted == deleted).collect()
    };
    json!({
        "seed": plan.seed,
        "people": PEOPLE,
        "items": ITEMS,
        "adapters": null,
        "adapters_why": "this is the tally alone: --year without --tally has the whole coordinator",
        "quarters": quarters,
        "targets": {
            "memory_growth_after_second_quarter": memory,
            "memory_within": within(memory),
            "disk_growth_after_second_quarter": disk,
            "disk_within": within(disk),
            "starts_beside_the_first": lived.starts - 1,
        },
        "starts": lived.starts,
        "deletions": times(&of(true)),
        "withdrawals": times(&of(false)),
        "came_back": lived.back,
        "equal_to_a_fresh_system": lived.compared,
        "days": lived.days,
    })
}
