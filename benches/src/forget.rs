//! `lethe bench forget`: how long until what is served is exact, what placement saves, whether
//! anything is left of deleted subjects, whether damage goes unnoticed, how large receipts are and
//! how long their verification takes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use lethe_benches::Federation;
use lethe_learn::seed::Seed;
use lethe_plan::simulate::{Placement, Shape, Trace};
use lethe_proto::admin::{
    AdminReply, AdminRequest, CoordinatorStatus, DeletionPhase, DeletionState,
};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use lethe_proto::message::{Reply, Request};
use lethe_tests::canary;
use lethe_tests::corruption::{self, Damage};
use lethe_tests::world::World;
use serde_json::{Value, json};

/// Measures deletion.
#[derive(Parser)]
struct Cli {
    /// Write the figures here; standard output when absent.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Deletions on the real model, one after another; 0 leaves them out.
    #[arg(long, default_value_t = 200)]
    deletions: usize,
    /// Canary subjects; 0 leaves them out.
    #[arg(long, default_value_t = 1000)]
    canaries: u32,
    /// SIGKILLs of the coordinator in the middle of their deletions.
    #[arg(long, default_value_t = 40)]
    kills: u32,
    /// Damages of each kind (one bit, a page of zeros, a truncation); 0 leaves them out.
    #[arg(long, default_value_t = 2000)]
    damages: u32,
    /// Write the simulated cost curves here, as CSV.
    #[arg(long)]
    curves: Option<PathBuf>,
    /// Only simulate; figures that are left out are null.
    #[arg(long)]
    simulate_only: bool,
}

/// K = 4, R = 4; the cost of a deletion does not depend on how many subjects there are beyond a
/// cohort per slice.
const SHAPE: Shape = Shape {
    shards: 4,
    slices: 4,
    subjects: 100_000,
    deletions: 10_000,
    batch: 1,
    rounds: 50,
    cohort: 32,
    samples: 8,
    seed: 1,
};

const TRACES: [(&str, Trace); 3] = [
    ("uniform", Trace::Uniform),
    ("recent_first", Trace::RecentFirst),
    ("core_users", Trace::CoreUsers),
];

fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn simulate(curves: Option<&Path>) -> anyhow::Result<Value> {
    let mut csv = String::from("trace,placement,batch,deletions,samples_per_deletion,saving\n");
    let mut saved = serde_json::Map::new();
    for (name, trace) in TRACES {
        for (placed, placement) in [("hash", Placement::Hash), ("tenure", Placement::Tenure)] {
            for batch in [1, 10, 100] {
                for p in (Shape { batch, ..SHAPE }).curve(placement, trace) {
                    csv += &format!(
                        "{name},{placed},{batch},{},{:.0},{:.2}\n",
                        p.deletions, p.samples, p.saving
                    );
                }
            }
        }
        saved.insert(name.into(), json!(SHAPE.saving(Placement::Tenure, trace)));
    }
    if let Some(path) = curves {
        std::fs::write(path, csv).with_context(|| path.display().to_string())?;
    }
    Ok(Value::Object(saved))
}

/// A program beside this one.
fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!(
            "{} is missing: build with `cargo build --release --workspace`",
            path.display()
        );
    }
    Ok(path)
}

async fn ask(fed: &Federation, request: AdminRequest) -> anyhow::Result<AdminReply> {
    match fed.operator.call(&Request::Admin(request)).await? {
        Reply::Admin(reply) => Ok(reply),
        other => bail!("unexpected answer {other:?}"),
    }
}

async fn status(fed: &Federation) -> anyhow::Result<CoordinatorStatus> {
    match ask(fed, AdminRequest::Status).await? {
        AdminReply::Status(s) => Ok(s),
        other => bail!("unexpected answer {other:?}"),
    }
}

async fn deletion(fed: &Federation, id: u64) -> anyhow::Result<DeletionState> {
    match ask(fed, AdminRequest::Deletion { id }).await? {
        AdminReply::Deletion(d) => Ok(d),
        other => bail!("unexpected answer {other:?}"),
    }
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * p).round() as usize]
}

