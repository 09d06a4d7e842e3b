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

use crate::tables::Tables;
use records::Records;

/// How tables are packed. The default was chosen on validation events (`docs/recommend.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The three tables of rows.
    pub rows: RowPacking,
    /// Columns of the item field that are kept, those of the largest eigenvalues.
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

/// Packs tables.
pub fn encode(tables: &Tables, packing: &Packing) -> Vec<u8> {
    Records::of(tables, packing).to_bytes()
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
