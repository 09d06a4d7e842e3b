use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why the store failed. Nothing is acknowledged that is not stored.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The files cannot be read or written.
    #[error("store {path}: {source}; check space and permissions")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// No encryption.
    #[error(transparent)]
    Seal(#[from] lethe_seal::SealError),
    /// The backend failed without saying more.
    #[error("store backend: {0}")]
    Backend(String),
    /// Records are lost, altered or swapped.
    #[error("store {name} is damaged: {why}; restore it from a backup and replay the deletion log")]
    Corrupt {
        /// Which store.
        name: String,
        /// What was found.
        why: String,
    },
    /// Records are here, and the keys that open them are not.
    #[error(
        "the data folder {folder} holds records, and {place} has no keys for them: put the folder \
         of the keys where the table [keys] says, or name there where it is. A copy of the data \
         folder alone opens nothing"
    )]
    NoKeys {
        /// The data folder.
        folder: PathBuf,
        /// Where keys are looked for.
        place: String,
    },
    /// The keys were put back from an older copy.
    #[error(
        "the keyring in {place} is an older copy: its generation is {has}, and the data folder \
         has seen {seen}. Keys that were destroyed would be back: put the newest keyring there. \
         If there is none, remove {file} and {file}.copy, and ask for the deletions since then \
         again"
    )]
    OldKeys {
        /// Where the keys are.
        place: String,
        /// Generation that is there.
        has: u64,
        /// The newest that was seen.
        seen: u64,
        /// File that says so.
        file: PathBuf,
    },
    /// The key source is not what the configuration says, cannot be asked, or is damaged.
    #[error("keys: {place}: {why}")]
    Keys {
        /// Folder, file or command.
        place: String,
        /// Expected, got, what to do.
        why: String,
    },
    /// A record was to be sealed under a key that is gone, or was never made.
    #[error("a record of table {table} was to be sealed under a key that does not exist")]
    NoKey {
        /// Table.
        table: &'static str,
    },
    /// The folder was written in another format than this build works with.
    #[error(
        "the data folder has format {found}, which {build} has written; this build works with \
         format {known}: use that build or a later one, and never an older one"
    )]
    Format {
        /// Of the folder.
        found: u32,
        /// Of this build.
        known: u32,
        /// Which build has written it.
        build: String,
    },
    /// A record could not be encoded.
    #[error("record of table {table}: {why}")]
    Encode {
        /// Table.
        table: &'static str,
        /// What went wrong.
        why: String,
    },
}

impl StoreError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// One change of a raw store; `None` deletes.
pub type Write = (Vec<u8>, Option<Vec<u8>>);

/// A stored record: key and value.
pub type Record = (Vec<u8>, Vec<u8>);

/// A raw, ordered byte store. [`conformance`] says what every backend must do.
///
/// Many threads read at the same time; at most one at a time applies changes or recovers. Who reads
/// does not wait until what is being applied is durable.
pub trait Storage: Send + Sync {
    /// The value of a key: as it was before what is being applied now, or as it will be after it. A
    /// key that is being changed may seem absent: who has to know asks again when nothing is being
    /// applied.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Applies all changes or none, and returns only when they are durable. After an error either
    /// may be the case.
    fn apply(&self, writes: &[Write]) -> Result<(), StoreError>;
    /// Makes reading possible again after an error of [`Storage::apply`].
    fn recover(&self) -> Result<(), StoreError> {
        Ok(())
    }
    /// All records in key order.
    fn scan(&self) -> Result<Vec<Record>, StoreError>;
}

/// Who a persisted type belongs to; it decides the key that seals it and what a deletion does with
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// One subject's data, sealed under the subject's key.
    Subject,
    /// Derived from a shard's subjects (adapters, checkpoints), sealed under a key that a rollback
    /// destroys.
    Shard,
    /// Deletion requests and receipts: they name the subject because a receipt must. Each has a key
    /// of its own.
    Evidence,
    /// Nobody's data: recipe, counters, public hashes.
    Public,
}

/// A type that is stored declares its table and class.
pub trait Persisted: Serialize + DeserializeOwned {
    /// Table.
    const TABLE: &'static str;
    /// Class.
    const CLASS: Class;
}

/// What every backend must do; panics where it does not. Backends call it from their tests.
pub fn conformance(store: &dyn Storage) {
    let ok = "the backend works";
    let put = |k: &[u8], v: &[u8]| (k.to_vec(), Some(v.to_vec()));
    assert_eq!(store.get(b"a").expect(ok), None);
    store
        .apply(&[put(b"b", b"2"), put(b"a", b"1"), put(b"c", b"")])
        .expect(ok);
    assert_eq!(store.get(b"a").expect(ok).as_deref(), Some(&b"1"[..]));
    store
        .apply(&[
            (b"b".to_vec(), None),
            put(b"a", b"9"),
            (b"zz".to_vec(), None),
        ])
        .expect(ok);
    let all = store.scan().expect(ok);
    assert_eq!(
        all,
        [(b"a".to_vec(), b"9".to_vec()), (b"c".to_vec(), vec![])],
        "scan is ordered and complete"
    );
    let big = vec![7; 3 << 20];
    store.apply(&[put(b"big", &big)]).expect(ok);
    assert_eq!(store.get(b"big").expect(ok), Some(big));
    store.apply(&[]).expect(ok);
}