/// Deletions on SmolLM2-135M and MovieLens-100K: K = 4, R = 4.
async fn latency(deletions: usize) -> anyhow::Result<Value> {
    const STAY: usize = 24;
    let subjects = deletions + STAY;
    let recipe = "shards = 4\nanchors = 2\nslices = 4\nrounds = 1\ncohort = 4\nquorum = \
                  2\nvalidation = 1\n\
                  wire = \"f16\"\nlocal = { samples = 2, batch = 2 }\n";
    let fed = Federation::start(recipe, subjects).await?;
    let mut tasks = vec![];
    for user in 0..subjects as u32 {
        let events = fed.events(user, 16);
        let client = fed.client(user, &events, 15).await?;
        tasks.push(tokio::spawn(async move {
            loop {
                if client.step().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }));
    }
    say(&format!("{subjects} subjects joined; training"));
    while !status(&fed).await?.shards.iter().all(|s| s.done) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let mut order: Vec<u32> = (0..subjects as u32).collect();
    Seed::from_u64(1)
        .derive("order", &[])
        .rng()
        .shuffle(&mut order);
    let (mut exact, mut answered, mut last) = (vec![], vec![], 0);
    for user in &order[..deletions] {
        let requests = vec![DeletionRequest::Erase {
            subject: SubjectId::new(user.to_string())?,
        }];
        let started = Instant::now();
        let AdminReply::Planned { ids, .. } = ask(
            &fed,
            AdminRequest::Forget {
                requests,
                dry_run: false,
                asked: 0,
                reference: String::new(),
                confirmed: false,
            },
        )
        .await?
        else {
            bail!("the deletion of {user} was not accepted")
        };
        answered.push(started.elapsed().as_secs_f64());
        tasks[*user as usize].abort();
        last = ids[0];
        exact.push(
            deletion(&fed, last)
                .await?
                .seconds_until_exact
                .context("exact before the answer")?,
        );
    }
    exact.sort_by(f64::total_cmp);
    answered.sort_by(f64::total_cmp);
    say("retraining with those who remain, for a receipt");
    while deletion(&fed, last).await?.phase != DeletionPhase::Done {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let AdminReply::Receipt(text) = ask(&fed, AdminRequest::Receipt { id: last }).await? else {
        bail!("no receipt")
    };
    let key = status(&fed).await?.log_key;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("receipt.json");
    std::fs::write(&path, &text)?;
    let mut times = vec![];
    for _ in 0..11 {
        let started = Instant::now();
        let out = Command::new(sibling("lethe-verify")?)
            .arg("receipt")
            .arg(&path)
            .args(["--log-key", &key])
            .output()?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        if !out.status.success() {
            bail!(
                "the receipt does not verify: {}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
    }
    times.sort_by(f64::total_cmp);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(json!({
        "exact_p50": percentile(&exact, 0.5),
        "exact_p99": percentile(&exact, 0.99),
        "answered_p50": percentile(&answered, 0.5),
        "answered_p99": percentile(&answered, 0.99),
        "receipt_bytes": text.len(),
        "verify_ms": percentile(&times, 0.5),
    }))
}

async fn damages(tries: u32) -> anyhow::Result<Value> {
    let world = World::new(8);
    let (coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    op.forget(1, &[]).await;
    fleet.abort();
    coordinator.shutdown();
    let config = world.config("");
    let mut sum = corruption::Outcome::default();
    for how in [Damage::Bit, Damage::Page, Damage::Truncate] {
        let o = corruption::run(&config, how, tries, 1);
        say(&format!("{how:?}: {o:?}"));
        sum.tried += o.tried;
        sum.harmless += o.harmless;
        sum.refused += o.refused;
        sum.quarantined += o.quarantined;
        sum.silent += o.silent;
        sum.panics += o.panics;
    }
    Ok(json!({
        "tried": sum.tried, "silent": sum.silent, "panics": sum.panics, "harmless": sum.harmless,
        "quarantined": sum.quarantined, "refused": sum.refused,
    }))
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let saved = simulate(cli.curves.as_deref())?;
    say(&format!(
        "retraining saved, K = 4, R = 4, placement by tenure: {saved}"
    ));
    let (mut speed, mut left, mut damage) = (Value::Null, None, Value::Null);
    let wanted = |n: bool| n && !cli.simulate_only;
    if wanted(cli.deletions > 0) {
        speed = runtime.block_on(latency(cli.deletions))?;
        say(&format!(
            "{} deletions on the real model: {speed}",
            cli.deletions
        ));
    }
    if wanted(cli.canaries > 0) {
        left = Some(runtime.block_on(canary::run(
            &sibling("coordinator-process")?,
            cli.canaries,
            cli.kills,
            1,
        )));
        say(&format!("{left:?}"));
    }
    if wanted(cli.damages > 0) {
        damage = runtime.block_on(damages(cli.damages))?;
    }
    let out = json!({
        "seconds_until_exact_p50": speed["exact_p50"],
        "seconds_until_exact_p99": speed["exact_p99"],
        "seconds_answered_p50": speed["answered_p50"],
        "seconds_answered_p99": speed["answered_p99"],
        "retrain_saved": saved,
        "canary_hits": left.map(|l| l.in_files + l.in_records),
        "canaries": left.map(|l| json!({
            "deleted": l.deleted, "kills": l.kills, "files": l.files, "control_hits": l.control,
        })),
        "corruptions": damage,
        "receipt_bytes": speed["receipt_bytes"],
        "verify_ms": speed["verify_ms"],
    });
    let text = serde_json::to_string_pretty(&out)? + "\n";
    match cli.json {
        Some(path) => std::fs::write(&path, text).with_context(|| path.display().to_string()),
        None => Ok(std::io::stdout().write_all(text.as_bytes())?),
    }
}
