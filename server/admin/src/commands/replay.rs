//! `lethe-admin replay`. Exit code 0: equal; 3: different; 6: what was replayed is equal, and
//! stages were left out; 1: given up.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::ShardId;
use lethe_proto::people::{MissingPerson, ReplayProgress, ReplayVerdict, StageOutcome};
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::{Output, note};

/// How often `--progress` says how far it is, when nothing changes.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Names in a line.
const NAMED: usize = 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of the shard.
    #[arg(required_unless_present = "lists")]
    shard: Option<u16>,
    /// Fold what everybody contributed to the lists again, instead.
    #[arg(long, conflicts_with = "shard")]
    lists: bool,
    /// Go on without people who are missing: stages that need them are left out, and the verdict
    /// is about the others.
    #[arg(long, conflicts_with = "lists")]
    without_missing: bool,
    /// Say on standard error how far it is, and whom it waits for.
    #[arg(long, conflicts_with = "lists")]
    progress: bool,
    /// Begin none: follow the one that runs, or show what the last one found.
    #[arg(long, conflicts_with_all = ["lists", "without_missing"])]
    follow: bool,
}

fn progress(reply: AdminReply) -> anyhow::Result<ReplayProgress> {
    match reply {
        AdminReply::ReplayProgress(p) => Ok(p),
        other => unexpected(&other),
    }
}

fn names<'a>(all: impl Iterator<Item = &'a str>, in_all: u32) -> String {
    let some: Vec<&str> = all.take(NAMED).collect();
    let more = in_all as usize - some.len();
    match more {
        0 => some.join(", "),
        _ => format!("{} and {more} more", some.join(", ")),
    }
}

/// How far it is, and whom it waits for.
fn how_far(p: &ReplayProgress) -> String {
    let (done, all) = p.rounds;
    let mut text = format!(
        "{}: {done} of {all} rounds after {:.0} s",
        p.shard, p.seconds
    );
    if p.waiting_in_all > 0 {
        let waiting = p.waiting.iter().map(|s| s.as_str());
        let _ = write!(
            text,
            "; waits for {} people: {}",
            p.waiting_in_all,
            names(waiting, p.waiting_in_all)
        );
    }
    let left_out = p.stages.iter();
    let left_out = left_out.filter(|s| matches!(s.outcome, StageOutcome::Unproven { .. }));
    let left_out = left_out.count();
    if left_out > 0 {
        let _ = write!(text, "; {left_out} stage(s) left out");
    }
    text
}

fn missing(m: &MissingPerson) -> String {
    match &m.subject {
        Some(subject) => format!("{subject} (number {}): {}", m.number, m.why),
        None => format!("number {}: {}", m.number, m.why),
    }
}

