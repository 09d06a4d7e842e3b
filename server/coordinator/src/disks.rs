//! Where this coordinator's keys lie, and who hears of it.

use std::path::PathBuf;

use lethe_proto::disks::{KeyDisk, KeyFate};
use lethe_seal::disk::{self, Disk, Verdict};

use crate::CoordinatorError;
use crate::config::ServerConfig;

/// Folders in which keys are destroyed: one that is not there yet will be on its parent's disk.
fn folders(config: &ServerConfig) -> Vec<PathBuf> {
    let keys = config.keys_dir();
    let tally = keys.join("tally");
    vec![config.data_dir.clone(), keys, tally]
}

/// Looks at the folders, before anything else is written to them.
///
/// # Errors
/// [`CoordinatorError::Recoverable`]: one keeps keys that are destroyed, and the configuration does
/// not say that this is known.
pub(crate) fn check(config: &ServerConfig) -> Result<Vec<Disk>, CoordinatorError> {
    let data = &config.data_dir;
    std::fs::create_dir_all(data).map_err(|source| lethe_store::StoreError::Io {
        path: data.clone(),
        source,
    })?;
    lethe_store::keys::make_private(&config.keys_dir())?;
    Ok(disk::check(
        &folders(config),
        config.accept_recoverable_keys,
    )?)
}

/// Says in the log what they are, and gives it for operators to read. Once the folder is ours: what
/// keeps a start from it comes first in the log.
pub(crate) fn said(disks: &[Disk]) -> Vec<KeyDisk> {
    disks.iter().for_each(log);
    disks.iter().map(told).collect()
}

fn log(disk: &Disk) {
    match disk.verdict {
        Verdict::InPlace => tracing::info!("{disk}"),
        Verdict::Unknown => tracing::warn!("whether a destroyed key is gone is not known: {disk}"),
        Verdict::Kept => {
            tracing::warn!("destroyed keys can be recovered, as the configuration accepts: {disk}")
        }
    }
}

fn told(disk: &Disk) -> KeyDisk {
    KeyDisk {
        kind: disk.kind.clone(),
        fate: match disk.verdict {
            Verdict::InPlace => KeyFate::Gone,
            Verdict::Unknown => KeyFate::Unknown,
            Verdict::Kept => KeyFate::Recoverable,
        },
        text: disk.to_string(),
    }
}

/// As labels of monitoring have it.
pub(crate) fn label(fate: KeyFate) -> &'static str {
    match fate {
        KeyFate::Gone => "gone",
        KeyFate::Unknown => "unknown",
        KeyFate::Recoverable => "recoverable",
    }
}
