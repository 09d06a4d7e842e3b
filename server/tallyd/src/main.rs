//! `lethe-tally`: wiring only.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lethe_store::asking::AskError;
use lethe_tallyd::TallydError;
use lethe_tallyd::process::{self, Verb};

/// A tally of its own: it holds histories under handles, and knows no names.
///
/// Exit codes: 0 done; 1 it failed; 2 the command line or the configuration is wrong; 75 the
/// process that has the folder does not answer.
#[derive(Parser)]
#[command(name = "lethe-tally", version)]
struct Cli {
    /// Configuration file (TOML); docs/samples/tally.toml has all keys.
    #[arg(long, global = true, default_value = "tally.toml")]
    config: PathBuf,
    /// End when standard input closes: for a parent that must leave nothing running.
    #[arg(long, global = true)]
    with_parent: bool,
    /// Refuse a catalogue with malformed rows, or with something that has to be guessed, instead of
    /// leaving rows out (`strict_catalogue` in the configuration).
    #[arg(long, global = true)]
    strict: bool,
    /// Start also where the file system keeps what is overwritten, so that keys which deletions
    /// destroy can be recovered from the disk (also `accept_recoverable_keys` in the
    /// configuration).
    #[arg(long, global = true)]
    accept_recoverable_keys: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the data folder, and print the invitation for the coordinator. It is used once.
    Init,
    /// Serve until interrupted.
    Serve,
    /// Say how the tally is.
    Status,
    /// Make a new sealing key. The one before opens envelopes for one day more.
    Rotate,
    /// Write all keys under fresh master keys, and destroy those before.
    RotateMaster,
    /// Print a new invitation. When it is used, the coordinator of before is let in no more.
    Invite,
}

fn run(cli: &Cli) -> Result<Option<String>, (u8, TallydError)> {
    let mut config = process::read_config(&cli.config).map_err(|e| (2, e))?;
    config.strict_catalogue |= cli.strict;
    config.accept_recoverable_keys |= cli.accept_recoverable_keys;
    let code = |e: TallydError| match e {
        TallydError::Asking(AskError::Silent { .. } | AskError::Slow { .. }) => (75, e),
        other => (1, other),
    };
    let verb = match cli.command {
        Command::Init => return process::init(&config).map(Some).map_err(code),
        Command::Serve => {
            return process::serve(&config, cli.with_parent)
                .map(|()| None)
                .map_err(code);
        }
        Command::Status => Verb::Status,
        Command::Rotate => Verb::Rotate,
        Command::Invite => Verb::Invite,
        Command::RotateMaster => Verb::Master,
    };
    process::command(&config, verb).map(Some).map_err(code)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    lethe_run::log::begin("info", true);
    if let Err(e) = lethe_seal::process::no_dumps() {
        tracing::warn!("the system may write this process's memory to disk: {e}");
    }
    match run(&cli) {
        Ok(text) => {
            let text = text.unwrap_or_default();
            let text = text.trim_end();
            let written = match text.is_empty() {
                true => Ok(()),
                false => writeln!(std::io::stdout().lock(), "{text}"),
            };
            match written {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err((code, e)) => {
            // Who reads it sees it; who does not has the code.
            let _ = writeln!(std::io::stderr().lock(), "error: {e}");
            ExitCode::from(code)
        }
    }
}
