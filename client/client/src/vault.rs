//! The client's folder: sealed files, a lock, and how all of it is destroyed.
//!
//! | file | what |
//! |---|---|
//! | `identity` | certificate, keys that were seen; replaced as a whole |
//! | `epochs` | what each epoch was joined with: the only data that trains in it |
//! | `history` | events, appended to ([`crate::log`]) |
//! | `snapshot` | the newest tables; losing it costs a fetch |
//! | `list` | the last list of the language model |
//! | `catalogue` | versions of the catalogue beyond the app's; losing it costs a fetch |
//! | `contributed` | the newest contributions accepted, for an audit; losing it costs that |
//! | `sealing` | the tally that is sealed to: while it is there, nothing is contributed in clear |
//! | `log-keys` | keys of before of the coordinator's log; losing it costs a fetch |
//! | `standing` | which orders to erase were carried out |
//! | `clock` | the newest time at which the folder was used ([`crate::clock`]) |
//! | `feedback`, `frozen/` | of training; losing them costs time |
//! | `device.key` | the key; where an app brings its own, a secret for it ([`crate::renew`]) |
//! | `lock` | held by the process that has the folder open |

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lethe_proto::codec;
use lethe_proto::ids::Digest;
use lethe_proto::payload::WireFormat;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::{Zeroize, Zeroizing};

use crate::ClientError;
use crate::feedback::{Feedback, FeedbackV1};
use crate::frozen::FrozenStore;
use crate::person::Person;
use crate::{migrate, renew};

/// Largest sealed file, in bytes.
const MAX_SEALED: usize = 128 << 20;

/// Files that are sealed as a whole. The number in a label is that of the file's layout.
pub(crate) const IDENTITY: Sealed = Sealed {
    name: "identity",
    label: b"lethe-client-identity/1",
};
pub(crate) const EPOCHS: Sealed = Sealed {
    name: "epochs",
    label: b"lethe-client-epochs/1",
};
pub(crate) const SNAPSHOT: Sealed = Sealed {
    name: "snapshot",
    label: b"lethe-client-snapshot/1",
};
pub(crate) const LIST: Sealed = Sealed {
    name: "list",
    label: b"lethe-client-list/1",
};
pub(crate) const CONTRIBUTED: Sealed = Sealed {
    name: "contributed",
    label: b"lethe-client-contributed/1",
};
pub(crate) const SEALING: Sealed = Sealed {
    name: "sealing",
    label: b"lethe-client-sealing/1",
};
pub(crate) const CATALOGUE: Sealed = Sealed {
    name: "catalogue",
    label: b"lethe-client-catalogue/1",
};
pub(crate) const STANDING: Sealed = Sealed {
    name: "standing",
    label: b"lethe-client-standing/1",
};
pub(crate) const LOG_KEYS: Sealed = Sealed {
    name: "log-keys",
    label: b"lethe-client-log-keys/1",
};
pub(crate) const CLOCK: Sealed = Sealed {
    name: "clock",
    label: b"lethe-client-clock/1",
};
const FEEDBACK: Sealed = Sealed {
    name: "feedback",
    label: b"lethe-client-feedback/2",
};
const FEEDBACK_V1: &[u8] = b"lethe-client-feedback/1";
/// All of them.
pub(crate) const SEALED: [Sealed; 11] = [
    IDENTITY,
    EPOCHS,
    SNAPSHOT,
    LIST,
    CONTRIBUTED,
    SEALING,
    CATALOGUE,
    STANDING,
    LOG_KEYS,
    CLOCK,
    FEEDBACK,
];
pub(crate) const KEY: &str = "device.key";
const LOCK: &str = "lock";
/// Is there while a folder is erased.
const ERASING: &str = "erasing";
pub(crate) const HISTORY: &str = "history";
const FROZEN: &str = "frozen";

/// A sealed file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed {
    name: &'static str,
    /// Binds the bytes to what they are.
    label: &'static [u8],
}

impl Sealed {
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }
}

/// A folder with sealed files and, unless the app brings its own key, the key beside them.
#[derive(Debug)]
pub(crate) struct Vault {
    folder: PathBuf,
    key: Zeroizing<[u8; 32]>,
    /// The key that the app brings, from which `key` follows.
    app: Option<[u8; 32]>,
    /// Counts erasures: work that began before one keeps nothing after it.
    erasures: Erasures,
}

