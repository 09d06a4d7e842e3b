//! Why an item is on a list: the events without which its score would fall most.

use crate::content::Content;
use crate::rows::Row;
use crate::score::next::{
    CountsScorer, EASE_DECAYS, FAR, FAR_FLOOR, NEAR, NEAR_DECAYS, TERMS, decayed, ease_log,
};
use crate::score::{Request, Weights};
use crate::tables::Tables;

/// One event of the history, and what the item's score owes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reason {
    /// The event's item.
    pub item: u32,
    /// Its age: 0 is the newest event.
    pub age: usize,
    /// How much the score falls if the event is left out of the history.
    pub amount: f64,
}

/// What the events say of the item, newest first.
#[derive(Default)]
struct Evidence {
    ease: Vec<f64>,
    far: Vec<f64>,
    near: Vec<f64>,
    terms: Vec<f64>,
}

/// The `most` events without which the item's score would fall most, largest first.
///
/// Each amount is the difference of two scores: with the whole history, and with the history
/// without that event (the later events keep their order, earlier ones become one event younger).
/// So a reason is true by construction. Events without which the score would not fall are no
/// reasons.
pub fn reasons(
    tables: &Tables,
    content: &Content,
    request: &Request<'_>,
    weights: &Weights,
    item: u32,
    most: usize,
) -> Vec<Reason> {
    let found = reasons_of_all(tables, content, request, weights, &[item], most);
    found.into_iter().next().unwrap_or_default()
}

/// As [`reasons`], for several items: every row of the history is decoded once.
pub fn reasons_of_all(
    tables: &Tables,
    content: &Content,
    request: &Request<'_>,
    weights: &Weights,
    items: &[u32],
    most: usize,
) -> Vec<Vec<Reason>> {
    let counts = CountsScorer::new(tables, request);
    let history: Vec<u32> = request
        .history
        .newest_seen(usize::MAX)
        .map(|(_, item)| item)
        .collect();
    let evidence = gather(tables, content, &history, items);
    let one = |(item, evidence): (&u32, &Evidence)| {
        let start = counts.start(*item);
        let counts = counts.of(*item);
        let sums = Sums::new(evidence);
        let p = tables.share(*item);
        let whole = sums.score(None, counts, start, p, weights);
        let mut found: Vec<Reason> = history
            .iter()
            .enumerate()
            .map(|(age, event)| Reason {
                item: *event,
                age,
                amount: whole - sums.score(Some(age), counts, start, p, weights),
            })
            .filter(|reason| reason.amount > 0.0)
            .collect();
        found.sort_by(|a, b| b.amount.total_cmp(&a.amount).then(a.age.cmp(&b.age)));
        found.truncate(most);
        found
    };
    items.iter().zip(&evidence).map(one).collect()
}

/// What each event, newest first, says of each item.
fn gather(tables: &Tables, content: &Content, history: &[u32], items: &[u32]) -> Vec<Evidence> {
    let mut row = Row::default();
    let mut out: Vec<Evidence> = items.iter().map(|_| Evidence::default()).collect();
    for (age, h) in history.iter().enumerate() {
        tables.ease.read(*h, &mut row);
        for (item, evidence) in items.iter().zip(&mut out) {
            let value = f64::from(row.get(*item)) + f64::from(row.background);
            evidence.ease.push(value);
        }
        // One event more than the windows hold: it moves in when a newer one is left out.
        if age <= FAR.0 {
            tables.next.read(*h, &mut row);
            for (item, evidence) in items.iter().zip(&mut out) {
                let background = f64::from(row.background) * tables.share(*item);
                evidence.far.push(background + f64::from(row.get(*item)));
            }
        }
        if age <= NEAR {
            tables.near.read(*h, &mut row);
            for (item, evidence) in items.iter().zip(&mut out) {
                let value = f64::from(row.get(*item)) + f64::from(row.background);
                evidence.near.push(value);
            }
        }
        if age <= TERMS.0 {
            for (item, evidence) in items.iter().zip(&mut out) {
                evidence.terms.push(content.term_cosine(*h, *item));
            }
        }
    }
    out
}

