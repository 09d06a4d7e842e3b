//! Configuration of a coordinator.

use std::net::SocketAddr;
use std::path::PathBuf;

use lethe_ledger::Roll;
use lethe_receipt::note::Signer;
use lethe_store::keys::{KeysConfig, folder_of};
use serde::{Deserialize, Serialize};

use crate::CoordinatorError;
use crate::lists::{ListsConfig, Sums, TallyConfig};

/// `lethe-server --config FILE` (TOML); unknown keys are refused. `docs/operations.md` explains
/// each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// UDP address to listen on; port 0 takes a free one.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// TCP address on which `/metrics` (Prometheus text) and `/healthz` answer, without encryption:
    /// keep it inside. Absent: nowhere.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    /// Folder of the store, the keys and the log.
    pub data_dir: PathBuf,
    /// Folder of the transparency log and the deletion journal; `DATA_DIR-evidence` when absent. It
    /// is never put back from a backup together with the data folder: it is what tells a restored
    /// data folder what to forget again.
    #[serde(default)]
    pub evidence_dir: Option<PathBuf>,
    /// Where keys are: not in the data folder (docs/keys.md).
    #[serde(default)]
    pub keys: KeysConfig,
    /// Space that is set aside for deletions when the disk is full, in MiB.
    #[serde(default = "default_reserve")]
    pub reserve_mib: u64,
    /// GGUF file or Hugging Face folder of the base model.
    pub model: PathBuf,
    /// Folder of the public item catalogue (`dataset.toml` names the file), for the partition's
    /// anchors.
    pub catalogue: PathBuf,
    /// Refuse a catalogue with rows that cannot be used, or with something that has to be guessed;
    /// otherwise such rows are left out, and the log says which.
    #[serde(default)]
    pub strict_catalogue: bool,
    /// The epoch starts when this many subjects have joined.
    #[serde(default = "default_min_subjects")]
    pub min_subjects: usize,
    /// Forward and backward passes that run at once; each uses all threads of the pool.
    #[serde(default = "default_passes")]
    pub passes: usize,
    /// Training passes whose activations are kept in memory at once.
    #[serde(default = "default_tapes")]
    pub tapes: usize,
    /// Most memory that these take together, in MiB (about 4 MiB per layer and 180 tokens of a
    /// pass); a pass that needs more runs alone.
    #[serde(default = "default_tape_mib")]
    pub tape_mib: usize,
    /// Days that a certificate of a device or an operator is valid; part of a day is fine. Holders
    /// renew in the last third.
    #[serde(
        default = "default_certificate_days",
        deserialize_with = "certificate_days"
    )]
    pub certificate_days: f64,
    /// Seconds that a subject's device may take to erase items before the retraining goes on
    /// without the subject.
    #[serde(default = "default_erase_wait")]
    pub erase_wait_s: u64,
    /// Days within which a deletion has to be done (GDPR Article 12: one month).
    #[serde(default = "default_deadline_days")]
    pub deadline_days: u64,
    /// Hours for which a device may use what it got from a release without asking again.
    #[serde(default = "default_release_hours")]
    pub release_hours: u64,
    /// Name of the transparency log, as it appears in checkpoints.
    #[serde(default = "default_log_name")]
    pub log_name: String,
    /// Witnesses of the transparency log.
    #[serde(default)]
    pub log: LogConfig,
    /// Who holds what people contribute to the sums of the lists: `off`, `embedded` or `tally`. In
    /// mode `embedded` this server holds and computes with histories.
    #[serde(default)]
    pub sums: Sums,
    /// Where the tally of its own is, with `sums = "tally"`.
    #[serde(default)]
    pub tally: Option<TallyConfig>,
    /// How lists are made, with `sums = "embedded"`. A tally of its own has its own settings.
    #[serde(default)]
    pub lists: ListsConfig,
    /// Seconds for which accepted deletions wait for others, to be executed together: each recalls
    /// what devices hold.
    #[serde(default)]
    pub erase_window_s: u64,
    /// When the next epoch is started by itself, and how long devices are waited for
    /// (`docs/life.md`).
    #[serde(default)]
    pub roll: RollConfig,
    /// Hours for which a shard whose database was damaged waits for `lethe-admin shard release`, at
    /// most; 0: it is trained anew at once.
    #[serde(default = "default_quarantine_hours")]
    pub quarantine_hours: u64,
    /// The operator knows that destroyed keys can be recovered from the disk of `data_dir`, where
    /// its file system keeps what is overwritten. Without this the server does not start there.
    #[serde(default)]
    pub accept_recoverable_keys: bool,
    /// Recipe of the first epoch; see `lethe_recipe::Recipe`.
    #[serde(default)]
    pub recipe: toml::Table,
}

