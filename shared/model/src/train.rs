//! Optimiser, schedule, and the steps that central and federated training share.

use lethe_learn::seed::Seed;
use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::frozen::{FrozenStates, InMemory, Recomputed};
use crate::layout::Layout;
use crate::lora::Adapter;
use crate::segment::Segment;
use crate::split::{Batch, BatchLoss, DeviceModel, Labels, LocalMiddle, Middle};

/// A tokenised sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Prompt tokens.
    pub ids: Vec<u32>,
    /// Whether the person liked the target.
    pub label: bool,
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    first: Vec<f32>,
    second: Vec<f32>,
    step: i32,
    weight_decay: f32,
}

impl AdamW {
    /// Fresh state for `len` values.
    pub fn new(len: usize, weight_decay: f32) -> Self {
        Self {
            first: vec![0.0; len],
            second: vec![0.0; len],
            step: 0,
            weight_decay,
        }
    }

    /// One step along `grads` with learning rate `lr`.
    pub fn step(&mut self, theta: &mut [f32], grads: &[f32], lr: f32) {
        self.step += 1;
        let c1 = 1.0 - 0.9f32.powi(self.step);
        let c2 = 1.0 - 0.999f32.powi(self.step);
        let moments = self.first.iter_mut().zip(self.second.iter_mut());
        for ((t, g), (m, v)) in theta.iter_mut().zip(grads).zip(moments) {
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.999 * *v + 0.001 * g * g;
            *t -= lr * (self.weight_decay * *t + (*m / c1) / ((*v / c2).sqrt() + 1e-8));
        }
    }
}

/// Linear warm-up to `lr` over `warmup` steps, then linear decay to 0 at `total` (as the reference
/// run used).
#[derive(Clone, Copy, Debug)]
pub struct LinearSchedule {
    /// Peak rate.
    pub lr: f32,
    /// Warm-up steps.
    pub warmup: usize,
    /// Steps in all.
    pub total: usize,
}

impl LinearSchedule {
    /// Rate of 0-based step `i`.
    pub fn rate(&self, i: usize) -> f32 {
        if i < self.warmup {
            self.lr * i as f32 / self.warmup as f32
        } else {
            self.lr * (self.total.saturating_sub(i)) as f32
                / (self.total - self.warmup).max(1) as f32
        }
    }
}

/// How samples are grouped into forward passes; part of the recipe, since it decides rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packing {
    /// Most tokens in one forward pass (at least one sequence is taken in any case).
    pub max_tokens: usize,
}

impl Default for Packing {
    fn default() -> Self {
        Self { max_tokens: 800 }
    }
}

impl Packing {
    /// Splits consecutive samples into packs, by the sum of their lengths.
    pub fn split<'a>(&self, samples: &'a [Sample]) -> Vec<&'a [Sample]> {
        let mut packs = Vec::new();
        let (mut start, mut tokens) = (0, 0);
        for (i, s) in samples.iter().enumerate() {
            if i > start && tokens + s.ids.len() > self.max_tokens {
                packs.push(&samples[start..i]);
                (start, tokens) = (i, 0);
            }
            tokens += s.ids.len();
        }
        if start < samples.len() {
            packs.push(&samples[start..]);
        }
        packs
    }
}

/// Everything that a training step needs besides samples and adapter.
#[derive(Clone, Copy, Debug)]
pub struct Trainer<'a> {
    /// The device's layers.
    pub device: &'a DeviceModel,
    /// Token ids of `[no, yes]`.
    pub answers: [u32; 2],
    /// Grouping into forward passes.
    pub packing: Packing,
    /// Where states below the first trained layer are kept between steps.
    pub frozen: &'a dyn FrozenStates,
}

