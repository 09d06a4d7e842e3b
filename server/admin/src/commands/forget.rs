//! `lethe-admin forget` and `lethe-admin forecast`.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lethe_proto::admin::{AdminReply, AdminRequest, DeletionPhase, DeletionState, ProposalState};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::{Output, note};
use crate::when::parse_time;

/// When `--wait` says for the first time what it waits for.
const SAY_FIRST: Duration = Duration::from_secs(1);
/// How often it says so from then on.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(clap::Args)]
pub(crate) struct What {
    /// The person (may be repeated: one plan for all).
    #[arg(long, required_unless_present = "takedown")]
    subject: Vec<String>,
    /// Forget only this item (may be repeated); without it, everything.
    #[arg(long)]
    item: Vec<String>,
    /// Forget what happened at or after this time: 2026-11-23 (UTC), 2026-11-23T10:30:00Z, or
    /// seconds since 1970. Consent
    /// is withdrawn from then on.
    #[arg(long, conflicts_with = "item", value_parser = parse_time, allow_hyphen_values = true)]
    from: Option<i64>,
    /// Do not delete: stop using the data, and keep it.
    #[arg(long, conflicts_with_all = ["item", "from"])]
    restrict: bool,
    /// Forget the items for everybody. Until all devices have answered, nothing that was learned is
    /// served.
    #[arg(long, conflicts_with_all = ["subject", "from", "restrict"], requires = "item")]
    takedown: bool,
    /// Take items that are not in the catalogue (any more).
    #[arg(long)]
    yes: bool,
}

impl What {
    pub(crate) fn requests(&self) -> anyhow::Result<Vec<DeletionRequest>> {
        if self.takedown {
            return Ok(vec![DeletionRequest::Takedown {
                items: self.item.clone(),
            }]);
        }
        let one = |s: &String| {
            let subject = SubjectId::new(s.clone())?;
            Ok(match (self.from, self.restrict, self.item.is_empty()) {
                (Some(from), _, _) => DeletionRequest::Withdraw { subject, from },
                (_, true, _) => DeletionRequest::Restrict { subject },
                (_, _, false) => DeletionRequest::EraseItems {
                    subject,
                    items: self.item.clone(),
                },
                _ => DeletionRequest::Erase { subject },
            })
        };
        self.subject.iter().map(one).collect()
    }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    what: What,
    /// Print the plan and its cost, and stop; the same as `forecast`.
    #[arg(long)]
    dry_run: bool,
    /// Return only when the shards are retrained and the receipts are issued. The plan is printed
    /// at once; what is waited for goes to standard error.
    #[arg(long)]
    wait: bool,
}

/// A plan, and the deletions that follow it.
pub(crate) struct Planned {
    pub(crate) text: String,
    pub(crate) plan: serde_json::Value,
    pub(crate) ids: Vec<u64>,
}

/// What `forget` leads to.
pub(crate) enum Outcome {
    Planned(Planned),
    /// Others have to agree.
    Proposed(ProposalState),
}

/// What the coordinator is asked.
pub(crate) struct Ask {
    requests: Vec<DeletionRequest>,
    dry_run: bool,
    asked: u64,
    reference: String,
    confirmed: bool,
}

impl Ask {
    pub(crate) fn new(requests: Vec<DeletionRequest>) -> Self {
        Self {
            requests,
            dry_run: false,
            asked: 0,
            reference: String::new(),
            confirmed: false,
        }
    }

    /// Only plans.
    pub(crate) fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// The operator means items that are not in the catalogue.
    pub(crate) fn confirmed(mut self, yes: bool) -> Self {
        self.confirmed = yes;
        self
    }

    /// When it was asked for, in Unix seconds, and what came with it.
    pub(crate) fn on_behalf(mut self, asked: u64, reference: String) -> Self {
        self.asked = asked;
        self.reference = reference;
        self
    }
}

pub(crate) async fn ask(desk: &Desk, what: Ask) -> anyhow::Result<Outcome> {
    let request = AdminRequest::Forget {
        requests: what.requests,
        dry_run: what.dry_run,
        asked: what.asked,
        reference: what.reference,
        confirmed: what.confirmed,
    };
    outcome(desk.ask(request).await?)
}

pub(crate) fn outcome(reply: AdminReply) -> anyhow::Result<Outcome> {
    match reply {
        AdminReply::Planned { text, json, ids } => {
            let plan = serde_json::from_str(&json).context("the coordinator's plan")?;
            Ok(Outcome::Planned(Planned { text, plan, ids }))
        }
        AdminReply::Proposed(p) => Ok(Outcome::Proposed(p)),
        other => unexpected(&other),
    }
}

