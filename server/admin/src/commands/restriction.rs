//! `lethe-admin restriction`: whose data is kept and not used, and the end of that.

use std::process::ExitCode;

use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::SubjectId;
use lethe_proto::people::RestrictionState;
use serde_json::json;

use super::policy::describe;
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
    /// Restrictions; with --all, also those that are lifted.
    List {
        /// Also those that are lifted.
        #[arg(long)]
        all: bool,
    },
    /// Use a person's data again: in lists at once, in training from the next epoch on that they
    /// join. Where the policy asks for it, another operator has to agree.
    Lift {
        /// The person.
        subject: String,
    },
}

/// All restrictions, page by page.
async fn all(desk: &Desk) -> anyhow::Result<Vec<RestrictionState>> {
    let mut all: Vec<RestrictionState> = vec![];
    loop {
        let after = all.last().map_or(0, |r| r.deletion);
        match desk.ask(AdminRequest::Restrictions { after }).await? {
            AdminReply::Restrictions(page) if page.is_empty() => return Ok(all),
            AdminReply::Restrictions(page) => all.extend(page),
            other => return unexpected(&other),
        }
    }
}

/// What is said of a deletion that is a restriction, and was lifted.
pub(crate) async fn of_deletion(
    desk: &Desk,
    deletion: u64,
) -> anyhow::Result<Option<RestrictionState>> {
    let after = deletion.saturating_sub(1);
    match desk.ask(AdminRequest::Restrictions { after }).await? {
        AdminReply::Restrictions(page) => {
            let first = page.into_iter().next();
            Ok(first.filter(|r| r.deletion == deletion))
        }
        other => unexpected(&other),
    }
}

pub(crate) fn describe_lifted(r: &RestrictionState) -> String {
    match r.lifted {
        Some(at) => format!("\n  the restriction was lifted at {} (UTC)", show_time(at)),
        None => format!(
            "\n  restricted: the data is kept and not used, until `lethe-admin restriction lift \
             {}`",
            r.subject
        ),
    }
}

fn row(r: &RestrictionState) -> Vec<String> {
    let state = match (r.lifted, r.done) {
        (Some(at), _) => format!("lifted {}", show_time(at)),
        (None, true) => "restricted".to_owned(),
        (None, false) => "being carried out".to_owned(),
    };
    vec![
        r.deletion.to_string(),
        r.subject.as_str().to_owned(),
        show_time(r.since),
        state,
    ]
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::List { all: with_lifted } => list(*with_lifted, desk, out).await,
        What::Lift { subject } => lift(subject, desk, out).await,
    }
}

async fn list(with_lifted: bool, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let mut all = all(desk).await?;
    all.retain(|r| with_lifted || r.lifted.is_none());
    if all.is_empty() {
        let text = match with_lifted {
            true => "no restrictions yet: `lethe-admin forget --restrict` asks for one",
            false => "nobody's data is restricted: `--all` shows restrictions that were lifted",
        };
        out.show(text, &all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["deletion", "subject", "since (UTC)", "state"];
    out.show(&table(&head, all.iter().map(row)), &all)?;
    Ok(ExitCode::SUCCESS)
}

async fn lift(subject: &str, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let subject = SubjectId::new(subject.to_owned())?;
    let ask = AdminRequest::LiftRestriction {
        subject: subject.clone(),
    };
    match desk.ask(ask).await? {
        AdminReply::Done => {
            let text = format!(
                "the restriction of {subject} is lifted: in lists at once, in training from the \
                 next epoch on that the person joins"
            );
            out.show(&text, &json!({ "lifted": subject }))?;
        }
        AdminReply::Proposed(p) => out.show(&describe(&p), &json!({ "proposal": p }))?,
        other => return unexpected(&other),
    }
    Ok(ExitCode::SUCCESS)
}
