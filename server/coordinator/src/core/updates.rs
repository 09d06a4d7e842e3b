//! Updates of open rounds: stored so that either of two keys, the subject's and the stage's, can make them unreadable.

use lethe_proto::ids::{RoundKey, ShardId, SubjectId};
use lethe_proto::{codec, limits};
use lethe_store::sealed::{Batch, KeyName};

use super::{Core, checkpoint_id, stage_key};
use crate::CoordinatorError;
use crate::records::{Update, UpdateKey, UpdateRecord};

fn update_id(key: RoundKey, subject: &SubjectId) -> String {
    format!("{}/{}/{}/{}/{subject}", key.shard.0, key.generation, key.stage, key.round)
}

fn internal(e: &dyn std::fmt::Display) -> CoordinatorError {
    CoordinatorError::refuse(lethe_proto::message::Refusal::Internal, e.to_string())
}

impl Core {
    /// Stores an update; when it returns, the update is durable.
    pub(super) fn store_update(
        &mut self,
        key: RoundKey,
        subject: &SubjectId,
        update: &Update,
    ) -> Result<(), CoordinatorError> {
        let (id, key_id) = (update_id(key, subject), checkpoint_id(key.shard, key.stage));
        let mut batch = Batch::new();
        let secret = match self.store.get::<UpdateKey>(&key_id)? {
            Some(k) => k.0,
            None => {
                let k = UpdateKey(lethe_seal::random()?);
                batch = batch.put(&stage_key(key.shard, key.stage), &key_id, &k)?;
                k.0
            }
        };
        let plain = codec::to_bytes(update).map_err(|e| internal(&e))?;
        let record = UpdateRecord(lethe_seal::seal(&secret, id.as_bytes(), &plain)?);
        Ok(self.store.write(batch.put(&KeyName::subject(subject.as_str()), &id, &record)?)?)
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
