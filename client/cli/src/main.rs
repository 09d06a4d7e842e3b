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
    /// Many clients in one process, driven over standard input (the demo starts one).
    Fleet(commands::fleet::Args),
    /// Fine-tune on one machine without federation: the reference for every other figure.
    TrainCentral(commands::train_central::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Fetch(args) => commands::fetch::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
        Command::Fleet(args) => commands::fleet::run(&args),
        Command::TrainCentral(args) => commands::train_central::run(&args),
    }
}
