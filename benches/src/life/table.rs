//! Figures by week, with intervals: people are drawn with replacement.

use std::collections::BTreeMap;

use lethe_learn::metrics::auc;
use lethe_learn::seed::Seed;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use super::adapters::{self, Weekly};
use super::crowd::WEEK;
use super::people::digest;
use super::run::{Day, Left, Lived, Plan};
use super::systems::{Predicted, System};

/// Draws of the bootstrap.
const DRAWS: u64 = 1_000;
/// The most that may be lost against the daily refit.
const LOSS: f64 = 0.01;
/// Weeks with so many events are held to the target one by one.
const MANY: usize = 1_000;
/// The target holds from this week on, counted from 0.
const FROM: i32 = 2;

/// A difference, and where 95 % of the draws lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Interval {
    pub(crate) mean: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// What systems were worth over some events.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Quality {
    pub(crate) events: usize,
    pub(crate) hr10: BTreeMap<&'static str, Option<f64>>,
    pub(crate) auc: BTreeMap<&'static str, Option<f64>>,
    /// What is served less the daily refit.
    pub(crate) hr10_less_refit: Option<Interval>,
    pub(crate) auc_less_refit: Option<Interval>,
    /// What is served less a refit with the same recipe: what cells and waiting cost.
    pub(crate) hr10_less_same: Option<Interval>,
    pub(crate) auc_less_same: Option<Interval>,
}

impl Quality {
    pub(crate) fn of(all: &[&Predicted]) -> Self {
        let mut hr10 = BTreeMap::new();
        let mut auc = BTreeMap::new();
        for system in System::ALL {
            hr10.insert(system.name(), hits(all, system));
            auc.insert(system.name(), area(all, system));
        }
        // A system that makes no lists has no hit rate.
        hr10.remove(System::Mean.name());
        let difference = |figure: Figure, other: System| {
            let of =
                |rows: &[&Predicted]| Some(figure(rows, System::Served)? - figure(rows, other)?);
            interval(all, |p| p.person, &of)
        };
        Self {
            events: all.len(),
            hr10,
            auc,
            hr10_less_refit: difference(hits, System::Refit),
            auc_less_refit: difference(area, System::Refit),
            hr10_less_same: difference(hits, System::Same),
            auc_less_same: difference(area, System::Same),
        }
    }
}

type Figure = fn(&[&Predicted], System) -> Option<f64>;

fn hits(all: &[&Predicted], system: System) -> Option<f64> {
    let mut sum = 0usize;
    for one in all {
        sum += usize::from(one.guesses[system as usize].hit?);
    }
    (!all.is_empty()).then(|| sum as f64 / all.len() as f64)
}

fn area(all: &[&Predicted], system: System) -> Option<f64> {
    let mut scores = vec![];
    let mut labels = vec![];
    for one in all.iter() {
        if let Some(liked) = one.liked {
            scores.push(one.guesses[system as usize].like?);
            labels.push(liked);
        }
    }
    auc(&scores, &labels)
}

/// A difference over rows, and where 95 % of the draws of people with replacement lie.
pub(crate) fn interval<R: Sync>(
    all: &[&R],
    person: fn(&R) -> u32,
    difference: &(dyn Fn(&[&R]) -> Option<f64> + Sync),
) -> Option<Interval> {
    let mut of_person: BTreeMap<u32, Vec<&R>> = BTreeMap::new();
    for one in all {
        of_person.entry(person(one)).or_default().push(one);
    }
    let groups: Vec<Vec<&R>> = of_person.into_values().collect();
    let seed = Seed::from_u64(1).derive("draws", &[]);
    let draw = |n: u64| {
        let mut rng = seed.derive("draw", &[&n.to_le_bytes()]).rng();
        let mut rows = vec![];
        for _ in 0..groups.len() {
            rows.extend_from_slice(&groups[rng.below(groups.len())]);
        }
        difference(&rows)
    };
    let mut drawn: Vec<f64> = (0..DRAWS).into_par_iter().filter_map(draw).collect();
    drawn.sort_by(f64::total_cmp);
    let at = |part: f64| drawn.get(((drawn.len().max(1) - 1) as f64 * part).round() as usize);
    Some(Interval {
        mean: difference(all)?,
        low: *at(0.025)?,
        high: *at(0.975)?,
    })
}

