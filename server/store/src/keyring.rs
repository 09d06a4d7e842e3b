//! Keys that can be destroyed: a small encrypted file, rewritten under a fresh master key whenever
//! one is.
//!
//! Generation n is `master-n` (32 bytes), `keyring-n` (sealed under it) and `added-n`: keys made
//! since, appended one sealed record at a time, so that the thousandth person costs as much as the
//! first. Destroying a key (or many additions) writes generation n+1, syncs it, then overwrites
//! `master-n` in place and removes all three: an old keyring that a disk still holds somewhere
//! cannot be opened any more. A crash in between leaves two generations; opening keeps the newer.
//! Each of the files is there twice (`.copy`): one that is damaged is not missed. Where a source
//! keeps the master keys ([`crate::keys`]), `master-n` is its secret of that name. How many keys
//! were ever made is counted ([`Keyring::made`]), and the databases remember it: a keyring that
//! lost its newest keys is not taken for one that destroyed them. The data folder notes the newest
//! generation: one that was put back from an older copy, and has destroyed keys in it again, is
//! refused.
//!
//! A **note** is a few bytes about somebody whose key was destroyed and who stays: a data folder
//! from before, which is sealed under the destroyed key, does not know them. Notes are in
//! `notes-n`, sealed under the same master key, and written in one step with the destruction; a
//! note goes with the next destruction of its name.
//!
//! In memory a key has one place, which is overwritten when the last holder lets go of it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lethe_proto::codec;
use lethe_seal::{random, seal, unseal};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

use crate::StoreError;
use crate::head::Floor;
use crate::keys::Keys;

const COPY: &str = ".copy";
const COPIES: [&str; 2] = ["", COPY];
/// File of the newest generation that a data folder has seen.
const SEEN: &str = "keys-seen";

/// Bytes of a secret, in one place: whoever shares it shares the place.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Arc<Zeroizing<[u8; 32]>>);

impl Secret {
    pub(crate) fn new(mut bytes: [u8; 32]) -> Self {
        let secret = Self(Arc::new(Zeroizing::new(bytes)));
        bytes.zeroize();
        secret
    }

    fn fresh() -> Result<Self, StoreError> {
        Ok(Self::new(random()?))
    }
}

impl std::ops::Deref for Secret {
    type Target = [u8; 32];

    fn deref(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: &[u8; 32] = self;
        bytes.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <[u8; 32]>::deserialize(deserializer).map(Self::new)
    }
}

/// Bytes of the stack that are overwritten after work with secrets.
const SCRUBBED: usize = 64 << 10;

/// Overwrites what calls that have returned left on the stack: code of others (ciphers, codecs)
/// moves secrets through it.
#[inline(never)]
fn scrub() {
    let mut below = [0_u8; SCRUBBED];
    below.zeroize();
}

/// A key and the random handle that records carry instead of its name.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) handle: [u8; 16],
    pub(crate) secret: Secret,
}

/// Named keys on disk.
#[derive(Debug)]
pub(crate) struct Keyring {
    keys: Keys,
    /// The newest generation that the data folder has seen; none: there is no such folder.
    seen: Option<Floor>,
    generation: u64,
    ring: BTreeMap<String, Key>,
    notes: Notes,
    /// Keys ever made.
    made: u64,
    master: Secret,
    /// Records in `added-n`.
    added: u64,
    /// An append failed: what the file holds is not known.
    torn: bool,
    /// Names by handle.
    names: HashMap<[u8; 16], String>,
    /// Generations that are still to be wiped.
    stale: Vec<u64>,
}

/// Generations of which a keyring's file is in a folder, ascending.
pub(crate) fn generations(folder: &Path) -> Result<Vec<u64>, StoreError> {
    numbers(folder, &["keyring"])
}

/// By the name of a key.
pub(crate) type Notes = BTreeMap<String, Vec<u8>>;

/// Files of a generation besides its master key.
const SEALED: [&str; 3] = ["keyring", "added", "notes"];

/// The newest generation that opens.
fn newest(keys: &Keys) -> Result<Option<(u64, Found)>, StoreError> {
    for generation in generations(keys.folder())?.into_iter().rev() {
        if let Some(found) = load(keys, generation)? {
            return Ok(Some((generation, found)));
        }
    }
    Ok(None)
}

