//! What runs the layers of a segment. A [`Backend`] loads layers onto something that computes, and
//! [`Layers`] are what it loaded: our kernels on the CPU (`cpu`), our shaders on a GPU (`wgpu`), or
//! candle's operations (`candle`).
//!
//! Nothing above [`crate::segment::Segment`] knows which of them runs; [`crate::engine::Engine`]
//! chooses. Results of different backends agree up to rounding, not bit for bit: a federation whose
//! deletions are to be replayed byte for byte trains on devices of one kind.

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use crate::ModelError;
use crate::config::ModelConfig;
use crate::kernels::panels::Compute;
use crate::layout::Layout;
use crate::lora::Adapter;
use crate::source::WeightSource;

#[cfg(feature = "candle")]
pub(crate) mod candle;
pub(crate) mod cpu;
#[cfg(feature = "wgpu")]
pub(crate) mod gpu;

/// Rows that belong together: a packed batch and the adapter that applies to it.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// How the rows lie.
    pub layout: &'a Layout,
    /// The adapter, if any.
    pub adapter: Option<&'a Adapter>,
}

/// The model, and the number of the first of some [`Layers`] in it.
#[derive(Clone, Copy)]
pub(crate) struct First<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) layer: usize,
}

/// What is shown the hidden states after each layer: the layer's number and `[rows, hidden]`.
pub(crate) type See<'a> = Option<&'a mut (dyn FnMut(usize, &[f32]) + Send)>;

/// Something that computes layers.
pub(crate) trait Backend: Debug + Send + Sync {
    /// What it computes with. Where it is equal, results are equal bit for bit.
    fn kind(&self) -> String;

    /// Loads layers `range` for products in `compute` arithmetic.
    ///
    /// # Errors
    /// [`ModelError`] of the source; [`ModelError::Device`] if it does not compute so, or takes no
    /// matrix of this size.
    fn load(
        &self,
        source: &dyn WeightSource,
        range: Range<usize>,
        compute: Compute,
    ) -> Result<Arc<dyn Layers>, ModelError>;
}

/// Layers that a backend has loaded. The caller checks shapes; rows are `[rows, hidden]`.
pub(crate) trait Layers: Debug + Send + Sync {
    /// Some of the layers, by their position among these; weights are shared.
    fn part(&self, layers: Range<usize>) -> Arc<dyn Layers>;

    /// Memory of the weights, in bytes.
    fn bytes(&self) -> usize;

    /// Hidden states after the layers; `see` is shown those after each of them.
    fn forward(
        &self,
        first: First<'_>,
        parts: &[Part<'_>],
        x: Vec<f32>,
        see: See<'_>,
    ) -> Result<Vec<f32>, ModelError>;

    /// Those of each sequence's last row.
    fn forward_last(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
    ) -> Result<Vec<f32>, ModelError>;

    /// Forward, of all rows or of the `last`, with what a backward needs.
    fn forward_train(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
        last: bool,
    ) -> Result<(Vec<f32>, Kept), ModelError>;

    /// Gradient of the input, from that of all rows or of the `last`; the adapter's is added to
    /// `grads`.
    fn backward(
        &self,
        first: First<'_>,
        part: Part<'_>,
        last: bool,
        tape: &Kept,
        dy: Vec<f32>,
        grads: &mut [f32],
    ) -> Result<Vec<f32>, ModelError>;

    /// Room for the keys and values of one sequence of at most `positions` tokens.
    fn cache(&self, config: &ModelConfig, positions: usize) -> Kept;

    /// Forward of the tokens that come after `before` others in the cache.
    fn extend(
        &self,
        first: First<'_>,
        part: Part<'_>,
        cache: &mut Kept,
        before: usize,
        x: Vec<f32>,
    ) -> Result<Vec<f32>, ModelError>;
}

/// What a backend keeps between two calls: a tape, or keys and values. Only the backend that made
/// it can read it.
#[derive(Debug)]
pub(crate) struct Kept(Box<dyn Any + Send + Sync>);

impl Kept {
    pub(crate) fn new(kept: impl Any + Send + Sync) -> Self {
        Self(Box::new(kept))
    }

    /// # Errors
    /// [`ModelError::Shape`]: another backend made it.
    pub(crate) fn get<T: Any>(&self) -> Result<&T, ModelError> {
        self.0.downcast_ref().ok_or_else(other)
    }

    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn get_mut<T: Any>(&mut self) -> Result<&mut T, ModelError> {
        self.0.downcast_mut().ok_or_else(other)
    }
}

fn other() -> ModelError {
    ModelError::Shape(
        "what an earlier pass kept belongs to a segment on another engine: use the segment that \
         made it"
            .into(),
    )
}

#[cfg(all(test, any(feature = "candle", feature = "wgpu")))]
mod tests;
