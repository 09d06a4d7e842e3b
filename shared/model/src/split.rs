//! The U-shaped split (PPLR / FELLRec, arXiv 2402.09959): the device holds the embedding, the first
//! `k_in` and the last `k_out` layers, norm and head; somebody else holds the middle. In a pass
//! only hidden states and their gradients cross the boundary; tokens, labels and logits do not.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::config::ModelConfig;
use crate::embedding::Table;
use crate::engine::Engine;
use crate::kernels::gemm::{Mat, Threads, matmul};
use crate::kernels::norm::{rms_norm, rms_norm_backward};
use crate::kernels::panels::Compute;
use crate::layout::Layout;
use crate::lora::Adapter;
use crate::segment::{Segment, Tape};
use crate::source::WeightSource;

/// How many layers the device holds at each end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitSpec {
    /// First layers on the device.
    pub k_in: usize,
    /// Last layers on the device.
    pub k_out: usize,
}

impl SplitSpec {
    /// Whether `layer` of a model with `layers` layers is on the device.
    pub fn on_device(&self, layer: usize, layers: usize) -> bool {
        layer < self.k_in || layer >= layers - self.k_out
    }

    /// Whether it fits a model with `layers` layers.
    ///
    /// # Errors
    /// [`ModelError::Shape`]: the device would have more layers than there are.
    pub fn check(&self, layers: usize) -> Result<(), ModelError> {
        if self.k_in + self.k_out > layers {
            return Err(ModelError::Shape(format!(
                "a split of {} + {} device layers does not fit a model of {layers}",
                self.k_in, self.k_out
            )));
        }
        Ok(())
    }
}

/// Which layers of a middle a forward pass runs, and what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// All; nothing is kept.
    Score,
    /// Those below the first trained layer; nothing is kept.
    Frozen,
    /// Those from the first trained layer on; a [`Middle::backward`] follows.
    Train,
    /// Those from the first trained layer on; nothing is kept.
    Above,
}

/// Whoever runs the middle layers: this process, or the coordinator over a connection.
pub trait Middle {
    /// Hidden states after the layers of `stage`, given those before them.
    fn forward(
        &mut self,
        layout: &Layout,
        hidden: Vec<f32>,
        stage: Stage,
    ) -> Result<Vec<f32>, ModelError>;

    /// From the gradient after the middle to the gradient before its trained layers, for the last
    /// training forward. What comes back is not read when no layer below the middle is trained: it
    /// may be empty then.
    fn backward(&mut self, grad: Vec<f32>) -> Result<Vec<f32>, ModelError>;
}

/// The middle in this process, for scoring only.
impl Middle for (&mut Segment, Option<&Adapter>) {
    fn forward(
        &mut self,
        layout: &Layout,
        hidden: Vec<f32>,
        stage: Stage,
    ) -> Result<Vec<f32>, ModelError> {
        if stage != Stage::Score {
            return Err(ModelError::Shape(
                "this middle scores only; use LocalMiddle to train".into(),
            ));
        }
        self.0.forward(layout, hidden, self.1)
    }

    fn backward(&mut self, _grad: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Err(ModelError::Shape(
            "this middle scores only; use LocalMiddle to train".into(),
        ))
    }
}

/// The middle in this process, with its adapter and the gradient of it.
#[derive(Debug)]
pub struct LocalMiddle {
    segment: Segment,
    frozen: Segment,
    trained: Segment,
    /// Adapter on the middle layers.
    pub adapter: Adapter,
    /// Gradient collected by backward passes, flat in the adapter's shape.
    pub grads: Vec<f32>,
    tape: Option<Tape>,
}

impl LocalMiddle {
    /// A middle that trains `adapter`.
    pub fn new(segment: Segment, adapter: Adapter) -> Self {
        let grads = vec![0.0; adapter.data.len()];
        let cut = adapter.shape().first_trained();
        let (frozen, trained) = (segment.part(0..cut), segment.part(cut..usize::MAX));
        Self {
            segment,
            frozen,
            trained,
            adapter,
            grads,
            tape: None,
        }
    }
}

impl LocalMiddle {
    /// Rows of the training forward that waits for its backward.
    pub fn pending_rows(&self) -> Option<usize> {
        self.tape.as_ref().map(Tape::rows)
    }