/// The table `[log]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Policy file (C2SP tlog-policy) with the log's key, and witnesses with their addresses: they
    /// are asked to sign each new head. Absent: nobody is.
    #[serde(default)]
    pub policy: Option<PathBuf>,
    /// Seconds between two heads that are shown to witnesses, 1 at least.
    #[serde(default = "default_cosign")]
    pub cosign_s: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            policy: None,
            cosign_s: default_cosign(),
        }
    }
}

fn default_cosign() -> u64 {
    5
}

/// The table `[roll]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollConfig {
    /// Days after which an epoch that is served is followed by another, 1 to 3650; absent: time
    /// alone starts none.
    #[serde(default, deserialize_with = "every_days")]
    pub every_days: Option<u64>,
    /// The part of those who joined, more than 0 and at most 1, that waits for the next epoch: at
    /// this part it is started. Absent: people alone start none.
    #[serde(default, deserialize_with = "new_people")]
    pub new_people: Option<f64>,
    /// Hours for which devices are waited for: then an epoch begins without the rest of them, or is
    /// given up for want of people. Part of an hour is fine; at most 8760.
    #[serde(default = "default_join_hours", deserialize_with = "join_hours")]
    pub join_hours: f64,
}

impl Default for RollConfig {
    fn default() -> Self {
        Self {
            every_days: None,
            new_people: None,
            join_hours: default_join_hours(),
        }
    }
}

impl RollConfig {
    /// As the ledger takes it.
    pub(crate) fn rule(&self) -> Roll {
        Roll {
            every_ms: self.every_days.map(|days| days * 86_400_000),
            new_people: self.new_people,
            // Bounded when it was read.
            join_ms: (self.join_hours * 3_600_000.0) as u64,
        }
    }
}

fn default_join_hours() -> f64 {
    72.0
}

fn every_days<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let days = u64::deserialize(d)?;
    if (1..=3650).contains(&days) {
        return Ok(Some(days));
    }
    let message =
        format!("every_days is {days}, expected 1 to 3650; leave it out for no such rule");
    Err(serde::de::Error::custom(message))
}

fn new_people<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
    let part = f64::deserialize(d)?;
    if part > 0.0 && part <= 1.0 {
        return Ok(Some(part));
    }
    let message = format!(
        "new_people is {part}, expected a part of those who joined: more than 0, at most 1; leave \
         it out for no such rule"
    );
    Err(serde::de::Error::custom(message))
}

fn join_hours<'de, D: serde::Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    let hours = f64::deserialize(d)?;
    if hours > 0.0 && hours <= 8760.0 {
        return Ok(hours);
    }
    let message = format!("join_hours is {hours}, expected more than 0 and at most 8760 (a year)");
    Err(serde::de::Error::custom(message))
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4433))
}

fn default_reserve() -> u64 {
    64
}

fn default_min_subjects() -> usize {
    8
}

fn default_passes() -> usize {
    2
}

fn default_tapes() -> usize {
    4
}

/// Four passes of 800 tokens over 28 layers: fewer at once, and devices wait for each other's
/// seconds between forward and backward.
fn default_tape_mib() -> usize {
    2048
}

fn default_certificate_days() -> f64 {
    90.0
}

/// Longest life of a certificate, in days: whoever loses a device should not have to wait longer.
const MAX_CERTIFICATE_DAYS: f64 = 3650.0;

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

fn default_erase_wait() -> u64 {
    600
}

fn default_deadline_days() -> u64 {
    30
}

fn default_quarantine_hours() -> u64 {
    24
}

fn default_release_hours() -> u64 {
    72
}

fn default_log_name() -> String {
    "lethe-log".into()
}

impl ServerConfig {
    /// Folder of the log and the journal.
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

    /// The tally of its own; none: there is none.
    ///
    /// # Errors
    /// [`CoordinatorError::TallyConfig`]: the tables do not fit `sums`.
    pub fn party(&self) -> Result<Option<&TallyConfig>, CoordinatorError> {
        let wrong = |why| Err(CoordinatorError::TallyConfig(why));
        match (self.sums, &self.tally) {
            (Sums::Tally, None) => wrong(
                "sums = \"tally\" needs the table `[tally]` with the `address` of lethe-tally",
            ),
            (Sums::Tally, Some(_)) if self.lists != ListsConfig::default() => wrong(
                "with sums = \"tally\" the table `[lists]` belongs into the tally's own \
                 configuration: remove it here",
            ),
            (Sums::Tally, Some(tally)) => Ok(Some(tally)),
            (_, Some(_)) => wrong("the table `[tally]` needs sums = \"tally\""),
            (_, None) => Ok(None),
        }
    }

