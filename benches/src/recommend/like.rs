//! Like or dislike: AUC, UAUC and calibration, beside the cheap references.

use std::collections::BTreeMap;

use lethe_learn::metrics::{auc, uauc};
use lethe_learn::seed::Seed;
use lethe_parts::contribution::MAX_CLIP;
use lethe_parts::event::{Event, Kind};
use lethe_parts::history::{History, Rated};
use lethe_parts::score::{Like, SEVEN, TWELVE};
use lethe_parts::snapshot::{Packing, decode, encode};
use lethe_parts::solve::{Settings, solve};
use lethe_parts::tables::Tables;
use lethe_recsys::references::References;
use lethe_recsys::samples::{Part, TaskSample};
use rayon::prelude::*;

use crate::next::PLAIN;
use crate::world::{World, sum};
use lethe_benches::figures::Row;

/// Prior strength of a person's offset in the bias reference, in events.
const BIAS_PRIOR: f64 = 5.0;
/// Items of the panel whose mean score is a person's level.
const PANEL: usize = 50;

/// Scores of all test rows by one method.
struct Scores {
    name: &'static str,
    values: Vec<f32>,
    /// Whether the values are probabilities.
    calibrated: bool,
}

/// Test rows and what methods say of them.
struct Judged {
    users: Vec<u32>,
    labels: Vec<bool>,
    methods: Vec<Scores>,
}

/// How the item field is computed in these measurements.
fn settings(world: &World, with_content: bool) -> Settings {
    // The field of thousands of items takes minutes: fewer columns there.
    let rank = if world.items() > 4_096 { 64 } else { 150 };
    Settings {
        rank,
        field_items: usize::MAX,
        like_boundary: world.meaning.like_boundary(),
        content_in_field: with_content,
        ..PLAIN
    }
}

/// Per person, 8:1:1 in their order; history and sums end before the test rows ("frozen").
pub(crate) fn per_person(world: &World, run: u64) -> anyhow::Result<Vec<Row>> {
    let cut = |events: &[Event]| events.len() * 9 / 10;
    let training = world.contributions(MAX_CLIP, |_, events| events[..cut(events)].to_vec())?;
    let sums = sum(world.items(), &training)?;
    let both = solve(&sums, &world.content, &settings(world, true), 0)?.tables;
    let plain = solve(&sums, &world.content, &settings(world, false), 0)?.tables;
    let served = served(world, &cut)?;
    let references = references(world, |events| cut(events));
    let of_users: Vec<Vec<(bool, [f64; 9])>> = (0..world.histories.len())
        .into_par_iter()
        .map(|user| {
            let events = &world.histories[user];
            let (past, test) = events.split_at(cut(events));
            let history = world.history(past);
            let like = Like::new(&both, &world.content, &history).with_plain_field(plain.field());
            let as_served = Like::new(&served, &world.content, &history);
            let offset = offset(&both, &history);
            let judge = |event: &Event| -> Option<(bool, [f64; 9])> {
                let liked = world.meaning.read(event).liked?;
                let f = like.features(event.item);
                let sample = TaskSample {
                    user: user as u32,
                    item: event.item,
                    event: 0,
                    history: vec![],
                    label: liked,
                    part: Part::Test,
                };
                let [_, bias, mf, _] = references.scores(&sample);
                Some((
                    liked,
                    [
                        both.mean(event.item),
                        f.rate_log_odds,
                        both.mean(event.item) + offset,
                        f64::from(bias),
                        f64::from(mf),
                        f.field,
                        f.log_odds(&SEVEN),
                        f.log_odds(&TWELVE),
                        as_served.features(event.item).log_odds(&SEVEN),
                    ],
                ))
            };
            test.iter().filter_map(judge).collect()
        })
        .collect();
    let names = [
        "reference: item mean",
        "reference: own like-rate",
        "reference: user + item bias",
        "reference: bias, refined",
        "reference: bias + MF",
        "item field alone",
        "composition, seven features",
        "composition, twelve features",
        "composition, seven features, as served",
    ];
    let mut judged = Judged {
        users: vec![],
        labels: vec![],
        methods: names
            .map(|name| Scores {
                name,
                values: vec![],
                calibrated: name.starts_with("composition"),
            })
            .into(),
    };
    for (user, rows) in of_users.into_iter().enumerate() {
        for (liked, scores) in rows {
            judged.users.push(user as u32);
            judged.labels.push(liked);
            for (method, score) in judged.methods.iter_mut().zip(scores) {
                method.values.push(score as f32);
            }
        }
    }
    Ok(rows("like, per person", world, run, &judged, None))
}

