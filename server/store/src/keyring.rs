//! Keys that can be destroyed: a small encrypted file, rewritten under a fresh master key whenever
//! one is.
//!
//! Generation n is `master-n` (32 bytes), `keyring-n` (sealed under it) and `added-n`: keys made
//! since, appended one sealed record at a time, so that the thousandth person costs as much as the
//! first. Destroying a key (or many additions) writes generation n+1, syncs it, then overwrites
//! `master-n` in place and removes all three: an old keyring that a disk still holds somewhere
//! cannot be opened any more. A crash in between leaves two generations; opening keeps the newer.
//! Each of the files is there twice (`.copy`): one that is damaged is not missed. How many keys
//! were ever made is counted ([`Keyring::made`]), and the databases remember it: a keyring that
//! lost its newest keys is not taken for one that destroyed them.

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
    /// Keys ever made.
    made: u64,
    master: [u8; 32],
    /// Records in `added-n`.
    added: u64,
    /// An append failed: what the file holds is not known.
    torn: bool,
    /// Names by handle.
    names: HashMap<[u8; 16], String>,
    /// Generations that are still to be wiped.
    stale: Vec<u64>,
}

impl Keyring {
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(StoreError::io(folder))?;
        let generations = numbers(folder, &["keyring"])?;
        let opened = generations
            .iter()
            .rev()
            .find_map(|g| Some((*g, load(folder, *g)?)));
        let (generation, found) = match opened {
            Some(found) => found,
            None if generations.is_empty() => (0, Found::default()),
            None => {
                let why = "no generation of the keyring opens with its master key".into();
                return Err(StoreError::Corrupt {
                    name: folder.display().to_string(),
                    why,
                });
            }
        };
        // Also what is left of one without its keyring, which a crash cut short in removing it.
        let mut stale = numbers(folder, &["keyring", "master", "added"])?;
        stale.retain(|g| *g != generation);
        let Found {
            body: Body { keys, made },
            master,
            added,
            whole,
        } = found;
        let (names, folder) = (names(&keys), folder.to_owned());
        let mut ring = Self {
            folder,
            generation,
            keys,
            made,
            master,
            added,
            torn: false,
            names,
            stale,
        };
        ring.wipe_stale()?;
        if !whole {
            ring.replace(ring.keys.clone(), ring.made)?;
        }
        Ok(ring)
    }

    /// Keys ever made, those that were destroyed among them.
    pub(crate) fn made(&self) -> u64 {
        self.made
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

    /// Whether these keys exist, and nothing of an older generation is left to be wiped.
    pub(crate) fn has_all(&self, names: &[&str]) -> bool {
        self.stale.is_empty() && names.iter().all(|n| self.keys.contains_key(*n))
    }

    /// Makes sure that these keys exist; one record for all that are new.
    pub(crate) fn ensure(&mut self, names: &[&str]) -> Result<(), StoreError> {
        self.wipe_stale()?;
        let mut missing = BTreeMap::new();
        for name in names.iter().filter(|n| !self.keys.contains_key(**n)) {
            missing.insert(
                (*name).to_owned(),
                Key {
                    handle: random()?,
                    secret: random()?,
                },
            );
        }
        if missing.is_empty() {
            return Ok(());
        }
        let many = self.added > 64 + self.keys.len() as u64 / 2;
        if self.generation == 0 || self.torn || many {
            let made = self.made + missing.len() as u64;
            let keys = self.keys.clone().into_iter().chain(missing).collect();
            return self.replace(keys, made);
        }
        self.append(missing)
    }

    /// Adds keys to the present generation.
    fn append(&mut self, new: BTreeMap<String, Key>) -> Result<(), StoreError> {
        let record = sealed(
            &self.master,
            &added_label(self.generation, self.added),
            &new,
        )?;
        let framed = [&(record.len() as u32).to_le_bytes()[..], &record].concat();
        self.torn = true;
        for copy in COPIES {
            let path = path(&self.folder, "added", self.generation, copy);
            let mut file = private(OpenOptions::new().append(true).create(true), &path)?;
            file.write_all(&framed)
                .and_then(|()| file.sync_all())
                .map_err(StoreError::io(&path))?;
        }
        if self.added == 0 {
            sync_folder(&self.folder)?;
        }
        (self.torn, self.added, self.made) = (false, self.added + 1, self.made + new.len() as u64);
        self.names
            .extend(new.iter().map(|(name, key)| (key.handle, name.clone())));
        self.keys.extend(new);
        Ok(())
    }

    /// Destroys these keys; returns how many existed. After an error it may be repeated until it
    /// succeeds: only then is the old master key overwritten for certain.
    pub(crate) fn destroy(&mut self, names: &[&str]) -> Result<usize, StoreError> {
        self.wipe_stale()?;
        let mut keys = self.keys.clone();
        let gone = names.iter().filter(|n| keys.remove(**n).is_some()).count();
        if gone > 0 {
            self.replace(keys, self.made)?;
        }
        Ok(gone)
    }

    fn replace(&mut self, keys: BTreeMap<String, Key>, made: u64) -> Result<(), StoreError> {
        let next = self.generation + 1;
        let master: [u8; 32] = random()?;
        let body = Body { keys, made };
        let sealed = sealed(&master, &next.to_le_bytes(), &body)?;
        for copy in COPIES {
            write_synced(&path(&self.folder, "master", next, copy), &master)?;
            write_synced(&path(&self.folder, "keyring", next, copy), &sealed)?;
        }
        sync_folder(&self.folder)?;
        let old = std::mem::replace(&mut self.generation, next);
        self.names = names(&body.keys);
        (self.keys, self.made, self.master, self.added, self.torn) =
            (body.keys, made, master, 0, false);
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
                f.write_all(&[0; 32])
                    .and_then(|()| f.sync_all())
                    .map_err(StoreError::io(&master))?;
            }
            let [keyring, added] =
                ["keyring", "added"].map(|kind| path(&self.folder, kind, generation, copy));
            for path in [master, keyring, added] {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(StoreError::io(&path)(e));
                    }
                    _ => {}
                }
            }
        }
        sync_folder(&self.folder)
    }
}

