//! What must hold of the quick run's rows; the full table has the figures.

use anyhow::{Context, ensure};
use serde_json::Value;

/// Rules that bound an update's length or leave out who differs.
const BOUNDED: [&str; 6] = [
    "running median",
    "running median, balance",
    "trimmed mean",
    "median",
    "multi-Krum",
    "multi-Krum, balance",
];

fn figure(rows: &[Value], rule: &str, attack: &str, name: &str) -> anyhow::Result<f64> {
    let row = rows
        .iter()
        .find(|r| r["rule"] == rule && r["attack"] == attack)
        .with_context(|| format!("no row of {attack} against {rule}"))?;
    row[name]
        .as_f64()
        .with_context(|| format!("{attack} against {rule} has no {name}"))
}

/// With a fifth of attackers: who flips signs or scales does not turn what is learned under any
/// bounded rule, least of all the median, and does where only the absolute bound holds; the AUC
/// stays near the honest one.
///
/// # Errors
/// The first fact that does not hold.
pub(crate) fn check(rows: &[Value]) -> anyhow::Result<()> {
    let turned = figure(rows, "absolute bound only", "scaling", "agreement")?;
    ensure!(
        turned < 0.0,
        "without a bound that follows the updates, scaling left an agreement of {turned:.2}: \
         expected less than 0, which is what the bounds are for"
    );
    for rule in BOUNDED {
        let honest = figure(rows, rule, "nobody", "auc")?;
        for attack in ["sign flip", "scaling"] {
            let agreement = figure(rows, rule, attack, "agreement")?;
            let least = if rule == "median" { 0.25 } else { 0.05 };
            ensure!(
                agreement > least,
                "{attack} by a fifth against {rule}: agreement {agreement:.2} with the honest \
                 run, expected more than {least}"
            );
            let auc = figure(rows, rule, attack, "auc")?;
            ensure!(
                (auc - honest).abs() < 0.05,
                "{attack} by a fifth against {rule}: AUC {auc:.3}, honest {honest:.3}, expected \
                 within 0.05"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_that_is_turned_fails() {
        let mut rows =
            vec![json!({"rule": "absolute bound only", "attack": "scaling", "agreement": -0.9})];
        for rule in BOUNDED {
            for attack in ["nobody", "sign flip", "scaling"] {
                let auc = 0.6;
                rows.push(json!({"rule": rule, "attack": attack, "agreement": 0.7, "auc": auc}));
            }
        }
        check(&rows).expect("all hold");
        rows[2]["agreement"] = json!(0.04);
        let e = check(&rows).expect_err("turned").to_string();
        assert!(
            e.contains("sign flip by a fifth against running median"),
            "{e}"
        );
        rows.truncate(1);
        assert!(check(&rows).is_err(), "rows are missing");
    }
}
