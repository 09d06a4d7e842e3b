//! `lethe`: demo, fetch, central reference, headless client.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod commands;
mod demo;
mod inputs;
mod progress;
mod words;

#[derive(Parser)]
#[command(
    name = "lethe",
    version,
    about = "A federated, on-device recommender that can forget"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Download the model and the data set into the cache (nothing when all is there).
    Fetch(commands::fetch::Args),
    /// Turn a catalogue's texts into vectors, for items that nobody has met and for the probability
    /// of a like.
    Encode(commands::encode::Args),
    /// The main job: train federatedly, recommend, delete, verify, replay; prints one table.
    Demo(commands::demo::Args),
    /// Rank items with the language model, over the coordinator, for the person whose sealed
    /// history is in a client's folder.
    Recommend(commands::device::RecommendArgs),
    /// Make a list on the device, without a model: for the person, or of items like one.
    Top(commands::device::TopArgs),
    /// Destroy all that a client keeps in a folder, also without its key.
    Erase(commands::device::EraseArgs),
    /// Record that the person liked (or did not like, rated, viewed, hid) an item.
    Record(commands::device::RecordArgs),
    /// Enrol, join, contribute to the sums of lists, fetch their tables, and look for training work
    /// for a while.
    Participate(commands::device::ParticipateArgs),
    /// Many clients in one process: driven over standard input (the demo starts one), or a load
    /// test (`--clients N`).
    Fleet(commands::fleet::Args),
    /// Run a benchmark.
    Bench(commands::bench::Args),
    /// For an auditor, if the person agrees: the events that a client trains on, and what it has
    /// contributed to the lists, in clear.
    TrainingData(commands::audit::ExportArgs),
    /// Train a shard again from an audit bundle and the exports of its people, or fold the sums of
    /// the lists again, and compare every byte.
    Audit(commands::audit::Args),
    /// Fine-tune on one machine without federation: the reference for every other figure.
    TrainCentral(commands::train_central::Args),
    /// Read a model, and an adapter for it, whole, and print what they are and answer: what is not
    /// computed is refused by name.
    Inspect(commands::inspect::Args),
}

fn main() -> ExitCode {
    // Warnings of the client library go to standard error; `LETHE_LOG` asks for more.
    lethe_run::log::begin("off,lethe_client=warn", false);
    if let Err(e) = lethe_seal::process::no_dumps() {
        let text = "the system may write this process's memory to disk";
        let _ = writeln!(std::io::stderr(), "lethe: {text}: {e}");
    }
    let listening = lethe_run::signals::end_cleanly().map_err(anyhow::Error::from);
    let result = listening.and_then(|()| run());
    lethe_run::signals::settle();
    result.unwrap_or_else(|e| {
        let _ = writeln!(std::io::stderr(), "lethe: {}", words::said(&e));
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match Cli::parse().command {
        Command::TrainingData(args) => commands::audit::export(&args),
        Command::Audit(args) => commands::audit::audit(&args),
        Command::Fetch(args) => commands::fetch::run(&args).map(done),
        Command::Encode(args) => commands::encode::run(&args).map(done),
        Command::Demo(args) => commands::demo::run(&args).map(done),
        Command::Recommend(args) => commands::device::recommend(&args).map(done),
        Command::Top(args) => commands::device::top(&args).map(done),
        Command::Erase(args) => commands::device::erase(&args).map(done),
        Command::Record(args) => commands::device::record(&args).map(done),
        Command::Participate(args) => commands::device::participate(&args).map(done),
        Command::Fleet(args) => commands::fleet::run(&args).map(done),
        Command::Bench(args) => commands::bench::run(&args).map(done),
        Command::TrainCentral(args) => commands::train_central::run(&args).map(done),
        Command::Inspect(args) => commands::inspect::run(&args).map(done),
    }
}
