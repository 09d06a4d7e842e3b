//! `lethe-admin export-audit`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::ShardId;
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of the shard.
    shard: u16,
    /// Write the bundle here.
    #[arg(long)]
    out: PathBuf,
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let bundle = match desk
        .ask(AdminRequest::Audit {
            shard: ShardId(args.shard),
        })
        .await?
    {
        AdminReply::Audit(text) => text,
        other => return unexpected(&other),
    };
    let value: serde_json::Value = serde_json::from_str(&bundle).context("the bundle")?;
    std::fs::write(&args.out, &bundle).with_context(|| args.out.display().to_string())?;
    let count = |field: &str| value[field].as_array().map_or(0, Vec::len);
    let (members, rounds) = (count("members"), count("rounds"));
    let text = format!(
        "{}: shard {} with {members} records (it names nobody) and {rounds} rounds\nthe auditor \
         also needs the base model, the catalogue, the log key, and from each person who \
         agrees\nthe export of their device (`lethe training-data`): then `lethe audit` trains it \
         again",
        args.out.display(),
        args.shard
    );
    out.show(
        &text,
        &json!({ "shard": args.shard, "members": members, "rounds": rounds, "file": args.out }),
    )?;
    Ok(ExitCode::SUCCESS)
}
