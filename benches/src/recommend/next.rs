//! The next item: leave-one-out, full catalogue, seen items masked.

use std::collections::BTreeMap;

use lethe_parts::content::Content;
use lethe_parts::contribution::{Contribution, MAX_CLIP};
use lethe_parts::history::{History, day_of};
use lethe_parts::rows::Row as TableRow;
use lethe_parts::score::{BLOCK, Composition, Feature, Ranker, Request, Weights};
use lethe_parts::snapshot::{Packing, decode, encode};
use lethe_parts::solve::{Form, Settings, recent, solve};
use lethe_parts::sums::Sums;
use lethe_parts::tables::{Recent, Tables};
use lethe_recsys::evaluation::{Ranking, gain, mid_rank, paired};
use rayon::prelude::*;

use crate::world::{World, sum};
use lethe_benches::figures::Row;

/// Without threshold; the field has nothing to do with the next item.
pub(crate) const PLAIN: Settings = Settings {
    k: 1,
    rank: 0,
    field_items: 0,
    form: Form::BySize,
    content_in_field: true,
    unseen: 0,
    like_boundary: lethe_parts::event::LIKE_BOUNDARY,
};

/// A request whose answer is known.
pub(crate) struct Target {
    pub(crate) history: History,
    pub(crate) today: i32,
    pub(crate) item: u32,
}

/// Which events of a person are the target, and what comes before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The last.
    Test,
    /// The last but one.
    Validation,
}

/// One request per person who has three events at least.
pub(crate) fn targets(world: &World, which: Event) -> Vec<Target> {
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
pub(crate) fn training(world: &World, clip: usize) -> anyhow::Result<Vec<Contribution>> {
    world.contributions(clip, |_, events| {
        events[..events.len().saturating_sub(2)].to_vec()
    })
}

/// What is added to the features of people with few events.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Beginning {
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
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) weights: Weights,
    pub(crate) beginning: Beginning,
}

impl Variant {
    /// The composition as the software has it, or with other weights.
    pub(crate) fn composition(name: &'static str, weights: Weights) -> Self {
        Self {
            name,
            weights,
            beginning: Beginning::First,
        }
    }

