//! A fresh key for the folder, after some of what it holds was erased.
//!
//! What is erased is rewritten without it, and the old file removed. Its bytes stay on the disk
//! until they are used again, sealed under the folder's key. So the key goes, too: everything that
//! remains is sealed anew under a fresh one, and the old one is overwritten and removed.
//!
//! | step | files |
//! |---|---|
//! | prepare | `device.key.next`, and `NAME.next` for each file that remains |
//! | commit | `renewing` |
//! | finish | each `NAME.next` takes its place; the old key is overwritten; `renewing` goes |
//!
//! A crash before the commit leaves the folder as it was; the next start removes what was prepared.
//! A crash after it is finished by the next start, before anything is read.
//!
//! An app that brings a key of its own does not have to bring another: the folder's key is then
//! derived from the app's and from the secret in `device.key`, and a fresh secret gives a fresh
//! key.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::ClientError;
use crate::log::Log;
use crate::person::Person;
use crate::vault::{
    self, HISTORY, IDENTITY, KEY, SEALED, Sealed, Vault, io, remove_file, sync_folder,
    write_atomically,
};

/// Is there while what was prepared takes its place.
const RENEWING: &str = "renewing";
const NEXT: &str = ".next";

/// How far a renewal has come when it failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Nothing has changed.
    Before(ClientError),
    /// It is finished at the next start: until then nothing may be written.
    After(ClientError),
}

/// Is asked before each step, so that a test can stop there.
pub(crate) type Step<'a> = dyn FnMut() -> Result<(), ClientError> + 'a;

fn next_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{NEXT}"))
}

/// The key that seals a folder, with the secret in its file and the key that an app brings.
pub(crate) fn key_of(app: Option<&[u8; 32]>, secret: &[u8; 32]) -> [u8; 32] {
    match app {
        Some(app) => lethe_seal::derive(app, b"lethe-client-folder/1", secret),
        None => *secret,
    }
}

/// Ends a renewal that a crash has cut short, either way. The caller has the folder's lock.
pub(crate) fn settle(folder: &Path) -> Result<(), ClientError> {
    match folder.join(RENEWING).exists() {
        true => finish(folder, &mut || Ok(())),
        false => give_up(folder),
    }
}

/// Whether a renewal waits to be finished: what is there is sealed under two keys.
pub(crate) fn is_under_way(folder: &Path) -> bool {
    folder.join(RENEWING).exists()
}

fn names() -> impl Iterator<Item = &'static str> {
    SEALED.iter().map(|s| s.name()).chain([HISTORY])
}

fn finish(folder: &Path, step: &mut Step<'_>) -> Result<(), ClientError> {
    for name in names() {
        let next = next_of(folder, name);
        if next.exists() {
            step()?;
            let place = folder.join(name);
            fs::rename(&next, &place).map_err(io(&place))?;
        }
    }
    step()?;
    sync_folder(folder)?;
    let key = folder.join(KEY);
    let next = next_of(folder, KEY);
    if next.exists() {
        step()?;
        overwrite(&key)?;
        step()?;
        fs::rename(&next, &key).map_err(io(&key))?;
        sync_folder(folder)?;
    }
    step()?;
    remove_file(&folder.join(RENEWING))?;
    sync_folder(folder)
}

/// Removes what was prepared.
fn give_up(folder: &Path) -> Result<(), ClientError> {
    let mut found = false;
    for name in names() {
        found |= remove_file(&next_of(folder, name))?;
    }
    let key = next_of(folder, KEY);
    if key.exists() {
        overwrite(&key)?;
        remove_file(&key)?;
        found = true;
    }
    match found {
        true => sync_folder(folder),
        false => Ok(()),
    }
}

/// Removes everything of a renewal, of a folder that is erased.
pub(crate) fn destroy(folder: &Path) -> Result<(), ClientError> {
    give_up(folder)?;
    remove_file(&folder.join(RENEWING)).map(drop)
}