/// Moves the keyring of an earlier build out of the data folder, where it is in `old`: all of its
/// keys under a fresh master key, then what is in `old` is overwritten and removed. Each step may
/// be repeated. Where a keyring is in its place already, `old` came with a backup from before: it
/// is overwritten, too, and brings no destroyed key back.
pub(crate) fn take_over(old: &Path, keys: &Keys) -> Result<(), StoreError> {
    if !old.is_dir() || is_same(old, keys.folder()) {
        return Ok(());
    }
    let from = Keys::in_folder(old);
    let there = newest(keys)?;
    match (newest(&from)?, &there) {
        (Some((_, found)), Some((_, known))) => {
            let index = |f: &Found| f.body.keys.get(crate::sealed::INDEX_KEY).cloned();
            if index(&found) != index(known) {
                return Err(StoreError::Keys {
                    place: keys.place().into(),
                    why: format!(
                        "its keys are of another data folder than those in {}: say in the table \
                         [keys] where the right ones are",
                        old.display()
                    ),
                });
            }
        }
        (Some((generation, found)), None) => {
            let partial = generations(keys.folder())?;
            // Not what a move that was cut off has left: the keys were here, and do not open.
            if !partial.is_empty() && !keys.numbers("authority")?.is_empty() {
                return Err(unopened(keys.folder()));
            }
            let last = partial.iter().copied().max().unwrap_or(0);
            let mut ring = Keyring::empty(keys.clone(), None);
            ring.generation = generation.max(last);
            ring.stale = partial;
            ring.replace(found.body.keys, found.notes, found.body.made)?;
        }
        (None, None) if !generations(old)?.is_empty() => return Err(unopened(old)),
        (None, _) => {}
    }
    if !wipe_folder(old)? {
        return Ok(());
    }
    let text = format!(
        "The keys of this folder are not in it any more: they are in {}.\n\
         docs/operations.md says how both are backed up.\n",
        keys.place()
    );
    crate::private::write(old, text.as_bytes())
}

/// Whether both are one folder, whatever their paths are called.
pub(crate) fn is_same(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    a == b || real(a).is_some_and(|a| Some(a) == real(b))
}

/// Overwrites and removes all files of a folder, and the folder. False: it is empty, and stays: it
/// is a link, or something is mounted there.
fn wipe_folder(folder: &Path) -> Result<bool, StoreError> {
    let entries = fs::read_dir(folder).map_err(StoreError::io(folder))?;
    for entry in entries {
        let path = entry.map_err(StoreError::io(folder))?.path();
        crate::keys::destroy_file(&path)?;
    }
    sync_folder(folder)?;
    if fs::remove_dir(folder).is_err() {
        return Ok(false);
    }
    folder.parent().map_or(Ok(()), sync_folder)?;
    Ok(true)
}

fn unopened(folder: &Path) -> StoreError {
    StoreError::Corrupt {
        name: folder.display().to_string(),
        why: "no generation of the keyring opens with its master key".into(),
    }
}

impl Keyring {
    /// Opens or creates the keyring; `data` is the folder of what it seals, which knows how far it
    /// was.
    pub(crate) fn open(keys: &Keys, data: Option<&Path>) -> Result<Self, StoreError> {
        let folder = keys.folder();
        fs::create_dir_all(folder).map_err(StoreError::io(folder))?;
        let mut ring = Self::empty(keys.clone(), None);
        let all = generations(folder)?;
        let whole = match newest(keys)? {
            Some((generation, found)) => {
                ring.generation = generation;
                ring.names = names(&found.body.keys);
                ring.ring = found.body.keys;
                ring.notes = found.notes;
                ring.made = found.body.made;
                ring.master = found.master;
                ring.added = found.added;
                found.whole
            }
            None if all.is_empty() => true,
            None => return Err(unopened(folder)),
        };
        if let Some(data) = data {
            let (mut floor, seen) = Floor::open(&data.join(SEEN))?;
            let seen = seen.unwrap_or(0);
            if seen > ring.generation {
                return Err(StoreError::OldKeys {
                    place: keys.place().into(),
                    has: ring.generation,
                    seen,
                    file: data.join(SEEN),
                });
            }
            if seen < ring.generation {
                floor.set(ring.generation)?;
            }
            ring.seen = Some(floor);
        }
        // Also what is left of one without its keyring, which a crash cut short in removing it.
        ring.stale = numbers(folder, &["keyring", "master", "added", "notes"])?;
        let strays = ring.strays()?;
        ring.stale.extend(strays);
        ring.stale.retain(|g| *g != ring.generation);
        ring.wipe_stale()?;
        if !whole {
            ring.replace(ring.ring.clone(), ring.notes.clone(), ring.made)?;
        }
        scrub();
        Ok(ring)
    }

