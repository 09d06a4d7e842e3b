//! `lethe-admin revoke`.

use std::process::ExitCode;

use lethe_proto::admin::AdminRequest;
use lethe_proto::ids::SubjectId;

use crate::desk::Desk;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The person whose devices are to be refused.
    #[arg(long)]
    subject: String,
}

pub(crate) async fn run(args: &Args, desk: &Desk) -> anyhow::Result<ExitCode> {
    desk.ask(AdminRequest::Revoke {
        subject: SubjectId::new(args.subject.clone())?,
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}
