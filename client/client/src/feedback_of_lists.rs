//! What people did with lists. It is kept on the device, and nothing of it is sent.

use serde::{Deserialize, Serialize};

use crate::lists::{ListId, ListSource};

/// How many are kept: the newest.
pub(crate) const KEPT: usize = 1_000;

/// What a person did with an item of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Opened, played or put into the basket.
    Clicked,
    /// Liked.
    Liked,
    /// Sent away.
    Dismissed,
    /// Was shown, and nothing happened.
    Ignored,
}

impl Outcome {
    /// All, in the order of their counts.
    pub const ALL: [Self; 4] = [Self::Clicked, Self::Liked, Self::Dismissed, Self::Ignored];

    /// Whether the list was right.
    pub fn is_hit(self) -> bool {
        matches!(self, Self::Clicked | Self::Liked)
    }
}

/// One outcome, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) list: ListId,
    pub(crate) item: String,
    pub(crate) outcome: Outcome,
    /// Seconds since 1970.
    pub(crate) time: i64,
}

/// Outcomes of one kind of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListCounts {
    /// Where the lists came from.
    pub source: ListSource,
    /// Outcomes, in the order of [`Outcome::ALL`].
    pub outcomes: [u32; 4],
    /// How many of them are hits.
    pub hits: u32,
}

impl ListCounts {
    /// How often an outcome was told.
    pub fn of(&self, outcome: Outcome) -> u32 {
        self.outcomes[outcome as usize]
    }
}

/// Counts by where the lists came from; kinds of lists without an outcome are left out.
pub(crate) fn counts<'a>(told: impl Iterator<Item = &'a Told>) -> Vec<ListCounts> {
    let mut out: Vec<ListCounts> = vec![];
    for one in told {
        let source = one.list.source();
        let at = out.iter().position(|c| c.source == source);
        let at = at.unwrap_or_else(|| {
            out.push(ListCounts {
                source,
                outcomes: [0; 4],
                hits: 0,
            });
            out.len() - 1
        });
        out[at].outcomes[one.outcome as usize] += 1;
        out[at].hits += u32::from(one.outcome.is_hit());
    }
    out
}
