//! `lethe-admin enrol`.

use std::path::Path;
use std::process::ExitCode;

use lethe_transport::identity::Invitation;
use lethe_transport::place::Place;
use serde_json::json;

use crate::desk::Desk;
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The invitation: a file (`admin-invitation` in the coordinator's data folder), or the text
    /// that `lethe-admin invite` prints, beginning with lethe1:.
    #[arg(long, value_name = "FILE|TEXT")]
    invitation: String,
    /// Replace this operator's identity, also while it is valid.
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(
    args: &Args,
    home: &Path,
    server: Place,
    out: &Output,
) -> anyhow::Result<ExitCode> {
    let invitation = Invitation::given(&args.invitation)?;
    Desk::enrol(home, server, &invitation, args.replace).await?;
    out.show(
        &format!("enrolled; the identity is in {}", home.display()),
        &json!({ "home": home }),
    )?;
    Ok(ExitCode::SUCCESS)
}
