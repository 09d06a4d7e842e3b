//! Updates of open rounds: stored so that either of two keys, the subject's and the stage's, can make them unreadable.

use std::collections::BTreeMap;

use lethe_learn::aggregate::{check_finite, clip};
use lethe_learn::sketch::sketch;
use lethe_proto::ids::{RoundKey, ShardId, SubjectId};
use lethe_proto::message::Refusal;
use lethe_proto::{codec, limits};
use lethe_recipe::Recipe;
use lethe_store::sealed::{Batch, KeyName};

use super::{Core, checkpoint_id, stage_key};
use crate::CoordinatorError;
use crate::arrivals::Arrived;
use crate::records::{Update, UpdateKey, UpdateRecord};
use crate::run::shard_seed;

fn update_id(key: RoundKey, subject: &SubjectId) -> String {
    format!("{}/{}/{}/{}/{subject}", key.shard.0, key.generation, key.stage, key.round)
}

fn internal(e: &dyn std::fmt::Display) -> CoordinatorError {
    CoordinatorError::refuse(lethe_proto::message::Refusal::Internal, e.to_string())
}

impl Update {
    /// Checks what a client sent, and clips it. Runs outside the lock.
    pub(crate) fn checked(
        recipe: &Recipe,
        round: RoundKey,
        mut delta: Vec<f32>,
        loss: f32,
        samples: u32,
    ) -> Result<Self, CoordinatorError> {
        check_finite(&delta, delta.len())?;
        if !loss.is_finite() || samples == 0 {
            let message = format!("loss {loss} over {samples} samples is not a training result");
            return Err(CoordinatorError::refuse(Refusal::Invalid, message));
        }
        clip(&mut delta, recipe.clip);
        let sketch = sketch(&shard_seed(recipe, round.shard), &delta);
        Ok(Self { delta, sketch, loss, samples })
    }
}

impl Core {
    /// All of them in one write.
    pub(super) fn store_updates(&mut self, arrived: &[Arrived]) -> Result<(), CoordinatorError> {
        let mut batch = Batch::new();
        let mut secrets: BTreeMap<String, [u8; 32]> = BTreeMap::new();
        for a in arrived {
            let (id, key_id) = (update_id(a.round, &a.subject), checkpoint_id(a.round.shard, a.round.stage));
            let known = match secrets.get(&key_id) {
                Some(k) => Some(*k),
                None => self.store.get::<UpdateKey>(&key_id)?.map(|k| k.0),
            };
            let secret = match known {
                Some(k) => k,
                None => {
                    let k = UpdateKey(lethe_seal::random()?);
                    batch = batch.put(&stage_key(a.round.shard, a.round.stage), &key_id, &k)?;
                    k.0
                }
            };
            secrets.insert(key_id, secret);
            let plain = codec::to_bytes(&a.update).map_err(|e| internal(&e))?;
            let record = UpdateRecord(lethe_seal::seal(&secret, id.as_bytes(), &plain)?);
            batch = batch.put(&KeyName::subject(a.subject.as_str()), &id, &record)?;
        }
        Ok(self.store.write(batch)?)
    }

    /// The stored update of a subject in a round, if there is one that can be read.
    pub(super) fn load_update(&self, key: RoundKey, subject: &SubjectId) -> Result<Option<Update>, CoordinatorError> {
        let id = update_id(key, subject);
        let Some(record) = self.store.get::<UpdateRecord>(&id)? else { return Ok(None) };
        let Some(secret) = self.store.get::<UpdateKey>(&checkpoint_id(key.shard, key.stage))? else {
            return Ok(None);
        };
        // Sealed under a key that is gone (a shard that was set aside): the round asks its client again.
        let Some(plain) = lethe_seal::unseal(&secret.0, id.as_bytes(), &record.0) else { return Ok(None) };
        codec::from_bytes(&plain, limits::MAX_ADAPTER * 2).map(Some).map_err(|e| internal(&e))
    }

    /// Deletes updates that a round has aggregated.
    pub(super) fn drop_updates(batch: Batch, key: RoundKey, subjects: &[SubjectId]) -> Batch {
        subjects.iter().fold(batch, |b, s| b.delete::<UpdateRecord>(&update_id(key, s)))
    }

    /// Deletes all updates of a shard's rounds, live and replayed.
    pub(super) fn drop_updates_of(&self, batch: Batch, shards: &[ShardId]) -> Batch {
        let of = |key: &&String| shards.iter().any(|s| key.starts_with(&format!("{}/", s.0)));
        self.store.keys::<UpdateRecord>().iter().filter(of).fold(batch, |b, k| b.delete::<UpdateRecord>(k))
    }
}
