//! Two databases that hold the same: when one is damaged, the other has everything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Record, Storage, StoreError, Write};

/// Largest batch while one is copied to the other, in bytes.
const COPY: usize = 16 << 20;

/// A write is durable in both before it is acknowledged; the first is read.
pub(crate) struct Mirror {
    first: Box<dyn Storage>,
    second: Box<dyn Storage>,
    /// A write failed: the second may lack what the first has.
    behind: AtomicBool,
}

impl Mirror {
    /// Makes the second equal to the first.
    pub(crate) fn new(
        first: Box<dyn Storage>,
        second: Box<dyn Storage>,
    ) -> Result<Self, StoreError> {
        let mirror = Self {
            first,
            second,
            behind: AtomicBool::new(true),
        };
        mirror.equalise()?;
        Ok(mirror)
    }

    fn equalise(&self) -> Result<(), StoreError> {
        copy(self.first.as_ref(), self.second.as_ref())?;
        self.behind.store(false, Ordering::Release);
        Ok(())
    }
}

/// Makes `to` hold what `from` holds.
fn copy(from: &dyn Storage, to: &dyn Storage) -> Result<(), StoreError> {
    let mut extra: BTreeMap<Vec<u8>, Vec<u8>> = to.scan()?.into_iter().collect();
    let (mut writes, mut bytes): (Vec<Write>, usize) = (vec![], 0);
    for (key, value) in from.scan()? {
        if extra.remove(&key).as_ref() == Some(&value) {
            continue;
        }
        bytes += value.len();
        writes.push((key, Some(value)));
        if bytes > COPY {
            to.apply(&writes)?;
            (writes, bytes) = (vec![], 0);
        }
    }
    writes.extend(extra.into_keys().map(|k| (k, None)));
    if writes.is_empty() {
        Ok(())
    } else {
        to.apply(&writes)
    }
}

impl Storage for Mirror {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.first.get(key)
    }

    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        if self.behind.load(Ordering::Acquire) {
            self.recover()?;
        }
        self.behind.store(true, Ordering::Release);
        self.first.apply(writes)?;
        self.second.apply(writes)?;
        self.behind.store(false, Ordering::Release);
        Ok(())
    }

    fn recover(&self) -> Result<(), StoreError> {
        self.first.recover()?;
        self.second.recover()?;
        // What is read from now on is taken for written: both have to hold it.
        if self.behind.load(Ordering::Acquire) {
            self.equalise()?;
        }
        Ok(())
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        self.first.scan()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::MemoryStorage;

    /// One that fails once.
    struct FailsOnce(Arc<MemoryStorage>, AtomicBool);

    impl Storage for FailsOnce {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.0.get(key)
        }

        fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
            match self.1.swap(false, Ordering::Relaxed) {
                true => Err(StoreError::Backend("it fails".into())),
                false => self.0.apply(writes),
            }
        }

        fn scan(&self) -> Result<Vec<Record>, StoreError> {
            self.0.scan()
        }
    }

    #[test]
    fn what_is_read_after_a_write_failed_is_in_both() {
        let second = Arc::new(MemoryStorage::default());
        let fails = FailsOnce(second.clone(), AtomicBool::new(false));
        let first = Box::<MemoryStorage>::default();
        let mirror = Mirror::new(first, Box::new(fails)).expect("copies");
        let write = (b"key".to_vec(), Some(vec![1]));
        let fails = FailsOnce(second.clone(), AtomicBool::new(true));
        let mirror = Mirror {
            second: Box::new(fails),
            ..mirror
        };
        mirror.apply(&[write]).expect_err("the second fails");
        mirror.recover().expect("recovers");
        assert_eq!(mirror.get(b"key").expect("reads"), Some(vec![1]));
        assert_eq!(second.get(b"key").expect("reads"), Some(vec![1]));
    }

    #[test]
    fn conforms_and_repairs_the_second() {
        let old = MemoryStorage::default();
        old.apply(&[(b"gone".to_vec(), Some(vec![1]))])
            .expect("works");
        let m = Mirror::new(Box::<MemoryStorage>::default(), Box::new(old)).expect("copies");
        crate::conformance(&m);
        assert_eq!(
            m.first.scan().expect("works"),
            m.second.scan().expect("works")
        );
    }
}
