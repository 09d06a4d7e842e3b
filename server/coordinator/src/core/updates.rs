//! Updates of open rounds: stored so that either of two keys, the subject's and the stage's, can
//! make them unreadable.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_learn::aggregate::{check_finite, clip, norm};
use lethe_learn::sketch::sketch;
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_model::split::SplitSpec;
use lethe_proto::ids::{RoundKey, ShardId, SubjectId};
use lethe_proto::message::Refusal;
use lethe_proto::packed::Packed;
use lethe_proto::{codec, limits};
use lethe_recipe::Recipe;
use lethe_store::sealed::{Batch, KeyName};

use super::{Core, checkpoint_id, stage_key};
use crate::CoordinatorError;
use crate::aggregate::Contribution;
use crate::arrivals::Arrived;
use crate::records::{Contributor, Update, UpdateKey, UpdateRecord};
use crate::run::shard_seed;

fn update_id(key: RoundKey, subject: &SubjectId) -> String {
    format!(
        "{}/{}/{}/{}/{subject}",
        key.shard.0, key.generation, key.stage, key.round
    )
}

fn internal(e: &dyn std::fmt::Display) -> CoordinatorError {
    CoordinatorError::refuse(lethe_proto::message::Refusal::Internal, e.to_string())
}

/// Which part of an adapter is whose.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) shape: Arc<AdapterShape>,
    pub(crate) split: SplitSpec,
    pub(crate) layers: usize,
}

impl Whole {
    /// Both parts of an update as one, `[values]`.
    fn join(&self, device: &Packed, middle: &[f32]) -> Result<Vec<f32>, CoordinatorError> {
        let invalid =
            |e: &dyn std::fmt::Display| CoordinatorError::refuse(Refusal::Invalid, e.to_string());
        let mut whole = Adapter::from_data(&self.shape, vec![0.0; self.shape.len()])?;
        let inner = whole.select(|l| !self.split.on_device(l, self.layers));
        whole.paste(&Adapter::from_data(inner.shape(), middle.to_vec())?)?;
        let edge = whole.select(|l| self.split.on_device(l, self.layers));
        let values = device.decode(edge.data.len()).map_err(|e| invalid(&e))?;
        whole.paste(&Adapter::from_data(edge.shape(), values)?)?;
        Ok(whole.data)
    }
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
        if !(0.0..=limits::MAX_LOSS).contains(&loss) {
            let most = limits::MAX_LOSS;
            return Err(invalid(format!(
                "a loss of {loss}, expected 0 to {most} nats"
            )));
        }
        let mut update = Self {
            device,
            middle,
            sketch: vec![],
            loss,
            samples,
            norm: None,
        };
        let delta = update.delta(recipe, whole)?;
        update.norm = Some(norm(&delta));
        update.sketch = sketch(&shard_seed(recipe, round.shard), &delta);
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
            None => norm(&self.delta(recipe, whole)?),
        };
        Ok(Contribution {
            sketch: self.sketch.clone(),
            loss: self.loss,
            samples: self.samples,
            norm,
        })
    }

    /// The change of the whole adapter, no longer than the recipe allows.
    pub(crate) fn delta(
        &self,
        recipe: &Recipe,
        whole: &Whole,
    ) -> Result<Vec<f32>, CoordinatorError> {
        let mut delta = whole.join(&self.device, &self.middle)?;
        check_finite(&delta, whole.shape.len())?;
        clip(&mut delta, recipe.clip);
        Ok(delta)
    }
}

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

/// An update as it is stored, with the stage's key.
pub(super) struct SealedUpdate {
    id: String,
    secret: [u8; 32],
    record: UpdateRecord,
}

impl SealedUpdate {
    /// `None` when it is sealed under a key that is gone (a shard that was set aside): the round
    /// asks its client again.
    pub(super) fn open(self) -> Result<Option<Update>, CoordinatorError> {
        let Some(plain) = lethe_seal::unseal(&self.secret, self.id.as_bytes(), &self.record.0)
        else {
            return Ok(None);
        };
        codec::from_bytes(&plain, limits::MAX_ADAPTER * 2)
            .map(Some)
            .map_err(|e| internal(&e))
    }
}

impl Core {
    /// How adapters are divided between devices and coordinator.
    pub(crate) fn whole(&self) -> Whole {
        Whole {
            shape: self.shape.clone(),
            split: self.recipe.split,
            layers: self.layers,
        }
    }

    /// Training samples that a subject joined with.
    pub(crate) fn joined_samples(&self, subject: &SubjectId) -> u32 {
        self.subjects.get(subject).map_or(0, |r| r.samples)
    }

    /// All of them in one write.
    pub(super) fn store_updates(&mut self, arrived: &[Arrived]) -> Result<(), CoordinatorError> {
        let mut batch = Batch::new();
        let mut secrets: BTreeMap<String, [u8; 32]> = BTreeMap::new();
        for a in arrived {
            let (id, key_id) = (
                update_id(a.round, &a.subject),
                checkpoint_id(a.round.shard, a.round.stage),
            );
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
    pub(super) fn load_update(
        &self,
        key: RoundKey,
        subject: &SubjectId,
    ) -> Result<Option<Update>, CoordinatorError> {
        self.sealed_update(key, subject)?
            .map_or(Ok(None), SealedUpdate::open)
    }

    /// The same, not yet opened.
    pub(super) fn sealed_update(
        &self,
        key: RoundKey,
        subject: &SubjectId,
    ) -> Result<Option<SealedUpdate>, CoordinatorError> {
        let id = update_id(key, subject);
        let Some(record) = self.store.get::<UpdateRecord>(&id)? else {
            return Ok(None);
        };
        let secret = self
            .store
            .get::<UpdateKey>(&checkpoint_id(key.shard, key.stage))?;
        Ok(secret.map(|UpdateKey(secret)| SealedUpdate { id, secret, record }))
    }

    /// Whose updates of a round's stage are stored, and the rounds that they were begun in.
    pub(super) fn updates_of(&self, key: RoundKey) -> Vec<Contributor> {
        let prefix = format!("{}/{}/{}/", key.shard.0, key.generation, key.stage);
        let parse = |k: &String| {
            let (round, subject) = k.strip_prefix(&prefix)?.split_once('/')?;
            Some((SubjectId::new(subject).ok()?, round.parse().ok()?))
        };
        self.store
            .keys::<UpdateRecord>()
            .iter()
            .filter_map(parse)
            .collect()
    }

    /// Deletes updates that a round has aggregated.
    pub(super) fn drop_updates(batch: Batch, key: RoundKey, counted: &[Contributor]) -> Batch {
        let id = |(s, begun): &Contributor| {
            update_id(
                RoundKey {
                    round: *begun,
                    ..key
                },
                s,
            )
        };
        counted
            .iter()
            .fold(batch, |b, c| b.delete::<UpdateRecord>(&id(c)))
    }

    /// Deletes all updates of a shard's rounds, live and replayed.
    pub(super) fn drop_updates_of(&self, batch: Batch, shards: &[ShardId]) -> Batch {
        let of = |key: &&String| shards.iter().any(|s| key.starts_with(&format!("{}/", s.0)));
        self.store
            .keys::<UpdateRecord>()
            .iter()
            .filter(of)
            .fold(batch, |b, k| b.delete::<UpdateRecord>(k))
    }
}
