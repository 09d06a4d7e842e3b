//! `lethe-admin operators`: who they are, and the removal of one.

use std::process::ExitCode;

use anyhow::bail;
use lethe_proto::admin::{AdminReply, AdminRequest, OperatorState};
use serde_json::json;

use super::policy::describe;
use crate::desk::{Desk, unexpected};
use crate::output::{Output, table};
use crate::when::{now, show_time};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Withdraw this operator's certificate: its fingerprint, or the beginning of it.
    #[arg(long)]
    remove: Option<String>,
}

fn row(o: &OperatorState) -> Vec<String> {
    let time = |t: Option<u64>| t.map_or("?".to_owned(), show_time);
    let expired = o.expires.is_some_and(|t| t < now());
    let note = match (expired, o.you) {
        (true, _) => "expired",
        (_, true) => "you",
        _ => "",
    };
    vec![
        o.fingerprint.short(),
        time(o.since),
        time(o.expires),
        note.to_owned(),
    ]
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let all = match desk.ask(AdminRequest::Operators).await? {
        AdminReply::Operators(all) => all,
        other => return unexpected(&other),
    };
    let Some(wanted) = &args.remove else {
        let head = ["operator", "since (UTC)", "until (UTC)", ""];
        out.show(&table(&head, all.iter().map(row)), &all)?;
        return Ok(ExitCode::SUCCESS);
    };
    let fits = |o: &&OperatorState| {
        o.fingerprint
            .hex()
            .starts_with(&wanted.to_ascii_lowercase())
    };
    let found: Vec<&OperatorState> = all.iter().filter(fits).collect();
    let [one] = found[..] else {
        bail!(
            "{} operators have a fingerprint that begins with {wanted}: `lethe-admin operators` \
             lists them",
            found.len()
        );
    };
    let fingerprint = one.fingerprint;
    match desk
        .ask(AdminRequest::RemoveOperator { fingerprint })
        .await?
    {
        AdminReply::Done => {
            let text = format!("operator {} is removed", fingerprint.short());
            out.show(&text, &json!({ "removed": fingerprint }))?;
        }
        AdminReply::Proposed(p) => out.show(&describe(&p), &json!({ "proposal": p }))?,
        other => return unexpected(&other),
    }
    Ok(ExitCode::SUCCESS)
}
