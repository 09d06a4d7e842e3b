//! `lethe-admin epoch start`, `status` and `cancel`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::epochs::{EpochPhase, EpochPlan, EpochState, EpochStates, Lacks, RecipeChange};
use lethe_proto::ids::EpochNo;
use lethe_proto::limits::MAX_RECIPE;
use serde_json::json;

use crate::desk::{Desk, unexpected};
use crate::output::Output;
use crate::when::show_time;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Found the next epoch: devices join it with what they hold now, it trains beside the one that
    /// serves, and takes its place when it is trained. Shows what changes and what it costs;
    /// nothing is done without --yes.
    Start(Start),
    /// All epochs: which serves, which is joined or trained, and what devices lack for it.
    Status,
    /// Give up the epoch that follows the one which serves: what it learned is destroyed.
    Cancel(Cancel),
}

#[derive(clap::Args)]
struct Start {
    /// Recipe of the epoch (TOML, the keys of `[recipe]` in the server's configuration); that of
    /// the epoch which serves when absent.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Base model of the epoch: an absolute path on the coordinator's machine; that of the epoch
    /// which serves when absent.
    #[arg(long)]
    model: Option<String>,
    /// Do it, and do not only show it.
    #[arg(long)]
    yes: bool,
}

#[derive(clap::Args)]
struct Cancel {
    /// Its number; `lethe-admin epoch status` shows it.
    epoch: u32,
}

pub(crate) async fn run(args: &Args, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Start(args) => start(args, desk, out).await,
        What::Status => status(desk, out).await,
        What::Cancel(args) => cancel(args, desk, out).await,
    }
}

/// The recipe's text. A prompt that is a file is read here: the coordinator has another machine.
fn recipe_text(path: &Path) -> anyhow::Result<String> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(name)?;
    let mut table: toml::Table = text.parse().with_context(name)?;
    let prompt = table.get("prompt").and_then(toml::Value::as_str);
    let file = prompt.filter(|p| !p.contains("{target}"));
    if let Some(file) = file {
        let beside = path.parent().unwrap_or(Path::new(".")).join(file);
        let read = std::fs::read_to_string(&beside);
        let template = read.with_context(|| format!("prompt: {}", beside.display()))?;
        table.insert("prompt".into(), template.trim_end().into());
    }
    let text = toml::to_string(&table)?;
    if text.len() > MAX_RECIPE {
        let got = text.len();
        bail!("{}: a recipe of {got} bytes, at most {MAX_RECIPE}", name());
    }
    Ok(text)
}

async fn start(args: &Start, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let recipe = args.recipe.as_deref().map(recipe_text).transpose()?;
    let ask = AdminRequest::EpochStart {
        recipe,
        model: args.model.clone(),
        dry_run: !args.yes,
    };
    let plan = match desk.ask(ask).await? {
        AdminReply::EpochPlanned(plan) => plan,
        other => return unexpected(&other),
    };
    out.show(&describe(&plan), &plan)?;
    Ok(ExitCode::SUCCESS)
}

fn change(c: &RecipeChange) -> String {
    let value = |text: &str| match text {
        "" => "absent".to_owned(),
        text => text.to_owned(),
    };
    let needs = match c.device {
        true => "   (devices have to load their model anew)",
        false => "",
    };
    format!(
        "\n  {}: {} -> {}{needs}",
        c.key,
        value(&c.from),
        value(&c.to)
    )
}

fn describe(plan: &EpochPlan) -> String {
    let mut text = match plan.founded {
        Some(no) => format!("{no} is founded: devices join it with what they hold now"),
        None => "the next epoch; nothing is done yet".to_owned(),
    };
    if plan.changes.is_empty() && plan.model.is_none() {
        text += "\nits recipe and its base model are those of the epoch which serves";
    }
    if !plan.changes.is_empty() {
        text += "\nits recipe changes:";
        plan.changes.iter().for_each(|c| text += &change(c));
    }
    if let Some(model) = &plan.model {
        let _ = write!(
            text,
            "\nits base model changes to {}: devices have to load it",
            model.short()
        );
    }
    if !plan.changes.is_empty() || plan.model.is_some() {
        text += "\ndevices whose app speaks an older protocol than minor version 5 train no more \
                 from then on, and get no adapters; lists go on";
    }
    let cost = &plan.cost;
    let _ = write!(
        text,
        "\nit costs at most {} rounds, {} devices' parts in them, {} samples",
        cost.rounds, cost.client_rounds, cost.samples
    );
    if let Some(bytes) = cost.bytes {
        let _ = write!(text, ", {:.1} MB", bytes as f64 / 1e6);
    }
    if let Some(seconds) = cost.seconds {
        let _ = write!(text, ", {seconds} s with a round open");
    }
    let _ = write!(
        text,
        "\nit begins when nine tenths of those in the epoch which serves have joined it, and at \
         the latest at {} (UTC) with those who have; with fewer than `min_subjects` it is given up",
        show_time(plan.joins_until)
    );
    if plan.founded.is_none() {
        text += "\nto do it: the same command with --yes";
    }
    text
}

