//! Rows for people: mean and spread over seeds.

use lethe_benches::rows::{self, Methods, csv, groups};
use serde_json::Value;

/// Rows per data set and deletion.
pub(crate) fn grouped(rows: &[Value]) -> impl ExactSizeIterator<Item = (String, Methods<'_>)> {
    groups(rows, &["dataset", "deletion"], "method").into_iter().map(|(of, methods)| (of.join(", "), methods))
}

/// Mean and spread per data set, deletion and method, as a Markdown table.
pub(crate) fn render(rows: &[Value]) -> String {
    if rows.iter().all(|r| r.get("auc_after").is_none()) {
        return csv(rows);
    }
    let mut out = String::new();
    for (title, methods) in grouped(rows) {
        out += &format!("\n### {title}\n\n");
        let timed = methods.iter().flat_map(|(_, rows)| rows).any(|r| r["query_ms_p50"].is_number());
        let mut columns = vec![
            "method",
            "exact",
            "AUC before",
            "AUC after",
            "gap to Retrain",
            "with rates",
            "gap",
            "sub-models",
            "seconds",
            "retrained",
            "saved",
            "JSD",
            "MIA",
        ];
        if timed {
            columns.extend(["ms a query, p50 / p95", "ms a candidate of 20, p50 / p95"]);
        }
        out += &format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
        let retrain = methods.iter().find(|(m, _)| m == "Retrain").map(|(_, rows)| retrained(rows));
        for (method, list) in methods {
            // Of all seeds together: a mean of ratios would be ruled by the luckiest.
            let saved = match (retrain, retrained(&list)) {
                (Some(all), own) if own > 0.0 => format!("{:.1}x", all / own),
                _ => "-".to_owned(),
            };
            let figure = |k: &str, digits: usize| rows::figure(&list, k, digits);
            let exact = list[0]["exactness"].as_str().unwrap_or("");
            let mut cells = vec![
                method,
                exact.to_owned(),
                figure("auc_before", 3),
                figure("auc_after", 3),
                figure("gap_to_retrain", 3),
                figure("auc_composed", 3),
                figure("gap_composed", 3),
                figure("submodel_auc", 3),
                figure("seconds", 2),
                figure("samples_retrained", 0),
                saved,
                figure("jsd_to_retrain", 4),
                figure("mia_auc", 2),
            ];
            if timed {
                let pair = |a: &str, b: &str, digits| format!("{} / {}", figure(a, digits), figure(b, digits));
                cells.push(pair("query_ms_p50", "query_ms_p95", 0));
                cells.push(pair("ranked_ms_p50", "ranked_ms_p95", 1));
            }
            out += &format!("| {} |\n", cells.join(" | "));
        }
    }
    out
}

/// Samples trained again, over all seeds.
fn retrained(rows: &[&Value]) -> f64 {
    rows.iter().filter_map(|r| r["samples_retrained"].as_f64()).sum()
}
