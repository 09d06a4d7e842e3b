//! Messages about lists: what a device contributes to the sums, and the snapshots that it gets.
//!
//! All of them are from minor version 2 on.

use serde::{Deserialize, Serialize};

use crate::codec::CodecError;
use crate::ids::Digest;
use crate::message::Task;

/// Bit of [`SharedEvent::flags`]: the person met the item.
pub const SEEN: u8 = 1;
/// Bit of [`SharedEvent::flags`]: it counts as a like.
pub const LIKED: u8 = 2;
/// Bit of [`SharedEvent::flags`]: the person asked not to be shown the item again.
pub const HIDDEN: u8 = 4;

/// One event of a contribution, as the device reads it by the catalogue's table of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedEvent {
    /// Item of the catalogue.
    pub item: String,
    /// Day since 1970, UTC. The time of day is not sent.
    pub day: i32,
    /// Rating in half stars, 2 to 10; 0: it stands for no rating.
    pub half_stars: u8,
    /// [`SEEN`], [`LIKED`] and [`HIDDEN`].
    pub flags: u8,
}

/// What a device contributes for its person. It replaces what the person contributed before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contributed {
    /// Random name of the device's history. What another device of the person contributed is
    /// replaced by no fewer events than it has.
    pub source: [u8; 16],
    /// The history has no older events than these.
    pub whole: bool,
    /// Oldest first; at most [`ListTerms::clip`].
    pub events: Vec<SharedEvent>,
}

/// What a coordinator that serves lists asks of contributions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTerms {
    /// The most events of a contribution.
    pub clip: u32,
    /// Seconds between two contributions of a person.
    pub refresh_s: u64,
    /// Seconds for which a snapshot may be used without asking again.
    pub valid_s: u64,
}

/// What a device has to know of the lists that are served, at any moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListState {
    /// Number of the snapshot that is served; none: nothing was published yet, or it is recalled.
    pub served: Option<u64>,
    /// Snapshots up to this number are recalled: nothing may be made from them.
    pub recalled: u64,
}

/// Answer to [`crate::message::Request::Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReply {
    /// What is asked of contributions; none: this coordinator has no lists.
    pub terms: Option<ListTerms>,
    /// What is served and recalled now.
    pub state: ListState,
    /// Key that verifies the note (verifier key text).
    pub key: String,
    /// Identifiers of the items in the order of the tables; empty: they are those that the device
    /// has.
    pub items: Vec<String>,
    /// The snapshot.
    pub tables: ServedTables,
}

/// The tables of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServedTables {
    /// None is served.
    None,
    /// The one that the device has is served.
    Same,
    /// A whole snapshot.
    Whole {
        /// The tally's signed note.
        note: String,
        /// The snapshot.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// What leads from the snapshot that the device has to the one that is served.
    Delta {
        /// The tally's signed note of the new snapshot.
        note: String,
        /// The difference.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
}

impl ServedTables {
    /// Bytes of tables.
    pub fn len(&self) -> usize {
        match self {
            Self::Whole { bytes, .. } | Self::Delta { bytes, .. } => bytes.len(),
            Self::None | Self::Same => 0,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Answer to [`crate::message::Request::Watch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    /// The work.
    pub task: Task,
    /// As in [`crate::message::Reply::Welcome`].
    pub recalled: u64,
    /// What is served of lists.
    pub lists: ListState,
}

/// Names a catalogue: SHA-256 of its items' identifiers, in the order of the tables.
pub fn items_digest<'a>(ids: impl IntoIterator<Item = &'a str>) -> Digest {
    let ids: Vec<&[u8]> = ids.into_iter().map(str::as_bytes).collect();
    Digest::of(&ids)
}

/// Checks what no catalogue is needed for: lengths of identifiers and flags.
///
/// # Errors
/// [`CodecError::Malformed`] names the first event that is wrong.
pub fn check(events: &[SharedEvent]) -> Result<(), CodecError> {
    let bad = |e: &SharedEvent| {
        let rating = e.half_stars != 0 && !(2..=10).contains(&e.half_stars);
        let name = e.item.is_empty() || e.item.len() > crate::limits::MAX_ID;
        rating || name || e.flags & !(SEEN | LIKED | HIDDEN) != 0
    };
    match events.iter().position(bad) {
        None => Ok(()),
        Some(at) => Err(CodecError::Malformed(format!(
            "event {at} of the contribution: expected an item of 1 to {} bytes, half stars of 2 \
             to 10 or 0, and known flags",
            crate::limits::MAX_ID
        ))),
    }
}
