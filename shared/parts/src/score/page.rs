//! From scores to a page.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::content::Content;
use crate::rows::Row;
use crate::score::reasons::reasons_of_all;
use crate::score::{BLOCK, Composition, Features, Like, Reason, Request, Weights};
use crate::tables::Tables;

/// The longest page.
pub const MOST: usize = 1_000;
/// Candidates that diversity chooses from: so many per place, and so many at least.
const CANDIDATES: (usize, usize) = (20, 500);
/// Decay of the events' weights for items that nobody has met, chosen on validation items.
const UNSEEN_DECAY: f64 = 8.0;
/// What likeness of content adds beside EASE's weight in [`Ranker::similar`]. It only decides where
/// EASE is silent.
const SIMILAR_CONTENT: f64 = 0.01;

/// What an app asks of a page.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Places; at most [`MOST`].
    pub size: usize,
    /// Items that may be shown; all where `None`. Items of the history never are.
    pub allow: Option<&'a (dyn Fn(u32) -> bool + 'a)>,
    /// What is added to an item's score; an item whose boost is not a number is not shown.
    pub boost: Option<&'a (dyn Fn(u32) -> f64 + 'a)>,
    /// What an item loses that is like one above it, in units of the score; 0: off. One that is
    /// half alike loses half. It chooses among the best 20 items a place, and 500 at least.
    pub diversity: f64,
    /// Last places that go to items that nobody has met, ranked by content; at most `size`. Items
    /// that were taken down are among these: `allow` must leave them out.
    pub unseen: usize,
    /// Reasons per item, at most; fewer where fewer events speak for it.
    pub reasons: usize,
    /// Weights of the features.
    pub weights: Weights,
}

impl Default for Options<'_> {
    /// Ten places, one reason each.
    fn default() -> Self {
        Self {
            size: 10,
            allow: None,
            boost: None,
            diversity: 0.0,
            unseen: 0,
            reasons: 1,
            weights: Weights::PUBLIC,
        }
    }
}

/// One place of a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The item.
    pub item: u32,
    /// Its score, boost included. Scores of items that nobody has met are on a scale of their own.
    pub score: f64,
    /// The probability of a like.
    pub like: f64,
    /// Nobody has met the item; it is here for its content.
    pub unseen: bool,
    /// The events that speak for it.
    pub reasons: Vec<Reason>,
}

/// A ranked list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Best first; fewer than asked for if fewer may be shown.
    pub items: Vec<Listed>,
}

/// Ranks on a device. It owns the one array that grows with the catalogue.
#[derive(Default)]
pub struct Ranker {
    scores: Vec<f32>,
}

/// A candidate; the greatest is the best one, of equal scores the lower item.
#[derive(Clone, Copy, PartialEq)]
struct Candidate {
    score: f64,
    item: u32,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then(other.item.cmp(&self.item))
    }
}

