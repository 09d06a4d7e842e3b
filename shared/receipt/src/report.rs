//! A verified receipt for people: as text and as a page to print.

use std::fmt::Write;

use crate::hex::hex;
use crate::receipt::{Effect, Fate, Receipt};
use crate::statement::{Cost, EpochStood, Removed, StatedLists, Statement};

/// What verification has shown.
const PROVEN: [&str; 3] = [
    "the log's operator stated this deletion, and the statement is an entry of the signed log;",
    "before the deletion the log had committed to what the shard was trained on, and the person's \
     record was in it;",
    "before the retraining the log committed to what it was trained on, and that record is not in \
     it, or as stated above.",
];

/// What it has not.
const NOT_PROVEN: [&str; 3] = [
    "that the operator trained on what it committed to: `lethe-admin replay` retrains the shard \
     and compares byte for byte;",
    "that nothing of the person was committed to under another salt, or hidden in a list that is \
     not sorted;",
    "that no copy exists outside the log's system: no receipt can prove that.",
];

/// The first line: what happened, or that nothing did.
fn heading(r: &Receipt) -> String {
    match r.effect() {
        Effect::Done => deed(r),
        Effect::NothingRemoved => format!("nothing was removed: {}", nothing(r)),
    }
}

/// Why a genuine receipt is about nothing.
fn nothing(r: &Receipt) -> String {
    let who = person(r);
    match r.statement.kind.as_str() {
        "erase-items" => format!(
            "the device of {who} has no event with items {}",
            r.items.join(", ")
        ),
        "withdraw-consent" => format!(
            "the device of {who} has no event at or after {} (seconds since 1970)",
            r.from.unwrap_or(0)
        ),
        "takedown" => format!("no device has an event with items {}", r.items.join(", ")),
        _ => format!("nothing was held of {who}"),
    }
}

fn person(r: &Receipt) -> String {
    if r.subject.is_empty() {
        "everybody".to_owned()
    } else {
        format!("subject {}", r.subject)
    }
}

/// What was done.
fn deed(r: &Receipt) -> String {
    let who = person(r);
    let items = r.items.join(", ");
    let left_out = r.statement.removed.map_or(0, |r| r.silent + r.unconsented);
    match r.statement.kind.as_str() {
        // A device that has not erased may still hold what was named; the model holds none of it.
        "erase-items" | "withdraw-consent" if left_out > 0 => format!(
            "all that was learned from {who} was deleted, since the device has not erased: it may \
             still hold what the request names"
        ),
        "takedown" if left_out > 0 => format!(
            "items {items} were deleted for everybody whose device answered; all that was learned \
             from the {left_out} other(s) was deleted"
        ),
        "erase-items" => format!("items {items} of {who} were deleted"),
        "withdraw-consent" => format!(
            "data of {who} from {} (seconds since 1970) on was deleted",
            r.from.unwrap_or(0)
        ),
        "restrict" => format!("data of {who} is no longer used; it is kept"),
        "takedown" => format!("items {items} were deleted for {who}"),
        _ => format!("all data of {who} was deleted"),
    }
}

fn removed(r: &Removed) -> String {
    let mut text = format!(
        "{} event(s), as {} device(s) reported",
        r.events, r.answered
    );
    if r.silent > 0 {
        let _ = write!(text, "; {} device(s) did not answer", r.silent);
    }
    if r.unconsented > 0 {
        let _ = write!(text, "; {} wait(s) for the person's consent", r.unconsented);
    }
    text
}

fn cost(c: &Cost) -> String {
    let seconds = c.milliseconds as f64 / 1000.0;
    format!(
        "{} rounds, {} client updates, {:.1} MB, {seconds:.1} s",
        c.rounds,
        c.client_rounds,
        c.bytes as f64 / 1e6
    )
}

/// What became of the lists.
fn lists_facts(l: &StatedLists) -> Vec<(String, String)> {
    let fact = |k: &str, v: String| (k.to_owned(), v);
    if !l.held {
        return vec![fact("lists", "the sums held nothing of it".into())];
    }
    let (Some(old), Some(new)) = (&l.recalled, &l.replaced_by) else {
        let text = "the contribution was destroyed; no snapshot that was served then had it in it";
        return vec![fact("lists", text.into())];
    };
    let change = format!(
        "snapshot {} ({:.8}, {} people) recalled, {} ({:.8}, {} people) served after {} ms",
        old.number, old.sha256, old.people, new.number, new.sha256, new.people, l.whole_after_ms
    );
    // Unknown where the snapshot was recalled for somebody else already.
    let fetched = match l.bytes {
        0 => String::new(),
        bytes => format!(", {:.1} MB to fetch", bytes as f64 / 1e6),
    };
    let devices = format!(
        "at most {}{fetched}; one that stayed away might use the old one until {} \
         (seconds since 1970)",
        l.devices, l.held_until
    );
    vec![fact("lists", change), fact("devices with lists", devices)]
}

