//! What would be served: the language model's log-odds together with rates of items, people and
//! histories.
//!
//! The rates are refitted from the events that remain, which takes a moment and is exact; so are
//! the weights, on validation samples. Where a method learned its own weights from the same
//! validation samples (APA's table, GraphEraser, RecEraser), this flatters it a little.

use lethe_learn::logistic::Logistic;
use lethe_learn::seed::Seed;
use lethe_recsys::data::Event;
use lethe_recsys::references::References;
use lethe_recsys::samples::TaskSample;

/// Of the weights, which are fitted on few samples.
const RIDGE: f64 = 0.05;

/// Which of [`References::scores`] are used: item rate, offsets of person and item, rate of the
/// history.
const RATES: [usize; 3] = [0, 1, 3];

/// Rates after a deletion.
pub(crate) struct Rates(References);

impl Rates {
    /// From the training events that remain.
    pub(crate) fn fit(remaining: &[Event], users: usize, items: usize, seed: &Seed) -> Self {
        Self(References::fit(remaining, users, items, seed))
    }

    fn features(&self, s: &TaskSample, logits: Option<&[f32; 2]>) -> Vec<f64> {
        let rates = self.0.scores(s);
        let mut out: Vec<f64> = RATES.iter().map(|k| f64::from(rates[*k])).collect();
        out.extend(logits.map(|l| f64::from(l[1] - l[0])));
        out
    }

    /// Scores of `test` by weights that fit `validation`; without a model's logits, by rates alone.
    pub(crate) fn compose(&self, validation: &Scored<'_>, test: &Scored<'_>) -> Vec<f32> {
        let rows = |s: &Scored<'_>| -> Vec<Vec<f64>> {
            let logits = |i: usize| s.logits.map(|l| &l[i]);
            s.samples
                .iter()
                .enumerate()
                .map(|(i, x)| self.features(x, logits(i)))
                .collect()
        };
        let labels: Vec<bool> = validation.samples.iter().map(|s| s.label).collect();
        let model = Logistic::fit(&rows(validation), &labels, RIDGE);
        rows(test).iter().map(|r| model.score(r) as f32).collect()
    }
}

/// Samples and what a model says of them.
pub(crate) struct Scored<'a> {
    pub(crate) samples: Vec<&'a TaskSample>,
    pub(crate) logits: Option<&'a [[f32; 2]]>,
}
