//! A head in closed form, alone and beside adapters.

use lethe_learn::logistic::Logistic;

use crate::sharded::Sharded;
use crate::sums::{Line, Sums};
use crate::world::{Cost, Exactness, ModelId, SampleId, Strategy, UnlearnError, Untuned, World};

/// Ours: ridge regression on the untuned model's last hidden states and its log-odds, from [`Sums`].
///
/// Closed-form heads on frozen features lose nothing by any division of the data (AFL, He et al., arXiv 2405.16240), and a
/// model in summation form forgets by subtraction (Cao and Yang, IEEE S&P 2015). Departures: integers, so that both hold bit for
/// bit; the untuned model's own log-odds stay in the fit, free of the penalty.
///
/// There are no shards and no stages: a deletion touches the deleted samples alone, once. What it gives up is what training the
/// layers would give. Whoever subtracts needs the samples' features again: from the person, or from a stored record that goes
/// with them.
#[derive(Debug)]
pub struct Analytic {
    ridge: f64,
    fitted: Option<(Sums, Line)>,
}

fn features(untuned: Untuned) -> Vec<f32> {
    let mut x = untuned.hidden;
    x.push(untuned.log_odds);
    x
}

impl Analytic {
    /// `ridge` in units of the features' mean variance.
    pub fn new(ridge: f64) -> Self {
        Self { ridge, fitted: None }
    }

    /// The same sums with another penalty.
    pub fn with_ridge(&self, ridge: f64) -> Result<Self, UnlearnError> {
        let sums = self.sums().ok_or_else(|| UnlearnError::Untrained(self.name()))?.clone();
        let line = sums.solve(ridge)?;
        Ok(Self { ridge, fitted: Some((sums, line)) })
    }

    /// The sums, once there are any.
    pub fn sums(&self) -> Option<&Sums> {
        self.fitted.as_ref().map(|(s, _)| s)
    }

    /// Adds samples to sums, or subtracts them; solves.
    fn change(
        &mut self,
        w: &mut dyn World,
        start: Option<Sums>,
        samples: &[SampleId],
        sign: i64,
    ) -> Result<Cost, UnlearnError> {
        let untuned = w.untuned(samples)?;
        let started = w.seconds();
        let mut sums = start;
        for (s, u) in samples.iter().zip(untuned) {
            let x = features(u);
            sums.get_or_insert_with(|| Sums::new(x.len())).add(&x, w.label(*s), sign)?;
        }
        let sums = sums.ok_or_else(|| UnlearnError::Data("no sample to fit a head to".into()))?;
        let line = sums.solve(self.ridge)?;
        self.fitted = Some((sums, line));
        Ok(Cost { samples: samples.len() as u64, seconds: w.seconds() - started })
    }
}

impl Strategy for Analytic {
    fn name(&self) -> String {
        "Analytic head".into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn fit(&mut self, w: &mut dyn World, train: &[SampleId], _: &[SampleId]) -> Result<Cost, UnlearnError> {
        self.change(w, None, train, 1)
    }

    fn forget(
        &mut self,
        w: &mut dyn World,
        _: &[SampleId],
        gone: &[SampleId],
        _: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        let sums = self.sums().ok_or_else(|| UnlearnError::Untrained(self.name()))?.clone();
        self.change(w, Some(sums), gone, -1)
    }

    fn predict(&mut self, w: &mut dyn World, samples: &[SampleId]) -> Result<Vec<[f32; 2]>, UnlearnError> {
        let (_, line) = self.fitted.as_ref().ok_or_else(|| UnlearnError::Untrained(self.name()))?;
        Ok(w.untuned(samples)?.into_iter().map(|u| line.logits(&features(u))).collect())
    }

    fn models(&self) -> Vec<ModelId> {
        vec![]
    }
}

/// Adapters per shard together with an [`Analytic`] head: a logistic regression on validation samples weighs their log-odds.
/// Where the adapters are mixed by APA, the untuned pass that locates a query gives the head's features, too.
#[derive(Debug)]
pub struct WithHead {
    name: String,
    adapters: Sharded,
    head: Analytic,
    weights: Option<Logistic>,
}

impl WithHead {
    /// Penalty of the two weights, which are fitted on few samples: as for the composition with rates.
    const RIDGE: f64 = 0.05;

    /// Both together.
    pub fn new(name: &str, adapters: Sharded, head: Analytic) -> Self {
        Self { name: name.into(), adapters, head, weights: None }
    }

    fn both(&mut self, w: &mut dyn World, samples: &[SampleId]) -> Result<Vec<Vec<f64>>, UnlearnError> {
        let (a, h) = (self.adapters.predict(w, samples)?, self.head.predict(w, samples)?);
        let odds = |l: &[f32; 2]| f64::from(l[1]) - f64::from(l[0]);
        Ok(a.iter().zip(&h).map(|(a, h)| vec![odds(a), odds(h)]).collect())
    }

    fn weigh(&mut self, w: &mut dyn World, validation: &[SampleId]) -> Result<(), UnlearnError> {
        let rows = self.both(w, validation)?;
        let labels: Vec<bool> = validation.iter().map(|s| w.label(*s)).collect();
        self.weights = Some(Logistic::fit(&rows, &labels, Self::RIDGE));
        Ok(())
    }
}

impl Strategy for WithHead {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn exactness(&self) -> Exactness {
        self.adapters.exactness()
    }

    fn fit(&mut self, w: &mut dyn World, train: &[SampleId], validation: &[SampleId]) -> Result<Cost, UnlearnError> {
        let mut cost = self.adapters.fit(w, train, validation)?;
        cost += self.head.fit(w, train, validation)?;
        self.weigh(w, validation)?;
        Ok(cost)
    }

    fn forget(
        &mut self,
        w: &mut dyn World,
        remaining: &[SampleId],
        gone: &[SampleId],
        validation: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        let mut cost = self.adapters.forget(w, remaining, gone, validation)?;
        cost += self.head.forget(w, remaining, gone, validation)?;
        self.weigh(w, validation)?;
        Ok(cost)
    }

    fn predict(&mut self, w: &mut dyn World, samples: &[SampleId]) -> Result<Vec<[f32; 2]>, UnlearnError> {
        let rows = self.both(w, samples)?;
        let weights = self.weights.as_ref().ok_or_else(|| UnlearnError::Untrained(self.name.clone()))?;
        Ok(rows.iter().map(|r| [0.0, weights.score(r) as f32]).collect())
    }

    fn models(&self) -> Vec<ModelId> {
        self.adapters.models()
    }

    fn placement(&self) -> Vec<(SampleId, usize)> {
        self.adapters.placement()
    }

    /// Those of the adapters, and the untuned one.
    fn passes(&self) -> usize {
        self.adapters.passes() + self.head.passes()
    }
}
