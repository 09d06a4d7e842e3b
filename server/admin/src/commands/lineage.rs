//! `lethe-admin lineage`.

use std::fmt::Write;
use std::process::ExitCode;

use lethe_proto::admin::{AdminReply, AdminRequest, ReleaseLineage, SubjectLineage};
use lethe_proto::ids::SubjectId;

use super::lists;
use crate::desk::{Desk, unexpected};
use crate::output::Output;
use crate::when::show_time;

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Args {
    /// What is this person's data in?
    #[arg(long)]
    subject: Option<String>,
    /// Whose data is this release computed from?
    #[arg(long)]
    release: Option<u64>,
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let request = match (&args.subject, args.release) {
        (Some(s), _) => AdminRequest::LineageOfSubject {
            subject: SubjectId::new(s.clone())?,
        },
        (None, Some(release)) => AdminRequest::LineageOfRelease { release },
        (None, None) => anyhow::bail!("give --subject or --release"),
    };
    match desk.ask(request).await? {
        AdminReply::Subject(s) => {
            let named = args.subject.clone().unwrap_or_default();
            let lists = lists::lineage(desk, SubjectId::new(named)?).await?;
            let mut text = subject(&s);
            if let Some(lists) = &lists {
                text += &lists::describe_lineage(lists);
            }
            let mut value = serde_json::to_value(&s)?;
            value["lists"] = serde_json::to_value(&lists)?;
            out.show(&text, &value)?;
        }
        AdminReply::Release(r) => out.show(&release(&r), &r)?,
        other => return unexpected(&other),
    }
    Ok(ExitCode::SUCCESS)
}

fn list<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    if all.is_empty() {
        "none".into()
    } else {
        all.join(", ")
    }
}

fn subject(s: &SubjectLineage) -> String {
    let mut text = format!("number in lineages: {}", s.number);
    match s.place {
        Some((shard, slice)) => {
            let _ = write!(
                text,
                "\nplace: {shard}, slice {slice} (enters with stage {})",
                slice + 1
            );
        }
        None => text += "\nplace: none yet",
    }
    if !s.idle.is_empty() {
        let _ = write!(text, "\nnot trained on: {}", s.idle);
    }
    let release = |(id, recalled): &(u64, bool)| {
        format!("{id}{}", if *recalled { " (recalled)" } else { "" })
    };
    let _ = write!(
        text,
        "\ntraining samples: {}\ncheckpoints: stages {}\nadapter in use: {}\nerror table \
         (validation): {} rows\n\
         rounds taken part in: {}\nupdates of open rounds: {}\nreleases: {}\ndeletions: {}",
        s.samples,
        list(&s.checkpoints),
        if s.served {
            "trained on the data"
        } else {
            "not trained on the data"
        },
        s.error_rows,
        s.rounds,
        s.open_updates,
        list(s.releases.iter().map(release)),
        list(&s.deletions),
    );
    text
}

fn release(r: &ReleaseLineage) -> String {
    let recalled = if r.recalled { ", recalled" } else { "" };
    let mut text = format!("release {} of {}{recalled}", r.release, show_time(r.at));
    for (k, (adapter, n)) in r.shards.iter().enumerate() {
        let _ = write!(
            text,
            "\nshard {k}: adapter {}, trained on {n} subjects",
            adapter.short()
        );
        let of: Vec<&str> = r
            .subjects
            .iter()
            .filter(|(_, s)| usize::from(s.0) == k)
            .map(|(s, _)| s.as_str())
            .collect();
        let _ = write!(text, "\n  still known: {}", list(of));
    }
    let _ = write!(
        text,
        "\ndeleted since: {}\nvalidation: {} subjects",
        r.deleted, r.validation
    );
    text
}
