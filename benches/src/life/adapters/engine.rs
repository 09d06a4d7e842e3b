//! The language model in one process: what devices and the coordinator's middle compute between
//! them.

use std::sync::Arc;

use anyhow::ensure;
use lethe_client::encode::Encoder;
use lethe_learn::seed::Seed;
use lethe_model::frozen::{FrozenStates, InMemory};
use lethe_model::layout::Layout;
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_model::segment::Segment;
use lethe_model::source::WeightSource;
use lethe_model::split::{DeviceModel, LocalMiddle, descend};
use lethe_model::train::{Sample, Trainer};
use lethe_recipe::Recipe;
use lethe_recsys::prompt::Prompt;
use rayon::prelude::*;

/// Tokens of one scoring pass, as clients have it.
const SCORING: usize = 2000;

/// A base model under a recipe.
pub(crate) struct Engine {
    pub(crate) recipe: Recipe,
    pub(crate) shape: Arc<AdapterShape>,
    device: DeviceModel,
    middle: Segment,
    encoder: Encoder,
}

/// A sample of a device, and what its choice goes by.
#[derive(Clone, Debug)]
pub(crate) struct Prompted {
    /// Target and time: a sample's identity.
    pub(crate) id: Vec<u8>,
    pub(crate) time: i64,
    pub(crate) sample: Sample,
}

/// What a device learned.
pub(crate) struct Change {
    /// `[values]`.
    pub(crate) values: Vec<f32>,
    /// Nats, mean of the samples.
    pub(crate) loss: f32,
    pub(crate) samples: u32,
}

/// Shards' adapters, and the weights that they have where a prompt lies.
pub(crate) trait Mixes: Sync {
    /// One weight for each adapter.
    fn weights(&self, embedding: &[f32]) -> Vec<f32>;
    /// Adapters of all shards.
    fn adapters(&self) -> &[Adapter];
}

/// Log-odds of a like, `[prompts]` each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Odds {
    pub(crate) base: Vec<f32>,
    pub(crate) adapters: Vec<f32>,
}

impl Engine {
    /// Loads the model.
    ///
    /// # Errors
    /// A layer that is trained is the middle's, or a model that does not fit the recipe.
    pub(crate) fn load(source: &dyn WeightSource, recipe: Recipe) -> anyhow::Result<Self> {
        let config = source.config().clone();
        let shape = AdapterShape::new(&config, &recipe.lora, |_| true);
        ensure!(
            shape.first_trained() + recipe.split.k_out >= config.layers,
            "layers from {} on are trained, and the device has the last {}: expected all trained \
             layers on the device",
            shape.first_trained(),
            recipe.split.k_out
        );
        let encoder = Encoder::new(source.tokenizer()?, recipe.template()?)?;
        Ok(Self {
            device: DeviceModel::load(source, recipe.split, recipe.compute)?,
            middle: DeviceModel::load_middle(source, recipe.split, recipe.compute)?,
            encoder: encoder.within(config.max_positions),
            shape,
            recipe,
        })
    }

    /// Layers of the model.
    pub(crate) fn layers(&self) -> usize {
        self.device.config().layers
    }

    /// Width of the model.
    pub(crate) fn hidden(&self) -> usize {
        self.device.config().hidden
    }

    /// Tokens of a prompt.
    pub(crate) fn tokens(&self, prompt: &Prompt) -> anyhow::Result<Vec<u32>> {
        Ok(self.encoder.ids(prompt)?)
    }

    /// An adapter of the whole model.
    pub(crate) fn adapter(&self, theta: &[f32]) -> anyhow::Result<Adapter> {
        Ok(Adapter::from_data(&self.shape, theta.to_vec())?)
    }

    /// No layer of the middle is trained: its part of an adapter is empty.
    fn middle(&self, adapter: &Adapter) -> LocalMiddle {
        LocalMiddle::new(self.middle.clone(), adapter.select(|_| false))
    }

    fn trainer<'a>(&'a self, states: &'a dyn FrozenStates) -> Trainer<'a> {
        Trainer {
            device: &self.device,
            answers: self.encoder.answers,
            packing: self.recipe.packing,
            frozen: states,
        }
    }

    /// States below the trained layers, of those that have none yet; how many these were.
    pub(crate) fn prepare(&self, states: &InMemory, all: &[&Sample]) -> anyhow::Result<usize> {
        let mut missing: Vec<&&Sample> = all
            .iter()
            .filter(|s| states.get(&s.ids).is_none())
            .collect();
        missing.sort_by(|a, b| a.ids.cmp(&b.ids));
        missing.dedup_by(|a, b| a.ids == b.ids);
        let untuned = self.untuned()?;
        let cut = self.shape.first_trained();
        let one = |sample: &&&Sample| -> anyhow::Result<()> {
            let alone = Layout {
                prefix: 0,
                lens: vec![sample.ids.len() as u32],
            };
            let mut middle = self.middle(&untuned);
            let computed = self.device.frozen(&alone, &sample.ids, cut, &mut middle)?;
            states.put(&sample.ids, &computed);
            Ok(())
        };
        missing
            .par_iter()
            .map(one)
            .collect::<anyhow::Result<()>>()?;
        Ok(missing.len())
    }

