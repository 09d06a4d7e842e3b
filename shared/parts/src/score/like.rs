//! The probability of a like.

use crate::content::Content;
use crate::event::LIKE_BOUNDARY;
use crate::field::{Field, Observation, Regression};
use crate::history::{History, Rated};
use crate::rows::Row;
use crate::tables::Tables;

/// Rated events that are looked at.
const EVENTS: usize = 300;
/// Prior strength of a person's rate of likes, in events.
const RATE_PRIOR: f64 = 3.0;
/// Prior strength of an item's rate of likes, in people.
const ITEM_PRIOR: f64 = 5.0;
/// Decay of the events' weights in the signed EASE.
const SIGNED_DECAY: f64 = 30.0;
/// Prior strengths of the two affinities, in events.
const TEXT_PRIOR: f64 = 1.0;
const TERM_PRIOR: f64 = 5.0;
/// The newest events that make up the recent rate, and its prior strength.
const RECENT: (usize, f64) = (10, 2.0);

/// Features of a like, one item for one history. `docs/recommend.md` has the formulas.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LikeFeatures {
    /// Rating predicted by the item field, in stars. Log-odds count it from where likes begin.
    pub field: f64,
    /// The same by a field without content; the field's where none was given.
    pub field_without_content: f64,
    /// Variance of the prediction, in stars squared.
    pub variance: f64,
    /// Log-odds of the item's rate of likes.
    pub item_log_odds: f64,
    /// Log-odds of the person's rate of likes.
    pub rate_log_odds: f64,
    /// Log-odds of their rate over the newest ten ratings.
    pub recent_log_odds: f64,
    /// EASE from rated items, decaying with 30 events. EASE itself is solved over everything that
    /// people met, rated or not: its constants were chosen where every event is a rating.
    pub ease: f64,
    /// The same, each event signed by the like less the person's rate.
    pub signed_ease: f64,
    /// `log(1 + people who rated the item)`.
    pub log_people: f64,
    /// `log(1 + rated events of the person)`.
    pub log_events: f64,
    /// Residuals of items with like terms.
    pub term_affinity: f64,
    /// Residuals of items with like text.
    pub text_affinity: f64,
    /// How much earlier likes begin than in the data that the constants were chosen on, in stars.
    pub lenience: f64,
}

impl LikeFeatures {
    fn in_order(&self) -> [f64; 12] {
        [
            self.field + self.lenience,
            self.field_without_content + self.lenience,
            self.variance,
            self.item_log_odds,
            self.rate_log_odds,
            self.recent_log_odds,
            self.ease,
            self.signed_ease,
            self.log_people,
            self.log_events,
            self.term_affinity,
            self.text_affinity,
        ]
    }

    /// The log-odds of a like.
    pub fn log_odds(&self, weights: &LikeWeights) -> f64 {
        let terms = self.in_order().into_iter().zip(weights.features);
        terms.fold(weights.bias, |sum, (x, w)| sum + x * w)
    }
}

/// Weights of [`LikeFeatures`], in the order of its fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LikeWeights {
    /// Log-odds where all features are zero.
    pub bias: f64,
    /// One weight a feature.
    pub features: [f64; 12],
}

/// Public constants of the seven features that are served.
pub const SEVEN: LikeWeights = LikeWeights {
    bias: -7.642,
    features: [
        2.084, 0.0, 0.0, -0.089, 0.0, 0.032, 0.0, 16.472, 0.099, 0.0, 0.373, 1.225,
    ],
};

/// Public constants of all twelve, for measurements: they need two fields.
pub const TWELVE: LikeWeights = LikeWeights {
    bias: -5.942,
    features: [
        1.083, 0.824, -3.353, 0.007, 0.239, -0.048, 0.168, 18.338, 0.156, -0.167, 0.788, 1.478,
    ],
};

/// One history, prepared to predict likes of any item.
pub struct Like<'a> {
    tables: &'a Tables,
    content: &'a Content,
    history: Vec<Rated>,
    residuals: Vec<f64>,
    level: f64,
    rate: f64,
    regression: Regression,
    plain: Option<(&'a Field, Regression)>,
    ease: Vec<Row>,
}