    /// A key that is open, in a test of this crate.
    #[cfg(test)]
    fn in_folder(folder: &Path) -> Result<Self, StoreError> {
        Self::open(&Keys::in_folder(folder), None)
    }

    fn empty(keys: Keys, seen: Option<Floor>) -> Self {
        Self {
            keys,
            seen,
            generation: 0,
            ring: BTreeMap::new(),
            notes: Notes::new(),
            made: 0,
            master: Secret::new([0; 32]),
            added: 0,
            torn: false,
            names: HashMap::new(),
            stale: vec![],
        }
    }

    /// Master keys in the source whose generation is not there: a crash came before their keyring,
    /// or the plain files of before were not yet removed.
    fn strays(&self) -> Result<Vec<u64>, StoreError> {
        if !self.keys.masters() {
            return Ok(vec![]);
        }
        let all = self.keys.numbers("master")?.into_iter();
        Ok(all.filter(|g| *g != self.generation).collect())
    }

    /// Keys ever made, those that were destroyed among them.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Key> {
        self.ring.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Key)> {
        self.ring.iter()
    }

    /// The key that records name by this handle.
    pub(crate) fn by_handle(&self, handle: &[u8; 16]) -> Option<(&String, &Key)> {
        self.ring.get_key_value(self.names.get(handle)?)
    }

    /// Whether these keys exist, and nothing of an older generation is left to be wiped.
    pub(crate) fn has_all(&self, names: &[&str]) -> bool {
        self.stale.is_empty() && names.iter().all(|n| self.ring.contains_key(*n))
    }

    /// Makes sure that these keys exist; one record for all that are new.
    pub(crate) fn ensure(&mut self, names: &[&str]) -> Result<(), StoreError> {
        self.wipe_stale()?;
        let mut missing = BTreeMap::new();
        for name in names.iter().filter(|n| !self.ring.contains_key(**n)) {
            missing.insert(
                (*name).to_owned(),
                Key {
                    handle: random()?,
                    secret: Secret::fresh()?,
                },
            );
        }
        if missing.is_empty() {
            return Ok(());
        }
        let many = self.added > 64 + self.ring.len() as u64 / 2;
        if self.generation == 0 || self.torn || many {
            let made = self.made + missing.len() as u64;
            let keys = self.ring.clone().into_iter().chain(missing).collect();
            self.replace(keys, self.notes.clone(), made)?;
        } else {
            self.append(missing)?;
        }
        scrub();
        Ok(())
    }

    /// Adds keys to the present generation.
    fn append(&mut self, new: BTreeMap<String, Key>) -> Result<(), StoreError> {
        let record = sealed(
            &self.master,
            &added_label(self.generation, self.added),
            &new,
            room_for(&new),
        )?;
        let framed = [&(record.len() as u32).to_le_bytes()[..], &record].concat();
        self.torn = true;
        let folder = self.keys.folder();
        for copy in COPIES {
            let path = path(folder, "added", self.generation, copy);
            let mut file = private(OpenOptions::new().append(true).create(true), &path)?;
            file.write_all(&framed)
                .and_then(|()| file.sync_all())
                .map_err(StoreError::io(&path))?;
        }
        if self.added == 0 {
            sync_folder(folder)?;
        }
        self.torn = false;
        self.added += 1;
        self.made += new.len() as u64;
        self.names
            .extend(new.iter().map(|(name, key)| (key.handle, name.clone())));
        self.ring.extend(new);
        Ok(())
    }

    /// Destroys these keys; returns how many existed. In the same step notes of their names go, and
    /// new ones are kept. After an error it may be repeated until it succeeds: only then is the old
    /// master key overwritten for certain.
    pub(crate) fn destroy(&mut self, names: &[&str], new: &Notes) -> Result<usize, StoreError> {
        self.wipe_stale()?;
        let mut keys = self.ring.clone();
        let gone = names.iter().filter(|n| keys.remove(**n).is_some()).count();
        let mut notes = self.notes.clone();
        notes.retain(|name, _| !names.contains(&name.as_str()));
        notes.extend(new.iter().map(|(name, note)| (name.clone(), note.clone())));
        if gone > 0 || notes != self.notes {
            self.replace(keys, notes, self.made)?;
        }
        scrub();
        Ok(gone)
    }

    /// Drops notes of these names; what is not there is dropped.
    pub(crate) fn drop_notes(&mut self, names: &[&str]) -> Result<(), StoreError> {
        self.wipe_stale()?;
        let mut notes = self.notes.clone();
        notes.retain(|name, _| !names.contains(&name.as_str()));
        if notes != self.notes {
            self.replace(self.ring.clone(), notes, self.made)?;
        }
        scrub();
        Ok(())
    }

    /// What was noted.
    pub(crate) fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Writes all keys under a fresh master key, and destroys the one before.
    pub(crate) fn rotate(&mut self) -> Result<(), StoreError> {
        self.wipe_stale()?;
        let rotated = self.replace(self.ring.clone(), self.notes.clone(), self.made);
        scrub();
        rotated
    }

    fn replace(
        &mut self,
        keys: BTreeMap<String, Key>,
        notes: Notes,
        made: u64,
    ) -> Result<(), StoreError> {
        let next = self.generation + 1;
        // Cut off, it may have left a newer generation, which counts at the next start: nothing is
        // added to this one any more.
        self.torn = true;
        let master = Secret::fresh()?;
        let room = room_for(&keys);
        let body = Body { keys, made };
        let sealed_notes = match notes.is_empty() {
            true => None,
            false => Some(sealed(&master, &notes_label(next), &notes, 0)?),
        };
        let sealed = sealed(&master, &next.to_le_bytes(), &body, room)?;
        let folder = self.keys.folder().to_owned();
        fs::create_dir_all(&folder).map_err(StoreError::io(&folder))?;
        if self.keys.masters() {
            self.keys.keep(&format!("master-{next}"), &*master)?;
        }
        for copy in COPIES {
            if !self.keys.masters() {
                write_synced(&path(&folder, "master", next, copy), &*master)?;
            }
            // Before the keyring: a generation that is there has its notes.
            if let Some(notes) = &sealed_notes {
                write_synced(&path(&folder, "notes", next, copy), notes)?;
            }
            write_synced(&path(&folder, "keyring", next, copy), &sealed)?;
        }
        sync_folder(&folder)?;
        let old = std::mem::replace(&mut self.generation, next);
        self.names = names(&body.keys);
        self.ring = body.keys;
        self.notes = notes;
        self.made = made;
        self.master = master;
        self.added = 0;
        self.torn = false;
        if old > 0 {
            self.stale.push(old);
        }
        // Before the old one goes: an older copy of it is not taken for the newest from now on.
        if let Some(seen) = &mut self.seen {
            seen.set(next)?;
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
        let folder = self.keys.folder();
        if self.keys.masters() {
            self.keys.destroy(&format!("master-{generation}"))?;
        }
        for copy in COPIES {
            let master = path(folder, "master", generation, copy);
            if let Ok(mut f) = OpenOptions::new().write(true).open(&master) {
                f.write_all(&[0; 32])
                    .and_then(|()| f.sync_all())
                    .map_err(StoreError::io(&master))?;
            }
            let sealed = SEALED.map(|kind| path(folder, kind, generation, copy));
            for path in [master].iter().chain(&sealed) {
                match fs::remove_file(path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(StoreError::io(path)(e));
                    }
                    _ => {}
                }
            }
        }
        sync_folder(folder)
    }
}

