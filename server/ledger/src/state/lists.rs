//! What a deletion does to the sums and snapshots of the lists. Nothing here is about one person:
//! numbers, times and digests of what everybody gets.

use lethe_proto::ids::Digest;
use serde::{Deserialize, Serialize};

/// A snapshot of the lists' tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// Its number, from 1.
    pub number: u64,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub bytes: u64,
    /// People who count in it.
    pub people: u64,
}

/// What was there of a deletion's data when its execution began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListsLeft {
    /// The sums' keeper had something of it: a contribution, or an item that was not taken down.
    pub held: bool,
    /// The snapshot that had it in it, and is recalled.
    pub recalled: Option<SnapshotRef>,
    /// Devices that may hold that snapshot, at most.
    pub devices: u64,
    /// Until when they may use it without asking again, in Unix seconds.
    pub held_until: u64,
}

/// A deletion's part in the lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListsRecord {
    /// What was there.
    pub left: ListsLeft,
    /// The first snapshot without it, and the milliseconds from acceptance until it was served.
    pub whole: Option<(SnapshotRef, u64)>,
}

impl ListsRecord {
    /// Whether lists are complete again: nothing was recalled, or another snapshot is served.
    pub fn is_whole(&self) -> bool {
        self.left.recalled.is_none() || self.whole.is_some()
    }
}
