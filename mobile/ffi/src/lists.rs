//! Lists: what apps ask, and what they get.

use lethe_client::{
    Cursor, Explanation, Fallback, Filter, LeftOut, ListId, ListSource, Listed, Outcome, Page,
    Query, Ranked, Reason, Recommendation, Source,
};

/// Where a list comes from: the first step of this chain for which there is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FfiListSource {
    /// The person's events and the tables.
    OwnHistory,
    /// The same, of at most 10 events: what people meet first weighs in.
    FewEvents,
    /// The person has met nothing yet: what others meet first, and lately.
    PopularNow,
    /// Items that are met by those who meet an item, by the tables.
    Similar,
    /// The device has got no tables yet: items like those of the history, or the catalogue's order.
    CatalogueWithoutTables,
    /// The same: a deletion has recalled the tables, and the next ones are not here yet.
    CatalogueTablesRecalled,
    /// The same: the device was away for longer than tables may be used.
    CatalogueTablesExpired,
}

impl From<ListSource> for FfiListSource {
    fn from(source: ListSource) -> Self {
        match source {
            ListSource::OwnHistory => Self::OwnHistory,
            ListSource::FewEvents => Self::FewEvents,
            ListSource::PopularNow => Self::PopularNow,
            ListSource::Similar => Self::Similar,
            ListSource::Catalogue(Fallback::NoSnapshot) => Self::CatalogueWithoutTables,
            ListSource::Catalogue(Fallback::Recalled) => Self::CatalogueTablesRecalled,
            ListSource::Catalogue(Fallback::Expired) => Self::CatalogueTablesExpired,
        }
    }
}

/// Where the next page of a list begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FfiCursor {
    /// The list's name.
    pub list: u64,
    /// Places before the page.
    pub offset: u32,
}

/// What an app asks of `FfiClient.top`.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct FfiQuery {
    /// Places of the page; at most 1,000.
    #[uniffi(default = 20)]
    pub n: u32,
    /// The page after this one. Everything but `n` is then as it was for the first page.
    #[uniffi(default = None)]
    pub after: Option<FfiCursor>,
    /// Only items with one of these tags, whatever their case; empty: all.
    #[uniffi(default = [])]
    pub tags: Vec<String>,
    /// Only these items; the whole catalogue without. An app's own condition is a list of those for
    /// which it holds.
    #[uniffi(default = None)]
    pub candidates: Option<Vec<String>>,
    /// Items that are not to be shown, besides those that the person has met or hidden.
    #[uniffi(default = [])]
    pub exclude: Vec<String>,
    /// What an item loses that is like one above it, in units of the score; 0: nothing.
    #[uniffi(default = 0.0)]
    pub diversity: f64,
    /// Time of the request, in seconds since 1970; now without.
    #[uniffi(default = None)]
    pub at: Option<i64>,
}

impl From<FfiQuery> for Query {
    fn from(query: FfiQuery) -> Self {
        let after = query.after.map(|c| {
            let list = ListId::from_number(c.list);
            Cursor::new(list, c.offset as usize)
        });
        Self {
            n: query.n as usize,
            after,
            exclude: query.exclude,
            candidates: query.candidates,
            filter: Filter {
                tags: query.tags,
                allows: None,
            },
            boost: None,
            diversity: query.diversity,
            at: query.at,
        }
    }
}

/// An event of the person that speaks for an item.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct FfiReason {
    /// The event's item.
    pub item: String,
    /// Its title.
    pub title: String,
    /// How much the score would fall without the event.
    pub amount: f64,
}

/// One place of a page.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct FfiListed {
    /// Item of the catalogue.
    pub item: String,
    /// Title, with the year if it is known.
    pub title: String,
    /// Scores of different lists cannot be compared, nor those of items that nobody has met with
    /// others.
    pub score: f64,
    /// Probability that the person likes it; none without tables.
    pub like: Option<f64>,
    /// Own events that speak for it, the strongest first.
    pub reasons: Vec<FfiReason>,
    /// Too few people have met it: it is here for its content.
    pub unseen: bool,
}

/// A ranked list, or a part of one.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct FfiPage {
    /// Best first; fewer than asked for where fewer may be shown.
    pub items: Vec<FfiListed>,
    /// Where the next page begins; none after the last.
    pub next: Option<FfiCursor>,
    /// Where the list comes from.
    pub source: FfiListSource,
    /// Name of the list, for feedback.
    pub id: u64,
}

