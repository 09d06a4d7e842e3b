//! The coordinator's storage: sealed records behind a small trait, with keys that can be destroyed.
//!
//! Every record is encrypted (AES-256-GCM) under a key of its class: a subject's key, a
//! checkpoint's key, or the public class. Deleting is destroying the key: the database may keep old
//! bytes for as long as it likes. An authenticated count and digest over all records turns loss,
//! swap and truncation into errors. A write is acknowledged only after it is flushed, and counted
//! outside the database, so that an older one is told apart. Entry types: [`sealed::SealedStore`],
//! [`logfile::LogFile`].
//!
//! ```
//! use lethe_store::memory::MemoryStorage;
//! use lethe_store::sealed::{Batch, KeyName, SealedStore};
//! use lethe_store::{Class, Persisted};
//! #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
//! struct Note(String);
//! impl Persisted for Note {
//!     const TABLE: &'static str = "notes";
//!     const CLASS: Class = Class::Subject;
//! }
//! let dir = tempfile::tempdir()?;
//! let store = SealedStore::open(&|_| Ok(Box::<MemoryStorage>::default()), dir.path(), &[])?;
//! let key = KeyName::subject("alice");
//! store.write(Batch::new().put(&key, "1", &Note("likes Heat".into()))?)?;
//! store.destroy(&[key])?;
//! assert_eq!(store.get::<Note>("1")?, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod asking;
mod batch;
mod database;
pub mod head;
mod hold;
pub mod keyfile;
mod keyring;
pub mod keys;
pub mod logfile;
pub mod memory;
mod mirror;
mod outside;
mod part;
pub mod private;
pub mod reserve;
pub mod sealed;
pub mod sled_backend;
mod storage;
pub mod transparency;

pub use hold::hold;
pub use storage::{Class, Persisted, Record, Storage, StoreError, Write, conformance};
