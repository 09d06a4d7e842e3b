//! A run of consecutive layers: the unit that a device or the coordinator hosts.

use std::ops::Range;
use std::sync::Arc;

use crate::ModelError;
pub use crate::backend::Part;
use crate::backend::{First, Kept, Layers};
use crate::config::ModelConfig;
use crate::engine::Engine;
use crate::kernels::panels::Compute;
use crate::layout::Layout;
use crate::lora::Adapter;
use crate::source::WeightSource;

/// Layers `range` of a model, with their frozen weights. Cloning shares the weights.
#[derive(Clone, Debug)]
pub struct Segment {
    config: Arc<ModelConfig>,
    range: Range<usize>,
    compute: Compute,
    engine: Engine,
    layers: Arc<dyn Layers>,
}

/// What a forward pass keeps for the backward pass of the same batch.
#[derive(Debug)]
pub struct Tape {
    layout: Layout,
    range: Range<usize>,
    /// Only the last rows came out.
    last: bool,
    kept: Kept,
}

impl Tape {
    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.layout.rows()
    }
}

/// Keys and values of the tokens of one sequence so far.
#[derive(Debug)]
pub struct Cache {
    kept: Kept,
    range: Range<usize>,
    rows: usize,
}

impl Segment {
    /// Loads layers `range` for products in `compute` arithmetic, on the engine that the
    /// environment variable `LETHE_DEVICE` names.
    ///
    /// # Errors
    /// As [`Self::load_on`], and of [`Engine::from_env`].
    pub fn load(
        source: &dyn WeightSource,
        range: Range<usize>,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        Self::load_on(&Engine::from_env()?, source, range, compute)
    }

