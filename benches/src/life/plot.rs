//! The weeks as a picture: hits and likes, a line for each system.

use std::fmt::Write;

use serde_json::Value;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 36.0;
/// Room for names.
const RIGHT: f64 = 170.0;
const BOTTOM: f64 = 48.0;

/// Of systems: the name in figures, the name in the picture, the colour.
const SYSTEMS: [Line; 4] = [
    Line("served", "served", "#1f4e79"),
    Line("refit", "refitted each day", "#2e7d32"),
    Line("frozen", "frozen after month two", "#b5651d"),
    Line("popularity", "popularity", "#c62828"),
];

/// Of a sample of likes.
const ADAPTERS: [Line; 3] = [
    Line("served", "served by the sums", "#1f4e79"),
    Line("adapters", "adapters", "#6a1b9a"),
    Line("base", "untrained base", "#757575"),
];

struct Line(&'static str, &'static str, &'static str);

/// Points of a line: week and value.
struct Series<'a> {
    line: &'a Line,
    points: Vec<[f64; 2]>,
}

/// The picture of figures as they are in JSON.
pub(crate) fn svg(figures: &Value) -> String {
    let quality = |name: &'static str| {
        let of = move |week: &Value, line: &Line| week["quality"][name][line.0].as_f64();
        series(&figures["weeks"], &SYSTEMS, &of)
    };
    let sampled = |week: &Value, line: &Line| week[line.0].as_f64();
    let mut panels = vec![
        ("Next item, HR@10 by week", quality("hr10")),
        ("Likes, AUC by week", quality("auc")),
        (
            "Some of the likes, AUC by week: adapters",
            series(&figures["adapters"]["weeks"], &ADAPTERS, &sampled),
        ),
    ];
    panels.retain(|p| p.1.iter().any(|s| !s.points.is_empty()));
    let points = panels.iter().flat_map(|p| &p.1).flat_map(|s| &s.points);
    let last = points.map(|p| p[0]).fold(2.0, f64::max);
    let height = panels.len() as f64 * HEIGHT;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{height}\" viewBox=\"0 \
         0 {0} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" \
         height=\"100%\" fill=\"white\"/>\n",
        WIDTH + RIGHT
    );
    for (n, (title, series)) in panels.iter().enumerate() {
        panel(&mut out, n as f64 * HEIGHT, title, series, last);
    }
    out + "</svg>\n"
}

fn series<'a>(
    weeks: &Value,
    lines: &'a [Line],
    value: &dyn Fn(&Value, &Line) -> Option<f64>,
) -> Vec<Series<'a>> {
    let weeks = weeks.as_array().map_or(&[][..], Vec::as_slice);
    let of = |line: &'a Line| {
        let point = |w: &Value| Some([w["week"].as_f64()?, value(w, line)?]);
        Series {
            line,
            points: weeks.iter().filter_map(point).collect(),
        }
    };
    let all = lines.iter().map(of);
    all.filter(|s| !s.points.is_empty()).collect()
}

fn panel(out: &mut String, down: f64, title: &str, lines: &[Series<'_>], last: f64) {
    let all: Vec<[f64; 2]> = lines.iter().flat_map(|s| s.points.clone()).collect();
    let Some(low) = all.iter().map(|p| p[1]).min_by(f64::total_cmp) else {
        return;
    };
    let high = all.iter().map(|p| p[1]).fold(low, f64::max) + 0.001;
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
    for week in (1..=last as i32).filter(|w| w % 5 == 0 || *w == 1) {
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
    for (n, drawn) in lines.iter().enumerate() {
        let Line(_, name, colour) = drawn.line;
        let path: Vec<String> = drawn
            .points
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
