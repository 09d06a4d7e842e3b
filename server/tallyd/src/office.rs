//! What the process keeps besides the tally's own folder: its authority, sealing keys, who may
//! connect, and how far its log is. All of it is sealed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use lethe_proto::catalogue::{CatalogueChange, Versions};
use lethe_proto::ids::Digest;
use lethe_store::keys::Folders;
use lethe_store::sealed::{Batch, Engine, KeyName, SealedStore};
use lethe_store::{Class, Persisted, StoreError};
use lethe_transport::identity::{Authority, AuthorityRecord};
use serde::{Deserialize, Serialize};

use crate::TallydError;
use crate::sums::{Stage, StageId};

/// Format of the folder.
const FORMAT: u32 = 1;

macro_rules! persisted {
    ($type:ty, $table:literal, $class:ident) => {
        impl Persisted for $type {
            const TABLE: &'static str = $table;
            const CLASS: Class = Class::$class;
        }
    };
}

/// Format of the folder. Key: empty.
#[derive(Serialize, Deserialize)]
struct Format {
    number: u32,
}
persisted!(Format, "tallyd-format", Public);

/// The authority that signs certificates. Key: empty.
#[derive(Serialize, Deserialize)]
struct AuthorityRow(AuthorityRecord);
persisted!(AuthorityRow, "tallyd-authority", Public);

/// A key that opens envelopes. Key: its number.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct SealingRow {
    pub(crate) seed: [u8; 32],
    /// From when on contributions may be sealed to it, in seconds since 1970.
    pub(crate) from: u64,
    /// Until when.
    pub(crate) until: u64,
    /// When it is destroyed; none: it is the newest.
    pub(crate) ends: Option<u64>,
    /// The signed statement.
    pub(crate) note: String,
}
// The class is that of a piece of evidence: it has a key of its own, which can be destroyed.
persisted!(SealingRow, "tallyd-sealing", Evidence);

/// Who may connect. Key: empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DoorRow {
    /// Hashes of invitations that are not used, and when they were made.
    pub(crate) invitations: BTreeMap<Digest, u64>,
    /// Certificates by their hash.
    pub(crate) certificates: BTreeMap<Digest, CertificateRow>,
}
persisted!(DoorRow, "tallyd-door", Public);

/// A certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CertificateRow {
    /// In seconds since 1970.
    pub(crate) expires: u64,
    /// The one that ends when this one is first used.
    pub(crate) replaces: Option<Digest>,
}

/// How far the log was. Key: empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogRow {
    pub(crate) entries: u64,
    pub(crate) root: [u8; 32],
}
persisted!(LogRow, "tallyd-log", Public);

/// The catalogue that people contributed for. Key: empty.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct CatalogueRow {
    pub(crate) items: u64,
    pub(crate) digest: Digest,
}
persisted!(CatalogueRow, "tallyd-catalogue", Public);

/// What a version of the catalogue changed. Key: its number.
#[derive(Clone, Serialize, Deserialize)]
struct VersionRow(Vec<CatalogueChange>);
persisted!(VersionRow, "tallyd-catalogue-versions", Public);

/// Who was in the sum of a round. Key: lineage, epoch, shard, stage and round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SumRow {
    /// Number of the key that it is sealed under.
    pub(crate) key: u32,
    /// The highest number of a deletion when it was asked for.
    pub(crate) left: u64,
    /// Who was in it and has not left, ascending.
    pub(crate) handles: Vec<[u8; 16]>,
}
// As with sealing keys: each stage has keys of its own, which can be destroyed.
persisted!(SumRow, "tallyd-sums", Evidence);

/// The store of all that.
pub(crate) struct Office(SealedStore);

/// Holds a folder, which is made if it is not there.
pub(crate) fn lock(folder: &Path, name: &str) -> Result<File, TallydError> {
    let held = lethe_store::hold(folder, name, "tally")?;
    held.ok_or_else(|| TallydError::InUse {
        folder: folder.to_owned(),
    })
}

fn sealing_key(number: u64) -> KeyName {
    KeyName::evidence_of(&format!("sealing-{number:016x}"))
}

fn parse(key: &str) -> Result<u64, StoreError> {
    u64::from_str_radix(key, 16).map_err(|_| StoreError::Corrupt {
        name: "the folder".into(),
        why: "a sealing key has no number".into(),
    })
}

fn sums_key(id: &StageId, number: u32) -> KeyName {
    let StageId {
        lineage,
        epoch,
        shard,
        stage,
    } = id;
    let lineage = u64::from_be_bytes(*lineage);
    KeyName::evidence_of(&format!(
        "sums-{lineage:016x}-{epoch:08x}-{shard:04x}-{stage:04x}-{number:08x}"
    ))
}

fn sums_row(id: &StageId, round: u16) -> String {
    let lineage = u64::from_be_bytes(id.lineage);
    format!(
        "{lineage:016x}{:08x}{:04x}{:04x}{round:04x}",
        id.epoch, id.shard, id.stage
    )
}

fn parse_sums_row(key: &str) -> Option<(StageId, u16)> {
    let number = |from: usize, to: usize| u64::from_str_radix(key.get(from..to)?, 16).ok();
    let small = |from: usize| u16::try_from(number(from, from + 4)?).ok();
    let id = StageId {
        lineage: number(0, 16)?.to_be_bytes(),
        epoch: u32::try_from(number(16, 24)?).ok()?,
        shard: small(24)?,
        stage: small(28)?,
    };
    Some((id, small(32)?))
}

