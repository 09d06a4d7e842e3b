//! Widths of a model's layers.

use crate::error::GpuError;
use crate::kernels::MAX_HEAD_DIM;
use crate::lora::Projection;

/// Widths of the layers of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` of the queries'.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Added to the mean square in the norms.
    pub rms_eps: f32,
}

impl Shape {
    /// Width of all queries.
    pub(crate) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all keys, and of all values.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of queries, keys and values in one buffer.
    pub(crate) fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// Inputs of a projection.
    pub(crate) fn fan_in(&self, projection: Projection) -> usize {
        match projection {
            Projection::O => self.q_width(),
            Projection::Down => self.intermediate,
            _ => self.hidden,
        }
    }

    /// Outputs of a projection.
    pub(crate) fn fan_out(&self, projection: Projection) -> usize {
        match projection {
            Projection::Q => self.q_width(),
            Projection::K | Projection::V => self.kv_width(),
            Projection::O | Projection::Down => self.hidden,
            Projection::Gate | Projection::Up => self.intermediate,
        }
    }

    pub(crate) fn check(&self) -> Result<(), GpuError> {
        let widths = [self.hidden, self.heads, self.kv_heads, self.intermediate];
        let sound = !widths.contains(&0)
            && self.head_dim > 0
            && self.head_dim.is_multiple_of(2)
            && self.heads.is_multiple_of(self.kv_heads);
        if !sound {
            let expected = "widths above 0, an even head_dim, heads a multiple of kv_heads";
            return Err(GpuError::shape("shape", expected, format!("{self:?}")));
        }
        if self.head_dim > MAX_HEAD_DIM {
            return Err(GpuError::TooLarge {
                what: "width of a head",
                got: self.head_dim as u64,
                limit: MAX_HEAD_DIM as u64,
            });
        }
        Ok(())
    }
}
