//! The one table that the demo prints.

use std::fmt::Write;

use serde_json::Value;

fn number(v: &Value, digits: usize) -> String {
    v.as_f64()
        .map_or_else(|| "-".into(), |x| format!("{x:.digits$}"))
}

/// Quality, latency and size of lists.
fn lists(j: &Value, line: &mut impl FnMut(&str, String)) {
    let q = &j["quality"];
    let figure = |of: &str, name: &str| match name {
        "served" => number(&q[of]["served"], 3),
        _ => number(&q[of]["references"][name], 3),
    };
    let next = |name: &str| {
        format!(
            "HR@10 {}   NDCG@10 {}",
            figure("hr10", name),
            figure("ndcg10", name)
        )
    };
    let like = |name: &str| {
        format!(
            "AUC {}   UAUC {}",
            figure("auc", name),
            figure("uauc", name)
        )
    };
    line("lists: the next item", next("served"));
    for (name, label) in [
        ("popularity", "popularity"),
        ("item_knn", "item neighbours"),
        ("ease", "EASE"),
    ] {
        line(&format!("  reference: {label}"), next(name));
    }
    line("lists: like or dislike", like("served"));
    for (name, label) in [
        ("item_mean", "item mean"),
        ("bias", "user + item bias"),
        ("mf", "matrix factorisation"),
        ("history_rate", "own rate of the last ten"),
    ] {
        line(&format!("  reference: {label}"), like(name));
    }
    let after = &j["quality_after_deletion"];
    line(
        "lists after the deletion: the next item",
        format!(
            "HR@10 {}   NDCG@10 {}   (before, of the same people: {}, {})",
            number(&after["hr10"], 3),
            number(&after["ndcg10"], 3),
            number(&after["hr10_before"], 3),
            number(&after["ndcg10_before"], 3)
        ),
    );
    let top = &j["top_ms"];
    line(
        "a list on the device",
        format!(
            "{} ms (p99 {}); the first one, which decodes the tables, {} ms",
            number(&top["p50"], 1),
            number(&top["p99"], 1),
            number(&top["first"], 0)
        ),
    );
    let megabytes = j["snapshot_bytes"].as_f64().map(|b| b / 1e6);
    line(
        "the tables that every device gets",
        format!("{} MB", number(&serde_json::json!(megabytes), 2)),
    );
}

/// The figures as a table for people.
pub(crate) fn render(j: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<44} {value}");
    };
    let samples = |key: &str| {
        j["test_samples"][key]
            .as_u64()
            .map_or(String::new(), |n| format!("   ({n} test samples)"))
    };
    let both = |key: &str| {
        format!(
            "AUC {}   UAUC {}{}",
            number(&j["auc"][key], 4),
            number(&j["uauc"][key], 4),
            samples(key)
        )
    };
    lists(j, &mut line);
    line("language model alone, untrained", both("untrained"));
    if j["auc"]["central"].is_number() {
        line("centralised reference", both("central"));
    }
    line("  adapters: federated, split, sharded", both("federated"));
    line("  adapters after the deletion", both("after_deletion"));
    let loss = |k: &str| number(&j["log_loss"][k], 3);
    line(
        "  log loss on the same test samples",
        format!(
            "{} untrained, {} federated, {} after the deletion",
            loss("untrained"),
            loss("federated"),
            loss("after_deletion")
        ),
    );
    for (name, label) in [
        ("item_mean", "item mean"),
        ("bias", "user + item bias"),
        ("mf", "matrix factorisation"),
        ("history_rate", "like-rate of the prompt"),
    ] {
        let (a, u) = (
            &j["auc"]["references"][name],
            &j["uauc"]["references"][name],
        );
        line(
            &format!("  reference: {label}"),
            format!("AUC {}   UAUC {}", number(a, 4), number(u, 4)),
        );
    }
    let spread = |v: &Value| {
        format!(
            "mean {}, std {}, worst tenth {}",
            number(&v["mean"], 3),
            number(&v["std"], 3),
            number(&v["worst_decile"], 3)
        )
    };
    line("client AUC", spread(&j["clients"]["auc"]));
    if j["fedavg"].is_object() {
        line("client AUC, FedAvg", spread(&j["fedavg"]["clients"]["auc"]));
        line(
            "FedAvg",
            format!(
                "AUC {}   UAUC {}",
                number(&j["fedavg"]["auc"], 4),
                number(&j["fedavg"]["uauc"], 4)
            ),
        );
    }
    let mib = |v: &Value| {
        v.as_f64()
            .map_or_else(|| "-".into(), |b| format!("{:.1} MiB", b / 1048576.0))
    };
    let bytes = &j["bytes_per_client"];
    line(
        "bytes per client, both ways",
        format!(
            "{} updates, {} activations",
            mib(&bytes["updates"]),
            mib(&bytes["activations"])
        ),
    );
    let memory = &j["memory_mib"];
    line(
        "peak memory",
        format!(
            "coordinator {} MiB; one client, training, {} MiB",
            number(&memory["coordinator"], 0),
            number(&memory["client"], 0)
        ),
    );
    let d = &j["deletion"];
    line(
        "deletion: until the served model was exact",
        format!("{} s", number(&d["seconds_until_exact"], 3)),
    );
    line(
        "deletion: until lists are whole again",
        format!("{} s", number(&d["seconds_until_whole"], 3)),
    );
    line(
        "deletion: until retrained and released",
        format!("{} s", number(&d["seconds_until_retrained"], 1)),
    );
    line(
        "full retraining of all shards",
        format!("{} s", number(&d["full_retrain_seconds"], 1)),
    );
    let yes = |v: &Value| {
        if v.as_bool() == Some(true) {
            "yes"
        } else {
            "NO"
        }
        .to_owned()
    };
    line(
        "retrained = replay from scratch, byte for byte",
        yes(&d["replay_equal"]),
    );
    line(
        "negative control: without retraining, different",
        yes(&d["negative_control"]),
    );
    line(
        "sums folded again from what remains, byte for byte",
        yes(&d["lists_replay_equal"]),
    );
    line("other shards unchanged", yes(&d["other_shards_unchanged"]));
    line(
        "receipt verified offline; altered one refused",
        yes(&j["receipt"]["verified"]),
    );
    for shard in j["deletion"]["hashes"].as_array().into_iter().flatten() {
        let short = |k: &str| {
            shard[k]
                .as_str()
                .map_or_else(|| "-".into(), |h| h.chars().take(16).collect::<String>())
        };
        line(
            &format!("  shard {} SHA-256 before, after", shard["shard"]),
            format!("{}  {}", short("before"), short("after")),
        );
    }
    let s = &j["seconds"];
    line(
        "seconds",
        format!(
            "training {}, one score {}, in all {}",
            number(&s["train"], 0),
            number(&s["score_one"], 3),
            number(&s["total"], 0)
        ),
    );
    out
}
