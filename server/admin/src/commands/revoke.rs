//! `lethe-admin revoke`.

use std::process::ExitCode;

use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::SubjectId;
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The person whose devices are to be refused.
    #[arg(long)]
    subject: String,
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let subject = SubjectId::new(args.subject.clone())?;
    match desk.ask(AdminRequest::Revoke { subject }).await? {
        AdminReply::Done => {
            let text = format!("the devices of {} are refused from now on", args.subject);
            out.show(&text, &json!({ "revoked": args.subject }))?;
        }
        AdminReply::Proposed(p) => {
            out.show(&super::policy::describe(&p), &json!({ "proposal": p }))?;
        }
        other => return unexpected(&other),
    }
    Ok(ExitCode::SUCCESS)
}
