//! `lethe-admin catalogue`: versions of the catalogue. The folder is read here, compared with the
//! version in force, and the difference is sent.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use lethe_proto::admin::{AdminReply, AdminRequest, CatalogueStatus};
use lethe_proto::catalogue::{
    CatalogueChange, CatalogueEntry, Difference, difference, page, version_digest,
};
use lethe_proto::ids::Digest;
use lethe_recsys::data::{DataSpec, read_items};
use lethe_recsys::versions::{entries, load_renamed};
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::{Output, note, table};
use crate::when::show_time;

/// Items of each kind that are shown by name.
const SHOWN: usize = 20;

#[derive(clap::Subcommand)]
pub(crate) enum What {
    /// Compare a folder with the version in force, and make it the next one.
    Apply(Apply),
    /// Which versions there are, and which of them epochs have.
    Status,
}

#[derive(clap::Args)]
pub(crate) struct Apply {
    /// Folder with `dataset.toml`, the items that it names and, where identifiers were replaced,
    /// `renamed.csv` (old,new).
    folder: PathBuf,
    /// Only show the difference.
    #[arg(long)]
    dry_run: bool,
    /// Do it: without this the difference is shown, and nothing is done where items are removed.
    #[arg(long)]
    yes: bool,
    /// Refuse a folder with malformed rows, or with something that has to be guessed, instead of
    /// leaving rows out.
    #[arg(long)]
    strict: bool,
}

pub(crate) async fn run(what: &What, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    match what {
        What::Apply(args) => apply(args, desk, out).await,
        What::Status => status(desk, out).await,
    }
}

/// The version in force, by place.
struct InForce {
    version: u32,
    digest: Digest,
    entries: Vec<CatalogueEntry>,
}

async fn in_force(desk: &Desk) -> anyhow::Result<InForce> {
    let mut known = InForce {
        version: 0,
        digest: Digest::default(),
        entries: vec![],
    };
    loop {
        let from = known.entries.len() as u64;
        let page = match desk.ask(AdminRequest::Catalogue { from }).await? {
            AdminReply::Catalogue(page) => page,
            other => return unexpected(&other),
        };
        if from > 0 && page.digest != known.digest {
            bail!("another version was applied meanwhile: run the command again");
        }
        known.version = page.version;
        known.digest = page.digest;
        let got = page.entries.len();
        known.entries.extend(page.entries);
        if !page.more {
            return Ok(known);
        }
        if got == 0 {
            bail!("the coordinator sends an empty page: coordinator and tool differ in version");
        }
    }
}

