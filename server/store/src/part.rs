//! One database of sealed records, with an authenticated inventory of all of them and a count of
//! its writes outside it.

use std::collections::BTreeMap;

use lethe_proto::codec;
use lethe_seal::{seal, unseal};
use ring::digest::{SHA256, digest};
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::head::Head;
use crate::keyring::{Key, Keyring, Secret};
use crate::{Storage, StoreError, Write};

/// Largest record, in bytes.
pub(crate) const MAX_RECORD: usize = 256 << 20;
const ROOT: &[u8] = b"root";

/// What is known about a stored record without opening it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) raw_key: Vec<u8>,
    pub(crate) mark: [u8; 32],
    pub(crate) owner: [u8; 16],
}

/// Table and key of a record.
pub(crate) type Id = (String, String);

#[derive(Clone, Serialize, Deserialize, PartialEq, Debug)]
pub(crate) struct Root {
    pub(crate) count: u64,
    mark: [u8; 32],
    /// Writes so far: an older database is a consistent one, this tells it apart.
    pub(crate) writes: u64,
    /// Keys that had been made: a keyring that knows of fewer has lost some.
    pub(crate) keys: u64,
}

impl Root {
    fn empty() -> Self {
        Self {
            count: 0,
            mark: [0; 32],
            writes: 0,
            keys: 0,
        }
    }

    fn toggle(&mut self, mark: &[u8; 32]) {
        self.mark.iter_mut().zip(mark).for_each(|(a, b)| *a ^= b);
    }

    pub(crate) fn add(&mut self, mark: &[u8; 32]) {
        self.count += 1;
        self.toggle(mark);
    }

    pub(crate) fn remove(&mut self, mark: &[u8; 32]) {
        self.count -= 1;
        self.toggle(mark);
    }

    pub(crate) fn next(&self) -> Self {
        Self {
            writes: self.writes + 1,
            ..self.clone()
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Plain {
    pub(crate) table: String,
    pub(crate) key: String,
    #[serde(with = "serde_bytes")]
    pub(crate) value: Vec<u8>,
}

/// How many writes a database must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    /// None was acknowledged yet.
    None,
    /// At least so many.
    AtLeast(u64),
    /// The count is damaged or missing; there are two copies to compare.
    Unknown,
}

/// What seals and marks the records of one database.
#[derive(Clone)]
pub(crate) struct Sealer {
    name: String,
    secret: Secret,
}

impl Sealer {
    /// `name` is that of the database, for errors; no two databases share one.
    pub(crate) fn new(name: String, index: &Key) -> Self {
        Self {
            name,
            secret: index.secret.clone(),
        }
    }

    pub(crate) fn corrupt(&self, why: impl Into<String>) -> StoreError {
        StoreError::Corrupt {
            name: self.name.clone(),
            why: why.into(),
        }
    }

    fn mac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &*self.secret)
    }

    fn mark(&self, raw_key: &[u8], raw: &[u8]) -> [u8; 32] {
        let data = [raw_key, digest(&SHA256, raw).as_ref()].concat();
        let mut out = [0; 32];
        out.copy_from_slice(hmac::sign(&self.mac(), &data).as_ref());
        out
    }

    /// Names nobody: a keyed hash of table and key.
    pub(crate) fn raw_key(&self, table: &str, key: &str) -> Vec<u8> {
        hmac::sign(&self.mac(), format!("{table}\0{key}").as_bytes()).as_ref()[..20].to_vec()
    }

    pub(crate) fn seal_record(
        &self,
        key: &Key,
        raw_key: &[u8],
        plain: &Plain,
    ) -> Result<(Vec<u8>, Entry), StoreError> {
        let bytes = codec::to_bytes(plain).map_err(|e| StoreError::Encode {
            table: "records",
            why: e.to_string(),
        })?;
        let raw = [&key.handle[..], &seal(&key.secret, raw_key, &bytes)?].concat();
        let entry = Entry {
            raw_key: raw_key.to_vec(),
            mark: self.mark(raw_key, &raw),
            owner: key.handle,
        };
        Ok((raw, entry))
    }

    pub(crate) fn open_record(
        &self,
        key: &Key,
        raw_key: &[u8],
        raw: &[u8],
    ) -> Result<Plain, StoreError> {
        let body = raw
            .get(16..)
            .ok_or_else(|| self.corrupt("a short record"))?;
        let plain = unseal(&key.secret, raw_key, body)
            .ok_or_else(|| self.corrupt("a record is altered or was moved"))?;
        codec::from_bytes(&plain, MAX_RECORD).map_err(|e| self.corrupt(e.to_string()))
    }

    fn root_write(&self, root: &Root) -> Result<Write, StoreError> {
        let plain = codec::to_bytes(root).map_err(|e| StoreError::Encode {
            table: "root",
            why: e.to_string(),
        })?;
        Ok((ROOT.to_vec(), Some(seal(&self.secret, ROOT, &plain)?)))
    }
}

/// What a database holds, checked.
pub(crate) struct Loaded {
    pub(crate) root: Root,
    pub(crate) entries: BTreeMap<Id, Entry>,
    orphans: Vec<(Vec<u8>, [u8; 32])>,
}

