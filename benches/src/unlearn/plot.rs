//! The table as a picture: AUC after a deletion over the share of the training that it cost, one
//! panel per data set and deletion.

use std::fmt::Write;

use lethe_learn::metrics::Spread;
use serde_json::Value;

use crate::table::grouped;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 36.0;
/// Room for the legend.
const RIGHT: f64 = 250.0;
const BOTTOM: f64 = 48.0;

/// Told apart by colour and by number.
const COLOURS: [&str; 8] = [
    "#1f4e79", "#b5651d", "#2e7d32", "#8e24aa", "#c62828", "#00838f", "#6d4c41", "#455a64",
];

/// Mean and spread of a figure over seeds.
fn spread(rows: &[&Value], value: impl Fn(&Value) -> Option<f64>) -> Option<Spread> {
    let values: Vec<f64> = rows.iter().filter_map(|r| value(r)).collect();
    Spread::of(&values)
}

/// The picture; empty when there is nothing to draw.
pub(crate) fn svg(rows: &[Value]) -> String {
    let drawn: Vec<Value> = rows
        .iter()
        .filter(|r| r.get("auc_after").is_some())
        .cloned()
        .collect();
    let panels = grouped(&drawn);
    let height = HEIGHT * panels.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{height}\" viewBox=\"0 \
         0 {0} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
                       fill=\"white\"/>\n",
        WIDTH + RIGHT
    );
    for (i, (title, methods)) in panels.enumerate() {
        let _ = writeln!(out, "<g transform=\"translate(0 {})\">", HEIGHT * i as f64);
        panel(&mut out, &title, &methods);
        out += "</g>\n";
    }
    out + "</svg>\n"
}

fn panel(out: &mut String, title: &str, methods: &[(String, Vec<&Value>)]) {
    let share =
        |r: &Value| Some(r["samples_retrained"].as_f64()? / r["train_samples"].as_f64()?.max(1.0));
    let points: Vec<(&str, f64, Spread)> = methods
        .iter()
        .filter_map(|(n, rows)| {
            Some((
                &n[..],
                spread(rows, share)?.mean,
                spread(rows, |r| r["auc_after"].as_f64())?,
            ))
        })
        .collect();
    let ends = points
        .iter()
        .flat_map(|(_, _, s)| [s.mean - s.std, s.mean + s.std]);
    let (low, high) = ends.fold((0.5f64, 0.6f64), |(l, h), v| (l.min(v), h.max(v + 0.02)));
    let x = |v: f64| LEFT + v.clamp(0.0, 1.1) / 1.1 * (WIDTH - LEFT - 16.0);
    let y = |v: f64| HEIGHT - BOTTOM - (v - low) / (high - low) * (HEIGHT - BOTTOM - TOP);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\">{title}</text>"
    );
    for i in 0..=5 {
        let v = low + (high - low) * f64::from(i) / 5.0;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"8\" y=\"{:.1}\">{v:.3}</text>",
            WIDTH - 16.0,
            y(v) + 4.0,
            y = y(v),
        );
        let s = f64::from(i) / 5.0;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\">{s:.1}</text>",
            x(s) - 8.0,
            HEIGHT - BOTTOM + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{}\">share of the training repeated (right), AUC after the \
         deletion (up)</text>",
        HEIGHT - 10.0
    );
    for (n, (name, at, auc)) in points.iter().enumerate() {
        let (colour, cx, cy) = (COLOURS[n % COLOURS.len()], x(*at), y(auc.mean));
        let (top, bottom) = (y(auc.mean + auc.std), y(auc.mean - auc.std));
        let _ = writeln!(
            out,
            "<line x1=\"{cx:.1}\" x2=\"{cx:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" \
             stroke=\"{colour}\"/>\
             <circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"5\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{n}</text>\
             <text x=\"{WIDTH}\" y=\"{:.1}\" fill=\"{colour}\">{n} {name}</text>",
            cx + 7.0,
            cy - 5.0,
            TOP + 18.0 * n as f64,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_method_is_drawn_once_per_panel() {
        let row = |method: &str, seed: u64, auc: f64| {
            json!({
                "dataset": "d", "deletion": "one", "method": method, "seed": seed,
                "auc_after": auc, "samples_retrained": 100, "train_samples": 400,
            })
        };
        let picture = svg(&[row("a", 1, 0.6), row("a", 2, 0.7), row("b", 1, 0.65)]);
        assert_eq!(picture.matches("<circle").count(), 2);
        assert!(
            picture.contains("0 a") && picture.contains("1 b") && picture.ends_with("</svg>\n")
        );
        assert_eq!(svg(&[]).matches("<circle").count(), 0);
    }
}
