//! Where the key is that seals the client's folder: the platform's key store.

use std::fmt;
use std::path::Path;

use thiserror::Error;
use zeroize::Zeroizing;

use crate::{ClientError, Options, vault};

/// Length of a key, in bytes.
const KEY: usize = 32;

/// Why a key store gave, or took, no key.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct KeyStoreError(String);

impl KeyStoreError {
    /// With what the platform said.
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// The platform's key store (Android's Keystore, Apple's keychain, a secret service), as an app
/// gives it to [`Options::key_store`]. It is asked when a client is opened. An entry of the store
/// is for one folder.
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// The key that was stored, 32 bytes; `None` if there is none.
    ///
    /// # Errors
    /// If the store cannot be used now: the phone is locked, for example.
    fn load(&self) -> Result<Option<Vec<u8>>, KeyStoreError>;

    /// Keeps a key, for [`Self::load`].
    ///
    /// # Errors
    /// If the store cannot be used now.
    fn store(&self, key: &[u8; 32]) -> Result<(), KeyStoreError>;

    /// Removes the key, if there is one: everything that it sealed is erased.
    ///
    /// # Errors
    /// If the store cannot be used now.
    fn remove(&self) -> Result<(), KeyStoreError>;
}

/// The key for a folder: the one that the options have, or the store's. A new folder gets a new
/// key, which is read again before anything is sealed with it.
///
/// # Errors
/// [`ClientError::KeyStore`]; [`ClientError::KeyLost`] if the folder was sealed with a key that the
/// store does not have (any more), [`ClientError::KeyInFolder`] if it was begun without a store;
/// [`ClientError::Io`].
pub(crate) fn key_of(options: &Options, folder: &Path) -> Result<Option<[u8; KEY]>, ClientError> {
    let Some(store) = &options.key_store else {
        return Ok(options.key);
    };
    let begun = vault::is_begun(folder)?;
    if begun && vault::opens_by_itself(folder) {
        return Err(ClientError::KeyInFolder {
            folder: folder.to_owned(),
        });
    }
    if let Some(key) = load(store.as_ref())? {
        return Ok(Some(*key));
    }
    if begun {
        return Err(ClientError::KeyLost {
            folder: folder.to_owned(),
        });
    }
    let fresh = Zeroizing::new(vault::random()?);
    store.store(&fresh)?;
    match load(store.as_ref())? {
        Some(key) if key == fresh => Ok(Some(*key)),
        _ => Err(KeyStoreError::new(
            "expected the key that was stored a moment ago, got another or none: the app's key \
             store does not keep what it is given",
        )
        .into()),
    }
}

