//! Updates under masks: only the sum of a round is ever read (`docs/secure-sums.md`).

use lethe_learn::secure_sum::Grid;
use lethe_proto::ids::RoundKey;
use lethe_proto::masked::{MASK, Masked, bound_to};
use lethe_proto::packed::Packed;
use lethe_proto::tally::ANSWER;
use lethe_seal::envelope::seal_to;
use lethe_seal::mask;

use crate::ClientError;
use crate::tasks::Trained;
use crate::worker::{MASKED, Worker};

impl Worker {
    /// Checks, before anything is trained, that an update of this device may leave it in the form
    /// that the recipe asks for.
    ///
    /// # Errors
    /// [`ClientError::WouldUpdateInClear`].
    pub(crate) fn may_update(&self) -> Result<(), ClientError> {
        let masked = self.recipe().grid().is_some();
        match self.shared.options.masked_only && !masked {
            true => Err(ClientError::WouldUpdateInClear {
                got: self.recipe().updates,
            }),
            false => Ok(()),
        }
    }

    /// The update under a mask that the tally alone can make. The terms are those of contributions:
    /// the same key, and the same handle.
    pub(crate) async fn masked(
        &self,
        grid: &Grid,
        round: RoundKey,
        trained: &Trained,
    ) -> Result<Packed, ClientError> {
        let internal = |e: &dyn std::fmt::Display| ClientError::Internal(e.to_string());
        if self.minor() < MASKED {
            return Err(internal(
                &"masked updates from a coordinator that knows none",
            ));
        }
        let terms = self.sealing_terms().await?;
        let terms = terms.ok_or_else(|| internal(&"masked updates without a tally of its own"))?;
        let key = self.sealing_key(&terms)?;
        let recipe = self.recipe();
        let on_grid = recipe.on_grid(grid, &trained.delta, trained.loss, trained.samples);
        let mut values = on_grid.map_err(|e| internal(&e))?;
        let seed = lethe_seal::random().map_err(|e| internal(&e))?;
        mask::add(&seed, &mut values).map_err(|e| internal(&e))?;
        let bound = bound_to(&terms.handle, &round, values.len() as u32);
        let sealed = seal_to(&key, MASK, &bound, &seed, ANSWER)
            .map_err(|e| ClientError::BadSealing(e.to_string()))?;
        let update = Masked {
            values,
            seed: sealed.envelope,
        };
        Ok(update.pack())
    }
}
