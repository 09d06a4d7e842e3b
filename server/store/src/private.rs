//! Small files that only their user may read, replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::StoreError;

/// What a private file holds; `None`: there is none.
///
/// # Errors
/// [`StoreError::Io`] for a file that cannot be read, and [`StoreError::Corrupt`] for one of more
/// than `most` bytes.
pub fn read(path: &Path, most: usize) -> Result<Option<Vec<u8>>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io(path)(e)),
    };
    if bytes.len() > most {
        return Err(StoreError::Corrupt {
            name: path.display().to_string(),
            why: format!("{} bytes, expected at most {most}", bytes.len()),
        });
    }
    Ok(Some(bytes))
}

/// Replaces a private file. It has the old content or the new one, whatever happens meanwhile.
///
/// # Errors
/// [`StoreError::Io`]: the folder cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let io = || StoreError::io(path);
    let next = path.with_extension("next");
    let _ = fs::remove_file(&next);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&next).map_err(io())?;
    file.write_all(bytes).map_err(io())?;
    file.sync_all().map_err(io())?;
    fs::rename(&next, path).map_err(io())?;
    match path.parent() {
        Some(folder) => File::open(folder).and_then(|f| f.sync_all()).map_err(io()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_replaced_and_read_by_its_user_only() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("identity.json");
        assert_eq!(read(&path, 9).expect("there is none"), None);
        write(&path, b"one").expect("writes");
        write(&path, b"two").expect("replaces");
        assert_eq!(read(&path, 9).expect("reads"), Some(b"two".to_vec()));
        assert!(matches!(read(&path, 2), Err(StoreError::Corrupt { .. })));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&path).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
    }
}
