//! sled, the default backend. The only module that names it; its panics become [`StoreError::Corrupt`].

use std::cell::Cell;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use crate::{Record, Storage, StoreError, Write};

/// A sled database in a folder.
#[derive(Debug)]
pub struct SledStorage {
    db: sled::Db,
    path: PathBuf,
}

impl SledStorage {
    /// An engine for [`crate::sealed::SealedStore::open`].
    pub fn engine(path: &Path) -> Result<Box<dyn Storage>, StoreError> {
        Ok(Box::new(Self::open(path)?))
    }

    /// Opens or creates it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let db = contained(path, || sled::Config::new().path(path).cache_capacity(8 << 20).open())?;
        Ok(Self { db, path: path.to_owned() })
    }
}

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Panics of the engine become errors; they are not also printed as if the program had a bug.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                before(info);
            }
        }));
    });
}

fn contained<T>(path: &Path, f: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    let name = || path.display().to_string();
    quiet();
    CONTAINED.set(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CONTAINED.set(false);
    match result {
        Ok(Ok(v)) => Ok(v),
        // Not its lock, which another process may hold, nor space or permissions: these are not damage.
        Ok(Err(sled::Error::Io(e))) if !matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) => {
            Err(StoreError::Io { path: path.to_owned(), source: e })
        }
        // One database whose thread died makes all others of the process say so.
        Ok(Err(e @ sled::Error::ReportableBug(_))) if e.to_string().contains("thread") => {
            Err(StoreError::Backend(e.to_string()))
        }
        // What it says of a damaged file depends on where the damage is: a corruption, another version, a bug of its own.
        Ok(Err(e)) => Err(StoreError::Corrupt { name: name(), why: e.to_string() }),
        Err(_) => Err(StoreError::Corrupt { name: name(), why: "the database engine panicked reading it".into() }),
    }
}

impl Storage for SledStorage {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        contained(&self.path, || Ok(self.db.get(key)?.map(|v| v.to_vec())))
    }

    fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        contained(&self.path, || {
            let mut batch = sled::Batch::default();
            for (k, v) in writes {
                match v {
                    Some(v) => batch.insert(&k[..], &v[..]),
                    None => batch.remove(&k[..]),
                }
            }
            self.db.apply_batch(batch)?;
            self.db.flush().map(|_| ())
        })
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        contained(&self.path, || self.db.iter().map(|r| r.map(|(k, v)| (k.to_vec(), v.to_vec()))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms_and_survives_reopening() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut s = SledStorage::open(dir.path()).expect("opens");
        crate::conformance(&mut s);
        drop(s);
        let s = SledStorage::open(dir.path()).expect("opens again");
        assert_eq!(s.get(b"a").expect("reads").as_deref(), Some(&b"9"[..]));
    }
}