impl Ranker {
    /// Scores of all items for a request; those of the history are `-inf`.
    pub fn scores(
        &mut self,
        tables: &Tables,
        content: &Content,
        request: &Request<'_>,
        weights: Weights,
    ) -> &[f32] {
        self.scores.resize(tables.items(), 0.0);
        let mut composition = Composition::new(tables, content, request, weights);
        for (block, out) in self.scores.chunks_mut(BLOCK).enumerate() {
            composition.scores((block * BLOCK) as u32, out);
        }
        for item in request.history.met() {
            if let Some(score) = self.scores.get_mut(*item as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
        &self.scores
    }

    /// Scores of items that nobody has met, from their content; `-inf` for all others.
    pub fn unseen_scores(&mut self, tables: &Tables, request: &Request<'_>) -> &[f32] {
        self.scores.clear();
        self.scores.resize(tables.items(), f32::NEG_INFINITY);
        for item in 0..tables.items() as u32 {
            if !tables.is_seen(item) && !request.history.has_met(item) {
                self.scores[item as usize] = 0.0;
            }
        }
        let mut row = Row::default();
        for (age, item) in request.history.newest_seen(usize::MAX) {
            tables.unseen.read(item, &mut row);
            let weight = libm::exp(-(age as f64) / UNSEEN_DECAY);
            for (column, value) in row.columns.iter().zip(&row.values) {
                self.scores[*column as usize] += (weight * f64::from(*value)) as f32;
            }
        }
        &self.scores
    }

    /// A page for a person.
    pub fn page(
        &mut self,
        tables: &Tables,
        content: &Content,
        request: &Request<'_>,
        options: &Options<'_>,
    ) -> Page {
        let size = options.size.min(MOST);
        let unseen = options.unseen.min(size);
        let mut places = vec![];
        if unseen > 0 {
            self.unseen_scores(tables, request);
            places = self.choose(content, unseen, options);
        }
        self.scores(tables, content, request, options.weights);
        if unseen > 0 {
            for item in 0..tables.items() as u32 {
                if !tables.is_seen(item) {
                    self.scores[item as usize] = f32::NEG_INFINITY;
                }
            }
        }
        let mut chosen = self.choose(content, size - places.len(), options);
        let met = chosen.len();
        chosen.append(&mut places);
        let explained: Vec<u32> = chosen[..met].iter().map(|c| c.item).collect();
        let mut why = if options.reasons > 0 {
            let weights = &options.weights;
            reasons_of_all(
                tables,
                content,
                request,
                weights,
                &explained,
                options.reasons,
            )
        } else {
            vec![]
        }
        .into_iter();
        let like = Like::new(tables, content, request.history);
        let items = chosen
            .into_iter()
            .enumerate()
            .map(|(place, candidate)| Listed {
                item: candidate.item,
                score: candidate.score,
                like: like.probability(candidate.item),
                unseen: place >= met || !tables.is_seen(candidate.item),
                reasons: why.next().unwrap_or_default(),
            })
            .collect();
        Page { items }
    }

    /// What to show to somebody of whom nothing is known, among all items or those with a tag: what
    /// people meet first, and what is met lately.
    pub fn popular(
        &mut self,
        tables: &Tables,
        content: &Content,
        today: i32,
        tag: Option<u32>,
        size: usize,
    ) -> Page {
        let nobody = crate::history::History::default();
        let request = Request {
            history: &nobody,
            today,
        };
        let has = |item: u32| content.terms_of(item).iter().any(|e| Some(e.0) == tag);
        let options = Options {
            size,
            reasons: 0,
            ..Options::default()
        };
        let allowed: &dyn Fn(u32) -> bool = &has;
        let options = Options {
            allow: tag.map(|_| allowed),
            ..options
        };
        self.page(tables, content, &request, &options)
    }

    /// Items that are met by the people who meet `item`, most first; where too few people have met
    /// it, items with like content. Pairs of item and score.
    pub fn similar(
        &mut self,
        tables: &Tables,
        content: &Content,
        item: u32,
        size: usize,
    ) -> Vec<(u32, f64)> {
        let mut row = Row::default();
        tables.ease.read(item, &mut row);
        self.scores.clear();
        self.scores.resize(tables.items(), row.background);
        for (column, value) in row.columns.iter().zip(&row.values) {
            self.scores[*column as usize] += value;
        }
        for (other, score) in self.scores.iter_mut().enumerate() {
            *score += (SIMILAR_CONTENT * content.likeness(item, other as u32)) as f32;
        }
        if let Some(own) = self.scores.get_mut(item as usize) {
            *own = f32::NEG_INFINITY;
        }
        let options = Options {
            size,
            ..Options::default()
        };
        let chosen = self.choose(content, size.min(MOST), &options);
        chosen.into_iter().map(|c| (c.item, c.score)).collect()
    }

    /// The best of the scores that may be shown, one after the other.
    fn choose(&self, content: &Content, size: usize, options: &Options<'_>) -> Vec<Candidate> {
        let diverse = options.diversity > 0.0;
        let (per_place, least) = CANDIDATES;
        let pool = if diverse {
            (size * per_place).max(least)
        } else {
            size
        };
        let mut best = self.best(pool, options);
        if !diverse {
            return best;
        }
        // Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).
        let mut chosen: Vec<Candidate> = vec![];
        let mut penalty = vec![0.0f64; best.len()];
        while chosen.len() < size && !best.is_empty() {
            let value = |at: &usize| best[*at].score - options.diversity * penalty[*at];
            let Some(at) = (0..best.len())
                .max_by(|a, b| value(a).total_cmp(&value(b)).then(best[*a].cmp(&best[*b])))
            else {
                break;
            };
            let next = best.remove(at);
            penalty.remove(at);
            for (candidate, penalty) in best.iter().zip(&mut penalty) {
                *penalty = penalty.max(content.likeness(next.item, candidate.item));
            }
            chosen.push(next);
        }
        chosen
    }

    fn best(&self, size: usize, options: &Options<'_>) -> Vec<Candidate> {
        // The worst of those kept is on top.
        let mut kept: BinaryHeap<std::cmp::Reverse<Candidate>> = BinaryHeap::new();
        for (item, score) in self.scores.iter().enumerate() {
            let item = item as u32;
            if *score == f32::NEG_INFINITY || options.allow.is_some_and(|allow| !allow(item)) {
                continue;
            }
            let boost = options.boost.map_or(0.0, |boost| boost(item));
            let candidate = Candidate {
                score: f64::from(*score) + boost,
                item,
            };
            // A boost that is not a number says nothing about where the item belongs.
            if candidate.score.is_nan() {
                continue;
            }
            if kept.len() < size {
                kept.push(std::cmp::Reverse(candidate));
            } else if kept.peek().is_some_and(|worst| worst.0 < candidate) {
                kept.pop();
                kept.push(std::cmp::Reverse(candidate));
            }
        }
        let mut out: Vec<Candidate> = kept.into_iter().map(|c| c.0).collect();
        out.sort_by(|a, b| b.cmp(a));
        out
    }
}

/// Features of one item, for explanations and tests.
pub fn features_of(
    tables: &Tables,
    content: &Content,
    request: &Request<'_>,
    item: u32,
) -> [f64; crate::score::FEATURES] {
    let mut composition = Composition::new(tables, content, request, Weights::PUBLIC);
    let features: &Features = composition.features(item, 1);
    crate::score::Feature::ALL.map(|feature| features.values(feature)[0])
}
