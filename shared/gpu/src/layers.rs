//! Layers on the GPU, and the passes over them.

use std::sync::Arc;

use crate::device::{Buf, Gpu};
use crate::error::{GpuError, same};
use crate::layer::{Inputs, Layer, LayerTape};
use crate::lora::{Adapter, Lora, PairGrad};
use crate::rows::{Chosen, Rows};
use crate::shape::Shape;
use crate::weights::LayerWeights;
use crate::work::Work;

/// Some consecutive layers of a model on a GPU. A clone shares the weights.
#[derive(Clone, Debug)]
pub struct Layers {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) shape: Shape,
    pub(crate) layers: Vec<Arc<Layer>>,
}

/// What a forward keeps for its backward, on the GPU.
#[derive(Debug)]
pub struct Tape {
    inputs: Inputs,
    layers: Vec<LayerTape>,
}

/// Called with each layer's index and output, `[rows, hidden]`.
pub type See<'a> = &'a mut dyn FnMut(usize, &[f32]);

impl Layers {
    /// Uploads the layers.
    ///
    /// # Errors
    /// [`GpuError::Shape`] for a matrix that does not fit `shape`, [`GpuError::TooLarge`] for one
    /// that no binding takes, [`GpuError::OutOfMemory`], [`GpuError::Lost`].
    pub fn load(
        gpu: Arc<Gpu>,
        shape: Shape,
        layers: &[LayerWeights<'_>],
    ) -> Result<Self, GpuError> {
        shape.check()?;
        let load = |w| Layer::load(&gpu, &shape, w).map(Arc::new);
        let layers = layers.iter().map(load).collect::<Result<_, _>>()?;
        Ok(Self { gpu, shape, layers })
    }

    /// Uploads one more layer, which follows the others.
    ///
    /// # Errors
    /// As [`Self::load`]. The others are unchanged then.
    pub fn push(&mut self, weights: &LayerWeights<'_>) -> Result<(), GpuError> {
        let layer = Layer::load(&self.gpu, &self.shape, weights)?;
        self.gpu.flush()?;
        self.layers.push(Arc::new(layer));
        Ok(())
    }

    /// The layers of `range`, which shares their weights; no layers where there are none.
    pub fn part(&self, range: std::ops::Range<usize>) -> Self {
        Self {
            gpu: self.gpu.clone(),
            shape: self.shape,
            layers: self.layers.get(range).unwrap_or_default().to_vec(),
        }
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there is no layer.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|l| l.bytes()).sum()
    }