/// Which party vouches for what, where a tally of its own holds the sums.
fn parties(r: &Receipt) -> Vec<(String, String)> {
    let (Ok(Some(vouched)), Some(lists)) = (r.vouched(), &r.statement.lists) else {
        return vec![];
    };
    let has = match vouched.handles.first().map(|v| v.since) {
        None => "the items are not in what it serves".to_owned(),
        Some(None) => "it has nothing under the handle of this person".to_owned(),
        Some(Some(since)) => {
            format!("it has nothing older than {since}, when the person contributed again")
        }
    };
    let serves = match &vouched.serves {
        Some(s) => format!("snapshot {} ({:.8})", s.number, hex(&s.digest)),
        None => "nothing".to_owned(),
    };
    let tally = format!(
        "at {} (seconds since 1970) {has}; snapshots up to {} are recalled, it serves {serves}; \
         signed with {}",
        vouched.at, vouched.recalled, lists.key
    );
    let handle = vouched.handles.first().map_or(String::new(), |v| {
        format!(
            "; and that the handle {:.8} is this person's",
            hex(&v.handle)
        )
    });
    let coordinator = format!(
        "adapters, releases, keys, who this is, and which snapshot devices were given{handle}"
    );
    vec![
        ("the coordinator vouches for".to_owned(), coordinator),
        ("the tally vouches that".to_owned(), tally),
    ]
}

/// What noise on the sums has cost, where there is noise.
fn noise(r: &Receipt) -> Option<(String, String)> {
    let stated = r.noise_stated().ok().flatten()?;
    let noise = stated.noise?;
    let millionths = |n: u64| n as f64 / 1e6;
    let text = format!(
        "snapshot {} has epsilon {}; {} snapshots have spent {} together, at delta {:e}",
        stated.number,
        millionths(noise.epsilon_millionths),
        noise.releases,
        millionths(noise.spent_millionths),
        noise.delta_trillionths as f64 / 1e12,
    );
    Some(("noise on the sums".to_owned(), text))
}

/// Whose signatures the head carries, beside the log's.
fn witnesses(r: &Receipt) -> Option<(String, String)> {
    let names = r.witnesses.iter().filter_map(|key| key.split('+').next());
    let names: Vec<&str> = names.collect();
    let text = format!(
        "{}; whether they are to be trusted, a policy says (`lethe-verify receipt --policy`)",
        names.join(", ")
    );
    (!names.is_empty()).then(|| ("the head is also signed by".to_owned(), text))
}

/// Each epoch that the deletion is about, with recipe, base model and version of the catalogue.
fn epochs_facts(s: &Statement) -> Vec<(String, String)> {
    let mut out = vec![];
    for e in s.epochs.iter().flatten() {
        let stood = match e.stood {
            EpochStood::Served => "served",
            EpochStood::Follows => "was joined or trained, and not served yet",
            EpochStood::Ended => "had ended",
        };
        let mut text = format!(
            "{stood}; recipe {:.16}, base model {:.16}, version {} of the catalogue",
            e.recipe, e.base_model, e.catalogue
        );
        if !e.catalogue_digest.is_empty() {
            let _ = write!(text, " ({:.8})", e.catalogue_digest);
        }
        for shard in &e.rolled_back {
            let _ = write!(
                text,
                "; shard {} rolled back to {:.8}, from stage {}",
                shard.shard, shard.rolled_back_to, shard.from_stage
            );
        }
        out.push((format!("epoch {}", e.epoch), text));
    }
    out
}

