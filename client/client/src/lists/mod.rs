//! Lists that the device ranks by itself: what apps ask, and what they get.

mod held;
mod rank;
mod shelf;

use std::fmt;
use std::sync::Arc;

use lethe_recsys::data::Item;
use serde::{Deserialize, Serialize};

use crate::ClientError;

pub(crate) use held::{Held, Lazy, View, Views};
pub(crate) use rank::{Input, Ranked};
pub use shelf::{Shelf, Shown};

/// The longest page.
pub const MAX_PAGE: usize = 1_000;
/// Ranked orders that are kept for their next pages.
pub(crate) const KEPT_ORDERS: usize = 8;

/// Why a list was made without tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fallback {
    /// The device has got none yet: call [`crate::Client::refresh`] when there is a network. A
    /// coordinator without lists has none.
    NoSnapshot,
    /// A deletion has recalled what the device had; the next one is fetched when there is a
    /// network.
    Recalled,
    /// The device was away for so long that its tables must not be used any more.
    Expired,
}

/// Where a list comes from: the first step of this chain for which there is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListSource {
    /// The person's events and the tables.
    OwnHistory,
    /// The same, of at most 10 events: what people meet first weighs in.
    FewEvents,
    /// The person has met nothing yet: what others meet first, and lately.
    PopularNow,
    /// Items that are met by those who meet an item, by the tables ([`crate::Client::similar`]).
    Similar,
    /// There are no tables: items like those of the history, or the catalogue's order.
    Catalogue(Fallback),
}

impl ListSource {
    const ALL: [Self; 7] = [
        Self::OwnHistory,
        Self::FewEvents,
        Self::PopularNow,
        Self::Catalogue(Fallback::NoSnapshot),
        Self::Catalogue(Fallback::Recalled),
        Self::Catalogue(Fallback::Expired),
        Self::Similar,
    ];
}

/// Names a list that was shown, for [`crate::Client::feedback`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ListId(u64);

/// The lowest bits say where the list came from: outcomes may be told long after it is forgotten.
const SOURCE_BITS: u32 = 3;

impl ListId {
    pub(crate) fn new(source: ListSource) -> Result<Self, ClientError> {
        let random = lethe_seal::random().map_err(|e| ClientError::Internal(e.to_string()))?;
        let code = ListSource::ALL.iter().position(|s| *s == source);
        let code = code.unwrap_or(0) as u64;
        Ok(Self(u64::from_le_bytes(random) << SOURCE_BITS | code))
    }

    /// Where the list came from.
    pub fn source(self) -> ListSource {
        let code = self.0 & ((1 << SOURCE_BITS) - 1);
        // Codes beyond the last are in no list that was made here.
        let known = ListSource::ALL.get(code as usize);
        known.copied().unwrap_or(ListSource::OwnHistory)
    }

    /// As a number, for an app that keeps it.
    pub fn number(self) -> u64 {
        self.0
    }

    /// From [`Self::number`].
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// Where the next page of a list begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    pub(crate) list: ListId,
    pub(crate) offset: usize,
}

impl Cursor {
    /// From what an app has kept: the list, and how many of its places were shown.
    pub fn new(list: ListId, offset: usize) -> Self {
        Self { list, offset }
    }

    /// The list.
    pub fn list(self) -> ListId {
        self.list
    }

    /// Places before the page.
    pub fn offset(self) -> usize {
        self.offset
    }
}

/// An app's own condition.
pub type Allows = Arc<dyn Fn(&Item) -> bool + Send + Sync>;
/// What an app adds to an item's score.
pub type Boosts = Arc<dyn Fn(&Item) -> f64 + Send + Sync>;

/// Which items a list may show.
#[derive(Clone, Default)]
pub struct Filter {
    /// Only items with one of these tags, whatever their case; empty: all.
    pub tags: Vec<String>,
    /// Only items for which this holds.
    pub allows: Option<Allows>,
}

impl Filter {
    /// Items with this tag (a category, a genre).
    pub fn tag(tag: impl Into<String>) -> Self {
        Self {
            tags: vec![tag.into()],
            allows: None,
        }
    }

