//! `lethe-admin receipt`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use lethe_proto::admin::{AdminReply, AdminRequest};

use crate::desk::{Desk, unexpected};
use crate::output::{note, write_private};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of the deletion.
    #[arg(long)]
    deletion: u64,
    /// File to write; standard output when absent. Keep the bytes as they are: any change makes
    /// verification fail.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(crate) async fn run(args: &Args, desk: &Desk) -> anyhow::Result<ExitCode> {
    let text = match desk
        .ask(AdminRequest::Receipt { id: args.deletion })
        .await?
    {
        AdminReply::Receipt(text) => text,
        other => return unexpected(&other),
    };
    // The receipt's bytes are what was signed: this is said beside it.
    let keys = super::disks::of(desk).await;
    super::disks::doubts(&keys).iter().for_each(|d| note(d));
    match &args.out {
        Some(path) => write_private(path, text.as_bytes())?,
        None => std::io::stdout().write_all(text.as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}
