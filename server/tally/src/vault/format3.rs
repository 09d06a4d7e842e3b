//! Folders of format 3: nothing was said of noise, and there was none.

use lethe_store::sealed::{Batch, KeyName, SealedStore};
use lethe_store::{Class, Persisted, StoreError};
use serde::{Deserialize, Serialize};

use super::tables::{CoreRow, Format};
use crate::cells::{Core, Out, Spent};

/// The counters, as format 3 has them.
#[derive(Serialize, Deserialize)]
struct OldCore {
    cell: u64,
    snapshot: u64,
    changes: u64,
    forgets: u64,
    generation: u64,
    served: Option<u64>,
    out: Option<Out>,
    recalled: u64,
}

impl Persisted for OldCore {
    const TABLE: &'static str = CoreRow::TABLE;
    const CLASS: Class = Class::Public;
}

/// Writes the counters as format 4 has them, and the format, in one batch: a crash leaves either.
pub(super) fn migrate(store: &SealedStore) -> Result<(), StoreError> {
    let public = KeyName::public();
    let mut batch = Batch::new();
    if let Some(old) = store.get::<OldCore>("")? {
        let core = Core {
            cell: old.cell,
            snapshot: old.snapshot,
            changes: old.changes,
            forgets: old.forgets,
            generation: old.generation,
            served: old.served,
            out: old.out,
            recalled: old.recalled,
            spent: Spent::default(),
        };
        batch = batch.put(&public, "", &CoreRow(core))?;
    }
    let format = Format { number: 4 };
    store.write(batch.put(&public, "", &format)?)
}

#[cfg(test)]
mod tests {
    use lethe_store::sled_backend::SledStorage;

    use super::super::Vault;
    use super::*;
    use crate::cells::CellSettings;

    #[test]
    fn a_folder_of_format_3_is_read() {
        let dir = tempfile::tempdir().expect("tempdir");
        let vault = Vault::open(&SledStorage::engine, dir.path(), None).expect("founds");
        let out = Some(Out { since: 9, cells: 2 });
        let old = OldCore {
            cell: 1,
            snapshot: 12,
            changes: 3,
            forgets: 4,
            generation: 5,
            served: None,
            out,
            recalled: 11,
        };
        let public = KeyName::public();
        let batch = Batch::new()
            .put(&public, "", &old)
            .and_then(|b| b.put(&public, "", &Format { number: 3 }))
            .expect("encodes");
        vault.store.write(batch).expect("writes");
        drop(vault);
        for _ in 0..2 {
            let vault = Vault::open(&SledStorage::engine, dir.path(), None).expect("migrates");
            let state = vault.read(CellSettings::default()).expect("reads");
            let core = state.core();
            assert_eq!((core.snapshot, core.recalled, core.out), (12, 11, out));
            assert_eq!((core.generation, core.forgets), (5, 4));
            assert_eq!(core.spent, Spent::default());
        }
    }
}