/// Generations of which there is a file of one of these kinds, oldest first.
fn numbers(folder: &Path, kinds: &[&str]) -> Result<Vec<u64>, StoreError> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // A file in its place says that the keys are elsewhere.
        Err(e) if [NotFound, NotADirectory].contains(&e.kind()) => return Ok(vec![]),
        Err(e) => return Err(StoreError::io(folder)(e)),
    };
    let mut out: Vec<u64> = vec![];
    for entry in entries {
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
    notes: Notes,
    master: Secret,
    added: u64,
    /// All files are there and fit each other.
    whole: bool,
}

/// At least the bytes that keys take when they are encoded.
fn room_for(keys: &BTreeMap<String, Key>) -> usize {
    64 + keys.keys().map(|name| name.len() + 64).sum::<usize>()
}

/// `room` is enough for the encoded value: a buffer that grows would leave secrets behind.
fn sealed<T: Serialize>(
    master: &[u8; 32],
    label: &[u8],
    value: &T,
    room: usize,
) -> Result<Vec<u8>, StoreError> {
    let mut plain = Zeroizing::new(Vec::with_capacity(room));
    codec::append_bytes(&mut plain, value).map_err(|e| StoreError::Encode {
        table: "keyring",
        why: e.to_string(),
    })?;
    Ok(seal(master, label, &plain)?)
}