/// The folder's lock; dropping it gives the folder back.
#[derive(Debug)]
pub(crate) struct FolderLock(#[allow(dead_code, reason = "held")] fs::File);

impl FolderLock {
    /// Takes the lock of a folder, or says that another process, or client, has it.
    pub(crate) fn take(folder: &Path) -> Result<Self, ClientError> {
        let path = folder.join(LOCK);
        loop {
            let file = fs::File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(io(&path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(ClientError::InUse {
                        folder: folder.to_owned(),
                    });
                }
                Err(fs::TryLockError::Error(e)) => return Err(io(&path)(e)),
            }
            // Whoever erases a folder removes this file: the lock of a removed one is none.
            if same_file(&file, &path) {
                return Ok(Self(file));
            }
        }
    }
}

#[cfg(unix)]
fn same_file(file: &fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(held), Ok(named)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    held.dev() == named.dev() && held.ino() == named.ino()
}

#[cfg(not(unix))]
fn same_file(_: &fs::File, path: &Path) -> bool {
    path.exists()
}

/// Whether a folder holds anything that was sealed with a key.
pub(crate) fn is_begun(folder: &Path) -> Result<bool, ClientError> {
    for name in [IDENTITY.name, HISTORY, migrate::STATE] {
        let path = folder.join(name);
        if path.try_exists().map_err(io(&path))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the key in the folder opens it alone: no app has brought one.
pub(crate) fn opens_by_itself(folder: &Path) -> bool {
    let vault = Vault::peek(folder, None);
    vault.is_ok_and(|v| v.peek_person().is_ok())
}

impl Vault {
    /// Opens or creates the folder, whose lock the caller has; an app should pass a key from the
    /// platform's key store.
    pub(crate) fn open(folder: &Path, app: Option<[u8; 32]>) -> Result<Self, ClientError> {
        renew::settle(folder)?;
        let key = match kept_key(folder, app)? {
            Some(key) => key,
            // A key of its own would make the folder one that no other key opens.
            None if is_begun(folder)? => {
                return Err(ClientError::KeyLost {
                    folder: folder.to_owned(),
                });
            }
            None => make_key(&folder.join(KEY))?,
        };
        remove_leftovers(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            key: Zeroizing::new(key),
            app,
            erasures: Erasures::default(),
        })
    }

    /// What is known of the person; nothing in a new folder, or after an erasure that did not end.
    pub(crate) fn person(&self) -> Result<Person, ClientError> {
        if let Some(person) = self.read(IDENTITY)? {
            return Ok(person);
        }
        self.drop_frozen()?;
        Ok(Person {
            salt: random()?,
            ..Person::default()
        })
    }

    /// A folder that somebody else may have open, to read from only.
    pub(crate) fn peek(folder: &Path, app: Option<[u8; 32]>) -> Result<Self, ClientError> {
        if renew::is_under_way(folder) {
            // Half of it is under another key until the app has opened it.
            return Err(ClientError::InUse {
                folder: folder.to_owned(),
            });
        }
        let path = folder.join(KEY);
        let missing = || io(&path)(std::io::ErrorKind::NotFound.into());
        Ok(Self {
            folder: folder.to_owned(),
            key: Zeroizing::new(kept_key(folder, app)?.ok_or_else(missing)?),
            app,
            erasures: Erasures::default(),
        })
    }

    /// The person's file, as it is there.
    pub(crate) fn peek_person(&self) -> Result<Person, ClientError> {
        if let Some(person) = self.read(IDENTITY)? {
            return Ok(person);
        }
        match migrate::read(&self.folder, &self.key)? {
            Some(old) => Ok(old.person),
            None => Err(io(&self.path(IDENTITY))(
                std::io::ErrorKind::NotFound.into(),
            )),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn key(&self) -> [u8; 32] {
        *self.key
    }

    pub(crate) fn app(&self) -> Option<&[u8; 32]> {
        self.app.as_ref()
    }

    /// From now on everything is sealed under this key.
    pub(crate) fn take_key(&mut self, key: [u8; 32]) {
        self.key = Zeroizing::new(key);
    }

    /// The file of the history.
    pub(crate) fn history(&self) -> PathBuf {
        self.folder.join(HISTORY)
    }

    fn path(&self, file: Sealed) -> PathBuf {
        self.folder.join(file.name)
    }

    /// Reads a sealed file, if it is there.
    ///
    /// # Errors
    /// [`ClientError::Sealed`] if it does not open.
    pub(crate) fn read<T: DeserializeOwned>(&self, file: Sealed) -> Result<Option<T>, ClientError> {
        let path = self.path(file);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(&path)(e)),
        };
        let plain = lethe_seal::unseal(&self.key, file.label, &bytes);
        let value = plain.and_then(|p| codec::from_bytes(&p, MAX_SEALED).ok());
        value.map(Some).ok_or(ClientError::Sealed { path })
    }

    /// What a sealed file holds, as bytes; none: it is not there, or it is damaged.
    pub(crate) fn opened(&self, file: Sealed) -> Result<Option<Vec<u8>>, ClientError> {
        let path = self.path(file);
        match fs::read(&path) {
            Ok(bytes) => Ok(lethe_seal::unseal(&self.key, file.label, &bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io(&path)(e)),
        }
    }

    /// Bytes of a sealed file under a key.
    pub(crate) fn seal(key: &[u8; 32], file: Sealed, plain: &[u8]) -> Result<Vec<u8>, ClientError> {
        let sealed = lethe_seal::seal(key, file.label, plain);
        sealed.map_err(|e| ClientError::Internal(e.to_string()))
    }

    /// The same for a value.
    pub(crate) fn sealed<T: Serialize>(
        key: &[u8; 32],
        file: Sealed,
        value: &T,
    ) -> Result<Vec<u8>, ClientError> {
        let plain = codec::to_bytes(value).map_err(|e| ClientError::Internal(e.to_string()))?;
        Self::seal(key, file, &plain)
    }

    /// Replaces a sealed file; the old one is there until the new one is complete.
    pub(crate) fn write<T: Serialize>(&self, file: Sealed, value: &T) -> Result<(), ClientError> {
        let sealed = Self::sealed(&self.key, file, value)?;
        write_atomically(&self.path(file), &sealed)
    }

    /// Removes a sealed file.
    pub(crate) fn remove(&self, file: Sealed) -> Result<(), ClientError> {
        if remove_file(&self.path(file))? {
            sync_folder(&self.folder)?;
        }
        Ok(())
    }

    fn frozen_folder(&self) -> PathBuf {
        self.folder.join(FROZEN)
    }

    /// The states of frozen layers that belong to `under` (recipe and model); others are removed.
    pub(crate) fn frozen(
        &self,
        under: Digest,
        width: usize,
        format: WireFormat,
    ) -> Result<FrozenStore, ClientError> {
        FrozenStore::open(
            &self.frozen_folder(),
            *self.key,
            under,
            width,
            format,
            self.erasures.clone(),
        )
    }

    /// Removes all states of frozen layers.
    pub(crate) fn drop_frozen(&self) -> Result<(), ClientError> {
        self.erasures
            .erase(|| FrozenStore::clear(&self.frozen_folder()))
    }

    /// What works in the background keeps nothing from now on: somebody else may open the folder.
    pub(crate) fn leave(&self) {
        self.erasures.erase(|| ());
    }

    /// What compressed updates left out; nothing when there is no file, or it is damaged.
    pub(crate) fn feedback(&self) -> Result<Feedback, ClientError> {
        match self.read(FEEDBACK) {
            Ok(kept) => Ok(kept.unwrap_or_default()),
            Err(ClientError::Sealed { path }) => {
                let bytes = fs::read(&path).map_err(io(&path))?;
                let plain = lethe_seal::unseal(&self.key, FEEDBACK_V1, &bytes);
                let old = plain.and_then(|p| codec::from_bytes::<FeedbackV1>(&p, MAX_SEALED).ok());
                Ok(old.map(Feedback::from).unwrap_or_default())
            }
            Err(e) => Err(e),
        }
    }

    pub(crate) fn keep_feedback(&self, feedback: &Feedback) -> Result<(), ClientError> {
        self.write(FEEDBACK, feedback)
    }

    /// Removes what was learned from data that is to go.
    pub(crate) fn drop_feedback(&self) -> Result<(), ClientError> {
        self.remove(FEEDBACK)
    }

    /// Destroys everything. After an error it may be repeated.
    pub(crate) fn erase(&mut self) -> Result<(), ClientError> {
        self.erasures.erase(|| destroy(&self.folder))?;
        zero(&mut self.key);
        if let Some(app) = &mut self.app {
            zero(app);
        }
        Ok(())
    }
}

/// Overwrites a key: a plain write may be left out by the compiler.
pub(crate) fn zero(key: &mut [u8; 32]) {
    key.zeroize();
}

/// Ends an erasure that a crash has cut short; returns whether there was one. The folder's lock is
/// gone then, too.
pub(crate) fn ends_an_erasure(folder: &Path) -> Result<bool, ClientError> {
    let found = folder.join(ERASING).exists();
    if found {
        destroy(folder)?;
    }
    Ok(found)
}

/// Destroys what clients keep in a folder: the key first. Other files stay.
pub(crate) fn destroy(folder: &Path) -> Result<(), ClientError> {
    write_atomically(&folder.join(ERASING), &[])?;
    renew::overwrite(&folder.join(KEY))?;
    renew::destroy(folder)?;
    let sealed = SEALED.iter().map(|s| s.name);
    for name in [KEY, HISTORY, migrate::STATE].into_iter().chain(sealed) {
        remove_file(&folder.join(name))?;
    }
    FrozenStore::clear(&folder.join(FROZEN))?;
    remove_leftovers(folder)?;
    remove_file(&folder.join(LOCK))?;
    sync_folder(folder)?;
    remove_file(&folder.join(ERASING))?;
    sync_folder(folder)
}

/// Whether it was there.
pub(crate) fn remove_file(path: &Path) -> Result<bool, ClientError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io(path)(e)),
    }
}

