//! What somebody who sees contributions under handles can tell from what they know of a person: the
//! tally's view. And what coarser times cost.

use std::collections::{BTreeMap, HashMap};

use lethe_assets::Files;
use lethe_benches::figures::{Band, Row};
use lethe_benches::lists::next::{
    Event as Which, Fleet, PLAIN, Target, Variant, ranks, row, targets, training,
};
use lethe_benches::lists::world::{World, sum};
use lethe_learn::seed::{Seed, Stream};
use lethe_parts::contribution::Contribution;
use lethe_parts::event::Event;
use lethe_parts::history::day_of;
use lethe_parts::score::Weights;
use lethe_parts::snapshot::{Packing, decode, encode};
use lethe_parts::solve::{Settings, solve};

/// The default of `clip`.
const CLIP: usize = 200;
/// Numbers of items that are known.
const KNOWN: [usize; 3] = [2, 4, 8];
const FIGURES: [&str; 3] = ["2 known", "4 known", "8 known"];
/// Draws of what is known of each person.
const DRAWS: u64 = 3;
/// What the small form must find again.
pub(crate) const BANDS: [Band; 4] = [
    band("day", "2 known"),
    band("day", "4 known"),
    band("month (30 days)", "4 known"),
    band("items alone", "8 known"),
];
const DAY_S: i64 = 86_400;

const fn band(name: &'static str, figure: &'static str) -> Band {
    Band {
        section: "handles: unique people",
        name,
        figure,
        width: 0.03,
    }
}

/// How coarse times are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Times {
    /// Days are rounded down to a multiple.
    Days(i32),
    /// There are none.
    None,
}

impl Times {
    const ALL: [Self; 4] = [Self::Days(1), Self::Days(7), Self::Days(30), Self::None];

    fn name(self) -> &'static str {
        match self {
            Self::Days(1) => "day",
            Self::Days(7) => "week",
            Self::Days(_) => "month (30 days)",
            Self::None => "items alone",
        }
    }

    fn of(self, day: i32) -> i32 {
        match self {
            Self::Days(days) => day - day.rem_euclid(days),
            Self::None => 0,
        }
    }
}

/// An item, and when it was met.
type Pair = (u32, i32);

/// All rows of one seed.
///
/// # Errors
/// Data that cannot be read, or sums that cannot be solved.
pub(crate) fn measure(files: &Files, seed: u64, quick: bool) -> anyhow::Result<Vec<Row>> {
    let world = World::open("movielens-100k", &files.movielens, "movie", None)?;
    let people = world.contributions(CLIP, |_, events| events.to_vec())?;
    let mut rows = vec![];
    for times in Times::ALL {
        rows.extend(unique(&world.name, &people, times, seed));
    }
    rows.push(in_order(&world.name, &people, seed));
    if !quick {
        rows.extend(price(&world, seed)?);
    }
    Ok(rows)
}

/// Who met what, and when.
struct Index {
    of_people: Vec<Vec<Pair>>,
    by_pair: HashMap<Pair, Vec<u32>>,
}

