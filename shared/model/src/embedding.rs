//! The embedding table (and head), kept as it is stored and dequantised row by row.

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;

use crate::ModelError;

/// A `[vocab, hidden]` table whose rows are read on demand: a device needs a few hundred of 49,152 of them.
#[derive(Debug)]
pub struct Table {
    rows: Rows,
    vocab: usize,
    hidden: usize,
}

#[derive(Debug)]
enum Rows {
    Dense(Vec<f32>),
    Quantised { dtype: GgmlDType, bytes: Vec<u8> },
}

impl Table {
    pub(crate) fn dense(values: Vec<f32>, hidden: usize) -> Self {
        Self { vocab: values.len() / hidden.max(1), rows: Rows::Dense(values), hidden }
    }

    pub(crate) fn quantised(dtype: GgmlDType, bytes: Vec<u8>, vocab: usize, hidden: usize) -> Result<Self, ModelError> {
        let want = vocab * row_bytes(dtype, hidden);
        if !hidden.is_multiple_of(dtype.block_size()) || bytes.len() != want {
            return Err(ModelError::tensor("token_embd.weight", format!("{} bytes, expected {want}", bytes.len())));
        }
        Ok(Self { rows: Rows::Quantised { dtype, bytes }, vocab, hidden })
    }

    /// Rows of the table.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Memory, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.rows {
            Rows::Dense(v) => v.len() * size_of::<f32>(),
            Rows::Quantised { bytes, .. } => bytes.len(),
        }
    }

    /// Rows `ids` as f32, `[ids.len(), hidden]`.
    pub fn rows(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let mut out = Vec::with_capacity(ids.len() * self.hidden);
        for id in ids {
            let id = *id as usize;
            if id >= self.vocab {
                return Err(ModelError::Shape(format!("token {id} is outside the vocabulary of {}", self.vocab)));
            }
            match &self.rows {
                Rows::Dense(v) => out.extend_from_slice(&v[id * self.hidden..(id + 1) * self.hidden]),
                Rows::Quantised { dtype, bytes } => {
                    let n = row_bytes(*dtype, self.hidden);
                    out.extend(dequantise(*dtype, &bytes[id * n..(id + 1) * n], self.hidden)?);
                }
            }
        }
        Ok(out)
    }
}

fn row_bytes(dtype: GgmlDType, hidden: usize) -> usize {
    hidden / dtype.block_size() * dtype.type_size()
}

/// `n` values of quantised blocks as f32.
pub(crate) fn dequantise(dtype: GgmlDType, bytes: &[u8], n: usize) -> Result<Vec<f32>, ModelError> {
    let tensor = qtensor_from_ggml(dtype, bytes, vec![n], &Device::Cpu)?;
    Ok(tensor.dequantize(&Device::Cpu)?.to_vec1()?)
}
