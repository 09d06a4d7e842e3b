//! What a method can do, and what it must be able to do.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why an experiment stopped.
#[derive(Debug, Error)]
pub enum UnlearnError {
    /// The model could not be trained or scored.
    #[error("{0}")]
    World(String),
    /// The method was used before it was trained.
    #[error("{0} predicts or forgets before it was trained")]
    Untrained(String),
    /// The data does not fit the method.
    #[error("{0}")]
    Data(String),
}

/// A sample of the experiment: its position in the world's list. Identities (seeds, ranks) are
/// [`World::identity`]'s.
pub type SampleId = usize;

/// A trained model: a digest of everything that its bytes depend on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModelId(pub String);

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One training run: from a model (with its optimiser's state) or from the common initialisation,
/// on these samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Goes on from here.
    pub start: Option<ModelId>,
    /// The samples; their order does not matter.
    pub samples: Vec<SampleId>,
    /// Passes over them; a fraction ends within one.
    pub epochs: f64,
}

/// What training cost. A run whose result is known already costs what it cost the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Samples trained on, once per pass.
    pub samples: u64,
    /// Seconds.
    pub seconds: f64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, more: Self) {
        self.samples += more.samples;
        self.seconds += more.seconds;
    }
}

/// How the adapters of several shards become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mixing {
    /// Factors averaged apart.
    D,
    /// The sum of the products.
    Nd,
}

/// What [`whole::E2urec`](crate::whole::E2urec) needs of training: soft targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Distillation {
    /// The model that is taught; a new adapter beside its own learns, its own stays.
    pub student: ModelId,
    /// Samples with the probability of "yes" to be learned.
    pub targets: Vec<(SampleId, f32)>,
    /// Passes over them.
    pub epochs: f64,
}

/// What the untuned model says of a sample, in one pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Untuned {
    /// Last hidden state after the final norm, `[hidden]`.
    pub hidden: Vec<f32>,
    /// Log-odds of yes.
    pub log_odds: f32,
}

/// Training, scoring and the vectors of samples, as the experiment offers them. Logits are `[no,
/// yes]`.
pub trait World {
    /// Trains; the same run gives the same model.
    fn train(&mut self, run: &Training) -> Result<(ModelId, Cost), UnlearnError>;
    /// Trains towards soft targets.
    fn distil(&mut self, run: &Distillation) -> Result<(ModelId, Cost), UnlearnError>;
    /// Logits by one model.
    fn logits(
        &mut self,
        model: &ModelId,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError>;
    /// Logits by mixed adapters; `omega` holds the models' weights for each sample.
    fn mixed(
        &mut self,
        models: &[ModelId],
        omega: &[Vec<f32>],
        how: Mixing,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError>;
    /// Where a sample lies: hidden states of the untuned model.
    fn hidden(&mut self, samples: &[SampleId]) -> Result<Vec<Vec<f32>>, UnlearnError>;
    /// What the untuned model says of samples, and what the layers above the frozen states cost for
    /// it.
    fn untuned(&mut self, samples: &[SampleId]) -> Result<(Vec<Untuned>, Cost), UnlearnError>;
    /// Processor seconds so far, for methods that compute something themselves.
    fn seconds(&self) -> f64;
    /// Identity of a sample: the same whatever else is there.
    fn identity(&self, sample: SampleId) -> u64;
    /// Whose it is.
    fn user(&self, sample: SampleId) -> u32;
    /// About which item.
    fn item(&self, sample: SampleId) -> u32;
    /// Whether the person liked it.
    fn label(&self, sample: SampleId) -> bool;
    /// Items of the history that the person liked.
    fn liked(&self, sample: SampleId) -> Vec<u32>;
    /// Vector of a user, fitted on the training events (matrix factorisation).
    fn user_vector(&self, user: u32) -> Vec<f32>;
    /// Vector of an item, likewise.
    fn item_vector(&self, item: u32) -> Vec<f32>;
    /// Public features of all items.
    fn catalogue(&self) -> &[Vec<f32>];
}

/// What a method promises after it forgot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exactness {
    /// The result is that of the whole pipeline on what remains.
    Exact,
    /// It is if the stored partition is given, which depends on what was deleted.
    GivenPartition,
    /// It only resembles it.
    Approximate,
}

/// A method.
pub trait Strategy {
    /// Its name, as tables have it.
    fn name(&self) -> String;
    /// What it promises.
    fn exactness(&self) -> Exactness;
    /// Trains from nothing. Whoever validates is never deleted in an experiment.
    fn fit(
        &mut self,
        w: &mut dyn World,
        train: &[SampleId],
        validation: &[SampleId],
    ) -> Result<Cost, UnlearnError>;
    /// Forgets: `remaining` is what stays of the training samples.
    fn forget(
        &mut self,
        w: &mut dyn World,
        remaining: &[SampleId],
        gone: &[SampleId],
        validation: &[SampleId],
    ) -> Result<Cost, UnlearnError>;
    /// Logits.
    fn predict(
        &mut self,
        w: &mut dyn World,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError>;
    /// The models that it predicts with.
    fn models(&self) -> Vec<ModelId>;
    /// Shard of every training sample, where there are shards; for the ablation of partitions.
    fn placement(&self) -> Vec<(SampleId, usize)> {
        vec![]
    }
    /// Learns anew what it takes from validation samples alone: how shards are combined.
    fn learn(&mut self, _: &mut dyn World, _validation: &[SampleId]) -> Result<(), UnlearnError> {
        Ok(())
    }
    /// Whether it predicts with adapters and nothing else, so that other methods' adapters are
    /// references for an attack on it.
    fn adapters_alone(&self) -> bool {
        true
    }
    /// Forward passes of the model per prediction.
    fn passes(&self) -> usize {
        1
    }
}