    /// Parses TOML.
    ///
    /// # Errors
    /// It is no TOML, has a key that is not known or lacks one, or a number is out of its range.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let config: Self = toml::from_str(text)?;
        config.check().map_err(serde::de::Error::custom)?;
        Ok(config)
    }

    /// Every number is in its range, and the log's name can stand in a checkpoint.
    fn check(&self) -> Result<(), String> {
        const YEARS_S: u64 = 10 * 365 * 86_400;
        const YEARS_H: u64 = YEARS_S / 3600;
        let numbers = [
            ("reserve_mib", self.reserve_mib, 0, 1 << 20),
            ("min_subjects", self.min_subjects as u64, 1, 1_000_000_000),
            ("passes", self.passes as u64, 1, 4096),
            ("tapes", self.tapes as u64, 1, 4096),
            ("tape_mib", self.tape_mib as u64, 1, 1 << 22),
            ("erase_wait_s", self.erase_wait_s, 0, YEARS_S),
            ("erase_window_s", self.erase_window_s, 0, YEARS_S),
            ("deadline_days", self.deadline_days, 0, 3650),
            ("release_hours", self.release_hours, 0, YEARS_H),
            ("quarantine_hours", self.quarantine_hours, 0, YEARS_H),
            ("log.cosign_s", self.log.cosign_s, 1, 86_400),
        ];
        for (name, got, least, most) in numbers {
            if !(least..=most).contains(&got) {
                return Err(format!("{name} is {got}, expected {least} to {most}"));
            }
        }
        let name = &self.log_name;
        match Signer::from_seed(name, &[0; 32]) {
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "log_name is {name:?}, expected a name without blanks, + and control characters, \
                 such as \"example.org/lethe\""
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_live_for_seconds_to_ten_years() {
        let with = |days: &str| {
            let head = "listen = \"127.0.0.1:0\"\ndata_dir = \"d\"\nmodel = \"m\"\n";
            let text = format!("{head}catalogue = \"c\"\ncertificate_days = {days}\n");
            ServerConfig::parse(&text)
        };
        for days in ["0", "-1", "nan", "inf", "1e9", "3651"] {
            let refused = with(days).expect_err(days).to_string();
            assert!(refused.contains("certificate_days is"), "{refused}");
        }
        for days in ["0.001", "90", "3650"] {
            assert!(with(days).is_ok(), "{days}");
        }
    }

    #[test]
    fn numbers_out_of_range_and_names_that_no_checkpoint_has_are_refused() {
        let with = |line: &str| {
            let head = "data_dir = \"d\"\nmodel = \"m\"\ncatalogue = \"c\"\n";
            ServerConfig::parse(&format!("{head}{line}\n"))
        };
        let wrong = [
            "passes = 0",
            "tapes = 0",
            "tape_mib = 0",
            "min_subjects = 0",
            "reserve_mib = 99999999999",
            "release_hours = 9223372036854775807",
            "erase_wait_s = 9223372036854775807",
            "log_name = \"\"",
            "log_name = \"a b\"",
            "log_name = \"a+b\"",
            "log = { cosign_s = 0 }",
        ];
        for line in wrong {
            let refused = with(line).expect_err(line).to_string();
            let key = line.split([' ', '=']).next().unwrap_or_default();
            assert!(
                refused.contains(key) && refused.contains("expected"),
                "{line}: {refused}"
            );
        }
        for line in ["", "passes = 1", "release_hours = 0", "log_name = \"a/b\""] {
            assert!(with(line).is_ok(), "{line}");
        }
    }

    /// `server.toml` is written by hand. A fuzz target, too: `cargo bolero test -p
    /// lethe-coordinator config::tests::mutated_configurations_never_panic`.
    #[test]
    fn mutated_configurations_never_panic() {
        let sample = include_bytes!("../../../docs/samples/server.toml");
        bolero::check!()
            .with_iterations(2_000)
            .with_type::<Vec<(u16, u8)>>()
            .for_each(|edits| {
                let mut bytes = sample.to_vec();
                for (at, value) in edits.iter().take(16) {
                    let i = usize::from(*at) % bytes.len();
                    bytes[i] = *value;
                }
                let Ok(config) = ServerConfig::parse(&String::from_utf8_lossy(&bytes)) else {
                    return;
                };
                // What every start does with it.
                let _ = config.evidence();
                assert_ne!(config.keys_dir(), PathBuf::new());
                let _ = config.party();
                let rule = config.roll.rule();
                assert!(rule.join_ms > 0);
                let written = toml::to_string(&config).expect("a configuration can be written");
                let again = ServerConfig::parse(&written).expect("and read again");
                assert_eq!(format!("{again:?}"), format!("{config:?}"));
            });
    }
}