    /// Drops what a training forward kept.
    pub fn drop_tape(&mut self) {
        self.tape = None;
    }

    /// One plain gradient step on the collected gradient, which is cleared.
    pub fn descend(&mut self, lr: f32) {
        descend(&mut self.adapter.data, &mut self.grads, lr);
    }

    /// The layers it runs.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }
}

impl Middle for LocalMiddle {
    fn forward(
        &mut self,
        layout: &Layout,
        hidden: Vec<f32>,
        stage: Stage,
    ) -> Result<Vec<f32>, ModelError> {
        match stage {
            Stage::Score => self.segment.forward(layout, hidden, Some(&self.adapter)),
            Stage::Frozen => self.frozen.forward(layout, hidden, None),
            Stage::Above => self.trained.forward(layout, hidden, Some(&self.adapter)),
            Stage::Train => {
                let (out, tape) = self.trained.forward_train(layout, hidden, &self.adapter)?;
                self.tape = Some(tape);
                Ok(out)
            }
        }
    }

    fn backward(&mut self, grad: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        let tape = self
            .tape
            .take()
            .ok_or_else(|| ModelError::Shape("backward without a training forward".into()))?;
        self.trained
            .backward(&tape, grad, &self.adapter, &mut self.grads)
    }
}

/// `theta -= lr * grads`, then `grads = 0`: the local step of federated training, the same on both
/// sides of the split.
pub fn descend(theta: &mut [f32], grads: &mut [f32], lr: f32) {
    theta
        .iter_mut()
        .zip(grads.iter())
        .for_each(|(t, g)| *t -= lr * g);
    grads.fill(0.0);
}

/// The device's part of the model. Cloning shares the weights.
#[derive(Clone, Debug)]
pub struct DeviceModel {
    bottom: Segment,
    top: Segment,
    norm: Arc<Vec<f32>>,
    embedding: Arc<Table>,
    head: Arc<Table>,
}

/// Loss and count of one training batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchLoss {
    /// Sum of the samples' losses, in nats.
    pub sum: f64,
    /// Samples.
    pub samples: usize,
}

impl DeviceModel {
    /// Loads the device's part, on the engine that the environment variable `LETHE_DEVICE` names.
    pub fn load(
        source: &dyn WeightSource,
        spec: SplitSpec,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        Self::load_on(&Engine::from_env()?, source, spec, compute)
    }

    /// Loads the device's part on a certain engine.
    ///
    /// # Errors
    /// As [`Segment::load_on`]; [`ModelError::Shape`] if the split does not fit the model.
    pub fn load_on(
        engine: &Engine,
        source: &dyn WeightSource,
        spec: SplitSpec,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let layers = source.config().layers;
        spec.check(layers)?;
        let embedding = Arc::new(source.embedding()?);
        let head = if source.config().tied_head {
            embedding.clone()
        } else {
            Arc::new(source.head()?)
        };
        Ok(Self {
            bottom: Segment::load_on(engine, source, 0..spec.k_in, compute)?,
            top: Segment::load_on(engine, source, layers - spec.k_out..layers, compute)?,
            norm: Arc::new(source.final_norm()?),
            embedding,
            head,
        })
    }

    /// Loads the middle that belongs to `spec`, on the engine that `LETHE_DEVICE` names.
    pub fn load_middle(
        source: &dyn WeightSource,
        spec: SplitSpec,
        compute: Compute,
    ) -> Result<Segment, ModelError> {
        Self::load_middle_on(&Engine::from_env()?, source, spec, compute)
    }

    /// Loads the middle that belongs to `spec` on a certain engine.
    ///
    /// # Errors
    /// As [`Self::load_on`].
    pub fn load_middle_on(
        engine: &Engine,
        source: &dyn WeightSource,
        spec: SplitSpec,
        compute: Compute,
    ) -> Result<Segment, ModelError> {
        spec.check(source.config().layers)?;
        Segment::load_on(
            engine,
            source,
            spec.k_in..source.config().layers - spec.k_out,
            compute,
        )
    }

    /// What runs its layers.
    pub fn engine(&self) -> &Engine {
        self.bottom.engine()
    }

