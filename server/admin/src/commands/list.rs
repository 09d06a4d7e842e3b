//! `lethe-admin list`. Exit code 3 when something is overdue, for monitoring.

use std::process::ExitCode;

use lethe_proto::admin::{DeletionPhase, DeletionSummary};

use super::forget::phase;
use crate::desk::Desk;
use crate::output::{Output, table};
use crate::when::{now, show_time};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only those that are not done.
    #[arg(long)]
    open: bool,
}

fn row(d: &DeletionSummary) -> Vec<String> {
    let open = d.phase != DeletionPhase::Done;
    let due = if open && d.due_at < now() {
        "OVERDUE".into()
    } else {
        show_time(d.due_at)
    };
    let who = d
        .request
        .subject()
        .map_or("everybody".to_owned(), |s| s.as_str().to_owned());
    let seconds =
        |t: Option<f64>, digits: usize| t.map_or("-".to_owned(), |t| format!("{t:.digits$} s"));
    vec![
        d.id.to_string(),
        d.request.kind().to_owned(),
        who,
        phase(d.phase).to_owned(),
        show_time(d.accepted_at),
        if open { due } else { "-".into() },
        seconds(d.seconds_until_exact, 3),
        seconds(d.seconds_until_retrained, 1),
    ]
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let mut all = desk.deletions().await?;
    all.retain(|d| !args.open || d.phase != DeletionPhase::Done);
    if all.is_empty() {
        let text = match args.open {
            true => "no open deletions: `lethe-admin list` shows those that are done",
            false => "no deletions yet: `lethe-admin forget` asks for one",
        };
        out.show(text, &all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = [
        "number",
        "kind",
        "subject",
        "state",
        "accepted (UTC)",
        "due (UTC)",
        "exact",
        "retrained",
    ];
    out.show(&table(&head, all.iter().map(row)), &all)?;
    let overdue = |d: &DeletionSummary| d.phase != DeletionPhase::Done && d.due_at < now();
    Ok(if all.iter().any(overdue) {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    })
}
