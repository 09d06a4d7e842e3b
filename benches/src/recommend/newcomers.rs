//! People who are not in the sums, and items that nobody has met.

use std::collections::BTreeSet;

use lethe_learn::metrics::auc;
use lethe_learn::seed::Seed;
use lethe_parts::content::Content;
use lethe_parts::contribution::{Contribution, MAX_CLIP};
use lethe_parts::event::Event;
use lethe_parts::history::day_of;
use lethe_parts::score::{Feature, Like, Ranker, Request, Weights};
use lethe_parts::solve::{Settings, solve};
use lethe_parts::tables::Tables;
use lethe_recsys::evaluation::{Ranking, mid_rank};

use crate::next::{Beginning, Fleet, PLAIN, Target, Variant, ranks};
use crate::world::{World, sum};
use lethe_benches::figures::Row;

/// Everybody is in one fold, whose sums hold everybody else.
const FOLDS: usize = 5;
/// Events that newcomers have.
const EVENTS: [usize; 5] = [0, 1, 3, 5, 10];

/// HR@10 and NDCG@10 of the event after the first `n`, for people who are not in the sums.
pub(crate) fn people(world: &World, order: u64) -> anyhow::Result<Vec<Row>> {
    let everybody = world.contributions(MAX_CLIP, |_, events| events.to_vec())?;
    let seed = Seed::from_u64(order).derive("folds", &[]);
    let fold = |user: usize| {
        let rank = seed.rank("person", world.data.users[user].as_bytes());
        (rank % FOLDS as u64) as usize
    };
    let variants = [
        Variant::composition("composition", Weights::PUBLIC),
        Variant {
            name: "composition, log p for log s",
            weights: Weights::PUBLIC,
            beginning: Beginning::Popularity,
        },
        Variant::only("popularity", Feature::Popularity),
        Variant {
            name: "first events alone",
            weights: Weights([0.0; 9]),
            beginning: Beginning::Always,
        },
    ];
    let mut found = vec![vec![vec![]; EVENTS.len()]; variants.len()];
    for out in 0..FOLDS {
        let inside = everybody
            .iter()
            .enumerate()
            .filter(|(u, _)| fold(*u) != out);
        let inside: Vec<Contribution> = inside.map(|(_, c)| c.clone()).collect();
        let sums = sum(world.items(), &inside)?;
        let mut fleet = Fleet {
            tables: solve(&sums, &world.content, &PLAIN, 0)?.tables,
            sums: &sums,
            content: &world.content,
            k: PLAIN.k,
        };
        for (at, events) in EVENTS.into_iter().enumerate() {
            let targets: Vec<Target> = (0..world.histories.len())
                .filter(|u| fold(*u) == out && world.histories[*u].len() > events)
                .map(|user| {
                    let all = &world.histories[user];
                    Target {
                        history: world.history(&all[..events]),
                        today: day_of(all[events].time),
                        item: all[events].item,
                    }
                })
                .collect();
            let of_fold = ranks(&mut fleet, &targets, &variants);
            for (variant, ranks) in of_fold.into_iter().enumerate() {
                found[variant][at].extend(ranks);
            }
        }
    }
    let mut rows = vec![];
    for (variant, by_events) in variants.iter().zip(&found) {
        for (events, ranks) in EVENTS.iter().zip(by_events) {
            let figures = Ranking::of(ranks);
            rows.push(
                Row::new(
                    "newcomers",
                    &world.name,
                    format!("{}, {events} events", variant.name),
                    order,
                )
                .with("HR@10", figures.hr)
                .with("NDCG@10", figures.ndcg)
                .with("people", ranks.len() as f64),
            );
        }
    }
    Ok(rows)
}

/// One in so many items is held out of the sums.
const HELD_OUT: f64 = 434.0 / 1682.0;