pub(crate) async fn forecast(what: &What, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let Outcome::Planned(planned) = ask(
        desk,
        Ask::new(what.requests()?).dry_run().confirmed(what.yes),
    )
    .await?
    else {
        bail!("no plan")
    };
    let lists = super::lists::forecast(desk, what.requests()?).await?;
    let keys = super::disks::of(desk).await;
    let doubts = super::disks::doubts(&keys);
    let said: String = doubts.iter().map(|d| format!("{d}\n")).collect();
    out.show(
        &(planned.text + "\n" + &lists + &said + "nothing was done (dry run)"),
        &json!({
            "plan": planned.plan, "deletions": [], "lists": lists, "key_disks": keys,
        }),
    )?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    if args.dry_run {
        return forecast(&args.what, desk, out).await;
    }
    let outcome = ask(
        desk,
        Ask::new(args.what.requests()?).confirmed(args.what.yes),
    )
    .await?;
    show(outcome, args.wait, desk, out).await
}

/// Shows what came of a request.
pub(crate) async fn show(
    outcome: Outcome,
    wait: bool,
    desk: &Desk,
    out: &Output,
) -> anyhow::Result<ExitCode> {
    let planned = match outcome {
        Outcome::Planned(p) => p,
        Outcome::Proposed(p) => {
            out.show(&super::policy::describe(&p), &json!({ "proposal": p }))?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    // Retraining may take long: whoever waits sees at once what is going to happen.
    if !out.json {
        out.show(&planned.text, &())?;
    }
    let mut states = vec![];
    for id in &planned.ids {
        states.push(if wait {
            finished(desk, *id).await?
        } else {
            state(desk, *id).await?
        });
    }
    let mut texts = vec![];
    for s in &states {
        let mut text = describe(s);
        if let Some(lists) = super::lists::of_deletion(desk, s.id).await? {
            text += &super::lists::describe_deletion(&lists);
        }
        texts.push(text);
    }
    out.show(
        &texts.join("\n"),
        &json!({ "plan": planned.plan, "deletions": states }),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// The state of a deletion.
pub(crate) async fn state(desk: &Desk, id: u64) -> anyhow::Result<DeletionState> {
    match desk.ask(AdminRequest::Deletion { id }).await? {
        AdminReply::Deletion(state) => Ok(state),
        other => unexpected(&other),
    }
}

/// Waits until a deletion is done, and says what for: soon after the beginning, then every
/// [`SAY_EVERY`].
async fn finished(desk: &Desk, id: u64) -> anyhow::Result<DeletionState> {
    let begun = Instant::now();
    let mut next = SAY_FIRST;
    loop {
        let s = state(desk, id).await?;
        if s.phase == DeletionPhase::Done {
            return Ok(s);
        }
        if s.id != id {
            bail!("asked for deletion {id}, got {}", s.id);
        }
        if begun.elapsed() >= next {
            note(&waiting(&s, next == SAY_FIRST));
            next = begun.elapsed() + SAY_EVERY;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// What a deletion that is not done waits for; the first time also that nobody has to wait.
fn waiting(s: &DeletionState, first: bool) -> String {
    let mut text = format!("deletion {}: {}", s.id, phase(s.phase));
    if !s.waits_for.is_empty() {
        let _ = write!(text, "; it waits for {}", s.waits_for);
    }
    if first {
        let _ = write!(
            text,
            ". It goes on without this command: `lethe-admin status --deletion {}`",
            s.id
        );
    }
    text
}

/// The state for people: phase, times, hashes.
pub(crate) fn describe(s: &DeletionState) -> String {
    let mut out = format!("deletion {} ({}): {}", s.id, s.request, phase(s.phase));
    if let Some(t) = s.seconds_until_exact {
        let _ = write!(out, "\n  served model free of the data after {t:.3} s");
    }
    if let Some(t) = s.seconds_until_retrained {
        let _ = write!(out, "\n  retrained and released after {t:.1} s");
    }
    if let Some(r) = &s.removed {
        let _ = write!(
            out,
            "\n  removed {} event(s) on {} device(s)",
            r.events, r.answered
        );
        let left_out = r.silent + r.unconsented;
        if left_out > 0 {
            let _ = write!(
                out,
                "; {left_out} person(s) left out, {} of them asked for consent",
                r.unconsented
            );
        }
    }
    if !s.waits_for.is_empty() {
        let _ = write!(out, "\n  waits for {}", s.waits_for);
    }
    for (k, (before, now)) in s.before.iter().zip(&s.now).enumerate() {
        let same = if before == now {
            "unchanged"
        } else {
            "replaced"
        };
        let _ = write!(
            out,
            "\n  shard {k}: {} -> {} {same}",
            before.short(),
            now.short()
        );
    }
    if s.phase == DeletionPhase::Done {
        let _ = write!(out, "\n  receipt: lethe-admin receipt --deletion {}", s.id);
    }
    out
}

/// A phase, as people call it.
pub(crate) fn phase(p: DeletionPhase) -> &'static str {
    match p {
        DeletionPhase::Planned => "accepted",
        DeletionPhase::WaitingForDevice => "waiting for devices",
        DeletionPhase::Retraining => "retraining",
        DeletionPhase::Done => "done",
    }
}
