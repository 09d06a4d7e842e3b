//! Frozen weights: on the host as their file has them, and on the GPU.

use std::borrow::Cow;

use crate::device::{Buf, Gpu};
use crate::error::{GpuError, same};

/// How the elements of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Single precision.
    F32,
    /// Half precision (IEEE 754 binary16).
    F16,
    /// The upper half of single precision.
    Bf16,
    /// GGUF Q4_0: 18 bytes for 32 elements.
    Q4_0,
    /// GGUF Q4_1: 20 bytes for 32 elements.
    Q4_1,
    /// GGUF Q8_0: 34 bytes for 32 elements.
    Q8_0,
}

impl Format {
    /// `(elements, bytes)` of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q8_0 => (32, 34),
        }
    }

    /// WGSL that decodes four elements.
    pub(crate) fn source(self) -> &'static str {
        match self {
            Self::F32 => include_str!("wgsl/weight_f32.wgsl"),
            Self::F16 => include_str!("wgsl/weight_f16.wgsl"),
            Self::Bf16 => include_str!("wgsl/weight_bf16.wgsl"),
            Self::Q4_0 => concat!(
                include_str!("wgsl/weight_q4_0.wgsl"),
                include_str!("wgsl/halves.wgsl")
            ),
            Self::Q4_1 => include_str!("wgsl/weight_q4_1.wgsl"),
            Self::Q8_0 => concat!(
                include_str!("wgsl/weight_q8_0.wgsl"),
                include_str!("wgsl/halves.wgsl")
            ),
        }
    }
}

/// A matrix `[rows, cols]`, row-major, little-endian, as a file has it.
#[derive(Clone, Debug)]
pub struct Matrix<'a> {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// How the elements are stored.
    pub format: Format,
    /// The elements.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Matrix<'a> {
    /// A matrix of single precision.
    pub fn f32(rows: usize, cols: usize, data: &'a [f32]) -> Self {
        Self {
            rows,
            cols,
            format: Format::F32,
            bytes: Cow::Borrowed(bytemuck::cast_slice(data)),
        }
    }
}

/// Frozen weights of one layer.
#[derive(Clone, Debug)]
pub struct LayerWeights<'a> {
    /// Gain of the norm before the attention, `[hidden]`.
    pub attn_norm: &'a [f32],
    /// Queries, `[heads * head_dim, hidden]`.
    pub q: Matrix<'a>,
    /// Keys, `[kv_heads * head_dim, hidden]`.
    pub k: Matrix<'a>,
    /// Values, `[kv_heads * head_dim, hidden]`.
    pub v: Matrix<'a>,
    /// Bias of queries, keys and values, one after the other.
    pub qkv_bias: Option<&'a [f32]>,
    /// Output of the attention, `[hidden, heads * head_dim]`.
    pub out: Matrix<'a>,
    /// Gain of the norm before the MLP, `[hidden]`.
    pub mlp_norm: &'a [f32],
    /// Gate, `[intermediate, hidden]`.
    pub gate: Matrix<'a>,
    /// Up, `[intermediate, hidden]`.
    pub up: Matrix<'a>,
    /// Down, `[hidden, intermediate]`.
    pub down: Matrix<'a>,
}

/// A matrix on the GPU.
#[derive(Debug)]
pub(crate) struct Weight {
    pub(crate) buf: Buf,
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Weight {
    /// Uploads a matrix that must be `[rows, cols]`.
    pub(crate) fn load(
        gpu: &Gpu,
        what: &'static str,
        matrix: &Matrix<'_>,
        rows: usize,
        cols: usize,
    ) -> Result<Self, GpuError> {
        same(what, rows, matrix.rows)?;
        same(what, cols, matrix.cols)?;
        let (elements, bytes) = matrix.format.block();
        if !cols.is_multiple_of(elements) {
            let expected = format!("columns in blocks of {elements}");
            return Err(GpuError::shape(what, expected, cols));
        }
        same(what, rows * cols / elements * bytes, matrix.bytes.len())?;
        Ok(Self {
            buf: gpu.upload(&matrix.bytes)?,
            format: matrix.format,
            rows,
            cols,
        })
    }
}

/// Uploads a vector that must be `len` long.
pub(crate) fn vector(
    gpu: &Gpu,
    what: &'static str,
    data: &[f32],
    len: usize,
) -> Result<Buf, GpuError> {
    same(what, len, data.len())?;
    gpu.upload(bytemuck::cast_slice(data))
}
