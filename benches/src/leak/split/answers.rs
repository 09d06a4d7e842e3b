//! Answers from the gradient that comes back: the loss pulls towards "yes" or away from it, and the
//! device's last layers, which are public, say in which direction that is.

use lethe_model::ModelError;
use lethe_model::frozen::Recomputed;
use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe};
use lethe_model::segment::Segment;
use lethe_model::split::{Batch, DeviceModel, Labels, Middle, SplitSpec, Stage};
use lethe_model::train::{Packing, Sample, Trainer};
use lethe_proto::payload::WireFormat;

use super::tap::{Crossing, Tap};
use super::world::{Text, World};

/// The middle's layers forwards. The host has the gradient before it runs them backwards.
struct Forwards(Segment);

impl Middle for Forwards {
    fn forward(
        &mut self,
        layout: &Layout,
        hidden: Vec<f32>,
        _: Stage,
    ) -> Result<Vec<f32>, ModelError> {
        self.0.forward(layout, hidden, None)
    }

    fn backward(&mut self, grad: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(vec![0.0; grad.len()])
    }
}

/// Gives the device's last layers what the host sent, and keeps what they answer.
struct Again {
    sent: Vec<f32>,
    grad: Vec<f32>,
}

impl Middle for Again {
    fn forward(&mut self, _: &Layout, _: Vec<f32>, _: Stage) -> Result<Vec<f32>, ModelError> {
        Ok(self.sent.clone())
    }

    fn backward(&mut self, grad: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        self.grad = grad;
        Ok(vec![0.0; self.grad.len()])
    }
}

/// The adapter that everybody starts from.
pub(super) fn shared(world: &World) -> Adapter {
    let shape = AdapterShape::new(world.source.config(), &LoraRecipe::default(), |_| true);
    Adapter::init(&shape, &world.seed.derive("init", &[]))
}

/// What the attack on answers gave.
pub(super) struct Answers {
    /// Share of the answers that it names.
    pub(super) right: f64,
    /// Smallest cosine, without its sign, of what came and what the attacker expects.
    pub(super) cosine: f64,
    /// Share of the more frequent answer: what guessing gives.
    pub(super) frequent: f64,
}

/// Trains on `texts` once over a split, and reads the answers from what comes back. `private` is
/// what the device has on its last layers and the host does not know.
pub(super) fn measure(
    world: &World,
    texts: &[Text],
    split: SplitSpec,
    format: WireFormat,
    private: Option<&Adapter>,
) -> anyhow::Result<Answers> {
    let (source, layers) = (world.source.as_ref(), world.source.config().layers);
    let width = world.hidden();
    let device = DeviceModel::load(source, split, Compute::F32)?;
    let middle = DeviceModel::load_middle(source, split, Compute::F32)?;
    let fleet = shared(world);
    let own = match private {
        Some(adapter) => adapter.select(|l| split.on_device(l, layers)),
        None => fleet.select(|l| split.on_device(l, layers)),
    };
    let samples: Vec<Sample> = texts
        .iter()
        .map(|t| Sample {
            ids: t.ids.clone(),
            label: t.label,
        })
        .collect();
    let crossing = Crossing::plain(format);
    let mut tap = Tap::new(Forwards(middle), crossing, width, &world.seed);
    let trainer = Trainer {
        device: &device,
        answers: world.encoder.answers,
        packing: Packing::default(),
        frozen: &Recomputed,
    };
    let mut grads = vec![0.0; own.data.len()];
    trainer.accumulate(&samples, &own, &mut grads, &mut tap)?;
    // From here on the attacker works with what arrived, and what it sent.
    let spec = SplitSpec { k_in: 0, ..split };
    let attacker = DeviceModel::load(source, spec, Compute::F32)?;
    let top = fleet.select(|l| spec.on_device(l, layers));
    let mut cosines = vec![];
    let passes = tap.states.iter().zip(&tap.answered).zip(&tap.grads);
    for ((seen, sent), came) in passes {
        let yes = vec![true; seen.layout.sequences()];
        let batch = Batch {
            layout: &seen.layout,
            ids: &[],
            labels: Labels::Hard(&yes),
            answers: world.encoder.answers,
            scale: 1.0,
        };
        let mut again = Again {
            sent: sent.clone(),
            grad: vec![],
        };
        let mut unused = vec![0.0; top.data.len()];
        let blank = vec![0.0; sent.len()];
        attacker.train_from(&batch, blank, &top, &mut unused, &mut again)?;
        let runs = seen.layout.runs();
        // The shared prefix is nobody's own.
        for run in runs
            .iter()
            .filter(|r| r.context > 0 || seen.layout.prefix == 0)
        {
            let rows = run.start * width..(run.start + run.len) * width;
            cosines.push(cosine(&came[rows.clone()], &again.grad[rows]));
        }
    }
    let right = cosines
        .iter()
        .zip(&samples)
        .filter(|(c, s)| (**c > 0.0) == s.label);
    let n = samples.len() as f64;
    let yes = samples.iter().filter(|s| s.label).count() as f64 / n;
    Ok(Answers {
        right: right.count() as f64 / n,
        cosine: cosines.iter().fold(1.0, |m, c| m.min(c.abs())),
        frequent: yes.max(1.0 - yes),
    })
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| {
        x.iter()
            .zip(y)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}
