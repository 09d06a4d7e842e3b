//! `lethe-server`: wiring only.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;
use lethe_coordinator::Coordinator;
use lethe_coordinator::config::ServerConfig;

/// The coordinator of a Lethe federation.
#[derive(Parser)]
#[command(name = "lethe-server", version)]
struct Cli {
    /// Configuration file (TOML); docs/operations.md explains the keys.
    #[arg(long)]
    config: PathBuf,
    /// End when standard input closes: for a parent that must leave nothing running.
    #[arg(long)]
    with_parent: bool,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("LETHE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let text = std::fs::read_to_string(&cli.config).with_context(|| format!("reading {}", cli.config.display()))?;
    let config = ServerConfig::parse(&text).with_context(|| format!("in {}", cli.config.display()))?;
    let data_dir = config.data_dir.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let coordinator = Coordinator::open(config)?;
        if let Some(invitation) = coordinator.first_admin()? {
            write_private(&data_dir.join("admin-invitation"), &invitation.text())?;
        }
        let addr = coordinator.listen()?;
        // Written last: whoever waits for it finds everything else in place.
        write_private(&data_dir.join("address"), &addr.to_string())?;
        tracing::info!(%addr, "listening");
        wait_for_end(cli.with_parent).await?;
        coordinator.shutdown();
        anyhow::Ok(())
    })?;
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    Ok(())
}

async fn wait_for_end(with_parent: bool) -> anyhow::Result<()> {
    let parent_gone = async {
        if !with_parent {
            return std::future::pending().await;
        }
        // A plain thread: tokio's standard input would keep the runtime from ending.
        let (send, receive) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = send.send(());
        });
        let _ = receive.await;
    };
    tokio::select! {
        () = parent_gone => {}
        r = tokio::signal::ctrl_c() => r?,
        r = terminated() => r?,
    }
    Ok(())
}

#[cfg(unix)]
async fn terminated() -> std::io::Result<()> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?.recv().await;
    Ok(())
}

#[cfg(not(unix))]
async fn terminated() -> std::io::Result<()> {
    std::future::pending().await
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let temp = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temp).with_context(|| temp.display().to_string())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temp, path).with_context(|| path.display().to_string())
}
