//! `lethe-admin import`: a CSV batch with a result code per row, executed with one plan.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use serde::{Deserialize, Serialize};

use super::forget::{Outcome, ask};
use crate::desk::Desk;
use crate::output::{Output, table};
use crate::when::parse_time;

/// Requests in one plan.
const BATCH: usize = 500;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// File with the columns request_id, subject, action (erase, erase-items, withdraw, restrict),
    /// items (separated by spaces), from (2026-11-23, or seconds since 1970). Only subject is
    /// required.
    csv: PathBuf,
    /// Write the results here, as CSV with the columns request_id, subject, code, deletion,
    /// message.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only say what would be accepted.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    request_id: String,
    subject: String,
    #[serde(default)]
    action: String,
    #[serde(default)]
    items: String,
    #[serde(default)]
    from: String,
}

/// What became of a row. Codes: `accepted`, `proposed` (others have to agree), `would-accept` (dry
/// run), `duplicate`, `invalid`, `refused`.
#[derive(Serialize)]
struct RowResult {
    request_id: String,
    subject: String,
    code: &'static str,
    deletion: Option<u64>,
    message: String,
}

fn request(row: &Row) -> anyhow::Result<DeletionRequest> {
    let subject = SubjectId::new(row.subject.trim())?;
    let items: Vec<String> = row.items.split_whitespace().map(str::to_owned).collect();
    Ok(match row.action.trim() {
        "" | "erase" => DeletionRequest::Erase { subject },
        "erase-items" if !items.is_empty() => DeletionRequest::EraseItems { subject, items },
        "erase-items" => anyhow::bail!("erase-items without items"),
        "withdraw" => DeletionRequest::Withdraw {
            subject,
            from: parse_time(row.from.trim()).map_err(anyhow::Error::msg)?,
        },
        "restrict" => DeletionRequest::Restrict { subject },
        other => {
            anyhow::bail!("action {other:?}: expected erase, erase-items, withdraw or restrict")
        }
    })
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_path(&args.csv)
        .with_context(|| args.csv.display().to_string())?;
    let (mut results, mut good, mut seen): (
        Vec<RowResult>,
        Vec<(usize, DeletionRequest)>,
        BTreeSet<String>,
    ) = Default::default();
    for row in reader.deserialize::<Row>() {
        let mut r = RowResult {
            request_id: String::new(),
            subject: String::new(),
            code: "invalid",
            deletion: None,
            message: String::new(),
        };
        match row.map_err(anyhow::Error::from) {
            Err(e) => r.message = e.to_string(),
            Ok(row) => {
                (r.request_id, r.subject) = (row.request_id.clone(), row.subject.trim().to_owned());
                match request(&row) {
                    Err(e) => r.message = e.to_string(),
                    Ok(_) if !seen.insert(r.subject.clone()) => {
                        r.code = "duplicate";
                        r.message =
                            "the subject is in an earlier row; ask again when that one is done"
                                .into();
                    }
                    // Each alone first: a row that the coordinator refuses must not hold up the
                    // others.
                    Ok(request) => match ask(desk, vec![request.clone()], true).await {
                        Err(e) => (r.code, r.message) = ("refused", format!("{e:#}")),
                        Ok(_) => {
                            r.code = "would-accept";
                            good.push((results.len(), request));
                        }
                    },
                }
            }
        }
        results.push(r);
    }
    if !args.dry_run {
        for batch in good.chunks(BATCH) {
            match ask(desk, batch.iter().map(|(_, r)| r.clone()).collect(), false).await? {
                Outcome::Planned(planned) => {
                    for ((at, _), id) in batch.iter().zip(planned.ids) {
                        (results[*at].code, results[*at].deletion) = ("accepted", Some(id));
                    }
                }
                Outcome::Proposed(p) => {
                    for (at, _) in batch {
                        results[*at].code = "proposed";
                        results[*at].message =
                            format!("waits for other operators as proposal {}", p.id);
                    }
                }
            }
        }
    }
    if let Some(path) = &args.out {
        let mut writer =
            csv::Writer::from_path(path).with_context(|| path.display().to_string())?;
        results.iter().try_for_each(|r| writer.serialize(r))?;
        writer.flush()?;
    }
    let row = |r: &RowResult| {
        let id = r.deletion.map_or("-".to_owned(), |d| d.to_string());
        vec![
            r.request_id.clone(),
            r.subject.clone(),
            r.code.to_owned(),
            id,
            r.message.clone(),
        ]
    };
    out.show(
        &table(
            &["request", "subject", "code", "deletion", "message"],
            results.iter().map(row),
        ),
        &results,
    )?;
    let all = results
        .iter()
        .all(|r| matches!(r.code, "accepted" | "proposed" | "would-accept"));
    Ok(if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
