//! Made-up people for the tests of this crate.
#![allow(missing_docs, clippy::unwrap_used, dead_code)]

use lethe_learn::seed::{Seed, Stream};
use lethe_parts::content::{Content, Description};
use lethe_parts::contribution::{Bounds, Contribution};
use lethe_parts::event::{Event, Kind, Meaning};
use lethe_parts::history::Interaction;

/// Items have one of these tags by turns.
pub(crate) const TAGS: [&str; 5] = ["Drama", "Comedy", "War", "Western", "Noir"];

pub(crate) fn content(items: usize) -> Content {
    let describe = |i: usize| Description {
        title: format!("item {i}"),
        year: Some(1980 + (i % 30) as u16),
        tags: vec![TAGS[i % TAGS.len()].into()],
    };
    Content::new(&(0..items).map(describe).collect::<Vec<_>>())
}

pub(crate) fn bounds(items: usize) -> Bounds {
    Bounds {
        items,
        // Some people have more events: they contribute the end of their history.
        clip: 30,
        first_day: 0,
        last_day: 1_000,
    }
}

/// A person who mostly meets items of one tag, one after the other.
pub(crate) fn events(person: u32, items: usize, rng: &mut Stream) -> Vec<Event> {
    let taste = person as usize % TAGS.len();
    let count = 3 + rng.below(40);
    let mut time = 86_400 * rng.below(300) as i64;
    (0..count)
        .map(|_| {
            let any = rng.below(items);
            let item = if rng.unit() < 0.7 {
                any / TAGS.len() * TAGS.len() + taste
            } else {
                any
            };
            time += rng.below(40_000) as i64;
            let rated = rng.unit() < 0.8;
            let liked = item % TAGS.len() == taste;
            Event {
                item: item.min(items - 1) as u32,
                time,
                kind: if rated { Kind::Rating } else { Kind::View },
                value: if liked { 5.0 } else { 2.0 },
            }
        })
        .collect()
}

pub(crate) fn all_events(people: usize, items: usize, seed: u64) -> Vec<Vec<Event>> {
    let mut rng = Seed::from_u64(seed).rng();
    (0..people as u32)
        .map(|person| events(person, items, &mut rng))
        .collect()
}

pub(crate) fn contributions(people: usize, items: usize, seed: u64) -> Vec<Contribution> {
    let read = |events: &Vec<Event>| Interaction::read(events, &Meaning::default());
    all_events(people, items, seed)
        .iter()
        .map(|e| Contribution::newest(&read(e), &bounds(items)).unwrap())
        .collect()
}
