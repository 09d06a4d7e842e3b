//! One self-contained HTML page of a demo run, for a privacy officer and an engineer alike.

use std::fmt::Write;

use lethe_transport::utc;
use serde_json::Value;

mod life;
mod plots;

use life::life;
use plots::{escape, line_plot, timeline};

const STYLE: &str = "body{font:16px/1.55 system-ui,sans-serif;max-width:46rem;margin:2rem auto;\
padding:0 1rem;color:#222}h1{line-height:1.2}h2{margin-top:2.2rem}table{border-collapse:collapse;\
width:100%}.wide{overflow-x:auto}th,td{text-align:left;padding:.25rem .7rem .25rem 0;\
border-bottom:1px solid #ddd;vertical-align:top}td.n,th.n{text-align:right;\
font-variant-numeric:tabular-nums}tr.own td{font-weight:600}pre{overflow-x:auto;\
background:#f6f6f6;padding:1rem;font-size:13px}code{overflow-wrap:anywhere}\
svg{width:100%;height:auto;font-size:13px}.note{color:#555;font-size:.92em}\
ol.list li{margin:.3rem 0}summary{cursor:pointer}";

/// What the page is made of.
pub(crate) struct Report<'a> {
    /// The figures.
    pub(crate) figures: &'a Value,
    /// The same as the table that the demo prints.
    pub(crate) table: &'a str,
    /// Mean loss of each round, by shard.
    pub(crate) losses: &'a Value,
    /// The receipt, which names the person.
    pub(crate) receipt: &'a str,
}

fn number(v: &Value, digits: usize) -> String {
    let text = |x: f64| format!("{x:.digits$}");
    v.as_f64().map_or_else(|| "&ndash;".into(), text)
}

fn yes(v: &Value) -> &'static str {
    match v.as_bool() {
        Some(true) => "yes",
        _ => "<b>no</b>",
    }
}

/// A row: what it is about, and numbers.
fn row(name: &str, own: bool, numbers: &[String]) -> String {
    let class = if own { " class='own'" } else { "" };
    let cells: String = numbers
        .iter()
        .map(|n| format!("<td class='n'>{n}</td>"))
        .collect();
    format!("<tr{class}><td>{name}</td>{cells}</tr>")
}