/// What is known about an item and this person.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct FfiExplanation {
    /// Item of the catalogue.
    pub item: String,
    /// Title, with the year if it is known.
    pub title: String,
    /// The person has met or hidden it: lists leave it out.
    pub met: bool,
    /// Probability that the person likes it; none without tables.
    pub like: Option<f64>,
    /// Own events that speak for it, the strongest first; at most five.
    pub reasons: Vec<FfiReason>,
    /// Mean rating of others, in stars of 1 to 5; none if too few have rated it.
    pub mean_stars: Option<f64>,
    /// Too few people have met it for the tables to say anything.
    pub unseen: bool,
    /// What this stands on.
    pub source: FfiListSource,
}

/// What a person did with an item of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FfiOutcome {
    /// Opened, played or put into the basket.
    Clicked,
    /// Liked.
    Liked,
    /// Sent away.
    Dismissed,
    /// Was shown, and nothing happened.
    Ignored,
}

/// Where a list of the language model comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FfiRecommendationSource {
    /// Ranked now, with the coordinator's current release.
    Live {
        /// The release.
        release: u64,
    },
    /// The coordinator is away: the list of the last time.
    Cached,
    /// The coordinator is away, and there is no list of the last time: the candidates in the order
    /// of the device's own lists.
    OnDevice {
        /// Where that order comes from.
        list: FfiListSource,
    },
}

/// One item that the language model ranked.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct FfiRanked {
    /// Item of the catalogue.
    pub item: String,
    /// Log-odds that the person likes it; of `OnDevice` the score of that list.
    pub score: f32,
}

/// A candidate that is not in a list because something is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FfiLeftOut {
    /// The candidate.
    pub item: String,
    /// What is wrong.
    pub why: String,
}

/// A list that the language model ranked, best first.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct FfiRecommendation {
    /// Where it comes from.
    pub source: FfiRecommendationSource,
    /// The items.
    pub items: Vec<FfiRanked>,
    /// Candidates that could not be scored: the others are ranked all the same.
    pub left_out: Vec<FfiLeftOut>,
}

impl From<Cursor> for FfiCursor {
    fn from(cursor: Cursor) -> Self {
        Self {
            list: cursor.list().number(),
            // Lists are of catalogues, which have fewer items than this holds.
            offset: u32::try_from(cursor.offset()).unwrap_or(u32::MAX),
        }
    }
}

impl From<Reason> for FfiReason {
    fn from(reason: Reason) -> Self {
        Self {
            item: reason.item,
            title: reason.title,
            amount: reason.amount,
        }
    }
}

impl From<Listed> for FfiListed {
    fn from(listed: Listed) -> Self {
        Self {
            item: listed.item,
            title: listed.title,
            score: listed.score,
            like: listed.like,
            reasons: listed.reasons.into_iter().map(Into::into).collect(),
            unseen: listed.unseen,
        }
    }
}

impl From<Page> for FfiPage {
    fn from(page: Page) -> Self {
        Self {
            items: page.items.into_iter().map(Into::into).collect(),
            next: page.next.map(Into::into),
            source: page.source.into(),
            id: page.id.number(),
        }
    }
}

impl From<Explanation> for FfiExplanation {
    fn from(e: Explanation) -> Self {
        Self {
            item: e.item,
            title: e.title,
            met: e.met,
            like: e.like,
            reasons: e.reasons.into_iter().map(Into::into).collect(),
            mean_stars: e.mean_stars,
            unseen: e.unseen,
            source: e.source.into(),
        }
    }
}

impl From<FfiOutcome> for Outcome {
    fn from(outcome: FfiOutcome) -> Self {
        match outcome {
            FfiOutcome::Clicked => Self::Clicked,
            FfiOutcome::Liked => Self::Liked,
            FfiOutcome::Dismissed => Self::Dismissed,
            FfiOutcome::Ignored => Self::Ignored,
        }
    }
}

impl From<Source> for FfiRecommendationSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Live { release } => Self::Live { release },
            Source::Cached => Self::Cached,
            Source::OnDevice(list) => Self::OnDevice { list: list.into() },
        }
    }
}

impl From<Ranked> for FfiRanked {
    fn from(ranked: Ranked) -> Self {
        Self {
            item: ranked.item,
            score: ranked.score,
        }
    }
}

impl From<LeftOut> for FfiLeftOut {
    fn from(left_out: LeftOut) -> Self {
        Self {
            item: left_out.item,
            why: left_out.why,
        }
    }
}

impl From<Recommendation> for FfiRecommendation {
    fn from(list: Recommendation) -> Self {
        Self {
            source: list.source.into(),
            items: list.items.into_iter().map(Into::into).collect(),
            left_out: list.left_out.into_iter().map(Into::into).collect(),
        }
    }
}
