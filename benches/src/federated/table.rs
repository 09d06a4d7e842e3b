//! Rows for people.

use lethe_benches::rows::{figure, groups};
use serde_json::Value;

/// Mean and spread per kind of clients and method, as a Markdown table.
pub(crate) fn render(rows: &[Value]) -> String {
    let mut out = String::new();
    for (kind, methods) in groups(rows, &["clients"], "method") {
        out += &format!("\n### {}\n\n", kind.join(", "));
        out += "| method | AUC | UAUC | clients' mean | spread | worst tenth | rounds to target | \
                KiB of updates | KiB of activations |\n";
        out += "|---|---|---|---|---|---|---|---|---|\n";
        for (method, list) in methods {
            let kib = |k: &str| {
                let scaled: Vec<f64> = list
                    .iter()
                    .filter_map(|r| r[k].as_f64())
                    .map(|b| b / 1024.0)
                    .collect();
                rows_of(&scaled)
            };
            let reached = list.iter().filter(|r| !r["rounds"].is_null()).count();
            let rounds = match (reached, list.len()) {
                (0, _) => "-".to_owned(),
                (n, all) if n == all => figure(&list, "rounds", 1),
                (n, all) => format!("{} ({n} of {all})", figure(&list, "rounds", 1)),
            };
            let cells = [
                method,
                figure(&list, "auc", 3),
                figure(&list, "uauc", 3),
                figure(&list, "client_auc_mean", 3),
                figure(&list, "client_auc_std", 3),
                figure(&list, "worst_decile_auc", 3),
                rounds,
                kib("update_bytes"),
                kib("activation_bytes"),
            ];
            out += &format!("| {} |\n", cells.join(" | "));
        }
    }
    out
}

fn rows_of(values: &[f64]) -> String {
    match values.len() {
        0 => "-".to_owned(),
        n => format!("{:.1}", values.iter().sum::<f64>() / n as f64),
    }
}
