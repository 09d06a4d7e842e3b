//! The next item: the composition, parts removed, references.

use lethe_parts::contribution::{Contribution, MAX_CLIP};
use lethe_parts::rows::Row as TableRow;
use lethe_parts::score::{Feature, Ranker, Request, Weights};
use lethe_parts::snapshot::{Packing, decode, encode};
use lethe_parts::solve::{Form, Settings, recent, solve};
use lethe_parts::sums::Sums;
use lethe_recsys::evaluation::mid_rank;
use rayon::prelude::*;

use lethe_benches::figures::Row;
use lethe_benches::lists::next::mask;
pub(crate) use lethe_benches::lists::next::{
    Beginning, Event, Fleet, PLAIN, Target, Variant, ranks, ranks_of_day, row, targets, training,
};

use crate::world::{World, sum};

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