impl Report<'_> {
    /// The page.
    pub(crate) fn page(&self) -> String {
        let j = self.figures;
        let head = format!(
            "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' \
             content='width=device-width,initial-scale=1'><title>Lethe: a demo run</title>\
             <style>{STYLE}</style><h1>What was learned, and what was forgotten</h1>\
             <p class='note'>A run of <code>lethe demo</code> on {} (UTC), seed {}, {}.</p>",
            utc(j["at"].as_i64().unwrap_or(0)),
            j["seed"],
            escape(j["build"].as_str().unwrap_or("")),
        );
        [
            head,
            self.summary(),
            self.quality(),
            self.lists(),
            self.cost(),
            who_sees_what(self.figures),
            self.deletion(),
            self.adapters(),
            life(),
            self.check(),
            self.all(),
        ]
        .concat()
    }

    fn summary(&self) -> String {
        let j = self.figures;
        let d = &j["deletion"];
        format!(
            "<p>{people} people of a public data set (MovieLens-100K unless another was named) \
             each \
             had an app of their own. Their devices sent the newest events of their histories; all \
             got the same tables back and made lists by themselves, without a network. Then one \
             person asked to be forgotten. After <b>{exact} s</b> nothing that was served had that \
             person in it, after <b>{whole} s</b> everybody's lists were complete again. Adding up \
             again what remains gave the same bytes: <b>{folded}</b>. Retraining what else had \
             learned from the person gave the same bytes as training without them: \
             <b>{equal}</b>. The receipt verifies without contact to the operator: \
             <b>{verified}</b>.</p>",
            people = j["lists"]["people"],
            exact = number(&d["seconds_until_exact"], 2),
            whole = number(&d["seconds_until_whole"], 2),
            folded = yes(&d["lists_replay_equal"]),
            equal = yes(&d["replay_equal"]),
            verified = yes(&j["receipt"]["verified"]),
        )
    }

    fn quality(&self) -> String {
        let q = &self.figures["quality"];
        let next = |name: &str| -> Vec<String> {
            let of = |k: &str| match name {
                "served" => number(&q[k]["served"], 3),
                _ => number(&q[k]["references"][name], 3),
            };
            vec![of("hr10"), of("ndcg10")]
        };
        let like = |name: &str| -> Vec<String> {
            let of = |k: &str| match name {
                "served" => number(&q[k]["served"], 3),
                _ => number(&q[k]["references"][name], 3),
            };
            vec![of("auc"), of("uauc")]
        };
        let mut text = format!(
            "<h2>How good the lists are</h2><p>The last tenth of each person's events was held \
             out. Nobody was told of it, and all figures are about it ({people} people, {rated} \
             rated films). References see everybody's events in one place.</p><div class='wide'>\
             <table><tr><th>which film comes next?</th><th class='n'>HR@10</th><th \
             class='n'>NDCG@10</th></tr>",
            people = q["people"],
            rated = q["rated"],
        );
        text += &row("<b>lists of this run</b>", true, &next("served"));
        for (name, label) in [
            ("popularity", "what is popular"),
            ("item_knn", "neighbours of films (item KNN)"),
            ("ease", "EASE, a linear model"),
        ] {
            text += &row(label, false, &next(name));
        }
        text += "<tr><th colspan='3'>what each part adds: the same score without</th></tr>";
        for (name, label) in [
            ("without_transitions", "what follows what"),
            ("without_ease", "what is met together (EASE)"),
            ("without_popularity", "popularity"),
            ("without_content", "genres"),
        ] {
            text += &row(label, false, &next(name));
        }
        text += "<tr><th>liked or not?</th><th class='n'>AUC</th><th class='n'>UAUC</th></tr>";
        text += &row("<b>lists of this run</b>", true, &like("served"));
        for (name, label) in [
            ("item_mean", "the film's mean"),
            ("bias", "the person's and the film's level"),
            ("mf", "matrix factorisation"),
            ("history_rate", "the person's rate of likes"),
        ] {
            text += &row(label, false, &like(name));
        }
        text + "</table></div><p class='note'>HR@10: how often the next film is among the first \
                ten \
                of all films. NDCG@10: the same, and it counts where it stands. AUC: how often a \
                film that was liked gets a higher probability than one that was not (.5 is a \
                coin); \
                UAUC: the same within each person. The rows \u{201c}without\u{201d} see \
                everybody's events, too.</p>"
    }

    fn lists(&self) -> String {
        let mut text = String::from(
            "<h2>Lists, and why</h2><p>For somebody with a history, made on the device. Reasons \
             are \
             the events without which the film's score would fall most.</p>",
        );
        text += &list(&self.figures["list"]);
        text += "<p>For somebody who has just installed the app:</p>";
        for step in self.figures["newcomer"].as_array().into_iter().flatten() {
            let liked = step["liked"].as_array().into_iter().flatten();
            let liked: Vec<&str> = liked.filter_map(Value::as_str).collect();
            let after = match liked.as_slice() {
                [] => "before the first like".to_owned(),
                titles => format!("after likes of {}", titles.join(", ")),
            };
            let _ = write!(text, "<h3>{}</h3>{}", escape(&after), list(step));
        }
        text
    }

    fn cost(&self) -> String {
        let j = self.figures;
        let mb = |v: &Value| {
            let text = |b: f64| format!("{:.2} MB", b / 1e6);
            v.as_f64().map_or_else(|| "&ndash;".into(), text)
        };
        let rows = [
            ("tables that every device gets", mb(&j["snapshot_bytes"])),
            (
                "a list on the device, half of them / 99 of 100",
                format!(
                    "{} / {} ms",
                    number(&j["top_ms"]["p50"], 1),
                    number(&j["top_ms"]["p99"], 1)
                ),
            ),
            (
                "the first list, which unpacks the tables",
                format!("{} ms", number(&j["top_ms"]["first"], 0)),
            ),
            (
                "adapters: sent and received by a device that trains",
                format!(
                    "{} of updates, {} of hidden states",
                    mb(&j["bytes_per_client"]["updates"]),
                    mb(&j["bytes_per_client"]["activations"])
                ),
            ),
            (
                "memory: coordinator; a device that trains",
                format!(
                    "{} MiB; {} MiB",
                    number(&j["memory_mib"]["coordinator"], 0),
                    number(&j["memory_mib"]["client"], 0)
                ),
            ),
        ];
        let rows: String = rows
            .iter()
            .map(|(name, value)| row(name, false, std::slice::from_ref(value)))
            .collect();
        format!("<h2>What it costs</h2><div class='wide'><table>{rows}</table></div>")
    }

    fn deletion(&self) -> String {
        let j = self.figures;
        let d = &j["deletion"];
        let s = &d["snapshot"];
        let after = &j["quality_after_deletion"];
        let held_until = utc(s["held_until"].as_i64().unwrap_or(0));
        let mut text = format!(
            "<h2>The deletion</h2>{timeline}<p>People count in groups of {cell} who come and go \
             together, so that the tables before and after do not show one person's events. The \
             person's group left the sums; tables number {recalled} were recalled and number {new} \
             took their place. At most {devices} devices had to fetch them, {megabytes} MB \
             together. \
             A device that stays away must stop using the old ones on {held_until} (UTC). Lists of \
             the others are as good as before: HR@10 {before} before, {hr} after.</p>",
            timeline = timeline(d),
            cell = j["lists"]["cell"],
            recalled = s["recalled"],
            new = s["replaced_by"],
            devices = s["devices"],
            megabytes = number(&Value::from(s["bytes"].as_f64().unwrap_or(0.0) / 1e6), 0),
            before = number(&after["hr10_before"], 3),
            hr = number(&after["hr10"], 3),
        );
        text += "<div class='wide'><table><tr><th>part of the adapters</th><th>SHA-256 \
                 before</th><th>after</th></tr>";
        for shard in d["hashes"].as_array().into_iter().flatten() {
            let short =
                |k: &str| -> String { shard[k].as_str().unwrap_or("").chars().take(16).collect() };
            let _ = write!(
                text,
                "<tr><td>{}{}</td><td><code>{}</code></td><td><code>{}</code></td></tr>",
                shard["shard"],
                if shard["before"] == shard["after"] {
                    ", untouched"
                } else {
                    ", retrained without the person"
                },
                short("before"),
                short("after")
            );
        }
        text + "</table></div>"
    }

    fn adapters(&self) -> String {
        let j = self.figures;
        let series: Vec<(String, Vec<(f64, f64)>)> = self
            .losses
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(k, shard)| {
                let points = shard.as_array().into_iter().flatten().enumerate();
                let points = points.map(|(i, v)| (i as f64 + 1.0, v.as_f64().unwrap_or(f64::NAN)));
                (format!("part {k}"), points.collect())
            })
            .collect();
        format!(
            "<h2>The language model, a part of its own</h2><p>{clients} of the people also trained \
             small additions to a language model (adapters) together: the device runs the first \
             and \
             last layers, the coordinator the middle. The lists above do not use it: with so few \
             samples it is worse than the references, and its figures only show that everything \
             runs. Log loss of the same {samples} test samples: {untrained} untrained, {federated} \
             trained, {after} after the deletion.</p>{plot}",
            clients = j["training_clients"],
            samples = j["test_samples"]["federated"],
            untrained = number(&j["log_loss"]["untrained"], 3),
            federated = number(&j["log_loss"]["federated"], 3),
            after = number(&j["log_loss"]["after_deletion"], 3),
            plot = line_plot("Mean training loss per round", "round", &series),
        )
    }

    fn check(&self) -> String {
        let key = escape(self.figures["log_key"].as_str().unwrap_or(""));
        format!(
            "<h2>Check it yourself</h2><p>A receipt says what was done; a log that can only grow \
             (a Merkle tree with a signed head) holds a hash of it. With the log's key anybody can \
             verify both, without the operator:</p><pre>lethe-verify receipt receipt.json \
             --log-key \
             '{key}'</pre><p>An operator can add up and train again what remains, and compare \
             every \
             byte:</p><pre>lethe-admin replay --lists\nlethe-admin replay 3</pre><p>It proves that \
             the operator stated this deletion and entered it into the log, and that what is \
             served is what remains gives. <b>No receipt can prove that no copy exists \
             elsewhere.</b></p>"
        )
    }

    fn all(&self) -> String {
        format!(
            "<h2>Everything</h2><details><summary>All figures</summary><pre>{}</pre></details>\
             <details><summary>The receipt (it names the person)</summary><pre>{}</pre></details>\
             </html>",
            escape(self.table),
            escape(self.receipt)
        )
    }
}

