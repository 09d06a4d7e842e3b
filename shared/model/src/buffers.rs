//! Buffers that passes use again: fresh memory would be cleared by the system page by page.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// Buffers of this many bytes and more have pages of their own. What is freed is the system's at
/// once then; a heap would keep it, in pieces: of 1.7 GiB that a coordinator took, 0.5 GiB.
const PAGES_FROM: usize = 256 << 10;

/// Buffers of this many bytes and more ask for huge pages, where the system has them (2 MiB on
/// x86-64 Linux; Android keeps them to itself): fewer page faults, and fewer misses when addresses
/// are translated.
#[cfg(target_os = "linux")]
const HUGE_FROM: usize = 2 << 20;

/// Most bytes that are kept for later while nobody uses them, per segment: about what a quarter of
/// a training pass of 800 tokens over 30 layers needs. They hold what passes computed until other
/// passes overwrite them: in memory only, like the passes themselves.
const KEPT_BYTES: usize = 128 << 20;

/// Where the values of a buffer are.
#[derive(Debug)]
enum Values {
    Heap(Vec<f32>),
    /// As many bytes as the values have.
    Pages(MmapMut),
}

impl Values {
    /// Zeros. Where the system gives no pages, they are on the heap.
    fn zeros(len: usize) -> Self {
        let bytes = len * size_of::<f32>();
        if bytes < PAGES_FROM {
            return Self::Heap(vec![0.0; len]);
        }
        let Ok(pages) = MmapMut::map_anon(bytes) else {
            return Self::Heap(vec![0.0; len]);
        };
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_FROM {
            // Only a wish: a system without huge pages gives usual ones.
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        Self::Pages(pages)
    }

    fn all(&self) -> &[f32] {
        match self {
            Self::Heap(values) => values,
            Self::Pages(pages) => bytemuck::cast_slice(pages),
        }
    }

    fn all_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Heap(values) => values,
            Self::Pages(pages) => bytemuck::cast_slice_mut(pages),
        }
    }

    fn len(&self) -> usize {
        self.all().len()
    }

    fn bytes(&self) -> usize {
        size_of_val(self.all())
    }

    /// Whether it is worth keeping for later. A large vector is somebody's who had no pages.
    fn is_kept(&self) -> bool {
        match self {
            Self::Heap(values) => !values.is_empty() && self.bytes() < PAGES_FROM,
            Self::Pages(_) => true,
        }
    }
}

/// Buffers that are free. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Arc<Mutex<Vec<Values>>>);

/// A buffer that returns to its pool.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// At least `len` values; what lies beyond stays, so that nothing is cleared twice.
    values: Values,
    len: usize,
    pool: Pool,
}

impl Pool {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<Values>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A buffer of `len` values, which are anything: the caller overwrites them.
    pub(crate) fn take(&self, len: usize) -> Buffer {
        // The smallest that is long enough, if it is not much too long: a tape holds hundreds, and
        // is counted by what it needs.
        let found = self.with(|free| {
            let fits = |v: &Values| v.len() >= len && v.len() - v.len() / 4 <= len;
            let best = (0..free.len())
                .filter(|i| fits(&free[*i]))
                .min_by_key(|i| free[*i].len())?;
            Some(free.swap_remove(best))
        });
        let values = found.unwrap_or_else(|| Values::zeros(len));
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
            values: Values::Heap(values),
            pool: self.clone(),
        }
    }
}

impl Buffer {
    /// The values, which leave the pool: copied, if they have pages of their own.
    pub(crate) fn into_vec(mut self) -> Vec<f32> {
        match &mut self.values {
            Values::Heap(values) => {
                values.truncate(self.len);
                std::mem::take(values)
            }
            Values::Pages(_) => self.to_vec(),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::replace(&mut self.values, Values::Heap(vec![]));
        if !values.is_kept() {
            return;
        }
        self.pool.with(|free| {
            free.push(values);
            let mut kept: usize = free.iter().map(Values::bytes).sum();
            while kept > KEPT_BYTES && !free.is_empty() {
                kept -= free.remove(0).bytes();
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values.all()[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values.all_mut()[..self.len]
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
        assert_ne!(pool.take(600).as_ptr(), at, "far too long");
        assert_eq!(pool.copy(&[1.0, 2.0]).into_vec(), [1.0, 2.0]);
    }

    #[test]
    fn large_ones_have_pages_and_come_back_too() {
        let pool = Pool::default();
        let len = PAGES_FROM / size_of::<f32>();
        let at = {
            let mut b = pool.take(len + 1);
            assert!(matches!(b.values, Values::Pages(_)));
            assert!(b.iter().all(|v| *v == 0.0));
            b.fill(2.0);
            b.as_ptr()
        };
        let again = pool.take(len);
        assert_eq!((again.as_ptr(), again.len()), (at, len), "used again");
        assert_eq!(again.into_vec(), vec![2.0; len]);
        drop(pool.adopt(vec![1.0; len]));
        assert_eq!(
            pool.with(|free| free.len()),
            1,
            "a large vector is not kept"
        );
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let pool = Pool::default();
        let quarter = KEPT_BYTES / size_of::<f32>() / 4;
        let many: Vec<Buffer> = (0..6).map(|_| pool.take(quarter)).collect();
        drop(many);
        let kept: usize = pool.with(|free| free.iter().map(Values::bytes).sum());
        assert_eq!(kept, KEPT_BYTES);
    }
}
