//! A key in a file of its own, readable by its user only, with a copy: `key (32) | SHA-256(key)`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use lethe_proto::ids::Digest;

use crate::StoreError;

/// The key in `path` or in its copy, whichever is whole; the other is made anew. With `create`, a
/// fresh key when neither exists.
pub fn open(path: &Path, create: bool) -> Result<[u8; 32], StoreError> {
    let paths = [path.to_owned(), copy_of(path)];
    let [a, b] = paths.each_ref().map(|p| read(p));
    let key = match (a, b) {
        (Ok(Some(a)), Ok(Some(b))) if a != b => {
            let why =
                "the key and its copy are both whole, and differ: remove the one that does not \
                 belong here"
                    .into();
            return Err(StoreError::Corrupt {
                name: path.display().to_string(),
                why,
            });
        }
        (Ok(Some(key)), _) | (_, Ok(Some(key))) => key,
        (Ok(None), Ok(None)) if create => lethe_seal::random()?,
        (Err(e), _) | (_, Err(e)) if e.kind() != std::io::ErrorKind::InvalidData => {
            return Err(StoreError::io(path)(e));
        }
        _ => {
            let why = "the key is damaged or missing, and so is its copy".into();
            return Err(StoreError::Corrupt {
                name: path.display().to_string(),
                why,
            });
        }
    };
    for path in paths {
        if !matches!(read(&path), Ok(Some(k)) if k == key) {
            write(&path, &key).map_err(StoreError::io(&path))?;
        }
    }
    Ok(key)
}

fn copy_of(path: &Path) -> PathBuf {
    path.with_extension("copy")
}

fn mark(key: &[u8]) -> [u8; 32] {
    Digest::of(&[key]).0
}

/// `None`: there is none. `InvalidData`: it is damaged.
fn read(path: &Path) -> std::io::Result<Option<[u8; 32]>> {
    match fs::read(path) {
        Ok(bytes) => {
            let parts = bytes
                .split_at_checked(32)
                .filter(|(key, m)| mark(key) == *m);
            let key = parts.and_then(|(key, _)| key.try_into().ok());
            key.map(Some)
                .ok_or_else(|| std::io::ErrorKind::InvalidData.into())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn write(path: &Path, key: &[u8; 32]) -> std::io::Result<()> {
    let next = path.with_extension("next");
    let _ = fs::remove_file(&next);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&next)?;
    file.write_all(&[&key[..], &mark(key)].concat())?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    path.parent()
        .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_made_anew_from_its_copy() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("key");
        assert!(open(&path, false).is_err());
        let key = open(&path, true).expect("makes one");
        for damaged in [path.clone(), copy_of(&path)] {
            for bytes in [&[][..], &[7; 64]] {
                fs::write(&damaged, bytes).expect("writes");
                assert_eq!(open(&path, true).expect("the other is whole"), key);
            }
        }
        fs::write(&path, b"x").expect("writes");
        fs::write(copy_of(&path), b"x").expect("writes");
        assert!(
            matches!(open(&path, true), Err(StoreError::Corrupt { .. })),
            "never a new key in place of a damaged one"
        );
    }
}