fn list(page: &Value) -> String {
    let mut text = String::from("<ol class='list'>");
    for item in page["items"].as_array().into_iter().flatten() {
        let because = item["because"].as_array().into_iter().flatten();
        let because: Vec<&str> = because.filter_map(Value::as_str).collect();
        let like = item["like"].as_f64().unwrap_or(f64::NAN) * 100.0;
        let _ = write!(
            text,
            "<li>{} <span class='note'>{like:.0} % likely to be liked{}</span></li>",
            escape(item["title"].as_str().unwrap_or("?")),
            match because.as_slice() {
                [] => String::new(),
                titles => format!("; because of {}", escape(&titles.join(", "))),
            }
        );
    }
    text + "</ol>"
}

/// A line of the table: what, and who sees it.
struct Sees {
    what: &'static str,
    device: &'static str,
    coordinator: &'static str,
    tally: &'static str,
}

const APART: &[Sees] = &[
    Sees {
        what: "films, days, ratings and likes of the newest 200 events",
        device: "yes",
        coordinator: "no: sealed to the tally",
        tally: "<b>yes</b>, under a handle of 16 bytes; it computes with them",
    },
    Sees {
        what: "older events, times of day",
        device: "yes",
        coordinator: "no",
        tally: "no",
    },
    Sees {
        what: "lists, and what was done with them",
        device: "yes",
        coordinator: "no",
        tally: "no",
    },
    Sees {
        what: "the person's identifier, and when they contribute",
        device: "yes",
        coordinator: "yes",
        tally: "no identifier; when, yes",
    },
    Sees {
        what: "adapters: hidden states of prompts, their gradients",
        device: "yes, who trains",
        coordinator: "<b>yes</b>, and it can read tokens and likes from them",
        tally: "no",
    },
];

