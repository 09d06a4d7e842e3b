//! A head in closed form, alone and beside adapters.

use lethe_learn::logistic::Logistic;

use crate::sums::{Change, Line, Sums};
use crate::world::{Cost, Exactness, ModelId, SampleId, Strategy, UnlearnError, Untuned, World};

/// Ours: ridge regression on the untuned model's last hidden states and its log-odds, from
/// [`Sums`].
///
/// Closed-form heads on frozen features lose nothing by any division of the data (AFL, He et al.,
/// arXiv 2405.16240), and a model in summation form forgets by subtraction (Cao and Yang, IEEE S&P
/// 2015). Departures: integers, so that both hold bit for bit; the fit is drawn to the untuned
/// model's own log-odds, not to zero.
///
/// There are no shards and no stages: a deletion touches the deleted samples alone, once. What it
/// gives up is what training the layers would give. Whoever subtracts needs the samples' features
/// again: from the person, or from a stored record that goes with them.
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
    /// `ridge` as [`Sums::solve`] takes it: in samples.
    pub fn new(ridge: f64) -> Self {
        Self {
            ridge,
            fitted: None,
        }
    }

    /// The same sums with another penalty.
    pub fn with_ridge(&self, ridge: f64) -> Result<Self, UnlearnError> {
        let sums = self
            .sums()
            .ok_or_else(|| UnlearnError::Untrained(self.name()))?
            .clone();
        let line = sums.solve(ridge)?;
        Ok(Self {
            ridge,
            fitted: Some((sums, line)),
        })
    }

    /// The sums, once there are any.
    pub fn sums(&self) -> Option<&Sums> {
        self.fitted.as_ref().map(|(s, _)| s)
    }

    /// Sums with samples added or subtracted, and what that cost.
    fn changed(
        &self,
        w: &mut dyn World,
        mut sums: Option<Sums>,
        samples: &[SampleId],
        change: Change,
    ) -> Result<(Sums, Cost), UnlearnError> {
        let (untuned, mut cost) = w.untuned(samples)?;
        let started = w.seconds();
        for (s, u) in samples.iter().zip(untuned) {
            let x = features(u);
            sums.get_or_insert_with(|| Sums::new(x.len()))
                .add(&x, w.label(*s), change)?;
        }
        let sums = sums.ok_or_else(|| UnlearnError::Data("no sample to fit a head to".into()))?;
        cost.seconds += w.seconds() - started;
        Ok((sums, cost))
    }

    /// Solves, and only then keeps.
    fn keep(&mut self, w: &dyn World, sums: Sums, mut cost: Cost) -> Result<Cost, UnlearnError> {
        let started = w.seconds();
        let line = sums.solve(self.ridge)?;
        self.fitted = Some((sums, line));
        cost.seconds += w.seconds() - started;
        Ok(cost)
    }
}

impl Strategy for Analytic {
    fn name(&self) -> String {
        "Analytic head".into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn fit(
        &mut self,
        w: &mut dyn World,
        train: &[SampleId],
        _: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        let (sums, cost) = self.changed(w, None, train, Change::Add)?;
        self.keep(w, sums, cost)
    }

    fn forget(
        &mut self,
        w: &mut dyn World,
        remaining: &[SampleId],
        gone: &[SampleId],
        _: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        let sums = self
            .sums()
            .ok_or_else(|| UnlearnError::Untrained(self.name()))?
            .clone();
        let (sums, cost) = self.changed(w, Some(sums), gone, Change::Subtract)?;
        // Sums do not know whose they are: a deletion that is repeated would subtract again.
        if sums.samples() != remaining.len() as i64 {
            let (left, expected) = (sums.samples(), remaining.len());
            return Err(UnlearnError::Data(format!(
                "{left} samples would be left, expected {expected}"
            )));
        }
        self.keep(w, sums, cost)
    }

    fn predict(
        &mut self,
        w: &mut dyn World,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        let (_, line) = self
            .fitted
            .as_ref()
            .ok_or_else(|| UnlearnError::Untrained(self.name()))?;
        Ok(w.untuned(samples)?
            .0
            .into_iter()
            .map(|u| line.logits(&features(u)))
            .collect())
    }

    fn models(&self) -> Vec<ModelId> {
        vec![]
    }

    fn adapters_alone(&self) -> bool {
        false
    }
}

/// Another method together with an [`Analytic`] head: a logistic regression on validation samples
/// weighs their log-odds. What the method learns from validation samples of its own is learned from
/// one half while the other is weighed, and the other way round.
///
/// The head costs one more pass per prediction, of the untuned model. The pass by which APA locates
/// a query alone is the same one; of several candidates of a person APA locates one, and the head
/// needs all.
#[derive(Debug)]
pub struct WithHead<S> {
    method: S,
    head: Analytic,
    weights: Option<Logistic>,
}

impl<S: Strategy> WithHead<S> {
    /// Penalty of the two weights, which are fitted on few samples: as for the composition with
    /// rates.
    const RIDGE: f64 = 0.05;

    /// Both together.
    pub fn new(method: S, head: Analytic) -> Self {
        Self {
            method,
            head,
            weights: None,
        }
    }

    fn both(
        &mut self,
        w: &mut dyn World,
        samples: &[SampleId],
    ) -> Result<Vec<Vec<f64>>, UnlearnError> {
        let (m, h) = (
            self.method.predict(w, samples)?,
            self.head.predict(w, samples)?,
        );
        let odds = |l: &[f32; 2]| f64::from(l[1]) - f64::from(l[0]);
        Ok(m.iter()
            .zip(&h)
            .map(|(m, h)| vec![odds(m), odds(h)])
            .collect())
    }

    fn weigh(&mut self, w: &mut dyn World, validation: &[SampleId]) -> Result<(), UnlearnError> {
        let (first, second) = validation.split_at(validation.len() / 2);
        let mut rows = vec![];
        for (asked, weighed) in [(second, first), (first, second)] {
            self.method.learn(w, asked)?;
            rows.extend(self.both(w, weighed)?);
        }
        self.method.learn(w, validation)?;
        let labels: Vec<bool> = validation.iter().map(|s| w.label(*s)).collect();
        self.weights = Some(Logistic::fit(&rows, &labels, Self::RIDGE));
        Ok(())
    }
}

impl<S: Strategy> Strategy for WithHead<S> {
    fn name(&self) -> String {
        format!("{}, with analytic head", self.method.name())
    }

    fn exactness(&self) -> Exactness {
        self.method.exactness()
    }

    fn fit(
        &mut self,
        w: &mut dyn World,
        train: &[SampleId],
        validation: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        let mut cost = self.method.fit(w, train, validation)?;
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
        let mut cost = self.head.forget(w, remaining, gone, validation)?;
        cost += self.method.forget(w, remaining, gone, validation)?;
        self.weigh(w, validation)?;
        Ok(cost)
    }

    fn predict(
        &mut self,
        w: &mut dyn World,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        let rows = self.both(w, samples)?;
        let weights = self
            .weights
            .as_ref()
            .ok_or_else(|| UnlearnError::Untrained(self.name()))?;
        Ok(rows
            .iter()
            .map(|r| [0.0, weights.score(r) as f32])
            .collect())
    }

    fn models(&self) -> Vec<ModelId> {
        self.method.models()
    }

    fn placement(&self) -> Vec<(SampleId, usize)> {
        self.method.placement()
    }

    fn passes(&self) -> usize {
        self.method.passes() + self.head.passes()
    }

    fn adapters_alone(&self) -> bool {
        false
    }
}