/// What came of it, in words.
fn describe(p: &ReplayProgress) -> String {
    let mut text = match p.verdict {
        ReplayVerdict::Running => format!("RUNNING: {}", how_far(p)),
        ReplayVerdict::Equal | ReplayVerdict::Different if p.hashes.is_some() => {
            let verdict = match p.verdict {
                ReplayVerdict::Equal => "EQUAL",
                _ => "DIFFERENT",
            };
            let (replayed, live) = p.hashes.unwrap_or_default();
            format!(
                "{verdict}: {} retrained from scratch in {:.1} s, {} rounds\n  replayed \
                 {replayed}\n  live     {live}",
                p.shard, p.seconds, p.rounds.1
            )
        }
        ReplayVerdict::GivenUp => format!("GIVEN UP: {}: {}", p.shard, p.why),
        _ => format!("{} ({}, {:.1} s)", p.why, p.shard, p.seconds),
    };
    for stage in &p.stages {
        let n = stage.stage;
        let _ = match stage.outcome {
            // A replay of everything says it with two hashes.
            StageOutcome::Equal if p.hashes.is_some() => continue,
            StageOutcome::Equal => write!(text, "\n  stage {n}: as recorded"),
            StageOutcome::Different { replayed, recorded } => write!(
                text,
                "\n  stage {n}: DIFFERENT\n    replayed {replayed}\n    recorded {recorded}"
            ),
            StageOutcome::Unproven { missing } => write!(
                text,
                "\n  stage {n}: not proven: {missing} who contributed to it are missing"
            ),
        };
    }
    if p.missing_in_all > 0 {
        let _ = write!(text, "\nmissing: {}", p.missing_in_all);
        for m in &p.missing {
            let _ = write!(text, "\n  {}", missing(m));
        }
    }
    text
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let Some(shard) = args.shard.filter(|_| !args.lists) else {
        return super::lists::replay(desk, out).await;
    };
    let shard = ShardId(shard);
    let how = AdminRequest::ReplayProgress { shard };
    let start = AdminRequest::StartReplay {
        shard,
        without_missing: args.without_missing,
    };
    let first = if args.follow { how.clone() } else { start };
    let mut p = progress(desk.ask(first).await?)?;
    let mut said = None;
    let mut said_at = Instant::now();
    while p.verdict == ReplayVerdict::Running {
        let new = (p.rounds.0, p.stages.len());
        let over = said_at.elapsed() >= SAY_EVERY;
        if args.progress && (said != Some(new) || over) {
            note(&how_far(&p));
            said = Some(new);
            said_at = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        p = progress(desk.ask(how.clone()).await?)?;
    }
    let version = super::catalogue::newest_epochs_version(desk).await;
    // Scripts of before read the first of these.
    let (replayed, live) = p.hashes.unzip();
    let equal = p.verdict == ReplayVerdict::Equal;
    let value = json!({
        "equal": equal, "shard": shard,
        "replayed": replayed.map(|h| h.hex()), "live": live.map(|h| h.hex()),
        "seconds": p.seconds, "rounds": p.rounds.1,
        "verdict": p.verdict, "why": p.why, "stages": p.stages,
        "missing": p.missing, "missing_in_all": p.missing_in_all, "catalogue": version,
    });
    let text = describe(&p) + &super::catalogue::describe_replay(version, equal);
    out.show(&text, &value)?;
    Ok(match p.verdict {
        ReplayVerdict::Equal => ExitCode::SUCCESS,
        ReplayVerdict::Partial => ExitCode::from(6),
        ReplayVerdict::GivenUp => ExitCode::FAILURE,
        _ => ExitCode::from(3),
    })
}

#[cfg(test)]
mod tests {
    use lethe_proto::ids::{Digest, SubjectId};
    use lethe_proto::people::StageProof;

    use super::*;

    fn partial() -> ReplayProgress {
        let stage = |stage, outcome| StageProof { stage, outcome };
        ReplayProgress {
            shard: ShardId(2),
            without_missing: true,
            verdict: ReplayVerdict::Partial,
            rounds: (4, 4),
            stages: vec![
                stage(1, StageOutcome::Equal),
                stage(2, StageOutcome::Unproven { missing: 1 }),
            ],
            waiting: vec![],
            waiting_in_all: 0,
            missing: vec![MissingPerson {
                number: 7,
                subject: SubjectId::new("ada").ok(),
                why: "has no device".into(),
            }],
            missing_in_all: 1,
            hashes: None,
            why: "PARTIAL; as recorded: stage 1; not proven: stage 2".into(),
            seconds: 3.0,
        }
    }

    #[test]
    fn a_verdict_says_what_is_proven_and_who_is_missing() {
        assert_eq!(
            describe(&partial()),
            "PARTIAL; as recorded: stage 1; not proven: stage 2 (shard 2, 3.0 s)\n  stage 1: as \
             recorded\n  stage 2: not proven: 1 who contributed to it are missing\nmissing: 1\n  \
             ada (number 7): has no device"
        );
        let mut equal = partial();
        equal.verdict = ReplayVerdict::Equal;
        equal.hashes = Some((Digest([1; 32]), Digest([1; 32])));
        equal.stages.truncate(1);
        equal.missing_in_all = 0;
        equal.missing.clear();
        let text = describe(&equal);
        assert!(text.starts_with("EQUAL: shard 2 retrained"), "{text}");
        assert!(!text.contains("as recorded"), "{text}");
    }

    #[test]
    fn progress_names_some_of_whom_it_waits_for() {
        let mut running = partial();
        running.verdict = ReplayVerdict::Running;
        running.waiting = (0..12)
            .filter_map(|n| SubjectId::new(n.to_string()).ok())
            .collect();
        running.waiting_in_all = 200;
        assert_eq!(
            how_far(&running),
            "shard 2: 4 of 4 rounds after 3 s; waits for 200 people: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 \
             and 190 more; 1 stage(s) left out"
        );
    }
}
