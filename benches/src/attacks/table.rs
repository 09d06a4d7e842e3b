//! Rows for people.

use std::collections::BTreeSet;

use lethe_benches::rows::figure;
use serde_json::Value;

/// Columns: the name of a figure, and its heading.
const COLUMNS: [(&str, &str); 7] = [
    ("auc", "AUC"),
    ("hr", "HR@10"),
    ("exposure", "exposure"),
    ("triggered", "with trigger"),
    ("agreement", "agreement"),
    ("validation_auc", "AUC (v)"),
    ("validation_exposure", "exposure (v)"),
];

/// Mean and spread over seeds for each rule, attack and share, as Markdown; a rule's honest run is
/// its first line.
pub(crate) fn render(rows: &[Value]) -> String {
    let mut out = String::new();
    let mut rules: Vec<&str> = vec![];
    for rule in rows.iter().filter_map(|r| r["rule"].as_str()) {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    for rule in rules {
        out += &format!("\n### {rule}\n\n| attack | people |");
        COLUMNS
            .iter()
            .for_each(|(_, head)| out += &format!(" {head} |"));
        out += "\n|---|---|";
        COLUMNS.iter().for_each(|_| out += "---|");
        out += "\n";
        let of: Vec<&Value> = rows.iter().filter(|r| r["rule"] == rule).collect();
        let mut seen: Vec<(&str, u64)> = vec![];
        for row in &of {
            let attack = row["attack"].as_str().unwrap_or_default();
            let share = row["per_cent"].as_u64().unwrap_or_default();
            if !seen.contains(&(attack, share)) {
                seen.push((attack, share));
            }
        }
        let mut order: Vec<&str> = vec![];
        for (attack, _) in &seen {
            if !order.contains(attack) {
                order.push(attack);
            }
        }
        for attack in order {
            let shares: BTreeSet<u64> = seen
                .iter()
                .filter(|(a, _)| *a == attack)
                .map(|(_, share)| *share)
                .collect();
            for share in shares {
                let group: Vec<&Value> = of
                    .iter()
                    .filter(|r| r["attack"] == attack && r["per_cent"] == share)
                    .copied()
                    .collect();
                let people = if share == 0 {
                    "-".to_owned()
                } else {
                    format!("{share} %")
                };
                out += &format!("| {attack} | {people} |");
                for (name, _) in COLUMNS {
                    out += &format!(" {} |", figure(&group, name, 3));
                }
                out += "\n";
            }
        }
    }
    out
}
