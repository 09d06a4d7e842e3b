//! A run of consecutive layers: the unit that a device or the coordinator hosts.

use std::ops::Range;
use std::sync::Arc;

use crate::ModelError;
use crate::buffers::Pool;
use crate::config::ModelConfig;
use crate::kernels::panels::Compute;
use crate::layer::{Layer, LayerCache, LayerTape, gather, scatter};
use crate::layout::Layout;
use crate::lora::Adapter;
pub use crate::pass::Part;
use crate::pass::Pass;
use crate::source::WeightSource;

/// Layers `range` of a model, with their frozen weights. Cloning shares the weights.
#[derive(Clone, Debug)]
pub struct Segment {
    config: Arc<ModelConfig>,
    range: Range<usize>,
    layers: Arc<Vec<Arc<Layer>>>,
    compute: Compute,
    pool: Pool,
}

/// What a forward pass keeps for the backward pass of the same batch.
#[derive(Debug)]
pub struct Tape {
    layout: Layout,
    layers: Vec<LayerTape>,
    /// Only the last rows came out.
    last: bool,
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
    layers: Vec<LayerCache>,
    rows: usize,
}

impl Segment {
    /// Loads layers `range` for products in `compute` arithmetic.
    pub fn load(source: &dyn WeightSource, range: Range<usize>, compute: Compute) -> Result<Self, ModelError> {
        let config = Arc::new(source.config().clone());
        if range.end > config.layers {
            return Err(ModelError::Shape(format!("layers {range:?} of a model with {}", config.layers)));
        }
        let layer = |l| Ok(Arc::new(Layer::new(&config, source.layer(l)?, compute)));
        let layers = range.clone().map(layer).collect::<Result<Vec<_>, ModelError>>()?;
        Ok(Self { config, range, layers: Arc::new(layers), compute, pool: Pool::default() })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Arithmetic of its products.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Which layers these are.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Those of its layers that are in `layers` (none, perhaps), with the same weights.
    pub fn part(&self, layers: Range<usize>) -> Self {
        let clamp = |l: usize| l.clamp(self.range.start, self.range.end);
        let (start, end) = (clamp(layers.start), clamp(layers.end).max(clamp(layers.start)));
        let kept = self.layers[start - self.range.start..end - self.range.start].to_vec();
        Self { range: start..end, layers: Arc::new(kept), ..self.clone() }
    }

    /// Memory of the weights, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.layers.iter().map(|l| l.bytes()).sum()
    }

