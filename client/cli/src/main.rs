//! `lethe`: demo, fetch, central reference, headless client.

use clap::{Parser, Subcommand};

mod commands;
mod demo;
mod inputs;
mod progress;

#[derive(Parser)]
#[command(name = "lethe", version, about = "A federated, on-device recommender that can forget")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Download the model and the data set into the cache (nothing when all is there).
    Fetch(commands::fetch::Args),
    /// The main job: train federatedly, recommend, delete, verify, replay; prints one table.
    Demo(commands::demo::Args),
    /// Rank items for the person whose sealed history is in a client's folder.
    Recommend(commands::device::RecommendArgs),
    /// Record that the person liked (or did not like) an item.
    Record(commands::device::RecordArgs),
    /// Look for training work for a while.
    Participate(commands::device::ParticipateArgs),
    /// Many clients in one process, driven over standard input (the demo starts one).
    Fleet(commands::fleet::Args),
    /// Run a benchmark.
    Bench(commands::bench::Args),
    /// Fine-tune on one machine without federation: the reference for every other figure.
    TrainCentral(commands::train_central::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Fetch(args) => commands::fetch::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
        Command::Recommend(args) => commands::device::recommend(&args),
        Command::Record(args) => commands::device::record(&args),
        Command::Participate(args) => commands::device::participate(&args),
        Command::Fleet(args) => commands::fleet::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::TrainCentral(args) => commands::train_central::run(&args),
    }
}
