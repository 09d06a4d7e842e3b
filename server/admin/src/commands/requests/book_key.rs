//! The key of the operator's book of requests, `requests.key`: without it the book tells neither
//! whom a request is about nor which addresses are called.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lethe_dsr::keyed;

const NAME: &str = "requests.key";

/// 32 random bytes; nothing of them is ever shown.
pub(super) struct BookKey([u8; 32]);

impl std::fmt::Debug for BookKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BookKey")
    }
}

impl BookKey {
    /// The key in an operator's home; a new one unless the book needs the one that it had.
    pub(super) fn open(home: &Path, book: bool) -> anyhow::Result<Self> {
        let path = home.join(NAME);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let got = bytes.len();
                let key = bytes.try_into().ok();
                let key = key.with_context(|| {
                    format!("{}: {got} bytes, expected 32: put it back", path.display())
                })?;
                Ok(Self(key))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if book && !is_older(home)? {
                    bail!(
                        "{} is missing, and requests.json needs it: put it back, or move \
                         requests.json away; then ids of requests that were answered are taken \
                         for new ones",
                        path.display()
                    );
                }
                Self::make(&path)
            }
            Err(e) => Err(e).with_context(|| path.display().to_string()),
        }
    }

    fn make(path: &Path) -> anyhow::Result<Self> {
        let place = || path.display().to_string();
        let key: [u8; 32] = lethe_seal::random()?;
        let next = path.with_extension(format!("{}", std::process::id()));
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&next).with_context(place)?;
        file.write_all(&key)
            .and_then(|()| file.sync_all())
            .with_context(place)?;
        // Of two processes that make one the first has made it.
        let made = std::fs::hard_link(&next, path);
        std::fs::remove_file(&next).with_context(place)?;
        match made {
            Ok(()) => Ok(Self(key)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let bytes = std::fs::read(path).with_context(place)?;
                let key = bytes.try_into().ok().with_context(place)?;
                Ok(Self(key))
            }
            Err(e) => Err(e).with_context(place),
        }
    }

    /// What a person is known by.
    pub(super) fn person(&self, salted: &str) -> String {
        keyed(&self.0, "lethe-book-person", salted)
    }

    /// What an address is known by.
    pub(super) fn address(&self, url: &str) -> String {
        keyed(&self.0, "lethe-book-address", url)
    }

    /// Addresses of a request, for its place in the book.
    pub(super) fn seal(&self, request: &str, urls: &[String]) -> anyhow::Result<String> {
        let plain = serde_json::to_vec(urls)?;
        let sealed = lethe_seal::seal(&self.0, &label(request), &plain)?;
        Ok(STANDARD.encode(sealed))
    }

    pub(super) fn unseal(&self, request: &str, sealed: &str) -> anyhow::Result<Vec<String>> {
        let bytes = STANDARD.decode(sealed).context("sealed addresses")?;
        let plain = lethe_seal::unseal(&self.0, &label(request), &bytes);
        let plain = plain.with_context(|| {
            format!("the addresses of {request:?} do not open: {NAME} is another book's key")
        })?;
        Ok(serde_json::from_slice(&plain)?)
    }
}

fn label(request: &str) -> Vec<u8> {
    [b"lethe-book-callbacks/1 ", request.as_bytes()].concat()
}

/// Whether the book is of a version that had no key, or holds nothing yet.
fn is_older(home: &Path) -> anyhow::Result<bool> {
    let path = home.join("requests.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let all: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    Ok(all.values().all(|booked| booked["about"].is_array()))
}
