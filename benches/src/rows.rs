//! Rows of results: kept as JSON and CSV while they are made, and grouped for people.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Context;
use lethe_learn::metrics::Spread;
use serde_json::{Value, json};

/// Rows, written to their files after each.
pub struct Rows {
    all: Vec<Value>,
    json: Option<PathBuf>,
    csv: Option<PathBuf>,
}

impl Rows {
    /// With the rows that `json` holds already.
    pub fn open(json: Option<PathBuf>, csv: Option<PathBuf>) -> anyhow::Result<Self> {
        let all = match &json {
            Some(path) if path.exists() => read(path)?,
            _ => vec![],
        };
        Ok(Self { all, json, csv })
    }

    /// All of them.
    pub fn all(&self) -> &[Value] {
        &self.all
    }

    /// The row with these values under these names.
    pub fn find(&self, names: &[&str], values: &[Value]) -> Option<&Value> {
        self.all
            .iter()
            .find(|r| names.iter().zip(values).all(|(n, v)| r[*n] == *v))
    }

    /// Adds a row, and writes all.
    pub fn push(&mut self, row: Value) -> anyhow::Result<()> {
        self.all.push(row);
        if let Some(path) = &self.json {
            let text = serde_json::to_vec_pretty(&json!({ "rows": self.all }))?;
            let next = path.with_extension("next");
            std::fs::write(&next, text)
                .and_then(|()| std::fs::rename(&next, path))
                .with_context(|| path.display().to_string())?;
        }
        if let Some(path) = &self.csv {
            std::fs::write(path, csv(&self.all)).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

/// The rows of a file that [`Rows`] wrote.
pub fn read(path: &std::path::Path) -> anyhow::Result<Vec<Value>> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    let file: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    Ok(file["rows"]
        .as_array()
        .with_context(|| format!("{} holds no rows", path.display()))?
        .clone())
}

/// Rows as CSV: every column that a row has, in order of name.
pub fn csv(rows: &[Value]) -> String {
    let columns: BTreeSet<&String> = rows
        .iter()
        .filter_map(Value::as_object)
        .flat_map(|r| r.keys())
        .collect();
    if columns.is_empty() {
        return String::new();
    }
    let cell = |v: Option<&Value>| match v {
        Some(Value::String(s)) if s.contains(',') => format!("\"{s}\""),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Null) | None => String::new(),
        Some(Value::Array(a)) => format!("\"{}\"", Value::from(a.clone())),
        Some(v) => v.to_string(),
    };
    let mut out = columns
        .iter()
        .map(|c| c.as_str())
        .collect::<Vec<_>>()
        .join(",")
        + "\n";
    for row in rows {
        out += &(columns
            .iter()
            .map(|c| cell(row.get(c.as_str())))
            .collect::<Vec<_>>()
            .join(",")
            + "\n");
    }
    out
}

/// Rows of each method, in the order of the run.
pub type Methods<'a> = Vec<(String, Vec<&'a Value>)>;

/// Rows per values under `by`, and per value under `method`.
pub fn groups<'a>(
    rows: &'a [Value],
    by: &[&str],
    method: &str,
) -> BTreeMap<Vec<String>, Methods<'a>> {
    let text = |r: &Value, k: &str| match &r[k] {
        Value::Null => String::new(),
        v => v.as_str().map_or_else(|| v.to_string(), str::to_owned),
    };
    let mut groups: BTreeMap<Vec<String>, Methods<'a>> = BTreeMap::new();
    for r in rows {
        let methods = groups
            .entry(by.iter().map(|k| text(r, k)).collect())
            .or_default();
        match methods.iter_mut().find(|(m, _)| *m == text(r, method)) {
            Some((_, list)) => list.push(r),
            None => methods.push((text(r, method), vec![r])),
        }
    }
    groups
}

/// Mean and standard deviation of a figure over rows (seeds); a dash when none has it.
pub fn figure(rows: &[&Value], name: &str, digits: usize) -> String {
    let values: Vec<f64> = rows.iter().filter_map(|r| r[name].as_f64()).collect();
    match Spread::of(&values) {
        None => "-".to_owned(),
        Some(s) if values.len() > 1 => format!("{:.digits$} ± {:.digits$}", s.mean, s.std),
        Some(s) => format!("{:.digits$}", s.mean),
    }
}