impl Trainer<'_> {
    /// Gradient of the mean loss over `samples` on the device's adapter, added to `grads`; the
    /// middle collects its own.
    pub fn accumulate(
        &self,
        samples: &[Sample],
        adapter: &Adapter,
        grads: &mut [f32],
        middle: &mut dyn Middle,
    ) -> Result<BatchLoss, ModelError> {
        self.accumulate_towards(samples, None, adapter, grads, middle)
    }

    /// The same towards a teacher's probabilities of yes, one per sample, in place of the labels.
    pub fn accumulate_towards(
        &self,
        samples: &[Sample],
        teacher: Option<&[f32]>,
        adapter: &Adapter,
        grads: &mut [f32],
        middle: &mut dyn Middle,
    ) -> Result<BatchLoss, ModelError> {
        let scale = 1.0 / samples.len().max(1) as f32;
        let (mut total, mut at) = (BatchLoss::default(), 0);
        for pack in self.packing.split(samples) {
            let sequences: Vec<Vec<u32>> = pack.iter().map(|s| s.ids.clone()).collect();
            let hard: Vec<bool> = pack.iter().map(|s| s.label).collect();
            let labels = match teacher {
                Some(t) => Labels::Soft(t.get(at..at + pack.len()).unwrap_or_default()),
                None => Labels::Hard(&hard),
            };
            at += pack.len();
            let (layout, ids) = Layout::pack(&sequences);
            let batch = Batch {
                layout: &layout,
                ids: &ids,
                labels,
                answers: self.answers,
                scale,
            };
            let hidden = match adapter.shape().first_trained() {
                0 => self.device.embed(&ids)?,
                cut => self.packed(&layout, &sequences, cut, middle)?,
            };
            let loss = self
                .device
                .train_from(&batch, hidden, adapter, grads, middle)?;
            total.sum += loss.sum;
            total.samples += loss.samples;
        }
        Ok(total)
    }

    /// Answer logits `[no, yes]` of samples by an adapter, from kept states where there are any.
    pub fn score(
        &self,
        samples: &[Sample],
        adapter: &Adapter,
        middle: &mut dyn Middle,
    ) -> Result<Vec<[f32; 2]>, ModelError> {
        let cut = adapter.shape().first_trained();
        let mut out = Vec::with_capacity(samples.len());
        for pack in self.packing.split(samples) {
            let (layout, hidden) = self.kept_states(pack, cut, middle)?;
            out.extend(self.device.score_from(
                &layout,
                hidden,
                cut,
                self.answers,
                Some(adapter),
                middle,
            )?);
        }
        Ok(out)
    }

    /// Last hidden states by the untuned model after the final norm, `[hidden]` each, from kept
    /// states before layer `cut` where there are any.
    pub fn last_hidden(
        &self,
        samples: &[Sample],
        cut: usize,
        middle: &mut dyn Middle,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut out = Vec::with_capacity(samples.len());
        for pack in self.packing.split(samples) {
            let (layout, hidden) = self.kept_states(pack, cut, middle)?;
            let last = self.device.last_from(&layout, hidden, cut, None, middle)?;
            out.extend(
                last.chunks_exact(self.device.config().hidden)
                    .map(<[f32]>::to_vec),
            );
        }
        Ok(out)
    }

    /// Layout of a pack, and its states before layer `cut`.
    fn kept_states(
        &self,
        pack: &[Sample],
        cut: usize,
        middle: &mut dyn Middle,
    ) -> Result<(Layout, Vec<f32>), ModelError> {
        let sequences: Vec<Vec<u32>> = pack.iter().map(|s| s.ids.clone()).collect();
        let (layout, ids) = Layout::pack(&sequences);
        let hidden = match cut {
            0 => self.device.embed(&ids)?,
            cut => self.packed(&layout, &sequences, cut, middle)?,
        };
        Ok((layout, hidden))
    }

    /// States before layer `cut` of packed sequences. Each sequence is run alone, so that they do
    /// not depend on what it is packed with, nor on whether they were kept from before.
    fn packed(
        &self,
        layout: &Layout,
        sequences: &[Vec<u32>],
        cut: usize,
        middle: &mut dyn Middle,
    ) -> Result<Vec<f32>, ModelError> {
        let width = self.device.config().hidden;
        let shared = layout.prefix as usize * width;
        let mut out = Vec::with_capacity(layout.rows() * width);
        for ids in sequences {
            let states = match self
                .frozen
                .get(ids)
                .filter(|s| s.len() == ids.len() * width && s.iter().all(|v| v.is_finite()))
            {
                Some(states) => states,
                None => {
                    let alone = Layout {
                        prefix: 0,
                        lens: vec![ids.len() as u32],
                    };
                    let states = self.device.frozen(&alone, ids, cut, middle)?;
                    if states.iter().any(|v| !v.is_finite()) {
                        return Err(ModelError::Shape(
                            "the layers below gave states that are not finite".into(),
                        ));
                    }
                    self.frozen.put(ids, &states);
                    states
                }
            };
            let from = if out.is_empty() { 0 } else { shared };
            out.extend_from_slice(&states[from..]);
        }
        Ok(out)
    }
}

/// Settings of a central (one machine, no federation) fine-tuning run.
#[derive(Clone, Copy, Debug)]
pub struct CentralRecipe {
    /// Peak learning rate.
    pub lr: f32,
    /// Samples per optimiser step.
    pub batch: usize,
    /// Passes over the samples.
    pub epochs: usize,
    /// Warm-up steps.
    pub warmup: usize,
    /// Weight decay.
    pub weight_decay: f32,
    /// Grouping into forward passes.
    pub packing: Packing,
}