    /// One feature alone.
    pub(crate) fn only(name: &'static str, feature: Feature) -> Self {
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
pub(crate) struct Fleet<'a> {
    pub(crate) tables: Tables,
    pub(crate) sums: &'a Sums,
    pub(crate) content: &'a Content,
    /// The threshold: it holds for what was met lately, too.
    pub(crate) k: u64,
}

/// Ranks of all targets, in their order, for each of the variants.
pub(crate) fn ranks(
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
pub(crate) fn ranks_of_day(
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

fn mask(scores: &mut [f32], history: &History) {
    for item in history.met() {
        scores[*item as usize] = f32::NEG_INFINITY;
    }
}

/// The composition, each part removed, and the cheap references that are single features.
pub(crate) fn variants() -> Vec<Variant> {
    use Feature::{Ease, EaseDecay5, EaseDecay15, Far, Near, NearShort, Popularity, Recent, Terms};
    let public = Weights::PUBLIC;
    let without = |name, features: &[Feature]| Variant::composition(name, public.without(features));
    vec![
        Variant::composition("composition", public),
        without("composition without transitions", &[Far, Near, NearShort]),
        without("composition without EASE", &[Ease, EaseDecay15, EaseDecay5]),
        without(
            "composition without popularity, recency",
            &[Popularity, Recent],
        ),
        without("composition without genres", &[Terms]),
        without(
            "composition of four features",
            &[Popularity, Recent, Far, Terms, EaseDecay15],
        ),
        Variant::only("reference: popularity", Popularity),
        Variant::only("reference: EASE", Ease),
        Variant::only("reference: EASE, decay of 15 events", EaseDecay15),
        Variant::only("reference: log-lift, 10 lags", NearShort),
        Variant::only("reference: Markov, 40 lags", Far),
    ]
}

/// A row with both figures and the paired difference of HR@10 from `whole`.
pub(crate) fn row(
    data: &str,
    name: &str,
    run: u64,
    ranks: &[Option<f64>],
    whole: &[Option<f64>],
) -> Row {
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

/// All rows of one order of ties.
pub(crate) fn measure(world: &World, order: u64, quick: bool) -> anyhow::Result<Vec<Row>> {
    let name = world.name.as_str();
    let targets = targets(world, Event::Test);
    let everybody = training(world, MAX_CLIP)?;
    let sums = sum(world.items(), &everybody)?;
    let mut fleet = Fleet {
        tables: solve(&sums, &world.content, &PLAIN, 0)?.tables,
        sums: &sums,
        content: &world.content,
        k: PLAIN.k,
    };
    let variants = variants();
    let found = ranks(&mut fleet, &targets, &variants);
    let whole = found[0].clone();
    let mut rows: Vec<Row> = variants
        .iter()
        .zip(&found)
        .map(|(variant, ranks)| row(name, variant.name, order, ranks, &whole))
        .collect();
    let knn = item_knn(&sums, &targets);
    rows.push(row(name, "reference: ItemKNN", order, &knn, &whole));
    rows.push(lists(world, &mut fleet, &targets, order));
    let mut other = |what: &str, all: &[Contribution], settings: &Settings| -> anyhow::Result<()> {
        let sums = sum(world.items(), all)?;
        let mut fleet = Fleet {
            tables: solve(&sums, &world.content, settings, 0)?.tables,
            sums: &sums,
            content: &world.content,
            k: settings.k,
        };
        let composition = [Variant::composition("composition", Weights::PUBLIC)];
        let found = ranks(&mut fleet, &targets, &composition);
        rows.push(row(name, what, order, &found[0], &whole));
        Ok(())
    };
    let k3 = Settings { k: 3, ..PLAIN };
    other("k = 3", &everybody, &k3)?;
    if world.items() > 200 {
        let neighbours = Settings {
            form: Form::Neighbourhood,
            ..PLAIN
        };
        other("EASE by neighbourhoods", &everybody, &neighbours)?;
    }
    let clips: &[usize] = if quick { &[50] } else { &[200, 100, 50, 20] };
    for clip in clips {
        other(&format!("clip {clip}"), &training(world, *clip)?, &PLAIN)?;
    }
    let out: &[usize] = if quick { &[16] } else { &[16, 160] };
    for people in out.iter().filter(|n| **n < everybody.len()) {
        let seed = lethe_learn::seed::Seed::from_u64(order);
        let mut rest: Vec<Contribution> = everybody.clone();
        seed.derive("cells", &[]).rng().shuffle(&mut rest);
        rest.truncate(everybody.len() - people);
        other(&format!("{people} people out"), &rest, &PLAIN)?;
    }
    rows.push(served(world, order, &targets, &whole)?);
    Ok(rows)
}

/// What a device shows by default: threshold, clip, packed tables.
fn served(
    world: &World,
    order: u64,
    targets: &[Target],
    whole: &[Option<f64>],
) -> anyhow::Result<Row> {
    let settings = Settings { k: 3, ..PLAIN };
    let sums = sum(world.items(), &training(world, 200)?)?;
    let tables = solve(&sums, &world.content, &settings, 0)?.tables;
    let mut fleet = Fleet {
        tables: decode(&encode(&tables, &Packing::default())?)?,
        sums: &sums,
        content: &world.content,
        k: settings.k,
    };
    let composition = [Variant::composition("composition", Weights::PUBLIC)];
    let found = ranks(&mut fleet, targets, &composition);
    let what = "as served: k = 3, clip 200, default snapshot";
    Ok(row(&world.name, what, order, &found[0], whole))
}

/// Coverage and popularity of everybody's first ten items.
fn lists(world: &World, fleet: &mut Fleet<'_>, targets: &[Target], run: u64) -> Row {
    let sums = fleet.sums;
    let mut shown = vec![0u64; world.items()];
    let mut popularity = 0.0;
    let mut own_popularity = 0.0;
    let mut own = 0usize;
    let mut ranker = Ranker::default();
    for target in targets {
        fleet.tables.set_day(recent(sums, fleet.k, target.today));
        let request = Request {
            history: &target.history,
            today: target.today,
        };
        let scores = ranker.scores(&fleet.tables, &world.content, &request, Weights::PUBLIC);
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        let better = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]);
        order.select_nth_unstable_by(9.min(scores.len() - 1), better);
        for item in order.iter().take(10) {
            shown[*item as usize] += 1;
            popularity += sums.counts().seen[*item as usize] as f64;
        }
        for item in target.history.seen() {
            own_popularity += sums.counts().seen[*item as usize] as f64;
            own += 1;
        }
    }
    let covered = shown.iter().filter(|n| **n > 0).count() as f64;
    Row::new("lists", &world.name, "first ten of everybody", run)
        .with(
            "share of the catalogue shown",
            covered / world.items() as f64,
        )
        .with("Gini of exposure", gini(&shown))
        .with(
            "people per shown item",
            popularity / (10 * targets.len()) as f64,
        )
        .with(
            "people per item of histories",
            own_popularity / own.max(1) as f64,
        )
}

fn gini(counts: &[u64]) -> f64 {
    let mut sorted = counts.to_vec();
    sorted.sort_unstable();
    let total: u64 = sorted.iter().sum();
    let n = sorted.len() as f64;
    let weighted: f64 = sorted
        .iter()
        .enumerate()
        .map(|(i, c)| (2.0 * (i as f64 + 1.0) - n - 1.0) * *c as f64)
        .sum();
    weighted / (n * total.max(1) as f64)
}

/// Item k-nearest neighbours: cosine over people, the 100 nearest of every item.
fn item_knn(sums: &Sums, targets: &[Target]) -> Vec<Option<f64>> {
    const NEIGHBOURS: usize = 100;
    let seen = &sums.counts().seen;
    let rows: Vec<TableRow> = (0..sums.items() as u32)
        .into_par_iter()
        .map(|item| {
            let mut row = TableRow::default();
            sums.pairs().met.for_row(item, |other, n| {
                if other != item {
                    let product = seen[item as usize] as f64 * seen[other as usize] as f64;
                    row.columns.push(other);
                    row.values.push((n as f64 / product.sqrt()) as f32);
                }
            });
            row.cut(NEIGHBOURS)
        })
        .collect();
    targets
        .par_iter()
        .map(|target| {
            let mut scores = vec![0.0f32; sums.items()];
            for item in target.history.seen() {
                let row = &rows[*item as usize];
                for (column, value) in row.columns.iter().zip(&row.values) {
                    scores[*column as usize] += value;
                }
            }
            mask(&mut scores, &target.history);
            mid_rank(&scores, target.item)
        })
        .collect()
}
