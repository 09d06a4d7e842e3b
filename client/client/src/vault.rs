//! The client's state in one sealed file, written atomically.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use lethe_proto::codec;
use lethe_proto::ids::Digest;
use lethe_proto::payload::WireFormat;
use lethe_transport::identity::Identity;
use serde::{Deserialize, Serialize};

use crate::ClientError;
use crate::frozen::FrozenStore;
use crate::history::{Cutoffs, Joined, LocalEvent};

/// Largest state file, in bytes.
const MAX_STATE: usize = 64 << 20;

/// Everything that a client keeps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) identity: Option<Identity>,
    /// Authority that the coordinator's certificate must come from, DER.
    pub(crate) authority: Vec<u8>,
    /// Salt of the commitments to the history.
    pub(crate) salt: [u8; 32],
    /// In chronological order.
    pub(crate) events: Vec<LocalEvent>,
    /// How the history is divided, where the app said so.
    pub(crate) cutoffs: Option<Cutoffs>,
    /// What the coordinator was last known to count: the only data that is trained on in this epoch.
    pub(crate) joined: Option<Joined>,
    /// What the last join offered, until the coordinator's answer says whether it counts.
    pub(crate) offered: Option<Joined>,
    /// The last list that the coordinator helped to rank: `(item, score)`.
    pub(crate) cached: Vec<(String, f32)>,
}

/// A folder with a sealed state file and, unless the app brings its own key, the key beside it.
#[derive(Debug)]
pub(crate) struct Vault {
    folder: PathBuf,
    key: [u8; 32],
}

impl Vault {
    /// Opens or creates the folder; an app should pass a key from the platform's key store.
    pub(crate) fn open(folder: &Path, key: Option<[u8; 32]>) -> Result<(Self, State), ClientError> {
        fs::create_dir_all(folder).map_err(io(folder))?;
        let key = match key {
            Some(key) => key,
            None => key_file(&folder.join("device.key"))?,
        };
        let vault = Self { folder: folder.to_owned(), key };
        let path = vault.path();
        let state = match fs::read(&path) {
            Ok(bytes) => {
                let plain = lethe_seal::unseal(&vault.key, b"lethe-client-state", &bytes);
                let state = plain.and_then(|p| codec::from_bytes(&p, MAX_STATE).ok());
                state.ok_or(ClientError::Sealed { path })?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => State { salt: random()?, ..State::default() },
            Err(e) => return Err(io(&path)(e)),
        };
        Ok((vault, state))
    }

    fn path(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Replaces the state; the old one is there until the new one is complete.
    pub(crate) fn save(&self, state: &State) -> Result<(), ClientError> {
        let plain = codec::to_bytes(state).map_err(|e| ClientError::Internal(e.to_string()))?;
        let sealed = lethe_seal::seal(&self.key, b"lethe-client-state", &plain)
            .map_err(|e| ClientError::Internal(e.to_string()))?;
        write_atomically(&self.path(), &sealed)
    }

    fn frozen_folder(&self) -> PathBuf {
        self.folder.join("frozen")
    }

    /// The states of frozen layers that belong to `under` (recipe and model); others are removed.
    pub(crate) fn frozen(&self, under: Digest, form: (usize, WireFormat)) -> Result<FrozenStore, ClientError> {
        FrozenStore::open(&self.frozen_folder(), self.key, under, form)
    }

    /// Removes all states of frozen layers.
    pub(crate) fn drop_frozen(&self) -> Result<(), ClientError> {
        FrozenStore::clear(&self.frozen_folder())
    }

    /// Destroys the key file, the state, and states of frozen layers.
    pub(crate) fn erase(&mut self) -> Result<(), ClientError> {
        self.key = random()?;
        let key = self.folder.join("device.key");
        if let Ok(mut f) = fs::OpenOptions::new().write(true).open(&key) {
            f.write_all(&[0; 32]).and_then(|()| f.sync_all()).map_err(io(&key))?;
        }
        for path in [key, self.path()] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&path)(e)),
                _ => {}
            }
        }
        self.drop_frozen()
    }
}

fn random() -> Result<[u8; 32], ClientError> {
    lethe_seal::random().map_err(|e| ClientError::Internal(e.to_string()))
}

fn key_file(path: &Path) -> Result<[u8; 32], ClientError> {
    match fs::read(path) {
        Ok(bytes) => bytes.try_into().map_err(|_| ClientError::Sealed { path: path.to_owned() }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let key = random()?;
            write_atomically(path, &key)?;
            Ok(key)
        }
        Err(e) => Err(io(path)(e)),
    }
}

pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ClientError> {
    // Temporary files are private to the user, and stay so when they take the final name.
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut temp = tempfile::NamedTempFile::new_in(folder).map_err(io(path))?;
    temp.write_all(bytes).and_then(|()| temp.as_file().sync_all()).map_err(io(path))?;
    temp.persist(path).map_err(|e| io(path)(e.error))?;
    Ok(())
}

pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ClientError {
    let path = path.to_owned();
    move |source| ClientError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_sealed_and_gone_after_erasure() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut vault, mut state) = Vault::open(dir.path(), None).expect("opens");
        state.events.push(LocalEvent { item: "canary-item".into(), liked: true, time: 3 });
        vault.save(&state).expect("writes");
        let raw = fs::read(dir.path().join("state")).expect("reads");
        assert!(!raw.windows(6).any(|w| w == b"canary"));
        assert_eq!(Vault::open(dir.path(), None).expect("opens").1.events, state.events);
        assert!(matches!(Vault::open(dir.path(), Some([1; 32])), Err(ClientError::Sealed { .. })));
        vault.erase().expect("erases");
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 0);
    }
}
