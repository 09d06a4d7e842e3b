//! People who are made up to push an item: how often it comes onto the lists of honest people, what
//! their lists lose, and what robust choices are worth.

use lethe_learn::seed::Seed;
use lethe_parts::contribution::{Contribution, MAX_CLIP};
use lethe_parts::event::{Event, Kind};
use lethe_parts::history::{Interaction, newest_of_each};
use lethe_parts::score::Weights;
use lethe_parts::solve::{Settings, solve};
use lethe_recsys::evaluation::Ranking;

use crate::next::{Event as Which, Fleet, PLAIN, Target, Variant, ranks, targets};
use crate::world::{World, sum};
use lethe_benches::figures::Row;

/// Made-up people, as shares of all people then.
const SHARES: [f64; 3] = [0.01, 0.05, 0.20];
/// Items that are pushed, one after the other.
const PUSHED: usize = 5;
/// Other items that a made-up person meets: among the most popular.
const POPULAR: usize = 200;
/// Events of a made-up person with other items.
const OTHERS: usize = 50;
/// Times that the focused ones meet the pushed item.
const TIMES: usize = 40;

/// How made-up people push.
#[derive(Clone, Copy, PartialEq)]
enum Attack {
    /// The item once, among 50 popular ones in a random order.
    Random,
    /// The item 40 times, each time right after a popular one.
    Focused,
}

/// What an operator may choose.
#[derive(Clone, Copy)]
struct Choice {
    name: &'static str,
    clip: usize,
    k: u64,
    repeats: usize,
}

const DEFAULT: Choice = Choice {
    name: "defaults: clip 200, k 3, repeats 3",
    clip: 200,
    k: 3,
    repeats: 3,
};

const CHOICES: [Choice; 5] = [
    DEFAULT,
    Choice {
        name: "repeats 1",
        repeats: 1,
        ..DEFAULT
    },
    Choice {
        name: "repeats without bound",
        repeats: MAX_CLIP,
        ..DEFAULT
    },
    Choice {
        name: "clip 50",
        clip: 50,
        ..DEFAULT
    },
    Choice {
        name: "k 10",
        k: 10,
        ..DEFAULT
    },
];

/// Everything about the honest people.
struct Honest<'a> {
    world: &'a World,
    targets: Vec<Target>,
    popular: Vec<u32>,
    pushed: Vec<u32>,
    /// A day on which made-up people meet everything.
    time: i64,
}

impl<'a> Honest<'a> {
    fn new(world: &'a World, order: u64) -> Self {
        let mut counts = vec![0u32; world.items()];
        for event in world.histories.iter().flatten() {
            counts[event.item as usize] += 1;
        }
        let mut ranked: Vec<u32> = (0..world.items() as u32).collect();
        ranked.sort_by_key(|i| std::cmp::Reverse(counts[*i as usize]));
        let third = ranked.len() / 3;
        let mut middle = ranked[third..2 * third].to_vec();
        let seed = Seed::from_u64(order).derive("pushed items", &[]);
        seed.rng().shuffle(&mut middle);
        middle.truncate(PUSHED);
        ranked.truncate(POPULAR);
        let times = world.histories.iter().flatten().map(|e| e.time);
        Self {
            world,
            targets: targets(world, Which::Test),
            popular: ranked,
            pushed: middle,
            time: times.max().unwrap_or(0),
        }
    }

    /// What one made-up person does.
    fn made_up(&self, attack: Attack, item: u32, seed: &Seed) -> Vec<Event> {
        let mut others = self.popular.clone();
        others.retain(|o| *o != item);
        let mut rng = seed.rng();
        rng.shuffle(&mut others);
        others.truncate(OTHERS);
        let items: Vec<u32> = match attack {
            Attack::Random => {
                let at = (rng.unit() * others.len() as f32) as usize;
                others.insert(at.min(others.len()), item);
                others
            }
            Attack::Focused => {
                let pairs = others.iter().take(TIMES).flat_map(|other| [*other, item]);
                pairs.collect()
            }
        };
        let event = |(n, item): (i64, u32)| Event {
            item,
            time: self.time + n,
            kind: Kind::Rating,
            value: 5.0,
        };
        (0..).zip(items).map(event).collect()
    }

