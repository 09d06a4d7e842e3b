//! A coordinator as a process: configuration file in, address and first invitation as files in the
//! data folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lethe_receipt::audit::Bundle;
use lethe_receipt::note::VerifierKey;
use lethe_recipe::{Recipe, RecipeError};
use lethe_recsys::spelling::hint;
use lethe_run::ending::Endings;
use thiserror::Error;

use crate::config::ServerConfig;
use crate::rotation::{self, RotationError, Which};
use crate::{Coordinator, CoordinatorError, fatal};

/// Why the process ended.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The configuration is not valid.
    #[error("{path}: {source}{}\ndocs/operations.md explains the keys", hint(.source))]
    Config {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<toml::de::Error>,
    },
    /// The bundle of an audit does not verify.
    #[error("{path}: {source}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: lethe_receipt::receipt::VerifyError,
    },
    /// The log key of an audit is none.
    #[error("the log key: {0}")]
    Key(#[from] lethe_receipt::note::NoteError),
    /// The recipe of the configuration cannot be used.
    #[error("{0}\ndocs/operations.md explains the keys")]
    Recipe(#[from] RecipeError),
    /// The coordinator could not start.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// Keys were not exchanged.
    #[error(transparent)]
    Rotation(#[from] RotationError),
}

/// A bundle for an audit, and the log key under which it must verify.
#[derive(Clone, Debug)]
pub struct Audit {
    /// The file.
    pub bundle: PathBuf,
    /// Verifier key text.
    pub key: String,
}

impl Audit {
    fn read(&self) -> Result<Bundle, ProcessError> {
        let bytes = std::fs::read(&self.bundle).map_err(io(&self.bundle))?;
        let bad = |source| ProcessError::Bundle {
            path: self.bundle.clone(),
            source,
        };
        Bundle::verify(&bytes, &VerifierKey::parse(&self.key)?).map_err(bad)
    }
}

/// What a command line says of a start, besides the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start {
    /// The process ends when standard input closes.
    pub with_parent: bool,
    /// As [`ServerConfig::accept_recoverable_keys`], which holds as well.
    pub accept_recoverable_keys: bool,
    /// As [`ServerConfig::strict_catalogue`], which holds as well.
    pub strict: bool,
}

/// Runs until interrupted, terminated or hung up or, `with_parent`, until standard input closes.
/// Writes `admin-invitation` (when nobody can administer yet) and `address` into the data folder,
/// readable by this user only.
///
/// # Errors
/// [`ProcessError`]: files that cannot be read, or a coordinator that cannot start.
pub fn run(config: &Path, start: Start, audit: Option<&Audit>) -> Result<(), ProcessError> {
    let bundle = audit.map(Audit::read).transpose()?;
    let mut parsed = read_config(config)?;
    parsed.accept_recoverable_keys |= start.accept_recoverable_keys;
    parsed.strict_catalogue |= start.strict;
    let data_dir = parsed.data_dir.clone();
    // More threads than cores: some read or decode what is stored, and the network must not wait
    // with them.
    let threads = std::thread::available_parallelism().map_or(2, usize::from) + 6;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let runtime = runtime.map_err(io(config))?;
    let result = runtime.block_on(async {
        let coordinator = Coordinator::open(parsed)?;
        // Not before: what keeps it from starting is the first line that is read.
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            config = %config.display(),
            data_dir = %data_dir.display(),
            "lethe-server starts"
        );
        // Not before: another coordinator may use the folder, and this is its address.
        let address = data_dir.join("address");
        let _ = std::fs::remove_file(&address);
        if let Some(bundle) = &bundle {
            coordinator.audit(bundle)?;
        }
        if let Some(invitation) = coordinator.first_admin()? {
            write_private(&data_dir.join("admin-invitation"), &invitation.text())?;
        }
        let addr = coordinator.listen()?;
        if let Some(metrics) = coordinator.listen_metrics().await? {
            write_private(&data_dir.join("metrics-address"), &metrics.to_string())?;
            tracing::info!(%metrics, "metrics");
        }
        let endings = Endings::listen().map_err(io(config))?;
        // Written last: whoever waits for it finds everything else in place.
        write_private(&address, &addr.to_string())?;
        let recovers = tokio::spawn(recoveries(coordinator.clone(), data_dir.clone()));
        fatal::watch("recover-admin", recovers);
        let rotates = tokio::spawn(rotations(coordinator.clone(), data_dir.clone()));
        fatal::watch("keys rotate", rotates);
        tracing::info!(%addr, "listening");
        let why = endings.first(start.with_parent).await;
        tracing::info!(%why, "lethe-server stops");
        coordinator.shutdown();
        Ok(())
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    result
}

/// Name of the file by which `lethe-server recover-admin` asks the server that has the folder.
const RECOVER: &str = "recover-admin";
/// How often a running server looks for it, and how long the other waits for an answer.
const LOOK: Duration = Duration::from_millis(300);
const ANSWER: Duration = Duration::from_secs(10);

/// Answers `recover-admin`. Whoever can write into the data folder holds all its keys: a file there
/// proves as much as anything could.
async fn recoveries(coordinator: Coordinator, data_dir: PathBuf) {
    let request = data_dir.join(RECOVER);
    loop {
        if request.exists() {
            let invited = coordinator.recover_admin().map_err(|e| e.to_string());
            let written = invited.and_then(|i| {
                write_private(&data_dir.join("admin-invitation"), &i.text())
                    .and_then(|()| std::fs::remove_file(&request).map_err(io(&request)))
                    .map_err(|e| e.to_string())
            });
            if let Err(e) = written {
                tracing::error!("recover-admin: {e}");
                // Each try makes an invitation and an entry of the log.
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Answers `keys rotate`.
async fn rotations(coordinator: Coordinator, data_dir: PathBuf) {
    rotation::forget(&data_dir);
    loop {
        let asked = {
            let coordinator = coordinator.clone();
            let data_dir = data_dir.clone();
            tokio::task::spawn_blocking(move || rotation::answer(&coordinator, &data_dir))
        };
        if let Ok(Err(e)) = asked.await {
            tracing::error!("keys rotate: {e}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks the server of this configuration, which has to run on this machine, for new keys.
///
/// # Errors
/// The configuration cannot be read, or the keys were not exchanged.
pub fn rotate(config: &Path, which: Which) -> Result<String, ProcessError> {
    let data_dir = read_config(config)?.data_dir;
    Ok(rotation::ask(&data_dir, which)?)
}

/// What became of [`recover_admin`].
#[derive(Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The invitation is in this file.
    Invited(PathBuf),
    /// No server has the folder now; the next one writes the invitation into this file.
    WhenStarted(PathBuf),
}

/// Asks the server of this configuration for an invitation for an operator: for when no operator's
/// certificate is valid any more. It has to run on the server's machine, as the server's user.
pub fn recover_admin(config: &Path) -> Result<Recovery, ProcessError> {
    let data_dir = read_config(config)?.data_dir;
    let request = data_dir.join(RECOVER);
    let invitation = data_dir.join("admin-invitation");
    write_private(&request, "an operator is to be invited\n")?;
    let asked = Instant::now();
    while asked.elapsed() < ANSWER {
        if !request.exists() {
            return Ok(Recovery::Invited(invitation));
        }
        std::thread::sleep(LOOK);
    }
    Ok(Recovery::WhenStarted(invitation))
}

fn read_config(path: &Path) -> Result<ServerConfig, ProcessError> {
    let text = std::fs::read_to_string(path).map_err(io(path))?;
    // The recipe's own errors name the file's lines.
    Recipe::from_configuration(path, &text)?;
    ServerConfig::parse(&text).map_err(|e| ProcessError::Config {
        path: path.into(),
        source: Box::new(e),
    })
}

fn write_private(path: &Path, text: &str) -> Result<(), ProcessError> {
    let temp = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temp).map_err(io(&temp))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(io(&temp))?;
    std::fs::rename(&temp, path).map_err(io(path))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ProcessError {
    let path = path.to_owned();
    move |source| ProcessError::Io { path, source }
}