    /// Loads layers `range` on a certain engine.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if the model has fewer layers, [`ModelError::Device`] if the engine
    /// does not compute so, and what reading the source gives.
    pub fn load_on(
        engine: &Engine,
        source: &dyn WeightSource,
        range: Range<usize>,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let config = Arc::new(source.config().clone());
        if range.end > config.layers {
            return Err(ModelError::Shape(format!(
                "layers {range:?} of a model with {}",
                config.layers
            )));
        }
        let layers = engine.backend().load(source, range.clone(), compute)?;
        Ok(Self {
            config,
            range,
            compute,
            engine: engine.clone(),
            layers,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Arithmetic of its products.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// What runs the layers.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Which layers these are.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Those of its layers that are in `layers` (none, perhaps), with the same weights.
    pub fn part(&self, layers: Range<usize>) -> Self {
        let clamp = |l: usize| l.clamp(self.range.start, self.range.end);
        let (start, end) = (
            clamp(layers.start),
            clamp(layers.end).max(clamp(layers.start)),
        );
        let layers = self
            .layers
            .part(start - self.range.start..end - self.range.start);
        Self {
            range: start..end,
            layers,
            ..self.clone()
        }
    }

    /// Memory of the weights, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.layers.bytes()
    }

    /// Memory that a training forward of `rows` rows keeps for its backward, in bytes.
    pub fn tape_bytes(&self, rows: usize) -> usize {
        size_of::<f32>() * rows * self.range.len() * self.config.kept_values()
    }

    fn check(&self, layout: &Layout, x: &[f32]) -> Result<(), ModelError> {
        layout
            .check(x.len(), self.config.max_positions)
            .map_err(ModelError::Shape)?;
        let want = layout.rows() * self.config.hidden;
        if x.len() != want {
            return Err(ModelError::Shape(format!(
                "{} hidden values were given for a batch of {want}",
                x.len()
            )));
        }
        Ok(())
    }

    fn trains(&self) -> Result<(), ModelError> {
        if self.compute == Compute::Int8 {
            return Err(ModelError::Shape(
                "these layers were loaded for scoring in int8: load them in f32 or bf16".into(),
            ));
        }
        Ok(())
    }

    /// Hidden states `[rows, hidden]` after these layers, given those before them.
    pub fn forward(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>, ModelError> {
        self.check(layout, &x)?;
        let parts = [Part { layout, adapter }];
        self.layers.forward(self.first(), &parts, x, None)
    }

    /// [`Self::forward`] for several packed batches at once, each with its own adapter: the frozen
    /// weights are read once for all of them. `x` holds their rows one after the other. On a CPU
    /// with the tile kernels every batch gets the same bits as alone.
    pub fn forward_many(&self, parts: &[Part<'_>], x: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        let d = self.config.hidden;
        let mut rest = &x[..];
        for part in parts {
            let n = (part.layout.rows() * d).min(rest.len());
            self.check(part.layout, &rest[..n])?;
            rest = &rest[n..];
        }
        if parts.is_empty() || !rest.is_empty() {
            return Err(ModelError::Shape(format!(
                "{} hidden values are left over or no batch is given",
                rest.len()
            )));
        }
        self.layers.forward(self.first(), parts, x, None)
    }

    /// Like [`Self::forward`], showing the hidden states after each layer (`[rows, hidden]`) to
    /// `see`.
    pub fn run(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: Option<&Adapter>,
        mut see: impl FnMut(usize, &[f32]) + Send,
    ) -> Result<Vec<f32>, ModelError> {
        self.check(layout, &x)?;
        self.layers
            .forward(self.first(), &[Part { layout, adapter }], x, Some(&mut see))
    }

    fn first(&self) -> First<'_> {
        First {
            config: &self.config,
            layer: self.range.start,
        }
    }

    /// Like [`Self::forward`], keeping what the backward pass needs.
    pub fn forward_train(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: &Adapter,
    ) -> Result<(Vec<f32>, Tape), ModelError> {
        self.train(layout, x, adapter, false)
    }

    /// Hidden states of each sequence's last row after these layers, `[sequences, hidden]`, given
    /// all rows before them.
    pub fn forward_last(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>, ModelError> {
        self.check(layout, &x)?;
        self.layers
            .forward_last(self.first(), Part { layout, adapter }, x)
    }

    /// Like [`Self::forward_last`], keeping what [`Self::backward_last`] needs.
    pub fn forward_last_train(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: &Adapter,
    ) -> Result<(Vec<f32>, Tape), ModelError> {
        self.train(layout, x, adapter, true)
    }

    fn train(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: &Adapter,
        last: bool,
    ) -> Result<(Vec<f32>, Tape), ModelError> {
        self.check(layout, &x)?;
        self.trains()?;
        let part = Part {
            layout,
            adapter: Some(adapter),
        };
        let (y, kept) = self.layers.forward_train(self.first(), part, x, last)?;
        Ok((
            y,
            Tape {
                layout: layout.clone(),
                range: self.range(),
                last,
                kept,
            },
        ))
    }

    /// Like [`Self::backward`], from the gradient of the last rows `[sequences, hidden]`.
    pub fn backward_last(
        &self,
        tape: &Tape,
        dy: Vec<f32>,
        adapter: &Adapter,
        grads: &mut [f32],
    ) -> Result<Vec<f32>, ModelError> {
        self.back(tape, dy, adapter, true, grads)
    }

    /// From the gradient of the output to that of the input; the adapter's gradient is added to
    /// `grads` (flat, in the adapter's shape). `adapter` must be the one of the forward pass.
    pub fn backward(
        &self,
        tape: &Tape,
        dy: Vec<f32>,
        adapter: &Adapter,
        grads: &mut [f32],
    ) -> Result<Vec<f32>, ModelError> {
        self.back(tape, dy, adapter, false, grads)
    }

    fn back(
        &self,
        tape: &Tape,
        dy: Vec<f32>,
        adapter: &Adapter,
        last: bool,
        grads: &mut [f32],
    ) -> Result<Vec<f32>, ModelError> {
        self.trains()?;
        if tape.last != last {
            return Err(ModelError::Shape(
                "the tape is of the other kind of forward pass (all rows, or the last)".into(),
            ));
        }
        if grads.len() != adapter.shape().len() || tape.range != self.range {
            return Err(ModelError::Shape(
                "the gradient or the tape belongs to another adapter or segment".into(),
            ));
        }
        let rows = if last {
            tape.layout.sequences()
        } else {
            tape.layout.rows()
        };
        let want = rows * self.config.hidden;
        if dy.len() != want {
            return Err(ModelError::Shape(format!(
                "a gradient of {} values, expected {want}",
                dy.len()
            )));
        }
        let part = Part {
            layout: &tape.layout,
            adapter: Some(adapter),
        };
        self.layers
            .backward(self.first(), part, last, &tape.kept, dy, grads)
    }

    /// An empty cache for one sequence of at most `positions` tokens.
    pub fn cache(&self, positions: usize) -> Cache {
        Cache {
            kept: self.layers.cache(&self.config, positions),
            range: self.range(),
            rows: 0,
        }
    }

    /// Hidden states of the next tokens of a sequence, `[rows, hidden]`, given those before these
    /// layers; the cache then holds them too.
    pub fn extend(
        &self,
        cache: &mut Cache,
        x: Vec<f32>,
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>, ModelError> {
        let layout = Layout {
            prefix: 0,
            lens: vec![(x.len() / self.config.hidden) as u32],
        };
        self.check(&layout, &x)?;
        if cache.range != self.range || cache.rows + layout.rows() > self.config.max_positions {
            let (held, new) = (cache.rows, layout.rows());
            return Err(ModelError::Shape(format!(
                "a cache of {held} positions of another segment, or no room for {new}"
            )));
        }
        let part = Part {
            layout: &layout,
            adapter,
        };
        let y = self
            .layers
            .extend(self.first(), part, &mut cache.kept, cache.rows, x)?;
        cache.rows += layout.rows();
        Ok(y)
    }
}