    /// The GPU that they are on.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Runs `x` (`[rows, hidden]`) through all layers; `see` gets each layer's output after the
    /// pass.
    ///
    /// # Errors
    /// [`GpuError::Shape`] for arguments that do not fit each other, and those of the device.
    pub fn forward(
        &self,
        rows: &Rows<'_>,
        lora: Option<&Lora<'_>>,
        x: &[f32],
        see: Option<See<'_>>,
    ) -> Result<Vec<f32>, GpuError> {
        let mut work = Work::new(&self.gpu)?;
        let inputs = self.inputs(&work, rows, lora, false)?;
        let mut x = self.start(&work, &inputs, x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&mut work, &inputs, i, x, None)?.y;
            if see.is_some() {
                work.read(&x)?;
            }
        }
        if see.is_none() || self.is_empty() {
            work.read(&x)?;
        }
        let mut outputs = work.finish()?;
        if let Some(see) = see.filter(|_| !self.is_empty()) {
            outputs.iter().enumerate().for_each(|(i, y)| see(i, y));
        }
        result(outputs.pop())
    }

    /// Like [`Self::forward`], but only each sequence's last row comes out
    /// (`[sequences, hidden]`, see [`Rows::last_rows`]): the last layer's MLP runs for those only.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_last(
        &self,
        rows: &Rows<'_>,
        lora: Option<&Lora<'_>>,
        x: &[f32],
    ) -> Result<Vec<f32>, GpuError> {
        let mut work = Work::new(&self.gpu)?;
        let inputs = self.inputs(&work, rows, lora, true)?;
        let x = self.start(&work, &inputs, x)?;
        let y = self.record(&mut work, &inputs, x, None)?;
        work.read(&y)?;
        result(work.finish()?.pop())
    }

    /// Forward that keeps what [`Self::backward`] needs; with `last`, only the last rows come out,
    /// as in [`Self::forward_last`].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_train(
        &self,
        rows: &Rows<'_>,
        lora: Option<&Lora<'_>>,
        x: &[f32],
        last: bool,
    ) -> Result<(Vec<f32>, Tape), GpuError> {
        let mut work = Work::new(&self.gpu)?;
        let inputs = self.inputs(&work, rows, lora, last)?;
        let x = self.start(&work, &inputs, x)?;
        let mut layers = Vec::with_capacity(self.len());
        let y = self.record(&mut work, &inputs, x, Some(&mut layers))?;
        work.read(&y)?;
        let y = result(work.finish()?.pop())?;
        Ok((y, Tape { inputs, layers }))
    }

    /// Backward from the gradient of [`Self::forward_train`]'s output. Returns the gradient of its
    /// input (`[rows, hidden]`) and adds that of each pair, in their order, to `grads`.
    ///
    /// # Errors
    /// As [`Self::forward`]; also for a tape of other layers. `grads` are unchanged then.
    pub fn backward(
        &self,
        tape: &Tape,
        dy: &[f32],
        grads: &mut [PairGrad<'_>],
    ) -> Result<Vec<f32>, GpuError> {
        same("layers of the tape", self.len(), tape.layers.len())?;
        let inputs = &tape.inputs;
        let outputs = inputs.last.as_ref().map_or(inputs.rows.count, |c| c.count);
        same(
            "gradient of the output",
            outputs * self.shape.hidden,
            dy.len(),
        )?;
        match &inputs.adapter {
            Some(adapter) => adapter.check_grads(grads)?,
            None => same("gradients of pairs", 0, grads.len())?,
        }
        let mut work = Work::new(&self.gpu)?;
        let mut dx = work.upload(bytemuck::cast_slice(dy))?;
        let pairs = work.take(inputs.adapter.as_ref().map_or(1, Adapter::words))?;
        let stages = self.layers.iter().zip(&tape.layers).enumerate();
        for (i, (layer, tape)) in stages.rev() {
            let chosen = inputs.last.as_ref().filter(|_| i + 1 == self.len());
            dx = layer.backward(&mut work, inputs, i, tape, dx, chosen, &pairs)?;
        }
        work.read(&pairs)?;
        work.read(&dx)?;
        let mut read = work.finish()?;
        let dx = result(read.pop())?;
        let pairs = result(read.pop())?;
        let mut rest = &pairs[..];
        for grad in grads {
            rest = add(grad.a, rest);
            rest = add(grad.b, rest);
        }
        Ok(dx)
    }

    /// Records all layers; returns the last's output, and keeps the tapes if there is a place.
    fn record(
        &self,
        work: &mut Work<'_>,
        inputs: &Inputs,
        mut x: Buf,
        mut tapes: Option<&mut Vec<LayerTape>>,
    ) -> Result<Buf, GpuError> {
        for (i, layer) in self.layers.iter().enumerate() {
            let chosen = inputs.last.as_ref().filter(|_| i + 1 == self.len());
            let stage = layer.forward(work, inputs, i, x, chosen)?;
            x = stage.y;
            if let Some(tapes) = &mut tapes {
                tapes.push(stage.tape);
            }
        }
        Ok(x)
    }

    fn inputs(
        &self,
        work: &Work<'_>,
        rows: &Rows<'_>,
        lora: Option<&Lora<'_>>,
        last: bool,
    ) -> Result<Inputs, GpuError> {
        rows.check(&self.shape)?;
        if last && self.is_empty() {
            return Err(GpuError::shape("layers", "at least one for last rows", 0));
        }
        let last = last.then(|| Chosen::new(work, &rows.last_rows(), rows.count()));
        Ok(Inputs {
            shape: self.shape,
            rows: rows.upload(work)?,
            adapter: self.adapter(work, lora)?,
            last: last.transpose()?,
        })
    }

    pub(crate) fn adapter(
        &self,
        work: &Work<'_>,
        lora: Option<&Lora<'_>>,
    ) -> Result<Option<Adapter>, GpuError> {
        let lora = lora.filter(|l| !l.pairs.is_empty());
        lora.map(|l| Adapter::upload(work, &self.shape, self.len(), l))
            .transpose()
    }

    pub(crate) fn start(
        &self,
        work: &Work<'_>,
        inputs: &Inputs,
        x: &[f32],
    ) -> Result<Buf, GpuError> {
        same("input", inputs.rows.count * self.shape.hidden, x.len())?;
        work.upload(bytemuck::cast_slice(x))
    }
}

/// A result that was asked for.
pub(crate) fn result(read: Option<Vec<f32>>) -> Result<Vec<f32>, GpuError> {
    read.ok_or_else(|| GpuError::Driver("a result is missing".into()))
}

/// Adds the start of `from` to `to`; returns the rest.
fn add<'a>(to: &mut [f32], from: &'a [f32]) -> &'a [f32] {
    let (head, rest) = from.split_at(to.len());
    for (t, f) in to.iter_mut().zip(head) {
        *t += f;
    }
    rest
}
