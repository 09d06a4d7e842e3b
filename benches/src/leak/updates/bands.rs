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

/// With the seed that the quick form takes where none is given. They hold the figures of another
/// kind of processor, not a change of what is measured.
const BANDS: &[Band] = &[
    Band {
        section: "titles from updates",
        name: "1 sample, f32",
        figure: "2 recall",
        low: 0.8,
        high: 1.0,
    },
    Band {
        section: "titles from updates",
        name: "1 sample, f32",
        figure: "4 precision",
        low: 0.8,
        high: 1.0,
    },
    Band {
        section: "titles from updates",
        name: "1 sample, int8",
        figure: "2 recall",
        low: 0.1,
        high: 0.7,
    },
    Band {
        section: "titles from updates",
        name: "1 sample, f32, first round of all",
        figure: "2 recall",
        low: 0.0,
        high: 0.05,
    },
    Band {
        section: "suspected samples in updates",
        name: "1 sample, int8",
        figure: "2 named",
        low: 0.9,
        high: 1.0,
    },
    Band {
        section: "suspected samples in updates",
        name: "1 sample, int8",
        figure: "4 answers right",
        low: 0.9,
        high: 1.0,
    },
    Band {
        section: "suspected samples in updates",
        name: "sum of 4 people, 1 sample each, f32",
        figure: "2 named",
        low: 0.9,
        high: 1.0,
    },
    Band {
        section: "suspected samples in updates",
        name: "1 sample, top 5 %",
        figure: "2 named",
        low: 0.0,
        high: 0.8,
    },
    Band {
        section: "members of a released adapter",
        name: "8 passes of AdamW, leavers after, by shadow",
        figure: "1 AUC of samples",
        low: 0.2,
        high: 0.75,
    },
    Band {
        section: "two adapters side by side",
        name: "default recipe, one leaves",
        figure: "2 AUC of samples",
        low: 0.6,
        high: 1.0,
    },
];

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