/// Overwrites a key on the disk.
pub(crate) fn overwrite(key: &Path) -> Result<(), ClientError> {
    let file = fs::OpenOptions::new().write(true).open(key);
    let written = match file {
        Ok(mut file) => file.write_all(&[0; 32]).and_then(|()| file.sync_all()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    written.map_err(io(key))
}

impl Vault {
    /// Seals what is here under a fresh key, with this in the place of the file of the person, and
    /// destroys the old one. The caller has the local lock, so that nothing is written meanwhile,
    /// and opens the history again afterwards.
    pub(crate) fn renew(&mut self, person: &Person, step: &mut Step<'_>) -> Result<(), Failed> {
        let folder = self.folder().to_owned();
        let fresh = self.prepare(person, step).map_err(Failed::Before)?;
        let marked = step().and_then(|()| write_atomically(&folder.join(RENEWING), &[]));
        if let Err(e) = marked {
            return Err(match is_under_way(&folder) {
                true => Failed::After(e),
                false => Failed::Before(e),
            });
        }
        finish(&folder, step).map_err(Failed::After)?;
        self.take_key(fresh);
        Ok(())
    }

    /// Everything that remains, under the fresh key, which is returned.
    fn prepare(&self, person: &Person, step: &mut Step<'_>) -> Result<[u8; 32], ClientError> {
        let folder = self.folder();
        give_up(folder)?;
        let secret: [u8; 32] = vault::random()?;
        let fresh = key_of(self.app(), &secret);
        step()?;
        write_atomically(&next_of(folder, KEY), &secret)?;
        for file in SEALED {
            step()?;
            let sealed = match file.name() == IDENTITY.name() {
                true => Some(Vault::sealed(&fresh, file, person)?),
                false => self.sealed_anew(file, &fresh)?,
            };
            if let Some(sealed) = sealed {
                write_atomically(&next_of(folder, file.name()), &sealed)?;
            }
        }
        step()?;
        if let Some((_, records)) = Log::open(&self.history(), self.key())? {
            Log::create(&next_of(folder, HISTORY), fresh, &records)?;
        }
        Ok(fresh)
    }

    /// The bytes of a file under another key; none: it is not there, or it is damaged and costs
    /// what a damaged file costs.
    fn sealed_anew(&self, file: Sealed, key: &[u8; 32]) -> Result<Option<Vec<u8>>, ClientError> {
        let Some(plain) = self.opened(file)? else {
            return Ok(None);
        };
        Vault::seal(key, file, &plain).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::event::LocalEvent;
    use crate::events::Events;
    use crate::person::KeptList;
    use crate::vault::{LIST, SNAPSHOT, STANDING};

    fn stop() -> ClientError {
        ClientError::Internal("killed here".into())
    }

    fn everything(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let read = |entry: fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("reads"))
        };
        let entries = fs::read_dir(folder).expect("lists");
        entries.map(|e| read(e.expect("an entry"))).collect()
    }

    /// A folder with files of each kind. Its person, as it was.
    fn filled(folder: &Path, app: Option<[u8; 32]>) -> (Vault, Person) {
        let vault = Vault::open(folder, app).expect("opens");
        let mut person = vault.person().expect("a new one");
        person.invitation = Some("before".into());
        vault.write(IDENTITY, &person).expect("writes");
        let list = KeptList {
            items: vec![("kept".into(), 0.5)],
            ..KeptList::default()
        };
        vault.write(LIST, &list).expect("writes");
        vault.write(SNAPSHOT, &"the tables").expect("writes");
        fs::write(folder.join("standing"), b"damaged").expect("writes");
        let mut events = Events::open(&vault.history(), vault.key()).expect("opens");
        for n in 0..3 {
            let event = LocalEvent::liked(format!("item-{n}"), n);
            events.add(vec![event]).expect("adds");
        }
        (vault, person)
    }

    /// What a start finds: everything is there, under one key, or nothing opens.
    fn check(folder: &Path, app: Option<[u8; 32]>, invitation: &[&str]) -> Vault {
        let vault = Vault::open(folder, app).expect("opens");
        let person: Person = vault.read(IDENTITY).expect("opens").expect("is there");
        let found = person.invitation.expect("one");
        assert!(invitation.contains(&found.as_str()), "{found}");
        let list: KeptList = vault.read(LIST).expect("opens").expect("is there");
        assert_eq!(list.items[0].0, "kept");
        let tables: String = vault.read(SNAPSHOT).expect("opens").expect("is there");
        assert_eq!(tables, "the tables");
        let events = Events::open(&vault.history(), vault.key()).expect("opens");
        assert_eq!(events.list().len(), 3);
        let left = everything(folder);
        assert!(!left.keys().any(|n| n.ends_with(NEXT) || n == RENEWING));
        vault
    }

    #[test]
    fn m1_after_a_renewal_neither_the_old_key_nor_old_files_open_anything() {
        for app in [None, Some([9; 32])] {
            let dir = tempfile::tempdir().expect("tempdir");
            let (mut vault, mut person) = filled(dir.path(), app);
            let old_key = vault.key();
            let before = everything(dir.path());
            let open = fs::File::open(dir.path().join(KEY));
            person.invitation = Some("after".into());
            vault.renew(&person, &mut || Ok(())).expect("renews");
            assert_ne!(vault.key(), old_key);
            let vault = check(dir.path(), app, &["after"]);
            let after = everything(dir.path());
            // The old key is on the disk no more: neither in a file, nor in the one that was
            // removed.
            assert!(after.values().all(|b| !b.windows(32).any(|w| w == old_key)));
            if let Ok(open) = open {
                let bytes = std::io::read_to_string(open).expect("reads");
                assert!(bytes.bytes().all(|b| b == 0), "the old key was overwritten");
            }
            // What a disk still holds of the old files does not open with what is there now.
            for name in ["identity", "list", "snapshot", "history"] {
                assert_ne!(before[name], after[name], "{name}");
                fs::write(dir.path().join(name), &before[name]).expect("writes");
            }
            assert!(matches!(
                vault.read::<Person>(IDENTITY),
                Err(ClientError::Sealed { .. })
            ));
            assert!(vault.read::<KeptList>(LIST).is_err());
            assert!(vault.read::<String>(SNAPSHOT).is_err());
            let history = Events::open(&vault.history(), vault.key());
            assert!(matches!(history, Err(ClientError::Sealed { .. })));
            // Nor do the new files open with an old copy of the key's file.
            if let Some(copy) = before.get(KEY) {
                fs::write(dir.path().join(KEY), copy).expect("writes");
                for name in ["identity", "list", "snapshot", "history"] {
                    fs::write(dir.path().join(name), &after[name]).expect("writes");
                }
                let vault = Vault::open(dir.path(), app).expect("has a key");
                assert!(vault.read::<Person>(IDENTITY).is_err());
            }
        }
    }

    #[test]
    fn m1_a_kill_at_any_step_of_a_renewal_loses_nothing() {
        for app in [None, Some([9; 32])] {
            let mut steps = 0;
            loop {
                let dir = tempfile::tempdir().expect("tempdir");
                let (mut vault, mut person) = filled(dir.path(), app);
                person.invitation = Some("after".into());
                let mut left = steps;
                let mut step = || match left {
                    0 => Err(stop()),
                    _ => {
                        left -= 1;
                        Ok(())
                    }
                };
                let renewed = vault.renew(&person, &mut step);
                drop(vault);
                let expected: &[&str] = match &renewed {
                    Ok(()) => &["after"],
                    Err(Failed::Before(_)) => &["before"],
                    Err(Failed::After(_)) => &["after"],
                };
                // And a kill while the next start finishes it: the marker is there until the end.
                if matches!(renewed, Err(Failed::After(_))) {
                    let mut once = true;
                    let mut step = || match std::mem::take(&mut once) {
                        true => Ok(()),
                        false => Err(stop()),
                    };
                    let _ = finish(dir.path(), &mut step);
                }
                check(dir.path(), app, expected);
                if renewed.is_ok() {
                    break;
                }
                steps += 1;
                assert!(steps < 100, "it never ends");
            }
            assert!(steps > 12, "the steps were not counted: {steps}");
        }
    }

    #[test]
    fn an_app_that_brings_a_key_opens_folders_of_before() {
        let dir = tempfile::tempdir().expect("tempdir");
        let app = [9; 32];
        let (mut vault, person) = filled(dir.path(), Some(app));
        assert!(!dir.path().join(KEY).exists(), "the app's key alone");
        assert_eq!(vault.key(), app);
        vault.renew(&person, &mut || Ok(())).expect("renews");
        assert!(dir.path().join(KEY).exists());
        check(dir.path(), Some(app), &["before"]);
        let other = Vault::open(dir.path(), Some([8; 32])).expect("has a key");
        assert!(other.read::<Person>(IDENTITY).is_err());
        assert!(other.read::<u64>(STANDING).is_err());
    }
}
