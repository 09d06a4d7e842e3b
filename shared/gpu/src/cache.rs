//! Keys and values of a sequence's tokens so far, to go on from.

use crate::device::Buf;
use crate::error::{GpuError, same};
use crate::kernels::{self, View};
use crate::layer::{Inputs, Keys, Layer, attend};
use crate::layers::{Layers, result};
use crate::lora::Lora;
use crate::rows::DeviceRows;
use crate::work::Work;

/// Rows of the smallest cache.
const LEAST_ROWS: usize = 64;

/// Keys and values of one sequence in all layers of a [`Layers`], on the GPU.
#[derive(Debug, Default)]
pub struct Cache {
    /// `[capacity, 2 * kv_heads * head_dim]` for each layer: keys, then values of a row.
    layers: Vec<Buf>,
    capacity: usize,
    len: usize,
}

impl Cache {
    /// The cache of no token yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Layers {
    /// Runs the next tokens of a sequence (`x`: `[tokens, hidden]`, angles `[tokens, head_dim / 2]`
    /// of their positions) and adds their keys and values to the cache.
    ///
    /// # Errors
    /// As [`Layers::forward`]; also for a cache of other layers. The cache is unchanged then.
    pub fn extend(
        &self,
        cache: &mut Cache,
        cos: &[f32],
        sin: &[f32],
        lora: Option<&Lora<'_>>,
        x: &[f32],
    ) -> Result<Vec<f32>, GpuError> {
        let s = &self.shape;
        let rows = x.len() / s.hidden;
        if rows == 0 {
            return Err(GpuError::shape("input", "at least one row", x.len()));
        }
        same("cosines", rows * s.head_dim / 2, cos.len())?;
        same("sines", rows * s.head_dim / 2, sin.len())?;
        if cache.len > 0 {
            same("layers of the cache", self.len(), cache.layers.len())?;
        }
        let mut work = Work::new(&self.gpu)?;
        let info: Vec<u32> = (0..rows)
            .flat_map(|i| [0, 0, (cache.len + i + 1) as u32, 0])
            .collect();
        let inputs = Inputs {
            shape: self.shape,
            rows: DeviceRows::new(&work, cos, sin, &info)?,
            adapter: self.adapter(&work, lora)?,
            last: None,
        };
        let mut x = self.start(&work, &inputs, x)?;
        let grown = self.grow(&mut work, cache, rows)?;
        let keys = grown.as_ref().map_or(&cache.layers, |g| &g.layers);
        for (i, (layer, keys)) in self.layers.iter().zip(keys).enumerate() {
            x = layer.extend(&mut work, &inputs, i, x, keys, cache.len)?;
        }
        work.read(&x)?;
        let y = result(work.finish()?.pop())?;
        let len = cache.len + rows;
        if let Some(grown) = grown {
            *cache = grown;
        }
        cache.len = len;
        Ok(y)
    }

    /// A cache with room for `more` rows and the content of `cache`, if that has too little.
    fn grow(
        &self,
        work: &mut Work<'_>,
        cache: &Cache,
        more: usize,
    ) -> Result<Option<Cache>, GpuError> {
        let rows = cache.len + more;
        if rows <= cache.capacity && cache.layers.len() == self.len() {
            return Ok(None);
        }
        let capacity = rows.next_power_of_two().max(LEAST_ROWS);
        let mut layers = Vec::with_capacity(self.len());
        for i in 0..self.len() {
            let buf = work.take(capacity * 2 * self.shape.kv_width())?;
            if cache.len > 0 {
                work.copy(&cache.layers[i], &buf);
            }
            layers.push(buf);
        }
        Ok(Some(Cache {
            layers,
            capacity,
            len: cache.len,
        }))
    }
}

impl Layer {
    /// Runs the layer over rows that come after `before` others, whose keys and values `cache` has.
    fn extend(
        &self,
        work: &mut Work<'_>,
        inputs: &Inputs,
        layer: usize,
        x: Buf,
        cache: &Buf,
        before: usize,
    ) -> Result<Buf, GpuError> {
        let s = &inputs.shape;
        let rows = inputs.rows.count;
        let qkv = self.project(work, inputs, layer, &x)?;
        let wide = 2 * s.kv_width();
        let from = View::new(&qkv, s.q_width(), s.qkv_width());
        kernels::copy(
            work,
            from,
            View::new(cache, before * wide, wide),
            rows,
            wide,
            None,
        )?;
        let keys = Keys {
            buf: cache,
            stride: wide,
            k: 0,
            v: s.kv_width(),
        };
        let ctx = work.take(rows * s.q_width())?;
        let lse = work.take(rows * s.heads)?;
        attend(work, inputs, &qkv, keys, &ctx, &lse)?;
        Ok(self.finish(work, inputs, layer, &x, &ctx)?.2)
    }
}