impl Office {
    /// Opens the folder, or founds it.
    pub(crate) fn open(engine: &Engine, folders: Folders) -> Result<Self, TallydError> {
        let office = Self(SealedStore::open(engine, folders, &[])?);
        match office.0.get::<Format>("")? {
            None => office.found()?,
            Some(Format { number: FORMAT }) => {}
            Some(Format { number }) => {
                return Err(TallydError::Format {
                    got: number,
                    expected: FORMAT,
                });
            }
        }
        Ok(office)
    }

    fn found(&self) -> Result<(), TallydError> {
        let public = KeyName::public();
        let authority = AuthorityRow(Authority::create()?.record());
        let batch = Batch::new().put(&public, "", &authority)?;
        let format = Format { number: FORMAT };
        Ok(self.0.write(batch.put(&public, "", &format)?)?)
    }

    /// Writes all keys under a fresh master key, and destroys the one before.
    pub(crate) fn rotate_master(&self) -> Result<(), StoreError> {
        self.0.rotate_master()
    }

    /// The authority of certificates.
    pub(crate) fn authority(&self) -> Result<Authority, TallydError> {
        let row = self.0.get::<AuthorityRow>("")?;
        let row = row.ok_or(TallydError::Lacks {
            what: "its authority",
        })?;
        Ok(Authority::restore(row.0)?)
    }

    fn keep<T: Persisted>(&self, row: &T) -> Result<(), StoreError> {
        self.0.write(Batch::new().put(&KeyName::public(), "", row)?)
    }

    pub(crate) fn door(&self) -> Result<DoorRow, StoreError> {
        Ok(self.0.get("")?.unwrap_or_default())
    }

    pub(crate) fn keep_door(&self, door: &DoorRow) -> Result<(), StoreError> {
        self.keep(door)
    }

    pub(crate) fn log(&self) -> Result<LogRow, StoreError> {
        Ok(self.0.get("")?.unwrap_or_default())
    }

    pub(crate) fn keep_log(&self, log: &LogRow) -> Result<(), StoreError> {
        self.keep(log)
    }

    pub(crate) fn catalogue(&self) -> Result<Option<CatalogueRow>, StoreError> {
        self.0.get("")
    }

    pub(crate) fn keep_catalogue(&self, row: &CatalogueRow) -> Result<(), StoreError> {
        self.keep(row)
    }

    /// What each version of the catalogue changed; none: none was ever sent.
    pub(crate) fn versions(&self) -> Result<BTreeMap<u32, Vec<CatalogueChange>>, StoreError> {
        let all = self.0.all::<VersionRow>()?.into_iter();
        all.map(|(key, row)| {
            let number = u32::from_str_radix(&key, 16).map_err(|_| StoreError::Corrupt {
                name: "the folder".into(),
                why: "a version of the catalogue has no number".into(),
            })?;
            Ok((number, row.0))
        })
        .collect()
    }

    /// Keeps the newest version; with the first that was sent, the one that was configured.
    pub(crate) fn keep_version(&self, versions: &Versions) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        let newest = versions.newest();
        let first = if newest == 2 { 1 } else { newest };
        for number in first..=newest {
            let row = VersionRow(versions.changes_of(number).to_vec());
            batch = batch.put(&KeyName::public(), &format!("{number:08x}"), &row)?;
        }
        self.0.write(batch)
    }

    /// Sealing keys by number.
    pub(crate) fn sealing(&self) -> Result<BTreeMap<u64, SealingRow>, StoreError> {
        self.0.recover()?;
        let all = self.0.all::<SealingRow>()?;
        all.into_iter()
            .map(|(key, row)| Ok((parse(&key)?, row)))
            .collect()
    }

    /// Writes these sealing keys, together.
    pub(crate) fn keep_sealing(&self, rows: &BTreeMap<u64, SealingRow>) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for (number, row) in rows {
            batch = batch.put(&sealing_key(*number), &format!("{number:016x}"), row)?;
        }
        self.0.write(batch)
    }

    /// Destroys sealing keys. What was sealed to them opens never again.
    pub(crate) fn destroy_sealing(&self, numbers: &[u64]) -> Result<(), StoreError> {
        let keys: Vec<KeyName> = numbers.iter().map(|n| sealing_key(*n)).collect();
        self.0.destroy(&keys).map(drop)
    }

    /// Who was in which sum.
    pub(crate) fn sums(&self) -> Result<BTreeMap<StageId, Stage>, StoreError> {
        let mut out: BTreeMap<StageId, Stage> = BTreeMap::new();
        for (key, row) in self.0.all::<SumRow>()? {
            let (id, round) = parse_sums_row(&key).ok_or_else(|| StoreError::Corrupt {
                name: "the folder".into(),
                why: "a sum of masks has no round".into(),
            })?;
            let stage = out.entry(id).or_insert_with(|| Stage {
                key: row.key,
                rounds: BTreeMap::new(),
            });
            // The lowest: a write that failed and is there all the same leaves rows under two keys,
            // and none of them may go for an old one.
            stage.key = stage.key.min(row.key);
            stage.rounds.insert(round, row);
        }
        Ok(out)
    }

    /// Writes these rows of a stage, together.
    pub(crate) fn keep_sums(
        &self,
        id: &StageId,
        rows: &BTreeMap<u16, SumRow>,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for (round, row) in rows {
            batch = batch.put(&sums_key(id, row.key), &sums_row(id, *round), row)?;
        }
        self.0.write(batch)
    }

    /// Destroys keys of rows that were sealed anew.
    pub(crate) fn destroy_sums(&self, keys: &BTreeSet<(StageId, u32)>) -> Result<(), StoreError> {
        let keys: Vec<KeyName> = keys.iter().map(|(id, key)| sums_key(id, *key)).collect();
        self.0.destroy(&keys).map(drop)
    }
}