const EMBEDDED: &[Sees] = &[
    Sees {
        what: "films, days, ratings and likes of the newest 200 events",
        device: "yes",
        coordinator: "<b>yes</b>, sealed under a key of each person; it computes with them",
        tally: "",
    },
    Sees {
        what: "older events, times of day",
        device: "yes",
        coordinator: "no",
        tally: "",
    },
    Sees {
        what: "lists, and what was done with them",
        device: "yes",
        coordinator: "no",
        tally: "",
    },
    Sees {
        what: "the person's identifier",
        device: "no",
        coordinator: "yes",
        tally: "",
    },
    Sees {
        what: "adapters: hidden states of prompts, their gradients",
        device: "yes, who trains",
        coordinator: "<b>yes</b>, and it can read tokens and likes from them",
        tally: "",
    },
];

fn who_sees_what(figures: &Value) -> String {
    let sums = figures["sums"].as_str().unwrap_or_default();
    let apart = sums.starts_with("tally");
    let rows = if apart { APART } else { EMBEDDED };
    let cell = |text: &str| match text {
        "" => String::new(),
        text => format!("<td>{text}</td>"),
    };
    let row = |r: &Sees| {
        format!(
            "<tr>{}{}{}{}</tr>",
            cell(r.what),
            cell(r.device),
            cell(r.coordinator),
            cell(r.tally)
        )
    };
    let rows: String = rows.iter().map(row).collect();
    let said = match apart {
        true => {
            "This run used <code>sums = \"tally\"</code>: <b>nobody holds both names and \
             histories</b>, unless the two parties put together what they have."
        }
        false => {
            "This run used <code>sums = \"embedded\"</code>: <b>the operator's server holds and \
             computes with histories.</b>"
        }
    };
    let tally = if apart { "<th>the tally</th>" } else { "" };
    format!(
        "<h2>Who can see what</h2><p>{said}</p><div class='wide'><table><tr><th>what</th><th>the \
         device</th><th>the operator's server</th>{tally}</tr>{rows}</table></div>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_stands_alone_escapes_and_hides_the_receipt() {
        let figures = json!({
            "at": 1_700_000_000, "seed": 1, "build": "lethe <1>",
            "deletion": {
                "seconds_until_exact": 0.1, "seconds_until_whole": 0.9,
                "seconds_until_retrained": 2.0, "full_retrain_seconds": 9.0,
                "replay_equal": true, "lists_replay_equal": false,
            },
            "receipt": { "verified": true },
            "list": { "items": [{ "title": "A & B", "like": 0.5, "because": ["<C>"] }] },
        });
        let page = Report {
            figures: &figures,
            table: "a < b",
            losses: &json!([[0.7, null, 0.6]]),
            receipt: "{\"subject\": \"<script>\"}",
        }
        .page();
        assert!(page.contains("2023-11-14"), "the date in words");
        for escaped in [
            "a &lt; b",
            "&lt;script&gt;",
            "A &amp; B",
            "&lt;C&gt;",
            "lethe &lt;1&gt;",
        ] {
            assert!(page.contains(escaped), "{escaped}");
        }
        assert!(!page.contains("http"), "nothing is fetched");
        assert!(page.contains("gave the same bytes: <b><b>no</b></b>"));
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(
            page.matches("<div style='margin").count(),
            4,
            "the deletion in time"
        );
        // Whose receipt it is stands in a part that is closed.
        let named = page.find("subject").unwrap_or(0);
        let opened = page[..named].matches("<details>").count();
        let closed = page[..named].matches("</details>").count();
        assert_eq!(opened, closed + 1);
    }
}
