//! What experiments train and score with, without a network: a base model, a data set, samples,
//! states of frozen layers on disk.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use lethe_client::encode::Encoder;
use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe, Projection};
use lethe_model::segment::Segment;
use lethe_model::source::{Merged, WeightSource, open};
use lethe_model::split::{BatchLoss, DeviceModel, LocalMiddle, SplitSpec};
use lethe_model::train::{Packing, Sample, Trainer};
use lethe_proto::ids::Digest;
use lethe_proto::payload::{Payload, WireFormat};
use lethe_recsys::data::Dataset;
use lethe_recsys::prompt::{Prompt, Template};
use lethe_recsys::samples::TaskSample;

mod prior;
mod states;
mod wire;

use states::OnDisk;
use wire::Wired;

const PACKING: Packing = Packing { max_tokens: 800 };

/// A line of progress on standard error.
pub fn eprint_line(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The model that `people` made-up people have taught; their adapter is kept in `folder`, where
/// [`Lab::load`] finds it, too.
pub fn taught(
    model: &Path,
    data: &Dataset,
    template: Template,
    people: usize,
    compute: Compute,
    folder: &Path,
) -> anyhow::Result<Box<dyn WeightSource>> {
    let adapter = prior::adapter(model, data, template, people, compute, folder)?;
    Ok(Box::new(Merged::new(open(model)?, adapter)?))
}

/// What decides the states of frozen layers, and what crosses the split.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Layers of the device; training gradients do not pass below its middle.
    pub split: SplitSpec,
    /// How many of the last layers are adapted.
    pub last_layers: usize,
    /// Number format over the split.
    pub wire: WireFormat,
    /// Arithmetic of products with frozen weights.
    pub compute: Compute,
    /// Made-up people that the base model has learned from; 0: it is as it was published.
    pub people: usize,
    /// What is adapted of each layer.
    pub targets: &'static [Projection],
}

/// TALLRec's q and v.
pub const QV: &[Projection] = &[Projection::Q, Projection::V];

/// Model, data and samples.
pub struct Lab {
    device: DeviceModel,
    middle: Segment,
    frozen: OnDisk,
    encoder: Encoder,
    setting: Setting,
    /// The data set.
    pub data: Dataset,
    /// Every sample of the experiment; identified by position.
    pub rows: Vec<TaskSample>,
    tokens: Vec<Option<Vec<u32>>>,
    /// Digest of the base model and of the arithmetic: what is computed with another has another
    /// name.
    pub under: String,
}

/// Prompts that are scored together ([`Lab::together`]).
pub struct Together {
    layout: Layout,
    /// States below the adapted layers, `[rows, hidden]`.
    hidden: Vec<f32>,
    /// Tokens that all of them begin with.
    pub shared: Vec<u32>,
}

/// Gradient of a mean loss, in the whole adapter's shape, and what it took.
pub struct Gradient {
    /// The gradient.
    pub grads: Adapter,
    /// The loss.
    pub loss: BatchLoss,
    /// Bytes over the split, both ways.
    pub crossed: u64,
}

impl Lab {
    /// Loads the model. `rows` is every sample that the experiment uses; `states` the folder of
    /// frozen layers' states.
    pub fn load(
        model: &Path,
        data: Dataset,
        template: Template,
        rows: Vec<TaskSample>,
        setting: Setting,
        states: &Path,
    ) -> anyhow::Result<Self> {
        let mut source = open(model)?;
        let mut base = vec![];
        if setting.people > 0 {
            let adapter = prior::adapter(
                model,
                &data,
                template.clone(),
                setting.people,
                setting.compute,
                states,
            )?;
            base = adapter.data.iter().flat_map(|v| v.to_le_bytes()).collect();
            source = Box::new(Merged::new(source, adapter)?);
        }
        let device = DeviceModel::load(source.as_ref(), setting.split, setting.compute)?;
        let middle = DeviceModel::load_middle(source.as_ref(), setting.split, setting.compute)?;
        let size = std::fs::metadata(model)
            .with_context(|| model.display().to_string())?
            .len()
            .to_le_bytes();
        let engine = format!(
            "{} {:?}",
            lethe_model::engine::kind_from_env(),
            setting.compute
        );
        let mut what = format!("{} {engine}", setting.last_layers);
        if setting.wire != WireFormat::F32 {
            what += &format!(" {:?} {:?}", setting.wire, setting.split);
        }
        let name = Digest::of(&[what.as_bytes(), &size, &base]).hex();
        Ok(Self {
            encoder: Encoder::new(source.tokenizer()?, template)?,
            tokens: vec![None; rows.len()],
            frozen: OnDisk::open(&states.join(&name[..16]))?,
            under: Digest::of(&[engine.as_bytes(), &size, &base]).hex(),
            device,
            middle,
            setting,
            data,
            rows,
        })
    }

