//! Mode `personalized` (PPLR, arXiv 2402.09959): every client's own parameters, per stage, so that
//! a rollback finds those of the stage before.

use std::sync::Arc;

use lethe_model::lora::{Adapter, AdapterShape};
use lethe_proto::ids::{RoundKey, ShardId, SubjectId};
use lethe_recipe::{Aggregation, Recipe};
use lethe_store::sealed::{Batch, SealedStore};

use super::{Core, stage_key};
use crate::CoordinatorError;
use crate::aggregate::{Clip, Contribution, apply_personalized};
use crate::records::{PersonalRecord, TrainState};
use crate::run::{Run, initial};

/// How the ids of what replays leave begin.
pub(super) const REPLAYED: &str = "replay-";

fn prefix(shard: ShardId, generation: Option<u32>) -> String {
    match generation {
        None => format!("live/{}/", shard.0),
        Some(g) => format!("{REPLAYED}{g}/{}/", shard.0),
    }
}

fn personal_id(key: RoundKey, live: bool, stage: u16, subject: &SubjectId) -> String {
    format!(
        "{}{stage}/{subject}",
        prefix(key.shard, (!live).then_some(key.generation))
    )
}

/// Where the parameters of a round's contributors are.
pub(super) struct PersonalRound<'a> {
    pub(super) store: &'a SealedStore,
    pub(super) recipe: &'a Recipe,
    pub(super) shape: &'a Arc<AdapterShape>,
    pub(super) key: RoundKey,
    pub(super) live: bool,
}

impl PersonalRound<'_> {
    /// A client's own parameters as of the newest stage that it took part in.
    fn theta(&self, subject: &SubjectId) -> Result<Vec<f32>, CoordinatorError> {
        for stage in (1..=self.key.stage).rev() {
            let id = personal_id(self.key, self.live, stage, subject);
            if let Some(r) = self.store.get::<PersonalRecord>(&id)? {
                return Ok(r.0);
            }
        }
        Ok(initial(self.recipe, self.shape).theta)
    }
}

/// Mixes the contributors' parameters; the batch stores the results under the stage's key.
pub(super) fn aggregate_personal(
    round: &PersonalRound<'_>,
    state: &mut TrainState,
    subjects: &[SubjectId],
    contributions: &[&Contribution],
    clip: &Clip,
    load: impl Fn(usize) -> Result<Vec<f32>, CoordinatorError>,
) -> Result<Batch, CoordinatorError> {
    let key = round.key;
    let mut thetas = vec![];
    for (i, s) in subjects.iter().enumerate() {
        let factor = clip.factor(contributions[i]);
        let mut theta = round.theta(s)?;
        theta
            .iter_mut()
            .zip(load(i)?)
            .for_each(|(t, d)| *t += factor * d);
        thetas.push(theta);
    }
    let next = apply_personalized(round.recipe, state, contributions, &thetas);
    let owner = stage_key(key.shard, key.stage);
    let mut batch = Batch::new();
    for (s, theta) in subjects.iter().zip(next) {
        let id = personal_id(key, round.live, key.stage, s);
        batch = batch.put(&owner, &id, &PersonalRecord(theta))?;
    }
    Ok(batch)
}

impl Core {
    /// A client's own parameters as of the newest stage that it took part in; `None` in other
    /// modes.
    pub(super) fn personal_theta(
        &self,
        key: RoundKey,
        live: bool,
        subject: &SubjectId,
    ) -> Result<Option<Vec<f32>>, CoordinatorError> {
        if self.recipe.aggregation != Aggregation::Personalized {
            return Ok(None);
        }
        let round = PersonalRound {
            store: &self.store,
            recipe: &self.recipe,
            shape: &self.shape,
            key,
            live,
        };
        round.theta(subject).map(Some)
    }

    /// Removes what a finished replay left.
    pub(super) fn drop_personal(&mut self, run: &Run) -> Result<(), CoordinatorError> {
        let prefix = prefix(run.shard, Some(run.generation));
        let keys = self.store.keys::<PersonalRecord>();
        let own = keys.iter().filter(|k| k.starts_with(&prefix));
        let batch = own.fold(Batch::new(), |b, k| b.delete::<PersonalRecord>(k));
        Ok(self.store.write(batch)?)
    }

    /// The adapter that replaces the shard's for this subject: its own, while the shard's is served
    /// as trained.
    pub(super) fn own_adapter(
        &self,
        subject: &SubjectId,
    ) -> Result<Option<(usize, Arc<Adapter>)>, CoordinatorError> {
        let Some(shard) = self.subjects.get(subject).and_then(|r| r.shard) else {
            return Ok(None);
        };
        let k = usize::from(shard.0);
        let run = &self.runs[k];
        if !run.done(&self.recipe) || self.counters.served.get(k) != Some(&run.hash()) {
            return Ok(None);
        }
        let theta = self.personal_theta(run.key(), true, subject)?;
        theta
            .map(|t| Ok((k, Arc::new(Adapter::from_data(&self.shape, t)?))))
            .transpose()
    }
}
