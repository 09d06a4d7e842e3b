//! `lethe-admin export-audit`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use lethe_proto::admin::{AdminReply, AdminRequest, ListsAuditPage};
use lethe_proto::ids::ShardId;
use lethe_receipt::lists_audit::{ListsBundle, VERSION};
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of the shard.
    #[arg(required_unless_present = "lists")]
    shard: Option<u16>,
    /// The sums behind the lists that are served, instead of a shard.
    #[arg(long, conflicts_with = "shard")]
    lists: bool,
    /// Write the bundle here. One of the lists is readable by this user only.
    #[arg(long)]
    out: PathBuf,
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    match args.shard {
        Some(shard) => of_shard(shard, &args.out, desk, out).await,
        None => of_lists(&args.out, desk, out).await,
    }
}

async fn of_shard(shard: u16, to: &Path, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let request = AdminRequest::Audit {
        shard: ShardId(shard),
    };
    let bundle = match desk.ask(request).await? {
        AdminReply::Audit(text) => text,
        other => return unexpected(&other),
    };
    let value: serde_json::Value = serde_json::from_str(&bundle).context("the bundle")?;
    std::fs::write(to, &bundle).with_context(|| to.display().to_string())?;
    let count = |field: &str| value[field].as_array().map_or(0, Vec::len);
    let (members, rounds) = (count("members"), count("rounds"));
    let text = format!(
        "{}: shard {shard} with {members} records (it names nobody) and {rounds} rounds\nthe \
         auditor also needs the base model, the catalogue, the log key, and from each person who \
         agrees\nthe export of their device (`lethe training-data`): then `lethe audit` trains it \
         again",
        to.display(),
    );
    out.show(
        &text,
        &json!({ "shard": shard, "members": members, "rounds": rounds, "file": to }),
    )?;
    Ok(ExitCode::SUCCESS)
}

async fn of_lists(to: &Path, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let bundle = gather(desk).await?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options
        .open(to)
        .with_context(|| format!("{}: expected a file that is not there yet", to.display()))?;
    std::io::Write::write_all(&mut &file, &bundle.bytes())?;
    file.sync_all()?;
    let people = bundle.people.len();
    let items = bundle.items.len();
    let text = format!(
        "{}: a digest for each of {people} people who count (it names nobody), {items} items\nthe \
         auditor also needs the catalogue, the key of the lists from an app or a device, and from \
         each of these people\nthe export of their device (`lethe training-data`): then `lethe \
         audit --lists` folds them again\nwhoever holds the bundle can test a guess of a whole \
         contribution: destroy it after the audit",
        to.display(),
    );
    let value = json!({ "people": people, "items": items, "key": bundle.key, "file": to });
    out.show(&text, &value)?;
    Ok(ExitCode::SUCCESS)
}

/// All pages, of one snapshot.
async fn gather(desk: &Desk) -> anyhow::Result<ListsBundle> {
    let mut at = None;
    let mut first: Option<ListsAuditPage> = None;
    let mut items = vec![];
    let mut people = vec![];
    loop {
        let request = AdminRequest::ListsAudit { at };
        let mut page = match desk.ask(request).await? {
            AdminReply::ListsAudit(page) => page,
            other => return unexpected(&other),
        };
        let empty = page.items.is_empty() && page.people.is_empty();
        items.append(&mut page.items);
        people.extend(page.people.drain(..).map(|d| d.0));
        at = page.next;
        let first = first.get_or_insert_with(|| page.clone());
        if page.note != first.note || page.salt != first.salt {
            bail!("another snapshot is served now: begin again");
        }
        if at.is_some() && empty {
            bail!("the coordinator sent an empty page: coordinator and tool differ in version");
        }
        if at.is_none() {
            break;
        }
    }
    let Some(first) = first else {
        bail!("the coordinator sent nothing")
    };
    let taken_down = (0..).zip(&items).filter(|i| i.1.taken_down).map(|i| i.0);
    Ok(ListsBundle {
        version: VERSION,
        taken_down: taken_down.collect(),
        note: first.note,
        key: first.key,
        salt: first.salt.hex(),
        sums_salt: first.sums_salt.hex(),
        content: first.content.hex(),
        method: first.method,
        items: items.into_iter().map(|i| i.id).collect(),
        people: ListsBundle::sorted(people),
    })
}
