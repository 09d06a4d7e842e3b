//! Scoring as a device does it.
//!
//! Items are scored in blocks: every part writes its features of a block, the composition adds them
//! up into one array of scores, and nothing else grows with the catalogue.

mod like;
mod next;
mod page;
mod reasons;

pub use like::{Like, LikeFeatures, LikeWeights, SEVEN, TWELVE};
pub use next::{Composition, ContentPart, CountsPart, PairsPart, TransitionsPart, Weights};
pub use page::{Listed, MOST, Options, Page, Ranker, features_of};
pub use reasons::{Reason, reasons, reasons_of_all};

use crate::history::History;

/// Items of a block.
pub const BLOCK: usize = 512;
/// Number of features of the next item.
pub const FEATURES: usize = 9;

/// The features of the next item, in the order of their columns. `docs/recommend.md` has the
/// formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// `log p`: how often the item is met at all.
    Popularity,
    /// How much more often it was met lately.
    Recent,
    /// Log of the chance of meeting it within 40 events.
    Far,
    /// EASE over the whole history.
    Ease,
    /// Cosine with the terms of the newest 30 items.
    Terms,
    /// Log-ratios of following one of the newest 20 items within 10 events, decaying with 3.
    Near,
    /// The same, decaying with 1.5.
    NearShort,
    /// Log of EASE, events decaying with 15.
    EaseDecay15,
    /// Log of EASE, events decaying with 5.
    EaseDecay5,
}

impl Feature {
    /// All, in the order of their columns.
    pub const ALL: [Self; FEATURES] = [
        Self::Popularity,
        Self::Recent,
        Self::Far,
        Self::Ease,
        Self::Terms,
        Self::Near,
        Self::NearShort,
        Self::EaseDecay15,
        Self::EaseDecay5,
    ];
}

/// One request of one person.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Their events.
    pub history: &'a History,
    /// The day of the request, since 1970.
    pub today: i32,
}

/// The features of a block of consecutive items.
pub struct Features {
    first: u32,
    len: usize,
    values: Box<[[f64; BLOCK]; FEATURES]>,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            first: 0,
            len: 0,
            values: Box::new([[0.0; BLOCK]; FEATURES]),
        }
    }
}

impl Features {
    /// Begins the block of items `first..first + len`; `len` is cut to [`BLOCK`].
    pub fn begin(&mut self, first: u32, len: usize) {
        self.first = first;
        self.len = len.min(BLOCK);
    }

    /// The first item of the block.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// The item after the last of the block.
    pub fn end(&self) -> u32 {
        self.first + self.len as u32
    }

    /// Number of items in the block.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the block has no items.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One feature of all items of the block.
    pub fn column(&mut self, feature: Feature) -> &mut [f64] {
        &mut self.values[feature as usize][..self.len]
    }

    /// One feature of all items of the block, to read.
    pub fn values(&self, feature: Feature) -> &[f64] {
        &self.values[feature as usize][..self.len]
    }
}
