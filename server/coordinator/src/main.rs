//! `lethe-server`: wiring only.

use clap::Parser;
use lethe_coordinator::process::Audit;

/// The coordinator of a Lethe federation.
#[derive(Parser)]
#[command(name = "lethe-server", version)]
struct Cli {
    /// Configuration file (TOML); docs/operations.md explains the keys.
    #[arg(long)]
    config: std::path::PathBuf,
    /// End when standard input closes: for a parent that must leave nothing running.
    #[arg(long)]
    with_parent: bool,
    /// Train the rounds of this bundle again, for an auditor (`lethe audit` does it all).
    #[arg(long, requires = "log_key")]
    audit: Option<std::path::PathBuf>,
    /// Key of the log that the bundle must be in.
    #[arg(long)]
    log_key: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("LETHE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let audit = cli
        .audit
        .zip(cli.log_key)
        .map(|(bundle, key)| Audit { bundle, key });
    Ok(lethe_coordinator::process::run(
        &cli.config,
        cli.with_parent,
        audit.as_ref(),
    )?)
}
