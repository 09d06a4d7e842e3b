//! Keys that can be destroyed: a small encrypted file, rewritten under a fresh master key at every change.
//!
//! Generation n is two files, `master-n` (32 bytes) and `keyring-n` (sealed under it). A change writes generation
//! n+1, syncs it, then overwrites `master-n` in place and removes both: an old keyring that a disk still holds
//! somewhere cannot be opened any more. A crash in between leaves two generations; opening keeps the newer. Each of the two
//! files is there twice (`.copy`): one that is damaged is not missed.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use lethe_proto::codec;
use lethe_seal::{random, seal, unseal};
use serde::{Deserialize, Serialize};

use crate::StoreError;

const COPY: &str = ".copy";
const COPIES: [&str; 2] = ["", COPY];

/// A key and the random handle that records carry instead of its name.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) handle: [u8; 16],
    pub(crate) secret: [u8; 32],
}

/// Named keys on disk.
#[derive(Debug)]
pub(crate) struct Keyring {
    folder: PathBuf,
    generation: u64,
    keys: BTreeMap<String, Key>,
    /// Names by handle.
    names: HashMap<[u8; 16], String>,
    /// Generations that are still to be wiped.
    stale: Vec<u64>,
}

impl Keyring {
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(StoreError::io(folder))?;
        let mut generations: Vec<u64> = vec![];
        for entry in fs::read_dir(folder).map_err(StoreError::io(folder))? {
            let name = entry.map_err(StoreError::io(folder))?.file_name();
            generations.extend(
                name.to_str().and_then(|n| n.trim_end_matches(COPY).strip_prefix("keyring-")?.parse::<u64>().ok()),
            );
        }
        generations.sort_unstable();
        generations.dedup();
        let opened = generations.iter().rev().find_map(|g| Some((*g, load(folder, *g)?)));
        let (generation, (keys, whole)) = match opened {
            Some(found) => found,
            None if generations.is_empty() => (0, (BTreeMap::new(), true)),
            None => {
                let why = "no generation of the keyring opens with its master key".into();
                return Err(StoreError::Corrupt { name: folder.display().to_string(), why });
            }
        };
        let stale = generations.into_iter().filter(|g| *g != generation).collect();
        let names = names(&keys);
        let mut ring = Self { folder: folder.to_owned(), generation, keys, names, stale };
        ring.wipe_stale()?;
        if !whole {
            ring.replace(ring.keys.clone())?;
        }
        Ok(ring)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Key> {
        self.keys.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Key)> {
        self.keys.iter()
    }

    /// The key that records name by this handle.
    pub(crate) fn by_handle(&self, handle: &[u8; 16]) -> Option<(&String, &Key)> {
        self.keys.get_key_value(self.names.get(handle)?)
    }

    /// Makes sure that these keys exist; one rewrite for all that are new.
    pub(crate) fn ensure(&mut self, names: &[&str]) -> Result<(), StoreError> {
        self.wipe_stale()?;
        let missing: Vec<&&str> = names.iter().filter(|n| !self.keys.contains_key(**n)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut keys = self.keys.clone();
        for name in missing {
            keys.insert((*name).to_owned(), Key { handle: random()?, secret: random()? });
        }
        self.replace(keys)
    }

    /// Destroys these keys; returns how many existed. After an error it may be repeated until it succeeds: only then is
    /// the old master key overwritten for certain.
    pub(crate) fn destroy(&mut self, names: &[&str]) -> Result<usize, StoreError> {
        self.wipe_stale()?;
        let mut keys = self.keys.clone();
        let gone = names.iter().filter(|n| keys.remove(**n).is_some()).count();
        if gone > 0 {
            self.replace(keys)?;
        }
        Ok(gone)
    }

    fn replace(&mut self, keys: BTreeMap<String, Key>) -> Result<(), StoreError> {
        let next = self.generation + 1;
        let master: [u8; 32] = random()?;
        let plain = codec::to_bytes(&keys).map_err(|e| StoreError::Encode { table: "keyring", why: e.to_string() })?;
        let sealed = seal(&master, &next.to_le_bytes(), &plain)?;
        for copy in COPIES {
            write_synced(&path(&self.folder, "master", next, copy), &master)?;
            write_synced(&path(&self.folder, "keyring", next, copy), &sealed)?;
        }
        sync_folder(&self.folder)?;
        let old = std::mem::replace(&mut self.generation, next);
        self.names = names(&keys);
        self.keys = keys;
        if old > 0 {
            self.stale.push(old);
        }
        self.wipe_stale()
    }

    /// Wipes old generations; those that an error leaves are tried again at the next change.
    fn wipe_stale(&mut self) -> Result<(), StoreError> {
        while let Some(g) = self.stale.last().copied() {
            self.wipe(g)?;
            self.stale.pop();
        }
        Ok(())
    }

    fn wipe(&self, generation: u64) -> Result<(), StoreError> {
        for copy in COPIES {
            let master = path(&self.folder, "master", generation, copy);
            if let Ok(mut f) = OpenOptions::new().write(true).open(&master) {
                f.write_all(&[0; 32]).and_then(|()| f.sync_all()).map_err(StoreError::io(&master))?;
            }
            for path in [master, path(&self.folder, "keyring", generation, copy)] {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(StoreError::io(&path)(e)),
                    _ => {}
                }
            }
        }
        sync_folder(&self.folder)
    }
}

