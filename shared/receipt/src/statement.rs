//! What the operator states. The log holds none of it, only salted hashes of it ([`entry`]).

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::hex::hex;

/// Version of the format of statements and receipts.
pub const VERSION: u32 = 5;
/// Version of statements that do not say which epochs they are about; still verified.
pub const VERSION_WITHOUT_EPOCHS: u32 = 4;
/// The same, where there were no lists; still verified.
pub const VERSION_WITHOUT_LISTS: u32 = 3;
/// Version of statements and receipts that do not say what devices removed; still verified.
pub const VERSION_WITHOUT_REMOVED: u32 = 2;
/// Version of the format of training statements.
pub const TRAINING_VERSION: u32 = 2;

/// A shard that the deletion touched. Hashes are SHA-256 of adapters, hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AffectedShard {
    /// Number of the shard.
    pub shard: u16,
    /// First stage that was retrained.
    pub from_stage: u16,
    /// Adapter served before; empty: another epoch was served then.
    pub before: String,
    /// Adapter served at once: a checkpoint that never saw the data.
    pub rolled_back_to: String,
    /// Adapter after retraining.
    pub after: String,
    /// Checkpoint key of the final stage: a hash over the surviving subjects and their data
    /// commitments.
    pub lineage: String,
    /// Rounds retrained.
    pub rounds: u32,
}

/// A cost, in integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Rounds.
    pub rounds: u32,
    /// Updates, one per client and round.
    pub client_rounds: u64,
    /// Bytes of training, both ways.
    pub bytes: u64,
    /// Milliseconds from the rollback to the release.
    pub milliseconds: u64,
}

/// What devices found and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    /// Events that devices reported as removed.
    pub events: u64,
    /// People whose device has answered.
    pub answered: u32,
    /// People whose device had not answered when the time for it had passed. They are left out of
    /// training.
    pub silent: u32,
    /// People whose device waits for their consent. They are left out of training.
    pub unconsented: u32,
}

/// A snapshot of the lists' tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedSnapshot {
    /// Its number.
    pub number: u64,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
    /// People who count in it.
    pub people: u64,
}

/// What became of the sums and snapshots of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedLists {
    /// The sums' keeper had something of the data. Its key was destroyed.
    pub held: bool,
    /// The snapshot that had the data in it, and was recalled.
    pub recalled: Option<StatedSnapshot>,
    /// The first one that was served after it; the data is in none from then on.
    pub replaced_by: Option<StatedSnapshot>,
    /// Milliseconds until that one was served; 0: nothing was recalled.
    pub whole_after_ms: u64,
    /// Devices that may have held the recalled snapshot, at most.
    pub devices: u64,
    /// What these devices had to fetch again, in bytes, at most.
    pub bytes: u64,
    /// Until when a device that stays away may use the recalled snapshot, in seconds since 1970.
    pub held_until: u64,
    /// Key that verifies signed snapshots (verifier key text).
    pub key: String,
}

/// A shard of an epoch that is not served, as a deletion has left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolledBack {
    /// Number of the shard.
    pub shard: u16,
    /// First stage that was destroyed.
    pub from_stage: u16,
    /// Adapter that was left: a checkpoint that never saw the data. SHA-256, hexadecimal.
    pub rolled_back_to: String,
}

/// How far an epoch was when a deletion was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EpochStood {
    /// It was served: [`Statement::affected`] has its shards.
    Served,
    /// It was joined or trained, and not served yet.
    Follows,
    /// Another one had followed it, or it was given up: what it had learned was destroyed, or will
    /// be.
    Ended,
}

/// An epoch that a deletion is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedEpoch {
    /// Its number.
    pub epoch: u32,
    /// How far it was.
    pub stood: EpochStood,
    /// Digest of its recipe.
    pub recipe: String,
    /// Digest of its base model file.
    pub base_model: String,
    /// Version of the catalogue that its prompts have titles of.
    pub catalogue: u32,
    /// Digest of that version, hexadecimal; empty where none was ever applied.
    pub catalogue_digest: String,
    /// Shards that were rolled back; empty for the one that was served.
    pub rolled_back: Vec<RolledBack>,
}

