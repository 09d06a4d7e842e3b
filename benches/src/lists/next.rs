//! The next item: leave-one-out, full catalogue, seen items masked.

use std::collections::BTreeMap;

use lethe_parts::content::Content;
use lethe_parts::contribution::Contribution;
use lethe_parts::history::{History, day_of};
use lethe_parts::score::{BLOCK, Composition, Feature, Request, Weights};
use lethe_parts::solve::{Form, Settings, recent};
use lethe_parts::sums::Sums;
use lethe_parts::tables::{Recent, Tables};
use lethe_recsys::evaluation::{Ranking, gain, mid_rank, paired};
use rayon::prelude::*;

use super::world::World;
use crate::figures::Row;

/// Without threshold; the field has nothing to do with the next item.
pub const PLAIN: Settings = Settings {
    k: 1,
    rank: 0,
    field_items: 0,
    form: Form::BySize,
    content_in_field: true,
    unseen: 0,
    like_boundary: lethe_parts::event::LIKE_BOUNDARY,
};

/// A request whose answer is known.
pub struct Target {
    /// What the device knows.
    pub history: History,
    /// The day of the request.
    pub today: i32,
    /// What the person met next.
    pub item: u32,
}

/// Which events of a person are the target, and what comes before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The last.
    Test,
    /// The last but one.
    Validation,
}

/// One request per person who has three events at least.
pub fn targets(world: &World, which: Event) -> Vec<Target> {
    let back = match which {
        Event::Test => 1,
        Event::Validation => 2,
    };
    let mut out = vec![];
    for events in &world.histories {
        if events.len() < 3 {
            continue;
        }
        let at = events.len() - back;
        out.push(Target {
            history: world.history(&events[..at]),
            today: day_of(events[at].time),
            item: events[at].item,
        });
    }
    out
}

/// Everybody's contribution without their last two events.
///
/// # Errors
/// Events outside the bounds of a contribution.
pub fn training(world: &World, clip: usize) -> anyhow::Result<Vec<Contribution>> {
    world.contributions(clip, |_, events| {
        events[..events.len().saturating_sub(2)].to_vec()
    })
}

/// What is added to the features of people with few events.
#[derive(Clone, Copy, PartialEq)]
pub enum Beginning {
    /// Nothing.
    Nothing,
    /// What people meet first, as the software does.
    First,
    /// How often an item is met at all, in its place.
    Popularity,
    /// What people meet first, whatever the number of events.
    Always,
}

impl Beginning {
    /// What is added to an item's score, for a history of `events` events.
    fn of(self, tables: &Tables, item: u32, events: usize) -> f64 {
        let weight = Weights::few_events(events);
        match self {
            Self::Nothing => 0.0,
            Self::First => weight * tables.start(item).ln(),
            Self::Popularity => weight * tables.share(item).ln(),
            Self::Always => tables.start(item).ln(),
        }
    }
}

/// A way to score.
pub struct Variant {
    /// Its name in tables.
    pub name: &'static str,
    /// Weights of the nine features.
    pub weights: Weights,
    /// What is added for people with few events.
    pub beginning: Beginning,
}

impl Variant {
    /// The composition as the software has it, or with other weights.
    pub fn composition(name: &'static str, weights: Weights) -> Self {
        Self {
            name,
            weights,
            beginning: Beginning::First,
        }
    }

    /// One feature alone.
    pub fn only(name: &'static str, feature: Feature) -> Self {
        let mut weights = [0.0; 9];
        weights[feature as usize] = 1.0;
        Self {
            name,
            weights: Weights(weights),
            beginning: Beginning::Nothing,
        }
    }
}

/// Tables, and the sums that say what was met lately on each target's day.
pub struct Fleet<'a> {
    /// What devices hold.
    pub tables: Tables,
    /// What they were solved from.
    pub sums: &'a Sums,
    /// What is public about items.
    pub content: &'a Content,
    /// The threshold: it holds for what was met lately, too.
    pub k: u64,
}

