//! Configuration of a tally.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lethe_store::keys::{KeysConfig, folder_of};
use lethe_tally::settings::ListsConfig;
use serde::{Deserialize, Serialize};

/// Longest life of a certificate, in days.
const MAX_CERTIFICATE_DAYS: f64 = 3650.0;

/// `lethe-tally --config FILE` (TOML); unknown keys are refused. `docs/two-parties.md` explains
/// what it is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// UDP address to listen on; port 0 takes a free one.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Folder of contributions and keys.
    pub data_dir: PathBuf,
    /// Folder of the log; `DATA_DIR-evidence` when absent. It is never put back from a backup
    /// together with the data folder.
    #[serde(default)]
    pub evidence_dir: Option<PathBuf>,
    /// Where keys are: not in the data folder (docs/keys.md).
    #[serde(default)]
    pub keys: KeysConfig,
    /// Space that is set aside for deletions when the disk is full, in MiB.
    #[serde(default = "default_reserve")]
    pub reserve_mib: u64,
    /// Folder of the public item catalogue (`dataset.toml` names the file): the coordinator's.
    pub catalogue: PathBuf,
    /// Refuse a catalogue with rows that cannot be used, or with something that has to be guessed.
    #[serde(default)]
    pub strict_catalogue: bool,
    /// Days that the coordinator's certificate is valid; part of a day is fine. It renews in the
    /// last third.
    #[serde(
        default = "default_certificate_days",
        deserialize_with = "certificate_days"
    )]
    pub certificate_days: f64,
    /// Whether an auditor is told digests of who counts.
    #[serde(default)]
    pub audits: bool,
    /// Who runs it knows that destroyed keys can be recovered from the disk of `data_dir`, where
    /// its file system keeps what is overwritten. Without this the tally does not start there.
    #[serde(default)]
    pub accept_recoverable_keys: bool,
    /// How lists are made: what the coordinator cannot change.
    #[serde(default)]
    pub lists: ListsConfig,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4434))
}

fn default_reserve() -> u64 {
    64
}

fn default_certificate_days() -> f64 {
    90.0
}

fn certificate_days<'de, D: serde::Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    let days = f64::deserialize(d)?;
    // The shortest are a few seconds, for tests of renewal; certificates know whole seconds.
    if (2.0 / 86_400.0..=MAX_CERTIFICATE_DAYS).contains(&days) {
        return Ok(days);
    }
    Err(serde::de::Error::custom(format!(
        "certificate_days is {days}, expected two seconds (as a part of a day) to \
         {MAX_CERTIFICATE_DAYS} days"
    )))
}

impl Config {
    /// Parses TOML.
    ///
    /// # Errors
    /// Unknown keys, and values out of range.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Folder of the log.
    pub fn evidence(&self) -> PathBuf {
        self.evidence_dir.clone().unwrap_or_else(|| {
            let mut name = self.data_dir.clone().into_os_string();
            name.push("-evidence");
            PathBuf::from(name)
        })
    }

    /// Folder of the keys.
    pub fn keys_dir(&self) -> PathBuf {
        folder_of(&self.keys, &self.data_dir)
    }

    /// Life of the coordinator's certificate.
    pub fn certificate_life(&self) -> Duration {
        Duration::from_secs_f64(self.certificate_days * 86_400.0)
    }
}