/// What a device holds by default: threshold, clip, rank, packed tables.
fn served(world: &World, cut: &impl Fn(&[Event]) -> usize) -> anyhow::Result<Tables> {
    let training = world.contributions(200, |_, events| events[..cut(events)].to_vec())?;
    let settings = Settings {
        like_boundary: world.meaning.like_boundary(),
        ..Settings::default()
    };
    let sums = sum(world.items(), &training)?;
    let solved = solve(&sums, &world.content, &settings, 0)?;
    Ok(decode(&encode(&solved.tables, &Packing::default())?)?)
}

/// A test row whose history grows: three methods' scores, and their means over the panel then.
struct OverTime {
    liked: bool,
    own: [f64; 3],
    level: [f64; 3],
}

/// Chronological over everybody, 8:1:1; sums end at the ninth tenth, histories at the event.
pub(crate) fn global(world: &World, run: u64) -> anyhow::Result<Vec<Row>> {
    let mut times: Vec<i64> = world.data.events.iter().map(|e| e.time).collect();
    times.sort_unstable();
    let cut = times[times.len() * 9 / 10];
    let training = world.contributions(MAX_CLIP, |_, events| {
        events.iter().filter(|e| e.time < cut).copied().collect()
    })?;
    let sums = sum(world.items(), &training)?;
    let tables = solve(&sums, &world.content, &settings(world, true), 0)?.tables;
    let mut panel: Vec<u32> = (0..world.items() as u32).collect();
    panel.sort_by_key(|i| std::cmp::Reverse(tables.columns().rated[*i as usize]));
    panel.truncate(PANEL);
    let of_users: Vec<Vec<OverTime>> = world
        .histories
        .par_iter()
        .map(|events| {
            let mut out = vec![];
            for (at, event) in events.iter().enumerate() {
                if event.time < cut {
                    continue;
                }
                let Some(liked) = world.meaning.read(event).liked else {
                    continue;
                };
                // Only what was strictly earlier: events of the same second are not known yet.
                let before = events[..at].partition_point(|e| e.time < event.time);
                let history = world.history(&events[..before]);
                let like = Like::new(&tables, &world.content, &history);
                let offset = offset(&tables, &history);
                let score = |item: u32| -> [f64; 3] {
                    let f = like.features(item);
                    [tables.mean(item) + offset, f.field, f.log_odds(&SEVEN)]
                };
                let own = score(event.item);
                let mut level = [0.0; 3];
                for item in &panel {
                    for (sum, s) in level.iter_mut().zip(score(*item)) {
                        *sum += s / panel.len() as f64;
                    }
                }
                out.push(OverTime { liked, own, level });
            }
            out
        })
        .collect();
    let names = [
        "reference: user + item bias",
        "item field alone",
        "composition, seven features",
    ];
    let empty = |name| Scores {
        name,
        values: vec![],
        calibrated: name == names[2],
    };
    let mut judged = Judged {
        users: vec![],
        labels: vec![],
        methods: names.map(empty).into(),
    };
    let mut within: Vec<Vec<f32>> = vec![vec![]; names.len()];
    for (user, rows) in of_users.into_iter().enumerate() {
        for row in rows {
            judged.users.push(user as u32);
            judged.labels.push(row.liked);
            for (method, own) in judged.methods.iter_mut().zip(row.own) {
                method.values.push(own as f32);
            }
            for (scores, (own, level)) in within.iter_mut().zip(row.own.iter().zip(row.level)) {
                scores.push((own - level) as f32);
            }
        }
    }
    Ok(rows("like, global", world, run, &judged, Some(&within)))
}

/// The person's mean residual, shrunk.
fn offset(tables: &Tables, history: &History) -> f64 {
    let residual = |r: &Rated| r.stars() - tables.mean(r.item);
    let rated = history.rated();
    rated.iter().map(residual).sum::<f64>() / (rated.len() as f64 + BIAS_PRIOR)
}

