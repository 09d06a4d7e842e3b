//! Figures of several sections, and their tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

/// One line of figures.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is measured: next, like, newcomers, unseen, size, cost, ...
    pub section: &'static str,
    /// The data set.
    pub data: String,
    /// What was measured.
    pub name: String,
    /// Tie order, seed or draw.
    pub run: u64,
    /// Name of a figure, and the figure.
    pub figures: BTreeMap<&'static str, f64>,
}

impl Row {
    /// A row without figures.
    pub fn new(section: &'static str, data: &str, name: impl Into<String>, run: u64) -> Self {
        Self {
            section,
            data: data.to_owned(),
            name: name.into(),
            run,
            figures: BTreeMap::new(),
        }
    }

    /// The same with one more figure.
    #[must_use]
    pub fn with(mut self, figure: &'static str, value: f64) -> Self {
        self.figures.insert(figure, value);
        self
    }
}

/// The means over runs, with the spread (lowest to highest) where there are several; one table for
/// every section and data set, as Markdown.
pub fn tables(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut seen: Vec<(&str, &str)> = vec![];
    for row in rows {
        let key = (row.section, row.data.as_str());
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        let own: Vec<&Row> = rows
            .iter()
            .filter(|r| (r.section, r.data.as_str()) == key)
            .collect();
        let _ = writeln!(out, "\n### {}, {}\n", key.0, key.1);
        table(&own, &mut out);
    }
    out
}

fn table(rows: &[&Row], out: &mut String) {
    let mut columns: Vec<&'static str> = vec![];
    let mut names: Vec<&str> = vec![];
    for row in rows {
        for figure in row.figures.keys() {
            if !columns.contains(figure) {
                columns.push(figure);
            }
        }
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    // Leading numbers only keep columns in order.
    columns.sort_unstable();
    let heads = columns
        .iter()
        .map(|c| c.trim_start_matches(|c: char| c.is_ascii_digit()).trim());
    let heads = heads.collect::<Vec<_>>().join(" | ");
    let _ = writeln!(out, "| what | {heads} |");
    let _ = writeln!(out, "|---|{}", "---|".repeat(columns.len()));
    for name in names {
        let cells = columns.iter().map(|column| {
            let values: Vec<f64> = rows
                .iter()
                .filter(|r| r.name == name)
                .filter_map(|r| r.figures.get(column).copied())
                .collect();
            cell(&values)
        });
        let _ = writeln!(
            out,
            "| {name} | {} |",
            cells.collect::<Vec<_>>().join(" | ")
        );
    }
}

fn cell(values: &[f64]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    if values.len() == 1 {
        return number(mean);
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{} ({} to {})", number(mean), number(low), number(high))
}

fn number(x: f64) -> String {
    if x == x.round() && x.abs() < 1e15 {
        return format!("{x}");
    }
    match x.abs() {
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        a if a >= 0.001 => format!("{x:.4}"),
        _ => format!("{x:.2e}"),
    }
}