/// One week.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Week {
    /// From 1.
    pub(crate) week: i32,
    /// Share of events on the day on which a history began.
    pub(crate) first_days: f64,
    pub(crate) quality: Quality,
    /// Sums over the week's days; the last day's where it is a state.
    pub(crate) cost: Day,
    pub(crate) deletions: usize,
    pub(crate) withdrawals: usize,
}

fn weeks(lived: &Lived) -> Vec<Week> {
    let last = lived.days.last().map_or(0, |d| d.day);
    let of_week = |week: i32| {
        let is = |day: i32| day / WEEK == week;
        let all: Vec<&Predicted> = lived.predicted.iter().filter(|p| is(p.day)).collect();
        let days: Vec<&Day> = lived.days.iter().filter(|d| is(d.day)).collect();
        let left = lived.left.iter().filter(|l| is(l.day));
        let deletions = left.clone().filter(|l| l.deleted).count();
        let begin = all.iter().filter(|p| p.begins).count();
        Week {
            week: week + 1,
            first_days: begin as f64 / all.len().max(1) as f64,
            quality: Quality::of(&all),
            cost: total(&days),
            deletions,
            withdrawals: left.count() - deletions,
        }
    };
    (0..=last / WEEK).map(of_week).collect()
}

fn total(days: &[&Day]) -> Day {
    let mut out = days.last().map_or_else(Day::default, |d| (*d).clone());
    let earlier = days.split_last().map_or(&[][..], |d| d.1);
    for day in earlier {
        out.events += day.events;
        out.contributions += day.contributions;
        out.releases += day.releases;
        out.cpu_s += day.cpu_s;
        out.refit_cpu_s += day.refit_cpu_s;
        out.up_bytes += day.up_bytes;
        out.down_bytes += day.down_bytes;
        out.samples_trained += day.samples_trained;
    }
    out
}

fn spread(mut all: Vec<f64>) -> Value {
    all.sort_by(f64::total_cmp);
    let at = |p: f64| all.get(((all.len().max(1) - 1) as f64 * p).round() as usize);
    json!({ "n": all.len(), "p50": at(0.5), "p99": at(0.99), "max": all.last() })
}

/// How long until exact, and until whole: those that were not killed, and those that were.
pub(crate) fn times(left: &[&Left]) -> Value {
    let of = |killed: bool, time: fn(&Left) -> Option<f64>| {
        let some = left.iter().filter(|l| l.killed == killed);
        spread(some.filter_map(|l| time(l)).collect())
    };
    json!({
        "n": left.len(),
        "exact_s": of(false, |l| Some(l.exact_s)),
        "whole_s": of(false, |l| l.whole_s),
        "killed_exact_s": of(true, |l| Some(l.exact_s)),
        "killed_whole_s": of(true, |l| l.whole_s),
    })
}

/// Whether the targets are met.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// Mean loss from the third week on is at most .01, HR@10.
    pub(crate) hr10_mean: Option<bool>,
    pub(crate) auc_mean: Option<bool>,
    /// Weeks from the third on with 1,000 events and more whose interval does not reach -.01.
    pub(crate) hr10_weeks_missed: Vec<i32>,
    pub(crate) auc_weeks_missed: Vec<i32>,
}

fn verdict(weeks: &[Week], later: &Quality) -> Verdict {
    let small = |i: Option<Interval>| i.map(|i| i.mean >= -LOSS);
    let missed = |of: fn(&Quality) -> Option<Interval>| {
        let held = weeks
            .iter()
            .filter(|w| w.week > FROM && w.quality.events >= MANY);
        let below = |w: &&Week| of(&w.quality).is_some_and(|i| i.high < -LOSS);
        held.filter(below).map(|w| w.week).collect()
    };
    Verdict {
        hr10_mean: small(later.hr10_less_refit),
        auc_mean: small(later.auc_less_refit),
        hr10_weeks_missed: missed(|q| q.hr10_less_refit),
        auc_weeks_missed: missed(|q| q.auc_less_refit),
    }
}

/// All figures.
pub(crate) struct Figures {
    pub(crate) json: Value,
    pub(crate) weeks: Vec<Week>,
    /// Empty: adapters were left out.
    pub(crate) adapters: Vec<Weekly>,
    /// Names what the clock has no part in: the same seed gives the same.
    pub(crate) digest: String,
}