/// Ranks of held-out items among all held-out items, and the AUC of a like of them.
pub(crate) fn items(world: &World, draw: u64) -> anyhow::Result<Vec<Row>> {
    let mut all: Vec<u32> = (0..world.items() as u32).collect();
    Seed::from_u64(draw)
        .derive("unseen items", &[])
        .rng()
        .shuffle(&mut all);
    all.truncate((world.items() as f64 * HELD_OUT).round() as usize);
    let held: BTreeSet<u32> = all.into_iter().collect();
    let known = |events: &[Event]| -> Vec<Event> {
        events
            .iter()
            .filter(|e| !held.contains(&e.item))
            .copied()
            .collect()
    };
    let training = world.contributions(MAX_CLIP, |_, events| {
        known(&events[..events.len().saturating_sub(2)])
    })?;
    let sums = sum(world.items(), &training)?;
    let mut targets = vec![];
    for events in &world.histories {
        for at in events.len().saturating_sub(2)..events.len() {
            if held.contains(&events[at].item) {
                let target = Target {
                    history: world.history(&known(&events[..at])),
                    today: day_of(events[at].time),
                    item: events[at].item,
                };
                // Held-out items that the person had met are no candidates.
                let met: Vec<u32> = events[..at].iter().map(|e| e.item).collect();
                targets.push((target, met));
            }
        }
    }
    let with_text = world.content.text_width() > 0;
    let mut contents = vec![("terms", world.content.without_text(), usize::MAX)];
    if with_text {
        for keep in [usize::MAX, 200, 50] {
            contents.push(("text", world.content.clone(), keep));
        }
    }
    let mut rows = vec![];
    for (what, content, keep) in contents {
        let settings = Settings {
            unseen: keep,
            ..PLAIN
        };
        let tables = solve(&sums, &content, &settings, 0)?.tables;
        let figures = rank_held(&tables, &held, &targets);
        let kept = if keep == usize::MAX {
            String::new()
        } else {
            format!(", {keep} weights an item")
        };
        rows.push(
            Row::new(
                "unseen items",
                &world.name,
                format!("ridge from {what}{kept}"),
                draw,
            )
            .with("HR@10", figures.hr)
            .with("NDCG@10", figures.ndcg)
            .with("random HR@10", random(&held, &targets))
            .with("targets", targets.len() as f64),
        );
    }
    rows.extend(likes(world, &held, draw)?);
    Ok(rows)
}

/// HR@10 of lists by chance.
fn random(held: &BTreeSet<u32>, targets: &[(Target, Vec<u32>)]) -> f64 {
    let chance = |met: &Vec<u32>| {
        let met: BTreeSet<&u32> = met.iter().filter(|i| held.contains(i)).collect();
        (10.0 / (held.len() - met.len()).max(1) as f64).min(1.0)
    };
    targets.iter().map(|(_, met)| chance(met)).sum::<f64>() / targets.len().max(1) as f64
}

/// Candidates are the held-out items alone, not others that happen to be met by nobody.
fn rank_held(tables: &Tables, held: &BTreeSet<u32>, targets: &[(Target, Vec<u32>)]) -> Ranking {
    let mut ranker = Ranker::default();
    let ranks: Vec<Option<f64>> = targets
        .iter()
        .map(|(target, met)| {
            let request = Request {
                history: &target.history,
                today: target.today,
            };
            let mut scores = ranker.unseen_scores(tables, &request).to_vec();
            for (item, score) in scores.iter_mut().enumerate() {
                let item = item as u32;
                if !held.contains(&item) || met.contains(&item) {
                    *score = f32::NEG_INFINITY;
                }
            }
            mid_rank(&scores, target.item)
        })
        .collect();
    Ranking::of(&ranks)
}

/// AUC of a like of held-out items: by the predicted mean alone, and by the seven features.
fn likes(world: &World, held: &BTreeSet<u32>, draw: u64) -> anyhow::Result<Vec<Row>> {
    let training = world.contributions(MAX_CLIP, |_, events| {
        let past = &events[..events.len() * 9 / 10];
        past.iter()
            .filter(|e| !held.contains(&e.item))
            .copied()
            .collect()
    })?;
    let sums = sum(world.items(), &training)?;
    let settings = Settings {
        rank: 150,
        field_items: usize::MAX,
        like_boundary: world.meaning.like_boundary(),
        ..PLAIN
    };
    let mut rows = vec![];
    let contents: [(&str, Content); 2] = [
        ("overall mean", world.content.without_text().without_terms()),
        ("content", world.content.clone()),
    ];
    for (what, content) in contents {
        let tables = solve(&sums, &content, &settings, 0)?.tables;
        let mut mean = vec![];
        let mut seven = vec![];
        let mut labels = vec![];
        for events in &world.histories {
            let (past, test) = events.split_at(events.len() * 9 / 10);
            if !test.iter().any(|e| held.contains(&e.item)) {
                continue;
            }
            let past: Vec<Event> = past
                .iter()
                .filter(|e| !held.contains(&e.item))
                .copied()
                .collect();
            let like = Like::new(&tables, &content, &world.history(&past));
            for event in test.iter().filter(|e| held.contains(&e.item)) {
                let Some(liked) = world.meaning.read(event).liked else {
                    continue;
                };
                mean.push(tables.mean(event.item) as f32);
                seven.push(like.probability(event.item) as f32);
                labels.push(liked);
            }
        }
        for (name, scores) in [("item mean", &mean), ("seven features", &seven)] {
            let name = format!("like: {name}, prior from {what}");
            rows.push(
                Row::new("unseen items", &world.name, name, draw)
                    .with("AUC", auc(scores, &labels).unwrap_or(f64::NAN)),
            );
        }
    }
    Ok(rows)
}
