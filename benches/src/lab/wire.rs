//! The boundary of the split as experiments see it: everything crosses in a wire format, and is
//! counted.

use lethe_model::ModelError;
use lethe_model::layout::Layout;
use lethe_model::split::{LocalMiddle, Middle, Stage};
use lethe_proto::payload::{Payload, WireFormat};

/// A middle in this process behind a wire.
#[derive(Debug)]
pub(super) struct Wired {
    inner: LocalMiddle,
    format: WireFormat,
    width: usize,
    /// Bytes of states and gradients of training passes, both ways.
    pub(super) crossed: u64,
}

impl Wired {
    /// States of `width` values a row cross in `format`.
    pub(super) fn new(inner: LocalMiddle, format: WireFormat, width: usize) -> Self {
        Self {
            inner,
            format,
            width,
            crossed: 0,
        }
    }

    /// Gradient that the middle has collected, in its adapter's shape.
    pub(super) fn grads(&self) -> &[f32] {
        &self.inner.grads
    }

    /// What arrives of `values` on the other side.
    fn cross(&mut self, values: &[f32], counts: bool) -> Result<Vec<f32>, ModelError> {
        let payload = Payload::encode(values, self.width, self.format);
        if counts {
            self.crossed += payload.bytes.len() as u64;
        }
        payload
            .decode(values.len() / self.width, self.width)
            .map_err(|e| ModelError::Middle(Box::new(e)))
    }
}

impl Middle for Wired {
    fn forward(
        &mut self,
        layout: &Layout,
        hidden: Vec<f32>,
        stage: Stage,
    ) -> Result<Vec<f32>, ModelError> {
        // Frozen states are kept over experiments: who trains counts them (`Lab::gradient`).
        let counts = stage == Stage::Train;
        let arrived = self.cross(&hidden, counts)?;
        let out = self.inner.forward(layout, arrived, stage)?;
        self.cross(&out, counts)
    }

    fn backward(&mut self, grad: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        let arrived = self.cross(&grad, true)?;
        // No layer below the middle is trained here: nothing comes back.
        self.inner.backward(arrived)
    }
}
