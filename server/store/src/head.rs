//! How many writes were acknowledged, in a small file beside the database: a database that loses its end is a consistent
//! older database, and nothing in it would tell.

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
        let known = fs::read(path).ok();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).map_err(StoreError::io(path))?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let head = Self { file, path: path.to_owned(), key };
        let Some(bytes) = known.filter(|b| !b.is_empty()) else { return Ok((head, None)) };
        let damaged = || StoreError::Corrupt { name: path.display().to_string(), why: "it is altered".into() };
        let (count, mark) = bytes.split_at_checked(8).filter(|_| bytes.len() == LEN).ok_or_else(damaged)?;
        hmac::verify(&head.key, count, mark).map_err(|_| damaged())?;
        let count = count.try_into().map(u64::from_le_bytes).map_err(|_| damaged())?;
        Ok((head, Some(count)))
    }

    /// `count` writes are durable.
    pub fn set(&mut self, count: u64) -> Result<(), StoreError> {
        let count = count.to_le_bytes();
        let bytes = [&count[..], hmac::sign(&self.key, &count).as_ref()].concat();
        let io = || StoreError::io(&self.path);
        self.file.seek(SeekFrom::Start(0)).map_err(io())?;
        self.file.write_all(&bytes).and_then(|()| self.file.sync_data()).map_err(io())
    }
}