/// Facts as label and value.
fn facts(r: &Receipt) -> Vec<(String, String)> {
    let s = &r.statement;
    let fact = |k: &str, v: String| (k.to_owned(), v);
    let mut out = vec![
        fact(
            "deletion",
            format!("{}, in a batch of {}", s.deletion, s.batch),
        ),
        fact(
            "accepted",
            format!("{} (seconds since 1970)", s.accepted_at),
        ),
        fact(
            "served model free of the data after",
            format!("{} ms", s.exact_after_ms),
        ),
        fact(
            "retrained and released after",
            format!("{} ms, as release {}", s.retrained_after_ms, s.release),
        ),
        fact("encryption keys destroyed", s.keys_destroyed.to_string()),
    ];
    if let Some(r) = s.removed {
        out.push(fact("removed by devices", removed(&r)));
    }
    if let Some(l) = &s.lists {
        out.extend(lists_facts(l));
    }
    for a in &s.affected {
        let change = format!(
            "{:.8} -> {:.8} at once -> {:.8} after {} rounds from stage {}",
            a.before, a.rolled_back_to, a.after, a.rounds, a.from_stage
        );
        out.push((format!("shard {}", a.shard), change));
    }
    for (shard, hash) in &s.untouched {
        out.push((format!("shard {shard}"), format!("{hash:.8} untouched")));
    }
    out.extend(witnesses(r));
    out.extend(epochs_facts(s));
    match r.records.as_ref().map(|p| (&p.fate, p)) {
        Some((fate, p)) => {
            let (b, a) = (&p.before.training, &p.after.training);
            let what = match fate {
                Fate::Absent(_) => "not among",
                Fate::Replaced(_) => "with other data among",
                Fate::Unchanged(_) => {
                    "with the same data (what was erased was not trained on) among"
                }
            };
            let text = format!(
                "among the {} of shard {} before (log entry {}), {what} the {} after (entry {})",
                b.count, b.shard, p.before.index, a.count, p.after.index
            );
            out.push(fact("the person's record", text));
        }
        None => out.push(fact(
            "the person's record",
            "no proof: no shard had been trained on it alone".into(),
        )),
    }
    out.extend(noise(r));
    out.extend(parties(r));
    out.push(fact("forecast", cost(&s.forecast)));
    out.push(fact("actual", cost(&s.actual)));
    out.push(fact(
        "recipe, base model",
        format!("{:.16}, {:.16}; {}", s.recipe, s.base_model, s.build),
    ));
    out.push(fact(
        "log entry",
        format!(
            "{} of {}",
            r.index,
            r.checkpoint.lines().nth(1).unwrap_or("?")
        ),
    ));
    out
}

/// The receipt as text; `proven` and not proven at the end. Only for receipts that
/// [`crate::receipt::verify`] returned.
pub fn text(r: &Receipt) -> String {
    let mut out = match r.effect() {
        Effect::Done => format!("VERIFIED: {}", heading(r)),
        Effect::NothingRemoved => format!(
            "NOTHING WAS REMOVED (the receipt is genuine): {}",
            nothing(r)
        ),
    };
    for (k, v) in facts(r) {
        let _ = write!(out, "\n  {k}: {v}");
    }
    out += "\nproven:";
    let proven = if r.records.is_some() {
        &PROVEN[..]
    } else {
        &PROVEN[..1]
    };
    proven.iter().for_each(|p| out += &format!("\n  - {p}"));
    out += "\nnot proven:";
    NOT_PROVEN.iter().for_each(|p| out += &format!("\n  - {p}"));
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The receipt as one HTML page without scripts or outside resources, to be printed.
pub fn html(r: &Receipt) -> String {
    let title = escape(&heading(r));
    let rows: String = facts(r)
        .iter()
        .map(|(k, v)| {
            format!(
                "<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n",
                escape(k),
                escape(v)
            )
        })
        .collect();
    let list = |items: &[&str]| {
        items
            .iter()
            .map(|p| format!("<li>{}</li>\n", escape(p)))
            .collect::<String>()
    };
    let proven = if r.records.is_some() {
        &PROVEN[..]
    } else {
        &PROVEN[..1]
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Deletion receipt: \
         {title}</title>\n\
         <style>body{{font:16px/1.5 sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem}}\
         th{{text-align:left;vertical-align:top;padding-right:1rem;font-weight:600}}\
         td{{overflow-wrap:anywhere}}pre{{white-space:pre-wrap;font-size:12px}}</style></head>\n\
         <body><h1>Deletion receipt</h1>\n<p>{title}.</p>\n<table>\n{rows}</table>\n\
         <h2>Proven by this receipt</h2>\n<ul>\n{}</ul>\n<h2>Not proven by it</h2>\n<ul>\n{}</ul>\n\
         <h2>Signed head of the log</h2>\n<pre>{}</pre>\n\
         <p>This page shows a receipt that was verified; the JSON file is the receipt. Verify it \
         with <code>lethe-verify receipt FILE --log-key KEY</code>.</p></body></html>\n",
        list(proven),
        list(&NOT_PROVEN),
        escape(&r.checkpoint)
    )
}