impl Loaded {
    /// Reads everything and checks that nothing is lost or altered.
    pub(crate) fn read(
        storage: &dyn Storage,
        sealer: &Sealer,
        keys: &Keyring,
        acknowledged: Acknowledged,
    ) -> Result<Self, StoreError> {
        let (mut found, mut entries, mut orphans) = (Root::empty(), BTreeMap::new(), vec![]);
        let mut root = None;
        for (raw_key, raw) in storage.scan()? {
            if raw_key == ROOT {
                root = Some(raw);
                continue;
            }
            let mark = sealer.mark(&raw_key, &raw);
            found.add(&mark);
            let owner: [u8; 16] = raw
                .get(..16)
                .and_then(|h| h.try_into().ok())
                .ok_or_else(|| sealer.corrupt("a short record"))?;
            // A key that is gone was destroyed: a crash came between that and the removal of its
            // records.
            let Some((_, key)) = keys.by_handle(&owner) else {
                orphans.push((raw_key, mark));
                continue;
            };
            let plain = sealer.open_record(key, &raw_key, &raw)?;
            entries.insert(
                (plain.table, plain.key),
                Entry {
                    raw_key,
                    mark,
                    owner,
                },
            );
        }
        match root {
            None if found.count == 0 && !matches!(acknowledged, Acknowledged::AtLeast(_)) => {}
            None => return Err(sealer.corrupt("its inventory is missing")),
            Some(raw) => {
                let plain = unseal(&sealer.secret, ROOT, &raw)
                    .ok_or_else(|| sealer.corrupt("its inventory is altered"))?;
                let want: Root =
                    codec::from_bytes(&plain, 256).map_err(|e| sealer.corrupt(e.to_string()))?;
                (found.writes, found.keys) = (want.writes, want.keys);
                if want.keys > keys.made() {
                    let lost = want.keys - keys.made();
                    return Err(sealer.corrupt(format!(
                        "the newest {lost} keys of the keyring are lost: put its newest copy back"
                    )));
                }
                if want != found {
                    let (has, wants) = (found.count, want.count);
                    return Err(
                        sealer.corrupt(format!("{has} records of {wants}, or some were altered"))
                    );
                }
            }
        }
        match acknowledged {
            // The crash came before the first write was acknowledged.
            Acknowledged::None if found.writes > 1 => {
                return Err(sealer.corrupt("the file `head`, which counts its writes, is missing"));
            }
            Acknowledged::AtLeast(n) if found.writes < n => {
                let lost = n - found.writes;
                return Err(sealer.corrupt(format!(
                    "its last {lost} of {n} acknowledged writes are lost"
                )));
            }
            _ => {}
        }
        Ok(Self {
            root: found,
            entries,
            orphans,
        })
    }
}

/// An open database: what reading needs.
pub(crate) struct Part {
    pub(crate) storage: Box<dyn Storage>,
    pub(crate) sealer: Sealer,
}

/// What only who writes to a database needs.
pub(crate) struct Written {
    pub(crate) root: Root,
    /// Records whose key is gone and that are still to be removed: `(raw key, mark)`.
    orphans: Vec<(Vec<u8>, [u8; 32])>,
    pub(crate) head: Head,
    /// A write failed: whether the database has it will be seen before the next one.
    doubt: bool,
}

impl Written {
    /// Also returns what the database holds.
    pub(crate) fn new(head: Head, loaded: Loaded) -> (Self, BTreeMap<Id, Entry>) {
        let written = Self {
            root: loaded.root,
            orphans: loaded.orphans,
            head,
            doubt: false,
        };
        (written, loaded.entries)
    }

    /// Applies writes with the root that they lead to; when it returns, they are durable and
    /// counted.
    pub(crate) fn commit(
        &mut self,
        part: &Part,
        mut writes: Vec<Write>,
        root: Root,
    ) -> Result<(), StoreError> {
        writes.push(part.sealer.root_write(&root)?);
        self.doubt = true;
        part.storage.apply(&writes)?;
        self.head.set(root.writes)?;
        // Only now: what fails before is read again.
        self.root = root;
        self.doubt = false;
        Ok(())
    }

    /// After a failed write the database may hold it or not (an engine may have taken it and failed
    /// to sync): what it holds is read again, and counts from then on. Returns it if so.
    pub(crate) fn settle(
        &mut self,
        part: &Part,
        keys: &Keyring,
    ) -> Result<Option<BTreeMap<Id, Entry>>, StoreError> {
        if !self.doubt {
            return Ok(None);
        }
        part.storage.recover()?;
        let acknowledged = match self.root.writes {
            0 => Acknowledged::None,
            n => Acknowledged::AtLeast(n),
        };
        let loaded = Loaded::read(part.storage.as_ref(), &part.sealer, keys, acknowledged)?;
        self.root = loaded.root;
        self.orphans = loaded.orphans;
        self.recount()?;
        self.doubt = false;
        Ok(Some(loaded.entries))
    }

    pub(crate) fn orphaned(&mut self, entry: Entry) {
        self.orphans.push((entry.raw_key, entry.mark));
    }

    pub(crate) fn remove_orphans(&mut self, part: &Part) -> Result<(), StoreError> {
        if self.orphans.is_empty() {
            return Ok(());
        }
        let mut root = self.root.next();
        self.orphans.iter().for_each(|(_, m)| root.remove(m));
        let writes = self
            .orphans
            .iter()
            .map(|(k, _)| (k.clone(), None))
            .collect();
        self.commit(part, writes, root)?;
        self.orphans.clear();
        Ok(())
    }

    /// Sets the count anew, from what the database holds.
    pub(crate) fn recount(&mut self) -> Result<(), StoreError> {
        self.head.set(self.root.writes)
    }
}