/// How often something was erased. Work in the background asks before it writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Erasures(Arc<Mutex<u64>>);

impl Erasures {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number so far.
    pub(crate) fn count(&self) -> u64 {
        *self.lock()
    }

    /// Writes, unless something was erased since `count`.
    pub(crate) fn unless_since<T>(&self, count: u64, write: impl FnOnce() -> T) -> Option<T> {
        let now = self.lock();
        (*now == count).then(write)
    }

    fn erase<T>(&self, erase: impl FnOnce() -> T) -> T {
        let mut now = self.lock();
        *now += 1;
        erase()
    }
}

/// What a kill in the middle of a write leaves: sealed copies under temporary names.
fn remove_leftovers(folder: &Path) -> Result<(), ClientError> {
    for entry in fs::read_dir(folder)
        .map_err(io(folder))?
        .filter_map(Result::ok)
    {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            fs::remove_file(entry.path()).map_err(io(folder))?;
        }
    }
    Ok(())
}

const TEMPORARY: &str = ".lethe-";

/// Makes names that were written or removed durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), ClientError> {
    #[cfg(unix)]
    fs::File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(io(folder))?;
    Ok(())
}

pub(crate) fn random() -> Result<[u8; 32], ClientError> {
    lethe_seal::random().map_err(|e| ClientError::Internal(e.to_string()))
}