pub(crate) fn figures(lived: &Lived, plan: &Plan) -> anyhow::Result<Figures> {
    let weeks = weeks(lived);
    let some = |keep: &dyn Fn(&Predicted) -> bool| {
        let kept: Vec<&Predicted> = lived.predicted.iter().filter(|p| keep(p)).collect();
        Quality::of(&kept)
    };
    let is_later = |p: &Predicted| p.day / WEEK >= FROM;
    let later = some(&is_later);
    let firsts = some(&|p| is_later(p) && p.begins);
    let others = some(&|p| is_later(p) && !p.begins);
    let frozen = some(&|p| p.day >= plan.freeze);
    let deleted: Vec<&Left> = lived.left.iter().filter(|l| l.deleted).collect();
    let withdrew: Vec<&Left> = lived.left.iter().filter(|l| !l.deleted).collect();
    let qualities: Vec<&Quality> = weeks.iter().map(|w| &w.quality).collect();
    let counts: Vec<[usize; 4]> = lived
        .days
        .iter()
        .map(|d| [d.people, d.counting, d.waiting, d.contributions])
        .collect();
    let still = json!([qualities, counts, lived.last, lived.left.len(), lived.back]);
    let sums = digest(&serde_json::to_string(&still)?);
    let rolled = lived.adapters.as_ref();
    let adapters = rolled.map(adapters::json).transpose()?;
    let digest = whole(&sums, adapters.as_ref());
    let json = json!({
        "seed": plan.seed,
        "freeze_day": plan.freeze,
        "figures_sha256": digest,
        "sums_sha256": sums,
        "adapters": adapters,
        "weeks": weeks,
        "from_week_3": later,
        "from_week_3_first_days": firsts,
        "from_week_3_other_days": others,
        "after_freeze": frozen,
        "targets": verdict(&weeks, &later),
        "deletions": times(&deleted),
        "withdrawals": times(&withdrew),
        "left": lived.left,
        "came_back": lived.back,
        "server": {
            "starts": lived.starts, "kills": lived.kills, "kills_before_the_answer": lived.cut,
        },
        "equal_to_a_fresh_system": lived.compared,
        "last_snapshot_sha256": lived.last,
        "days": lived.days,
    });
    Ok(Figures {
        json,
        weeks,
        adapters: rolled.map_or(vec![], adapters::weekly),
        digest,
    })
}

/// Names all figures: those of the sums, and those of adapters where there are any.
pub(crate) fn whole(sums: &str, adapters: Option<&Value>) -> String {
    let Some(of) = adapters.and_then(|a| a["sha256"].as_str()) else {
        return sums.to_owned();
    };
    digest(&format!("{sums} {of}"))
}

/// The weeks as Markdown.
pub(crate) fn markdown(weeks: &[Week]) -> String {
    let number =
        |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.3}").replace("0.", "."));
    let apart = |i: Option<Interval>| {
        i.map_or("-".to_owned(), |i| {
            format!("{:+.3} ({:+.3} to {:+.3})", i.mean, i.low, i.high).replace("0.", ".")
        })
    };
    let mut out = "| week | events | people | count | HR@10: served | frozen | refit | popularity \
                   | served less refit | AUC: served | frozen | refit | served less refit |\n"
        .to_owned();
    out += &format!("|{}\n", "---|".repeat(13));
    for w in weeks {
        let hr = |s: System| number(w.quality.hr10[s.name()]);
        let area = |s: System| number(w.quality.auc[s.name()]);
        let cells = [
            w.week.to_string(),
            w.quality.events.to_string(),
            w.cost.people.to_string(),
            w.cost.counting.to_string(),
            hr(System::Served),
            hr(System::Frozen),
            hr(System::Refit),
            hr(System::Popularity),
            apart(w.quality.hr10_less_refit),
            area(System::Served),
            area(System::Frozen),
            area(System::Refit),
            apart(w.quality.auc_less_refit),
        ];
        out += &format!("| {} |\n", cells.join(" | "));
    }
    out
}

/// The weeks of adapters as Markdown.
pub(crate) fn of_adapters(weeks: &[Weekly]) -> String {
    let number =
        |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.3}").replace("0.", "."));
    let mut out = "| week | events | people | AUC: adapters | base | served by the sums | UAUC: \
                   adapters | base | served by the sums |\n"
        .to_owned();
    out += &format!("|{}\n", "---|".repeat(9));
    for w in weeks {
        let cells = [
            w.week.map_or("all".to_owned(), |n| n.to_string()),
            w.events.to_string(),
            w.people.to_string(),
            number(w.adapters),
            number(w.base),
            number(w.served),
            number(w.adapters_uauc),
            number(w.base_uauc),
            number(w.served_uauc),
        ];
        out += &format!("| {} |\n", cells.join(" | "));
    }
    out
}
