//! Made-up people for costs: many items, popularities that fall off, tastes that hold.

use lethe_learn::seed::Seed;
use lethe_parts::content::{Content, Description};
use lethe_parts::contribution::{Bounds, Contribution};
use lethe_parts::event::{Event, Kind, Meaning};
use lethe_parts::history::{History, Interaction};

/// Items of one group.
const GROUP: usize = 40;
/// Share of events within the person's groups.
const LOYAL: f32 = 0.75;
/// The most events that count, as in the default of `clip`.
const CLIP: usize = 200;

/// A fleet that never lived.
pub struct MadeUp {
    /// Items of its catalogue.
    pub items: usize,
    seed: Seed,
}

impl MadeUp {
    /// A fleet over so many items.
    pub fn new(items: usize) -> Self {
        Self {
            items,
            seed: Seed::from_u64(2026).derive("made-up fleet", &[&(items as u64).to_le_bytes()]),
        }
    }

    /// Groups of items share a tag.
    pub fn content(&self) -> Content {
        let describe = |i: usize| Description {
            title: format!("Item {i}"),
            year: Some(1970 + (i % 55) as u16),
            tags: vec![format!("group {}", i / GROUP % 200)],
        };
        Content::new(&(0..self.items).map(describe).collect::<Vec<_>>())
    }

    /// One person's events: 20 to about 200, 60 on average; three groups, in runs.
    pub fn events(&self, person: u32) -> Vec<Event> {
        let mut rng = self.seed.derive("person", &[&person.to_le_bytes()]).rng();
        let groups = self.items.div_ceil(GROUP);
        let own: Vec<usize> = (0..3).map(|_| skewed(rng.unit(), groups)).collect();
        let count = 20 + (-40.0 * (1.0 - rng.unit()).ln()).min(180.0) as usize;
        let mut time = 86_400 * rng.below(700) as i64;
        let mut group = own[0];
        (0..count)
            .map(|_| {
                if rng.unit() < 0.2 {
                    group = own[rng.below(own.len())];
                }
                let item = if rng.unit() < LOYAL {
                    group * GROUP + skewed(rng.unit(), GROUP)
                } else {
                    skewed(rng.unit(), self.items)
                };
                time += rng.below(30_000) as i64;
                Event {
                    item: item.min(self.items - 1) as u32,
                    time,
                    kind: Kind::Rating,
                    value: 1.0 + ((item / 3 + person as usize) % 5) as f32,
                }
            })
            .collect()
    }

    /// Their history as their device knows it.
    pub fn history(&self, person: u32) -> History {
        History::of_events(&self.events(person), &Meaning::default())
    }

    /// All but the person's last `back` events, as they are read.
    pub fn read(&self, person: u32, back: usize) -> Vec<Interaction> {
        let events = self.events(person);
        Interaction::read(&events[..events.len() - back], &Meaning::default())
    }

    /// The contribution of all but the person's last `back` events.
    ///
    /// # Errors
    /// Events outside the bounds.
    pub fn contribution(&self, person: u32, back: usize) -> anyhow::Result<Contribution> {
        let read = self.read(person, back);
        let bounds = Bounds {
            items: self.items,
            clip: CLIP,
            first_day: 0,
            last_day: 3_000,
        };
        Ok(Contribution::newest(&read, &bounds)?)
    }
}

/// Low numbers more often: the density falls off as `1 / sqrt`.
fn skewed(unit: f32, count: usize) -> usize {
    ((unit * unit * count as f32) as usize).min(count - 1)
}
