//! Bands that the quick form's figures must lie in.

use std::fmt::Write;

use anyhow::bail;
use lethe_benches::figures::Row;

struct Band {
    section: &'static str,
    name: &'static str,
    figure: &'static str,
    low: f64,
    high: f64,
}

const BANDS: &[Band] = &[];

/// Refuses rows with a figure outside its band, or without a figure that has one.
pub(super) fn check(rows: &[Row]) -> anyhow::Result<()> {
    against(rows, BANDS)
}

fn against(rows: &[Row], bands: &[Band]) -> anyhow::Result<()> {
    let mut wrong = String::new();
    for band in bands {
        let row = rows
            .iter()
            .find(|r| r.section == band.section && r.name == band.name);
        let value = row.and_then(|r| r.figures.get(band.figure).copied());
        if value.is_some_and(|v| (band.low..=band.high).contains(&v)) {
            continue;
        }
        let _ = writeln!(
            wrong,
            "{}, {}, {}: {value:?}, documented are {} to {}",
            band.section, band.name, band.figure, band.low, band.high
        );
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("figures have left their bands; mend what changed, or docs/leaks.md:\n{wrong}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_outside_or_missing_is_refused() {
        let band = Band {
            section: "s",
            name: "n",
            figure: "f",
            low: 0.5,
            high: 1.0,
        };
        let row = |v| Row::new("s", "d", "n", 1).with("f", v);
        let bands = [band];
        assert!(against(&[row(0.7)], &bands).is_ok());
        for rows in [vec![row(0.4)], vec![row(f64::NAN)], vec![]] {
            let text = against(&rows, &bands).expect_err("outside").to_string();
            assert!(text.contains("s, n, f"), "{text}");
        }
    }
}
