//! The next item: four parts and their composition.

use crate::content::Content;
use crate::contribution::Contribution;
use crate::part::{Forgetting, Part, Refused, Scorer};
use crate::rows::{Row, Rows};
use crate::score::{BLOCK, FEATURES, Feature, Features, Request};
use crate::sums::{Counts, Pairs, Transitions};
use crate::tables::Tables;

/// Events that the far transitions look at, and the decay of their weights.
pub(crate) const FAR: (usize, f64) = (50, 10.0);
/// Events that the near transitions look at.
pub(crate) const NEAR: usize = 20;
/// Decays of the two features over near transitions.
pub(crate) const NEAR_DECAYS: [f64; 2] = [3.0, 1.5];
/// Decays of the two logarithmic features of EASE.
pub(crate) const EASE_DECAYS: [f64; 2] = [15.0, 5.0];
/// Events that the terms' profile looks at, and the decay of their weights.
pub(crate) const TERMS: (usize, f64) = (30, 5.0);
/// Keeps the logarithm of the far transitions finite.
pub(crate) const FAR_FLOOR: f64 = 1e-6;
/// Keeps the logarithms of EASE finite.
pub(crate) const EASE_FLOOR: f64 = 0.02;
/// Days after which what was met lately counts half.
const HALF_LIFE: f64 = 30.0;
/// Up to this many events popularity is added.
const FEW: usize = 10;

/// Weights of the features, in the order of [`Feature::ALL`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights(pub [f64; FEATURES]);

impl Weights {
    /// The public constants. They are hyper-parameters of the software, chosen once on validation
    /// events of MovieLens-100K, and not fitted to anybody's data again: weights that were fitted
    /// would have to be fitted again for every deletion.
    pub const PUBLIC: Self = Self([-0.33, 0.21, 0.55, 3.88, 0.84, 0.02, 0.30, 0.48, 0.77]);

    /// The same without some features.
    #[must_use]
    pub fn without(mut self, features: &[Feature]) -> Self {
        for feature in features {
            self.0[*feature as usize] = 0.0;
        }
        self
    }

    /// The weight of the log of [`Tables::start`] for a history of `events` events: the constants
    /// alone rank the rarest items first for people of whom nothing is known.
    pub fn few_events(events: usize) -> f64 {
        if events > FEW {
            return 0.0;
        }
        4.0 * libm::exp(-(events as f64) / 2.0)
    }
}

/// `counts`: popularity, and what was met lately.
pub struct CountsPart;
/// `pairs`: EASE.
pub struct PairsPart;
/// `transitions`: what follows what.
pub struct TransitionsPart;
/// `content`: public, the same for everybody.
pub struct ContentPart;

/// Rows of one history with the weights that their entries have in `N` sums.
struct Weighted<const N: usize> {
    rows: Vec<(Row, [f64; N], usize)>,
    background: [f64; N],
}

impl<const N: usize> Weighted<N> {
    fn read(table: &Rows, weighted: impl Iterator<Item = (u32, [f64; N])>) -> Self {
        let mut rows = vec![];
        let mut background = [0.0; N];
        for (item, weights) in weighted {
            let mut row = Row::default();
            table.read(item, &mut row);
            for (sum, weight) in background.iter_mut().zip(&weights) {
                *sum += weight * f64::from(row.background);
            }
            rows.push((row, weights, 0));
        }
        Self { rows, background }
    }

    /// The sums of a block's items, over the background.
    fn sums(&mut self, block: &Features, into: &mut [[f64; BLOCK]; N]) {
        for sums in into.iter_mut() {
            sums[..block.len()].fill(0.0);
        }
        for (row, weights, at) in &mut self.rows {
            *at += row.columns[*at..].partition_point(|c| *c < block.first());
            while let Some(column) = row.columns.get(*at).filter(|c| **c < block.end()) {
                let place = (column - block.first()) as usize;
                let value = f64::from(row.values[*at]);
                for (sums, weight) in into.iter_mut().zip(weights.iter()) {
                    sums[place] += weight * value;
                }
                *at += 1;
            }
        }
    }
}

