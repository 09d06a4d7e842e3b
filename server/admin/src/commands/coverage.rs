//! `lethe-admin coverage`.

use std::process::ExitCode;

use lethe_proto::admin::{AdminReply, AdminRequest};

use crate::desk::{Desk, unexpected};
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The release; the newest that was recalled when absent.
    #[arg(long)]
    release: Option<u64>,
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let c = match desk
        .ask(AdminRequest::Coverage {
            release: args.release,
        })
        .await?
    {
        AdminReply::Coverage(c) => c,
        other => return unexpected(&other),
    };
    let fetched = c.dropped + c.holding;
    let share = if fetched == 0 {
        100.0
    } else {
        100.0 * f64::from(c.dropped) / f64::from(fetched)
    };
    let state = if c.recalled {
        "recalled: refused everywhere"
    } else {
        "not recalled"
    };
    let text = format!(
        "release {} ({state})\ndropped by {} of {fetched} devices that ever held a release \
         ({share:.1} %)\n\
         still held by {}\nnever fetched any: {}",
        c.release, c.dropped, c.holding, c.never
    );
    out.show(&text, &c)?;
    Ok(ExitCode::SUCCESS)
}
