//! What predicts: the device on what is served, and what it is compared with.

use std::sync::Arc;

use anyhow::Context;
use lethe_client::{Catalogue, Shelf};
use lethe_parts::content::Content;
use lethe_parts::contribution::{Bounds, Contribution, MAX_CLIP};
use lethe_parts::event::{Event, Meaning};
use lethe_parts::history::Interaction;
use lethe_parts::snapshot::{decode, encode};
use lethe_parts::solve::{Settings, solve};
use lethe_parts::sums::Sums;
use lethe_parts::tables::Tables;
use lethe_recsys::evaluation::mid_rank;
use rayon::prelude::*;

use super::server::{options, settings};

/// Places of a list that count.
const PLACES: usize = 10;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    /// What devices have.
    Served,
    /// What devices had at the end of month two.
    Frozen,
    /// Everything of everybody who is here, solved anew each day; whole tables.
    Refit,
    /// The same with the product's threshold, clip and packing: what cells and waiting cost alone.
    Same,
    /// How many have met an item.
    Popularity,
    /// An item's mean rating; it makes no lists.
    Mean,
}

impl System {
    pub(crate) const ALL: [Self; 6] = [
        Self::Served,
        Self::Frozen,
        Self::Refit,
        Self::Same,
        Self::Popularity,
        Self::Mean,
    ];

    /// Its name in figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Frozen => "frozen",
            Self::Refit => "refit",
            Self::Same => "refit_same_recipe",
            Self::Popularity => "popularity",
            Self::Mean => "item_mean",
        }
    }
}

/// What one system says of one event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Guess {
    /// The item is among the first ten; none: the system makes no lists, or is not there yet.
    pub(crate) hit: Option<bool>,
    /// The higher, the likelier a like.
    pub(crate) like: Option<f32>,
}

/// An event that was predicted before it was seen.
#[derive(Clone, Debug)]
pub(crate) struct Predicted {
    pub(crate) day: i32,
    pub(crate) person: u32,
    /// The history on the device began on the same day.
    pub(crate) begins: bool,
    /// None: it is neither a like nor a dislike.
    pub(crate) liked: Option<bool>,
    /// In the order of [`System::ALL`].
    pub(crate) guesses: [Guess; 6],
}

/// A request, and the events that came at that second.
pub(crate) struct Asks<'a> {
    pub(crate) person: u32,
    pub(crate) begins: bool,
    /// What the device knew: events of earlier seconds.
    pub(crate) history: &'a [Event],
    pub(crate) events: &'a [Event],
}

/// What was refitted from nothing this morning.
pub(crate) struct Refitted {
    whole: Shelf,
    same: Shelf,
    met: Vec<f32>,
    means: Vec<f32>,
}

/// Everything that predicts, at one moment.
pub(crate) struct Systems<'a> {
    pub(crate) served: &'a Shelf,
    pub(crate) frozen: Option<&'a Shelf>,
    pub(crate) refitted: &'a Refitted,
    pub(crate) meaning: &'a Meaning,
}

/// What a refit is made from.
pub(crate) struct Basis<'a> {
    pub(crate) catalogue: &'a Arc<Catalogue>,
    pub(crate) ids: &'a [String],
    pub(crate) content: &'a Content,
    pub(crate) meaning: &'a Meaning,
    /// Of everybody who contributes.
    pub(crate) histories: Vec<&'a [Event]>,
    /// As of the beginning of this day since 1970.
    pub(crate) day: i32,
}

