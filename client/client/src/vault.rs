//! The client's state in one sealed file, written atomically.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lethe_proto::codec;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::payload::WireFormat;
use lethe_receipt::order::SeenHead;
use lethe_transport::identity::Identity;
use serde::{Deserialize, Serialize};

use crate::ClientError;
use crate::feedback::{Feedback, FeedbackV1};
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
    /// What the coordinator was last known to count: the only data that is trained on in this
    /// epoch.
    pub(crate) joined: Option<Joined>,
    /// What the last join offered, until the coordinator's answer says whether it counts.
    pub(crate) offered: Option<Joined>,
    /// Consent is withdrawn from this time on, in seconds since 1970.
    pub(crate) consent_until: Option<i64>,
    /// The last list that the coordinator helped to rank: `(item, score)`.
    pub(crate) cached: Vec<(String, f32)>,
    /// The list must not be shown after this time, in seconds since 1970: a deletion may have
    /// changed what it stands on.
    pub(crate) cached_until: i64,
    /// The newest lineage of a release seen: deletions up to this number are in what is served.
    pub(crate) lineage: u64,
    /// Whose history this is, as the coordinator said at an enrolment.
    pub(crate) subject: Option<SubjectId>,
    /// Digest of the newest invitation that was used or refused.
    pub(crate) invited: Option<Digest>,
    /// Key of the log that orders to erase must be in (verifier key text).
    pub(crate) log_key: Option<String>,
    /// The newest head of that log that was seen.
    pub(crate) head: Option<SeenHead>,
    /// What was removed for each deletion, until the coordinator knows.
    pub(crate) removed: Vec<(u64, u32)>,
    /// Events that orders have removed since the person last consented to one.
    pub(crate) ordered_away: u64,
    /// The release that `cached` was ranked with.
    pub(crate) cached_release: u64,
}

/// The state as the version before wrote it.
#[derive(Deserialize)]
struct StateV2 {
    identity: Option<Identity>,
    authority: Vec<u8>,
    salt: [u8; 32],
    events: Vec<LocalEvent>,
    cutoffs: Option<Cutoffs>,
    joined: Option<Joined>,
    offered: Option<Joined>,
    consent_until: Option<i64>,
    cached: Vec<(String, f32)>,
    cached_until: i64,
    lineage: u64,
}

impl From<StateV2> for State {
    fn from(old: StateV2) -> Self {
        Self {
            identity: old.identity,
            authority: old.authority,
            salt: old.salt,
            events: old.events,
            cutoffs: old.cutoffs,
            joined: old.joined,
            offered: old.offered,
            consent_until: old.consent_until,
            cached: old.cached,
            cached_until: old.cached_until,
            lineage: old.lineage,
            ..Self::default()
        }
    }
}

/// Opens a sealed state of this version or the one before.
fn unseal(key: &[u8; 32], bytes: &[u8]) -> Option<State> {
    if let Some(plain) = lethe_seal::unseal(key, STATE, bytes) {
        return codec::from_bytes(&plain, MAX_STATE).ok();
    }
    let plain = lethe_seal::unseal(key, STATE_V2, bytes)?;
    codec::from_bytes::<StateV2>(&plain, MAX_STATE)
        .ok()
        .map(State::from)
}

/// A folder with a sealed state file and, unless the app brings its own key, the key beside it.
#[derive(Debug)]
pub(crate) struct Vault {
    folder: PathBuf,
    key: [u8; 32],
    /// Counts erasures: work that began before one keeps nothing after it.
    erasures: Erasures,
}

impl Vault {
    /// Opens or creates the folder; an app should pass a key from the platform's key store.
    pub(crate) fn open(folder: &Path, key: Option<[u8; 32]>) -> Result<(Self, State), ClientError> {
        fs::create_dir_all(folder).map_err(io(folder))?;
        let key = match key {
            Some(key) => key,
            None => key_file(&folder.join("device.key"))?,
        };
        remove_leftovers(folder)?;
        let vault = Self {
            folder: folder.to_owned(),
            key,
            erasures: Erasures::default(),
        };
        let path = vault.path();
        let state = match fs::read(&path) {
            Ok(bytes) => unseal(&vault.key, &bytes).ok_or(ClientError::Sealed { path })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // An erasure that did not end; or nothing at all.
                vault.drop_frozen()?;
                State {
                    salt: random()?,
                    ..State::default()
                }
            }
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
        let sealed = lethe_seal::seal(&self.key, STATE, &plain)
            .map_err(|e| ClientError::Internal(e.to_string()))?;
        write_atomically(&self.path(), &sealed)
    }

