//! Plots as SVG, drawn to be read at any width.

use std::fmt::Write;

use serde_json::Value;

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A line plot as SVG: `(name, points)` per series, points `(x, y)`.
pub(super) fn line_plot(
    title: &str,
    x_label: &str,
    series: &[(String, Vec<(f64, f64)>)],
) -> String {
    const COLOURS: [&str; 6] = [
        "#4269d0", "#c55a11", "#2e7d32", "#8e24aa", "#00838f", "#6d4c41",
    ];
    let all: Vec<(f64, f64)> = series
        .iter()
        .flat_map(|s| s.1.iter().copied())
        .filter(|p| p.1.is_finite())
        .collect();
    if all.is_empty() {
        return String::new();
    }
    let range = |f: fn(&(f64, f64)) -> f64| {
        let (lo, hi) = all
            .iter()
            .map(f)
            .fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
        (lo, if hi > lo { hi } else { lo + 1.0 })
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
    let at = |p: &(f64, f64)| {
        (
            50.0 + 560.0 * (p.0 - x0) / (x1 - x0),
            190.0 - 160.0 * (p.1 - y0) / (y1 - y0),
        )
    };
    let mut svg = format!(
        "<h3>{}</h3><svg viewBox='0 0 720 230' role='img'>",
        escape(title)
    );
    let _ = write!(
        svg,
        "<path d='M50 20V190H620' fill='none' stroke='#888'/><text x='330' y='222'>{}</text>",
        escape(x_label)
    );
    let _ = write!(
        svg,
        "<text x='4' y='34'>{y1:.3}</text><text x='4' y='190'>{y0:.3}</text>"
    );
    for (i, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let path: Vec<String> = points
            .iter()
            .filter(|p| p.1.is_finite())
            .map(at)
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = write!(
            svg,
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'/>",
            path.join(" ")
        );
        let _ = write!(
            svg,
            "<text x='630' y='{}' fill='{colour}'>{}</text>",
            34 + 18 * i,
            escape(name)
        );
    }
    svg + "</svg>"
}

/// The deletion as a time line.
pub(super) fn timeline(d: &Value) -> String {
    let of = |k: &str| d[k].as_f64();
    let (Some(exact), Some(whole), Some(retrained), Some(full)) = (
        of("seconds_until_exact"),
        of("seconds_until_whole"),
        of("seconds_until_retrained"),
        of("full_retrain_seconds"),
    ) else {
        return String::new();
    };
    let longest = full.max(retrained).max(whole).max(0.001);
    let bars = [
        (
            exact,
            "#2e7d32",
            "nothing that is served has the person in it",
        ),
        (
            whole,
            "#00838f",
            "the next tables are there: lists are complete again",
        ),
        (
            retrained,
            "#4269d0",
            "adapters retrained without the person",
        ),
        (
            full,
            "#bbbbbb",
            "for comparison: training all adapters again",
        ),
    ];
    let mut out = String::new();
    for (seconds, colour, text) in bars {
        // Text beside a drawing would shrink with it on a phone.
        let _ = write!(
            out,
            "<div style='margin:.6rem 0'><div style='height:1.1rem;min-width:3px;width:{:.2}%;\
             background:{colour}'></div>{text}: {seconds:.2} s</div>",
            100.0 * seconds / longest
        );
    }
    out
}
