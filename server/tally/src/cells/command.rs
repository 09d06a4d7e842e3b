//! What can be asked of the cells, and what happens.

use lethe_learn::seed::Seed;
use lethe_proto::ids::Digest;
use serde::{Deserialize, Serialize};

use crate::ids::{CellNo, Fresh, Handle, Number};

/// What is offered, without the events themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// SHA-256 of what is to count: the merge of what all devices of the handle have brought.
    pub content: Digest,
    /// Which device it comes from.
    pub source: [u8; 16],
    /// How many events are to count.
    pub events: u32,
    /// When this device brought something last, or the one whose place it takes, in seconds since
    /// 1970; none: it is new, and there is a place for it.
    pub last: Option<u64>,
}

/// Somebody who has left, as another record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaver {
    /// Who.
    pub handle: Handle,
    /// A membership that began then or earlier is over, in seconds since 1970.
    pub before: u64,
}

/// What somebody asks for. All of them may be repeated.
#[derive(Clone, Debug)]
pub enum Command {
    /// A handle contributes, for the first time or again.
    Contribute {
        /// Whose it is.
        handle: Handle,
        /// What it offers.
        offered: Offered,
        /// For a handle that is not known yet.
        fresh: Fresh,
        /// Seconds between two contributions of one device.
        refresh_s: u64,
    },
    /// These handles leave. What is not known has left.
    Leave(Vec<Handle>),
    /// These leave where their membership is the one that is over, and no later one.
    LeaveOlder(Vec<Leaver>),
    /// Members whose handle's key is gone leave: a backup was restored, or a crash came in between.
    LeaveStrays,
    /// A cell opens, if enough wait.
    OpenCell {
        /// The secret key that draws.
        secret: Seed,
    },
    /// What grew in a cell counts, if enough of it did.
    Renew(CellNo),
    /// Items are cleared for good.
    TakeDown(Vec<u32>),
    /// A snapshot of a fold is ready.
    Publish {
        /// Its number.
        number: u64,
        /// [`super::Core::forgets`] when the fold was taken.
        forgets: u64,
        /// The cells of the fold.
        cells: Vec<CellNo>,
        /// What its noise is charged; 0: it has none.
        charge: u64,
    },
    /// What was published is lost or damaged: nothing is served until the next is published.
    Lost,
    /// Snapshots up to this number were published by a later state of this folder, of which it is
    /// an older copy: none of them is served, and none gets its number again.
    Skip {
        /// The highest number.
        to: u64,
        /// What the noise of each of them is charged at most; 0: they have none.
        charge: u64,
    },
}

/// Whose key seals an event, or a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Nobody's: numbers only.
    Public,
    /// A handle's.
    Handle(Handle),
}

/// What happens. An event is about one owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A handle has this number.
    Known {
        /// Whose.
        handle: Handle,
        /// Its number, until it leaves.
        number: Number,
        /// Salts its digests.
        salt: Fresh,
        /// When its membership began, in seconds since 1970.
        since: u64,
    },
    /// A handle contributed.
    Spoke {
        /// Which.
        handle: Handle,
        /// When, in seconds since 1970.
        at: u64,
        /// Which device it was.
        source: [u8; 16],
        /// How many events came.
        events: u32,
    },
    /// A handle is forgotten.
    Forgotten {
        /// Which.
        handle: Handle,
    },
    /// A member waits.
    Came {
        /// Its number.
        number: Number,
        /// The number, salted.
        name: Digest,
    },
    /// A member brought the next version of its contribution.
    Brought {
        /// Which.
        number: Number,
        /// Digest of the version, salted.
        digest: Digest,
    },
    /// A member left.
    Left {
        /// Which.
        number: Number,
    },
    /// A cell opened.
    Opened {
        /// Its number.
        cell: CellNo,
        /// Ascending.
        members: Vec<Number>,
    },
    /// What these members brought last counts.
    Renewed {
        /// Their cell.
        cell: CellNo,
        /// Ascending.
        members: Vec<Number>,
    },
    /// A cell is no more.
    Dissolved {
        /// Which.
        cell: CellNo,
        /// When, in seconds since 1970.
        at: u64,
    },
    /// Items are cleared.
    TakenDown {
        /// Ascending; none of them was cleared before.
        items: Vec<u32>,
    },
    /// What was published is not served any more.
    Recalled {
        /// When, in seconds since 1970.
        at: u64,
        /// Cells that were published and are out.
        cells: u32,
    },
    /// The next snapshot has a higher number than this, and all before it are recalled.
    Skipped {
        /// The number.
        to: u64,
        /// What the noise of each is charged.
        charge: u64,
    },
    /// A snapshot is published.
    Published {
        /// Its number.
        number: u64,
        /// The cells of its fold.
        cells: Vec<CellNo>,
        /// What its noise is charged.
        charge: u64,
    },
}

impl Event {
    /// Whom the event is about.
    pub fn owner(&self) -> Owner {
        match self {
            Self::Known { handle, .. }
            | Self::Spoke { handle, .. }
            | Self::Forgotten { handle } => Owner::Handle(*handle),
            _ => Owner::Public,
        }
    }
}

/// Why a contribution is not taken. Nothing happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It comes too soon after the one before.
    #[error("this device contributed {since_s} s ago, expected {refresh_s} s: wait {wait_s} s")]
    TooSoon {
        /// Seconds since the one before.
        since_s: u64,
        /// Seconds between two.
        refresh_s: u64,
        /// Seconds to wait.
        wait_s: u64,
    },
    /// There are as many people as may contribute.
    #[error("{got} people contribute, which is the most: raise `people`, or split the fleet")]
    Full {
        /// How many there are.
        got: usize,
    },
    /// The number is taken.
    #[error("the number that was drawn is taken: draw again")]
    Taken,
    /// A member has brought as many versions as can be counted.
    #[error("this handle has brought {got} versions, which is the most: leave, and come again")]
    Versions {
        /// How many.
        got: u32,
    },
}
