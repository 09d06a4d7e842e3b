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

/// A figure that has to stay near what is documented.
#[derive(Clone, Copy, Debug)]
pub struct Band {
    /// Its section.
    pub section: &'static str,
    /// What was measured.
    pub name: &'static str,
    /// The figure.
    pub figure: &'static str,
    /// How far it may be from the documented mean, either way.
    pub width: f64,
}

impl Band {
    fn is_of(self, row: &serde_json::Value) -> bool {
        row["section"] == self.section && row["name"] == self.name
    }

    /// The mean over runs, on one set of data.
    fn mean_of(self, rows: &[serde_json::Value], data: &serde_json::Value) -> Option<f64> {
        let own = rows.iter().filter(|r| self.is_of(r) && r["data"] == *data);
        let values: Vec<f64> = own
            .filter_map(|r| r["figures"][self.figure].as_f64())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }
}

/// Whether figures are what a committed file of rows (JSON) documents, within bands.
///
/// # Errors
/// Names every figure that is missing, or outside its band.
pub fn hold(rows: &[Row], documented: &str, bands: &[Band]) -> anyhow::Result<()> {
    let documented: Vec<serde_json::Value> = serde_json::from_str(documented)?;
    let rows: Vec<serde_json::Value> = rows
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<_, _>>()?;
    let mut wrong = vec![];
    for band in bands {
        // The full form has more data sets.
        let first = rows.iter().find(|r| band.is_of(r));
        let data = first.map_or(&serde_json::Value::Null, |r| &r["data"]);
        let got = band.mean_of(&rows, data);
        let wanted = band.mean_of(&documented, data);
        let holds = match (got, wanted) {
            (Some(got), Some(wanted)) => (got - wanted).abs() <= band.width,
            _ => false,
        };
        if !holds {
            let Band {
                section,
                name,
                figure,
                width,
            } = band;
            wrong.push(format!(
                "{section}, {name}, {figure}: {got:?}, documented {wanted:?}, band {width}"
            ));
        }
    }
    anyhow::ensure!(
        wrong.is_empty(),
        "figures that are not as documented; mend the code, or measure and document again:\n{}",
        wrong.join("\n")
    );
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_outside_its_band_or_without_a_document_is_an_error() {
        let rows = [Row::new("s", "d", "n", 1).with("f", 0.5)];
        let band = |figure, width| Band {
            section: "s",
            name: "n",
            figure,
            width,
        };
        let documented = |value: f64| {
            let rows = [1, 2].map(|run| Row::new("s", "d", "n", run).with("f", value));
            serde_json::to_string(&rows).expect("rows")
        };
        assert!(hold(&rows, &documented(0.55), &[band("f", 0.1)]).is_ok());
        let wrong = hold(&rows, &documented(0.7), &[band("f", 0.1)]).expect_err("outside");
        assert!(wrong.to_string().contains("s, n, f: Some(0.5)"), "{wrong}");
        assert!(hold(&rows, &documented(0.5), &[band("g", 0.1)]).is_err());
        assert!(hold(&rows, "[]", &[band("f", 0.1)]).is_err());
        let other = documented(0.55).replace("\"d\"", "\"other data\"");
        assert!(hold(&rows, &other, &[band("f", 0.1)]).is_err());
    }
}