    fn check(&self, layout: &Layout, x: &[f32]) -> Result<(), ModelError> {
        layout.check(x.len(), self.config.max_positions).map_err(ModelError::Shape)?;
        let want = layout.rows() * self.config.hidden;
        if x.len() != want {
            return Err(ModelError::Shape(format!("{} hidden values were given for a batch of {want}", x.len())));
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

    fn fits(&self, tape: &Tape, last: bool, adapter: &Adapter, grads: &[f32]) -> Result<(), ModelError> {
        self.trains()?;
        if tape.last != last {
            return Err(ModelError::Shape(
                "the tape is of the other kind of forward pass (all rows, or the last)".into(),
            ));
        }
        if grads.len() != adapter.shape().len() || tape.layers.len() != self.layers.len() {
            return Err(ModelError::Shape("the gradient or the tape belongs to another adapter or segment".into()));
        }
        Ok(())
    }

    /// Hidden states `[rows, hidden]` after these layers, given those before them.
    pub fn forward(&self, layout: &Layout, x: Vec<f32>, adapter: Option<&Adapter>) -> Result<Vec<f32>, ModelError> {
        self.run(layout, x, adapter, |_, _| {})
    }

    /// [`Self::forward`] for several packed batches at once, each with its own adapter: the frozen weights are read once
    /// for all of them. `x` holds their rows one after the other. On a CPU with the tile kernels every batch gets the same
    /// bits as alone.
    pub fn forward_many(&self, parts: &[Part<'_>], x: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        let d = self.config.hidden;
        let mut rest = &x[..];
        for part in parts {
            let n = (part.layout.rows() * d).min(rest.len());
            self.check(part.layout, &rest[..n])?;
            rest = &rest[n..];
        }
        if parts.is_empty() || !rest.is_empty() {
            return Err(ModelError::Shape(format!("{} hidden values are left over or no batch is given", rest.len())));
        }
        let pass = Pass::many(&self.config, parts.to_vec(), 0, &self.pool);
        let mut x = self.pool.adopt(x);
        crate::in_pool(|| {
            for (l, layer) in self.range.clone().zip(self.layers.iter()) {
                layer.forward(&pass, l, &mut x, false);
            }
        });
        Ok(x.into_vec())
    }

    /// Like [`Self::forward`], showing the hidden states after each layer (`[rows, hidden]`) to `see`.
    pub fn run(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: Option<&Adapter>,
        mut see: impl FnMut(usize, &[f32]) + Send,
    ) -> Result<Vec<f32>, ModelError> {
        self.check(layout, &x)?;
        let pass = Pass::new(&self.config, layout, adapter, &self.pool);
        let mut x = self.pool.adopt(x);
        crate::in_pool(|| {
            for (l, weights) in self.range.clone().zip(self.layers.iter()) {
                weights.forward(&pass, l, &mut x, false);
                see(l, &x);
            }
        });
        Ok(x.into_vec())
    }

    /// Like [`Self::forward`], keeping what the backward pass needs.
    pub fn forward_train(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: &Adapter,
    ) -> Result<(Vec<f32>, Tape), ModelError> {
        self.check(layout, &x)?;
        self.trains()?;
        let pass = Pass::new(&self.config, layout, Some(adapter), &self.pool);
        let mut x = self.pool.adopt(x);
        let layers = crate::in_pool(|| {
            let layers = self.range.clone().zip(self.layers.iter());
            layers.filter_map(|(l, w)| w.forward(&pass, l, &mut x, true)).collect()
        });
        Ok((x.into_vec(), Tape { layout: layout.clone(), layers, last: false }))
    }

    /// Hidden states of each sequence's last row after these layers, `[sequences, hidden]`, given all rows before them.
    pub fn forward_last(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>, ModelError> {
        Ok(self.last(layout, x, adapter, false)?.0)
    }

    /// Like [`Self::forward_last`], keeping what [`Self::backward_last`] needs.
    pub fn forward_last_train(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: &Adapter,
    ) -> Result<(Vec<f32>, Tape), ModelError> {
        self.trains()?;
        let (y, layers) = self.last(layout, x, Some(adapter), true)?;
        Ok((y, Tape { layout: layout.clone(), layers, last: true }))
    }

    fn last(
        &self,
        layout: &Layout,
        x: Vec<f32>,
        adapter: Option<&Adapter>,
        keep: bool,
    ) -> Result<(Vec<f32>, Vec<LayerTape>), ModelError> {
        self.check(layout, &x)?;
        let pass = Pass::new(&self.config, layout, adapter, &self.pool);
        let mut x = self.pool.adopt(x);
        let mut tapes = vec![];
        let y = crate::in_pool(|| {
            let Some((last, before)) = self.layers.split_last() else {
                return gather(&self.pool, &x, &layout.last_rows(), self.config.hidden);
            };
            for (l, layer) in self.range.clone().zip(before) {
                tapes.extend(layer.forward(&pass, l, &mut x, keep));
            }
            let (y, tape) = last.forward_last(&pass, self.range.end - 1, x, keep);
            tapes.extend(tape);
            y
        });
        Ok((y.into_vec(), tapes))
    }

    /// Like [`Self::backward`], from the gradient of the last rows `[sequences, hidden]`.
    pub fn backward_last(
        &self,
        tape: &Tape,
        dy: Vec<f32>,
        adapter: &Adapter,
        grads: &mut [f32],
    ) -> Result<Vec<f32>, ModelError> {
        self.fits(tape, true, adapter, grads)?;
        let want = tape.layout.sequences() * self.config.hidden;
        if dy.len() != want {
            return Err(ModelError::Shape(format!("a gradient of {} values, expected {want}", dy.len())));
        }
        let pass = Pass::new(&self.config, &tape.layout, Some(adapter), &self.pool);
        let dy = self.pool.adopt(dy);
        let dx = crate::in_pool(|| {
            let (Some((last, before)), Some((last_tape, tapes))) = (self.layers.split_last(), tape.layers.split_last())
            else {
                return scatter(&self.pool, &dy, &tape.layout.last_rows(), self.config.hidden, tape.rows());
            };
            let mut dx = last.backward_last(&pass, self.range.end - 1, last_tape, dy, grads);
            for ((l, layer), tape) in self.range.clone().zip(before).zip(tapes).rev() {
                layer.backward(&pass, l, tape, &mut dx, grads);
            }
            dx
        });
        Ok(dx.into_vec())
    }

    /// From the gradient of the output to that of the input; the adapter's gradient is added to `grads` (flat, in
    /// the adapter's shape). `adapter` must be the one of the forward pass.
    pub fn backward(
        &self,
        tape: &Tape,
        mut dy: Vec<f32>,
        adapter: &Adapter,
        grads: &mut [f32],
    ) -> Result<Vec<f32>, ModelError> {
        self.check(&tape.layout, &dy)?;
        self.fits(tape, false, adapter, grads)?;
        let pass = Pass::new(&self.config, &tape.layout, Some(adapter), &self.pool);
        crate::in_pool(|| {
            for ((l, weights), tape) in self.range.clone().zip(self.layers.iter()).zip(&tape.layers).rev() {
                weights.backward(&pass, l, tape, &mut dy, grads);
            }
        });
        Ok(dy)
    }

    /// An empty cache for one sequence of at most `positions` tokens.
    pub fn cache(&self, positions: usize) -> Cache {
        let width = self.config.kv_heads * self.config.head_dim;
        let layer = || LayerCache { keys: Vec::with_capacity(positions * width), values: vec![] };
        Cache { layers: self.layers.iter().map(|_| layer()).collect(), rows: 0 }
    }

    /// Hidden states of the next tokens of a sequence, `[rows, hidden]`, given those before these layers; the cache then
    /// holds them too.
    pub fn extend(&self, cache: &mut Cache, x: Vec<f32>, adapter: Option<&Adapter>) -> Result<Vec<f32>, ModelError> {
        let layout = Layout { prefix: 0, lens: vec![(x.len() / self.config.hidden) as u32] };
        self.check(&layout, &x)?;
        if cache.layers.len() != self.layers.len() || cache.rows + layout.rows() > self.config.max_positions {
            let (held, new) = (cache.rows, layout.rows());
            return Err(ModelError::Shape(format!(
                "a cache of {held} positions of another segment, or no room for {new}"
            )));
        }
        let pass = Pass::after(&self.config, &layout, cache.rows, adapter, &self.pool);
        let mut x = self.pool.adopt(x);
        crate::in_pool(|| {
            for ((l, weights), cache) in self.range.clone().zip(self.layers.iter()).zip(&mut cache.layers) {
                weights.extend(&pass, l, &mut x, cache);
            }
        });
        cache.rows += layout.rows();
        Ok(x.into_vec())
    }
}
