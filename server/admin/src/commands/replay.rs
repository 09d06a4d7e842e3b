//! `lethe-admin replay`.

use std::process::ExitCode;
use std::time::Duration;

use lethe_proto::admin::{AdminReply, AdminRequest, ReplayState};
use lethe_proto::ids::ShardId;
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of the shard.
    #[arg(required_unless_present = "lists")]
    shard: Option<u16>,
    /// Fold what everybody contributed to the lists again, instead.
    #[arg(long, conflicts_with = "shard")]
    lists: bool,
}

fn state(reply: AdminReply) -> anyhow::Result<ReplayState> {
    match reply {
        AdminReply::Replay(s) => Ok(s),
        other => unexpected(&other),
    }
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let Some(shard) = args.shard.filter(|_| !args.lists) else {
        return super::lists::replay(desk, out).await;
    };
    let shard = ShardId(shard);
    let mut s = state(desk.ask(AdminRequest::Replay { shard }).await?)?;
    let (replayed, live) = loop {
        if let Some(hashes) = s.hashes {
            break hashes;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        s = state(desk.ask(AdminRequest::ReplayStatus { shard }).await?)?;
    };
    let version = super::catalogue::newest_epochs_version(desk).await;
    let equal = replayed == live;
    let verdict = if equal { "EQUAL" } else { "DIFFERENT" };
    let text = format!(
        "{verdict}: {shard} retrained from scratch in {:.1} s, {} rounds\n  replayed {replayed}\n \
          live     {live}{}",
        s.seconds,
        s.rounds.1,
        super::catalogue::describe_replay(version, equal)
    );
    let value = json!({
        "equal": equal, "shard": shard, "replayed": replayed.hex(), "live": live.hex(),
        "seconds": s.seconds, "rounds": s.rounds.1, "catalogue": version,
    });
    out.show(&text, &value)?;
    Ok(if equal {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}
