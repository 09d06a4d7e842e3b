//! The part of the demo about lists: everybody contributes, everybody gets tables, lists are made
//! on devices, and somebody leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::Context;
use lethe_recsys::data::{DataSpec, Dataset};
use lethe_recsys::evaluation::Ranking;
use lethe_recsys::samples::Split;
use serde_json::{Value, json};

use super::federation::Federation;
use super::figures::{Known, figures, references, rows};
use super::quality::{self, ranking, ranking_json};
use crate::commands::fleet::Command;

/// What lists are measured on.
pub(crate) struct Lists<'a> {
    pub(crate) data: &'a Dataset,
    pub(crate) spec: &'a DataSpec,
    pub(crate) split: Split,
}

/// What the fleet said of quality at one time.
pub(crate) struct Measured {
    answer: Value,
}

/// Everybody contributes and fetches tables. Returns what to say.
pub(crate) fn contribute(fed: &mut Federation, out: &mut Value) -> anyhow::Result<String> {
    let (contributed, fetched) = fed.lists()?;
    let lists = fed.status()?["lists"].take();
    let seconds = |v: &Value| v["seconds"].as_f64().unwrap_or(0.0);
    out["lists"] = json!({
        "people": contributed["contributed"], "counting": lists["counting"],
        "waiting": lists["waiting"], "cells": lists["cells"], "cell": lists["cell"],
        "seconds_to_contribute": seconds(&contributed), "seconds_to_fetch": seconds(&fetched),
    });
    out["snapshot_bytes"] = fetched["bytes"].clone();
    let megabytes = fetched["bytes"].as_f64().unwrap_or(0.0) / 1e6;
    Ok(format!(
        "{} people contribute the newest events of their history: {:.1} s\n{} of them count, in {} \
         cells of {} (who comes and goes together); {} wait for a cell, and get lists all the \
         same\neverybody fetches the same signed tables, {megabytes:.2} MB: {:.1} s",
        contributed["contributed"],
        seconds(&contributed),
        lists["counting"],
        lists["cells"],
        lists["cell"],
        lists["waiting"],
        seconds(&fetched),
    ))
}

/// What each process has of people, as its own status says.
pub(crate) fn who_saw_what(fed: &mut Federation, out: &mut Value) -> anyhow::Result<String> {
    let status = fed.status()?;
    let sums = status["lists"]["sums"].as_str().unwrap_or_default();
    let people = status["lists"]["people"].as_u64().unwrap_or(0);
    out["sums"] = json!(sums);
    if fed.tally.is_none() {
        return Ok(format!(
            "\nwho sees what: the coordinator, {people} names and their histories ({sums})"
        ));
    }
    Ok(format!(
        "\nwho sees what\n  coordinator  names, addresses, when somebody contributes, signed \
         tables; {people} contributions passed through it that it cannot open\n  tally        \
         histories of {people} people under handles, 16 bytes each; no name, and one address: the \
         coordinator's\n  together     all of it: {people} names and their histories"
    ))
}

/// Ranks and scores what was held out of everybody, on their devices.
pub(crate) fn measure(fed: &mut Federation) -> anyhow::Result<Measured> {
    let answer = fed.fleet.ask(&Command::Quality)?;
    Ok(Measured { answer })
}

/// The list of one person, for people to read.
pub(crate) fn list(fed: &mut Federation, subject: &str, out: &mut Value) -> anyhow::Result<String> {
    let page = fed.fleet.ask(&Command::Top {
        subject: subject.to_owned(),
        n: 5,
    })?;
    out["list"] = page.clone();
    Ok(described(&page))
}

