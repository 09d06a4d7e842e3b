//! `lethe-admin policy`, `approve`, `cancel` and `actions`.

use std::path::Path;
use std::process::ExitCode;

use lethe_proto::admin::{AdminReply, AdminRequest, ProposalState};
use lethe_proto::ids::Digest;
use serde_json::json;

use super::forget::{outcome, show};
use crate::desk::{Desk, unexpected};
use crate::output::{Output, table};
use crate::when::show_time;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Let this many operators agree to every deletion, invitation of an operator or of another
    /// device, revocation, search of the records, withdrawal of somebody else's proposal, and to a
    /// change of this number.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    approvals: Option<u8>,
}

#[derive(clap::Args)]
pub(crate) struct Which {
    /// Number of the proposal; `lethe-admin policy` lists them.
    proposal: u64,
}

/// A proposal, for people.
pub(crate) fn describe(p: &ProposalState) -> String {
    format!(
        "proposal {}: {}\n  waits for {} more operator(s): lethe-admin approve {}",
        p.id, p.what, p.missing, p.id
    )
}

pub(crate) async fn policy(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let approvals = match desk
        .ask(AdminRequest::Policy {
            approvals: args.approvals,
        })
        .await?
    {
        AdminReply::Policy { approvals } => approvals,
        AdminReply::Proposed(p) => {
            out.show(&describe(&p), &json!({ "proposal": p }))?;
            return Ok(ExitCode::SUCCESS);
        }
        other => return unexpected(&other),
    };
    let waiting = desk.proposals().await?;
    let mut text = format!("{approvals} operator(s) have to agree to a deletion");
    waiting
        .iter()
        .for_each(|p| text += &format!("\n{}", describe(p)));
    out.show(
        &text,
        &json!({ "approvals": approvals, "proposals": waiting }),
    )?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn approve(which: &Which, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    match desk
        .ask(AdminRequest::Approve {
            proposal: which.proposal,
        })
        .await?
    {
        AdminReply::Policy { approvals } => {
            let text = format!("{approvals} operator(s) have to agree to a deletion");
            out.show(&text, &json!({ "approvals": approvals }))?;
            Ok(ExitCode::SUCCESS)
        }
        AdminReply::Invited { token } => {
            out.show(&token, &json!({ "invitation": token }))?;
            Ok(ExitCode::SUCCESS)
        }
        AdminReply::Scanned(scanned) => Ok(super::scan::of_records(&scanned, out)?),
        AdminReply::Done => {
            let text = format!("proposal {} is carried out", which.proposal);
            out.show(&text, &json!({ "done": which.proposal }))?;
            Ok(ExitCode::SUCCESS)
        }
        reply => show(outcome(reply)?, false, desk, out).await,
    }
}

pub(crate) async fn cancel(
    which: &Which,
    home: &Path,
    desk: &Desk,
    out: &Output,
) -> anyhow::Result<ExitCode> {
    super::requests::cancelled(desk, home, which.proposal).await?;
    match desk
        .ask(AdminRequest::Cancel {
            proposal: which.proposal,
        })
        .await?
    {
        AdminReply::Done => {
            out.show(
                &format!("proposal {} is withdrawn", which.proposal),
                &json!({ "cancelled": which.proposal }),
            )?;
            Ok(ExitCode::SUCCESS)
        }
        AdminReply::Proposed(p) => {
            out.show(&describe(&p), &json!({ "proposal": p }))?;
            Ok(ExitCode::SUCCESS)
        }
        other => unexpected(&other),
    }
}

/// An operator, or the server's own machine, which has no certificate.
fn who(by: Digest) -> String {
    if by == Digest::default() {
        "server".into()
    } else {
        by.short()
    }
}

/// What an operator reads who has an empty list before them.
fn no_actions(waiting: usize) -> String {
    let proposals = match waiting {
        0 => "No proposal waits for an operator's approval.".to_owned(),
        n => format!("{n} proposal(s) wait for approval: `lethe-admin policy` lists them."),
    };
    format!(
        "no actions yet. An action is what an operator did: a request for a deletion, a change of \
         the policy, an invitation or a removal, an approval, a withdrawal, a revocation, a search \
         of the records, a replay, an export. Each is an entry of the log. Deletions themselves: \
         `lethe-admin list`.\n{proposals}"
    )
}

pub(crate) async fn actions(desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let all = match desk.ask(AdminRequest::Actions).await? {
        AdminReply::Actions(all) => all,
        other => return unexpected(&other),
    };
    if all.is_empty() {
        let waiting = desk.proposals().await?.len();
        out.show(&no_actions(waiting), &all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = all.iter().map(|a| {
        vec![
            a.entry.to_string(),
            show_time(a.at),
            who(a.by),
            a.what.clone(),
        ]
    });
    out.show(
        &table(&["log entry", "time (UTC)", "operator", "action"], rows),
        &all,
    )?;
    Ok(ExitCode::SUCCESS)
}