    /// One person's contribution under a choice.
    fn contribution(&self, events: &[Event], choice: Choice) -> anyhow::Result<Contribution> {
        let read = Interaction::read(events, &self.world.meaning);
        let older = read.len().saturating_sub(choice.clip);
        let newest = newest_of_each(&read[older..], |e| e.item, choice.repeats);
        let bounds = self.world.bounds(choice.clip);
        Ok(match older {
            0 => Contribution::new(&newest, &bounds)?,
            _ => Contribution::tail(&newest, &bounds)?,
        })
    }

    fn honest(&self, choice: Choice) -> anyhow::Result<Vec<Contribution>> {
        let one = |events: &Vec<Event>| {
            let known = events.len().saturating_sub(2);
            self.contribution(&events[..known], choice)
        };
        self.world.histories.iter().map(one).collect()
    }

    /// Requests of honest people whose answer would be the pushed item.
    fn exposed(&self, item: u32) -> Vec<Target> {
        let of = |t: &Target| Target {
            history: t.history.clone(),
            today: t.today,
            item,
        };
        let fresh = self.targets.iter().filter(|t| !t.history.has_met(item));
        fresh.map(of).collect()
    }
}

/// Exposure of the pushed item, and HR@10 of honest people.
struct Measured {
    exposure: f64,
    hr: f64,
}

fn measured(
    honest: &Honest<'_>,
    all: &[Contribution],
    choice: Choice,
    item: u32,
) -> anyhow::Result<Measured> {
    let world = honest.world;
    let settings = Settings {
        k: choice.k,
        ..PLAIN
    };
    let sums = sum(world.items(), all)?;
    let mut fleet = Fleet {
        tables: solve(&sums, &world.content, &settings, 0)?.tables,
        sums: &sums,
        content: &world.content,
        k: settings.k,
    };
    let composition = [Variant::composition("composition", Weights::PUBLIC)];
    let found = ranks(&mut fleet, &honest.targets, &composition);
    let exposed = honest.exposed(item);
    let shown = ranks(&mut fleet, &exposed, &composition);
    Ok(Measured {
        exposure: Ranking::of(&shown[0]).hr,
        hr: Ranking::of(&found[0]).hr,
    })
}

/// All rows of one order of ties: the mean, lowest and highest exposure over the pushed items.
pub(crate) fn measure(world: &World, order: u64, quick: bool) -> anyhow::Result<Vec<Row>> {
    let honest = Honest::new(world, order);
    let mut rows = vec![];
    let choices = if quick { &CHOICES[..1] } else { &CHOICES };
    let pushed = if quick {
        &honest.pushed[..1]
    } else {
        &honest.pushed
    };
    for choice in choices {
        let own = honest.honest(*choice)?;
        let mut row = |name: String, all: &[Measured]| {
            let exposures = all.iter().map(|m| m.exposure);
            let n = all.len().max(1) as f64;
            rows.push(
                Row::new("people who push an item", &world.name, name, order)
                    .with("exposure", exposures.clone().sum::<f64>() / n)
                    .with("lowest", exposures.clone().fold(f64::INFINITY, f64::min))
                    .with("highest", exposures.fold(0.0, f64::max))
                    .with("HR@10", all.iter().map(|m| m.hr).sum::<f64>() / n),
            );
        };
        let nobody = pushed
            .iter()
            .map(|item| measured(&honest, &own, *choice, *item));
        row(
            format!("{}: nobody", choice.name),
            &nobody.collect::<anyhow::Result<Vec<_>>>()?,
        );
        for attack in [Attack::Random, Attack::Focused] {
            for share in SHARES {
                let people = own.len() as f64 * share / (1.0 - share);
                let mut all = vec![];
                for item in pushed {
                    let seed = Seed::from_u64(order).derive("made up", &[&item.to_le_bytes()]);
                    let mut with = own.clone();
                    for n in 0..people.round() as u32 {
                        let seed = seed.derive("person", &[&n.to_le_bytes()]);
                        let events = honest.made_up(attack, *item, &seed);
                        with.push(honest.contribution(&events, *choice)?);
                    }
                    all.push(measured(&honest, &with, *choice, *item)?);
                }
                let how = match attack {
                    Attack::Random => "once among others",
                    Attack::Focused => "40 times after others",
                };
                row(
                    format!("{}: {:.0} % {how}", choice.name, 100.0 * share),
                    &all,
                );
            }
        }
    }
    Ok(rows)
}

/// What the largest clip allows is more than anybody here has.
const _: () = assert!(MAX_CLIP >= 2 * TIMES);