/// What was done for one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// [`VERSION`]; those of before verify, too.
    pub version: u32,
    /// `erase-subject`, `erase-items`, `withdraw-consent`, `restrict` or `takedown`.
    pub kind: String,
    /// Number of the deletion at this coordinator.
    pub deletion: u64,
    /// Requests that were executed together with this one, itself included.
    pub batch: u32,
    /// [`commitment`] to subject and items, hexadecimal.
    pub commitment: String,
    /// Seconds since 1970 when the request was accepted.
    pub accepted_at: u64,
    /// Milliseconds until the served model was free of the data.
    pub exact_after_ms: u64,
    /// Milliseconds until the affected shards were retrained and released.
    pub retrained_after_ms: u64,
    /// Encryption keys destroyed.
    pub keys_destroyed: u32,
    /// Shards touched.
    pub affected: Vec<AffectedShard>,
    /// Adapter hash of every shard not touched, as `[shard, hash]`; the same before and after.
    pub untouched: Vec<(u16, String)>,
    /// Release that holds the retrained adapters; all before the first one after the deletion are
    /// recalled.
    pub release: u64,
    /// Digest of the recipe of the epoch that was served.
    pub recipe: String,
    /// Digest of its base model file.
    pub base_model: String,
    /// Version and build of the coordinator.
    pub build: String,
    /// The receipt has a proof about the person's record.
    pub recorded: bool,
    /// What retraining was expected to cost.
    pub forecast: Cost,
    /// What it cost; other requests that waited for the same shards share it.
    pub actual: Cost,
    /// What devices removed; only for kinds that ask devices, and not in version 2.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub removed: Option<Removed>,
    /// What became of the lists; none: there were none. Not before version 4.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lists: Option<StatedLists>,
    /// The epochs that were alive when it was accepted, those in which something was rolled back,
    /// and the one that was served in the end, oldest first; not before version 5.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub epochs: Option<Vec<StatedEpoch>>,
}

/// What a shard is about to be trained on; entered into the log before the first round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// [`TRAINING_VERSION`].
    pub version: u32,
    /// Number of the shard.
    pub shard: u16,
    /// Generation of its training; a rollback begins a new one.
    pub generation: u32,
    /// Root of the sorted tree of records ([`crate::records`]), hexadecimal.
    pub root: String,
    /// Records.
    pub count: u64,
    /// Digest of the recipe.
    pub recipe: String,
    /// Seed of all randomness, as in the recipe.
    pub seed: u64,
    /// Digest of the base model file.
    pub base_model: String,
    /// Version and build of the coordinator.
    pub build: String,
}

/// What a log entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Training`].
    Training,
    /// A [`Statement`].
    Deletion,
    /// An operator's action.
    Action,
    /// A [`crate::order::Order`].
    Order,
    /// A [`crate::manifest::Manifest`].
    Catalogue,
    /// A [`crate::served::ReleaseStatement`].
    Release,
    /// A [`crate::served::SnapshotNamed`].
    Snapshot,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Deletion => "deletion",
            Self::Action => "action",
            Self::Order => "order",
            Self::Catalogue => "catalogue",
            Self::Release => "release",
            Self::Snapshot => "snapshot",
        }
    }
}

/// The log's entry of a statement: `lethe-log/2 KIND SHA-256(salt || canonical JSON)` and a line
/// feed. Without the salt it says nothing about the statement.
pub fn entry(kind: Kind, salt: &[u8; 32], canonical: &[u8]) -> Vec<u8> {
    let mut ctx = Context::new(&SHA256);
    ctx.update(salt);
    ctx.update(canonical);
    format!(
        "lethe-log/2 {} {}\n",
        kind.name(),
        hex(ctx.finish().as_ref())
    )
    .into_bytes()
}

/// SHA-256, hexadecimal, over these parts, each after its length as 8 bytes, little-endian: salt;
/// subject; number of items as 8 bytes, little-endian; every item; and one byte 0, or one byte 1
/// and the time as 8 bytes, little-endian.
pub fn commitment(salt: &[u8; 32], subject: &str, items: &[String], from: Option<i64>) -> String {
    let mut ctx = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        ctx.update(&(bytes.len() as u64).to_le_bytes());
        ctx.update(bytes);
    };
    part(salt);
    part(subject.as_bytes());
    part(&(items.len() as u64).to_le_bytes());
    items.iter().for_each(|i| part(i.as_bytes()));
    part(&from.map_or(vec![0], |f| [&[1][..], &f.to_le_bytes()].concat()));
    hex(ctx.finish().as_ref())
}

/// The one way to write a value as bytes: JSON with two spaces of indentation, fields in the order
/// of declaration.
pub fn canonical(value: &impl Serialize) -> Vec<u8> {
    // Structs of strings, integers and lists do not fail to serialise.
    serde_json::to_vec_pretty(value).unwrap_or_default()
}
