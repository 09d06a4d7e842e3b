//! Arithmetic around a round: how adapters are divided, what clients start from, and how updates
//! are checked. Nothing here decides or stores.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use lethe_learn::seed::Seed;
use lethe_learn::sketch::Sketcher;
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_proto::ids::ShardId;
use lethe_proto::message::Refusal;
use lethe_proto::packed::{Packed, PackedError};
use lethe_recipe::Recipe;

use crate::CoordinatorError;
use crate::content::TrainState;

mod update;

pub(crate) use update::Sent;

/// A fault of this process, for whoever asked.
pub(crate) fn internal(why: &dyn std::fmt::Display) -> CoordinatorError {
    CoordinatorError::refuse(Refusal::Internal, why.to_string())
}

/// Seed of a shard: its initialisation, cohorts and sample choices derive from it.
pub(crate) fn shard_seed(recipe: &Recipe, shard: ShardId) -> Seed {
    Seed::from_u64(recipe.seed).derive("shard", &[&shard.0.to_le_bytes()])
}

/// The state that a shard starts from: the one initialisation that all clients of the shard share.
pub(crate) fn initial(recipe: &Recipe, shape: &Arc<AdapterShape>) -> TrainState {
    let theta = recipe.initial(shape).data;
    let zeros = vec![0.0; theta.len()];
    TrainState {
        first: zeros.clone(),
        second: zeros,
        theta,
        step: 0,
        losses: vec![],
    }
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
    pub(crate) fn edge_len(&self) -> usize {
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

    /// The device's part as the whole adapter: where all layers are the device's.
    pub(crate) fn of_device(&self, device: &[f32]) -> Vec<f32> {
        let mut whole = vec![0.0; self.shape.len()];
        place(&mut whole, &self.edge, device);
        whole
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

/// What clients start a round from, or score with: the device's part as it is sent, and the
/// coordinator's part.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) device: Packed,
    pub(crate) middle: Arc<Adapter>,
}

/// Both parts of an adapter.
pub(crate) fn parts(
    recipe: &Recipe,
    whole: &Whole,
    theta: Vec<f32>,
) -> Result<Parts, CoordinatorError> {
    let adapter = Adapter::from_data(&whole.shape, theta)?;
    Ok(Parts {
        device: device_part(recipe, whole, &adapter)?,
        middle: Arc::new(adapter.select(|l| !whole.on_device(recipe, l))),
    })
}

/// The device part of an adapter on the wire: exact, or its difference from the initial one in few
/// bits, which the device computes for itself.
pub(crate) fn device_part(
    recipe: &Recipe,
    whole: &Whole,
    adapter: &Adapter,
) -> Result<Packed, PackedError> {
    let mut edge = adapter.select(|l| whole.on_device(recipe, l));
    if recipe.adapters.lossy() {
        let initial = recipe.initial(edge.shape());
        edge.data
            .iter_mut()
            .zip(&initial.data)
            .for_each(|(v, i)| *v -= i);
    }
    Packed::encode(&edge.data, recipe.adapters)
}
