//! sled, the default backend. The only module that names it; its panics become
//! [`StoreError::Corrupt`].

use std::cell::Cell;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

use crate::outside::Outside;
use crate::{Record, Storage, StoreError, Write};

/// A sled database in a folder.
///
/// After a failed write (no space, say) sled refuses everything until it is opened again, also when
/// there is space again: the next use opens it.
#[derive(Debug)]
pub struct SledStorage {
    /// `None` after a failed write, while it could not be opened again.
    db: Mutex<Option<sled::Db>>,
    path: PathBuf,
}

impl SledStorage {
    /// An engine for [`crate::sealed::SealedStore::open`]: large values are in files beside the
    /// database.
    pub fn engine(path: &Path) -> Result<Box<dyn Storage>, StoreError> {
        Ok(Box::new(Outside::open(
            Self::open(path)?,
            &path.join("values"),
        )?))
    }

    /// Opens or creates it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            db: Mutex::new(Some(open(path)?)),
            path: path.to_owned(),
        })
    }

    /// The database, opened again if a failed write closed it.
    fn db(&self) -> Result<sled::Db, StoreError> {
        let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = db.as_ref() {
            return Ok(db.clone());
        }
        Ok(db.insert(reopen(&self.path)?).clone())
    }
}

fn open(path: &Path) -> Result<sled::Db, StoreError> {
    contained(path, || {
        sled::Config::new()
            .path(path)
            .cache_capacity(8 << 20)
            .open()
    })
}

/// Opens a database that this process has just let go of: its threads give the lock back a moment
/// later.
fn reopen(path: &Path) -> Result<sled::Db, StoreError> {
    let mut last = open(path);
    for _ in 0..40 {
        match &last {
            Err(StoreError::Io { source, .. }) if source.kind() != ErrorKind::StorageFull => {}
            _ => break,
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
        last = open(path);
    }
    last
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
        // Not its lock, which another process may hold, nor space or permissions: these are not
        // damage.
        Ok(Err(sled::Error::Io(e)))
            if !matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) =>
        {
            Err(StoreError::Io {
                path: path.to_owned(),
                source: e,
            })
        }
        // One database whose thread died makes all others of the process say so.
        Ok(Err(e @ sled::Error::ReportableBug(_))) if e.to_string().contains("thread") => {
            Err(StoreError::Backend(e.to_string()))
        }
        // What it says of a damaged file depends on where the damage is: a corruption, another
        // version, a bug of its own.
        Ok(Err(e)) => Err(StoreError::Corrupt {
            name: name(),
            why: e.to_string(),
        }),
        Err(_) => Err(StoreError::Corrupt {
            name: name(),
            why: "the database engine panicked reading it".into(),
        }),
    }
}

impl Storage for SledStorage {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let db = self.db()?;
        contained(&self.path, || Ok(db.get(key)?.map(|v| v.to_vec())))
    }

    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        let db = self.db()?;
        let written = contained(&self.path, || {
            let mut batch = sled::Batch::default();
            for (k, v) in writes {
                match v {
                    Some(v) => batch.insert(&k[..], &v[..]),
                    None => batch.remove(&k[..]),
                }
            }
            db.apply_batch(batch)?;
            db.flush().map(|_| ())
        });
        if written.is_err() {
            drop(db);
            *self.db.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        written
    }

    fn recover(&self) -> Result<(), StoreError> {
        self.db().map(|_| ())
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        let db = self.db()?;
        contained(&self.path, || {
            db.iter()
                .map(|r| r.map(|(k, v)| (k.to_vec(), v.to_vec())))
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms_and_survives_reopening() {
        let dir = tempfile::tempdir().expect("tempdir");
        let s = SledStorage::open(dir.path()).expect("opens");
        crate::conformance(&s);
        drop(s);
        let s = SledStorage::open(dir.path()).expect("opens again");
        assert_eq!(s.get(b"a").expect("reads").as_deref(), Some(&b"9"[..]));
    }

    #[test]
    fn reading_opens_what_a_failed_write_closed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut s = SledStorage::open(dir.path()).expect("opens");
        s.apply(&[(b"a".to_vec(), Some(vec![9]))]).expect("writes");
        *s.db.get_mut().expect("not poisoned") = None;
        assert_eq!(s.get(b"a").expect("reads"), Some(vec![9]));
        *s.db.get_mut().expect("not poisoned") = None;
        s.apply(&[(b"b".to_vec(), Some(vec![8]))]).expect("writes");
        assert_eq!(s.scan().expect("reads").len(), 2);
    }
}