fn load(store: &dyn KeyStore) -> Result<Option<Zeroizing<[u8; KEY]>>, ClientError> {
    let Some(bytes) = store.load()?.map(Zeroizing::new) else {
        return Ok(None);
    };
    let key = <[u8; KEY]>::try_from(bytes.as_slice()).map_err(|_| {
        KeyStoreError::new(format!(
            "expected a key of {KEY} bytes, got {}: give back what `KeyStore::store` was given",
            bytes.len()
        ))
    })?;
    Ok(Some(Zeroizing::new(key)))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{Catalogue, Client, LocalEvent};

    /// A store that keeps what it is given, or nothing.
    #[derive(Debug, Default)]
    struct Memory {
        key: Mutex<Option<Vec<u8>>>,
        forgets: bool,
    }

    impl KeyStore for Memory {
        fn load(&self) -> Result<Option<Vec<u8>>, KeyStoreError> {
            Ok(self.key.lock().expect("a lock").clone())
        }

        fn store(&self, key: &[u8; 32]) -> Result<(), KeyStoreError> {
            if !self.forgets {
                *self.key.lock().expect("a lock") = Some(key.to_vec());
            }
            Ok(())
        }

        fn remove(&self) -> Result<(), KeyStoreError> {
            *self.key.lock().expect("a lock") = None;
            Ok(())
        }
    }

    fn options(store: &Arc<Memory>) -> Options {
        Options::new(catalogue()).key_store(store.clone())
    }

    fn catalogue() -> Arc<Catalogue> {
        let item = lethe_recsys::data::Item {
            id: "1".into(),
            title: "One".into(),
            year: None,
            tags: vec![],
        };
        let table = lethe_parts::event::EventTable::default();
        Catalogue::new(vec![item], &table, None).expect("a table")
    }

    #[test]
    fn a_folder_that_a_store_sealed_survives_an_open_without_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Arc::new(Memory::default());
        let client = Client::open(dir.path(), options(&store)).expect("opens");
        client.record(LocalEvent::liked("1", 5)).expect("records");
        drop(client);
        let without = Client::open(dir.path(), Options::new(catalogue())).expect_err("no key");
        assert!(matches!(without, ClientError::KeyLost { .. }), "{without}");
        let client = Client::open(dir.path(), options(&store)).expect("opens");
        assert_eq!(client.history().len(), 1);
        client.erase().expect("erases");
        assert_eq!(
            *store.key.lock().expect("a lock"),
            None,
            "nothing is left that opens it"
        );
    }

    #[test]
    fn a_folder_with_its_own_key_is_not_taken_for_one_whose_key_is_lost() {
        let dir = tempfile::tempdir().expect("tempdir");
        let client = Client::open(dir.path(), Options::new(catalogue())).expect("opens");
        client.record(LocalEvent::liked("1", 5)).expect("records");
        drop(client);
        let store = Arc::new(Memory::default());
        for key in [None, Some(vec![7; 32])] {
            *store.key.lock().expect("a lock") = key.clone();
            let e = Client::open(dir.path(), options(&store)).expect_err("its own key");
            assert!(matches!(e, ClientError::KeyInFolder { .. }), "{e}");
            assert_eq!(*store.key.lock().expect("a lock"), key);
        }
        let client = Client::open(dir.path(), Options::new(catalogue())).expect("opens");
        assert_eq!(client.history().len(), 1);
    }

    #[test]
    fn a_released_folder_opens_again_while_the_handle_lives() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Arc::new(Memory::default());
        let first = Client::open(dir.path(), options(&store)).expect("opens");
        first.release();
        first.release();
        let again = Client::open(dir.path(), options(&store)).expect("it was given back");
        let e = first
            .record(LocalEvent::liked("1", 5))
            .expect_err("released");
        assert!(matches!(e, ClientError::Closed), "{e}");
        drop(first);
        again.record(LocalEvent::liked("1", 5)).expect("records");
    }

    #[test]
    fn a_new_folder_gets_a_key_which_opens_it_again() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Arc::new(Memory::default());
        let client = Client::open(dir.path(), options(&store)).expect("opens");
        client.record(LocalEvent::liked("1", 5)).expect("records");
        drop(client);
        let key = store.key.lock().expect("a lock").clone();
        assert_eq!(key.as_ref().map(Vec::len), Some(32));
        let client = Client::open(dir.path(), options(&store)).expect("opens");
        assert_eq!(client.history().len(), 1);
        assert_eq!(*store.key.lock().expect("a lock"), key, "no other key");
    }

    #[test]
    fn a_lost_key_is_said_and_loses_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Arc::new(Memory::default());
        let client = Client::open(dir.path(), options(&store)).expect("opens");
        client.record(LocalEvent::liked("1", 5)).expect("records");
        drop(client);
        let key = store.key.lock().expect("a lock").take();
        let lost = Client::open(dir.path(), options(&store)).expect_err("no key");
        assert!(matches!(lost, ClientError::KeyLost { .. }), "{lost}");
        assert_eq!(*store.key.lock().expect("a lock"), None, "none is made");
        // A key of another phone is no key of this folder.
        *store.key.lock().expect("a lock") = Some(vec![9; 32]);
        let other = Client::open(dir.path(), options(&store)).expect_err("another key");
        assert!(matches!(other, ClientError::Sealed { .. }), "{other}");
        *store.key.lock().expect("a lock") = key;
        let client = Client::open(dir.path(), options(&store)).expect("opens");
        assert_eq!(client.history().len(), 1);
        drop(client);
        // The way on when it does not come back.
        *store.key.lock().expect("a lock") = None;
        Client::erase_folder(dir.path()).expect("erases");
        let client = Client::open(dir.path(), options(&store)).expect("begins anew");
        assert!(client.history().is_empty());
    }

    #[test]
    fn a_store_that_keeps_nothing_or_something_else_is_found_before_anything_is_sealed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let forgets = Arc::new(Memory {
            forgets: true,
            ..Memory::default()
        });
        let e = Client::open(dir.path(), options(&forgets)).expect_err("keeps nothing");
        assert!(matches!(e, ClientError::KeyStore(_)), "{e}");
        let short = Arc::new(Memory::default());
        *short.key.lock().expect("a lock") = Some(vec![1; 16]);
        let e = Client::open(dir.path(), options(&short)).expect_err("16 bytes");
        assert!(e.to_string().contains("32 bytes, got 16"), "{e}");
        let good = Arc::new(Memory::default());
        Client::open(dir.path(), options(&good)).expect("nothing was sealed before");
    }
}