    pub(crate) fn admits(&self, item: &Item) -> bool {
        let tagged = |wanted: &String| {
            let wanted = wanted.to_lowercase();
            item.tags.iter().any(|t| t.to_lowercase() == wanted)
        };
        (self.tags.is_empty() || self.tags.iter().any(tagged))
            && self.allows.as_ref().is_none_or(|allows| allows(item))
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.allows.is_some();
        write!(f, "Filter {{ tags: {:?}, own: {own} }}", self.tags)
    }
}

/// What an app asks of [`crate::Client::top`].
///
/// ```
/// use lethe_client::{Filter, Query};
/// let query = Query {
///     filter: Filter::tag("Comedy"),
///     diversity: 0.5,
///     ..Query::first(20)
/// };
/// ```
#[derive(Clone, Default)]
pub struct Query {
    /// Places of the page; at most [`MAX_PAGE`].
    pub n: usize,
    /// The page after this one. Everything but `n` is then as it was for the first page.
    pub after: Option<Cursor>,
    /// Items that are not to be shown, besides those that the person has met or hidden.
    pub exclude: Vec<String>,
    /// Only these items; the whole catalogue without.
    pub candidates: Option<Vec<String>>,
    /// Which items may be shown.
    pub filter: Filter,
    /// Added to scores; an item whose boost is not a number is not shown.
    pub boost: Option<Boosts>,
    /// What an item loses that is like one above it, in units of the score; 0: nothing. It chooses
    /// among the best 500.
    pub diversity: f64,
    /// Time of the request, in seconds since 1970; now without.
    pub at: Option<i64>,
}

impl Query {
    /// The first page of `n` items.
    pub fn first(n: usize) -> Self {
        Self {
            n,
            ..Self::default()
        }
    }

    /// The page of `n` items after a page.
    pub fn next(n: usize, after: Cursor) -> Self {
        Self {
            after: Some(after),
            ..Self::first(n)
        }
    }
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.candidates.as_ref().map(Vec::len);
        f.debug_struct("Query")
            .field("n", &self.n)
            .field("after", &self.after)
            .field("exclude", &self.exclude.len())
            .field("candidates", &names)
            .field("filter", &self.filter)
            .field("boost", &self.boost.is_some())
            .field("diversity", &self.diversity)
            .field("at", &self.at)
            .finish()
    }
}

/// An event of the person that speaks for an item.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// The event's item.
    pub item: String,
    /// Its title.
    pub title: String,
    /// How much the score would fall without the event.
    pub amount: f64,
}

/// One place of a page.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
    /// Item of the catalogue.
    pub item: String,
    /// Title, with the year if it is known.
    pub title: String,
    /// Score, boost included. Scores of different lists cannot be compared, nor those of items that
    /// nobody has met with others.
    pub score: f64,
    /// Probability that the person likes it; `None` without tables.
    pub like: Option<f64>,
    /// Own events that speak for it, the strongest first.
    pub reasons: Vec<Reason>,
    /// Too few people have met it: it is here for its content.
    pub unseen: bool,
}

/// A ranked list, or a part of one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page {
    /// Best first; fewer than asked for where fewer may be shown.
    pub items: Vec<Listed>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Cursor>,
    /// Where the list comes from.
    pub source: ListSource,
    /// Name of the list, for feedback.
    pub id: ListId,
}

/// What is known about an item and this person.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Item of the catalogue.
    pub item: String,
    /// Title, with the year if it is known.
    pub title: String,
    /// The person has met or hidden it: lists leave it out.
    pub met: bool,
    /// Probability that the person likes it; `None` without tables.
    pub like: Option<f64>,
    /// Own events that speak for it, the strongest first; at most five.
    pub reasons: Vec<Reason>,
    /// Mean rating of others, in stars of 1 to 5; `None` if too few have rated it.
    pub mean_stars: Option<f64>,
    /// Too few people have met it for the tables to say anything.
    pub unseen: bool,
    /// What this stands on.
    pub source: ListSource,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lists_name_says_where_it_came_from() {
        for source in ListSource::ALL {
            let id = ListId::new(source).expect("random");
            assert_eq!(ListId::from_number(id.number()).source(), source);
        }
        assert_eq!(ListId(7).source(), ListSource::OwnHistory);
    }
}
