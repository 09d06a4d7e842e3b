//! What a defence costs: a small training over the split, and its AUC.

use lethe_learn::metrics::auc;
use lethe_learn::seed::Seed;
use lethe_model::frozen::InMemory;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::segment::Segment;
use lethe_model::source::WeightSource;
use lethe_model::split::{DeviceModel, LocalMiddle, SplitSpec};
use lethe_model::train::{AdamW, Packing, Sample, Trainer, epoch_batches};
use lethe_recsys::samples::{Part, TaskSample};

use super::tap::{Crossing, Tap};
use super::world::World;

const TRAIN: usize = 32;
const TEST: usize = 128;
const BATCH: usize = 8;
const EPOCHS: usize = 2;
const LR: f32 = 1e-3;
/// Samples of the person whose device trains layers of its own.
const OWN: usize = 10;

/// A model over a split, and samples.
pub(super) struct School {
    device: DeviceModel,
    middle: Segment,
    answers: [u32; 2],
    train: Vec<Sample>,
    test: Vec<Sample>,
    own: Vec<Sample>,
    seed: Seed,
}

impl School {
    /// `device` gives the device's weights, which may be its own; `world` everybody's. Products are
    /// in bf16, which is what time there is for.
    pub(super) fn new(
        world: &World,
        device: &dyn WeightSource,
        split: SplitSpec,
    ) -> anyhow::Result<Self> {
        let chosen = |part, n, label: &str| {
            let seed = world.seed.derive(label, &[]);
            samples(world, &world.samples.choose(part, n, &seed))
        };
        let mut of_one: Vec<TaskSample> =
            world
                .samples
                .choose(Part::Train, 1, &world.seed.derive("own", &[]));
        if let Some(first) = of_one.pop() {
            let all = world.samples.part(Part::Train);
            of_one.extend(all.filter(|s| s.user == first.user).take(OWN).cloned());
        }
        Ok(Self {
            device: DeviceModel::load(device, split, Compute::Bf16)?,
            middle: DeviceModel::load_middle(world.source.as_ref(), split, Compute::Bf16)?,
            answers: world.encoder.answers,
            train: chosen(Part::Train, TRAIN, "train")?,
            test: chosen(Part::Test, TEST, "test")?,
            own: samples(world, &of_one)?,
            seed: world.seed,
        })
    }

    fn on_device(&self, layer: usize) -> bool {
        self.device
            .split()
            .on_device(layer, self.device.config().layers)
    }

    /// AUC after training the last layers over this crossing.
    pub(super) fn auc(&self, crossing: Crossing, last_layers: usize) -> anyhow::Result<f64> {
        let recipe = LoraRecipe {
            last_layers: Some(last_layers),
            ..LoraRecipe::default()
        };
        let shape = AdapterShape::new(self.device.config(), &recipe, |_| true);
        let start = Adapter::init(&shape, &self.seed.derive("init", &[]));
        let mut edge = start.select(|l| self.on_device(l));
        let inner = start.select(|l| !self.on_device(l));
        let width = self.device.config().hidden;
        let middle = LocalMiddle::new(self.middle.clone(), inner);
        let mut tap = Tap::blind(middle, crossing, width, &self.seed);
        let frozen = InMemory::default();
        let trainer = Trainer {
            device: &self.device,
            answers: self.answers,
            packing: Packing::default(),
            frozen: &frozen,
        };
        let mut grads = vec![0.0; edge.data.len()];
        let mut steps = AdamW::new(grads.len(), 0.01);
        let mut inner_steps = AdamW::new(tap.inner.grads.len(), 0.01);
        for epoch in 0..EPOCHS {
            for batch in epoch_batches(&self.train, BATCH, epoch, &self.seed) {
                grads.fill(0.0);
                tap.inner.grads.fill(0.0);
                trainer.accumulate(&batch, &edge, &mut grads, &mut tap)?;
                steps.step(&mut edge.data, &grads, LR);
                let LocalMiddle { adapter, grads, .. } = &mut tap.inner;
                inner_steps.step(&mut adapter.data, grads, LR);
            }
        }
        let logits = trainer.score(&self.test, &edge, &mut tap)?;
        let scores: Vec<f32> = logits.iter().map(|l| l[1] - l[0]).collect();
        let labels: Vec<bool> = self.test.iter().map(|s| s.label).collect();
        Ok(auc(&scores, &labels).unwrap_or(f64::NAN))
    }

    /// What a device learns on its own layers from its own samples, over the split; nobody else
    /// gets it.
    pub(super) fn private(&self, crossing: Crossing) -> anyhow::Result<Adapter> {
        let shape = AdapterShape::new(self.device.config(), &LoraRecipe::default(), |_| true);
        let start = Adapter::init(&shape, &self.seed.derive("init", &[]));
        let mut edge = start.select(|l| self.on_device(l));
        let width = self.device.config().hidden;
        let inner = start.select(|l| !self.on_device(l));
        let middle = LocalMiddle::new(self.middle.clone(), inner);
        let mut tap = Tap::blind(middle, crossing, width, &self.seed);
        let frozen = InMemory::default();
        let trainer = Trainer {
            device: &self.device,
            answers: self.answers,
            packing: Packing::default(),
            frozen: &frozen,
        };
        let mut grads = vec![0.0; edge.data.len()];
        let mut steps = AdamW::new(grads.len(), 0.01);
        for batch in epoch_batches(&self.own, 2, 0, &self.seed) {
            grads.fill(0.0);
            trainer.accumulate(&batch, &edge, &mut grads, &mut tap)?;
            steps.step(&mut edge.data, &grads, LR);
        }
        Ok(edge)
    }
}

fn samples(world: &World, chosen: &[TaskSample]) -> anyhow::Result<Vec<Sample>> {
    chosen
        .iter()
        .map(|s| {
            let text = world.text(s)?;
            Ok(Sample {
                ids: text.ids,
                label: text.label,
            })
        })
        .collect()
}
