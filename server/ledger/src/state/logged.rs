//! What the log holds of what is served. Public: it names nobody.

use lethe_proto::ids::Digest;
use lethe_receipt::served::{ReleaseStatement, SERVED_VERSION};
use serde::{Deserialize, Serialize};

use super::{Release, State};

/// The newest release and the newest snapshot that the log holds. What is not among these is given
/// to no device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// The release.
    pub release: Option<LoggedPart>,
    /// The snapshot of the lists' tables.
    pub snapshot: Option<LoggedPart>,
}

/// Something that devices are given, and where the log holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedPart {
    /// Its number.
    pub number: u64,
    /// The statement that the log's entry commits to: canonical JSON.
    pub statement: String,
    /// The log's entry.
    pub index: u64,
}

impl State {
    /// What the log holds of what is served.
    pub fn logged(&self) -> &Logged {
        &self.logged
    }

    /// The release that devices may be given: the current one, once the log holds it.
    pub fn served_release(&self) -> Option<(u64, &Release)> {
        let logged = self.logged.release.as_ref().map(|part| part.number);
        self.current_release().filter(|(no, _)| Some(*no) == logged)
    }

    /// The release that the log is to hold, if it does not yet. While keys are being destroyed it
    /// waits: that release may be recalled.
    pub(crate) fn release_to_log(&self) -> Option<u64> {
        let (no, release) = self.current_release()?;
        let logged = self.served_release().is_some();
        (!logged && !release.recalled && !self.unexecuted()).then_some(no)
    }

    /// What the log is to hold of a release: `parts` has the digests of the devices' parts by
    /// shard, `catalogue` that of the epoch's version.
    pub fn release_statement(
        &self,
        no: u64,
        parts: &[Digest],
        catalogue: &Digest,
    ) -> Option<ReleaseStatement> {
        let release = self.releases.get(&no)?;
        let epoch = self.epochs.get(&release.epoch)?;
        let adapters = release.shards.iter().map(|s| s.digest.hex());
        Some(ReleaseStatement {
            version: SERVED_VERSION,
            release: no,
            epoch: release.epoch.0,
            at: release.at,
            recipe: epoch.recipe_digest.hex(),
            base_model: epoch.model.hex(),
            catalogue: epoch.catalogue.0,
            catalogue_digest: catalogue.hex(),
            build: self.rules.build.clone(),
            adapters: adapters.collect(),
            parts: parts.iter().map(Digest::hex).collect(),
        })
    }
}
