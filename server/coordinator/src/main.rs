//! `lethe-server`: wiring only.

use clap::Parser;
use lethe_coordinator::process::{Audit, Recovery, Start};

/// The coordinator of a Lethe federation.
#[derive(Parser)]
#[command(name = "lethe-server", version)]
struct Cli {
    /// Configuration file (TOML); docs/operations.md explains the keys.
    #[arg(long, global = true)]
    config: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
    /// End when standard input closes: for a parent that must leave nothing running.
    #[arg(long)]
    with_parent: bool,
    /// Refuse a catalogue with malformed rows, or with something that has to be guessed, instead of
    /// leaving rows out (`strict_catalogue` in the configuration).
    #[arg(long)]
    strict: bool,
    /// Start also where the file system keeps what is overwritten, so that keys which deletions
    /// destroy can be recovered from the disk (also `accept_recoverable_keys` in the
    /// configuration).
    #[arg(long)]
    accept_recoverable_keys: bool,
    /// Train the rounds of this bundle again, for an auditor (`lethe audit` does it all).
    #[arg(long, requires = "log_key")]
    audit: Option<std::path::PathBuf>,
    /// Key of the log that the bundle must be in.
    #[arg(long)]
    log_key: Option<String>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Let an operator back in, when no operator's certificate is valid any more: the server that
    /// runs with this configuration on this machine writes an invitation into its data folder. The
    /// transparency log says that this was done.
    RecoverAdmin,
    /// Keys of the server that runs with this configuration on this machine.
    #[command(subcommand)]
    Keys(Keys),
}

#[derive(clap::Subcommand)]
enum Keys {
    /// Exchange a key for a fresh one. The transparency log says that it was done.
    Rotate {
        /// master: all keys are written under fresh master keys. log: another key signs the log.
        /// authority: a new one signs certificates. Devices and operators follow.
        which: Which,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Which {
    /// The master keys that all other keys are sealed under.
    Master,
    /// The key that signs the log.
    Log,
    /// The authority that signs certificates.
    Authority,
}

fn rotate(config: &std::path::Path, which: Which) -> anyhow::Result<()> {
    use std::io::Write;
    let which = match which {
        Which::Master => lethe_coordinator::rotation::Which::Master,
        Which::Log => lethe_coordinator::rotation::Which::Log,
        Which::Authority => lethe_coordinator::rotation::Which::Authority,
    };
    let said = lethe_coordinator::process::rotate(config, which)?;
    Ok(writeln!(std::io::stdout().lock(), "{said}")?)
}

fn recover(config: &std::path::Path) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match lethe_coordinator::process::recover_admin(config)? {
        Recovery::Invited(file) => {
            let file = file.display();
            writeln!(
                out,
                "an operator may enrol: lethe-admin enrol --server ADDRESS --invitation {file}"
            )?;
            Ok(())
        }
        Recovery::WhenStarted(file) => anyhow::bail!(
            "no server answers on this data folder: start it, and the invitation is in {}",
            file.display()
        ),
    }
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let Some(config) = &cli.config else {
        anyhow::bail!("give --config FILE; docs/operations.md explains the keys");
    };
    match cli.command {
        Some(Command::RecoverAdmin) => return recover(config),
        Some(Command::Keys(Keys::Rotate { which })) => return rotate(config, which),
        None => {}
    }
    lethe_run::log::begin("info", true);
    if let Err(e) = lethe_seal::process::no_dumps() {
        tracing::warn!("the system may write this process's memory to disk: {e}");
    }
    let audit = cli
        .audit
        .zip(cli.log_key)
        .map(|(bundle, key)| Audit { bundle, key });
    let start = Start {
        with_parent: cli.with_parent,
        accept_recoverable_keys: cli.accept_recoverable_keys,
        strict: cli.strict,
    };
    Ok(lethe_coordinator::process::run(
        config,
        start,
        audit.as_ref(),
    )?)
}
