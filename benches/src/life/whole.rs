//! A year of made-up people with the whole coordinator, in this process: memory, disk and time by
//! week and quarter.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use lethe_benches::cpu_seconds;
use lethe_coordinator::year::{Folder, Plan, Records, Week, Year};
use lethe_proto::ids::Digest;
use serde::Serialize;
use serde_json::{Value, json};

/// Weeks of a year, and of `--quick`.
pub(crate) const WEEKS: usize = 52;
pub(crate) const QUICK: usize = 4;
/// Weeks of a quarter.
const QUARTER: usize = 13;
/// What memory and disk may grow by after the first quarter.
const GROWTH: f64 = 0.1;

/// A week, with what it took of the processor and of memory.
#[derive(Serialize)]
struct Lived {
    week: Week,
    /// Processor seconds of this process: coordinator, tally, devices and the disk.
    cpu_s: f64,
    /// Resident at the end of the week: people and their histories are in it, too. 0: the system
    /// does not tell.
    memory_bytes: u64,
}

/// Bytes of this process in memory; 0 where the system does not tell.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Lives through so many weeks, and returns the figures as JSON.
pub(crate) fn figures(
    seed: u64,
    weeks: usize,
    quick: bool,
    folder: &Path,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Value> {
    let plan = match quick {
        true => Plan::quick(seed, folder),
        false => Plan::year(seed, folder),
    };
    let mut year = Year::found(plan.clone())?;
    let mut lived = vec![];
    let mut records: Vec<Records> = vec![];
    for at in 0..weeks {
        let cpu = cpu_seconds();
        let week = year.week().with_context(|| format!("week {}", at + 1))?;
        let one = Lived {
            cpu_s: cpu_seconds() - cpu,
            memory_bytes: memory(),
            week,
        };
        let w = &one.week;
        say(&format!(
            "week {}: {} people, {} count, epoch {} serves, {} releases, {:.1} s, {:.1} MB of \
             memory, {:.1} MB on disk",
            at + 1,
            w.people,
            w.counting,
            w.serving,
            w.releases,
            one.cpu_s,
            mega(one.memory_bytes as f64),
            mega(w.folder.all() as f64),
        ));
        lived.push(one);
        if (at + 1) % QUARTER == 0 || at + 1 == weeks {
            records.push(year.records()?);
        }
    }
    let receipts = year.verify_receipts()?;
    let quarters: Vec<Value> = lived.chunks(QUARTER).map(quarter).collect();
    let disk_may_grow = |f: &Folder| f.log + f.journal;
    let growth = |of: &dyn Fn(&Lived) -> f64| growth(&lived, of);
    let memory = growth(&|l| l.memory_bytes as f64);
    let disk = growth(&|l| l.week.folder.all() as f64);
    let flat = growth(&|l| (l.week.folder.all() - disk_may_grow(&l.week.folder)) as f64);
    let within = |g: Option<f64>| g.map(|g| g <= GROWTH);
    let parts: BTreeMap<&str, Option<f64>> = PARTS
        .iter()
        .map(|(name, of)| (*name, growth(&|l| of(&l.week.folder) as f64)))
        .collect();
    Ok(json!({
        "seed": seed,
        "people": plan.people,
        "items": plan.items,
        "weeks": lived.len(),
        "training": "made up: updates are numbers drawn from the seed, and no model is computed",
        "quarters": quarters,
        "targets": {
            "memory_growth_after_first_quarter": memory,
            "memory_within": within(memory),
            "disk_growth_after_first_quarter": disk,
            "disk_within": within(disk),
            "disk_without_log_and_journal": flat,
            "disk_without_log_and_journal_within": within(flat),
            "restarts": 0,
        },
        "growth_by_part": parts,
        "receipts_verified_at_the_end": receipts,
        "records_by_quarter": records,
        "figures_sha256": digest(&lived)?,
        "by_week": lived,
    }))
}

/// A part of the folder, by its name.
type Part = (&'static str, fn(&Folder) -> u64);

const PARTS: [Part; 7] = [
    ("ledger", |f| f.ledger),
    ("shards", |f| f.shards),
    ("keys", |f| f.keys),
    ("tally", |f| f.tally),
    ("log", |f| f.log),
    ("journal", |f| f.journal),
    ("other", |f| f.other),
];

/// The largest mean of a later quarter against that of the second: in the first, people come. None:
/// there are fewer than three quarters.
fn growth(lived: &[Lived], of: &dyn Fn(&Lived) -> f64) -> Option<f64> {
    let whole = lived.chunks(QUARTER).filter(|q| q.len() == QUARTER);
    let means: Vec<f64> = whole.map(|q| mean(q, of)).collect();
    let second = *means.get(1)?;
    let later = means.get(2..).filter(|l| !l.is_empty())?;
    let most = later.iter().copied().fold(f64::MIN, f64::max);
    (second > 0.0).then(|| most / second - 1.0)
}

fn mean(lived: &[Lived], of: &dyn Fn(&Lived) -> f64) -> f64 {
    lived.iter().map(of).sum::<f64>() / lived.len().max(1) as f64
}

fn mega(bytes: f64) -> f64 {
    bytes / 1e6
}

fn quarter(lived: &[Lived]) -> Value {
    let sum = |of: fn(&Week) -> u64| lived.iter().map(|l| of(&l.week)).sum::<u64>();
    let mut asked: BTreeMap<&str, u64> = BTreeMap::new();
    for (what, n) in lived.iter().flat_map(|l| &l.week.asked) {
        *asked.entry(what).or_default() += n;
    }
    let exact = lived.iter().flat_map(|l| &l.week.exact_s).copied();
    let whole = lived.iter().flat_map(|l| &l.week.whole_s).copied();
    let last = lived.last().map(|l| &l.week);
    let parts: BTreeMap<&str, f64> = PARTS
        .iter()
        .map(|(name, of)| (*name, mean(lived, &|l| of(&l.week.folder) as f64)))
        .collect();
    json!({
        "weeks": lived.len(),
        "memory_bytes": mean(lived, &|l| l.memory_bytes as f64),
        "disk_bytes": mean(lived, &|l| l.week.folder.all() as f64),
        "disk_bytes_by_part": parts,
        "cpu_s_a_day": mean(lived, &|l| l.cpu_s) / 7.0,
        "people": last.map(|w| w.people),
        "counting": last.map(|w| w.counting),
        "epochs": last.map(|w| w.epochs),
        "retired": last.map(|w| w.retired),
        "releases": last.map(|w| w.releases),
        "entries_of_the_log": last.map(|w| w.entries),
        "catalogue": last.map(|w| w.catalogue),
        "snapshots": sum(|w| w.snapshots),
        "updates": sum(|w| w.updates),
        "joins": sum(|w| w.joins),
        "contributions": sum(|w| w.contributions),
        "asked": asked,
        "returned": sum(|w| w.returned),
        "receipts": last.map(|w| w.receipts),
        "deletions_open": last.map(|w| w.open),
        "exact_s": spread(exact.collect()),
        "whole_virtual_s": spread(whole.collect()),
    })
}

fn spread(mut all: Vec<f64>) -> Value {
    all.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let last = all.len().checked_sub(1)?;
        all.get((last as f64 * part).round() as usize).copied()
    };
    json!({"n": all.len(), "p50": at(0.5), "p99": at(0.99), "max": at(1.0)})
}

/// Of everything that neither the processor's clock nor the database engine has a part in.
fn digest(lived: &[Lived]) -> anyhow::Result<String> {
    let weeks: Vec<Week> = lived
        .iter()
        .map(|l| Week {
            exact_s: vec![],
            folder: Folder::default(),
            ..l.week.clone()
        })
        .collect();
    Ok(Digest::of(&[&serde_json::to_vec(&weeks)?]).hex())
}

/// For people: a table of quarters.
pub(crate) fn markdown(figures: &Value) -> String {
    let mut out = String::from(
        "| quarter | memory, MB | disk, MB | ledger | shards | keys | tally | log | journal | \
         CPU s a day | epochs | releases | deletions | exact, p99 s | whole, p50 |\n|",
    );
    out += &"---|".repeat(15);
    let empty = vec![];
    let quarters = figures["quarters"].as_array().unwrap_or(&empty);
    for (at, q) in quarters.iter().enumerate() {
        let mb = |v: &Value| format!("{:.1}", mega(v.as_f64().unwrap_or(0.0)));
        let parts = &q["disk_bytes_by_part"];
        let number = |v: &Value, digits: usize| match v.as_f64() {
            Some(n) => format!("{n:.digits$}"),
            None => "-".into(),
        };
        let minutes = q["whole_virtual_s"]["p50"].as_f64().map(|s| s / 60.0);
        let cells = [
            (at + 1).to_string(),
            mb(&q["memory_bytes"]),
            mb(&q["disk_bytes"]),
            mb(&parts["ledger"]),
            mb(&parts["shards"]),
            number(&json!(parts["keys"].as_f64().map(|b| b / 1e6)), 2),
            mb(&parts["tally"]),
            number(&json!(parts["log"].as_f64().map(|b| b / 1e6)), 2),
            number(&json!(parts["journal"].as_f64().map(|b| b / 1e6)), 2),
            number(&q["cpu_s_a_day"], 1),
            number(&q["epochs"], 0),
            number(&q["releases"], 0),
            number(&q["exact_s"]["n"], 0),
            number(&q["exact_s"]["p99"], 3),
            minutes.map_or("-".into(), |m| format!("{m:.0} min")),
        ];
        out += &format!("\n| {} |", cells.join(" | "));
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_weeks_have_figures_and_their_seed_gives_them_again() {
        let of = |seed: u64, weeks: usize| {
            let folder = tempfile::tempdir().expect("a folder");
            figures(seed, weeks, true, folder.path(), &mut |_| {}).expect("lives")
        };
        let once = of(1, 2);
        assert_eq!(once["figures_sha256"], of(1, 2)["figures_sha256"]);
        assert_ne!(once["figures_sha256"], of(2, 2)["figures_sha256"]);
        assert_eq!(once["quarters"][0]["weeks"], 2);
        assert_eq!(once["targets"]["memory_within"], Value::Null);
        assert_eq!(markdown(&once).lines().count(), 3);
    }

    #[test]
    fn growth_is_that_of_the_largest_later_quarter() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut year = Year::found(Plan::quick(1, folder.path())).expect("founds");
        let week = year.week().expect("a week");
        let of = |bytes: u64| Lived {
            week: week.clone(),
            cpu_s: 0.0,
            memory_bytes: bytes,
        };
        let lived: Vec<Lived> = [900, 100, 150, 120]
            .iter()
            .flat_map(|b| (0..QUARTER).map(|_| of(*b)))
            .collect();
        let memory = |l: &Lived| l.memory_bytes as f64;
        assert_eq!(growth(&lived, &memory), Some(0.5));
        assert_eq!(growth(&lived[..2 * QUARTER], &memory), None);
    }
}
