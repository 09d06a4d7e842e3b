//! `lethe-admin receipt`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use lethe_proto::admin::{AdminReply, AdminRequest};

use crate::desk::{Desk, unexpected};

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
    match &args.out {
        Some(path) => std::fs::write(path, &text).with_context(|| path.display().to_string())?,
        None => std::io::stdout().write_all(text.as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}