impl Index {
    fn new(people: &[Contribution], times: Times) -> Self {
        let pairs = |c: &Contribution| -> Vec<Pair> {
            let mut all: Vec<Pair> = c.days().iter().map(|d| (d.1, times.of(d.0))).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let of_people: Vec<Vec<Pair>> = people.iter().map(pairs).collect();
        let mut by_pair: HashMap<Pair, Vec<u32>> = HashMap::new();
        for (person, pairs) in of_people.iter().enumerate() {
            for pair in pairs {
                by_pair.entry(*pair).or_default().push(person as u32);
            }
        }
        Self { of_people, by_pair }
    }

    /// Whether this person alone has at least `least` of the pairs.
    fn is_unique(&self, person: usize, known: &[Pair], least: usize) -> bool {
        let mut matches: HashMap<u32, usize> = HashMap::new();
        for pair in known {
            for other in self.by_pair.get(pair).into_iter().flatten() {
                *matches.entry(*other).or_default() += 1;
            }
        }
        let enough = matches.iter().filter(|m| *m.1 >= least);
        enough.map(|m| *m.0 as usize).eq([person])
    }

    /// One pair of what is known is not the person's, but somebody else's.
    fn mistaken(&self, person: usize, known: &[Pair], rng: &mut Stream) -> Vec<Pair> {
        let mut out = known.to_vec();
        loop {
            let other = &self.of_people[rng.below(self.of_people.len())];
            let wrong = other[rng.below(other.len())];
            if self.of_people[person].binary_search(&wrong).is_err() {
                out[0] = wrong;
                return out;
            }
        }
    }
}

fn drawn(pairs: &[Pair], count: usize, rng: &mut Stream) -> Vec<Pair> {
    let mut all = pairs.to_vec();
    rng.shuffle(&mut all);
    all.truncate(count);
    all
}

fn stream(seed: u64, draw: u64, person: usize) -> Stream {
    Seed::from_u64(seed)
        .derive(
            "handles",
            &[&draw.to_le_bytes(), &(person as u64).to_le_bytes()],
        )
        .rng()
}

/// Shares of people whom what is known fits alone: all of it, and all but one pair of which one is
/// wrong.
fn unique(data: &str, people: &[Contribution], times: Times, seed: u64) -> [Row; 2] {
    let index = Index::new(people, times);
    let section = "handles: unique people";
    let mut exact = Row::new(section, data, times.name(), seed);
    let name = format!("{}, one pair wrong", times.name());
    let mut wrong = Row::new(section, data, name, seed);
    for (count, figure) in KNOWN.into_iter().zip(FIGURES) {
        let mut found = [0usize; 2];
        let mut asked = 0;
        for draw in 0..DRAWS {
            for (person, pairs) in index.of_people.iter().enumerate() {
                if pairs.len() < count {
                    continue;
                }
                let mut rng = stream(seed, draw, person);
                let known = drawn(pairs, count, &mut rng);
                let mistaken = index.mistaken(person, &known, &mut rng);
                asked += 1;
                found[0] += usize::from(index.is_unique(person, &known, count));
                found[1] += usize::from(index.is_unique(person, &mistaken, count - 1));
            }
        }
        exact = exact.with(figure, found[0] as f64 / f64::from(asked));
        wrong = wrong.with(figure, found[1] as f64 / f64::from(asked));
    }
    [exact, wrong]
}

/// Items alone, but in the order in which they were met: contributions keep it.
fn in_order(data: &str, people: &[Contribution], seed: u64) -> Row {
    let places: Vec<HashMap<u32, usize>> = people
        .iter()
        .map(|c| c.seen().iter().enumerate().map(|s| (*s.1, s.0)).collect())
        .collect();
    let mut out = Row::new(
        "handles: unique people",
        data,
        "items alone, in their order",
        seed,
    );
    for (count, figure) in KNOWN.into_iter().zip(FIGURES) {
        let mut found = 0usize;
        let mut asked = 0;
        for draw in 0..DRAWS {
            for (person, own) in people.iter().enumerate() {
                if own.distinct().len() < count {
                    continue;
                }
                let mut known = own.distinct().to_vec();
                stream(seed, draw, person).shuffle(&mut known);
                known.truncate(count);
                known.sort_by_key(|i| places[person][i]);
                let fits = |places: &&HashMap<u32, usize>| {
                    let at: Option<Vec<usize>> =
                        known.iter().map(|i| places.get(i).copied()).collect();
                    at.is_some_and(|at| at.is_sorted())
                };
                asked += 1;
                found += usize::from(places.iter().filter(fits).count() == 1);
            }
        }
        out = out.with(figure, found as f64 / f64::from(asked));
    }
    out
}

/// HR@10 and NDCG@10 of lists as served, where contributions have coarser days.
fn price(world: &World, seed: u64) -> anyhow::Result<Vec<Row>> {
    let settings = Settings { k: 3, ..PLAIN };
    let sums = sum(world.items(), &training(world, CLIP)?)?;
    // Days are in nothing but what was met lately.
    let tables = solve(&sums, &world.content, &settings, 0)?.tables;
    drop(sums);
    let tables = decode(&encode(&tables, &Packing::default())?)?;
    let composition = [Variant::composition("composition", Weights::PUBLIC)];
    let mut found: Vec<Vec<Option<f64>>> = vec![vec![]; Times::ALL.len()];
    let mut by_day: BTreeMap<i32, Vec<Target>> = BTreeMap::new();
    for target in targets(world, Which::Test) {
        by_day.entry(target.today).or_default().push(target);
    }
    for (today, targets) in &by_day {
        for (times, found) in Times::ALL.into_iter().zip(&mut found) {
            let sums = sum(world.items(), &coarse(world, times, *today)?)?;
            let mut fleet = Fleet {
                tables: tables.clone(),
                sums: &sums,
                content: &world.content,
                k: settings.k,
            };
            found.extend(ranks(&mut fleet, targets, &composition).remove(0));
        }
    }
    let whole = found[0].clone();
    let rows = Times::ALL.into_iter().zip(&found).map(|of| {
        let mut row = row(&world.name, of.0.name(), seed, of.1, &whole);
        row.section = "handles: price of coarser times";
        row
    });
    Ok(rows.collect())
}

/// Contributions whose days are coarse. What was met on `today` or later is not known on that day:
/// it must not come into an earlier one by being rounded down.
fn coarse(world: &World, times: Times, today: i32) -> anyhow::Result<Vec<Contribution>> {
    let rounded = |event: &Event| {
        let day = day_of(event.time);
        let day = if day < today { times.of(day) } else { day };
        Event {
            time: i64::from(day) * DAY_S,
            ..*event
        }
    };
    world.contributions(CLIP, |_, events| {
        let before = &events[..events.len().saturating_sub(2)];
        before.iter().map(rounded).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lethe_parts::contribution::Bounds;
    use lethe_parts::history::Interaction;

    fn person(pairs: &[Pair]) -> Contribution {
        let one = |pair: &Pair| Interaction {
            item: pair.0,
            day: pair.1,
            seen: true,
            half_stars: None,
            liked: false,
            hidden: false,
        };
        let bounds = Bounds {
            items: 10,
            clip: 10,
            first_day: 0,
            last_day: 1_000,
        };
        let all: Vec<Interaction> = pairs.iter().map(one).collect();
        Contribution::new(&all, &bounds).expect("within bounds")
    }

    #[test]
    fn a_day_tells_people_apart_whom_a_week_does_not() {
        let people = [person(&[(1, 700), (2, 701)]), person(&[(1, 700), (2, 702)])];
        let known = [(1, 700), (2, 701)];
        let unique = |times: Times, least: usize| {
            let index = Index::new(&people, times);
            let known = known.map(|p| (p.0, times.of(p.1)));
            index.is_unique(0, &known, least)
        };
        assert!(unique(Times::Days(1), 2));
        assert!(
            !unique(Times::Days(1), 1),
            "both have met item 1 on day 700"
        );
        assert!(!unique(Times::Days(7), 2));
        assert!(!unique(Times::None, 2));
    }

    #[test]
    fn rounding_goes_down() {
        assert_eq!(Times::Days(7).of(706), 700);
        assert_eq!(Times::Days(7).of(707), 707);
        assert_eq!(Times::Days(1).of(706), 706);
        assert_eq!(Times::None.of(706), 0);
    }
}
