//! Buffers that passes use again: fresh memory would be cleared by the system page by page.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Most bytes that are kept for later while nobody uses them, per segment: about what half a pass
/// of 800 tokens over 30 layers needs. They hold what passes computed until other passes overwrite
/// them: in memory only, like the passes themselves.
const KEPT_BYTES: usize = 256 << 20;

/// Buffers that are free. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Arc<Mutex<Vec<Vec<f32>>>>);

/// A buffer that returns to its pool.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// At least `len` values; what lies beyond keeps its length, so that nothing is cleared twice.
    values: Vec<f32>,
    len: usize,
    pool: Pool,
}

impl Pool {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<Vec<f32>>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A buffer of `len` values, which are anything: the caller overwrites them.
    pub(crate) fn take(&self, len: usize) -> Buffer {
        // The smallest that is long enough, if it is not far too long.
        let found = self.with(|free| {
            let fits = |v: &Vec<f32>| v.len() >= len && v.len() / 2 <= len;
            let best = (0..free.len())
                .filter(|i| fits(&free[*i]))
                .min_by_key(|i| free[*i].len())?;
            Some(free.swap_remove(best))
        });
        let values = found.unwrap_or_else(|| vec![0.0; len]);
        Buffer {
            values,
            len,
            pool: self.clone(),
        }
    }

    /// A copy of `values`.
    pub(crate) fn copy(&self, values: &[f32]) -> Buffer {
        let mut b = self.take(values.len());
        b.copy_from_slice(values);
        b
    }

    /// A buffer made of a vector.
    pub(crate) fn adopt(&self, values: Vec<f32>) -> Buffer {
        Buffer {
            len: values.len(),
            values,
            pool: self.clone(),
        }
    }
}

impl Buffer {
    /// The values, which leave the pool.
    pub(crate) fn into_vec(mut self) -> Vec<f32> {
        self.values.truncate(self.len);
        std::mem::take(&mut self.values)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        if values.is_empty() {
            return;
        }
        self.pool.with(|free| {
            free.push(values);
            let mut kept: usize = free.iter().map(|v| v.len() * size_of::<f32>()).sum();
            while kept > KEPT_BYTES && !free.is_empty() {
                kept -= free.remove(0).len() * size_of::<f32>();
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_fit() {
        let pool = Pool::default();
        let at = {
            let b = pool.take(1000);
            b.as_ptr()
        };
        assert_eq!(pool.take(900).as_ptr(), at, "used again");
        assert_ne!(pool.take(100).len(), 900);
        assert_eq!(pool.copy(&[1.0, 2.0]).into_vec(), [1.0, 2.0]);
    }
}
