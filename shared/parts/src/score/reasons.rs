//! Why an item is on a list: the events without which its score would fall most.

use crate::content::Content;
use crate::rows::Row;
use crate::score::next::{
    CountsScorer, EASE_DECAYS, FAR, FAR_FLOOR, NEAR, NEAR_DECAYS, TERMS, decayed, ease_log,
    normalised,
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

/// What one event says of the item.
struct Evidence {
    item: u32,
    ease: f64,
    far: f64,
    far_background: f64,
    near: f64,
    terms: f64,
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
    let evidence = gather(tables, content, request, item);
    let counts = CountsScorer::new(tables, request).of(item);
    let p = tables.share(item);
    let whole = score(&evidence, None, counts, p, weights);
    let mut found: Vec<Reason> = (0..evidence.len())
        .map(|left_out| Reason {
            item: evidence[left_out].item,
            age: left_out,
            amount: whole - score(&evidence, Some(left_out), counts, p, weights),
        })
        .filter(|reason| reason.amount > 0.0)
        .collect();
    found.sort_by(|a, b| b.amount.total_cmp(&a.amount).then(a.age.cmp(&b.age)));
    found.truncate(most);
    found
}

/// Newest first.
fn gather(tables: &Tables, content: &Content, request: &Request<'_>, item: u32) -> Vec<Evidence> {
    let mut scratch = Row::default();
    request
        .history
        .newest_seen(usize::MAX)
        .map(|(_, h)| {
            let (ease, ease_background) = tables.ease.entry(h, item, &mut scratch);
            let (far, far_background) = tables.next.entry(h, item, &mut scratch);
            let (near, near_background) = tables.near.entry(h, item, &mut scratch);
            Evidence {
                item: h,
                ease: f64::from(ease) + f64::from(ease_background),
                far: f64::from(far),
                far_background: f64::from(far_background),
                near: f64::from(near) + f64::from(near_background),
                terms: content.term_cosine(h, item),
            }
        })
        .collect()
}

/// The score from what the events say, one of them possibly left out.
fn score(
    evidence: &[Evidence],
    left_out: Option<usize>,
    counts: [f64; 2],
    p: f64,
    weights: &Weights,
) -> f64 {
    let events = evidence
        .iter()
        .enumerate()
        .filter(|(at, _)| Some(*at) != left_out)
        .map(|(_, e)| e);
    let n = evidence.len() - usize::from(left_out.is_some());
    let far_weights = normalised(FAR.0.min(n), FAR.1);
    let term_weights = normalised(TERMS.0.min(n), TERMS.1);
    let mut ease = [0.0; 3];
    let mut near = [0.0; 2];
    let mut chance = if n == 0 { p } else { 0.0 };
    let mut terms = 0.0;
    for (age, e) in events.enumerate() {
        ease[0] += e.ease;
        for (sum, decay) in ease[1..].iter_mut().zip(EASE_DECAYS) {
            *sum += decayed(age, decay) * e.ease;
        }
        if let Some(w) = far_weights.get(age) {
            chance += w * (e.far_background * p + e.far);
        }
        if age < NEAR {
            for (sum, decay) in near.iter_mut().zip(NEAR_DECAYS) {
                *sum += decayed(age, decay) * e.near;
            }
        }
        if let Some(w) = term_weights.get(age) {
            terms += w * e.terms;
        }
    }
    let features = [
        counts[0],
        counts[1],
        libm::log(chance + FAR_FLOOR),
        ease[0],
        terms,
        near[0],
        near[1],
        ease_log(ease[1]),
        ease_log(ease[2]),
    ];
    let sum: f64 = features.iter().zip(weights.0).map(|(x, w)| x * w).sum();
    sum + Weights::few_events(n) * counts[0]
}