/// Generations of which there is a file of one of these kinds, oldest first.
fn numbers(folder: &Path, kinds: &[&str]) -> Result<Vec<u64>, StoreError> {
    let mut out: Vec<u64> = vec![];
    for entry in fs::read_dir(folder).map_err(StoreError::io(folder))? {
        let name = entry.map_err(StoreError::io(folder))?.file_name();
        let name = name.to_str().unwrap_or_default().trim_end_matches(COPY);
        let parts = name
            .split_once('-')
            .filter(|(kind, _)| kinds.contains(kind));
        out.extend(parts.and_then(|(_, number)| number.parse::<u64>().ok()));
    }
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

fn path(folder: &Path, kind: &str, generation: u64, copy: &str) -> PathBuf {
    folder.join(format!("{kind}-{generation}{copy}"))
}

fn names(keys: &BTreeMap<String, Key>) -> HashMap<[u8; 16], String> {
    keys.iter()
        .map(|(name, k)| (k.handle, name.clone()))
        .collect()
}

/// What a generation's files hold.
#[derive(Default, Serialize, Deserialize)]
struct Body {
    keys: BTreeMap<String, Key>,
    made: u64,
}

struct Found {
    body: Body,
    master: [u8; 32],
    added: u64,
    /// All files are there and fit each other.
    whole: bool,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            body: Body::default(),
            master: [0; 32],
            added: 0,
            whole: true,
        }
    }
}

fn sealed<T: Serialize>(master: &[u8; 32], label: &[u8], value: &T) -> Result<Vec<u8>, StoreError> {
    let plain = codec::to_bytes(value).map_err(|e| StoreError::Encode {
        table: "keyring",
        why: e.to_string(),
    })?;
    Ok(seal(master, label, &plain)?)
}

/// A record of additions is bound to its place.
fn added_label(generation: u64, at: u64) -> Vec<u8> {
    [b"added", &generation.to_le_bytes()[..], &at.to_le_bytes()].concat()
}

