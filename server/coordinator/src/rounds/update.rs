//! An update, from what a client sent to what counts.

use lethe_learn::aggregate::{check_finite, clip, norm};
use lethe_proto::ids::RoundKey;
use lethe_proto::limits;
use lethe_proto::masked::Masked;
use lethe_proto::message::Refusal;
use lethe_proto::packed::Packed;
use lethe_recipe::Recipe;

use super::Whole;
use crate::CoordinatorError;
use crate::aggregate::Contribution;
use crate::content::Update;

/// What came with an update, and what is known of who sent it.
pub(crate) struct Sent {
    /// The device's part of the change.
    pub(crate) device: Packed,
    /// The middle's part, `[values]`.
    pub(crate) middle: Vec<f32>,
    /// Mean training loss, nats.
    pub(crate) loss: f32,
    /// Samples trained on.
    pub(crate) samples: u32,
    /// Training samples that the person joined with.
    pub(crate) joined: u32,
}

impl Update {
    /// Checks what a client sent. Runs outside the lock.
    pub(crate) fn checked(
        recipe: &Recipe,
        whole: &Whole,
        round: RoundKey,
        sent: Sent,
    ) -> Result<Self, CoordinatorError> {
        let invalid = |message: String| CoordinatorError::refuse(Refusal::Invalid, message);
        let Sent {
            device,
            middle,
            loss,
            samples,
            joined,
        } = sent;
        if device.format != recipe.updates {
            return Err(invalid(format!(
                "an update in {:?}, this epoch takes {:?}",
                device.format, recipe.updates
            )));
        }
        // A weight comes from each: neither may be more than a device can honestly have.
        let most = u32::try_from(recipe.local.samples).map_or(joined, |n| n.min(joined));
        if !(1..=most).contains(&samples) {
            return Err(invalid(format!(
                "{samples} samples, expected 1 to {most}: the recipe's number, or what the person \
                 joined with"
            )));
        }
        if recipe.grid().is_some() {
            // Nobody reads more of it than its length.
            Masked::seed_of(&device, whole.edge_len()).map_err(|e| invalid(e.to_string()))?;
            return Ok(Self {
                device,
                middle,
                sketch: vec![],
                loss: 0.0,
                samples,
                norm: Some(0.0),
            });
        }
        if !(0.0..=limits::MAX_LOSS).contains(&loss) {
            let most = limits::MAX_LOSS;
            return Err(invalid(format!(
                "a loss of {loss}, expected 0 to {most} nats"
            )));
        }
        // Decoded now, and again when the round is added up: inflated once.
        let device = device
            .inflated(whole.edge_len())
            .map_err(|e| invalid(e.to_string()))?;
        let mut update = Self {
            device,
            middle,
            sketch: vec![],
            loss,
            samples,
            norm: None,
        };
        let (delta, norm) = update.measured(recipe, whole)?;
        update.norm = Some(norm);
        update.sketch = whole.sketch(recipe, round.shard, &delta);
        Ok(update)
    }

    /// What is kept of it in memory.
    pub(crate) fn contribution(
        &self,
        recipe: &Recipe,
        whole: &Whole,
    ) -> Result<Contribution, CoordinatorError> {
        let norm = match self.norm {
            Some(norm) => norm,
            None if recipe.grid().is_some() => 0.0,
            None => self.measured(recipe, whole)?.1,
        };
        Ok(Contribution {
            sketch: self.sketch.clone(),
            loss: self.loss,
            samples: self.samples,
            norm,
        })
    }

    /// The update under its mask, `[values + 1]`.
    pub(crate) fn masked(&self, whole: &Whole) -> Result<Masked, CoordinatorError> {
        Ok(Masked::unpack(&self.device, whole.edge_len())?)
    }

    /// The sealed seed of its mask.
    pub(crate) fn seed(&self, whole: &Whole) -> Result<Vec<u8>, CoordinatorError> {
        Ok(Masked::seed_of(&self.device, whole.edge_len())?)
    }

    /// The change of the whole adapter, no longer than the recipe allows, and its length (L2 norm).
    fn measured(
        &self,
        recipe: &Recipe,
        whole: &Whole,
    ) -> Result<(Vec<f32>, f32), CoordinatorError> {
        let mut delta = whole.join(&self.device, &self.middle)?;
        check_finite(&delta, whole.shape.len())?;
        let had = clip(&mut delta, recipe.clip);
        let now = if had > recipe.clip { norm(&delta) } else { had };
        Ok((delta, now))
    }

    /// The change of the whole adapter, no longer than the recipe allows; `norm` is its length as
    /// it was measured when the update came.
    pub(crate) fn delta(
        &self,
        recipe: &Recipe,
        whole: &Whole,
        norm: f32,
    ) -> Result<Vec<f32>, CoordinatorError> {
        // One that was shortened is as long as allowed, but for rounding. Of a shorter one nothing
        // is to be measured again.
        if norm < 0.99 * recipe.clip {
            return whole.join(&self.device, &self.middle);
        }
        self.measured(recipe, whole).map(|(delta, _)| delta)
    }
}