/// How all epochs are.
pub(crate) async fn states(desk: &Desk) -> anyhow::Result<EpochStates> {
    match desk.ask(AdminRequest::Epochs).await? {
        AdminReply::Epochs(states) => Ok(states),
        other => unexpected(&other),
    }
}

async fn status(desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let states = states(desk).await?;
    let mut text: Vec<String> = states.epochs.iter().map(one).collect();
    let (new, all) = (states.newcomers, states.people);
    text.push(format!(
        "{new} of {all} people train only from the next epoch on"
    ));
    text.push(rule(&states));
    out.show(&text.join("\n"), &states)?;
    Ok(ExitCode::SUCCESS)
}

fn rule(states: &EpochStates) -> String {
    let people = states
        .new_people
        .map(|part| format!("when that are {:.0} % of them", part * 100.0));
    let time = states.next.map(|at| format!("at {} (UTC)", show_time(at)));
    let rules: Vec<String> = time.into_iter().chain(people).collect();
    match rules.is_empty() {
        true => "no rule starts the next epoch: `roll` in the server's configuration, or \
                 `lethe-admin epoch start`"
            .to_owned(),
        false => format!("the next one is started by rule {}", rules.join(", or ")),
    }
}

fn lacks(what: Lacks) -> &'static str {
    match what {
        Lacks::Model => "another base model",
        Lacks::Layers => "other layers (`split`)",
        Lacks::Arithmetic => "other arithmetic (`compute`)",
        Lacks::Recipe => "a newer version of the app",
    }
}

fn at(time: Option<u64>) -> String {
    time.map_or_else(
        || "at an unknown time".to_owned(),
        |t| format!("{} (UTC)", show_time(t)),
    )
}

fn one(e: &EpochState) -> String {
    let (done, all) = e.rounds;
    let people = format!("{} people, {} of them train", e.joined, e.trains);
    let how = match e.phase {
        EpochPhase::Serving => format!("serves since {}; {people}", at(e.served)),
        EpochPhase::Training => format!("trained: round {done} of {all}; {people}"),
        EpochPhase::Joining => {
            let waits = match (e.enough, e.joins_until) {
                (0, _) | (_, None) => String::new(),
                (enough, Some(until)) => format!(
                    "; {enough} are waited for, until {} (UTC)",
                    show_time(until)
                ),
            };
            format!("joined: {people}{waits}")
        }
        EpochPhase::Retiring => {
            "another one is served; it is retired when deletions that are about it are done".into()
        }
        EpochPhase::Retired => format!("retired {}", at(e.ended)),
        EpochPhase::Dropped => format!("given up {}", at(e.ended)),
    };
    let mut text = format!("{}: {how}; recipe {}", e.no, e.recipe.short());
    for (what, n) in &e.lacks {
        let _ = write!(
            text,
            "\n  {n} device(s) cannot follow: they need {}",
            lacks(*what)
        );
    }
    text
}

/// What `status` says while an epoch follows another.
pub(crate) fn under_way(states: &EpochStates) -> String {
    let serves = states.epochs.iter().any(|e| e.phase == EpochPhase::Serving);
    let follows =
        |e: &&EpochState| serves && matches!(e.phase, EpochPhase::Joining | EpochPhase::Training);
    let all = states.epochs.iter().filter(follows);
    all.map(|e| format!("\n{}", one(e))).collect()
}

async fn cancel(args: &Cancel, desk: &Desk, out: &Output) -> anyhow::Result<ExitCode> {
    let epoch = EpochNo(args.epoch);
    match desk.ask(AdminRequest::EpochCancel { epoch }).await? {
        AdminReply::Done => {
            let text = format!("{epoch} is given up: what it learned is destroyed");
            out.show(&text, &json!({ "cancelled": args.epoch }))?;
            Ok(ExitCode::SUCCESS)
        }
        other => unexpected(&other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_is_a_file_is_sent_as_its_text() {
        let dir = tempfile::tempdir().expect("tempdir");
        let recipe = dir.path().join("recipe.toml");
        std::fs::write(&recipe, "rounds = 2\nprompt = \"p.txt\"\n").expect("writes");
        let missing = recipe_text(&recipe).expect_err("there is no such file");
        assert!(format!("{missing:#}").contains("p.txt"), "{missing:#}");
        let template = "{liked} {disliked} {target}";
        std::fs::write(dir.path().join("p.txt"), format!("{template}\n")).expect("writes");
        let text = recipe_text(&recipe).expect("reads");
        let table: toml::Table = text.parse().expect("is TOML");
        assert_eq!(table["prompt"].as_str(), Some(template));
        std::fs::write(&recipe, "rounds = ").expect("writes");
        assert!(recipe_text(&recipe).is_err());
    }
}