fn references(world: &World, cut: impl Fn(&[Event]) -> usize) -> References {
    let mut events = vec![];
    for (user, history) in world.histories.iter().enumerate() {
        for event in &history[..cut(history)] {
            // Their scale is the file's; other events have none.
            if event.kind != Kind::Rating {
                continue;
            }
            events.push(lethe_recsys::data::Event {
                user: user as u32,
                item: event.item,
                rating: event.value,
                time: event.time,
                liked: world.meaning.read(event).liked == Some(true),
                kind: event.kind,
            });
        }
    }
    let seed = Seed::from_u64(1);
    References::fit(&events, world.histories.len(), world.items(), &seed)
}

/// AUC, UAUC, calibration error and the paired difference of AUC from the bias.
fn rows(
    section: &'static str,
    world: &World,
    run: u64,
    judged: &Judged,
    within: Option<&[Vec<f32>]>,
) -> Vec<Row> {
    let bias = judged
        .methods
        .iter()
        .find(|m| m.name == "reference: user + item bias")
        .map_or(&[][..], |m| &m.values);
    judged
        .methods
        .iter()
        .enumerate()
        .map(|(at, method)| {
            let of_users = within.map_or(&method.values, |w| &w[at]);
            let (gain, error) = bootstrap(&judged.users, &judged.labels, &method.values, bias);
            let mut row = Row::new(section, &world.name, method.name, run)
                .with(
                    "AUC",
                    auc(&method.values, &judged.labels).unwrap_or(f64::NAN),
                )
                .with(
                    "UAUC",
                    uauc(&judged.users, of_users, &judged.labels).unwrap_or(f64::NAN),
                )
                .with("AUC over bias", gain)
                .with("AUC over bias, standard error", error)
                .with("rows", judged.labels.len() as f64);
            if method.calibrated {
                row = row.with(
                    "calibration error",
                    calibration(&method.values, &judged.labels),
                );
            }
            row
        })
        .collect()
}

/// Mean difference of two AUCs and its standard error: people are drawn with replacement.
fn bootstrap(users: &[u32], labels: &[bool], a: &[f32], b: &[f32]) -> (f64, f64) {
    const DRAWS: usize = 60;
    let whole = auc(a, labels).unwrap_or(f64::NAN) - auc(b, labels).unwrap_or(f64::NAN);
    let mut of_user: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (row, user) in users.iter().enumerate() {
        of_user.entry(*user).or_default().push(row);
    }
    let groups: Vec<Vec<usize>> = of_user.into_values().collect();
    let draws: Vec<f64> = (0..DRAWS as u64)
        .into_par_iter()
        .map(|draw| {
            let mut rng = Seed::from_u64(draw).derive("bootstrap", &[]).rng();
            let mut rows = vec![];
            for _ in 0..groups.len() {
                rows.extend_from_slice(&groups[rng.below(groups.len())]);
            }
            let labels: Vec<bool> = rows.iter().map(|r| labels[*r]).collect();
            let pick = |s: &[f32]| rows.iter().map(|r| s[*r]).collect::<Vec<f32>>();
            let area = |s: &[f32]| auc(&pick(s), &labels).unwrap_or(f64::NAN);
            area(a) - area(b)
        })
        .collect();
    let mean = draws.iter().sum::<f64>() / DRAWS as f64;
    let square = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>();
    (whole, (square / (DRAWS - 1) as f64).sqrt())
}

/// Expected calibration error over ten bins of equally many rows; the scores are log-odds.
fn calibration(log_odds: &[f32], labels: &[bool]) -> f64 {
    const BINS: usize = 10;
    let mut rows: Vec<(f64, bool)> = log_odds
        .iter()
        .map(|s| 1.0 / (1.0 + (-f64::from(*s)).exp()))
        .zip(labels.iter().copied())
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let size = rows.len().div_ceil(BINS).max(1);
    let error: f64 = rows
        .chunks(size)
        .map(|bin| {
            let predicted: f64 = bin.iter().map(|r| r.0).sum();
            let found = bin.iter().filter(|r| r.1).count() as f64;
            (predicted - found).abs()
        })
        .sum();
    error / rows.len() as f64
}
