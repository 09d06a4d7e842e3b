//! Rows for people: mean and spread over seeds, and CSV.

use std::collections::BTreeMap;

use lethe_learn::metrics::Spread;
use serde_json::Value;

/// Rows as CSV, columns in order of name.
pub(crate) fn csv(rows: &[Value]) -> String {
    let Some(Value::Object(first)) = rows.first() else { return String::new() };
    let columns: Vec<&String> = first.keys().collect();
    let cell = |v: Option<&Value>| match v {
        Some(Value::String(s)) if s.contains(',') => format!("\"{s}\""),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Null) | None => String::new(),
        Some(v) => v.to_string(),
    };
    let mut out = columns.iter().map(|c| c.as_str()).collect::<Vec<_>>().join(",") + "\n";
    for row in rows {
        out += &(columns.iter().map(|c| cell(row.get(c.as_str()))).collect::<Vec<_>>().join(",") + "\n");
    }
    out
}

/// Rows of each method, in the order of the run.
type Methods<'a> = Vec<(String, Vec<&'a Value>)>;

/// Rows per data set and deletion.
pub(crate) fn grouped(rows: &[Value]) -> BTreeMap<(String, String), Methods<'_>> {
    let text = |r: &Value, k: &str| r[k].as_str().unwrap_or_default().to_owned();
    let mut groups: BTreeMap<(String, String), Methods<'_>> = BTreeMap::new();
    for r in rows {
        let methods = groups.entry((text(r, "dataset"), text(r, "deletion"))).or_default();
        match methods.iter_mut().find(|(m, _)| *m == text(r, "method")) {
            Some((_, list)) => list.push(r),
            None => methods.push((text(r, "method"), vec![r])),
        }
    }
    groups
}

/// Mean and spread per data set, deletion and method, as a Markdown table.
pub(crate) fn render(rows: &[Value]) -> String {
    if rows.first().is_some_and(|r| r.get("auc_after").is_none()) {
        return csv(rows);
    }
    let groups = grouped(rows);
    let mut out = String::new();
    for ((dataset, deletion), methods) in groups {
        out += &format!("\n### {dataset}, {deletion}\n\n");
        out += "| method | exact | AUC before | AUC after | gap to Retrain | sub-models | seconds | retrained | saved | JSD | MIA | ms p50 / p95 |\n";
        out += "|---|---|---|---|---|---|---|---|---|---|---|---|\n";
        for (method, list) in methods {
            let figure = |k: &str, digits: usize| {
                let values: Vec<f64> = list.iter().filter_map(|r| r[k].as_f64()).collect();
                match Spread::of(&values) {
                    None => "-".to_owned(),
                    Some(s) if values.len() > 1 => format!("{:.digits$} ± {:.digits$}", s.mean, s.std),
                    Some(s) => format!("{:.digits$}", s.mean),
                }
            };
            let exact = list[0]["exactness"].as_str().unwrap_or("");
            let cells = [
                method,
                exact.to_owned(),
                figure("auc_before", 3),
                figure("auc_after", 3),
                figure("gap_to_retrain", 3),
                figure("submodel_auc", 3),
                figure("seconds", 0),
                figure("samples_retrained", 0),
                figure("retrain_saved", 1) + "x",
                figure("jsd_to_retrain", 4),
                figure("mia_auc", 2),
                format!("{} / {}", figure("query_ms_p50", 0), figure("query_ms_p95", 0)),
            ];
            out += &format!("| {} |\n", cells.join(" | "));
        }
    }
    out
}