impl<'a> Like<'a> {
    /// Prepares a history; work and memory are bounded by its newest 300 rated events.
    pub fn new(tables: &'a Tables, content: &'a Content, history: &History) -> Self {
        let history: Vec<Rated> = history.newest_rated(EVENTS).collect();
        let residuals: Vec<f64> = history
            .iter()
            .map(|r| r.stars() - tables.mean(r.item))
            .collect();
        let likes = history.iter().filter(|r| r.liked).count() as f64;
        let n = history.len() as f64;
        let rate = (likes + RATE_PRIOR * tables.derived.like_rate) / (n + RATE_PRIOR);
        let level = residuals.iter().sum::<f64>() / (n + RATE_PRIOR);
        let ease = history.iter().map(|r| {
            let mut row = Row::default();
            tables.ease.read(r.item, &mut row);
            row
        });
        Self {
            regression: Regression::new(&tables.field, &observations(&history, &residuals)),
            ease: ease.collect(),
            tables,
            content,
            history,
            residuals,
            level,
            rate,
            plain: None,
        }
    }

    /// Adds a field without content, for the twelve features.
    #[must_use]
    pub fn with_plain_field(mut self, field: &'a Field) -> Self {
        let observations = observations(&self.history, &self.residuals);
        self.plain = Some((field, Regression::new(field, &observations)));
        self
    }

    /// All features of an item.
    pub fn features(&self, item: u32) -> LikeFeatures {
        let mean = self.tables.mean(item);
        let predicted = self.regression.predict(&self.tables.field, item);
        let plain = self
            .plain
            .as_ref()
            .map_or(predicted, |(field, regression)| {
                regression.predict(field, item)
            });
        let mut ease = 0.0;
        let mut signed = 0.0;
        for (age, (event, row)) in self.history.iter().zip(&self.ease).enumerate() {
            let weight = libm::exp(-(age as f64) / SIGNED_DECAY);
            let value = f64::from(row.background + row.get(item));
            ease += weight * value;
            signed += weight * (like(*event) - self.rate) * value;
        }
        let columns = &self.tables.columns;
        let people = columns.rated[item as usize] as f64;
        let boundary = self.tables.like_boundary;
        LikeFeatures {
            lenience: (f64::from(LIKE_BOUNDARY) - f64::from(boundary)) / 4.0,
            field: mean + predicted.above_mean,
            field_without_content: mean + plain.above_mean,
            variance: predicted.variance,
            item_log_odds: self.item_log_odds(item),
            rate_log_odds: log_odds(self.rate),
            recent_log_odds: self.recent_log_odds(),
            ease,
            signed_ease: signed,
            log_people: libm::log1p(people),
            log_events: libm::log1p(self.history.len() as f64),
            term_affinity: self.affinity(TERM_PRIOR, |h| self.content.term_cosine(h, item)),
            text_affinity: self.affinity(TEXT_PRIOR, |h| {
                let cosine = self.content.text_cosine(h, item).max(0.0);
                cosine * cosine
            }),
        }
    }

    /// The probability of a like, from the seven features that are served.
    pub fn probability(&self, item: u32) -> f64 {
        1.0 / (1.0 + libm::exp(-self.features(item).log_odds(&SEVEN)))
    }

    fn item_log_odds(&self, item: u32) -> f64 {
        let columns = &self.tables.columns;
        let likes = columns.likes[item as usize] as f64;
        let dislikes = columns.rated[item as usize] as f64 - likes;
        let q = self.tables.derived.like_rate;
        let odds = (likes + ITEM_PRIOR * q) / (dislikes + ITEM_PRIOR * (1.0 - q));
        libm::log(odds.clamp(1e-6, 1e6))
    }

    fn recent_log_odds(&self) -> f64 {
        let (events, prior) = RECENT;
        let newest = &self.history[..events.min(self.history.len())];
        let likes: f64 = newest.iter().map(|r| like(*r)).sum();
        log_odds((likes + prior * self.rate) / (newest.len() as f64 + prior))
    }

    /// Mean of the residuals over the person's level, weighted by `weight` of each event's item.
    fn affinity(&self, prior: f64, weight: impl Fn(u32) -> f64) -> f64 {
        let mut sum = 0.0;
        let mut total = prior;
        for (event, residual) in self.history.iter().zip(&self.residuals) {
            let w = weight(event.item);
            sum += w * (residual - self.level);
            total += w;
        }
        // Cosines of terms can be slightly negative.
        if total > 0.0 { sum / total } else { 0.0 }
    }
}

fn observations(history: &[Rated], residuals: &[f64]) -> Vec<Observation> {
    let events = history.iter().zip(residuals);
    events
        .map(|(rated, residual)| Observation {
            item: rated.item,
            residual: *residual,
        })
        .collect()
}

fn like(event: Rated) -> f64 {
    f64::from(u8::from(event.liked))
}

fn log_odds(rate: f64) -> f64 {
    let rate = rate.clamp(1e-6, 1.0 - 1e-6);
    libm::log(rate / (1.0 - rate))
}
