//! How many writes were acknowledged, in a small file beside the database: a database that loses
//! its end is a consistent older database, and nothing in it would tell.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ring::hmac;

use crate::StoreError;

const LEN: usize = 8 + 32;

/// The open file; written in place (it is smaller than a sector) and synced.
#[derive(Debug)]
pub struct Head {
    file: File,
    path: PathBuf,
    key: hmac::Key,
}

impl Head {
    /// Opens or creates it. Returns the number of writes that it knows; `None` for a new file.
    pub fn open(path: &Path, secret: &[u8; 32]) -> Result<(Self, Option<u64>), StoreError> {
        let known = match fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(StoreError::io(path)(e)),
        };
        let head = Self::create(path, secret)?;
        let Some(bytes) = known.filter(|b| !b.is_empty()) else {
            return Ok((head, None));
        };
        let damaged = || StoreError::Corrupt {
            name: path.display().to_string(),
            why: "it is altered".into(),
        };
        let (count, mark) = bytes
            .split_at_checked(8)
            .filter(|_| bytes.len() == LEN)
            .ok_or_else(damaged)?;
        hmac::verify(&head.key, count, mark).map_err(|_| damaged())?;
        let count = count
            .try_into()
            .map(u64::from_le_bytes)
            .map_err(|_| damaged())?;
        Ok((head, Some(count)))
    }

    /// Opens or creates it, whatever it holds; the next [`Self::set`] replaces that.
    pub fn create(path: &Path, secret: &[u8; 32]) -> Result<Self, StoreError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).map_err(StoreError::io(path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
        })
    }

    /// The same file, not to be written: for tests of what happens then.
    #[cfg(test)]
    pub(crate) fn read_only(self) -> std::io::Result<Self> {
        self.file.sync_all()?;
        Ok(Self {
            file: File::open(&self.path)?,
            ..self
        })
    }

    /// `count` writes are durable.
    pub fn set(&mut self, count: u64) -> Result<(), StoreError> {
        let count = count.to_le_bytes();
        let bytes = [&count[..], hmac::sign(&self.key, &count).as_ref()].concat();
        let io = || StoreError::io(&self.path);
        self.file.seek(SeekFrom::Start(0)).map_err(io())?;
        self.file
            .write_all(&bytes)
            .and_then(|()| self.file.set_len(LEN as u64))
            .map_err(io())?;
        self.file.sync_data().map_err(io())
    }
}

/// A number that only grows, twice; for what must not go back when a data folder comes back from a
/// backup.
#[derive(Debug)]
pub struct Floor([Head; 2]);

impl Floor {
    /// Opens or creates it. Returns the number; `None` for a new one.
    pub fn open(path: &Path) -> Result<(Self, Option<u64>), StoreError> {
        let mut copy = path.as_os_str().to_owned();
        copy.push(".copy");
        let paths = [path.to_owned(), PathBuf::from(copy)];
        let known = match paths.each_ref().map(|p| Head::open(p, &[0; 32])) {
            [Ok((_, a)), Ok((_, b))] => a.max(b),
            [Ok((_, Some(n))), Err(StoreError::Corrupt { .. })]
            | [Err(StoreError::Corrupt { .. }), Ok((_, Some(n)))] => Some(n),
            [Err(e), _] | [_, Err(e)] => return Err(e),
        };
        let mut floor = Self([
            Head::create(&paths[0], &[0; 32])?,
            Head::create(&paths[1], &[0; 32])?,
        ]);
        if let Some(n) = known {
            floor.set(n)?;
        }
        Ok((floor, known))
    }

    /// The number is `n` from now on, durably.
    pub fn set(&mut self, n: u64) -> Result<(), StoreError> {
        self.0.iter_mut().try_for_each(|h| h.set(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_survives_damage_to_one_copy() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("n");
        let (mut floor, none) = Floor::open(&path).expect("opens");
        floor.set(7).expect("writes");
        assert_eq!(none, None);
        for damaged in ["n", "n.copy"] {
            for bytes in [&[][..], b"x"] {
                fs::write(dir.path().join(damaged), bytes).expect("writes");
                assert_eq!(Floor::open(&path).expect("opens").1, Some(7));
            }
        }
        ["n", "n.copy"]
            .iter()
            .for_each(|f| fs::write(dir.path().join(f), b"x").expect("writes"));
        assert!(matches!(
            Floor::open(&path),
            Err(StoreError::Corrupt { .. })
        ));
    }
}
