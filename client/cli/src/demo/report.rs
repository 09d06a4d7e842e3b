//! One self-contained HTML page of a demo run, for people who answer for privacy.

use std::fmt::Write;

use serde_json::Value;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A line plot as SVG: `(name, points)` per series, points `(x, y)`.
fn line_plot(title: &str, x_label: &str, series: &[(String, Vec<(f64, f64)>)]) -> String {
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
        "<h2>{}</h2><svg viewBox='0 0 720 230' role='img'>",
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

/// Client AUCs, one dot each.
fn dot_plot(title: &str, values: &[f64]) -> String {
    let mut svg = format!(
        "<h2>{}</h2><svg viewBox='0 0 720 110' role='img'>",
        escape(title)
    );
    svg += "<path d='M50 70H670' stroke='#888'/>";
    for tick in 0..=4 {
        let x = 50 + 155 * tick;
        let _ = write!(
            svg,
            "<text x='{x}' y='95'>{}</text><path d='M{x} 66V74' stroke='#888'/>",
            f64::from(tick) * 0.25
        );
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    for (i, v) in sorted.iter().enumerate() {
        let _ = write!(
            svg,
            "<circle cx='{:.1}' cy='{}' r='4' fill='#4269d0' fill-opacity='.6'/>",
            50.0 + 620.0 * v,
            56 - 9 * (i % 4)
        );
    }
    svg + "</svg>"
}

/// The deletion as a time line.
fn timeline(d: &Value) -> String {
    let (exact, retrained) = (
        d["seconds_until_exact"].as_f64(),
        d["seconds_until_retrained"].as_f64(),
    );
    let (Some(exact), Some(retrained), Some(full)) =
        (exact, retrained, d["full_retrain_seconds"].as_f64())
    else {
        return String::new();
    };
    let scale = 560.0 / full.max(retrained).max(0.001);
    let bar = |y: u32, seconds: f64, colour: &str, text: &str| {
        let width = (seconds * scale).max(2.0);
        format!(
            "<rect x='10' y='{y}' width='{width:.1}' height='22' fill='{colour}'/><text x='{:.1}' \
             y='{}'>{text}: {seconds:.3} s</text>",
            18.0,
            y + 38
        )
    };
    let mut svg =
        String::from("<h2>The deletion in time</h2><svg viewBox='0 0 720 170' role='img'>");
    svg += &bar(6, exact, "#2e7d32", "served model free of the person");
    svg += &bar(
        56,
        retrained,
        "#4269d0",
        "shard retrained without the person and released",
    );
    svg += &bar(
        106,
        full,
        "#bbbbbb",
        "for comparison, training everything again",
    );
    svg + "</svg>"
}

/// The page.
pub(crate) fn page(
    j: &Value,
    table: &str,
    losses: &Value,
    client_aucs: &[f64],
    receipt: &str,
) -> String {
    let series: Vec<(String, Vec<(f64, f64)>)> = losses
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(k, shard)| {
            let points = shard.as_array().into_iter().flatten().enumerate();
            (
                format!("shard {k}"),
                points
                    .map(|(i, v)| (i as f64 + 1.0, v.as_f64().unwrap_or(f64::NAN)))
                    .collect(),
            )
        })
        .collect();
    format!(
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Lethe demo report</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem \
         auto;padding:0 1rem;color:#222}}\
         pre{{overflow-x:auto;background:#f6f6f6;padding:1rem;font-size:13px}}\
         svg{{width:100%;font-size:13px}}</style>\
         <h1>Lethe: what was learned, and what was forgotten</h1>\
         <p>A group of people trained a recommender without handing over their data; then one of \
         them asked to be forgotten. The model in use was free of that person after {exact} \
         seconds. The affected part was then retrained from a point that had never seen the \
         person, and an independent training from scratch gave the same bytes: <b>{equal}</b>. The \
         receipt below verifies without contact to the operator: <b>{verified}</b>.</p>\
         {timeline}{plot}{dots}<h2>All figures</h2><pre>{table}</pre>\
         <h2>What the receipt proves, and what it cannot</h2><p>It proves that the operator stated \
         this deletion and entered it into a signed, append-only log. The replay shows that the \
         retrained model is what training without the person gives. No receipt can prove that no \
         copy exists outside the operator's systems.</p>\
         <details><summary>The receipt</summary><pre>{receipt}</pre></details></html>",
        exact = j["deletion"]["seconds_until_exact"],
        equal = if j["deletion"]["replay_equal"] == true {
            "yes"
        } else {
            "no"
        },
        verified = if j["receipt"]["verified"] == true {
            "yes"
        } else {
            "no"
        },
        timeline = timeline(&j["deletion"]),
        plot = line_plot("Training: mean loss per round", "round", &series),
        dots = dot_plot("AUC of each client (0 to 1)", client_aucs),
        table = escape(table),
        receipt = escape(receipt),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_stands_alone_and_escapes() {
        let j = json!({
            "deletion": {
                "seconds_until_exact": 0.1, "seconds_until_retrained": 2.0,
                "full_retrain_seconds": 9.0, "replay_equal": true,
            },
            "receipt": { "verified": true },
        });
        let page = page(
            &j,
            "a < b",
            &json!([[0.7, null, 0.6]]),
            &[0.5, 0.9],
            "{\"x\": \"<script>\"}",
        );
        assert!(
            page.contains("a &lt; b") && page.contains("&lt;script&gt;") && !page.contains("http")
        );
        assert_eq!(page.matches("<svg").count(), 3);
    }
}
