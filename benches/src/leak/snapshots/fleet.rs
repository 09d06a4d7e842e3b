//! The people of a measurement, and the cells that they are in.

use anyhow::Context;
use lethe_benches::lists::made_up::MadeUp;
use lethe_benches::lists::world::World;
use lethe_learn::seed::Seed;
use lethe_parts::content::Content;
use lethe_parts::contribution::Contribution;
use lethe_parts::history::day_of;

/// The default of `clip`.
pub(super) const CLIP: usize = 200;
/// A cell opens when so many times its size wait.
const WAIT: usize = 4;

/// People, what each contributes, and the public catalogue.
pub(super) struct Fleet {
    pub(super) name: String,
    pub(super) content: Content,
    pub(super) people: Vec<Contribution>,
    /// The day of both snapshots: the one after the newest event.
    pub(super) day: i32,
}

impl Fleet {
    /// Everybody of a data set.
    pub(super) fn of_world(world: &World) -> anyhow::Result<Self> {
        let people = world.contributions(CLIP, |_, events| events.to_vec())?;
        let times = world.data.events.iter().map(|e| e.time);
        let newest = times.max().context("a data set without events")?;
        Ok(Self {
            name: world.name.clone(),
            content: world.content.clone(),
            people,
            day: day_of(newest) + 1,
        })
    }

    /// Made-up people, over as many items as MovieLens-100K has.
    pub(super) fn made_up(people: u32, items: usize) -> anyhow::Result<Self> {
        let source = MadeUp::new(items);
        let all: anyhow::Result<Vec<Contribution>> =
            (0..people).map(|p| source.contribution(p, 0)).collect();
        let people = all?;
        let newest = people.iter().filter_map(|c| Some(c.days().last()?.0)).max();
        Ok(Self {
            name: format!("made up, {} people, {items} items", people.len()),
            content: source.content(),
            people,
            day: newest.context("a fleet without events")? + 1,
        })
    }

    /// Items of the catalogue.
    pub(super) fn items(&self) -> usize {
        self.content.items()
    }

    /// Cells of `size` as the tally opens them when everybody has come and nobody has left: one
    /// after the other while at least four times `size` wait; members are drawn.
    pub(super) fn cells(&self, size: usize, seed: u64) -> Vec<Vec<usize>> {
        let mut waiting: Vec<usize> = (0..self.people.len()).collect();
        Seed::from_u64(seed)
            .derive("leak cells", &[&(size as u64).to_le_bytes()])
            .rng()
            .shuffle(&mut waiting);
        let mut cells = vec![];
        while waiting.len() >= WAIT * size {
            cells.push(waiting.split_off(waiting.len() - size));
        }
        cells
    }

    /// The contributions of these people.
    pub(super) fn of(&self, people: &[usize]) -> Vec<Contribution> {
        people.iter().map(|p| self.people[*p].clone()).collect()
    }
}

/// Pairs of an item and a day of one person, drawn at random: what somebody knows of them.
pub(super) fn known(person: &Contribution, count: usize, seed: &Seed) -> Vec<Known> {
    let mut all: Vec<Known> = person
        .days()
        .iter()
        .map(|d| Known {
            day: d.0,
            item: d.1,
        })
        .collect();
    seed.rng().shuffle(&mut all);
    all.truncate(count);
    all
}

/// An item that a person met on a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) day: i32,
    pub(super) item: u32,
}
