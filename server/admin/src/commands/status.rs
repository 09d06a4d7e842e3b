//! `lethe-admin status`.

use std::fmt::Write;
use std::process::ExitCode;

use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::deletion::DeletionRequest;

use super::forget::{describe, state};
use super::{disks, epoch, lists, restriction, shard};
use crate::desk::{Desk, unexpected};
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Show this deletion instead.
    #[arg(long)]
    deletion: Option<u64>,
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    if let Some(id) = args.deletion {
        let state = state(desk, id).await?;
        let lists = lists::of_deletion(desk, id).await?;
        let mut text = describe(&state);
        if let Some(lists) = &lists {
            text += &lists::describe_deletion(lists);
        }
        let restricted = match &state.request {
            DeletionRequest::Restrict { .. } => restriction::of_deletion(desk, id).await?,
            _ => None,
        };
        if let Some(restricted) = &restricted {
            text += &restriction::describe_lifted(restricted);
        }
        let mut value = serde_json::to_value(&state)?;
        value["lists"] = serde_json::to_value(&lists)?;
        value["restriction"] = serde_json::to_value(&restricted)?;
        out.show(&text, &value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let s = match desk.ask(AdminRequest::Status).await? {
        AdminReply::Status(s) => s,
        other => return unexpected(&other),
    };
    // An older coordinator does not know the question.
    let held = shard::held(desk).await.unwrap_or_default();
    let mut text = format!(
        "{}: {} subjects, {} connections, release {}",
        s.build, s.subjects, s.connections, s.release
    );
    if !s.started {
        text += "\nthe epoch has not started: too few subjects have joined";
    }
    for (k, of) in s.shards.iter().enumerate() {
        let (done, all) = of.rounds;
        let loss = of.losses.last().copied().flatten();
        let loss = loss.map_or(String::from("-"), |l| format!("{l:.3}"));
        let _ = write!(
            text,
            "\nshard {k}: {} subjects, round {done} of {all}, loss {loss}, adapter {}",
            of.subjects,
            of.adapter.short()
        );
        let waits = held.iter().find(|h| usize::from(h.shard.0) == k);
        if let Some(waits) = waits {
            let _ = write!(text, " ({})", shard::describe(waits));
        } else if of.quarantined {
            text +=
                " (its database was damaged and set aside: it is trained again from the beginning)";
        }
    }
    let _ = write!(text, "\nlog key: {}", s.log_key);
    let lists = lists::status(desk).await?;
    if let Some(lists) = &lists {
        text += &lists::describe_status(lists);
    }
    // An older coordinator does not know the question, which therefore comes last.
    let learns = middle_learns(desk).await.ok();
    let _ = match &learns {
        Some(what) => write!(text, "\nwho runs the middle layers learns {what}"),
        None => write!(
            text,
            "\nwho runs the middle layers learns: no answer; this coordinator is older than the \
             tool"
        ),
    };
    // Neither does it know epochs that follow one another.
    let epochs = epoch::states(desk).await.ok();
    if let Some(epochs) = &epochs {
        text += &epoch::under_way(epochs);
    }
    let keys = disks::of(desk).await;
    text += &disks::describe(&keys);
    let mut value = serde_json::to_value(&s)?;
    value["key_disks"] = serde_json::to_value(&keys)?;
    value["epochs"] = serde_json::to_value(&epochs)?;
    value["lists"] = serde_json::to_value(&lists)?;
    value["held"] = serde_json::to_value(&held)?;
    value["middle_learns"] = serde_json::to_value(&learns)?;
    out.show(&text, &value)?;
    Ok(ExitCode::SUCCESS)
}

async fn middle_learns(desk: &Desk) -> anyhow::Result<String> {
    match desk.ask(AdminRequest::MiddleLearns).await? {
        AdminReply::MiddleLearns(what) => Ok(what),
        other => unexpected(&other),
    }
}