/// The keys of a generation, from whichever copies fit each other.
fn load(folder: &Path, generation: u64) -> Option<Found> {
    let at = |kind: &str, copy: &str| path(folder, kind, generation, copy);
    let mut found: Option<Found> = None;
    let mut whole = true;
    for copy in COPIES {
        for keyring in COPIES {
            let opened = load_one(&at("master", copy), &at("keyring", keyring), generation);
            whole &= opened.is_some();
            found = found.or(opened);
        }
    }
    let mut found = found?;
    // The longer of the two: the other one's end is damaged, or a crash came before it was written.
    let lists = COPIES.map(|copy| additions(&at("added", copy), &found.master, generation));
    whole &= lists[0].1 && lists[1].1 && lists[0].0.len() == lists[1].0.len();
    let longer = lists
        .into_iter()
        .max_by_key(|(l, _)| l.len())
        .map(|(l, _)| l)
        .unwrap_or_default();
    found.added = longer.len() as u64;
    for new in longer {
        found.body.made += new.len() as u64;
        found.body.keys.extend(new);
    }
    found.whole = whole;
    Some(found)
}

fn load_one(master: &Path, keyring: &Path, generation: u64) -> Option<Found> {
    let master: [u8; 32] = fs::read(master).ok()?.try_into().ok()?;
    let sealed = fs::read(keyring).ok()?;
    let body = codec::from_bytes(
        &unseal(&master, &generation.to_le_bytes(), &sealed)?,
        256 << 20,
    )
    .ok()?;
    Some(Found {
        body,
        master,
        added: 0,
        whole: true,
    })
}

/// The records of a file of additions up to the first that does not open, and whether that is all
/// of it.
fn additions(
    path: &Path,
    master: &[u8; 32],
    generation: u64,
) -> (Vec<BTreeMap<String, Key>>, bool) {
    let mut out = vec![];
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) => return (out, e.kind() == std::io::ErrorKind::NotFound),
    };
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let record = || {
            let (len, after) = rest.split_at_checked(4)?;
            let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
            let (record, after) = after.split_at_checked(len)?;
            let plain = unseal(master, &added_label(generation, out.len() as u64), record)?;
            Some((codec::from_bytes(&plain, 256 << 20).ok()?, after))
        };
        let Some((keys, after)) = record() else {
            return (out, false);
        };
        out.push(keys);
        rest = after;
    }
    (out, true)
}

