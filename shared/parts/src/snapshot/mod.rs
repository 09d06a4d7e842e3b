//! Snapshots: the tables that every device gets, in few bits, and the difference from the one
//! before.
//!
//! A snapshot is a header and one record per item and section. Equal tables give equal bytes; the
//! digest of the bytes is the snapshot's name.

mod bits;
mod delta;
mod packed;
mod records;

pub use delta::{apply, delta};
pub use packed::{PackedRows, RowPacking};

use ring::digest::{SHA256, digest as sha256};
use serde::{Deserialize, Serialize};

use crate::tables::Tables;
use packed::MOST_ENTRIES;
use records::{MAX_RANK, MOST_QUARTERS, Records};

/// How tables are packed. The default was chosen on validation events (`docs/recommend.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packing {
    /// The three tables of rows.
    pub rows: RowPacking,
    /// Columns of the item field that are kept, those of the largest eigenvalues; at most 1,024.
    pub rank: usize,
    /// Bits of a number of the item field, 2 to 8.
    pub field_bits: u32,
}

impl Default for Packing {
    fn default() -> Self {
        Self {
            rows: RowPacking { keep: 100, bits: 5 },
            rank: 64,
            field_bits: 6,
        }
    }
}

/// Why bytes are not a snapshot, or a delta does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The bytes are damaged, or of another version.
    #[error("not a snapshot of this version: {0}; fetch the whole snapshot again")]
    Damaged(String),
    /// The delta starts from another snapshot.
    #[error("the delta starts from snapshot {wanted}, the device has {got}; fetch the whole one")]
    OtherBase {
        /// Digest that the delta names, hexadecimal.
        wanted: String,
        /// Digest of what was given.
        got: String,
    },
    /// The result is not what the delta names.
    #[error("the delta gives snapshot {got}, it promises {wanted}; fetch the whole one")]
    OtherResult {
        /// Digest that the delta names, hexadecimal.
        wanted: String,
        /// Digest of the result.
        got: String,
    },
}

/// SHA-256 of a snapshot's bytes.
pub fn digest(snapshot: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(sha256(&SHA256, snapshot).as_ref());
    out
}

/// A number of a [`Packing`], or of tables, that a snapshot cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} = {got}, expected {least} to {most}")]
pub struct PackingError {
    /// Which number.
    pub what: &'static str,
    /// What was given.
    pub got: usize,
    /// The least that is allowed.
    pub least: usize,
    /// The most that is allowed.
    pub most: usize,
}

/// Packs tables.
///
/// # Errors
/// [`PackingError`] for a packing that devices could not read.
pub fn encode(tables: &Tables, packing: &Packing) -> Result<Vec<u8>, PackingError> {
    check("rows.keep", packing.rows.keep, 1, MOST_ENTRIES)?;
    check("rows.bits", packing.rows.bits as usize, 2, 8)?;
    check("rank", packing.rank, 0, MAX_RANK)?;
    check("field_bits", packing.field_bits as usize, 2, 8)?;
    let boundary = usize::from(tables.like_boundary);
    check("like_boundary", boundary, 0, MOST_QUARTERS)?;
    Ok(Records::of(tables, packing).to_bytes())
}

fn check(what: &'static str, got: usize, least: usize, most: usize) -> Result<(), PackingError> {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    Err(PackingError {
        what,
        got,
        least,
        most,
    })
}

/// Reads a snapshot; every record is checked, so scoring cannot fail on it later.
///
/// # Errors
/// [`SnapshotError::Damaged`] with what was expected.
pub fn decode(snapshot: &[u8]) -> Result<Tables, SnapshotError> {
    Records::parse(snapshot)?.tables()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
