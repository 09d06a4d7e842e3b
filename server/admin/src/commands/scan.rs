//! `lethe-admin scan`: is anything of a person left?

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use lethe_proto::admin::{AdminReply, AdminRequest, Scanned};
use lethe_scan::{Report, ScanError, Scanner, Secret};
use lethe_transport::place::Place;
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The person (may be repeated): an identifier of at least 4 bytes, since shorter ones are in
    /// any file by chance.
    #[arg(long, required_unless_present_any = ["text", "tokens"])]
    subject: Vec<String>,
    /// Any other text of at least 4 bytes, such as a title or an address (may be repeated).
    #[arg(long)]
    text: Vec<String>,
    /// At least 4 token ids to search for in the files, as numbers with commas (may be repeated).
    #[arg(long)]
    tokens: Vec<String>,
    /// Data folder, backup, log file or folder of temporary files to search (may be repeated).
    paths: Vec<PathBuf>,
    /// Search the files only; do not ask the coordinator.
    #[arg(long)]
    offline: bool,
}

pub(crate) async fn run(
    args: &Args,
    home: &std::path::Path,
    server: Option<&Place>,
    out: &Output,
) -> anyhow::Result<ExitCode> {
    let texts: Vec<String> = args.subject.iter().chain(&args.text).cloned().collect();
    let mut secrets: Vec<Secret> = texts.iter().cloned().map(Secret::Text).collect();
    for t in &args.tokens {
        secrets.push(Secret::Tokens(
            t.split(',')
                .map(|n| n.trim().parse())
                .collect::<Result<_, _>>()?,
        ));
    }
    let scanner = Scanner::new(&secrets).map_err(|e| match e {
        ScanError::TooShort(..) => anyhow::Error::from(e).context(
            "nothing was searched; of a person with a short identifier search another text \
             (--text), and see `lethe-admin lineage --subject ID` for what is kept",
        ),
        other => other.into(),
    })?;
    let report = scanner.scan(&args.paths)?;
    let records = if args.offline || texts.is_empty() {
        None
    } else {
        let desk = Desk::open(home, server).await?;
        let reply = desk.ask(AdminRequest::Scan { texts }).await?;
        desk.close().await;
        match reply {
            AdminReply::Scanned(s) => Some(s),
            AdminReply::Proposed(p) => {
                let text = format!(
                    "{}\nThe records are searched when they have agreed, and who agrees last is \
                     shown what was found. `--offline` searches the files alone",
                    super::policy::describe(&p)
                );
                out.show(&text, &json!({ "files": report, "proposal": p }))?;
                return Ok(ExitCode::SUCCESS);
            }
            other => return unexpected(&other),
        }
    };
    let clean = report.found == 0 && records.as_ref().is_none_or(|r| r.hits.is_empty());
    out.show(
        &describe(&report, records.as_ref(), clean),
        &json!({ "clean": clean, "files": report, "records": records }),
    )?;
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

fn describe(report: &Report, records: Option<&Scanned>, clean: bool) -> String {
    let mut text = format!(
        "{}\nfiles: {} read, {} bytes, {} patterns (raw, UTF-16, base64, hex, percent, tokens), \
         {} hits",
        if clean { "NOTHING FOUND" } else { "FOUND" },
        report.files,
        report.bytes,
        report.patterns,
        report.found
    );
    for h in report.hits.iter().take(50) {
        let _ = write!(
            text,
            "\n  {} at byte {}, as {}",
            h.path.display(),
            h.offset,
            h.form
        );
    }
    match records {
        None => text += "\nthe coordinator's records were not searched",
        Some(r) => text += &format!("\n{}", describe_records(r)),
    }
    text + "\nfiles of the data folder are encrypted: what they hold is searched through the \
            coordinator"
}

fn describe_records(r: &Scanned) -> String {
    let mut text = format!(
        "the coordinator's records, decrypted: {} searched",
        r.records
    );
    for (table, n) in &r.hits {
        let _ = write!(text, "\n  {n} in table {table}");
    }
    let _ = write!(
        text,
        "\n  {} in requests and receipts of deletions (the evidence, kept on purpose)",
        r.evidence
    );
    text
}

/// What a search of the records has found that several operators agreed to.
pub(crate) fn of_records(r: &Scanned, out: &Output) -> anyhow::Result<ExitCode> {
    let clean = r.hits.is_empty();
    let heading = if clean { "NOTHING FOUND" } else { "FOUND" };
    let text = format!("{heading}\n{}", describe_records(r));
    out.show(&text, &json!({ "clean": clean, "records": r }))?;
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}