    /// The shape of an adapter of this rank on the adapted layers, with TALLRec's scale of 2.
    pub fn shape(&self, rank: usize) -> Arc<AdapterShape> {
        let last_layers = Some(self.setting.last_layers);
        let recipe = LoraRecipe {
            rank,
            alpha: 2.0 * rank as f32,
            targets: self.setting.targets.to_vec(),
            last_layers,
        };
        AdapterShape::new(self.device.config(), &recipe, |_| true)
    }

    /// Tokens of a sample's prompt.
    pub fn ids(&mut self, s: usize) -> anyhow::Result<Vec<u32>> {
        if let Some(ids) = &self.tokens[s] {
            return Ok(ids.clone());
        }
        let ids = self.encoder.ids(&self.rows[s].prompt(&self.data))?;
        self.tokens[s] = Some(ids.clone());
        Ok(ids)
    }

    /// Tokens of any prompt.
    pub fn encode(&self, prompt: &Prompt) -> anyhow::Result<Vec<u32>> {
        Ok(self.encoder.ids(prompt)?)
    }

    /// Rows of the embedding, `[tokens, hidden]`: public, as the base model is.
    pub fn embed(&self, ids: &[u32]) -> anyhow::Result<Vec<f32>> {
        Ok(self.device.embed(ids)?)
    }

    /// The part of an adapter (or of a change of it) that is on the device: what it sends.
    pub fn edge(&self, adapter: &Adapter) -> Adapter {
        adapter.select(|l| self.on_device(l))
    }

    /// A sample for the trainer.
    pub fn sample(&mut self, s: usize) -> anyhow::Result<Sample> {
        Ok(Sample {
            ids: self.ids(s)?,
            label: self.rows[s].label,
        })
    }

    /// Several.
    pub fn samples(&mut self, all: &[usize]) -> anyhow::Result<Vec<Sample>> {
        all.iter().map(|s| self.sample(*s)).collect()
    }

