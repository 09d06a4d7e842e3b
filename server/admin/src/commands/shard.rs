//! `lethe-admin shard`: shards in which nothing is trained, until an operator has looked.

use std::process::ExitCode;

use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::ShardId;
use lethe_proto::people::HeldShard;
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::{Output, table};
use crate::when::show_time;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Shards in which nothing is trained.
    List,
    /// Train nothing in a shard until it is released. What is served stays; deletions are exact at
    /// once, and their receipts wait.
    Hold {
        /// Number of the shard.
        shard: u16,
    },
    /// Train a shard that was damaged, or held.
    Release {
        /// Number of the shard.
        shard: u16,
    },
}

/// Shards in which nothing is trained.
pub(crate) async fn held(desk: &Desk) -> anyhow::Result<Vec<HeldShard>> {
    match desk.ask(AdminRequest::HeldShards).await? {
        AdminReply::HeldShards(all) => Ok(all),
        other => unexpected(&other),
    }
}

/// Why nothing is trained in a shard, and until when.
pub(crate) fn describe(h: &HeldShard) -> String {
    let why = match h.damaged {
        true => "its database was damaged",
        false => "an operator holds it",
    };
    let until = match h.until {
        Some(at) => format!("until {} (UTC) or ", show_time(at)),
        None => "until ".to_owned(),
    };
    format!(
        "{why}: nothing is trained in it {until}`lethe-admin shard release {}`",
        h.shard.0
    )
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let (request, text) = match &args.what {
        What::List => return list(desk, out).await,
        What::Hold { shard } => {
            let request = AdminRequest::HoldShard {
                shard: ShardId(*shard),
            };
            let text = format!("nothing is trained in shard {shard} until it is released");
            (request, text)
        }
        What::Release { shard } => {
            let request = AdminRequest::ReleaseShard {
                shard: ShardId(*shard),
            };
            (request, format!("shard {shard} is trained"))
        }
    };
    match desk.ask(request).await? {
        AdminReply::Done => out.show(&text, &json!({ "done": text }))?,
        other => return unexpected(&other),
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let all = held(desk).await?;
    if all.is_empty() {
        out.show("no shard is held: all of them are trained", &all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |h: &HeldShard| {
        vec![
            h.shard.0.to_string(),
            show_time(h.since),
            h.until.map_or("released".to_owned(), show_time),
            match h.damaged {
                true => "damaged".to_owned(),
                false => "held by an operator".to_owned(),
            },
        ]
    };
    let head = ["shard", "since (UTC)", "until (UTC)", "why"];
    out.show(&table(&head, all.iter().map(row)), &all)?;
    Ok(ExitCode::SUCCESS)
}
