//! What the other commands say of lists: their status, a deletion's part, a person's.

use std::fmt::Write;
use std::process::ExitCode;

use lethe_proto::admin::{
    AdminReply, AdminRequest, DeletionLists, ListsLineage, ListsStatus, SnapshotShown,
};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::Output;
use crate::when::show_time;

/// How many people wait before a cell of this size opens (`docs/tally.md`); where people do not
/// count in cells the size is one, and nobody waits.
fn opens_at(cell: u64) -> u64 {
    match cell {
        0 | 1 => 1,
        n => n.saturating_mul(4),
    }
}

/// How lists are; none: the coordinator has none.
pub(crate) async fn status(desk: &Desk) -> anyhow::Result<Option<ListsStatus>> {
    match desk.ask(AdminRequest::Lists).await? {
        AdminReply::Lists(lists) => Ok(lists),
        other => unexpected(&other),
    }
}

/// The status for people, to be put below another text.
pub(crate) fn describe_status(s: &ListsStatus) -> String {
    let mut out = format!(
        "\nlists: sums are {}\n  {} people contribute: {} count in {} cell(s), {} wait (a cell of \
         {} opens when {} do; {} change together; pairs of fewer than {} people do not count)",
        s.sums,
        s.people,
        s.counting,
        s.cells,
        s.waiting,
        s.cell,
        opens_at(s.cell),
        s.changed,
        s.k
    );
    match (s.served, s.out_s) {
        (Some(no), _) => {
            let _ = write!(
                out,
                "\n  snapshot {no} is served, {} bytes",
                s.snapshot_bytes
            );
        }
        (None, Some(seconds)) => {
            let _ = write!(
                out,
                "\n  no snapshot is served: {} cell(s) are out for {seconds} s",
                s.cells_out
            );
        }
        (None, None) => {
            let _ = write!(
                out,
                "\n  no snapshot was published yet: until {} people wait nobody counts, and \
                 devices make lists by content",
                opens_at(s.cell)
            );
        }
    }
    if s.recalled > 0 {
        let _ = write!(out, "; those up to {} are recalled", s.recalled);
    }
    let _ = write!(out, "\n  key of snapshots: {}", s.key);
    if !s.gives_away.is_empty() {
        let _ = write!(out, "\n  WARNING: {}", s.gives_away);
    }
    out
}

/// What a deletion did to the lists.
pub(crate) async fn of_deletion(desk: &Desk, id: u64) -> anyhow::Result<Option<DeletionLists>> {
    match desk.ask(AdminRequest::ListsOf { deletion: id }).await? {
        AdminReply::ListsOf(lists) => Ok(lists),
        other => unexpected(&other),
    }
}

/// A deletion's part for people, to be put below another text.
pub(crate) fn describe_deletion(d: &DeletionLists) -> String {
    if !d.held {
        return "\n  lists: the sums held nothing of it".into();
    }
    let Some(recalled) = &d.recalled else {
        return "\n  lists: the contribution is destroyed; no snapshot that was \
                served then had it in it"
            .into();
    };
    let named = |s: &SnapshotShown| {
        let people = s.people;
        format!(
            "snapshot {} ({} of {people} people)",
            s.number,
            s.digest.short()
        )
    };
    let mut out = format!("\n  lists: {} is recalled", named(recalled));
    match (&d.replaced_by, d.seconds_until_whole) {
        (Some(new), Some(seconds)) => {
            let _ = write!(out, ", {} served after {seconds:.3} s", named(new));
        }
        _ => out += "; the next one is being made",
    }
    // Unknown where the snapshot was recalled for somebody else already.
    let megabytes = match d.bytes {
        0 => String::new(),
        bytes => format!(", {:.1} MB", bytes as f64 / 1e6),
    };
    let _ = write!(
        out,
        "\n  at most {} device(s) fetch it{megabytes}; one that stays away may use the old one \
         until {}",
        d.devices,
        show_time(d.held_until)
    );
    out
}

/// What requests would do to the lists; empty: there are none.
pub(crate) async fn forecast(
    desk: &Desk,
    requests: Vec<DeletionRequest>,
) -> anyhow::Result<String> {
    match desk.ask(AdminRequest::ListsForecast { requests }).await? {
        AdminReply::ListsForecast(text) => Ok(text),
        other => unexpected(&other),
    }
}

/// What the sums have of a person; none: the coordinator has no lists.
pub(crate) async fn lineage(
    desk: &Desk,
    subject: SubjectId,
) -> anyhow::Result<Option<ListsLineage>> {
    if status(desk).await?.is_none() {
        return Ok(None);
    }
    match desk.ask(AdminRequest::ListsLineage { subject }).await? {
        AdminReply::ListsLineage(lineage) => Ok(Some(lineage)),
        other => unexpected(&other),
    }
}

/// A person's part for people, to be put below another text.
pub(crate) fn describe_lineage(l: &ListsLineage) -> String {
    match (l.contributes, l.counts, l.snapshot) {
        (false, ..) => "\nlists: contributes nothing".into(),
        (true, false, _) => "\nlists: contributes, and waits for a cell".into(),
        (true, true, None) => format!("\nlists: counts in a cell of {}, in no snapshot", l.cell),
        (true, true, Some(no)) => {
            format!("\nlists: counts in a cell of {}, in snapshot {no}", l.cell)
        }
    }
}

/// `lethe-admin replay --lists`.
pub(crate) async fn replay(desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let r = match desk.ask(AdminRequest::ListsReplay).await? {
        AdminReply::ListsReplayed(r) => r,
        other => return unexpected(&other),
    };
    let all = [r.memory, r.folder, r.stated];
    let differs = all.contains(&Some(false));
    let compared = all.iter().flatten().count();
    let verdict = match (differs, compared) {
        (true, _) => "DIFFERENT",
        (false, 0) => "NOTHING TO COMPARE WITH",
        _ => "EQUAL",
    };
    let said = |equal: Option<bool>| match equal {
        Some(true) => "the same bytes",
        Some(false) => "other bytes",
        None => "none",
    };
    let text = format!(
        "{verdict}: {} people folded again from what is sealed\n  sums {}\n  in memory: {}\n  on \
         disk: {}\n  signed: {}",
        r.people,
        r.digest.hex(),
        said(r.memory),
        said(r.folder),
        said(r.stated)
    );
    let value = json!({
        "equal": !differs && compared > 0, "people": r.people, "sums": r.digest.hex(),
        "memory": r.memory, "folder": r.folder, "stated": r.stated,
        "snapshot": r.snapshot,
    });
    out.show(&text, &value)?;
    Ok(match differs || compared == 0 {
        true => ExitCode::from(3),
        false => ExitCode::SUCCESS,
    })
}