    /// The whole model's shape.
    pub fn config(&self) -> &ModelConfig {
        self.bottom.config()
    }

    /// The split this part was loaded for.
    pub fn split(&self) -> SplitSpec {
        SplitSpec {
            k_in: self.bottom.range().len(),
            k_out: self.top.range().len(),
        }
    }

    /// Whether anybody else has a layer. If not, nothing crosses: no middle is ever asked.
    fn has_middle(&self) -> bool {
        self.bottom.range().end < self.top.range().start
    }

    /// Arithmetic of its products.
    pub fn compute(&self) -> Compute {
        self.bottom.compute()
    }

    /// Memory of the weights, in bytes.
    pub fn weight_bytes(&self) -> usize {
        let head = if Arc::ptr_eq(&self.head, &self.embedding) {
            0
        } else {
            self.head.bytes()
        };
        self.bottom.weight_bytes() + self.top.weight_bytes() + self.embedding.bytes() + head
    }

    /// About how much memory a training pass over `tokens` tokens needs beside the weights, in
    /// bytes, when layers from `first_trained` on are adapted: what each trained layer of the
    /// device keeps for its backward pass, and the working buffers of one layer in both directions.
    /// An upper bound for the kernels; `tests/memory.rs` measures it.
    pub fn training_bytes(&self, tokens: usize, first_trained: usize) -> usize {
        let c = self.config();
        let kept = c.kept_values();
        let trained = [self.bottom.range(), self.top.range()]
            .iter()
            .map(|r| r.clone().filter(|l| *l >= first_trained).count())
            .sum::<usize>();
        // One layer's forward and backward work with a few times as much, and buffers are kept for
        // the next layer.
        4 * tokens * (trained * kept + 6 * kept + 4 * c.hidden)
    }

