//! One process at a time has a folder.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::Path;

use crate::StoreError;

/// Holds a folder, which is made if it is not there, until the file is dropped. `whom` says in the
/// file who has it. `None`: another process has it.
///
/// # Errors
/// [`StoreError::Io`]: the folder cannot be made or written.
pub fn hold(folder: &Path, name: &str, whom: &str) -> Result<Option<File>, StoreError> {
    let path = folder.join(name);
    let io = || StoreError::io(&path);
    std::fs::create_dir_all(folder).map_err(io())?;
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).open(&path);
    let mut file = file.map_err(io())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(source)) => return Err(io()(source)),
    }
    // For whoever wonders what it is; on a full disk it stays empty.
    let _ = writeln!(file, "held by the {whom} that runs");
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_once_until_it_is_let_go() {
        let dir = tempfile::tempdir().expect("tempdir");
        let folder = dir.path().join("new");
        let held = hold(&folder, "lock", "test").expect("holds");
        assert!(held.is_some());
        assert!(hold(&folder, "lock", "test").expect("asks").is_none());
        drop(held);
        assert!(hold(&folder, "lock", "test").expect("holds").is_some());
    }
}
