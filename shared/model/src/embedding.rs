//! The embedding table (and head), kept as it is stored and dequantised row by row.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::ModelError;
use crate::dtype::{Dtype, dequantise};

/// A `[vocab, hidden]` table whose rows are read on demand: a device needs a few hundred of 49,152
/// of them.
#[derive(Debug)]
pub struct Table {
    rows: Rows,
    vocab: usize,
    hidden: usize,
}

#[derive(Debug)]
enum Rows {
    Dense(Vec<f32>),
    /// Left in the file; rows are read when asked for. The system caches what is asked for often.
    Stored {
        dtype: Dtype,
        file: File,
        start: u64,
        path: PathBuf,
    },
}

impl Table {
    pub(crate) fn dense(values: Vec<f32>, hidden: usize) -> Self {
        Self {
            vocab: values.len() / hidden.max(1),
            rows: Rows::Dense(values),
            hidden,
        }
    }

    /// A table that lies in `file` from `start` on.
    pub(crate) fn stored(
        file: File,
        path: &Path,
        start: u64,
        dtype: Dtype,
        vocab: usize,
        hidden: usize,
    ) -> Result<Self, ModelError> {
        let want = row_bytes(dtype, hidden) as u64 * vocab as u64;
        let all = file.metadata().map_err(ModelError::io(path))?.len();
        if !hidden.is_multiple_of(dtype.block_values())
            || start.checked_add(want).is_none_or(|end| end > all)
        {
            let got = all.saturating_sub(start);
            return Err(ModelError::tensor(
                "token_embd.weight",
                format!("{got} bytes, expected {want}"),
            ));
        }
        Ok(Self {
            rows: Rows::Stored {
                dtype,
                file,
                start,
                path: path.to_owned(),
            },
            vocab,
            hidden,
        })
    }

    /// Rows of the table.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Memory, in bytes; a table that is left in its file takes none.
    pub fn bytes(&self) -> usize {
        match &self.rows {
            Rows::Dense(v) => v.len() * size_of::<f32>(),
            Rows::Stored { .. } => 0,
        }
    }

    /// Rows `ids` as f32, `[ids.len(), hidden]`.
    pub fn rows(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let mut out = Vec::with_capacity(ids.len() * self.hidden);
        for id in ids {
            let id = *id as usize;
            if id >= self.vocab {
                return Err(ModelError::Shape(format!(
                    "token {id} is outside the vocabulary of {}",
                    self.vocab
                )));
            }
            match &self.rows {
                Rows::Dense(v) => {
                    out.extend_from_slice(&v[id * self.hidden..(id + 1) * self.hidden])
                }
                Rows::Stored {
                    dtype,
                    file,
                    start,
                    path,
                } => {
                    let n = row_bytes(*dtype, self.hidden);
                    let mut bytes = vec![0; n];
                    read_at(file, &mut bytes, start + (id * n) as u64)
                        .map_err(ModelError::io(path))?;
                    out.extend(dequantise(*dtype, &bytes, self.hidden)?);
                }
            }
        }
        Ok(out)
    }
}

#[cfg(unix)]
pub(crate) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
pub(crate) fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

fn row_bytes(dtype: Dtype, hidden: usize) -> usize {
    hidden / dtype.block_values() * dtype.block_bytes()
}
