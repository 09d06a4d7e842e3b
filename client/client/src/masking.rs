//! Updates under masks: only the sum of a round is ever read (`docs/secure-sums.md`).

use lethe_learn::secure_sum::Grid;
use lethe_proto::ids::RoundKey;
use lethe_proto::masked::{MASK, Masked, bound_to};
use lethe_proto::packed::Packed;
use lethe_proto::tally::ANSWER;
use lethe_recipe::Recipe;
use lethe_seal::envelope::{PublicKey, seal_to};
use lethe_seal::mask;

use crate::ClientError;
use crate::tasks::Trained;
use crate::worker::{MASKED, Worker};

/// What an update is masked with.
pub(crate) struct Masking {
    grid: Grid,
    /// Of the tally.
    key: PublicKey,
    /// What the tally knows the person by.
    handle: [u8; 16],
}

fn internal(why: impl std::fmt::Display) -> ClientError {
    ClientError::Internal(why.to_string())
}

impl Worker {
    /// Checks, before anything is trained, that an update of this device may leave it in the form
    /// that the recipe asks for. Returns what to mask with; none: updates have no masks. The terms
    /// are those of contributions: the same key, and the same handle.
    ///
    /// # Errors
    /// [`ClientError::WouldUpdateInClear`]; the tally is away, or not the one that is known.
    pub(crate) async fn may_update(&self, recipe: &Recipe) -> Result<Option<Masking>, ClientError> {
        let Some(grid) = recipe.grid() else {
            return match self.shared.options.masked_only {
                true => Err(ClientError::WouldUpdateInClear {
                    got: recipe.updates,
                }),
                false => Ok(None),
            };
        };
        if self.minor() < MASKED {
            return Err(internal(
                "masked updates from a coordinator that knows none",
            ));
        }
        let terms = self.sealing_terms().await?;
        let terms = terms.ok_or_else(|| internal("masked updates without a tally of its own"))?;
        Ok(Some(Masking {
            grid,
            key: self.sealing_key(&terms)?,
            handle: terms.handle,
        }))
    }
}

impl Masking {
    /// The update under a mask that the tally alone can make.
    pub(crate) fn mask(
        &self,
        recipe: &Recipe,
        round: RoundKey,
        trained: &Trained,
    ) -> Result<Packed, ClientError> {
        let Self { grid, key, handle } = self;
        let on_grid = recipe.on_grid(grid, &trained.delta, trained.loss, trained.samples);
        let mut values = on_grid.map_err(internal)?;
        let seed = lethe_seal::random().map_err(internal)?;
        mask::add(&seed, &mut values).map_err(internal)?;
        let bound = bound_to(handle, &round, values.len() as u32);
        let sealed = seal_to(key, MASK, &bound, &seed, ANSWER)
            .map_err(|e| ClientError::BadSealing(e.to_string()))?;
        let update = Masked {
            values,
            seed: sealed.envelope,
        };
        Ok(update.pack())
    }
}
