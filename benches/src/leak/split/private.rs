//! Layers that the device has changed and keeps to itself, and an attacker who fits the change.
//!
//! The attacker knows the adapter's shape and start, which are in the recipe, and some of the
//! tokens: the template's, and then those that it has read. It looks for the adapter that explains
//! their states, by gradient descent, as the device found its own.

use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::segment::Segment;
use lethe_model::train::AdamW;

use super::host::one;
use super::world::World;

const STEPS: usize = 60;
const LR: f32 = 5e-3;

/// The adapter times `strength` on layers below `k_in`, and only there.
pub(super) fn amplified(private: &Adapter, k_in: usize, strength: f32) -> Adapter {
    let mut bottom = private.select(|l| l < k_in);
    let shape = bottom.shape().clone();
    for entry in shape.entries() {
        let (_, b) = shape.ranges(entry);
        bottom.data[b].iter_mut().for_each(|v| *v *= strength);
    }
    bottom
}

/// The adapter on `bottom` that explains `known`: tokens, and the states that arrived for them, of
/// the beginnings of some sequences.
pub(super) fn fitted(
    world: &World,
    bottom: &Segment,
    known: &[(Vec<u32>, Vec<f32>)],
) -> anyhow::Result<Adapter> {
    let width = world.hidden();
    let k_in = bottom.range().end;
    let shape = AdapterShape::new(world.source.config(), &LoraRecipe::default(), |l| l < k_in);
    let mut adapter = Adapter::init(&shape, &world.seed.derive("init", &[]));
    let mut steps = AdamW::new(adapter.data.len(), 0.0);
    let mut grads = vec![0.0; adapter.data.len()];
    for step in 0..STEPS {
        let (ids, seen) = &known[step % known.len()];
        let rows = ids
            .iter()
            .flat_map(|id| &world.words[*id as usize * width..][..width]);
        let layout = one(ids.len());
        let (out, tape) = bottom.forward_train(&layout, rows.copied().collect(), &adapter)?;
        let mut wrong: Vec<f32> = out.iter().zip(seen).map(|(a, b)| a - b).collect();
        // The first state is larger than the others by far, and the same for everybody.
        wrong[..width].fill(0.0);
        let n = wrong.len() as f32;
        wrong.iter_mut().for_each(|v| *v /= n);
        grads.fill(0.0);
        bottom.backward(&tape, wrong, &adapter, &mut grads)?;
        let rate = LR * (STEPS - step) as f32 / STEPS as f32;
        steps.step(&mut adapter.data, &grads, rate);
    }
    Ok(adapter)
}
