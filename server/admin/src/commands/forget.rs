//! `lethe-admin forget`.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use lethe_proto::admin::{AdminReply, AdminRequest, DeletionPhase, DeletionState};
use lethe_proto::ids::SubjectId;

use crate::desk::{Desk, unexpected};
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The person.
    #[arg(long)]
    subject: String,
    /// Forget only this item of the person (may be repeated); without it, everything.
    #[arg(long)]
    item: Vec<String>,
    /// Print the plan and its cost, and stop.
    #[arg(long)]
    dry_run: bool,
    /// Return only when the shards are retrained and the receipt is issued.
    #[arg(long)]
    wait: bool,
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let subject = SubjectId::new(args.subject.clone())?;
    let request = AdminRequest::Forget { subject, items: args.item.clone(), dry_run: args.dry_run };
    let mut state = deletion(desk.ask(request).await?)?;
    while let (true, Some(id)) = (args.wait && state.phase != DeletionPhase::Done, state.id) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        state = deletion(desk.ask(AdminRequest::Deletion { id }).await?)?;
    }
    out.show(&describe(&state), &state)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn deletion(reply: AdminReply) -> anyhow::Result<DeletionState> {
    match reply {
        AdminReply::Deletion(state) => Ok(state),
        other => unexpected(&other),
    }
}

/// The state for people: plan, times, hashes.
pub(crate) fn describe(s: &DeletionState) -> String {
    let mut out = s.plan.clone();
    let Some(id) = s.id else { return out + "\nnothing was done (dry run)" };
    let _ = write!(out, "\ndeletion {id}: {:?}", s.phase);
    if let Some(t) = s.seconds_until_exact {
        let _ = write!(out, "\n  served model free of the data after {t:.3} s");
    }
    if let Some(t) = s.seconds_until_retrained {
        let _ = write!(out, "\n  retrained and released after {t:.1} s");
    }
    for (k, (before, now)) in s.before.iter().zip(&s.now).enumerate() {
        let same = if before == now { "unchanged" } else { "replaced" };
        let _ = write!(out, "\n  shard {k}: {} -> {} {same}", before.short(), now.short());
    }
    if s.phase == DeletionPhase::Done {
        let _ = write!(out, "\n  receipt: lethe-admin receipt --deletion {id}");
    }
    out
}