/// Lists of somebody who has just come: before the first like, after one, after three.
pub(crate) fn newcomer(
    fed: &mut Federation,
    lists: &Lists<'_>,
    out: &mut Value,
) -> anyhow::Result<String> {
    let at = quality::newest(lists.data)?;
    let told = fed.fleet.ask(&Command::Newcomer { at })?;
    let mut text = String::new();
    for step in told["steps"].as_array().into_iter().flatten() {
        let liked: Vec<&str> = step["liked"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let after = match liked.as_slice() {
            [] => "nothing".to_owned(),
            titles => titles.join(", "),
        };
        let _ = write!(
            text,
            "\nsomebody new, who likes {after}:\n{}",
            described(step)
        );
    }
    out["newcomer"] = told["steps"].clone();
    Ok(text)
}

fn described(page: &Value) -> String {
    let mut text = String::new();
    for item in page["items"].as_array().into_iter().flatten() {
        let like = item["like"].as_f64().unwrap_or(f64::NAN) * 100.0;
        let title = item["title"].as_str().unwrap_or("?");
        let _ = write!(text, "  {like:3.0} %  {title}");
        let because: Vec<&str> = item["because"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !because.is_empty() {
            let _ = write!(text, "   (because of {})", because.join(", "));
        }
        text.push('\n');
    }
    text
}

impl Measured {
    /// Figures of the next item, without one person.
    fn next(&self, without: &str) -> Ranking {
        self.next_of(without, |_| true)
    }

    /// The same of some people.
    fn next_of(&self, without: &str, wanted: impl Fn(&str) -> bool) -> Ranking {
        ranking(&self.answer, |user| user != without && wanted(user))
    }

    /// Writes the figures beside those of the references.
    pub(crate) fn write(
        &self,
        lists: &Lists<'_>,
        without: &str,
        out: &mut Value,
    ) -> anyhow::Result<()> {
        let next = self.next(without);
        let of_next = quality::references(lists.data, lists.spec, lists.split, without)?;
        let tested = rows(&self.answer);
        let like = figures(&tested, Some(without));
        let known = Known::TrainAndValidation;
        let of_like = references(lists.data, lists.split, known, &tested, without);
        let each = |f: fn(&super::figures::Figures) -> Option<f64>| {
            let all: BTreeMap<&str, Option<f64>> = of_like
                .iter()
                .map(|(name, x)| (name.as_str(), f(x)))
                .collect();
            json!({ "served": f(&like), "references": all })
        };
        out["quality"] = json!({
            "hr10": ranking_json(&next, &of_next, |r| r.hr),
            "ndcg10": ranking_json(&next, &of_next, |r| r.ndcg),
            "auc": each(|f| f.auc),
            "uauc": each(|f| f.uauc),
            "people": self.answer["ranks"].as_array().map_or(0, Vec::len),
            "rated": like.samples,
        });
        out["top_ms"] = self.answer["top_ms"].clone();
        Ok(())
    }
}

/// After a deletion: what became of the tables, and whether lists are as good as before.
pub(crate) fn after_deletion(
    fed: &mut Federation,
    without: &str,
    trainers: &BTreeSet<String>,
    before: &Measured,
    state: &Value,
    out: &mut Value,
) -> anyhow::Result<String> {
    let lists = &state["lists"];
    let recalled = lists["recalled"]["number"].as_u64();
    let recalled = recalled.context("no snapshot was recalled: the person counted in none")?;
    out["deletion"]["seconds_until_whole"] = lists["seconds_until_whole"].clone();
    out["deletion"]["snapshot"] = json!({
        "recalled": lists["recalled"]["number"], "replaced_by": lists["replaced_by"]["number"],
        "devices": lists["devices"], "bytes": lists["bytes"], "held_until": lists["held_until"],
    });
    fed.fleet.ask(&Command::Fetch { after: recalled })?;
    // Those who train know by now what was held out of them.
    let others = |ranks: &Measured| ranks.next_of(without, |user| !trainers.contains(user));
    let before = others(before);
    let after = others(&measure(fed)?);
    out["quality_after_deletion"] = json!({
        "hr10": after.hr, "ndcg10": after.ndcg, "hr10_before": before.hr,
        "ndcg10_before": before.ndcg,
    });
    let folded = fed.admin.run(&["replay", "--lists"])?;
    let folded_again = fed.admin.json(&["replay", "--lists"])?;
    out["deletion"]["lists_replay_equal"] = folded_again["equal"].clone();
    Ok(format!(
        "$ lethe-admin replay --lists\n{folded}HR@10 of the others who do not train: {:.3} \
        before, {:.3} after",
        before.hr, after.hr
    ))
}