impl Default for CentralRecipe {
    fn default() -> Self {
        Self {
            lr: 5e-4,
            batch: 16,
            epochs: 1,
            warmup: 8,
            weight_decay: 0.01,
            packing: Packing::default(),
        }
    }
}

/// Central fine-tuning, step by step.
#[derive(Debug)]
pub struct Central<'a> {
    device: &'a DeviceModel,
    answers: [u32; 2],
    recipe: CentralRecipe,
    schedule: LinearSchedule,
    steps: usize,
    whole: Adapter,
    edge: Adapter,
    edge_grads: Vec<f32>,
    edge_optimiser: AdamW,
    middle: LocalMiddle,
    middle_optimiser: AdamW,
    frozen: Box<dyn FrozenStates>,
}

impl<'a> Central<'a> {
    /// Starts from `adapter` (of the whole model), for `total` steps. `answers` are the token ids
    /// of `[no, yes]`.
    pub fn new(
        device: &'a DeviceModel,
        middle: Segment,
        adapter: Adapter,
        answers: [u32; 2],
        recipe: CentralRecipe,
        total: usize,
    ) -> Self {
        let (spec, layers) = (device.split(), device.config().layers);
        let edge = adapter.select(|l| spec.on_device(l, layers));
        let middle = LocalMiddle::new(middle, adapter.select(|l| !spec.on_device(l, layers)));
        Self {
            device,
            answers,
            recipe,
            schedule: LinearSchedule {
                lr: recipe.lr,
                warmup: recipe.warmup,
                total,
            },
            steps: 0,
            whole: adapter,
            edge_grads: vec![0.0; edge.data.len()],
            edge_optimiser: AdamW::new(edge.data.len(), recipe.weight_decay),
            middle_optimiser: AdamW::new(middle.adapter.data.len(), recipe.weight_decay),
            edge,
            middle,
            frozen: if recipe.epochs > 1 {
                Box::new(InMemory::default())
            } else {
                Box::new(Recomputed)
            },
        }
    }

    /// One optimiser step; the mean loss over the batch.
    pub fn step(&mut self, batch: &[Sample]) -> Result<f64, ModelError> {
        self.step_towards(batch, None)
    }

    /// The same towards a teacher's probabilities of yes.
    pub fn step_towards(
        &mut self,
        batch: &[Sample],
        teacher: Option<&[f32]>,
    ) -> Result<f64, ModelError> {
        self.edge_grads.fill(0.0);
        self.middle.grads.fill(0.0);
        let (packing, frozen) = (self.recipe.packing, self.frozen.as_ref());
        let trainer = Trainer {
            device: self.device,
            answers: self.answers,
            packing,
            frozen,
        };
        let loss = trainer.accumulate_towards(
            batch,
            teacher,
            &self.edge,
            &mut self.edge_grads,
            &mut self.middle,
        )?;
        let lr = self.schedule.rate(self.steps);
        self.edge_optimiser
            .step(&mut self.edge.data, &self.edge_grads, lr);
        self.middle_optimiser
            .step(&mut self.middle.adapter.data, &self.middle.grads, lr);
        self.steps += 1;
        Ok(loss.sum / loss.samples.max(1) as f64)
    }

    /// The adapter as it is now.
    pub fn adapter(&self) -> Result<Adapter, ModelError> {
        let mut all = self.whole.clone();
        all.paste(&self.edge)?;
        all.paste(&self.middle.adapter)?;
        Ok(all)
    }
}

/// Batches of an epoch: the samples in a seeded order.
pub fn epoch_batches(
    samples: &[Sample],
    batch: usize,
    epoch: usize,
    seed: &Seed,
) -> Vec<Vec<Sample>> {
    let mut order: Vec<&Sample> = samples.iter().collect();
    seed.derive("epoch", &[&(epoch as u64).to_le_bytes()])
        .rng()
        .shuffle(&mut order);
    order
        .chunks(batch.max(1))
        .map(|b| b.iter().map(|s| (*s).clone()).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_by_tokens_and_never_drops() {
        let s = |n: usize| Sample {
            ids: vec![0; n],
            label: true,
        };
        let samples = [s(500), s(200), s(200), s(900), s(1)];
        let sizes: Vec<usize> = Packing { max_tokens: 800 }
            .split(&samples)
            .iter()
            .map(|p| p.len())
            .collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
    }

    #[test]
    fn schedule_warms_up_and_decays() {
        let s = LinearSchedule {
            lr: 1.0,
            warmup: 2,
            total: 6,
        };
        let rates: Vec<f32> = (0..6).map(|i| s.rate(i)).collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
    }
}
