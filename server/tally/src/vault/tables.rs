//! What is stored, and under whose key.

use std::collections::BTreeMap;

use lethe_learn::seed::Seed;
use lethe_parts::noise::Drawn;
use lethe_proto::ids::Digest;
use lethe_store::sealed::KeyName;
use lethe_store::{Class, Persisted};
use serde::{Deserialize, Serialize};

use crate::cells::{Cell, CellSettings, Core, Member, Person};
use crate::ids::{Handle, Number, Version};

macro_rules! persisted {
    ($type:ty, $table:literal, $class:ident) => {
        impl Persisted for $type {
            const TABLE: &'static str = $table;
            const CLASS: Class = Class::$class;
        }
    };
}

/// The database of what is derived from people. Damage to it costs a fold and a solve.
pub(super) const DERIVED: &str = "0";

/// Format of the folder. Key: empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Format {
    pub(super) number: u32,
}
persisted!(Format, "tally-format", Public);

/// What only the tally knows. Key: empty.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Secrets {
    /// Draws cells.
    pub(crate) draw: Seed,
    /// Seed of the key that signs snapshots.
    pub(crate) signer: [u8; 32],
}
persisted!(Secrets, "tally-secrets", Public);

/// Counters. Key: empty.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct CoreRow(pub(super) Core);
persisted!(CoreRow, "tally-core", Public);

/// Items that were taken down. Key: empty.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct ClearedRow(pub(super) Vec<u32>);
persisted!(ClearedRow, "tally-cleared", Public);

/// A member. Key: its number, 16 hexadecimal digits.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct MemberRow(pub(super) Member);
persisted!(MemberRow, "tally-members", Public);

/// A cell. Key: its number, 16 hexadecimal digits.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct CellRow(pub(super) Cell);
persisted!(CellRow, "tally-cells", Public);

/// Whose a number is. Key: the handle.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct PersonRow {
    pub(super) handle: Handle,
    pub(super) person: Person,
}
persisted!(PersonRow, "tally-people", Subject);

/// One version of a contribution. Key: [`contribution_key`].
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct ContributionRow {
    #[serde(with = "serde_bytes")]
    pub(super) content: Vec<u8>,
}
persisted!(ContributionRow, "tally-contributions", Subject);

/// What a device has brought last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// The device's name of its history.
    pub(crate) source: [u8; 16],
    /// When, in seconds since 1970.
    pub(crate) at: u64,
    /// As in [`ContributionRow`].
    #[serde(with = "serde_bytes")]
    pub(crate) content: Vec<u8>,
}

/// What each device of a handle has brought last, where there were ever several. Key: the handle.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SourcesRow {
    /// The one that brought something least lately first.
    pub(super) sources: Vec<Source>,
}
persisted!(SourcesRow, "tally-sources", Subject);

/// What was published, for those who audit. Key: its number, 16 hexadecimal digits.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct PublishedRow {
    /// The signed text.
    pub(super) note: String,
}
persisted!(PublishedRow, "tally-published", Public);

/// Salts the digest of the sums in a signed note. Whoever had a guess of what one person
/// contributes, and all of the others', could test the guess on a plain digest; the salt goes with
/// the key of its generation, as the sums do.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Salt(pub(crate) [u8; 32]);

impl Salt {
    /// SHA-256 of the salt and the digest of the sums.
    pub(crate) fn digest(&self, sums: &[u8; 32]) -> Digest {
        Digest(lethe_parts::refold::salted(&self.0, sums))
    }
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt")
    }
}

/// How people counted when a fold was published last. Key: empty.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct LastHead(pub(super) CellSettings);
persisted!(LastHead, "tally-last-head", Public);

/// A cell as it was published last, if it was. Key: its number, 16 hexadecimal digits.
///
/// It stays when the cell is dissolved, until the next snapshot is published: what is published
/// next is checked against it. A number that is in it and has left is nobody's any more.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct LastRow(pub(super) BTreeMap<Number, Version>);
persisted!(LastRow, "tally-last", Public);

/// A snapshot. Key: its number, 16 hexadecimal digits.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SnapshotRow {
    #[serde(with = "serde_bytes")]
    pub(super) bytes: Vec<u8>,
    pub(super) note: String,
    pub(super) salt: Salt,
}
persisted!(SnapshotRow, "tally-snapshots", Shard);

/// What the noise of a snapshot was drawn from. Key: the snapshot's number, 16 hexadecimal digits.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct NoiseRow(pub(super) Drawn);
persisted!(NoiseRow, "tally-noise", Shard);

/// Whose sums are kept. Key: empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SumsHead {
    /// Digest of who counts with which version, and of the items that are cleared.
    pub(super) basis: [u8; 32],
    /// Digest of the bytes.
    pub(super) digest: [u8; 32],
    /// Records that they are in.
    pub(super) pieces: u32,
}
persisted!(SumsHead, "tally-sums-head", Shard);

/// A piece of the sums. Key: its place, 8 digits.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SumsRow {
    #[serde(with = "serde_bytes")]
    pub(super) bytes: Vec<u8>,
}
persisted!(SumsRow, "tally-sums", Shard);

pub(super) fn key_of(handle: &Handle) -> KeyName {
    KeyName::subject(&handle.hex())
}

/// The key of what is derived from the people of one generation. Its name never comes back: each
/// recall begins the next generation.
pub(super) fn derived(generation: u64) -> KeyName {
    KeyName::stage(DERIVED, &format!("fold-{generation}"))
}

pub(super) fn contribution_key(handle: &Handle, version: Version) -> String {
    format!("{}/{}", handle.hex(), version.0)
}

pub(super) fn numbered(number: u64) -> String {
    format!("{number:016x}")
}