impl Basis<'_> {
    fn sums(&self, clip: usize) -> anyhow::Result<Sums> {
        let bounds = Bounds {
            items: self.ids.len(),
            clip,
            first_day: 0,
            last_day: self.day,
        };
        let one = |events: &&[Event]| {
            Contribution::newest(&Interaction::read(events, self.meaning), &bounds)
        };
        let all: Result<Vec<Contribution>, _> = self.histories.par_iter().map(one).collect();
        let mut sums = Sums::new(self.ids.len());
        sums.fold_all(&all?)?;
        Ok(sums)
    }

    /// Tables of what everybody has who contributes, without cells and without waiting: whole ones
    /// of everything.
    pub(crate) fn refit(&self) -> anyhow::Result<Refit> {
        let settings = Settings { k: 1, ..settings() };
        let sums = self.sums(MAX_CLIP)?;
        Ok(Refit {
            tables: solve(&sums, self.content, &settings, self.day)?.tables,
            met: sums.counts().seen.iter().map(|n| *n as f32).collect(),
        })
    }

    /// With the product's recipe.
    pub(crate) fn same(&self) -> anyhow::Result<Tables> {
        let sums = self.sums(options().clip)?;
        let solved = solve(&sums, self.content, &settings(), self.day)?;
        Ok(decode(&encode(&solved.tables, &options().packing)?)?)
    }

    fn shelf(&self, tables: Tables) -> anyhow::Result<Shelf> {
        let shelf = Shelf::new(self.catalogue.clone(), self.ids, tables);
        shelf.context("tables of other items")
    }

    /// For devices.
    pub(crate) fn refitted(&self, refit: Refit, same: Tables) -> anyhow::Result<Refitted> {
        let items = 0..self.ids.len() as u32;
        Ok(Refitted {
            means: items.map(|i| refit.tables.mean(i) as f32).collect(),
            met: refit.met,
            whole: self.shelf(refit.tables)?,
            same: self.shelf(same)?,
        })
    }
}

/// Tables of everything, and how many have met each item.
pub(crate) struct Refit {
    tables: Tables,
    met: Vec<f32>,
}

impl Systems<'_> {
    /// Predicts all of them.
    pub(crate) fn predict(&self, day: i32, all: &[Asks<'_>]) -> anyhow::Result<Vec<Predicted>> {
        let each: anyhow::Result<Vec<Vec<Predicted>>> =
            all.par_iter().map(|asks| self.one(day, asks)).collect();
        Ok(each?.into_iter().flatten().collect())
    }

    fn one(&self, day: i32, asks: &Asks<'_>) -> anyhow::Result<Vec<Predicted>> {
        let mut out: Vec<Predicted> = asks
            .events
            .iter()
            .map(|event| Predicted {
                day,
                person: asks.person,
                begins: asks.begins,
                liked: self.meaning.read(event).liked,
                guesses: Default::default(),
            })
            .collect();
        let shelves = [
            Some(self.served),
            self.frozen,
            Some(&self.refitted.whole),
            Some(&self.refitted.same),
        ];
        for (system, shelf) in shelves.into_iter().enumerate() {
            let Some(shelf) = shelf else { continue };
            let guesses = on_device(shelf, asks)?;
            for (predicted, guess) in out.iter_mut().zip(guesses) {
                predicted.guesses[system] = guess;
            }
        }
        let mut met = self.refitted.met.clone();
        for event in asks.history {
            met[event.item as usize] = f32::NEG_INFINITY;
        }
        for (predicted, event) in out.iter_mut().zip(asks.events) {
            let item = event.item as usize;
            let rank = mid_rank(&met, event.item);
            predicted.guesses[System::Popularity as usize] = Guess {
                hit: Some(rank.is_some_and(|r| r < PLACES as f64)),
                like: Some(self.refitted.met[item]),
            };
            predicted.guesses[System::Mean as usize] = Guess {
                hit: None,
                like: Some(self.refitted.means[item]),
            };
        }
        Ok(out)
    }
}

/// What a device with these tables says. Where it says nothing of a like, that is even odds.
fn on_device(shelf: &Shelf, asks: &Asks<'_>) -> anyhow::Result<Vec<Guess>> {
    let at = asks.events.first().map_or(0, |e| e.time);
    let shown = shelf.show(asks.history, at)?;
    let items: Vec<u32> = asks.events.iter().map(|e| e.item).collect();
    let likes = shown.likes(&items);
    let guess = |(item, like): (&u32, Option<f64>)| {
        let p = like.unwrap_or(0.5).clamp(1e-9, 1.0 - 1e-9);
        Guess {
            hit: Some(shown.place(*item).is_some_and(|p| p < PLACES)),
            like: Some((p / (1.0 - p)).ln() as f32),
        }
    };
    Ok(items.iter().zip(likes).map(guess).collect())
}