/// Weights `exp(-age / decay)`, scaled to the sum 1.
fn normalised(events: usize, decay: f64) -> Vec<f64> {
    let raw: Vec<f64> = (0..events).map(|age| decayed(age, decay)).collect();
    let total: f64 = raw.iter().sum();
    raw.iter().map(|w| w / total).collect()
}

pub(crate) fn decayed(age: usize, decay: f64) -> f64 {
    libm::exp(-(age as f64) / decay)
}

/// Prepared features of [`CountsPart`].
pub struct CountsScorer<'a> {
    tables: &'a Tables,
    fresh: f64,
}

impl CountsScorer<'_> {
    pub(crate) fn new<'a>(tables: &'a Tables, request: &Request<'_>) -> CountsScorer<'a> {
        let days = (i64::from(request.today) - i64::from(tables.day)).max(0);
        CountsScorer {
            tables,
            fresh: libm::exp2(-(days as f64) / HALF_LIFE),
        }
    }

    /// The log of the chance of being met first.
    pub(crate) fn start(&self, item: u32) -> f64 {
        libm::log(self.tables.start(item))
    }

    /// `log p` and `log(R + .5 (sum R + 10) p / 10 + .01) - log p` of one item.
    pub(crate) fn of(&self, item: u32) -> [f64; 2] {
        let p = self.tables.share(item);
        let log_p = libm::log(p);
        let recent = self.fresh * f64::from(self.tables.recent[item as usize]);
        let total = self.fresh * self.tables.derived.recent_total;
        let smoothed = recent + 0.5 * (total + 10.0) * p / 10.0 + 0.01;
        [log_p, libm::log(smoothed) - log_p]
    }
}

impl Scorer for CountsScorer<'_> {
    fn write(&mut self, block: &mut Features) {
        for place in 0..block.len() {
            let [log_p, recent] = self.of(block.first() + place as u32);
            block.column(Feature::Popularity)[place] = log_p;
            block.column(Feature::Recent)[place] = recent;
        }
    }
}

impl Part for CountsPart {
    type Contribution = Contribution;
    type State = Counts;
    type Published = Tables;
    type Scorer<'a> = CountsScorer<'a>;

    const NAME: &'static str = "counts";

    fn fold(state: &mut Counts, one: &Contribution) -> Result<(), Refused> {
        same_catalogue(one, state.seen.len())?;
        state.add(one);
        Ok(())
    }

    fn unfold(state: &mut Counts, one: &Contribution) -> Result<(), Refused> {
        same_catalogue(one, state.seen.len())?;
        if !state.holds(one) {
            return Err(Refused::NotFolded { what: Self::NAME });
        }
        state.subtract(one);
        Ok(())
    }

    fn forgetting(state: &Counts, one: &Contribution) -> Forgetting {
        Forgetting::Withdraw {
            entries: state.entries_of(one),
        }
    }

    fn scorer<'a>(published: &'a Tables, request: &Request<'a>) -> CountsScorer<'a> {
        CountsScorer::new(published, request)
    }
}

/// Prepared features of [`PairsPart`].
pub struct PairsScorer {
    rows: Weighted<3>,
    sums: Box<[[f64; BLOCK]; 3]>,
}

impl Scorer for PairsScorer {
    fn write(&mut self, block: &mut Features) {
        self.rows.sums(block, &mut self.sums);
        let background = self.rows.background;
        for place in 0..block.len() {
            let sum = |k: usize| background[k] + self.sums[k][place];
            block.column(Feature::Ease)[place] = sum(0);
            block.column(Feature::EaseDecay15)[place] = ease_log(sum(1));
            block.column(Feature::EaseDecay5)[place] = ease_log(sum(2));
        }
    }
}

/// `log(max(sum, 0) + .02)`.
pub(crate) fn ease_log(sum: f64) -> f64 {
    libm::log(sum.max(0.0) + EASE_FLOOR)
}