/// A record of additions is bound to its place.
fn added_label(generation: u64, at: u64) -> Vec<u8> {
    [b"added", &generation.to_le_bytes()[..], &at.to_le_bytes()].concat()
}

/// What notes of a generation are sealed for.
fn notes_label(generation: u64) -> Vec<u8> {
    [b"notes", &generation.to_le_bytes()[..]].concat()
}

/// The keys of a generation, from whichever copies fit each other; none: none do.
fn load(keys: &Keys, generation: u64) -> Result<Option<Found>, StoreError> {
    let folder = keys.folder();
    let at = |kind: &str, copy: &str| path(folder, kind, generation, copy);
    let mut masters: Vec<Option<Secret>> = vec![];
    let mut whole = true;
    let in_source = match keys.masters() {
        true => keys.secret(&format!("master-{generation}"))?,
        false => None,
    };
    match in_source {
        Some(bytes) => {
            let bytes: Option<[u8; 32]> = bytes.as_slice().try_into().ok();
            masters.push(bytes.map(Secret::new));
        }
        None => {
            // Plain files, where the source keeps master keys: they go there with the next
            // generation, which is written at once.
            whole &= !keys.masters();
            for copy in COPIES {
                let bytes = fs::read(at("master", copy)).ok().map(Zeroizing::new);
                let bytes = bytes.and_then(|b| <[u8; 32]>::try_from(b.as_slice()).ok());
                masters.push(bytes.map(Secret::new));
            }
        }
    }
    let mut found: Option<Found> = None;
    for master in &masters {
        for copy in COPIES {
            let path = at("keyring", copy);
            let opened = master.as_ref().and_then(|m| load_one(m, &path, generation));
            whole &= opened.is_some();
            found = found.or(opened);
        }
    }
    let Some(mut found) = found else {
        return Ok(None);
    };
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
    let notes = COPIES.map(|copy| {
        let path = at("notes", copy);
        read_notes(&path, &found.master, generation)
    });
    whole &= notes[0].is_some() == notes[1].is_some();
    found.notes = notes.into_iter().flatten().next().unwrap_or_default();
    found.whole = whole;
    Ok(Some(found))
}

fn load_one(master: &Secret, keyring: &Path, generation: u64) -> Option<Found> {
    let sealed = fs::read(keyring).ok()?;
    let plain = Zeroizing::new(unseal(master, &generation.to_le_bytes(), &sealed)?);
    Some(Found {
        body: codec::from_bytes(&plain, 256 << 20).ok()?,
        notes: Notes::new(),
        master: master.clone(),
        added: 0,
        whole: true,
    })
}

/// The notes of one file; none: there is none, or it is damaged.
fn read_notes(path: &Path, master: &Secret, generation: u64) -> Option<Notes> {
    let sealed = fs::read(path).ok()?;
    let plain = unseal(master, &notes_label(generation), &sealed)?;
    codec::from_bytes(&plain, 256 << 20).ok()
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
            let plain = Zeroizing::new(plain);
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
mod tests;
