//! A key in a file of its own, readable by its user only.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::StoreError;

/// The key in `path`; with `create`, a fresh one when there is none.
pub fn open(path: &Path, create: bool) -> Result<[u8; 32], StoreError> {
    match fs::read(path) {
        Ok(bytes) => bytes
            .try_into()
            .map_err(|_| StoreError::Corrupt { name: path.display().to_string(), why: "a key has 32 bytes".into() }),
        Err(e) if create && e.kind() == std::io::ErrorKind::NotFound => {
            let key: [u8; 32] = lethe_seal::random()?;
            let next = path.with_extension("next");
            let _ = fs::remove_file(&next);
            write(&next, &key).and_then(|()| fs::rename(&next, path)).map_err(StoreError::io(path))?;
            Ok(key)
        }
        Err(e) => Err(StoreError::io(path)(e)),
    }
}

fn write(path: &Path, key: &[u8; 32]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(key)?;
    file.sync_all()?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
