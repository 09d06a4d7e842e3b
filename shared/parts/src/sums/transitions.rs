//! What follows what.

use crate::contribution::Contribution;
use crate::matrix::{Entry, RowSum, SumMatrix, Terms, collect};
use crate::sums::index;

/// How transitions are weighted by their distance.
#[derive(Clone, Copy)]
pub(super) struct Lags {
    /// The greatest distance that counts, in events.
    most: usize,
    /// Events after which the weight falls to `1 / e`.
    decay: f64,
}

pub(super) const NEAR: Lags = Lags {
    most: 10,
    decay: 5.0,
};
const FAR: Lags = Lags {
    most: 40,
    decay: 20.0,
};

/// Sums per ordered pair of items: how often the second was met after the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transitions {
    /// `C10`: lags 1 to 10, weights `round(64 exp(-(lag - 1) / 5))`.
    pub near: SumMatrix,
    /// `C40`: lags 1 to 40, weights `round(64 exp(-(lag - 1) / 20))`.
    pub far: SumMatrix,
}

/// The weight of every lag, from lag 1.
pub(super) fn lag_weights(lags: Lags) -> Vec<u64> {
    (0..lags.most)
        .map(|lag| libm::round(64.0 * libm::exp(-(lag as f64) / lags.decay)) as u64)
        .collect()
}

/// Weights of the near transitions, from lag 1; they fall.
pub(crate) fn near_weights() -> Vec<u64> {
    lag_weights(NEAR)
}

/// Weights of the far transitions, from lag 1; they fall.
pub(crate) fn far_weights() -> Vec<u64> {
    lag_weights(FAR)
}

fn transition_entries(one: &Contribution, weights: &[u64]) -> Vec<Entry> {
    let seen = one.seen();
    let mut entries = vec![];
    for (at, from) in seen.iter().enumerate() {
        for (to, weight) in seen[at + 1..].iter().zip(weights) {
            entries.push((*from, *to, *weight));
        }
    }
    collect(entries)
}

impl Transitions {
    /// Nobody, over `items` items.
    pub fn new(items: usize) -> Self {
        Self {
            near: SumMatrix::new(items),
            far: SumMatrix::new(items),
        }
    }

    pub(crate) fn add(&mut self, c: &Contribution) {
        self.near.add(&transition_entries(c, &lag_weights(NEAR)));
        self.far.add(&transition_entries(c, &lag_weights(FAR)));
    }

    pub(crate) fn holds(&self, c: &Contribution) -> bool {
        self.near.holds(&transition_entries(c, &lag_weights(NEAR)))
            && self.far.holds(&transition_entries(c, &lag_weights(FAR)))
    }

    pub(crate) fn subtract(&mut self, c: &Contribution) {
        self.near
            .subtract(&transition_entries(c, &lag_weights(NEAR)));
        self.far.subtract(&transition_entries(c, &lag_weights(FAR)));
    }

    /// Numbers that change when this contribution is taken out.
    pub(crate) fn entries_of(&self, c: &Contribution) -> u64 {
        let counting = |matrix: &SumMatrix, lags: Lags| {
            let entries = transition_entries(c, &lag_weights(lags));
            let all = entries.iter().filter(|e| matrix.counts(e.0, e.1));
            all.count() as u64
        };
        counting(&self.near, NEAR) + counting(&self.far, FAR)
    }

    /// The matrices with what many people add to their rows.
    pub(super) fn terms<'a>(&'a mut self, of: &'a Many<'_>) -> Vec<Terms<'a>> {
        let near = Terms {
            matrix: &mut self.near,
            of_row: Box::new(|row, sum| of.write(row, sum, &of.near)),
        };
        let far = Terms {
            matrix: &mut self.far,
            of_row: Box::new(|row, sum| of.write(row, sum, &of.far)),
        };
        vec![near, far]
    }
}

/// Many people, by the items that they met.
pub(super) struct Many<'a> {
    all: &'a [Contribution],
    seen: Vec<Vec<(u32, u32)>>,
    near: Vec<u64>,
    far: Vec<u64>,
}

impl<'a> Many<'a> {
    pub(super) fn of(all: &'a [Contribution], items: usize) -> Self {
        Self {
            all,
            seen: index(items, all, |c| c.seen().to_vec()),
            near: lag_weights(NEAR),
            far: lag_weights(FAR),
        }
    }

    fn write(&self, row: u32, sum: &mut RowSum, weights: &[u64]) {
        for (person, at) in &self.seen[row as usize] {
            let later = &self.all[*person as usize].seen()[*at as usize + 1..];
            for (item, weight) in later.iter().zip(weights) {
                sum.add(*item, *weight);
            }
        }
    }
}
