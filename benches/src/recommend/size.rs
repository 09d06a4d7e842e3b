//! What a snapshot's size costs: bytes against paired losses.

use std::time::Instant;

use lethe_learn::metrics::auc;
use lethe_parts::contribution::{Contribution, MAX_CLIP};
use lethe_parts::score::{Like, Options, Ranker, Request, Weights};
use lethe_parts::snapshot::{Packing, RowPacking, decode, delta, encode};
use lethe_parts::solve::{Settings, Solved, solve};
use lethe_parts::sums::Sums;
use lethe_parts::tables::Tables;
use lethe_recsys::evaluation::mid_rank;
use rayon::prelude::*;

use crate::made_up::MadeUp;
use crate::next::{Event, Fleet, PLAIN, Variant, ranks, row, targets, training};
use crate::world::{World, sum};
use lethe_benches::figures::Row;

fn packing(keep: usize, bits: u32, rank: usize, field_bits: u32) -> Packing {
    Packing {
        rows: RowPacking { keep, bits },
        rank,
        field_bits,
    }
}

/// Rows and bits of the three tables: HR@10 on validation and test events against the whole
/// tables.
pub(crate) fn rows_of_tables(world: &World, quick: bool) -> anyhow::Result<Vec<Row>> {
    let settings = Settings { k: 3, ..PLAIN };
    let sums = sum(world.items(), &training(world, MAX_CLIP)?)?;
    let whole = solve(&sums, &world.content, &settings, 0)?.tables;
    let variants = [Variant::composition("composition", Weights::PUBLIC)];
    let keeps: &[usize] = if quick { &[50] } else { &[20, 50, 100, 200] };
    let bits: &[u32] = if quick { &[5] } else { &[4, 5, 6] };
    let mut out = vec![];
    let validation = targets(world, Event::Validation);
    let test = targets(world, Event::Test);
    let of = |tables: &Tables, targets| {
        let mut fleet = Fleet {
            tables: tables.clone(),
            sums: &sums,
            content: &world.content,
            k: settings.k,
        };
        ranks(&mut fleet, targets, &variants).remove(0)
    };
    let whole_validation = of(&whole, &validation);
    let whole_test = of(&whole, &test);
    for keep in keeps {
        for bits in bits {
            let bytes = encode(&whole, &packing(*keep, *bits, 0, 6))?;
            let tables = decode(&bytes)?;
            let on_validation = row("", "", 0, &of(&tables, &validation), &whole_validation);
            let on_test = row("", "", 0, &of(&tables, &test), &whole_test);
            let name = format!("{keep} entries a row, {bits} bits");
            out.push(
                Row::new("snapshot: tables", &world.name, name, 0)
                    .with("01 kB", bytes.len() as f64 / 1e3)
                    .with("02 validation HR@10", on_validation.figures["HR@10"])
                    .with("03 validation d HR", on_validation.figures["d HR"])
                    .with("04 test HR@10", on_test.figures["HR@10"])
                    .with("05 test d HR", on_test.figures["d HR"])
                    .with("06 standard error", on_test.figures["d HR, standard error"]),
            );
        }
    }
    Ok(out)
}

/// Rank and bits of the item field: AUC on validation and test rows, per person.
pub(crate) fn field(world: &World, quick: bool) -> anyhow::Result<Vec<Row>> {
    let mut out = vec![];
    let settings = Settings {
        rank: 150,
        field_items: usize::MAX,
        like_boundary: world.meaning.like_boundary(),
        k: 3,
        ..PLAIN
    };
    let solved = |tenths: usize| -> anyhow::Result<Solved> {
        let all = world.contributions(MAX_CLIP, |_, e| e[..e.len() * tenths / 10].to_vec())?;
        Ok(solve(
            &sum(world.items(), &all)?,
            &world.content,
            &settings,
            0,
        )?)
    };
    let validation = solved(8)?.tables;
    let test = solved(9)?.tables;
    let pairs: &[(usize, u32)] = if quick {
        &[(64, 6)]
    } else {
        &[
            (64, 4),
            (64, 6),
            (64, 8),
            (150, 4),
            (150, 5),
            (150, 6),
            (150, 8),
        ]
    };
    let exact = (like_auc(world, &validation, 8), like_auc(world, &test, 9));
    for (rank, bits) in pairs {
        // Rows are whole: what is lost is lost by the field.
        let packing = packing(65_535, 8, *rank, *bits);
        let small = encode(&validation, &packing)?;
        let without = encode(&validation, &Packing { rank: 0, ..packing })?;
        let on_validation = like_auc(world, &decode(&small)?, 8);
        let on_test = like_auc(world, &decode(&encode(&test, &packing)?)?, 9);
        out.push(
            Row::new(
                "snapshot: field",
                &world.name,
                format!("rank {rank}, {bits} bits"),
                0,
            )
            .with(
                "01 kB of the field",
                (small.len() - without.len()) as f64 / 1e3,
            )
            .with("02 validation d AUC", on_validation - exact.0)
            .with("03 test AUC", on_test)
            .with("04 test d AUC", on_test - exact.1),
        );
    }
    Ok(out)
}

