//! The weeks as a picture: hits and likes, a line for each system.

use std::fmt::Write;

use super::systems::System;
use super::table::Week;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 36.0;
/// Room for names.
const RIGHT: f64 = 170.0;
const BOTTOM: f64 = 48.0;

/// Lines that are drawn.
const LINES: [Line; 4] = [
    Line(System::Served, "served", "#1f4e79"),
    Line(System::Refit, "refitted each day", "#2e7d32"),
    Line(System::Frozen, "frozen after month two", "#b5651d"),
    Line(System::Popularity, "popularity", "#c62828"),
];

struct Line(System, &'static str, &'static str);

/// The picture.
pub(crate) fn svg(weeks: &[Week]) -> String {
    let height = 2.0 * HEIGHT;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{height}\" viewBox=\"0 \
         0 {0} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" \
         height=\"100%\" fill=\"white\"/>\n",
        WIDTH + RIGHT
    );
    let hits = |w: &Week, s: System| w.quality.hr10.get(s.name()).copied().flatten();
    let likes = |w: &Week, s: System| w.quality.auc.get(s.name()).copied().flatten();
    panel(&mut out, 0.0, "Next item, HR@10 by week", weeks, &hits);
    panel(&mut out, HEIGHT, "Likes, AUC by week", weeks, &likes);
    out + "</svg>\n"
}

fn panel(
    out: &mut String,
    down: f64,
    title: &str,
    weeks: &[Week],
    value: &dyn Fn(&Week, System) -> Option<f64>,
) {
    let points = |line: &Line| -> Vec<[f64; 2]> {
        let point = |w: &Week| Some([f64::from(w.week), value(w, line.0)?]);
        weeks.iter().filter_map(point).collect()
    };
    let all: Vec<[f64; 2]> = LINES.iter().flat_map(points).collect();
    let Some(low) = all.iter().map(|p| p[1]).min_by(f64::total_cmp) else {
        return;
    };
    let high = all.iter().map(|p| p[1]).fold(low, f64::max) + 0.001;
    let last = all.iter().map(|p| p[0]).fold(2.0, f64::max);
    let x = |v: f64| LEFT + (v - 1.0) / (last - 1.0) * (WIDTH - LEFT - 16.0);
    let y = |v: f64| HEIGHT - BOTTOM - (v - low) / (high - low) * (HEIGHT - BOTTOM - TOP);
    let _ = writeln!(
        out,
        "<g transform=\"translate(0 {down})\"><text x=\"{LEFT}\" y=\"20\" \
         font-weight=\"bold\">{title}</text>"
    );
    for i in 0..=4 {
        let v = low + (high - low) * f64::from(i) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text \
             x=\"8\" y=\"{:.1}\">{v:.3}</text>",
            WIDTH - 16.0,
            y(v) + 4.0,
            at = y(v),
        );
    }
    for week in weeks
        .iter()
        .map(|w| w.week)
        .filter(|w| w % 5 == 0 || *w == 1)
    {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\">{week}</text>",
            x(f64::from(week)) - 6.0,
            HEIGHT - BOTTOM + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{}\">week; each event was predicted before it was seen</text>",
        HEIGHT - 10.0
    );
    for (n, line) in LINES.iter().enumerate() {
        let Line(_, name, colour) = line;
        let path: Vec<String> = points(line)
            .iter()
            .map(|p| format!("{:.1},{:.1}", x(p[0]), y(p[1])))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/><text \
             x=\"{WIDTH}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
            path.join(" "),
            TOP + 18.0 * n as f64
        );
    }
    *out += "</g>\n";
}
