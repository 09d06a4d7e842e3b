//! `lethe-admin`: the privacy team's tool. One file per command; exit code 0 success, 1 failure, 2 usage, 3 not equal
//! or not verified.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod commands;
mod desk;
mod output;

#[derive(Parser)]
#[command(name = "lethe-admin", version, about = "Deletion requests, receipts and their verification")]
struct Cli {
    /// Folder with this operator's identity.
    #[arg(long, global = true, default_value = "lethe-admin-home", env = "LETHE_ADMIN_HOME")]
    home: std::path::PathBuf,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Exchange an invitation for an operator identity (once).
    Enrol(commands::enrol::Args),
    /// State of the coordinator, or of one deletion.
    Status(commands::status::Args),
    /// Delete a subject, or single items of a subject.
    Forget(commands::forget::Args),
    /// Fetch the receipt of a finished deletion.
    Receipt(commands::receipt::Args),
    /// Verify a receipt, offline.
    Verify(commands::verify::Args),
    /// Retrain a shard from scratch on what remains and compare hashes.
    Replay(commands::replay::Args),
    /// Issue a single-use invitation.
    Invite(commands::invite::Args),
    /// Revoke the certificates of a subject.
    Revoke(commands::revoke::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let out = output::Output { json: cli.json };
    let result = match cli.command {
        Command::Verify(args) => commands::verify::run(&args, &out),
        command => run_online(&cli.home, command, &out),
    };
    result.unwrap_or_else(|e| {
        output::error(&format!("{e:#}"));
        ExitCode::FAILURE
    })
}

fn run_online(home: &std::path::Path, command: Command, out: &output::Output) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if let Command::Enrol(args) = command {
            return commands::enrol::run(&args, home, out).await;
        }
        let desk = desk::Desk::open(home).await?;
        let code = match command {
            Command::Status(args) => commands::status::run(&args, &desk, out).await,
            Command::Forget(args) => commands::forget::run(&args, &desk, out).await,
            Command::Receipt(args) => commands::receipt::run(&args, &desk).await,
            Command::Replay(args) => commands::replay::run(&args, &desk, out).await,
            Command::Invite(args) => commands::invite::run(&args, &desk, out).await,
            Command::Revoke(args) => commands::revoke::run(&args, &desk).await,
            Command::Enrol(_) | Command::Verify(_) => Ok(ExitCode::SUCCESS),
        };
        desk.close().await;
        code
    })
}