    /// Embedding rows of `ids`: the hidden states before layer 0.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        self.embedding.rows(ids)
    }

    /// The device's bottom layers.
    pub fn bottom(&self) -> &Segment {
        &self.bottom
    }

    /// The device's top layers.
    pub fn top(&self) -> &Segment {
        &self.top
    }

    /// The output table.
    pub fn head(&self) -> &Table {
        &self.head
    }

    /// The final norm over rows of hidden states.
    pub fn final_norm(&self, hidden: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; hidden.len()];
        rms_norm(hidden, &self.norm, self.config().rms_eps, &mut out);
        out
    }

    /// Logits `[rows, vocab]` of normed rows.
    pub fn logits(&self, normed: &[f32]) -> Result<Vec<f32>, ModelError> {
        let (d, v) = (self.config().hidden, self.head.vocab());
        let rows = normed.len() / d;
        let mut out = vec![0.0; rows * v];
        for start in (0..v).step_by(4096) {
            let ids: Vec<u32> = (start..(start + 4096).min(v)).map(|i| i as u32).collect();
            let head = self.head.rows(&ids)?;
            let head = Mat::new(&head, ids.len(), d, d);
            matmul(
                &mut out[start..],
                v,
                false,
                1.0,
                Mat::new(normed, rows, d, d),
                head.t(),
                Threads::Pool,
            );
        }
        Ok(out)
    }

    /// Where a sample lies, for APA's weighting: the mean over a sequence's tokens of the untuned
    /// bottom layers' output, `[hidden]`. Runs on the device alone.
    pub fn locate(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let (layout, ids) = Layout::pack(&[ids.to_vec()]);
        let h = self.bottom.forward(&layout, self.embed(&ids)?, None)?;
        let d = self.config().hidden;
        let mut mean = vec![0.0f32; d];
        h.chunks_exact(d)
            .for_each(|row| mean.iter_mut().zip(row).for_each(|(m, v)| *m += v));
        mean.iter_mut().for_each(|m| *m /= layout.rows() as f32);
        Ok(mean)
    }

    /// Last hidden state of a prompt by the untuned model, after the final norm, `[hidden]`.
    pub fn last_hidden(
        &self,
        ids: &[u32],
        middle: &mut dyn Middle,
    ) -> Result<Vec<f32>, ModelError> {
        let (layout, ids) = Layout::pack(&[ids.to_vec()]);
        self.last_from(&layout, self.embed(&ids)?, 0, None, middle)
    }

    /// Last hidden states of sequences after the final norm, `[sequences, hidden]`, from the states
    /// before layer `cut`, `[rows, hidden]` ([`Self::frozen`]).
    ///
    /// When `cut` lies among the middle layers it must be the first trained one: the middle starts
    /// there ([`Stage::Above`]).
    ///
    /// # Errors
    /// Those of the middle, which may not offer that.
    pub fn last_from(
        &self,
        layout: &Layout,
        hidden: Vec<f32>,
        cut: usize,
        adapter: Option<&Adapter>,
        middle: &mut dyn Middle,
    ) -> Result<Vec<f32>, ModelError> {
        let (first, last) = (self.bottom.range().end, self.top.range().start);
        let mut h = self
            .bottom
            .part(cut..usize::MAX)
            .forward(layout, hidden, adapter)?;
        if self.has_middle() && cut < last {
            h = middle.forward(
                layout,
                h,
                if cut > first {
                    Stage::Above
                } else {
                    Stage::Score
                },
            )?;
        }
        Ok(self.final_norm(
            &self
                .top
                .part(cut..usize::MAX)
                .forward_last(layout, h, adapter)?,
        ))
    }

    /// The two answer logits `[no, yes]` at the last token of each sequence.
    pub fn score(
        &self,
        layout: &Layout,
        ids: &[u32],
        answers: [u32; 2],
        adapter: Option<&Adapter>,
        middle: &mut dyn Middle,
    ) -> Result<Vec<[f32; 2]>, ModelError> {
        self.score_from(layout, self.embed(ids)?, 0, answers, adapter, middle)
    }

    /// Hidden states before layer `cut`, `[rows, hidden]`: the layers below are frozen, so that
    /// these never change. `middle` runs its part of them ([`Stage::Frozen`]).
    pub fn frozen(
        &self,
        layout: &Layout,
        ids: &[u32],
        cut: usize,
        middle: &mut dyn Middle,
    ) -> Result<Vec<f32>, ModelError> {
        let mut h = self
            .bottom
            .part(0..cut)
            .forward(layout, self.embed(ids)?, None)?;
        if self.has_middle() && cut > self.bottom.range().end {
            h = middle.forward(layout, h, Stage::Frozen)?;
        }
        self.top.part(0..cut).forward(layout, h, None)
    }

    /// [`Self::score`] from the states before layer `cut`; as [`Self::last_from`].
    pub fn score_from(
        &self,
        layout: &Layout,
        hidden: Vec<f32>,
        cut: usize,
        answers: [u32; 2],
        adapter: Option<&Adapter>,
        middle: &mut dyn Middle,
    ) -> Result<Vec<[f32; 2]>, ModelError> {
        let head = self.head.rows(&answers)?;
        Ok(self.answer_logits(
            &self.last_from(layout, hidden, cut, adapter, middle)?,
            &head,
        ))
    }

    /// One forward and backward pass of the answer loss: cross-entropy over the two answer logits
    /// at the last token (`labels`: true is yes). Gradients of `scale * loss` are added to `grads`
    /// (flat, in `adapter`'s shape) and collected by `middle`.
    pub fn train_batch(
        &self,
        batch: &Batch<'_>,
        adapter: &Adapter,
        grads: &mut [f32],
        middle: &mut dyn Middle,
    ) -> Result<BatchLoss, ModelError> {
        let h = self.frozen(
            batch.layout,
            batch.ids,
            adapter.shape().first_trained(),
            middle,
        )?;
        self.train_from(batch, h, adapter, grads, middle)
    }

    /// [`Self::train_batch`] from the states before the first trained layer, `[rows, hidden]`
    /// ([`Self::frozen`]).
    pub fn train_from(
        &self,
        batch: &Batch<'_>,
        hidden: Vec<f32>,
        adapter: &Adapter,
        grads: &mut [f32],
        middle: &mut dyn Middle,
    ) -> Result<BatchLoss, ModelError> {
        let (layout, cut) = (batch.layout, adapter.shape().first_trained());
        let (bottom, top) = (
            self.bottom.part(cut..usize::MAX),
            self.top.part(cut..usize::MAX),
        );
        let (mut h, bottom_tape) = bottom.forward_train(layout, hidden, adapter)?;
        let middle_trains = self.has_middle() && cut < self.top.range().start;
        if middle_trains {
            h = middle.forward(layout, h, Stage::Train)?;
        }
        let (last, top_tape) = top.forward_last_train(layout, h, adapter)?;
        let (loss, grad) = self.answer_loss(batch, &last)?;
        let mut grad = top.backward_last(&top_tape, grad, adapter, grads)?;
        if middle_trains {
            grad = middle.backward(grad)?;
        }
        if !bottom.range().is_empty() {
            bottom.backward(&bottom_tape, grad, adapter, grads)?;
        }
        Ok(loss)
    }

    fn answer_logits(&self, normed: &[f32], head: &[f32]) -> Vec<[f32; 2]> {
        let d = self.config().hidden;
        let dot = |x: &[f32], w: &[f32]| {
            x.iter()
                .zip(w)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum::<f64>() as f32
        };
        normed
            .chunks_exact(d)
            .map(|x| [dot(x, &head[..d]), dot(x, &head[d..])])
            .collect()
    }

    /// Loss, and its gradient with respect to the last rows.
    fn answer_loss(
        &self,
        batch: &Batch<'_>,
        last: &[f32],
    ) -> Result<(BatchLoss, Vec<f32>), ModelError> {
        let d = self.config().hidden;
        if batch.labels.len() != batch.layout.sequences() {
            return Err(ModelError::Shape(
                "a batch needs one label per sequence".into(),
            ));
        }
        let head = self.head.rows(&batch.answers)?;
        let logits = self.answer_logits(&self.final_norm(last), &head);
        let mut loss = BatchLoss {
            sum: 0.0,
            samples: logits.len(),
        };
        let mut d_normed = vec![0.0; last.len()];
        for ((n, l), dn) in logits.iter().enumerate().zip(d_normed.chunks_exact_mut(d)) {
            let (sum, toward_yes) = batch.labels.loss(n, l, batch.scale);
            loss.sum += sum;
            for i in 0..d {
                dn[i] = toward_yes * (head[d + i] - head[i]);
            }
        }
        let mut d_last = vec![0.0; last.len()];
        rms_norm_backward(
            last,
            &self.norm,
            self.config().rms_eps,
            &d_normed,
            &mut d_last,
        );
        Ok((loss, d_last))
    }
}

