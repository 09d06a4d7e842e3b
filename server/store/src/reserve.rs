//! Space that is set aside so that a deletion can be stored and executed when the disk is full.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::StoreError;

/// A file that holds space.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Takes `bytes` of space in the file `path`; what is taken already stays.
    pub fn new(path: &Path, bytes: u64) -> Self {
        Self {
            path: path.to_owned(),
            bytes,
        }
    }

    /// Whether the space is taken.
    pub fn held(&self) -> bool {
        self.bytes == 0 || fs::metadata(&self.path).is_ok_and(|m| m.len() == self.bytes)
    }

    /// Takes the space, if there is twice as much: taking the last of it would only fill the disk
    /// again.
    pub fn take(&self) -> Result<(), StoreError> {
        if self.held() {
            return Ok(());
        }
        let probe = self.path.with_extension("probe");
        let result = fill(&probe, self.bytes).and_then(|()| fill(&self.path, self.bytes));
        let _ = fs::remove_file(&probe);
        if result.is_err() {
            let _ = fs::remove_file(&self.path);
        }
        result.map_err(StoreError::io(&self.path))
    }

    /// Gives the space back, for something that must be written now. Returns whether there was any.
    pub fn release(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

/// Written, not only sized: a sparse file holds no space.
fn fill(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let block = [0x5a; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(block.len() as u64);
        file.write_all(&block[..n as usize])?;
        left -= n;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_taken_once_and_given_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let r = Reserve::new(&dir.path().join("reserve"), 200_000);
        assert!(!r.held() && !r.release());
        r.take().expect("there is space");
        assert!(r.held());
        assert_eq!(
            fs::read_dir(dir.path()).expect("reads").count(),
            1,
            "no probe is left"
        );
        assert!(r.release() && !r.held());
    }
}
