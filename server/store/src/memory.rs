//! A store in memory, for tests and simulation.

use std::collections::BTreeMap;

use crate::{Record, Storage, StoreError, Write};

/// Records in a map; nothing survives the process.
#[derive(Debug, Default, Clone)]
pub struct MemoryStorage(BTreeMap<Vec<u8>, Vec<u8>>);

impl Storage for MemoryStorage {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        for (k, v) in writes {
            match v {
                Some(v) => self.0.insert(k.clone(), v.clone()),
                None => self.0.remove(k),
            };
        }
        Ok(())
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        Ok(self.0.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn conforms() {
        crate::conformance(&mut super::MemoryStorage::default());
    }
}
