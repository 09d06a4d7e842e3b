//! Rounds without a coordinator, for measurements: updates are checked, weighed and added up by the
//! same code, but nothing decides, nothing is stored, and nobody is asked.

use std::sync::Arc;

use lethe_ledger::{EpochNo, Terms};
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_proto::ids::{RoundKey, ShardId};
use lethe_proto::packed::Packed;
use lethe_recipe::Recipe;

use crate::CoordinatorError;
use crate::aggregate::{Clip, Contribution, apply, median_norm};
use crate::content::{TrainState, Update};
use crate::rounds::{Sent, Whole, initial, internal};

/// What all shards of an epoch have in common.
#[derive(Clone, Debug)]
pub struct Rounds {
    recipe: Recipe,
    whole: Whole,
}

/// A shard's training, as it stands: adapter, moments, losses, and how long updates were.
#[derive(Clone, Debug)]
pub struct Trained {
    state: TrainState,
    norms: Vec<f32>,
}

/// What a device learned in a round.
#[derive(Clone, Debug)]
pub struct Learned {
    /// The change of the whole adapter, `[values]`.
    pub change: Vec<f32>,
    /// Mean training loss, nats.
    pub loss: f32,
    /// Samples trained on.
    pub samples: u32,
    /// Training samples that the person joined with.
    pub joined: u32,
}

/// The numbers of a recipe that decide, as the ledger has them; `anchors` are those of the
/// catalogue, `hidden` is the width of the model.
pub fn terms(recipe: &Recipe, anchors: usize, hidden: usize) -> Terms {
    crate::terms::terms(recipe, anchors, hidden)
}

impl Trained {
    /// The adapter's values, `[values]`.
    pub fn theta(&self) -> &[f32] {
        &self.state.theta
    }

    /// All of it, bit for bit: two that have the same bytes go on in the same way. (A loss that is
    /// not a number equals no other; its bytes do.)
    pub fn bytes(&self) -> Vec<u8> {
        let state = &self.state;
        let parts = [
            &state.theta,
            &state.first,
            &state.second,
            &state.losses,
            &self.norms,
        ];
        let lengths = parts.iter().map(|p| (p.len() as u64).to_le_bytes());
        let mut out: Vec<u8> = lengths.flatten().collect();
        out.extend(state.step.to_le_bytes());
        let values = parts.into_iter().flatten();
        out.extend(values.flat_map(|v| v.to_le_bytes()));
        out
    }

    /// Mean training loss of each round, nats; not a number where nobody took part.
    pub fn losses(&self) -> &[f32] {
        &self.state.losses
    }
}

impl Rounds {
    /// For a recipe without masks and without parameters of each client's own, on a model with
    /// `layers` layers and adapters of this shape.
    ///
    /// # Errors
    /// [`CoordinatorError`]: the recipe masks updates, or is `personalized`.
    pub fn new(
        recipe: &Recipe,
        shape: &Arc<AdapterShape>,
        layers: usize,
    ) -> Result<Self, CoordinatorError> {
        let own = recipe.aggregation == lethe_recipe::Aggregation::Personalized;
        if recipe.grid().is_some() || own {
            let why = "rounds alone: updates are masked, or aggregation is \"personalized\"; \
                       expected plain updates and one adapter for each shard";
            return Err(internal(&why));
        }
        Ok(Self {
            recipe: recipe.clone(),
            whole: Whole::new(recipe, shape, layers),
        })
    }

    /// What every shard starts from.
    pub fn start(&self) -> Trained {
        Trained {
            state: initial(&self.recipe, &self.whole.shape),
            norms: vec![],
        }
    }

    /// A round of a shard: `learned` in the order of subjects.
    ///
    /// # Errors
    /// [`CoordinatorError`]: an update that the coordinator would refuse.
    pub fn round(
        &self,
        trained: &mut Trained,
        shard: ShardId,
        learned: &[Learned],
    ) -> Result<(), CoordinatorError> {
        let recipe = &self.recipe;
        let key = RoundKey {
            epoch: EpochNo::FIRST,
            shard,
            stage: 1,
            round: trained.state.losses.len() as u16,
            generation: 1,
        };
        let mut updates = vec![];
        let mut contributions = vec![];
        for one in learned {
            let update = Update::checked(recipe, &self.whole, key, self.sent(one)?)?;
            contributions.push(update.contribution(recipe, &self.whole)?);
            updates.push(update);
        }
        let refs: Vec<&Contribution> = contributions.iter().collect();
        let clip = Clip::of(recipe, &trained.norms, &refs);
        let late = vec![0; refs.len()];
        apply(recipe, &mut trained.state, &refs, &late, &clip, |range| {
            let of = |i: usize| updates[i].delta(recipe, &self.whole, contributions[i].norm);
            range.map(of).collect()
        })?;
        trained.norms.extend(median_norm(&refs));
        Ok(())
    }

    /// An update as it is when it has come.
    fn sent(&self, one: &Learned) -> Result<Sent, CoordinatorError> {
        let change = Adapter::from_data(&self.whole.shape, one.change.clone())?;
        let device = change.select(|l| self.whole.on_device(&self.recipe, l));
        let middle = change.select(|l| !self.whole.on_device(&self.recipe, l));
        let packed = Packed::encode(&device.data, self.recipe.updates);
        Ok(Sent {
            device: packed.map_err(|e| internal(&e))?,
            middle: middle.data,
            loss: one.loss,
            samples: one.samples,
            joined: one.joined,
        })
    }
}