impl Part for PairsPart {
    type Contribution = Contribution;
    type State = Pairs;
    type Published = Tables;
    type Scorer<'a> = PairsScorer;

    const NAME: &'static str = "pairs";

    fn fold(state: &mut Pairs, one: &Contribution) -> Result<(), Refused> {
        same_catalogue(one, state.met.items())?;
        state.add(one);
        Ok(())
    }

    fn unfold(state: &mut Pairs, one: &Contribution) -> Result<(), Refused> {
        same_catalogue(one, state.met.items())?;
        if !state.holds(one) {
            return Err(Refused::NotFolded { what: Self::NAME });
        }
        state.subtract(one);
        Ok(())
    }

    fn forgetting(state: &Pairs, one: &Contribution) -> Forgetting {
        Forgetting::Withdraw {
            entries: state.entries_of(one),
        }
    }

    fn scorer<'a>(published: &'a Tables, request: &Request<'a>) -> PairsScorer {
        let history = request.history;
        let weighted = history.newest_seen(usize::MAX).map(|(age, item)| {
            let [slow, fast] = EASE_DECAYS.map(|decay| decayed(age, decay));
            (item, [1.0, slow, fast])
        });
        PairsScorer {
            rows: Weighted::read(&published.ease, weighted),
            sums: Box::new([[0.0; BLOCK]; 3]),
        }
    }
}

/// Prepared features of [`TransitionsPart`].
pub struct TransitionsScorer<'a> {
    tables: &'a Tables,
    far: Weighted<1>,
    near: Weighted<2>,
    empty: bool,
    far_sums: Box<[[f64; BLOCK]; 1]>,
    near_sums: Box<[[f64; BLOCK]; 2]>,
}

impl Scorer for TransitionsScorer<'_> {
    fn write(&mut self, block: &mut Features) {
        self.far.sums(block, &mut self.far_sums);
        self.near.sums(block, &mut self.near_sums);
        // Nothing is known of an empty history: the next item is any item.
        let background = if self.empty {
            1.0
        } else {
            self.far.background[0]
        };
        let near = self.near.background;
        for place in 0..block.len() {
            let p = self.tables.share(block.first() + place as u32);
            let chance = background * p + self.far_sums[0][place];
            block.column(Feature::Far)[place] = libm::log(chance + FAR_FLOOR);
            block.column(Feature::Near)[place] = near[0] + self.near_sums[0][place];
            block.column(Feature::NearShort)[place] = near[1] + self.near_sums[1][place];
        }
    }
}

impl Part for TransitionsPart {
    type Contribution = Contribution;
    type State = Transitions;
    type Published = Tables;
    type Scorer<'a> = TransitionsScorer<'a>;

    const NAME: &'static str = "transitions";

    fn fold(state: &mut Transitions, one: &Contribution) -> Result<(), Refused> {
        same_catalogue(one, state.near.items())?;
        state.add(one);
        Ok(())
    }

    fn unfold(state: &mut Transitions, one: &Contribution) -> Result<(), Refused> {
        same_catalogue(one, state.near.items())?;
        if !state.holds(one) {
            return Err(Refused::NotFolded { what: Self::NAME });
        }
        state.subtract(one);
        Ok(())
    }

    fn forgetting(state: &Transitions, one: &Contribution) -> Forgetting {
        Forgetting::Withdraw {
            entries: state.entries_of(one),
        }
    }

    fn scorer<'a>(published: &'a Tables, request: &Request<'a>) -> TransitionsScorer<'a> {
        let history = request.history;
        let (events, decay) = FAR;
        let weights = normalised(events.min(history.seen().len()), decay);
        let far = history
            .newest_seen(events)
            .zip(weights)
            .map(|((_, item), weight)| (item, [weight]));
        let near = history
            .newest_seen(NEAR)
            .map(|(age, item)| (item, NEAR_DECAYS.map(|decay| decayed(age, decay))));
        TransitionsScorer {
            tables: published,
            far: Weighted::read(&published.next, far),
            near: Weighted::read(&published.near, near),
            empty: history.seen().is_empty(),
            far_sums: Box::new([[0.0; BLOCK]; 1]),
            near_sums: Box::new([[0.0; BLOCK]; 2]),
        }
    }
}

