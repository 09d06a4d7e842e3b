//! The databases of shards: their names, how one is opened, and what becomes of a damaged one.

use std::path::{Path, PathBuf};

use crate::StoreError;
use crate::batch::KeyName;
use crate::head::Head;
use crate::keyring::{Key, Keyring, Notes};
use crate::part::{Acknowledged, Loaded, Sealer};
use crate::sealed::{Engine, Opened};

/// Where the databases of shards are in the folder of a store.
const FOLDER: &str = "shards";
/// Beside a database that was set aside.
const MARKER: &str = "quarantined";
/// A folder that is being removed.
const REMOVED: &str = "removed";

/// A damaged database that was set aside; its shard starts from nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Its name.
    pub database: String,
    /// What was found.
    pub why: String,
}

impl Quarantined {
    fn new(database: &str, why: String) -> Self {
        Self {
            database: database.to_owned(),
            why,
        }
    }
}

/// Where a database is.
pub(crate) fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(FOLDER).join(name)
}

fn marker(folder: &Path, name: &str) -> PathBuf {
    path(folder, name).with_extension(MARKER)
}

/// A name is a part of paths and of keys' names.
fn check_name(name: &str) -> Result<(), StoreError> {
    let fits = |c: char| c.is_ascii_digit() || c == '-';
    if !name.is_empty() && name.len() <= 32 && name.chars().all(fits) {
        return Ok(());
    }
    Err(StoreError::Encode {
        table: "records",
        why: format!("{name:?} is no name of a database: digits and dashes are"),
    })
}