/// What the sequences of a batch are to answer.
#[derive(Clone, Copy, Debug)]
pub enum Labels<'a> {
    /// Yes or no.
    Hard(&'a [bool]),
    /// The probability of yes that a teacher gives.
    Soft(&'a [f32]),
}

impl Labels<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Hard(l) => l.len(),
            Self::Soft(t) => t.len(),
        }
    }

    /// Cross-entropy of an answer's logits `[no, yes]`, and `scale` times its derivative towards
    /// yes.
    fn loss(&self, i: usize, l: &[f32; 2], scale: f32) -> (f64, f32) {
        // log(1 + e^-margin) without overflow; its derivative is -sigmoid(-margin).
        let softplus =
            |margin: f32| f64::from((-margin).max(0.0)) + (-f64::from(margin).abs()).exp().ln_1p();
        match self {
            Self::Hard(labels) => {
                let margin = if labels[i] { l[1] - l[0] } else { l[0] - l[1] };
                let g = scale / (1.0 + margin.exp());
                (softplus(margin), if labels[i] { -g } else { g })
            }
            Self::Soft(targets) => {
                let (margin, t) = (l[1] - l[0], targets[i]);
                let loss = f64::from(t) * softplus(margin) + f64::from(1.0 - t) * softplus(-margin);
                (loss, scale * (1.0 / (1.0 + (-margin).exp()) - t))
            }
        }
    }
}

/// A packed training batch.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// How the sequences lie.
    pub layout: &'a Layout,
    /// Tokens in row order.
    pub ids: &'a [u32],
    /// The answer of each sequence.
    pub labels: Labels<'a>,
    /// Token ids of `[no, yes]`.
    pub answers: [u32; 2],
    /// Weight of each sample's loss in the gradient, usually one over the samples of the optimiser
    /// step.
    pub scale: f32,
}