/// Prepared features of [`ContentPart`].
pub struct ContentScorer<'a> {
    content: &'a Content,
    profile: Vec<f64>,
}

impl Scorer for ContentScorer<'_> {
    fn write(&mut self, block: &mut Features) {
        for place in 0..block.len() {
            let terms = self.content.terms_of(block.first() + place as u32);
            let cosine = terms
                .iter()
                .map(|(column, weight)| self.profile[*column as usize] * f64::from(*weight))
                .sum();
            block.column(Feature::Terms)[place] = cosine;
        }
    }
}

impl Part for ContentPart {
    type Contribution = ();
    type State = ();
    type Published = Content;
    type Scorer<'a> = ContentScorer<'a>;

    const NAME: &'static str = "content";

    fn fold(_: &mut (), _: &()) -> Result<(), Refused> {
        Ok(())
    }

    fn unfold(_: &mut (), _: &()) -> Result<(), Refused> {
        Ok(())
    }

    fn forgetting(_: &(), _: &()) -> Forgetting {
        Forgetting::Nothing
    }

    fn scorer<'a>(published: &'a Content, request: &Request<'a>) -> ContentScorer<'a> {
        let (events, decay) = TERMS;
        let history = request.history;
        let weights = normalised(events.min(history.seen().len()), decay);
        let mut profile = vec![0.0; published.terms().len()];
        for ((_, item), weight) in history.newest_seen(events).zip(weights) {
            for (column, value) in published.terms_of(item) {
                profile[*column as usize] += weight * f64::from(*value);
            }
        }
        ContentScorer {
            content: published,
            profile,
        }
    }
}

fn same_catalogue(one: &Contribution, items: usize) -> Result<(), Refused> {
    if one.items() > items {
        return Err(Refused::Items {
            got: one.items(),
            items,
        });
    }
    Ok(())
}

/// The four parts of one request, composed.
pub struct Composition<'a> {
    counts: CountsScorer<'a>,
    pairs: PairsScorer,
    transitions: TransitionsScorer<'a>,
    content: ContentScorer<'a>,
    weights: Weights,
    few: f64,
    features: Features,
}

impl<'a> Composition<'a> {
    /// Prepares a request.
    pub fn new(
        tables: &'a Tables,
        content: &'a Content,
        request: &Request<'a>,
        weights: Weights,
    ) -> Self {
        Self {
            counts: CountsPart::scorer(tables, request),
            pairs: PairsPart::scorer(tables, request),
            transitions: TransitionsPart::scorer(tables, request),
            content: ContentPart::scorer(content, request),
            weights,
            few: Weights::few_events(request.history.seen().len()),
            features: Features::default(),
        }
    }

    /// The features of a block of items. Blocks must come in ascending order.
    pub fn features(&mut self, first: u32, len: usize) -> &Features {
        self.features.begin(first, len);
        self.counts.write(&mut self.features);
        self.pairs.write(&mut self.features);
        self.transitions.write(&mut self.features);
        self.content.write(&mut self.features);
        &self.features
    }

    /// Writes the scores of items `first..` into `out`, at most [`BLOCK`] of them.
    pub fn scores(&mut self, first: u32, out: &mut [f32]) {
        let weights = self.weights;
        let few = self.few;
        let features = self.features(first, out.len());
        let mut sums = [0.0; BLOCK];
        for (feature, weight) in Feature::ALL.into_iter().zip(weights.0) {
            if weight != 0.0 {
                for (sum, value) in sums.iter_mut().zip(features.values(feature)) {
                    *sum += weight * value;
                }
            }
        }
        for (place, sum) in out.iter_mut().zip(sums) {
            *place = sum as f32;
        }
        if few > 0.0 {
            for (place, score) in out.iter_mut().enumerate() {
                *score += (few * self.counts.start(first + place as u32)) as f32;
            }
        }
    }
}