/// Names of the databases that are in a folder, those among them that were set aside.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>, StoreError> {
    let shards = folder.join(FOLDER);
    let entries = match std::fs::read_dir(&shards) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(StoreError::io(&shards)(e)),
    };
    let mut names = vec![];
    for entry in entries {
        let name = entry.map_err(StoreError::io(&shards))?.file_name();
        let name = name.to_str().unwrap_or_default();
        // A marker stands for a database whose folder may not be there again yet.
        let name = name.strip_suffix(&format!(".{MARKER}")).unwrap_or(name);
        if check_name(name).is_ok() {
            names.push(name.to_owned());
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The names in `wanted`, and those that keys exist for: a folder that is lost as a whole is missed
/// all the same.
pub(crate) fn all_names(wanted: &[String], keys: &Keyring) -> Result<Vec<String>, StoreError> {
    let known = keys.iter().filter_map(|(n, _)| KeyName::database_of(n));
    let mut names: Vec<String> = vec![];
    for name in wanted.iter().cloned().chain(known.map(str::to_owned)) {
        check_name(&name)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// A database that is open, and what was found if it was set aside: now, or before anybody has gone
/// back with its shard.
pub(crate) type OpenedShard = (Opened, Option<Quarantined>);

/// Opens or creates a database. One that is damaged is renamed, its keys are destroyed, and it is
/// empty.
pub(crate) fn open(
    engine: &Engine,
    folder: &Path,
    name: &str,
    index: &Key,
    keys: &mut Keyring,
) -> Result<OpenedShard, StoreError> {
    check_name(name)?;
    let path = path(folder, name);
    let marker = marker(folder, name);
    let why = match open_once(engine, &path, name, index, keys) {
        Err(StoreError::Corrupt { why, .. }) => why,
        other => {
            let known = std::fs::read_to_string(&marker).ok();
            let opened = other?;
            return Ok((opened, known.map(|why| Quarantined::new(name, why))));
        }
    };
    // An engine that cannot start its threads fails like a damaged file: keys go only if it fails
    // again.
    std::thread::Builder::new()
        .spawn(|| ())
        .map_err(StoreError::io(&path))?;
    match open_once(engine, &path, name, index, keys) {
        Err(StoreError::Corrupt { .. }) => {}
        other => return Ok((other?, None)),
    }
    // Until whoever uses the store has gone back with the shard, every opening says so.
    write_marker(&marker, &why)?;
    set_aside(&path)?;
    forget_keys(keys, name)?;
    let opened = open_once(engine, &path, name, index, keys)?;
    Ok((opened, Some(Quarantined::new(name, why))))
}

fn open_once(
    engine: &Engine,
    path: &Path,
    name: &str,
    index: &Key,
    keys: &Keyring,
) -> Result<Opened, StoreError> {
    std::fs::create_dir_all(path).map_err(StoreError::io(path))?;
    let sealer = Sealer::new(path.display().to_string(), index);
    let (mut head, count) = Head::open(&path.join("head"), &index.secret)?;
    let prefix = KeyName::prefix(name);
    if count.is_none() && keys.iter().any(|(n, _)| n.starts_with(&prefix)) {
        return Err(sealer.corrupt("there are keys for its records, and no records"));
    }
    if count.is_none() {
        // From here on keys without records are not yet a loss: a kill may come between them.
        head.set(0)?;
    }
    let storage = engine(&path.join("db"))?;
    let acknowledged = count
        .filter(|n| *n > 0)
        .map_or(Acknowledged::None, Acknowledged::AtLeast);
    let loaded = Loaded::read(storage.as_ref(), &sealer, keys, acknowledged)?;
    Ok(Opened::new(storage, sealer, head, loaded))
}

/// Destroys all keys of a database: what a damaged one still holds is unreadable.
fn forget_keys(keys: &mut Keyring, name: &str) -> Result<(), StoreError> {
    let prefix = KeyName::prefix(name);
    let names = keys.iter().map(|(n, _)| n.clone());
    let names: Vec<String> = names.filter(|n| n.starts_with(&prefix)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    keys.destroy(&names, &Notes::new()).map(drop)
}

/// Whether there are keys for records of a database.
pub(crate) fn has_keys(keys: &Keyring, name: &str) -> bool {
    let prefix = KeyName::prefix(name);
    keys.iter().any(|(n, _)| n.starts_with(&prefix))
}

/// Removes the folder of a database. It is renamed first: one that is half removed would look like
/// a damaged one.
pub(crate) fn remove(folder: &Path, name: &str) -> Result<(), StoreError> {
    let from = path(folder, name);
    let to = from.with_extension(REMOVED);
    remove_marker(folder, name)?;
    gone(std::fs::remove_dir_all(&to)).map_err(StoreError::io(&to))?;
    gone(std::fs::rename(&from, &to)).map_err(StoreError::io(&from))?;
    gone(std::fs::remove_dir_all(&to)).map_err(StoreError::io(&to))
}

/// Ends removals that were cut off.
pub(crate) fn end_removals(folder: &Path) -> Result<(), StoreError> {
    let shards = folder.join(FOLDER);
    let entries = match std::fs::read_dir(&shards) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(StoreError::io(&shards)(e)),
    };
    for entry in entries {
        let path = entry.map_err(StoreError::io(&shards))?.path();
        if path.extension().is_some_and(|x| x == REMOVED) {
            gone(std::fs::remove_dir_all(&path)).map_err(StoreError::io(&path))?;
        }
    }
    Ok(())
}

/// What is not there need not be removed.
fn gone(done: std::io::Result<()>) -> std::io::Result<()> {
    match done {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whoever uses the store has gone back with this shard.
pub(crate) fn remove_marker(folder: &Path, name: &str) -> Result<(), StoreError> {
    let marker = marker(folder, name);
    match std::fs::remove_file(&marker) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io(&marker)(e)),
        _ => Ok(()),
    }
}

fn write_marker(path: &Path, why: &str) -> Result<(), StoreError> {
    let file = std::fs::File::create(path).map_err(StoreError::io(path))?;
    let write = |mut f: std::fs::File| {
        std::io::Write::write_all(&mut f, why.as_bytes()).and_then(|()| f.sync_all())
    };
    write(file).map_err(StoreError::io(path))
}

/// Renames a damaged folder to `NAME.damaged`, in place of an earlier one. It is for people to look
/// at; nothing reads it.
pub(crate) fn set_aside(path: &Path) -> Result<(), StoreError> {
    let to = path.with_extension("damaged");
    gone(std::fs::remove_dir_all(&to)).map_err(StoreError::io(&to))?;
    gone(std::fs::rename(path, &to)).map_err(StoreError::io(path))
}
