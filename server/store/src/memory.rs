//! A store in memory, for tests and simulation.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Record, Storage, StoreError, Write};

/// Records in a map; nothing survives the process.
#[derive(Debug, Default)]
pub struct MemoryStorage(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl MemoryStorage {
    fn records(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for MemoryStorage {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.records().clone()))
    }
}

impl Storage for MemoryStorage {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.records().get(key).cloned())
    }

    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut records = self.records();
        for (k, v) in writes {
            match v {
                Some(v) => records.insert(k.clone(), v.clone()),
                None => records.remove(k),
            };
        }
        Ok(())
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        let records = self.records();
        Ok(records
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn conforms() {
        crate::conformance(&super::MemoryStorage::default());
    }
}
