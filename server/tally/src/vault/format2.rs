//! Folders of format 2: their members were not remembered with the snapshot that showed them.

use lethe_proto::ids::Digest;
use lethe_store::StoreError;
use lethe_store::sealed::{Batch, KeyName, SealedStore};
use lethe_store::{Class, Persisted};
use serde::{Deserialize, Serialize};

use super::tables::{Format, MemberRow};
use crate::cells::Member;
use crate::ids::{CellNo, Version};

/// A member, as format 2 has it.
#[derive(Serialize, Deserialize)]
struct OldMember {
    name: Digest,
    newest: Version,
    digest: Digest,
    counts: Option<(Version, Digest)>,
    cell: Option<CellNo>,
    past: Vec<CellNo>,
}

impl Persisted for OldMember {
    const TABLE: &'static str = MemberRow::TABLE;
    const CLASS: Class = Class::Public;
}

/// Writes the members as format 3 has them, and the format, in one batch: a crash leaves either.
pub(super) fn migrate(store: &SealedStore) -> Result<(), StoreError> {
    let public = KeyName::public();
    let mut batch = Batch::new();
    for (key, old) in store.all::<OldMember>()? {
        let member = Member {
            name: old.name,
            newest: old.newest,
            digest: old.digest,
            counts: old.counts,
            cell: old.cell,
            past: old.past,
            was_shown: None,
        };
        batch = batch.put(&public, &key, &MemberRow(member))?;
    }
    let format = Format { number: 3 };
    store.write(batch.put(&public, "", &format)?)
}

#[cfg(test)]
mod tests {
    use lethe_store::sled_backend::SledStorage;

    use super::super::Vault;
    use super::*;
    use crate::cells::CellSettings;
    use crate::ids::Number;

    #[test]
    fn a_folder_of_format_2_is_read() {
        let dir = tempfile::tempdir().expect("tempdir");
        let vault = Vault::open(&SledStorage::engine, dir.path(), None).expect("founds");
        let old = |cell| OldMember {
            name: Digest([1; 32]),
            newest: Version(3),
            digest: Digest([2; 32]),
            counts: Some((Version(2), Digest([4; 32]))),
            cell,
            past: vec![CellNo(5)],
        };
        let public = KeyName::public();
        let batch = Batch::new()
            .put(&public, &super::super::numbered(7), &old(None))
            .and_then(|b| b.put(&public, &super::super::numbered(8), &old(Some(CellNo(9)))))
            .and_then(|b| b.put(&public, "", &Format { number: 2 }))
            .expect("encodes");
        vault.store.write(batch).expect("writes");
        drop(vault);
        for _ in 0..2 {
            let vault = Vault::open(&SledStorage::engine, dir.path(), None).expect("migrates");
            let state = vault.read(CellSettings::default()).expect("reads");
            assert_eq!(state.members().len(), 2);
            let member = &state.members()[&Number(7)];
            assert_eq!(member.counts, Some((Version(2), Digest([4; 32]))));
            assert_eq!(
                (member.past.clone(), member.was_shown),
                (vec![CellNo(5)], None)
            );
            assert_eq!(state.members()[&Number(8)].cell, Some(CellNo(9)));
        }
    }
}