/// AUC of the tenth after the first `tenths`.
fn like_auc(world: &World, tables: &Tables, tenths: usize) -> f64 {
    let found: Vec<Vec<(f32, bool)>> = world
        .histories
        .par_iter()
        .map(|events| {
            let start = events.len() * tenths / 10;
            let end = events.len() * (tenths + 1) / 10;
            let like = Like::new(tables, &world.content, &world.history(&events[..start]));
            let judge = |event: &lethe_parts::event::Event| {
                let liked = world.meaning.read(event).liked?;
                Some((like.probability(event.item) as f32, liked))
            };
            events[start..end].iter().filter_map(judge).collect()
        })
        .collect();
    let (scores, labels): (Vec<f32>, Vec<bool>) = found.into_iter().flatten().unzip();
    auc(&scores, &labels).unwrap_or(f64::NAN)
}

/// Made-up people over many items: HR@10 of their last event against the whole tables.
pub(crate) fn large(items: usize, people: usize) -> anyhow::Result<Vec<Row>> {
    let fleet = MadeUp::new(items);
    let content = fleet.content();
    let all: anyhow::Result<Vec<Contribution>> = (0..people as u32)
        .into_par_iter()
        .map(|person| fleet.contribution(person, 1))
        .collect();
    let mut sums = Sums::new(items);
    sums.fold_all(&all?)?;
    let whole = solve(&sums, &content, &Settings::default(), 900)?.tables;
    drop(sums);
    let whole_ranks = made_up_ranks(&fleet, &content, &whole);
    let mut out = vec![];
    for keep in [20, 50, 100] {
        let bytes = encode(&whole, &packing(keep, 5, 64, 6))?;
        let tables = decode(&bytes)?;
        let found = made_up_ranks(&fleet, &content, &tables);
        let figures = row("", "", 0, &found, &whole_ranks);
        let data = format!("made up, {items} items, {people} people");
        out.push(
            Row::new(
                "snapshot: tables",
                &data,
                format!("{keep} entries a row, 5 bits"),
                0,
            )
            .with("01 kB", bytes.len() as f64 / 1e3)
            .with("04 test HR@10", figures.figures["HR@10"])
            .with("05 test d HR", figures.figures["d HR"])
            .with("06 standard error", figures.figures["d HR, standard error"]),
        );
    }
    Ok(out)
}

pub(crate) fn made_up_ranks(
    fleet: &MadeUp,
    content: &lethe_parts::content::Content,
    tables: &Tables,
) -> Vec<Option<f64>> {
    (0..600u32)
        .into_par_iter()
        .map_init(Ranker::default, |ranker, person| {
            let events = fleet.events(person);
            let (target, past) = events.split_last()?;
            let meaning = lethe_parts::event::Meaning::default();
            let history = lethe_parts::history::History::of_events(past, &meaning);
            // Lists never have what was met before.
            if history.has_met(target.item) {
                return None;
            }
            let request = Request {
                history: &history,
                today: 901,
            };
            let scores = ranker.scores(tables, content, &request, Weights::PUBLIC);
            Some(mid_rank(scores, target.item))
        })
        .flatten()
        .collect()
}

/// Seconds and bytes of the served configuration on real data: solve, snapshot, deletion, delta,
/// list.
pub(crate) fn served(world: &World) -> anyhow::Result<Vec<Row>> {
    let everybody = world.contributions(200, |_, events| events.to_vec())?;
    let began = Instant::now();
    let mut sums = sum(world.items(), &everybody)?;
    let fold = began.elapsed().as_secs_f64();
    let settings = Settings::default();
    let mut solving = vec![];
    let mut deleting = vec![];
    let mut one = 0;
    let mut cell = 0;
    let began = Instant::now();
    let first = solve(&sums, &world.content, &settings, 10_000)?.tables;
    let mut bytes = encode(&first, &Packing::default())?;
    solving.push(began.elapsed().as_secs_f64());
    for leaver in 0..5 {
        let began = Instant::now();
        sums.unfold(&everybody[leaver * 7])?;
        let solved = solve(&sums, &world.content, &settings, 10_000)?;
        let after = encode(&solved.tables, &Packing::default())?;
        deleting.push(began.elapsed().as_secs_f64());
        one = delta(&bytes, &after)?.len();
        bytes = after;
    }
    for leaver in &everybody[500..516.min(everybody.len())] {
        sums.unfold(leaver)?;
    }
    let solved = solve(&sums, &world.content, &settings, 10_000)?;
    let after = encode(&solved.tables, &Packing::default())?;
    cell += delta(&bytes, &after)?.len();
    let device = decode(&after)?;
    let mut times = vec![];
    let mut ranker = Ranker::default();
    for events in world.histories.iter().take(300) {
        let history = world.history(events);
        let request = Request {
            history: &history,
            today: 10_000,
        };
        let began = Instant::now();
        ranker.page(&device, &world.content, &request, &Options::default());
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    deleting.sort_by(f64::total_cmp);
    Ok(vec![
        Row::new("served", &world.name, "defaults: k 3, clip 200, rank 64", 0)
            .with("01 fold everybody, s", fold)
            .with("02 solve and snapshot, s", solving[0])
            .with("03 deletion to snapshot, s (median of 5)", deleting[2])
            .with("04 snapshot, kB", after.len() as f64 / 1e3)
            .with("05 delta of one person, kB", one as f64 / 1e3)
            .with("06 delta of 16 people, kB", cell as f64 / 1e3)
            .with("07 list p50, ms", times[times.len() / 2])
            .with("08 list p99, ms", times[times.len() * 99 / 100]),
    ])
}
