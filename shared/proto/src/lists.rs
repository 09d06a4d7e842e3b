//! Messages about lists: what a device contributes to the sums, and the snapshots that it gets.
//!
//! All of them are from minor version 2 on.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
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

/// An event of a contribution with its item's place in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedEvent {
    /// Place of the item, from 0.
    pub item: u32,
    /// As in [`SharedEvent`].
    pub day: i32,
    /// As in [`SharedEvent`].
    pub half_stars: u8,
    /// As in [`SharedEvent`].
    pub flags: u8,
}

/// A contribution as whoever holds the sums seals it, and as an auditor makes it again from what a
/// device has sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// As in [`Contributed`].
    pub whole: bool,
    /// As in [`Contributed`].
    pub events: Vec<PlacedEvent>,
}

impl Placed {
    /// The most bytes: those of the most events that any operator can allow are fewer.
    const MOST: usize = 1 << 20;

    /// What a device has sent, with the items' places; none: an item has no place.
    pub fn of(
        whole: bool,
        events: &[SharedEvent],
        place: impl Fn(&str) -> Option<u32>,
    ) -> Option<Self> {
        let placed = |e: &SharedEvent| {
            Some(PlacedEvent {
                item: place(&e.item)?,
                day: e.day,
                half_stars: e.half_stars,
                flags: e.flags,
            })
        };
        let events: Option<Vec<PlacedEvent>> = events.iter().map(placed).collect();
        Some(Self {
            whole,
            events: events?,
        })
    }

    /// The bytes that are sealed; equal contributions have equal ones.
    ///
    /// # Errors
    /// [`CodecError::Malformed`], for nothing that fits into memory.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        codec::to_bytes(self)
    }

    /// Reads [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`CodecError::Malformed`] for other bytes, and for more than 1 MiB.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::from_bytes(bytes, Self::MOST)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders hold these bytes, and bundles of audits digests of them: they stay as they are.
    #[test]
    fn the_bytes_of_a_contribution_are_pinned() {
        let event = |item: &str, day, half_stars, flags| SharedEvent {
            item: item.into(),
            day,
            half_stars,
            flags,
        };
        let sent = [
            event("a", 19_000, 8, SEEN | LIKED),
            event("b", 19_001, 0, HIDDEN),
        ];
        let place = |id: &str| match id {
            "a" => Some(70_000),
            "b" => Some(3),
            _ => None,
        };
        let placed = Placed::of(true, &sent, place).expect("both have a place");
        let bytes = placed.to_bytes().expect("encodes");
        let whole = 1;
        let count = 2;
        // Numbers above 250 have a byte that says how long they are; days are twice as large.
        let first = [252, 0x70, 0x11, 0x01, 0x00, 251, 0x70, 0x94, 8, 3];
        let second = [3, 251, 0x72, 0x94, 0, 4];
        let pinned = [&[whole, count], &first[..], &second[..]].concat();
        assert_eq!(bytes, pinned);
        assert_eq!(Placed::from_bytes(&bytes), Ok(placed));
        assert!(Placed::from_bytes(&bytes[1..]).is_err());
        assert!(Placed::of(true, &[event("c", 1, 0, SEEN)], place).is_none());
    }
}
