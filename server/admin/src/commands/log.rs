//! `lethe-admin log`: the transparency log as files that anybody can check with `lethe-verify log`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_receipt::tiles::files;
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::{Output, note};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder to write to (C2SP tlog-tiles); what it holds of the log already is replaced.
    #[arg(long)]
    out: PathBuf,
}

fn write(folder: &Path, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let at = folder.join(path);
    if let Some(parent) = at.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    std::fs::write(&at, bytes).with_context(|| at.display().to_string())
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let mut all: Vec<Vec<u8>> = vec![];
    let mut head = String::new();
    loop {
        let page = match desk
            .ask(AdminRequest::Log {
                from: all.len() as u64,
            })
            .await?
        {
            AdminReply::Log {
                entries,
                checkpoint,
            } => (entries, checkpoint),
            other => return unexpected(&other),
        };
        // The head of an earlier page is older than these entries.
        let size = page
            .1
            .lines()
            .nth(1)
            .and_then(|l| l.parse::<usize>().ok())
            .context("a head without a size")?;
        head = if page.0.is_empty() && !head.is_empty() {
            head
        } else {
            page.1
        };
        all.extend(page.0);
        if all.len() >= size {
            break;
        }
    }
    let Some(tiles) = files(&all, 0) else {
        bail!("an entry is too long to be published")
    };
    tiles
        .iter()
        .try_for_each(|(path, bytes)| write(&args.out, path, bytes))?;
    write(&args.out, "checkpoint", head.as_bytes())?;
    // How its key was exchanged: heads and receipts of earlier keys verify with it.
    match desk.ask(AdminRequest::LogKeys).await {
        Ok(AdminReply::LogKeys(changes)) if changes.is_empty() => {}
        Ok(AdminReply::LogKeys(changes)) => {
            write(&args.out, "log-keys", changes.concat().as_bytes())?;
        }
        Ok(other) => return unexpected(&other),
        Err(e) => note(&format!("which keys the log had is not known: {e}")),
    }
    let text = format!(
        "{} entries in {}\n{}",
        all.len(),
        args.out.display(),
        head.trim_end()
    );
    out.show(&text, &json!({ "entries": all.len(), "checkpoint": head }))?;
    Ok(ExitCode::SUCCESS)
}
