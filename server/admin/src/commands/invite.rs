//! `lethe-admin invite`.

use std::process::ExitCode;

use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::SubjectId;
use serde_json::{Value, json};

use crate::desk::{Desk, unexpected};
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Who may enrol with it (may be repeated: one line per subject).
    #[arg(long, required_unless_present = "admin")]
    subject: Vec<String>,
    /// Invite another operator.
    #[arg(long, conflicts_with = "subject")]
    admin: bool,
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let subjects: Vec<Option<SubjectId>> = if args.admin {
        vec![None]
    } else {
        args.subject
            .iter()
            .map(|s| SubjectId::new(s.clone()).map(Some))
            .collect::<Result<_, _>>()?
    };
    let mut issued = vec![];
    let mut waiting = vec![];
    for subject in subjects {
        match desk
            .ask(AdminRequest::Invite {
                subject: subject.clone(),
            })
            .await?
        {
            AdminReply::Invited { token } => {
                issued.push(json!({ "subject": subject, "invitation": token }))
            }
            AdminReply::Proposed(p) => waiting.push(p),
            other => return unexpected(&other),
        }
    }
    if !waiting.is_empty() {
        let mut lines: Vec<String> = waiting.iter().map(super::policy::describe).collect();
        lines.splice(0..0, tokens(&issued).map(str::to_owned));
        let all = json!({ "invitations": issued, "proposals": waiting });
        out.show(&lines.join("\n"), &all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let lines: Vec<&str> = tokens(&issued).collect();
    out.show(&lines.join("\n"), &issued)?;
    Ok(ExitCode::SUCCESS)
}

fn tokens(issued: &[Value]) -> impl Iterator<Item = &str> {
    issued.iter().filter_map(|v| v["invitation"].as_str())
}
