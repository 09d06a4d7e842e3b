//! The rows of a pass: which see which, and how far each is turned.

use crate::device::Buf;
use crate::error::{GpuError, same};
use crate::shape::Shape;
use crate::work::Work;

/// One run of rows and the context before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First row.
    pub start: usize,
    /// Rows; never zero.
    pub len: usize,
    /// Rows `0..context` of the shared prefix, which its rows see beside those of the run before
    /// them.
    pub context: usize,
}

impl Run {
    fn end(&self) -> usize {
        self.start + self.len
    }
}

/// The rows of a pass: runs that follow each other from row 0, and each row's rotary angles.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The runs, in row order.
    pub runs: &'a [Run],
    /// Cosines, `[rows, head_dim / 2]`.
    pub cos: &'a [f32],
    /// Sines, `[rows, head_dim / 2]`.
    pub sin: &'a [f32],
}

/// What the kernels want of [`Rows`].
#[derive(Debug)]
pub(crate) struct DeviceRows {
    pub(crate) count: usize,
    pub(crate) cos: Buf,
    pub(crate) sin: Buf,
    pub(crate) info: Buf,
}

impl Rows<'_> {
    /// All rows.
    pub fn count(&self) -> usize {
        self.runs.iter().map(|r| r.len).sum()
    }

    /// Last row of each sequence: of each run that is not itself the context of another.
    pub fn last_rows(&self) -> Vec<usize> {
        let prefix = self.runs.iter().map(|r| r.context).max().unwrap_or(0);
        let own = self.runs.iter().filter(|r| r.end() > prefix);
        own.map(|r| r.end() - 1).collect()
    }

    pub(crate) fn check(&self, shape: &Shape) -> Result<(), GpuError> {
        let mut next = 0;
        for run in self.runs {
            if run.start != next || run.len == 0 || run.context > run.start {
                let expected = format!("a run from row {next} on, with context before it");
                return Err(GpuError::shape("runs", expected, format!("{run:?}")));
            }
            next = run.end();
        }
        if next == 0 {
            return Err(GpuError::shape("runs", "at least one row", "none"));
        }
        same("cosines", next * shape.head_dim / 2, self.cos.len())?;
        same("sines", next * shape.head_dim / 2, self.sin.len())
    }

    /// For each row: context, start of the run, keys seen, one past the last row that sees it.
    fn info(&self) -> Vec<u32> {
        let mut info = Vec::with_capacity(4 * self.count());
        for run in self.runs {
            for i in 0..run.len {
                let seen = run.context + i + 1;
                info.extend([run.context, run.start, seen, run.end()].map(|v| v as u32));
            }
        }
        for run in self.runs {
            for row in info.chunks_exact_mut(4).take(run.context) {
                row[3] = row[3].max(run.end() as u32);
            }
        }
        info
    }

    pub(crate) fn upload(&self, work: &Work<'_>) -> Result<DeviceRows, GpuError> {
        DeviceRows::new(work, self.cos, self.sin, &self.info())
    }
}

impl DeviceRows {
    pub(crate) fn new(
        work: &Work<'_>,
        cos: &[f32],
        sin: &[f32],
        info: &[u32],
    ) -> Result<Self, GpuError> {
        Ok(Self {
            count: info.len() / 4,
            cos: work.upload(bytemuck::cast_slice(cos))?,
            sin: work.upload(bytemuck::cast_slice(sin))?,
            info: work.upload(bytemuck::cast_slice(info))?,
        })
    }
}

/// Some rows of all: the maps that gather them, and that scatter them into zeros.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) count: usize,
    pub(crate) gather: Buf,
    pub(crate) scatter: Buf,
}

impl Chosen {
    pub(crate) fn new(work: &Work<'_>, rows: &[usize], all: usize) -> Result<Self, GpuError> {
        let gather: Vec<u32> = rows.iter().map(|r| *r as u32).collect();
        let mut scatter = vec![u32::MAX; all];
        for (i, row) in rows.iter().enumerate() {
            scatter[*row] = i as u32;
        }
        Ok(Self {
            count: rows.len(),
            gather: work.upload(bytemuck::cast_slice(&gather))?,
            scatter: work.upload(bytemuck::cast_slice(&scatter))?,
        })
    }
}
