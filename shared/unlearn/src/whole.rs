//! Methods with one model for everything.

use crate::world::{
    Cost, Distillation, Exactness, ModelId, SampleId, Strategy, Training, UnlearnError, World,
};

/// Everything from scratch on what remains: what every other method is measured against.
#[derive(Debug)]
pub struct Retrain {
    epochs: f64,
    model: Option<ModelId>,
}

impl Retrain {
    /// `epochs` passes over the data.
    pub fn new(epochs: f64) -> Self {
        Self {
            epochs,
            model: None,
        }
    }

    fn train(&mut self, w: &mut dyn World, samples: &[SampleId]) -> Result<Cost, UnlearnError> {
        let run = Training {
            start: None,
            samples: samples.to_vec(),
            epochs: self.epochs,
        };
        let (model, cost) = w.train(&run)?;
        self.model = Some(model);
        Ok(cost)
    }
}

/// The common start of all methods, trained on nobody: what a deletion has nothing to take from,
/// and what every other method has to beat.
#[derive(Debug, Default)]
pub struct Base {
    model: Option<ModelId>,
}

impl Strategy for Base {
    fn name(&self) -> String {
        "Base".into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn fit(
        &mut self,
        w: &mut dyn World,
        _: &[SampleId],
        _: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        let (model, cost) = w.train(&Training {
            start: None,
            samples: vec![],
            epochs: 0.0,
        })?;
        self.model = Some(model);
        Ok(cost)
    }

    fn forget(
        &mut self,
        _: &mut dyn World,
        _: &[SampleId],
        _: &[SampleId],
        _: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        Ok(Cost::default())
    }

    fn predict(
        &mut self,
        w: &mut dyn World,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        w.logits(trained(&self.model, "Base")?, samples)
    }

    fn models(&self) -> Vec<ModelId> {
        self.model.iter().cloned().collect()
    }
}

fn trained<'a>(model: &'a Option<ModelId>, name: &str) -> Result<&'a ModelId, UnlearnError> {
    model
        .as_ref()
        .ok_or_else(|| UnlearnError::Untrained(name.into()))
}

impl Strategy for Retrain {
    fn name(&self) -> String {
        "Retrain".into()
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
        self.train(w, train)
    }

    fn forget(
        &mut self,
        w: &mut dyn World,
        remaining: &[SampleId],
        _: &[SampleId],
        _: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        self.train(w, remaining)
    }

    fn predict(
        &mut self,
        w: &mut dyn World,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        w.logits(trained(&self.model, "Retrain")?, samples)
    }

    fn models(&self) -> Vec<ModelId> {
        self.model.iter().cloned().collect()
    }
}

/// E2URec (Wang et al., arXiv 2403.03536): approximate. Two teachers guide a small adapter beside
/// the original model: on forgotten samples the original's logits less what it gains from seeing
/// them again, `z = z_orig - alpha ReLU(z_aug - z_orig)`; on as many remaining samples the
/// original's own.
///
/// Departures: the augmented model is the original trained further on the forgotten samples (they
/// train another model from the base); the answers are two tokens, so that teachers are two logits;
/// the unlearning adapter has the original's rank; the loss on labels of remaining samples (their
/// third term) is left out, since the original's logits on them carry it. Their metric named JSD is
/// a symmetric KL; [`crate::figures::jsd`] is the divergence to the mixture.
#[derive(Debug)]
pub struct E2urec {
    epochs: f64,
    alpha: f32,
    model: Option<ModelId>,
}

impl E2urec {
    /// `epochs` of the original training; `alpha` as in the paper.
    pub fn new(epochs: f64, alpha: f32) -> Self {
        Self {
            epochs,
            alpha,
            model: None,
        }
    }
}

fn yes(no: f32, yes: f32) -> f32 {
    1.0 / (1.0 + (no - yes).exp())
}

impl Strategy for E2urec {
    fn name(&self) -> String {
        "E2URec".into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Approximate
    }

    fn fit(
        &mut self,
        w: &mut dyn World,
        train: &[SampleId],
        _: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        let run = Training {
            start: None,
            samples: train.to_vec(),
            epochs: self.epochs,
        };
        let (model, cost) = w.train(&run)?;
        self.model = Some(model);
        Ok(cost)
    }

    fn forget(
        &mut self,
        w: &mut dyn World,
        remaining: &[SampleId],
        gone: &[SampleId],
        _: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        let original = trained(&self.model, "E2URec")?.clone();
        let again = Training {
            start: Some(original.clone()),
            samples: gone.to_vec(),
            epochs: 2.0,
        };
        let (augmented, mut cost) = w.train(&again)?;
        let (orig, aug) = (w.logits(&original, gone)?, w.logits(&augmented, gone)?);
        let mut targets = vec![];
        for ((s, o), a) in gone.iter().zip(&orig).zip(&aug) {
            let less = |i: usize| o[i] - self.alpha * (a[i] - o[i]).max(0.0);
            targets.push((*s, yes(less(0), less(1))));
        }
        // As many remaining samples as go (at least 32) keep the model in place; they are spread
        // evenly.
        let keep = gone.len().max(32).min(remaining.len());
        let kept: Vec<SampleId> = (0..keep)
            .map(|i| remaining[i * remaining.len() / keep])
            .collect();
        for (s, o) in kept.iter().zip(w.logits(&original, &kept)?) {
            targets.push((*s, yes(o[0], o[1])));
        }
        let (model, spent) = w.distil(&Distillation {
            student: original,
            targets,
            epochs: 3.0,
        })?;
        cost += spent;
        self.model = Some(model);
        Ok(cost)
    }

    fn predict(
        &mut self,
        w: &mut dyn World,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        w.logits(trained(&self.model, "E2URec")?, samples)
    }

    fn models(&self) -> Vec<ModelId> {
        self.model.iter().cloned().collect()
    }
}
