//! Updates of open rounds: stored so that either of two keys, the subject's and the stage's, can
//! make them unreadable.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use lethe_learn::aggregate::{check_finite, clip, norm};
use lethe_learn::sketch::Sketcher;
use lethe_model::lora::AdapterShape;
use lethe_proto::ids::{RoundKey, ShardId, SubjectId};
use lethe_proto::message::Refusal;
use lethe_proto::packed::Packed;
use lethe_proto::{codec, limits};
use lethe_recipe::Recipe;
use lethe_store::sealed::{Batch, KeyName, SealedStore};

use super::personal::REPLAYED;
use super::{Core, checkpoint_id, stage_key};
use crate::CoordinatorError;
use crate::aggregate::Contribution;
use crate::arrivals::Arrived;
use crate::records::{Contributor, PersonalRecord, Update, UpdateKey, UpdateRecord};
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

/// Which part of an adapter is whose, and how updates of every shard are sketched.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) shape: Arc<AdapterShape>,
    /// Of the whole model.
    layers: usize,
    /// Where the values of the device's layers lie.
    edge: Arc<[Range<usize>]>,
    /// Where those of the coordinator's layers lie.
    inner: Arc<[Range<usize>]>,
    sketchers: Arc<[OnceLock<Sketcher>]>,
}

impl Whole {
    pub(crate) fn new(recipe: &Recipe, shape: &Arc<AdapterShape>, layers: usize) -> Self {
        let edge = shape.selected(|l| recipe.split.on_device(l, layers));
        let inner = shape.selected(|l| !recipe.split.on_device(l, layers));
        Self {
            shape: shape.clone(),
            layers,
            edge: edge.into(),
            inner: inner.into(),
            sketchers: (0..recipe.shards).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Whether a layer is the device's.
    pub(crate) fn on_device(&self, recipe: &Recipe, layer: usize) -> bool {
        recipe.split.on_device(layer, self.layers)
    }

    /// Values of the device's part.
    fn edge_len(&self) -> usize {
        self.edge.iter().map(Range::len).sum()
    }

    /// Both parts of an update as one, `[values]`.
    fn join(&self, device: &Packed, middle: &[f32]) -> Result<Vec<f32>, CoordinatorError> {
        let invalid = |why: String| CoordinatorError::refuse(Refusal::Invalid, why);
        let expected: usize = self.inner.iter().map(Range::len).sum();
        if middle.len() != expected {
            let got = middle.len();
            return Err(invalid(format!(
                "the middle part of an update has {got} values, expected {expected}"
            )));
        }
        let device = device
            .decode(self.edge_len())
            .map_err(|e| invalid(e.to_string()))?;
        let mut whole = vec![0.0; self.shape.len()];
        place(&mut whole, &self.edge, &device);
        place(&mut whole, &self.inner, middle);
        Ok(whole)
    }

    fn sketch(&self, recipe: &Recipe, shard: ShardId, delta: &[f32]) -> Vec<f32> {
        let make = || Sketcher::new(&shard_seed(recipe, shard), self.shape.len());
        match self.sketchers.get(usize::from(shard.0)) {
            Some(known) => known.get_or_init(make).sketch(delta),
            None => make().sketch(delta),
        }
    }
}

/// Copies values to where they lie in the whole, one range after the other.
fn place(whole: &mut [f32], lie: &[Range<usize>], mut values: &[f32]) {
    for range in lie {
        let (here, rest) = values.split_at(range.len());
        whole[range.clone()].copy_from_slice(here);
        values = rest;
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
            None => self.measured(recipe, whole)?.1,
        };
        Ok(Contribution {
            sketch: self.sketch.clone(),
            loss: self.loss,
            samples: self.samples,
            norm,
        })
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
        self.whole.clone()
    }

    /// Training samples that a subject joined with.
    pub(crate) fn joined_samples(&self, subject: &SubjectId) -> u32 {
        self.subjects.get(subject).map_or(0, |r| r.samples)
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

    /// Removes updates that no run waits for, when a folder is opened: those of a replay that a
    /// restart has ended, those that were still being written when their shard was rolled back, and
    /// those that have counted.
    pub(super) fn drop_strays(&self) -> Result<(), CoordinatorError> {
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        for run in &self.runs {
            let key = run.key();
            let recorded = self.recorded_rounds(run.shard)?;
            let counted: BTreeSet<&Contributor> = recorded
                .range((run.stage, 0)..=(run.stage, u16::MAX))
                .flat_map(|(_, c)| c)
                .collect();
            for (subject, begun) in self.updates_of(key) {
                let of = (subject, begun);
                if !counted.contains(&of) {
                    let begun = RoundKey {
                        round: begun,
                        ..key
                    };
                    wanted.insert(update_id(begun, &of.0));
                }
            }
        }
        let mut batch = Batch::new();
        for key in self.store.keys::<UpdateRecord>() {
            if !wanted.contains(&key) {
                batch = batch.delete::<UpdateRecord>(&key);
            }
        }
        for key in self.store.keys::<PersonalRecord>() {
            if key.starts_with(REPLAYED) {
                batch = batch.delete::<PersonalRecord>(&key);
            }
        }
        if !batch.is_empty() {
            self.store.write(batch)?;
        }
        Ok(())
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

/// Stores updates in one write. Runs outside the lock: a person who is deleted meanwhile does not
/// come back with it.
pub(crate) fn store_updates(
    store: &SealedStore,
    arrived: &[Arrived],
) -> Result<(), CoordinatorError> {
    let mut batch = Batch::new();
    let mut secrets: BTreeMap<String, [u8; 32]> = BTreeMap::new();
    for a in arrived {
        let id = update_id(a.round, &a.subject);
        let key_id = checkpoint_id(a.round.shard, a.round.stage);
        let known = match secrets.get(&key_id) {
            Some(k) => Some(*k),
            None => store.get::<UpdateKey>(&key_id)?.map(|k| k.0),
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
        batch = batch.put_existing(&KeyName::subject(a.subject.as_str()), &id, &record)?;
    }
    Ok(store.write(batch)?)
}

/// The stored update of a subject in a round, if there is one that can be read.
pub(super) fn load_update(
    store: &SealedStore,
    key: RoundKey,
    subject: &SubjectId,
) -> Result<Option<Update>, CoordinatorError> {
    sealed_update(store, key, subject)?.map_or(Ok(None), SealedUpdate::open)
}

/// The same, not yet opened.
pub(super) fn sealed_update(
    store: &SealedStore,
    key: RoundKey,
    subject: &SubjectId,
) -> Result<Option<SealedUpdate>, CoordinatorError> {
    let id = update_id(key, subject);
    let Some(record) = store.get::<UpdateRecord>(&id)? else {
        return Ok(None);
    };
    let secret = store.get::<UpdateKey>(&checkpoint_id(key.shard, key.stage))?;
    Ok(secret.map(|UpdateKey(secret)| SealedUpdate { id, secret, record }))
}

/// Deletes updates that a round has counted.
pub(super) fn drop_updates(batch: Batch, key: RoundKey, counted: &[Contributor]) -> Batch {
    counted.iter().fold(batch, |batch, (subject, begun)| {
        let begun = RoundKey {
            round: *begun,
            ..key
        };
        batch.delete::<UpdateRecord>(&update_id(begun, subject))
    })
}