/// The key that seals a folder; none: there is no file of one, and the app brings none.
fn kept_key(folder: &Path, app: Option<[u8; 32]>) -> Result<Option<[u8; 32]>, ClientError> {
    let path = folder.join(KEY);
    let secret: [u8; 32] = match fs::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|_| ClientError::Sealed { path })?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(app),
        Err(e) => return Err(io(&path)(e)),
    };
    Ok(Some(renew::key_of(app.as_ref(), &secret)))
}

fn make_key(path: &Path) -> Result<[u8; 32], ClientError> {
    let key = random()?;
    write_atomically(path, &key)?;
    Ok(key)
}

pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ClientError> {
    // Temporary files are private to the user, and stay so when they take the final name.
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut temp = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(folder)
        .map_err(io(path))?;
    temp.write_all(bytes)
        .and_then(|()| temp.as_file().sync_all())
        .map_err(io(path))?;
    temp.persist(path).map_err(|e| io(path)(e.error))?;
    sync_folder(folder)
}

pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ClientError {
    let path = path.to_owned();
    move |source| ClientError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_that_outlives_an_erasure_keeps_nothing() {
        use lethe_model::frozen::FrozenStates;
        let dir = tempfile::tempdir().expect("tempdir");
        let mut vault = Vault::open(dir.path(), Some([5; 32])).expect("opens");
        let running = vault
            .frozen(Digest([1; 32]), 2, WireFormat::F16)
            .expect("opens");
        running.put(&[1], &[0.5, 1.0]);
        assert!(dir.path().join("frozen").exists());
        vault.drop_frozen().expect("drops");
        running.put(&[2], &[0.5, 1.0]);
        assert!(
            !dir.path().join("frozen").exists(),
            "it began before the erasure"
        );
        vault
            .frozen(Digest([1; 32]), 2, WireFormat::F16)
            .expect("opens")
            .put(&[2], &[0.5, 1.0]);
        assert!(
            dir.path().join("frozen").exists(),
            "this one began after it"
        );
        fs::write(dir.path().join(".lethe-left"), b"x").expect("writes");
        vault.erase().expect("erases");
        assert_eq!(
            fs::read_dir(dir.path()).expect("reads").count(),
            0,
            "nothing is left"
        );
    }

    #[test]
    fn files_are_sealed_and_gone_after_erasure() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut vault = Vault::open(dir.path(), None).expect("opens");
        let mut person = vault.person().expect("a new one");
        person.invitation = Some("canary-invitation".into());
        vault.write(IDENTITY, &person).expect("writes");
        let raw = fs::read(dir.path().join("identity")).expect("reads");
        assert!(!raw.windows(6).any(|w| w == b"canary"));
        let again = Vault::open(dir.path(), None).expect("opens");
        assert_eq!(again.person().expect("opens").invitation, person.invitation);
        let other = Vault::open(dir.path(), Some([1; 32])).expect("opens");
        assert!(matches!(other.person(), Err(ClientError::Sealed { .. })));
        vault.erase().expect("erases");
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 0);
    }

    #[test]
    fn one_client_has_a_folder() {
        let dir = tempfile::tempdir().expect("tempdir");
        let lock = FolderLock::take(dir.path()).expect("free");
        assert!(matches!(
            FolderLock::take(dir.path()),
            Err(ClientError::InUse { .. })
        ));
        drop(lock);
        FolderLock::take(dir.path()).expect("free again");
    }
}