    /// Computes what the layers below the adapted ones give for the `first` samples, so that no
    /// method is charged for it.
    pub fn prepare(&mut self, first: usize) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut missing = vec![];
        for s in 0..first.min(self.rows.len()) {
            let sample = self.sample(s)?;
            if !self.frozen.holds(&sample.ids) {
                missing.push(sample);
            }
        }
        self.score(
            &Adapter::from_data(&self.shape(1), vec![0.0; self.shape(1).len()])?,
            &missing,
        )?;
        let tokens: usize = self.tokens.iter().flatten().map(Vec::len).sum();
        let (n, new, s) = (
            first.min(self.rows.len()),
            missing.len(),
            started.elapsed().as_secs_f64(),
        );
        eprint_line(&format!(
            "{n} samples, {} tokens each; states of {new}: {s:.0} s",
            tokens / n.max(1)
        ));
        Ok(())
    }

    fn trainer(&self) -> Trainer<'_> {
        Trainer {
            device: &self.device,
            answers: self.encoder.answers,
            packing: PACKING,
            frozen: &self.frozen,
        }
    }

    fn on_device(&self, layer: usize) -> bool {
        self.setting
            .split
            .on_device(layer, self.device.config().layers)
    }

    fn wired(&self, adapter: &Adapter) -> Wired {
        let middle = LocalMiddle::new(self.middle.clone(), adapter.select(|l| !self.on_device(l)));
        Wired::new(middle, self.setting.wire, self.device.config().hidden)
    }

    /// Gradient of the mean loss of `rows`, towards a teacher's probabilities of yes when there is
    /// one. Samples of `paid` have the states of their frozen layers already; the others are
    /// charged for them and join.
    pub fn gradient(
        &self,
        adapter: &Adapter,
        rows: &[Sample],
        teacher: Option<&[f32]>,
        paid: &mut BTreeSet<Vec<u32>>,
    ) -> anyhow::Result<Gradient> {
        let mut middle = self.wired(adapter);
        let edge = adapter.select(|l| self.on_device(l));
        let mut edge_grads = vec![0.0; edge.data.len()];
        let loss = self.trainer().accumulate_towards(
            rows,
            teacher,
            &edge,
            &mut edge_grads,
            &mut middle,
        )?;
        let mut grads = Adapter::from_data(adapter.shape(), vec![0.0; adapter.data.len()])?;
        grads.paste(&Adapter::from_data(edge.shape(), edge_grads)?)?;
        let inner = adapter.select(|l| !self.on_device(l));
        grads.paste(&Adapter::from_data(inner.shape(), middle.grads().to_vec())?)?;
        let mut crossed = middle.crossed;
        for row in rows {
            if paid.insert(row.ids.clone()) {
                crossed += self.frozen_bytes(row.ids.len());
            }
        }
        Ok(Gradient {
            grads,
            loss,
            crossed,
        })
    }

    /// Bytes of a sample's frozen states over the split, both ways; none when the device runs all
    /// layers below the adapted.
    fn frozen_bytes(&self, tokens: usize) -> u64 {
        let width = self.device.config().hidden;
        let first = self.device.config().layers - self.setting.last_layers;
        let SplitSpec { k_in, k_out } = self.setting.split;
        if first <= k_in || k_in + k_out >= self.device.config().layers {
            return 0;
        }
        2 * Payload::encode(&vec![0.0; tokens * width], width, self.setting.wire)
            .bytes
            .len() as u64
    }

    /// Answer logits `[no, yes]`, from the states of frozen layers.
    pub fn score(&self, adapter: &Adapter, rows: &[Sample]) -> anyhow::Result<Vec<[f32; 2]>> {
        let edge = adapter.select(|l| self.on_device(l));
        Ok(self
            .trainer()
            .score(rows, &edge, &mut self.wired(adapter))?)
    }

    /// The same by the whole pass: what a query costs.
    pub fn score_whole(
        &self,
        adapter: &Adapter,
        rows: Vec<Sample>,
    ) -> anyhow::Result<Vec<[f32; 2]>> {
        let sequences: Vec<Vec<u32>> = rows.into_iter().map(|s| s.ids).collect();
        let (layout, ids) = Layout::pack(&sequences);
        let edge = adapter.select(|l| self.on_device(l));
        Ok(self.device.score(
            &layout,
            &ids,
            self.encoder.answers,
            Some(&edge),
            &mut self.wired(adapter),
        )?)
    }

    /// [`Self::last_hidden`] by the whole pass.
    pub fn last_hidden_whole(&self, rows: Vec<Sample>) -> anyhow::Result<Vec<Vec<f32>>> {
        let sequences: Vec<Vec<u32>> = rows.into_iter().map(|s| s.ids).collect();
        let (layout, ids) = Layout::pack(&sequences);
        let untuned = Adapter::from_data(&self.shape(1), vec![0.0; self.shape(1).len()])?;
        let hidden = self.device.embed(&ids)?;
        let last = self
            .device
            .last_from(&layout, hidden, 0, None, &mut self.wired(&untuned))?;
        Ok(last
            .chunks_exact(self.device.config().hidden)
            .map(<[f32]>::to_vec)
            .collect())
    }

    /// Rows of the output table for no and yes, `[hidden]` each: their products with a last hidden
    /// state are the answers' logits.
    pub fn answer_rows(&self) -> anyhow::Result<[Vec<f32>; 2]> {
        let [no, yes] = self.encoder.answers;
        Ok([
            self.device.head().rows(&[no])?,
            self.device.head().rows(&[yes])?,
        ])
    }

    /// Layers of the model.
    pub fn layers(&self) -> usize {
        self.device.config().layers
    }

    /// Where a prompt lies, by the untuned layers of the device, `[hidden]`.
    pub fn locate(&self, ids: &[u32]) -> anyhow::Result<Vec<f32>> {
        Ok(self.device.locate(ids)?)
    }

    /// What the layers below the adapted ones give for prompts that are scored together: what they
    /// begin with alike is computed once.
    pub fn together(&self, prompts: &[Prompt]) -> anyhow::Result<Together> {
        let ids: Vec<Vec<u32>> = prompts
            .iter()
            .map(|p| self.encode(p))
            .collect::<anyhow::Result<_>>()?;
        let (layout, packed) = Layout::pack(&ids);
        let untuned = Adapter::from_data(&self.shape(1), vec![0.0; self.shape(1).len()])?;
        let cut = self.shape(1).first_trained();
        let mut middle = self.wired(&untuned);
        let hidden = self.device.frozen(&layout, &packed, cut, &mut middle)?;
        let shared = match layout.prefix as usize {
            0 => ids.into_iter().next().unwrap_or_default(),
            n => packed[..n].to_vec(),
        };
        Ok(Together {
            layout,
            hidden,
            shared,
        })
    }

    /// Log-odds of a like for each of them.
    pub fn odds(&self, adapter: &Adapter, of: &Together) -> anyhow::Result<Vec<f32>> {
        let edge = adapter.select(|l| self.on_device(l));
        let logits = self.device.score_from(
            &of.layout,
            of.hidden.clone(),
            adapter.shape().first_trained(),
            self.encoder.answers,
            Some(&edge),
            &mut self.wired(adapter),
        )?;
        Ok(logits.iter().map(|l| l[1] - l[0]).collect())
    }

    /// Last hidden states by the untuned model, `[hidden]` each.
    pub fn last_hidden(&self, rows: &[Sample]) -> anyhow::Result<Vec<Vec<f32>>> {
        let untuned = Adapter::from_data(&self.shape(1), vec![0.0; self.shape(1).len()])?;
        Ok(self.trainer().last_hidden(
            rows,
            self.shape(1).first_trained(),
            &mut self.wired(&untuned),
        )?)
    }
}
