//! The next item: leave-one-out, full catalogue, seen items masked.

use std::collections::BTreeMap;

use lethe_parts::content::Content;
use lethe_parts::contribution::{Contribution, MAX_CLIP};
use lethe_parts::history::{History, day_of};
use lethe_parts::rows::Row as TableRow;
use lethe_parts::score::{BLOCK, Composition, Feature, Ranker, Request, Weights};
use lethe_parts::snapshot::{Packing, decode, encode};
use lethe_parts::solve::{Form, Settings, solve};
use lethe_parts::sums::Sums;
use lethe_parts::tables::Tables;
use lethe_recsys::evaluation::{Ranking, gain, mid_rank, paired};
use rayon::prelude::*;

use crate::rows::Row;
use crate::world::{World, sum};

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

/// The reference of people without events: how often an item is among the first ones, alone.
pub(crate) const FIRST: &str = "first events alone";

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

/// Ranks of all targets, in their order, for each of the weights. Weights whose name begins with
/// `composition` add what people meet first for short histories, as the software does.
pub(crate) fn ranks(
    tables: &mut Tables,
    sums: &Sums,
    content: &Content,
    targets: &[Target],
    variants: &[(&str, Weights)],
) -> Vec<Vec<Option<f64>>> {
    let mut by_day: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for (at, target) in targets.iter().enumerate() {
        by_day.entry(target.today).or_default().push(at);
    }
    let mut out = vec![vec![None; targets.len()]; variants.len()];
    for (day, members) in by_day {
        tables.set_day(day, &sums.counts().recent(day));
        let tables = &*tables;
        let found: Vec<(usize, Vec<Option<f64>>)> = members
            .par_iter()
            .map(|at| (*at, of_target(tables, content, &targets[*at], variants)))
            .collect();
        for (at, ranks) in found {
            for (variant, rank) in ranks.into_iter().enumerate() {
                out[variant][at] = rank;
            }
        }
    }
    out
}

fn of_target(
    tables: &Tables,
    content: &Content,
    target: &Target,
    variants: &[(&str, Weights)],
) -> Vec<Option<f64>> {
    let request = Request {
        history: &target.history,
        today: target.today,
    };
    let items = tables.items();
    let mut composition = Composition::new(tables, content, &request, Weights::PUBLIC);
    let mut scores = vec![vec![0.0f32; items]; variants.len()];
    let few = Weights::few_events(target.history.seen().len());
    let mut first = 0;
    while first < items {
        let len = BLOCK.min(items - first);
        let features = composition.features(first as u32, len);
        for ((name, weights), scores) in variants.iter().zip(&mut scores) {
            let mut sums = [0.0; BLOCK];
            for (feature, weight) in Feature::ALL.into_iter().zip(weights.0) {
                if weight != 0.0 {
                    for (sum, x) in sums.iter_mut().zip(features.values(feature)) {
                        *sum += weight * x;
                    }
                }
            }
            let few = match *name {
                FIRST => 1.0,
                name if name.starts_with("composition") => few,
                _ => 0.0,
            };
            if few > 0.0 {
                for (place, sum) in sums[..len].iter_mut().enumerate() {
                    *sum += few * tables.start((first + place) as u32).ln();
                }
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

/// Only one feature.
fn only(feature: Feature) -> Weights {
    let mut weights = [0.0; 9];
    weights[feature as usize] = 1.0;
    Weights(weights)
}

/// The composition, each part removed, and the cheap references that are single features.
pub(crate) fn variants() -> Vec<(&'static str, Weights)> {
    use Feature::{Ease, EaseDecay5, EaseDecay15, Far, Near, NearShort, Popularity, Recent, Terms};
    let public = Weights::PUBLIC;
    vec![
        ("composition", public),
        (
            "composition without transitions",
            public.without(&[Far, Near, NearShort]),
        ),
        (
            "composition without EASE",
            public.without(&[Ease, EaseDecay15, EaseDecay5]),
        ),
        (
            "composition without popularity, recency",
            public.without(&[Popularity, Recent]),
        ),
        ("composition without genres", public.without(&[Terms])),
        (
            "composition of four features",
            public.without(&[Popularity, Recent, Far, Terms, EaseDecay15]),
        ),
        ("reference: popularity", only(Popularity)),
        ("reference: EASE", only(Ease)),
        ("reference: EASE, decay of 15 events", only(EaseDecay15)),
        ("reference: log-lift, 10 lags", only(NearShort)),
        ("reference: Markov, 40 lags", only(Far)),
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
    let mut tables = solve(&sums, &world.content, &PLAIN, 0)?.tables;
    let variants = variants();
    let found = ranks(&mut tables, &sums, &world.content, &targets, &variants);
    let whole = found[0].clone();
    let mut rows: Vec<Row> = variants
        .iter()
        .zip(&found)
        .map(|((variant, _), ranks)| row(name, variant, order, ranks, &whole))
        .collect();
    let knn = item_knn(&sums, &targets);
    rows.push(row(name, "reference: ItemKNN", order, &knn, &whole));
    rows.push(lists(world, &mut tables, &sums, &targets, order));
    let mut other = |what: &str, all: &[Contribution], settings: &Settings| -> anyhow::Result<()> {
        let sums = sum(world.items(), all)?;
        let mut tables = solve(&sums, &world.content, settings, 0)?.tables;
        let composition = [("composition", Weights::PUBLIC)];
        let found = ranks(&mut tables, &sums, &world.content, &targets, &composition);
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
    let mut tables = decode(&encode(&tables, &Packing::default()))?;
    let composition = [("composition", Weights::PUBLIC)];
    let found = ranks(&mut tables, &sums, &world.content, targets, &composition);
    let what = "as served: k = 3, clip 200, default snapshot";
    Ok(row(&world.name, what, order, &found[0], whole))
}

/// Coverage and popularity of everybody's first ten items.
fn lists(world: &World, tables: &mut Tables, sums: &Sums, targets: &[Target], run: u64) -> Row {
    let mut shown = vec![0u64; world.items()];
    let mut popularity = 0.0;
    let mut own_popularity = 0.0;
    let mut own = 0usize;
    let mut ranker = Ranker::default();
    for target in targets {
        tables.set_day(target.today, &sums.counts().recent(target.today));
        let request = Request {
            history: &target.history,
            today: target.today,
        };
        let scores = ranker.scores(tables, &world.content, &request, Weights::PUBLIC);
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
