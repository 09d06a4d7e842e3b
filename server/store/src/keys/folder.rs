//! Secrets as files in a folder: each twice, with its digest, readable by its user only.
//!
//! `lethe-key\0 | form (1 byte) | body | SHA-256 of all that`. Form 0: the body is the secret. Form
//! 1: it is the secret, sealed under the passphrase's key and bound to its name.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use lethe_proto::ids::Digest;
use lethe_seal::{seal, unseal};
use zeroize::Zeroizing;

use super::{KeySource, LONGEST};
use crate::{StoreError, private};

const MAGIC: &[u8] = b"lethe-key\0";
const SUFFIX: &str = ".secret";
const COPY: &str = ".copy";
const PLAIN: u8 = 0;
const SEALED: u8 = 1;

/// The folder.
pub(super) struct Folder {
    path: PathBuf,
    /// Secrets are sealed under it.
    key: Option<Zeroizing<[u8; 32]>>,
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Folder({})", self.path.display())
    }
}

/// A file's form and body.
struct Found {
    form: u8,
    body: Zeroizing<Vec<u8>>,
}

impl Folder {
    pub(super) fn plain(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            key: None,
        }
    }

    pub(super) fn sealed(path: &Path, key: Zeroizing<[u8; 32]>) -> Self {
        Self {
            path: path.to_owned(),
            key: Some(key),
        }
    }

    fn paths(&self, name: &str) -> [PathBuf; 2] {
        ["", COPY].map(|copy| self.path.join(format!("{name}{SUFFIX}{copy}")))
    }

    fn wrong(&self, why: String) -> StoreError {
        StoreError::Keys {
            place: format!("the folder {}", self.path.display()),
            why,
        }
    }

    /// Names of secrets of which a plain file is there.
    pub(super) fn plain_names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = self.list()?;
        let mut failed = None;
        names.retain(|name| match self.is_plain(name) {
            Ok(plain) => plain,
            Err(e) => {
                failed = Some(e);
                false
            }
        });
        failed.map_or(Ok(names), Err)
    }

    /// Whether a plain file of this name is there.
    pub(super) fn is_plain(&self, name: &str) -> Result<bool, StoreError> {
        for path in self.paths(name) {
            if let Some(Ok(found)) = read(&path)?
                && found.form == PLAIN
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a secret is there that is sealed under a passphrase.
    pub(super) fn has_sealed(&self) -> Result<bool, StoreError> {
        for path in self.list()?.iter().flat_map(|name| self.paths(name)) {
            if let Some(Ok(found)) = read(&path)?
                && found.form == SEALED
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Destroys what is plain of a secret: the source has it now.
    pub(super) fn drop_plain(&self, name: &str) -> Result<(), StoreError> {
        for path in self.paths(name) {
            if let Some(Ok(found)) = read(&path)?
                && found.form == PLAIN
            {
                destroy_file(&path)?;
            }
        }
        Ok(())
    }

    /// The secret of a file; none: it is plain, where secrets are sealed, and counts for nothing.
    fn open_body(
        &self,
        name: &str,
        found: Found,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        match (found.form, &self.key) {
            (PLAIN, None) => Ok(Some(found.body)),
            (PLAIN, Some(_)) => Ok(None),
            (SEALED, Some(key)) => {
                let plain = unseal(key, name.as_bytes(), &found.body);
                let plain = plain.map(Zeroizing::new);
                let plain = plain
                    .ok_or_else(|| self.wrong(format!("the passphrase does not open {name}")))?;
                Ok(Some(plain))
            }
            (SEALED, None) => {
                let why = "its secrets are sealed under a passphrase: say in the table [keys] \
                           where that is (passphrase_file or passphrase_env)";
                Err(self.wrong(why.into()))
            }
            (form, _) => Err(self.wrong(format!("{name} has form {form}, expected 0 or 1"))),
        }
    }
}

/// What a file holds. `None`: there is none, or it was destroyed and not yet removed.
/// `Some(Err)`: it is damaged.
fn read(path: &Path) -> Result<Option<Result<Found, ()>>, StoreError> {
    // What is sealed is longer than the secret.
    let most = MAGIC.len() + LONGEST + 1024;
    let bytes = match private::read(path, most) {
        Ok(Some(bytes)) => Zeroizing::new(bytes),
        Ok(None) => return Ok(None),
        Err(StoreError::Corrupt { .. }) => return Ok(Some(Err(()))),
        Err(e) => return Err(e),
    };
    if bytes.iter().all(|b| *b == 0) {
        return Ok(None);
    }
    let parts = || {
        let (all, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        let (form, body) = all.strip_prefix(MAGIC)?.split_first()?;
        let whole = Digest::of(&[all]).0 == digest;
        whole.then(|| Found {
            form: *form,
            body: Zeroizing::new(body.to_vec()),
        })
    };
    Ok(Some(parts().ok_or(())))
}

/// Overwrites a file in place, through a handle that outlives its name.
fn wipe(mut file: &File, path: &Path) -> Result<(), StoreError> {
    let io = || StoreError::io(path);
    let length = file.metadata().map_err(io())?.len().min(1 << 20);
    std::io::Seek::rewind(&mut file).map_err(io())?;
    file.write_all(&vec![0; length as usize]).map_err(io())?;
    file.sync_all().map_err(io())
}

/// Overwrites and removes a file; one that is not there is no error.
pub fn destroy_file(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => wipe(&file, path)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(StoreError::io(path)(e)),
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io(path)(e)),
        _ => Ok(()),
    }
}

impl KeySource for Folder {
    fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let mut damaged = false;
        for path in self.paths(name) {
            match read(&path)? {
                Some(Ok(found)) => {
                    if let Some(secret) = self.open_body(name, found)? {
                        return Ok(Some(secret));
                    }
                }
                Some(Err(())) => damaged = true,
                None => {}
            }
        }
        match damaged {
            true => Err(self.wrong(format!("{name} and its copy are damaged or missing"))),
            false => Ok(None),
        }
    }

    fn put(&self, name: &str, secret: &[u8]) -> Result<(), StoreError> {
        super::make_private(&self.path)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAGIC.len() + secret.len() + 128));
        bytes.extend_from_slice(MAGIC);
        match &self.key {
            None => {
                bytes.push(PLAIN);
                bytes.extend_from_slice(secret);
            }
            Some(key) => {
                bytes.push(SEALED);
                bytes.extend_from_slice(&seal(key, name.as_bytes(), secret)?);
            }
        }
        let digest = Digest::of(&[&bytes[..]]).0;
        bytes.extend_from_slice(&digest);
        for path in self.paths(name) {
            // What it held before is overwritten when its name is another file's.
            let before = OpenOptions::new().write(true).open(&path).ok();
            private::write(&path, &bytes)?;
            if let Some(before) = before {
                wipe(&before, &path)?;
            }
        }
        Ok(())
    }

    fn destroy(&self, name: &str) -> Result<(), StoreError> {
        for path in self.paths(name) {
            destroy_file(&path.with_extension("next"))?;
            destroy_file(&path)?;
        }
        match File::open(&self.path) {
            Ok(folder) => folder.sync_all().map_err(StoreError::io(&self.path)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(StoreError::io(&self.path)(e)),
        }
    }

    fn list(&self) -> Result<Vec<String>, StoreError> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(StoreError::io(&self.path)(e)),
        };
        let mut names = vec![];
        for entry in entries {
            let name = entry.map_err(StoreError::io(&self.path))?.file_name();
            let name = name.to_str().unwrap_or_default();
            let name = name.strip_suffix(COPY).unwrap_or(name);
            if let Some(name) = name.strip_suffix(SUFFIX) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}