    fn frozen_folder(&self) -> PathBuf {
        self.folder.join("frozen")
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
            self.key,
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

    fn feedback_path(&self) -> PathBuf {
        self.folder.join("feedback")
    }

    /// What compressed updates left out; nothing when there is no file, or it is damaged.
    pub(crate) fn feedback(&self) -> Result<Feedback, ClientError> {
        let path = self.feedback_path();
        match fs::read(&path) {
            Ok(bytes) => {
                if let Some(plain) = lethe_seal::unseal(&self.key, FEEDBACK, &bytes) {
                    return Ok(codec::from_bytes(&plain, MAX_STATE).unwrap_or_default());
                }
                let plain = lethe_seal::unseal(&self.key, FEEDBACK_V1, &bytes);
                let old = plain.and_then(|p| codec::from_bytes::<FeedbackV1>(&p, MAX_STATE).ok());
                Ok(old.map(Feedback::from).unwrap_or_default())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Feedback::default()),
            Err(e) => Err(io(&path)(e)),
        }
    }

    pub(crate) fn keep_feedback(&self, feedback: &Feedback) -> Result<(), ClientError> {
        let plain = codec::to_bytes(feedback).map_err(|e| ClientError::Internal(e.to_string()))?;
        let sealed = lethe_seal::seal(&self.key, FEEDBACK, &plain)
            .map_err(|e| ClientError::Internal(e.to_string()))?;
        write_atomically(&self.feedback_path(), &sealed)
    }

    /// Removes what was learned from data that is to go.
    pub(crate) fn drop_feedback(&self) -> Result<(), ClientError> {
        match fs::remove_file(self.feedback_path()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(&self.feedback_path())(e)),
            _ => Ok(()),
        }
    }

    /// Destroys states of frozen layers, the key file and the state. After an error it may be
    /// repeated.
    pub(crate) fn erase(&mut self) -> Result<(), ClientError> {
        self.drop_frozen()?;
        self.drop_feedback()?;
        self.key = random()?;
        let key = self.folder.join("device.key");
        if let Ok(mut f) = fs::OpenOptions::new().write(true).open(&key) {
            f.write_all(&[0; 32])
                .and_then(|()| f.sync_all())
                .map_err(io(&key))?;
        }
        for path in [key, self.path()] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&path)(e)),
                _ => {}
            }
        }
        remove_leftovers(&self.folder)?;
        sync_folder(&self.folder)
    }
}

const FEEDBACK: &[u8] = b"lethe-client-feedback/2";
const FEEDBACK_V1: &[u8] = b"lethe-client-feedback/1";

/// Binds a sealed file to what it is; the number is that of its layout.
const STATE: &[u8] = b"lethe-client-state/3";
const STATE_V2: &[u8] = b"lethe-client-state/2";

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

/// What a kill in the middle of a write leaves: sealed copies of the state under temporary names.
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

fn random() -> Result<[u8; 32], ClientError> {
    lethe_seal::random().map_err(|e| ClientError::Internal(e.to_string()))
}

fn key_file(path: &Path) -> Result<[u8; 32], ClientError> {
    match fs::read(path) {
        Ok(bytes) => bytes.try_into().map_err(|_| ClientError::Sealed {
            path: path.to_owned(),
        }),
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
        let (mut vault, _) = Vault::open(dir.path(), Some([5; 32])).expect("opens");
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
    fn the_state_of_the_version_before_opens_with_its_history() {
        #[derive(Serialize)]
        struct Old {
            identity: Option<Identity>,
            authority: Vec<u8>,
            salt: [u8; 32],
            events: Vec<LocalEvent>,
            cutoffs: Option<Cutoffs>,
            joined: Option<Joined>,
            offered: Option<Joined>,
            consent_until: Option<i64>,
            cached: Vec<(String, f32)>,
            cached_until: i64,
            lineage: u64,
        }
        let dir = tempfile::tempdir().expect("tempdir");
        let event = LocalEvent {
            item: "i1".into(),
            liked: true,
            time: 5,
        };
        let old = Old {
            identity: None,
            authority: vec![1, 2],
            salt: [7; 32],
            events: vec![event.clone()],
            cutoffs: None,
            joined: None,
            offered: None,
            consent_until: Some(9),
            cached: vec![("i2".into(), 0.5)],
            cached_until: 8,
            lineage: 4,
        };
        let plain = codec::to_bytes(&old).expect("encodes");
        let sealed = lethe_seal::seal(&[3; 32], STATE_V2, &plain).expect("seals");
        fs::write(dir.path().join("state"), sealed).expect("writes");
        let (_, state) = Vault::open(dir.path(), Some([3; 32])).expect("opens");
        assert_eq!((state.events, state.salt), (vec![event], [7; 32]));
        assert_eq!((state.consent_until, state.lineage), (Some(9), 4));
        assert_eq!((state.cached.len(), state.cached_release), (1, 0));
    }

    #[test]
    fn state_is_sealed_and_gone_after_erasure() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut vault, mut state) = Vault::open(dir.path(), None).expect("opens");
        state.events.push(LocalEvent {
            item: "canary-item".into(),
            liked: true,
            time: 3,
        });
        vault.save(&state).expect("writes");
        let raw = fs::read(dir.path().join("state")).expect("reads");
        assert!(!raw.windows(6).any(|w| w == b"canary"));
        assert_eq!(
            Vault::open(dir.path(), None).expect("opens").1.events,
            state.events
        );
        assert!(matches!(
            Vault::open(dir.path(), Some([1; 32])),
            Err(ClientError::Sealed { .. })
        ));
        vault.erase().expect("erases");
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 0);
    }
}
