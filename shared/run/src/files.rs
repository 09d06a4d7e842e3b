//! Files that are whole or not there, and folders that are gone in the end.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{NamedTempFile, TempDir};

/// Held while something is written that must not be left half written.
static WRITING: Mutex<()> = Mutex::new(());

/// Temporary folders that are there now.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(vec![]);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the process from ending at a signal until it is dropped: for what takes moments.
#[derive(Debug)]
pub struct Unbroken {
    _held: MutexGuard<'static, ()>,
}

/// Begins to write something that must not be left half written.
pub fn unbroken() -> Unbroken {
    Unbroken {
        _held: lock(&WRITING),
    }
}

/// Writes a file: whole, or not at all. What was there before stays until then.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let _unbroken = unbroken();
    // A pipe or a terminal has no beginning that could be kept.
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return std::fs::write(path, bytes);
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    let mut file = NamedTempFile::new_in(parent.unwrap_or(Path::new(".")))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    let file = file.persist(path).map_err(|e| e.error)?;
    readable(&file)
}

/// As other files are: temporary ones are their owner's alone.
fn readable(file: &std::fs::File) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    let _ = file;
    Ok(())
}

/// A temporary folder: gone when this is dropped, and when a signal ends the process.
#[derive(Debug)]
pub struct Temporary(TempDir);

impl Temporary {
    /// Makes one.
    ///
    /// # Errors
    /// The system has no room for one.
    pub fn new() -> std::io::Result<Self> {
        let dir = tempfile::tempdir()?;
        lock(&FOLDERS).push(dir.path().to_owned());
        Ok(Self(dir))
    }

    /// Makes one in a folder, with a name that begins like this.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn new_in(parent: &Path, prefix: &str) -> std::io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
        lock(&FOLDERS).push(dir.path().to_owned());
        Ok(Self(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let path = self.0.path();
        // Under the lock: a signal's handler waits, and does not end the process half-way.
        let mut folders = lock(&FOLDERS);
        let _ = std::fs::remove_dir_all(path);
        folders.retain(|p| p != path);
    }
}

/// Waits for what is being written, and removes temporary folders: before the process ends.
pub(crate) fn clear() {
    let held = WRITING.lock();
    for path in lock(&FOLDERS).drain(..) {
        let _ = std::fs::remove_dir_all(path);
    }
    // Nothing else is begun: the process ends with the lock held.
    std::mem::forget(held);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("figures.json");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(&dir.path().join("none/there"), b"x").is_err());
    }

    #[test]
    fn a_temporary_folder_is_gone_when_it_is_dropped() {
        let folder = Temporary::new().unwrap();
        let path = folder.path().to_owned();
        std::fs::write(path.join("x"), b"x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
