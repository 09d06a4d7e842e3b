//! `lethe-admin enrol`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use crate::desk::Desk;
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address of the coordinator.
    #[arg(long)]
    server: SocketAddr,
    /// File with the invitation: `admin-invitation` in the coordinator's data folder, or from
    /// `lethe-admin invite`.
    #[arg(long)]
    invitation: PathBuf,
    /// Replace this operator's identity, also while it is valid.
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(args: &Args, home: &Path, out: &Output) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(&args.invitation)
        .with_context(|| args.invitation.display().to_string())?;
    Desk::enrol(home, args.server, &text, args.replace).await?;
    out.show(
        &format!("enrolled; the identity is in {}", home.display()),
        &json!({ "home": home }),
    )?;
    Ok(ExitCode::SUCCESS)
}
