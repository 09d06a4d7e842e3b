//! What adapters were worth and what they cost.

use std::collections::BTreeSet;

use lethe_learn::metrics::{auc, uauc};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::crowd::WEEK;
use super::super::people::digest;
use super::super::table::{Interval, interval};
use super::{Judged, Rolled};

/// The likes and dislikes of some days, by three scores.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Weekly {
    /// From 1; none: all weeks.
    pub(crate) week: Option<i32>,
    pub(crate) events: usize,
    pub(crate) people: usize,
    /// AUC of a like.
    pub(crate) adapters: Option<f64>,
    /// By the untrained base.
    pub(crate) base: Option<f64>,
    /// By the sums; none: they were not run.
    pub(crate) served: Option<f64>,
    /// Means over people of the AUC within each.
    pub(crate) adapters_uauc: Option<f64>,
    pub(crate) base_uauc: Option<f64>,
    pub(crate) served_uauc: Option<f64>,
    /// Adapters less base.
    pub(crate) gained: Option<Interval>,
    /// Adapters less what is served by the sums.
    pub(crate) beside_served: Option<Interval>,
}

type Score = fn(&Judged) -> Option<f32>;

fn of_adapters(j: &Judged) -> Option<f32> {
    Some(j.adapters)
}

fn of_base(j: &Judged) -> Option<f32> {
    Some(j.base)
}

fn of_served(j: &Judged) -> Option<f32> {
    j.served
}

/// Scores of all, or none if one has none.
fn scores(all: &[&Judged], score: Score) -> Option<Vec<f32>> {
    all.iter().map(|j| score(j)).collect()
}

fn area(all: &[&Judged], score: Score) -> Option<f64> {
    let labels: Vec<bool> = all.iter().map(|j| j.liked).collect();
    auc(&scores(all, score)?, &labels)
}

fn within(all: &[&Judged], score: Score) -> Option<f64> {
    let labels: Vec<bool> = all.iter().map(|j| j.liked).collect();
    let people: Vec<u32> = all.iter().map(|j| j.person).collect();
    uauc(&people, &scores(all, score)?, &labels)
}

impl Weekly {
    fn of(week: Option<i32>, all: &[&Judged]) -> Self {
        let people: BTreeSet<u32> = all.iter().map(|j| j.person).collect();
        let less = |other: Score| {
            let of = |rows: &[&Judged]| Some(area(rows, of_adapters)? - area(rows, other)?);
            interval(all, |j| j.person, &of)
        };
        Self {
            week,
            events: all.len(),
            people: people.len(),
            adapters: area(all, of_adapters),
            base: area(all, of_base),
            served: area(all, of_served),
            adapters_uauc: within(all, of_adapters),
            base_uauc: within(all, of_base),
            served_uauc: within(all, of_served),
            gained: less(of_base),
            beside_served: less(of_served),
        }
    }
}

/// The weeks in which somebody was asked.
pub(crate) fn weekly(rolled: &Rolled) -> Vec<Weekly> {
    let last = rolled.judged.iter().map(|j| j.day / WEEK).max();
    let of_week = |week: i32| {
        let is = |j: &&Judged| j.day / WEEK == week;
        let all: Vec<&Judged> = rolled.judged.iter().filter(is).collect();
        (!all.is_empty()).then(|| Weekly::of(Some(week + 1), &all))
    };
    (0..last.map_or(0, |l| l + 1)).filter_map(of_week).collect()
}

/// All of it. `sha256` names what the clock has no part in: the same seed gives the same.
pub(crate) fn json(rolled: &Rolled) -> anyhow::Result<Value> {
    let all: Vec<&Judged> = rolled.judged.iter().collect();
    let whole = Weekly::of(None, &all);
    let of_epoch = |from: i32, until: i32| {
        let is = |j: &&Judged| (from..until).contains(&j.day);
        Weekly::of(None, &rolled.judged.iter().filter(is).collect::<Vec<_>>())
    };
    let epochs = &rolled.epochs;
    let by_epoch: Vec<Weekly> = epochs.iter().map(|e| of_epoch(e.day, e.until)).collect();
    // What the sums say is not of the adapters.
    let bits = |j: &Judged| {
        let odds = [j.base.to_bits(), j.adapters.to_bits()];
        json!([j.day, j.person, j.liked, odds])
    };
    let judged: Vec<Value> = rolled.judged.iter().map(bits).collect();
    let digests: Vec<Value> = epochs
        .iter()
        .map(|e| json!([e.day, e.until, e.joined, e.remained, e.sha256, e.left.len()]))
        .collect();
    let trained: Vec<Value> = rolled
        .days
        .iter()
        .map(|d| json!([d.day, d.samples]))
        .collect();
    let sha256 = digest(&serde_json::to_string(&json!([judged, digests, trained]))?);
    let rolling = &rolled.rolling;
    // The sum of nothing is -0 otherwise.
    let sum = |all: &mut dyn Iterator<Item = f64>| all.fold(0.0, |a, b| a + b);
    let training = sum(&mut epochs.iter().map(|e| e.training.cpu_s));
    let compared = sum(&mut epochs.iter().map(|e| e.compared.cpu_s));
    let left = || epochs.iter().flat_map(|e| &e.left);
    let again = sum(&mut left().map(|l| l.again.cpu_s));
    let samples: usize = epochs.iter().map(|e| e.training.samples).sum();
    let samples_again: usize = left().map(|l| l.again.samples).sum();
    Ok(json!({
        "sha256": sha256,
        "recipe": serde_json::from_str::<Value>(&rolling.recipe.to_json())?,
        "every_days": rolling.every_days,
        "first_epoch_waits_for": rolling.min_people,
        "one_person_in": rolling.one_in,
        "newest_likes_and_dislikes": rolling.newest,
        "requests_a_week": rolling.requests,
        "weeks": weekly(rolled),
        "all": whole,
        "by_epoch": by_epoch,
        "epochs": epochs,
        "equal_to_fresh_systems": epochs.len(),
        "days": rolled.days,
        "samples_trained": samples,
        "samples_trained_again": samples_again,
        "left": { "n": left().count(), "deleted": left().filter(|l| l.deleted).count() },
        "cpu_s": {
            "loading": rolled.loading_cpu_s, "training": training, "again": again,
            "asking": rolled.asking_cpu_s, "fresh_systems": compared,
        },
    }))
}