/// Ranks of all targets, in their order, for each of the variants.
pub fn ranks(
    fleet: &mut Fleet<'_>,
    targets: &[Target],
    variants: &[Variant],
) -> Vec<Vec<Option<f64>>> {
    let mut by_day: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for (at, target) in targets.iter().enumerate() {
        by_day.entry(target.today).or_default().push(at);
    }
    let mut out = vec![vec![None; targets.len()]; variants.len()];
    for (day, members) in by_day {
        let lately = recent(fleet.sums, fleet.k, day);
        let those: Vec<&Target> = members.iter().map(|at| &targets[*at]).collect();
        let found = ranks_of_day(fleet, lately, &those, variants);
        for (at, ranks) in members.into_iter().zip(found) {
            for (variant, rank) in ranks.into_iter().enumerate() {
                out[variant][at] = rank;
            }
        }
    }
    out
}

/// Ranks of targets of one day, for each of them those of the variants.
pub fn ranks_of_day(
    fleet: &mut Fleet<'_>,
    lately: Recent,
    targets: &[&Target],
    variants: &[Variant],
) -> Vec<Vec<Option<f64>>> {
    fleet.tables.set_day(lately);
    let tables = &fleet.tables;
    let content = fleet.content;
    let of = |target: &&Target| of_target(tables, content, target, variants);
    targets.par_iter().map(of).collect()
}

fn of_target(
    tables: &Tables,
    content: &Content,
    target: &Target,
    variants: &[Variant],
) -> Vec<Option<f64>> {
    let request = Request {
        history: &target.history,
        today: target.today,
    };
    let items = tables.items();
    let mut composition = Composition::new(tables, content, &request, Weights::PUBLIC);
    let mut scores = vec![vec![0.0f32; items]; variants.len()];
    let events = target.history.seen().len();
    let mut first = 0;
    while first < items {
        let len = BLOCK.min(items - first);
        let features = composition.features(first as u32, len);
        for (variant, scores) in variants.iter().zip(&mut scores) {
            let mut sums = [0.0; BLOCK];
            for (feature, weight) in Feature::ALL.into_iter().zip(variant.weights.0) {
                if weight != 0.0 {
                    for (sum, x) in sums.iter_mut().zip(features.values(feature)) {
                        *sum += weight * x;
                    }
                }
            }
            for (place, sum) in sums[..len].iter_mut().enumerate() {
                *sum += variant.beginning.of(tables, (first + place) as u32, events);
            }
            for (place, sum) in scores[first..first + len].iter_mut().zip(sums) {
                *place = sum as f32;
            }
        }
        first += len;
    }
    scores
        .iter_mut()
        .map(|scores| {
            mask(scores, &target.history);
            mid_rank(scores, target.item)
        })
        .collect()
}

/// Items of the history are never listed.
pub fn mask(scores: &mut [f32], history: &History) {
    for item in history.met() {
        scores[*item as usize] = f32::NEG_INFINITY;
    }
}

/// A row with both figures and the paired difference of HR@10 from `whole`.
pub fn row(data: &str, name: &str, run: u64, ranks: &[Option<f64>], whole: &[Option<f64>]) -> Row {
    let found = Ranking::of(ranks);
    let (hr, hr_error) = difference(ranks, whole, |r| f64::from(u8::from(r < 10.0)));
    let (ndcg, _) = difference(ranks, whole, gain);
    Row::new("next item", data, name, run)
        .with("HR@10", found.hr)
        .with("NDCG@10", found.ndcg)
        .with("d HR", hr)
        .with("d HR, standard error", hr_error)
        .with("d NDCG", ndcg)
}

fn difference(a: &[Option<f64>], b: &[Option<f64>], of: impl Fn(f64) -> f64) -> (f64, f64) {
    let values =
        |ranks: &[Option<f64>]| -> Vec<f64> { ranks.iter().map(|r| r.map_or(0.0, &of)).collect() };
    paired(&values(a), &values(b))
}
