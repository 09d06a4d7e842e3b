//! Rows for people: mean and spread over seeds.

use lethe_benches::rows::{self, Methods, csv, groups};
use serde_json::Value;

/// Rows per data set, base and deletion.
pub(crate) fn grouped(rows: &[Value]) -> impl ExactSizeIterator<Item = (String, Methods<'_>)> {
    let title = |of: &[String]| format!("{}, {}, {}", of[0], based(&of[1]), of[2]);
    groups(rows, &["dataset", "people", "deletion"], "method")
        .into_iter()
        .map(move |(of, m)| (title(&of), m))
}

/// A base, named by the made-up people that it learned from.
fn based(people: &str) -> String {
    format!(
        "base of {}",
        if people.is_empty() { "unknown" } else { people }
    )
}

/// Mean and spread as Markdown: per data set and base, then per deletion.
pub(crate) fn render(rows: &[Value]) -> String {
    if rows.iter().all(|r| r.get("auc_after").is_none()) {
        return csv(rows);
    }
    let mut out = String::new();
    for (of, methods) in groups(rows, &["dataset", "people"], "method") {
        out += &format!("\n## {}, {}\n\n{}", of[0], based(&of[1]), summary(&methods));
    }
    for (title, methods) in grouped(rows) {
        out += &format!("\n### {title}\n\n{}", details(&methods));
    }
    out
}

/// A head and rows of cells.
fn markdown(columns: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut out = format!(
        "| {} |\n|{}\n",
        columns.join(" | "),
        "---|".repeat(columns.len())
    );
    rows.for_each(|cells| out += &format!("| {} |\n", cells.join(" | ")));
    out
}

/// What every deletion did to each method, side by side.
fn summary(methods: &Methods<'_>) -> String {
    let mut deletions: Vec<&str> = vec![];
    for r in methods.iter().flat_map(|(_, rows)| rows) {
        let name = r["deletion"].as_str().unwrap_or("");
        if !deletions.contains(&name) {
            deletions.push(name);
        }
    }
    let mut columns: Vec<String> = ["method", "exact", "AUC before", "sub-models"]
        .map(str::to_owned)
        .to_vec();
    columns.extend(deletions.iter().map(|d| format!("gap, {d}")));
    columns.extend(deletions.iter().map(|d| format!("with rates: gap, {d}")));
    columns.extend(deletions.iter().map(|d| format!("saved, {d}")));
    let retrain = retrain(methods);
    let row = |(method, list): &(String, Vec<&Value>)| {
        let first = of_deletion(list, deletions.first().copied().unwrap_or(""));
        let exact = list[0]["exactness"].as_str().unwrap_or("").to_owned();
        let mut cells = vec![method.clone(), exact];
        cells.push(rows::figure(&first, "auc_before", 3));
        cells.push(rows::figure(&first, "submodel_auc", 3));
        for name in ["gap_to_retrain", "gap_composed"] {
            cells.extend(
                deletions
                    .iter()
                    .map(|d| rows::figure(&of_deletion(list, d), name, 3)),
            );
        }
        cells.extend(
            deletions
                .iter()
                .map(|d| saved(&of_deletion(&retrain, d), &of_deletion(list, d))),
        );
        cells
    };
    markdown(&columns, methods.iter().map(row))
}

/// What the others are compared with.
fn retrain<'a>(methods: &Methods<'a>) -> Vec<&'a Value> {
    methods
        .iter()
        .find(|(m, _)| m == "Retrain")
        .map(|(_, rows)| rows.clone())
        .unwrap_or_default()
}

/// A method's rows of one deletion.
fn of_deletion<'a>(rows: &[&'a Value], deletion: &str) -> Vec<&'a Value> {
    rows.iter()
        .copied()
        .filter(|r| r["deletion"] == deletion)
        .collect()
}

/// Everything about one deletion.
fn details(methods: &Methods<'_>) -> String {
    let timed = methods
        .iter()
        .flat_map(|(_, rows)| rows)
        .any(|r| r["query_ms_p50"].is_number());
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
        "samples",
        "saved",
        "JSD",
        "L2",
        "MIA",
    ];
    if timed {
        columns.extend(["ms a query, p50 / p95", "ms a candidate of 20, p50 / p95"]);
    }
    let columns: Vec<String> = columns.into_iter().map(str::to_owned).collect();
    let retrain = retrain(methods);
    let row = |(method, list): &(String, Vec<&Value>)| {
        let figure = |k: &str, digits: usize| rows::figure(list, k, digits);
        let mut cells = vec![
            method.clone(),
            list[0]["exactness"].as_str().unwrap_or("").to_owned(),
            figure("auc_before", 3),
            figure("auc_after", 3),
            figure("gap_to_retrain", 3),
            figure("auc_composed", 3),
            figure("gap_composed", 3),
            figure("submodel_auc", 3),
            figure("seconds", 2),
            figure("samples_retrained", 0),
            saved(&retrain, list),
            figure("jsd_to_retrain", 4),
            figure("l2_to_retrain", 3),
            figure("mia_auc", 2),
        ];
        if timed {
            let pair =
                |a: &str, b: &str, digits| format!("{} / {}", figure(a, digits), figure(b, digits));
            cells.push(pair("query_ms_p50", "query_ms_p95", 0));
            cells.push(pair("ranked_ms_p50", "ranked_ms_p95", 1));
        }
        cells
    };
    markdown(&columns, methods.iter().map(row))
}

/// Retrain's samples over a method's, over the seeds that both have, together: a mean of ratios
/// would be ruled by the luckiest.
fn saved(retrain: &[&Value], own: &[&Value]) -> String {
    let samples = |r: &Value| r["samples_retrained"].as_f64().unwrap_or(0.0);
    let pair = |r: &&Value| {
        Some((
            samples(retrain.iter().find(|all| all["seed"] == r["seed"])?),
            samples(r),
        ))
    };
    let (all, own) = own
        .iter()
        .filter_map(pair)
        .fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    if own > 0.0 {
        format!("{:.1}x", all / own)
    } else {
        "-".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_summary_says_what_each_deletion_did() {
        let row = |method: &str, deletion: &str, seed: u64, gap: f64, samples: u64| {
            json!({
                "dataset": "d", "people": 64, "method": method, "deletion": deletion, "seed": seed,
                "exactness": "exact", "auc_before": 0.7, "auc_after": 0.7 + gap,
                "gap_to_retrain": gap, "gap_composed": gap / 10.0, "submodel_auc": 0.6,
                "samples_retrained": samples,
            })
        };
        let rows = [
            row("Retrain", "one", 1, 0.0, 1000),
            row("Retrain", "one", 2, 0.0, 2000),
            row("Retrain", "one", 3, 0.0, 9000),
            row("Retrain", "many", 1, 0.0, 500),
            row("ours", "one", 1, -0.01, 100),
            row("ours", "one", 2, -0.03, 200),
            row("ours", "many", 1, 0.05, 250),
        ];
        let text = render(&rows);
        let ours: Vec<&str> = text
            .lines()
            .find(|l| l.starts_with("| ours"))
            .expect("a row")
            .split(" | ")
            .collect();
        // Seed 3 of Retrain has no partner.
        let expected = [
            "0.600 ± 0.000",
            "-0.020 ± 0.010",
            "0.050",
            "-0.002 ± 0.001",
            "0.005",
            "10.0x",
            "2.0x |",
        ];
        assert_eq!(ours[3..], expected, "{text}");
        assert!(
            text.contains("## d, base of 64") && text.contains("### d, base of 64, many"),
            "{text}"
        );
    }
}
