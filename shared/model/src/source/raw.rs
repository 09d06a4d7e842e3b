//! A tensor as its source stores it.

use std::fs::File;
use std::path::Path;

use crate::ModelError;
use crate::dtype::{Dtype, dequantise};
use crate::embedding::read_at;

/// The values of a tensor, row-major, in the form in which they are stored.
#[derive(Clone, Debug)]
pub(crate) struct RawTensor {
    pub(crate) dtype: Dtype,
    pub(crate) bytes: Vec<u8>,
}

impl RawTensor {
    /// The tensor of `bytes` bytes that lies in `file` from `start` on.
    ///
    /// # Errors
    /// [`ModelError::Io`] if the file is shorter, before anything is allocated for it.
    pub(crate) fn read(
        file: &File,
        path: &Path,
        start: u64,
        bytes: u64,
        dtype: Dtype,
    ) -> Result<Self, ModelError> {
        let all = file.metadata().map_err(ModelError::io(path))?.len();
        if start.checked_add(bytes).is_none_or(|end| end > all) {
            let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(ModelError::io(path)(short));
        }
        let mut read = vec![0; usize::try_from(bytes).unwrap_or(0)];
        read_at(file, &mut read, start).map_err(ModelError::io(path))?;
        Ok(Self { dtype, bytes: read })
    }

    /// Values that are stored as f32.
    pub(crate) fn of(values: &[f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.dtype.block_bytes() * self.dtype.block_values()
    }

    /// The values as f32.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if its bytes are no whole blocks.
    pub(crate) fn values(&self) -> Result<Vec<f32>, ModelError> {
        dequantise(self.dtype, &self.bytes, self.len())
    }

    /// The same values with their rows in another order: row `to` is row `from(to)` of `rows`.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub(crate) fn reordered(
        self,
        rows: usize,
        from: impl Fn(usize) -> usize,
    ) -> Result<Self, ModelError> {
        let blocks = self.bytes.len() / self.dtype.block_bytes();
        // A block that two rows share cannot be moved.
        let whole = match blocks.is_multiple_of(rows) {
            true => self,
            false => Self::of(&self.values()?),
        };
        let width = whole.bytes.len() / rows;
        let mut bytes = Vec::with_capacity(whole.bytes.len());
        for to in 0..rows {
            let start = from(to) * width;
            bytes.extend_from_slice(&whole.bytes[start..start + width]);
        }
        Ok(Self { bytes, ..whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_move_as_blocks_or_as_values() {
        let values: Vec<f32> = (0..6).map(|v| v as f32).collect();
        let swapped = |raw: RawTensor, rows| {
            let moved = raw
                .reordered(rows, |to| rows - 1 - to)
                .expect("whole blocks");
            moved.values().expect("whole blocks")
        };
        let want = [4.0, 5.0, 2.0, 3.0, 0.0, 1.0];
        assert_eq!(swapped(RawTensor::of(&values), 3), want);

        // One block of 32 values: a row each, or two rows of 16, which share it.
        let mut bytes = vec![0x00, 0x3c];
        bytes.extend(0..32_u8);
        let block = RawTensor {
            dtype: Dtype::Q8_0,
            bytes,
        };
        assert_eq!(block.len(), 32);
        let whole = block.clone().reordered(1, |to| to).expect("whole blocks");
        assert_eq!(whole.dtype, Dtype::Q8_0);
        let halves = swapped(block, 2);
        assert_eq!(halves[0], 16.0);
        assert_eq!(halves[16], 0.0);
    }
}