/// A weighted sum over the newest events, with any one of them left out: the events before it keep
/// their weights, those behind it have the weights of one event younger.
struct Decayed {
    /// Sum of the first `k` with their own weights.
    before: Vec<f64>,
    /// Sum of all from `k` with the weights of one event younger.
    behind: Vec<f64>,
    /// Sum of the weights of the first `k`.
    weights: Vec<f64>,
    window: usize,
}

impl Decayed {
    fn new(values: &[f64], window: usize, weight: impl Fn(usize) -> f64) -> Self {
        let n = values.len();
        let mut before = vec![0.0; n + 1];
        let mut weights = vec![0.0; n + 1];
        for age in 0..n {
            let w = if age < window { weight(age) } else { 0.0 };
            before[age + 1] = before[age] + w * values[age];
            weights[age + 1] = weights[age] + w;
        }
        let mut behind = vec![0.0; n + 1];
        for age in (1..n).rev() {
            let w = if age <= window { weight(age - 1) } else { 0.0 };
            behind[age] = behind[age + 1] + w * values[age];
        }
        Self {
            before,
            behind,
            weights,
            window,
        }
    }

    fn sum(&self, left_out: Option<usize>) -> f64 {
        match left_out {
            None => self.before[self.before.len() - 1],
            Some(age) if age >= self.window => self.before[self.before.len() - 1],
            Some(age) => self.before[age] + self.behind[age + 1],
        }
    }

    /// The sum over the sum of the weights; of `events` events, or all.
    fn mean(&self, left_out: Option<usize>, events: usize) -> f64 {
        let n = events.min(self.window).min(self.weights.len() - 1);
        if n == 0 {
            return 0.0;
        }
        self.sum(left_out) / self.weights[n]
    }
}

struct Sums {
    events: usize,
    ease: [Decayed; 3],
    near: [Decayed; 2],
    far: Decayed,
    terms: Decayed,
}

impl Sums {
    fn new(evidence: &Evidence) -> Self {
        let all = usize::MAX;
        let [slow, fast] = EASE_DECAYS;
        let near = |decay: f64| Decayed::new(&evidence.near, NEAR, |age| decayed(age, decay));
        Self {
            events: evidence.ease.len(),
            ease: [
                Decayed::new(&evidence.ease, all, |_| 1.0),
                Decayed::new(&evidence.ease, all, |age| decayed(age, slow)),
                Decayed::new(&evidence.ease, all, |age| decayed(age, fast)),
            ],
            near: NEAR_DECAYS.map(near),
            far: Decayed::new(&evidence.far, FAR.0, |age| decayed(age, FAR.1)),
            terms: Decayed::new(&evidence.terms, TERMS.0, |age| decayed(age, TERMS.1)),
        }
    }

    /// The score of the composition, one event possibly left out.
    fn score(
        &self,
        left_out: Option<usize>,
        counts: [f64; 2],
        start: f64,
        p: f64,
        weights: &Weights,
    ) -> f64 {
        let events = self.events - usize::from(left_out.is_some());
        // Nothing is known of an empty history: the next item is any item.
        let chance = if events == 0 {
            p
        } else {
            self.far.mean(left_out, events)
        };
        let features = [
            counts[0],
            counts[1],
            libm::log(chance + FAR_FLOOR),
            self.ease[0].sum(left_out),
            self.terms.mean(left_out, events),
            self.near[0].sum(left_out),
            self.near[1].sum(left_out),
            ease_log(self.ease[1].sum(left_out)),
            ease_log(self.ease[2].sum(left_out)),
        ];
        let sum: f64 = features.iter().zip(weights.0).map(|(x, w)| x * w).sum();
        sum + Weights::few_events(events) * start
    }
}