async fn apply(args: &Apply, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let folder = &args.folder;
    let spec = DataSpec::of_folder(folder)?;
    let read = read_items(folder, &spec, args.strict)?;
    for line in read.reading.lines() {
        note(&line);
    }
    let items = read.items;
    let renamed = load_renamed(folder)?;
    let known = in_force(desk).await?;
    let version = known.version + 1;
    let changes = difference(&known.entries, version, &entries(&items), &renamed)
        .with_context(|| folder.display().to_string())?;
    let said = Difference::of(&known.entries, &changes);
    let value = |applied: Option<u32>| {
        json!({
            "in_force": known.version, "applied": applied, "added": said.added,
            "restored": said.restored, "renamed": said.renamed, "retitled": said.retitled,
            "retagged": said.retagged, "removed": said.removed, "data": read.reading,
        })
    };
    if changes.is_empty() {
        let text = format!("the folder is version {}, which is in force", known.version);
        out.show(&text, &value(None))?;
        return Ok(ExitCode::SUCCESS);
    }
    let shown = describe(&said);
    if args.dry_run {
        let text = format!("version {version} would be\n{shown}\nnothing was done (dry run)");
        out.show(&text, &value(None))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !said.removed.is_empty() && !args.yes {
        bail!(
            "version {version} would be\n{shown}\nitems that are removed leave lists and prompts, \
             and histories keep them; an identifier that was replaced belongs into renamed.csv. \
             Confirm with --yes"
        );
    }
    send(desk, known.digest, &changes).await?;
    let text = format!("version {version} is in force\n{shown}");
    out.show(&text, &value(Some(version)))?;
    Ok(ExitCode::SUCCESS)
}

/// Sends the changes page by page; with the last one they are applied.
async fn send(desk: &Desk, before: Digest, changes: &[CatalogueChange]) -> anyhow::Result<()> {
    let version = changes.first().map_or(0, |c| c.version);
    let digest = version_digest(&before, version, changes);
    let mut at = 0;
    loop {
        let own = page(changes, at, CatalogueChange::size);
        let next = at + own.len() as u64;
        let last = next == changes.len() as u64;
        let request = AdminRequest::CatalogueChange {
            before,
            at,
            changes: own.to_vec(),
            ends: last.then_some(digest),
        };
        match (desk.ask(request).await?, last) {
            (AdminReply::Done, false) => at = next,
            (AdminReply::CatalogueApplied { .. }, true) => return Ok(()),
            (other, _) => return unexpected(&other),
        }
    }
}

fn describe(said: &Difference) -> String {
    let pair = |(old, new): &(String, String)| format!("{old} -> {new}");
    let title = |(id, old, new): &(String, String, String)| format!("{id}: {old} -> {new}");
    let all: [(&str, Vec<String>); 6] = [
        ("added", said.added.clone()),
        ("restored", said.restored.clone()),
        ("renamed", said.renamed.iter().map(pair).collect()),
        ("retitled", said.retitled.iter().map(title).collect()),
        ("retagged", said.retagged.clone()),
        ("removed", said.removed.clone()),
    ];
    let mut lines = vec![];
    for (what, names) in all.iter().filter(|(_, names)| !names.is_empty()) {
        lines.push(format!("  {} {what}", names.len()));
        lines.extend(names.iter().take(SHOWN).map(|n| format!("    {n}")));
        if names.len() > SHOWN {
            lines.push(format!("    and {} more", names.len() - SHOWN));
        }
    }
    lines.join("\n")
}

async fn ask_status(desk: &Desk) -> anyhow::Result<CatalogueStatus> {
    match desk.ask(AdminRequest::CatalogueStatus).await? {
        AdminReply::CatalogueStatus(status) => Ok(status),
        other => unexpected(&other),
    }
}

async fn status(desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let s = ask_status(desk).await?;
    let row = |v: &lethe_proto::admin::CatalogueVersionState| {
        let of = s.epochs.iter().filter(|(_, version)| *version == v.number);
        let epochs: Vec<String> = of.map(|(no, _)| no.0.to_string()).collect();
        vec![
            v.number.to_string(),
            match v.at {
                0 => "with the folder".to_owned(),
                at => show_time(at),
            },
            v.places.to_string(),
            v.digest.short(),
            v.index.map_or("-".to_owned(), |i| i.to_string()),
            epochs.join(", "),
        ]
    };
    let head = [
        "version",
        "applied (UTC)",
        "places",
        "digest",
        "log entry",
        "epochs",
    ];
    let mut text = table(&head, s.versions.iter().map(row));
    text += &format!("\n{} items, {} removed", s.items, s.removed);
    out.show(&text, &s)?;
    Ok(ExitCode::SUCCESS)
}

/// The version that the epoch has which is replayed, as far as is known: that of the one that is
/// served, or of the newest where they have the same.
pub(crate) async fn newest_epochs_version(desk: &Desk) -> Option<u32> {
    let s = ask_status(desk).await.ok()?;
    let mut versions: Vec<u32> = s.epochs.iter().map(|(_, version)| *version).collect();
    versions.dedup();
    match versions[..] {
        [one] => Some(one),
        _ => None,
    }
}

/// The version of the catalogue below the result of a replay.
pub(crate) fn describe_replay(version: Option<u32>, equal: bool) -> String {
    let Some(version) = version else {
        return String::new();
    };
    let mut out = format!("\n  catalogue: version {version}, that of the epoch");
    if !equal && version > 0 {
        out += "\n  devices of an older version of the app have the titles that they were shipped \
                with: where these are not those of that version, prompts differ, and so do bytes";
    }
    out
}