    fn untuned(&self) -> anyhow::Result<Adapter> {
        self.adapter(&vec![0.0; self.shape.len()])
    }

    /// A device's part of a round: the first samples by the round's rank, plain gradient steps.
    pub(crate) fn learn(
        &self,
        states: &InMemory,
        theta: &[f32],
        round: &Seed,
        samples: &[Prompted],
    ) -> anyhow::Result<Change> {
        let local = &self.recipe.local;
        let mut ranked: Vec<(u64, &Prompted)> = samples
            .iter()
            .map(|s| (round.rank("sample", &s.id), s))
            .collect();
        ranked.sort_by_key(|(rank, s)| (*rank, s.time));
        ranked.truncate(local.samples);
        let chosen: Vec<Sample> = ranked.into_iter().map(|r| r.1.sample.clone()).collect();
        let mut adapter = self.adapter(theta)?;
        let mut middle = self.middle(&adapter);
        let mut grads = vec![0.0; theta.len()];
        let mut sum = 0.0;
        let mut count = 0;
        for _ in 0..local.epochs {
            for batch in chosen.chunks(local.batch) {
                let trainer = self.trainer(states);
                let loss = trainer.accumulate(batch, &adapter, &mut grads, &mut middle)?;
                descend(&mut adapter.data, &mut grads, local.lr);
                sum += loss.sum;
                count += loss.samples;
            }
        }
        Ok(Change {
            values: adapter.data.iter().zip(theta).map(|(a, b)| a - b).collect(),
            loss: (sum / count.max(1) as f64) as f32,
            samples: chosen.len() as u32,
        })
    }

    /// Where a prompt lies, by the untuned layers of the device, `[hidden]`.
    pub(crate) fn locate(&self, ids: &[u32]) -> anyhow::Result<Vec<f32>> {
        Ok(self.device.locate(ids)?)
    }

    /// Probability of the wrong answer to a sample whose states are kept.
    pub(crate) fn error(
        &self,
        states: &InMemory,
        adapter: &Adapter,
        sample: &Sample,
    ) -> anyhow::Result<f32> {
        let all = std::slice::from_ref(sample);
        let mut middle = self.middle(adapter);
        let logits = self.trainer(states).score(all, adapter, &mut middle)?;
        let margin = logits.first().map_or(0.0, |l| l[1] - l[0]);
        let toward = if sample.label { margin } else { -margin };
        Ok(1.0 / (1.0 + toward.exp()))
    }

    /// What the untuned model and the mixed adapters say of prompts of one history. The layers
    /// below the trained ones run once for both.
    pub(crate) fn odds(&self, prompts: &[Vec<u32>], mix: &dyn Mixes) -> anyhow::Result<Odds> {
        let mut odds = Odds::default();
        for pack in packs(prompts) {
            let packed = Layout::pack(pack);
            let layout = packed.0;
            let ids = packed.1;
            let shared = match layout.prefix as usize {
                0 => pack.first().map_or(&[][..], |p| &p[..]),
                n => &ids[..n],
            };
            let weights = mix.weights(&self.locate(shared)?);
            let parts: Vec<(&Adapter, f32)> = mix
                .adapters()
                .iter()
                .zip(weights)
                .filter(|(_, w)| *w != 0.0)
                .collect();
            let mixed = Adapter::mix_nd(&parts)?;
            let cut = self.shape.first_trained();
            let mut middle = self.middle(&self.untuned()?);
            let hidden = self.device.frozen(&layout, &ids, cut, &mut middle)?;
            let answers = self.encoder.answers;
            let mut score = |hidden: Vec<f32>, adapter: Option<&Adapter>| {
                let device = &self.device;
                device.score_from(&layout, hidden, cut, answers, adapter, &mut middle)
            };
            let base = score(hidden.clone(), None)?;
            let tuned = score(hidden, Some(&mixed))?;
            odds.base.extend(base.iter().map(|l| l[1] - l[0]));
            odds.adapters.extend(tuned.iter().map(|l| l[1] - l[0]));
        }
        Ok(odds)
    }
}

/// Prompts that fit a pass once their common prefix is shared.
fn packs(prompts: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let mut out = vec![];
    let mut start = 0;
    while start < prompts.len() {
        let mut end = start + 1;
        while end < prompts.len() && Layout::pack(&prompts[start..=end]).0.rows() <= SCORING {
            end += 1;
        }
        out.push(&prompts[start..end]);
        start = end;
    }
    out
}
