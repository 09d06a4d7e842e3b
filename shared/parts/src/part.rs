//! What the coordinator keeps of people is a set of parts.

use crate::score::{Features, Request};

/// A part: something that is learned from people, published to devices, and forgets exactly.
///
/// A part has no state of its own: every function takes what it works on. `docs/recommend.md`
/// shows how the parts of this crate are composed.
pub trait Part {
    /// What one person adds.
    type Contribution;
    /// What is kept of everybody.
    type State;
    /// What devices hold.
    type Published: ?Sized;
    /// One request's view of what devices hold.
    type Scorer<'a>: Scorer;

    /// The part's name in plans, receipts and figures.
    const NAME: &'static str;

    /// Adds one person.
    ///
    /// # Errors
    /// [`Refused`] when the contribution is outside the state's bounds; the state is unchanged.
    fn fold(state: &mut Self::State, one: &Self::Contribution) -> Result<(), Refused>;

    /// Takes one person out again. The state is then bit for bit the one without them.
    ///
    /// # Errors
    /// [`Refused`] when the contribution was never folded in, as far as the sums can tell; the
    /// state is unchanged.
    fn unfold(state: &mut Self::State, one: &Self::Contribution) -> Result<(), Refused>;

    /// What it takes to forget this contribution. The planner asks this.
    fn forgetting(state: &Self::State, one: &Self::Contribution) -> Forgetting;

    /// Prepares the features of one request. Memory grows with the history, not with the
    /// catalogue.
    fn scorer<'a>(published: &'a Self::Published, request: &Request<'a>) -> Self::Scorer<'a>;
}

/// Writes features of items, block by block.
pub trait Scorer {
    /// Writes this part's features of the items of a block. Blocks come in ascending order of their
    /// items.
    fn write(&mut self, block: &mut Features);
}

/// How a part forgets, with what that costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgetting {
    /// Integer sums: subtract. `entries` numbers change; nothing is trained again.
    Withdraw {
        /// Entries of the sums that change.
        entries: u64,
    },
    /// Trained state: go back to a checkpoint and replay the rounds after it.
    Rollback {
        /// The checkpoint's stage.
        stage: u32,
        /// Rounds to replay.
        rounds: u32,
    },
    /// Fitted state without partial sums: fit again from everybody who remains.
    Refit,
    /// Public, or only on the person's own device: there is nothing to forget.
    Nothing,
}

/// Why a part did not take a contribution. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// More events than one person may contribute.
    #[error("{got} events, expected at most {clip}; send the newest {clip}")]
    TooMany {
        /// Events that were sent.
        got: usize,
        /// The most that is taken.
        clip: usize,
    },
    /// An item that is not in the catalogue.
    #[error("event {event}: item {item}, expected one below {items}; use the current catalogue")]
    UnknownItem {
        /// Position in the contribution.
        event: usize,
        /// The item.
        item: u32,
        /// Items in the catalogue.
        items: usize,
    },
    /// A time outside what is plausible.
    #[error("event {event}: day {day}, expected {first} to {last}; check the device's clock")]
    Day {
        /// Position in the contribution.
        event: usize,
        /// Its day since 1970.
        day: i32,
        /// First day that is taken.
        first: i32,
        /// Last day that is taken.
        last: i32,
    },
    /// Events that are not in the order of their times.
    #[error("event {event} is older than the one before it; sort by time, oldest first")]
    Order {
        /// Position in the contribution.
        event: usize,
    },
    /// A rating outside the scale.
    #[error("event {event}: {half_stars} half stars, expected 2 to 10")]
    Stars {
        /// Position in the contribution.
        event: usize,
        /// What was sent.
        half_stars: u8,
    },
    /// The state was made for another catalogue.
    #[error("the contribution is over {got} items, the sums over {items}; grow the sums first")]
    Items {
        /// Items of the contribution's catalogue.
        got: usize,
        /// Items of the sums.
        items: usize,
    },
    /// The most people that 64-bit sums are proven to hold without overflow.
    #[error("the sums hold {0} people already, which is the most; split the fleet")]
    Full(u32),
    /// What is to be taken out is not in the sums.
    #[error("the sums do not hold this contribution ({what}); unfold exactly what was folded")]
    NotFolded {
        /// The sum that would become negative.
        what: &'static str,
    },
    /// Bytes that are not a state or contribution.
    #[error("not a valid encoding at byte {at}: {why}")]
    Encoding {
        /// Where.
        at: usize,
        /// Expected and found.
        why: String,
    },
}