fn private(options: &mut OpenOptions, path: &Path) -> Result<File, StoreError> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.open(path).map_err(StoreError::io(path))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut f = private(
        OpenOptions::new().write(true).create(true).truncate(true),
        path,
    )?;
    f.write_all(bytes)
        .and_then(|()| f.sync_all())
        .map_err(StoreError::io(path))
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(StoreError::io(folder))
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
    fn additions_are_appended_survive_and_lose_only_what_was_torn() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ring = Keyring::open(dir.path()).expect("opens");
        ring.ensure(&["a"]).expect("writes");
        ring.ensure(&["b", "c"]).expect("appends");
        ring.ensure(&["d"]).expect("appends");
        let all: Vec<(String, Key)> = ring.iter().map(|(n, k)| (n.clone(), *k)).collect();
        assert_eq!(
            (ring.generation, ring.made()),
            (1, 4),
            "nothing was rewritten"
        );
        let same = |r: &Keyring| r.iter().map(|(n, k)| (n.clone(), *k)).collect::<Vec<_>>();
        assert_eq!(same(&Keyring::open(dir.path()).expect("opens")), all);
        // A crash after the first copy, at every byte: the other one has everything.
        let added = path(dir.path(), "added", 1, COPY);
        let whole = fs::read(&added).expect("exists");
        for n in 0..whole.len() {
            let other = tempfile::tempdir().expect("tempdir");
            for f in fs::read_dir(dir.path())
                .expect("reads")
                .filter_map(Result::ok)
            {
                fs::copy(f.path(), other.path().join(f.file_name())).expect("copies");
            }
            fs::write(path(other.path(), "added", 1, COPY), &whole[..n]).expect("writes");
            let ring = Keyring::open(other.path()).expect("opens");
            assert_eq!((same(&ring), ring.made()), (all.clone(), 4));
        }
        // Both torn: the newest key is not there, and the count says so.
        for copy in COPIES {
            fs::write(
                path(dir.path(), "added", 1, copy),
                &whole[..whole.len() - 3],
            )
            .expect("writes");
        }
        let mut ring = Keyring::open(dir.path()).expect("opens");
        assert!(ring.get("c").is_some() && ring.get("d").is_none() && ring.made() == 3);
        assert_eq!(ring.destroy(&["b"]).expect("destroys"), 1);
        assert_eq!(
            (
                Keyring::open(dir.path()).expect("opens").made(),
                ring.made()
            ),
            (3, 3)
        );
        // Many additions are written together at last.
        for i in 0..200 {
            ring.ensure(&[&format!("k{i}")]).expect("writes");
        }
        assert!(ring.generation > 2 && Keyring::open(dir.path()).expect("opens").made() == 203);
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
        let keep: Vec<(PathBuf, Vec<u8>)> = names
            .iter()
            .map(|n| {
                (
                    dir.path().join(n),
                    fs::read(dir.path().join(n)).expect("exists"),
                )
            })
            .collect();
        ring.ensure(&["b", "c"]).expect("writes");
        ring.destroy(&["c"]).expect("writes another generation");
        keep.into_iter()
            .for_each(|(p, b)| fs::write(p, b).expect("writes"));
        let ring = Keyring::open(dir.path()).expect("opens");
        assert!(ring.get("b").is_some());
        assert!(!dir.path().join("master-1").exists());
    }

    #[test]
    fn l_files_of_a_generation_that_is_gone_are_removed_whatever_a_crash_left() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ring = Keyring::open(dir.path()).expect("opens");
        // A crash in the first write: a master key and nothing else.
        fs::write(dir.path().join("master-1"), [7; 32]).expect("writes");
        assert!(Keyring::open(dir.path()).is_ok());
        assert!(!dir.path().join("master-1").exists());
        ring.ensure(&["a", "b"]).expect("writes");
        ring.ensure(&["c"]).expect("appends");
        let old: Vec<_> = ["master", "keyring", "added"]
            .iter()
            .flat_map(|kind| COPIES.map(|copy| path(dir.path(), kind, 1, copy)))
            .map(|p| (p.clone(), fs::read(p).expect("is there")))
            .collect();
        ring.destroy(&["a"]).expect("writes another generation");
        for (left, bytes) in &old {
            fs::write(left, bytes).expect("a crash left it");
            let ring = Keyring::open(dir.path()).expect("opens");
            assert!(ring.get("a").is_none() && ring.get("c").is_some());
            assert!(!left.exists(), "{}", left.display());
        }
    }

    #[test]
    fn one_damaged_file_is_made_anew_and_two_of_a_kind_are_an_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut ring = Keyring::open(dir.path()).expect("opens");
        ring.ensure(&["a"]).expect("writes");
        let want = *ring.get("a").expect("made");
        for name in ["keyring", "master"] {
            for copy in COPIES {
                let at = path(
                    dir.path(),
                    name,
                    Keyring::open(dir.path()).expect("opens").generation,
                    copy,
                );
                for bytes in [&b"garbage"[..], &[0; 32]] {
                    let at = path(
                        dir.path(),
                        name,
                        Keyring::open(dir.path()).expect("opens").generation,
                        copy,
                    );
                    fs::write(&at, bytes).expect("writes");
                    assert_eq!(
                        Keyring::open(dir.path())
                            .expect("the copy is whole")
                            .get("a"),
                        Some(&want)
                    );
                }
                assert!(!at.exists(), "the damaged generation is wiped");
            }
        }
        let now = Keyring::open(dir.path()).expect("opens").generation;
        COPIES.iter().for_each(|c| {
            fs::write(path(dir.path(), "keyring", now, c), b"garbage").expect("writes")
        });
        assert!(matches!(
            Keyring::open(dir.path()),
            Err(StoreError::Corrupt { .. })
        ));
    }
}