fn path(folder: &Path, kind: &str, generation: u64, copy: &str) -> PathBuf {
    folder.join(format!("{kind}-{generation}{copy}"))
}

fn names(keys: &BTreeMap<String, Key>) -> HashMap<[u8; 16], String> {
    keys.iter().map(|(name, k)| (k.handle, name.clone())).collect()
}

/// The keys of a generation, from whichever copies fit each other, and whether all did.
fn load(folder: &Path, generation: u64) -> Option<(BTreeMap<String, Key>, bool)> {
    let mut found = None;
    let mut whole = true;
    for master in COPIES {
        for keyring in COPIES {
            let keys = load_one(
                &path(folder, "master", generation, master),
                &path(folder, "keyring", generation, keyring),
                generation,
            );
            whole &= keys.is_some();
            found = found.or(keys);
        }
    }
    Some((found?, whole))
}

fn load_one(master: &Path, keyring: &Path, generation: u64) -> Option<BTreeMap<String, Key>> {
    let master: [u8; 32] = fs::read(master).ok()?.try_into().ok()?;
    let sealed = fs::read(keyring).ok()?;
    codec::from_bytes(&unseal(&master, &generation.to_le_bytes(), &sealed)?, 256 << 20).ok()
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut f = options.open(path).map_err(StoreError::io(path))?;
    f.write_all(bytes).and_then(|()| f.sync_all()).map_err(StoreError::io(path))
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(StoreError::io(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destroyed_key_is_nowhere_and_old_masters_are_gone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ring = Keyring::open(dir.path()).expect("opens");
        ring.ensure(&["a", "b"]).expect("writes");
        let old = fs::read(dir.path().join("keyring-1")).expect("exists");
        let secret = ring.get("a").expect("made").secret;
        assert_eq!(ring.destroy(&["a", "zz"]).expect("destroys"), 1);
        fs::write(dir.path().join("keyring-1"), old).expect("an old copy comes back");
        let ring = Keyring::open(dir.path()).expect("opens");
        assert!(ring.get("a").is_none() && ring.get("b").is_some());
        for f in fs::read_dir(dir.path()).expect("reads") {
            let bytes = fs::read(f.expect("entry").path()).expect("reads");
            assert!(!bytes.windows(32).any(|w| w == secret));
        }
    }

    #[test]
    fn an_old_master_that_could_not_be_wiped_is_wiped_by_the_retry() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ring = Keyring::open(dir.path()).expect("opens");
        ring.ensure(&["a", "b"]).expect("writes");
        // A folder in the place of the old keyring makes its removal fail, as an I/O error would.
        let old = dir.path().join("keyring-1");
        fs::remove_file(&old).expect("exists");
        fs::create_dir(&old).expect("creates");
        assert!(ring.destroy(&["a"]).is_err());
        fs::remove_dir(&old).expect("exists");
        fs::write(&old, b"").expect("writes");
        ring.destroy(&["a"]).expect("the retry finishes");
        assert!(!old.exists() && ring.get("a").is_none());
    }

    #[test]
    fn a_crash_between_generations_keeps_the_newer() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ring = Keyring::open(dir.path()).expect("opens");
        ring.ensure(&["a"]).expect("writes");
        let names = ["master-1", "keyring-1", "master-1.copy", "keyring-1.copy"];
        let keep: Vec<(PathBuf, Vec<u8>)> =
            names.iter().map(|n| (dir.path().join(n), fs::read(dir.path().join(n)).expect("exists"))).collect();
        ring.ensure(&["b"]).expect("writes");
        keep.into_iter().for_each(|(p, b)| fs::write(p, b).expect("writes"));
        let ring = Keyring::open(dir.path()).expect("opens");
        assert!(ring.get("b").is_some());
        assert!(!dir.path().join("master-1").exists());
    }

    #[test]
    fn one_damaged_file_is_made_anew_and_two_of_a_kind_are_an_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ring = Keyring::open(dir.path()).expect("opens");
        ring.ensure(&["a"]).expect("writes");
        let want = *ring.get("a").expect("made");
        for name in ["keyring", "master"] {
            for copy in COPIES {
                let at = path(dir.path(), name, Keyring::open(dir.path()).expect("opens").generation, copy);
                for bytes in [&b"garbage"[..], &[0; 32]] {
                    let at = path(dir.path(), name, Keyring::open(dir.path()).expect("opens").generation, copy);
                    fs::write(&at, bytes).expect("writes");
                    assert_eq!(Keyring::open(dir.path()).expect("the copy is whole").get("a"), Some(&want));
                }
                assert!(!at.exists(), "the damaged generation is wiped");
            }
        }
        let now = Keyring::open(dir.path()).expect("opens").generation;
        COPIES.iter().for_each(|c| fs::write(path(dir.path(), "keyring", now, c), b"garbage").expect("writes"));
        assert!(matches!(Keyring::open(dir.path()), Err(StoreError::Corrupt { .. })));
    }
}
