//! The operator's book of requests, `requests.json`: ids, who asked, and what was last answered. It
//! names nobody: who a request is about, and which address was told what, is there under a key only
//! ([`BookKey`], in a file of its own), and so are the addresses themselves, until the last answer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lethe_dsr::opendsr::Status;
use lethe_dsr::salted;
use serde::{Deserialize, Serialize};

use super::book_key::BookKey;
use super::{Reference, used_before};

/// Largest book, in bytes: a million requests.
const LONGEST: u64 = 1 << 30;

/// Whom a request is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum About {
    /// As earlier versions kept it: salt and salted digest, of which a short name can be found by
    /// trying. It is replaced when the book is next read.
    Salted(String, String),
    /// Salt, and the salted digest under the book's key.
    Keyed { salt: String, keyed: String },
}

impl About {
    fn new(key: &BookKey, subject: &str) -> anyhow::Result<Self> {
        let salt = lethe_receipt::hex::hex(&lethe_seal::random::<32>()?);
        let keyed = key.person(&salted(&salt, subject));
        Ok(Self::Keyed { salt, keyed })
    }

    fn is(&self, key: &BookKey, subject: &str) -> bool {
        match self {
            Self::Salted(salt, digest) => salted(salt, subject) == *digest,
            Self::Keyed { salt, keyed } => key.person(&salted(salt, subject)) == *keyed,
        }
    }

    fn under(self, key: &BookKey) -> Self {
        match self {
            Self::Salted(salt, digest) => Self::Keyed {
                keyed: key.person(&digest),
                salt,
            },
            keyed => keyed,
        }
    }
}

/// A request in the book.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Booked {
    /// What came with it, without the token (which names the person) and, in the file, without
    /// addresses.
    pub(crate) reference: Reference,
    about: About,
    /// Nobody of that name is known: nothing had to be done.
    pub(crate) unknown: bool,
    /// Withdrawn while it was pending.
    pub(crate) cancelled: bool,
    /// Status that each callback address was told last; an address is known by a digest under the
    /// book's key.
    #[serde(default)]
    told: BTreeMap<String, Status>,
    /// The addresses, sealed, while one of them is still to be told something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
}

/// All of them, by [`Reference::key`].
pub(crate) type Requests = BTreeMap<String, Booked>;

/// The book on disk, with its key.
#[derive(Debug)]
pub(crate) struct Book {
    path: PathBuf,
    key: BookKey,
}

impl Book {
    /// The book in an operator's home.
    pub(crate) fn of(home: &Path) -> anyhow::Result<Self> {
        let path = home.join("requests.json");
        let key = BookKey::open(home, path.exists())?;
        Ok(Self { path, key })
    }

    /// The book as it is. One of an earlier version is read as if it were of this one; the next
    /// change writes it so.
    pub(crate) fn read(&self) -> anyhow::Result<Requests> {
        Ok(self.read_all()?.0)
    }

    /// The requests, and whether they came from an earlier version.
    fn read_all(&self) -> anyhow::Result<(Requests, bool)> {
        let place = || self.path.display().to_string();
        let text = match std::fs::metadata(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(e) => return Err(e).with_context(place),
            Ok(about) if about.len() > LONGEST => {
                bail!("{}: {} bytes, at most {LONGEST}", place(), about.len())
            }
            Ok(_) => std::fs::read(&self.path).with_context(place)?,
        };
        let mut all: Requests = serde_json::from_slice(&text).with_context(place)?;
        let mut older = false;
        for (name, booked) in &mut all {
            let old = matches!(booked.about, About::Salted(..));
            older |= old;
            if let Some(sealed) = booked.sealed.take() {
                let urls = self.key.unseal(name, &sealed);
                booked.reference.callbacks = urls.with_context(place)?;
            }
            if old {
                let told = std::mem::take(&mut booked.told);
                let under = told.into_iter().map(|(url, s)| (self.key.address(&url), s));
                booked.told = under.collect();
                booked.about = booked.about.clone().under(&self.key);
            }
        }
        Ok((all, older))
    }

    /// Keeps other processes of this operator out until the file is dropped. A book of an earlier
    /// version is written anew.
    pub(crate) fn lock(&self) -> anyhow::Result<File> {
        let path = self.path.with_extension("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        file.lock().with_context(|| path.display().to_string())?;
        let (all, older) = self.read_all()?;
        if older {
            let before = File::options().write(true).open(&self.path);
            self.write(&all)?;
            // The old digests are not left in free space, where the file system writes in place.
            before.and_then(|f| overwrite(&f)).unwrap_or_default();
        }
        Ok(file)
    }

    /// Reads, changes and writes the book; the caller holds the lock.
    pub(crate) fn change(
        &self,
        f: impl FnOnce(&mut Requests) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut all = self.read()?;
        f(&mut all)?;
        self.write(&all)
    }

    fn write(&self, all: &Requests) -> anyhow::Result<()> {
        let mut stored = all.clone();
        for (name, booked) in &mut stored {
            let urls = std::mem::take(&mut booked.reference.callbacks);
            if !urls.is_empty() {
                booked.sealed = Some(self.key.seal(name, &urls)?);
            }
        }
        let next = self.path.with_extension("next");
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options
            .open(&next)
            .with_context(|| next.display().to_string())?;
        serde_json::to_writer_pretty(&file, &stored)?;
        file.sync_all()?;
        std::fs::rename(&next, &self.path).with_context(|| self.path.display().to_string())
    }

    /// Refuses an id that was used for somebody else.
    pub(crate) fn check(&self, booked: &Booked, subject: &str) -> anyhow::Result<()> {
        if !booked.about.is(&self.key, subject) {
            return Err(used_before(&booked.reference.id));
        }
        Ok(())
    }

    /// What an address was told last.
    pub(crate) fn told(&self, booked: &Booked, url: &str) -> Option<Status> {
        booked.told.get(&self.key.address(url)).copied()
    }

    /// Notes what an address was told; the caller holds the lock. After the last answer to the last
    /// address the addresses are kept no longer.
    pub(crate) fn tell(&self, request: &str, url: &str, status: Status) -> anyhow::Result<()> {
        self.change(|all| {
            if let Some(b) = all.get_mut(request) {
                b.told.insert(self.key.address(url), status);
                let told = |u: &String| self.told(b, u) == Some(status);
                let last = matches!(status, Status::Completed | Status::Cancelled);
                if last && b.reference.callbacks.iter().all(told) {
                    b.reference.callbacks.clear();
                }
            }
            Ok(())
        })
    }

    /// Enters a request that is not there yet.
    pub(crate) fn enter(
        &self,
        reference: &Reference,
        subject: &str,
        unknown: bool,
    ) -> anyhow::Result<()> {
        let about = About::new(&self.key, subject)?;
        let mut reference = reference.clone();
        reference.token = None;
        self.change(|all| {
            let fresh = Booked {
                reference,
                about,
                unknown,
                cancelled: false,
                told: BTreeMap::new(),
                sealed: None,
            };
            let entry = all.entry(fresh.reference.key()).or_insert(fresh);
            // One that was unknown, lost or withdrawn and is taken again is what it is now.
            entry.unknown = unknown;
            entry.cancelled = false;
            Ok(())
        })
    }
}

/// Writes zeros over all of a file.
fn overwrite(mut file: &File) -> std::io::Result<()> {
    let mut left = file.metadata()?.len();
    let zeros = [0; 4096];
    while left > 0 {
        let some = left.min(zeros.len() as u64);
        file.write_all(&zeros[..some as usize])?;
        left -= some;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://controller.example/told-about-900001";

    fn reference(id: &str) -> Reference {
        Reference {
            format: "opendsr".into(),
            id: id.into(),
            controller: "shop".into(),
            received: 1,
            due: 2,
            callbacks: vec![URL.into()],
            token: Some("names 900001".into()),
        }
    }

    fn text(home: &Path) -> String {
        std::fs::read_to_string(home.join("requests.json")).expect("is there")
    }

    /// Whoever has the file alone tries all names of six digits: with every salt, as the file's
    /// parts are, and under no key.
    fn found_by_trying(text: &str) -> Option<u32> {
        let json: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let mut strings = vec![];
        let mut stack = vec![json];
        while let Some(value) = stack.pop() {
            match value {
                serde_json::Value::String(s) => strings.push(s),
                serde_json::Value::Array(all) => stack.extend(all),
                serde_json::Value::Object(all) => stack.extend(all.into_values()),
                _ => {}
            }
        }
        (900_000..900_010).find(|n| {
            let name = n.to_string();
            let tried = strings.iter().map(|salt| salted(salt, &name));
            tried
                .chain([salted("", &name)])
                .any(|d| strings.contains(&d))
        })
    }

    #[test]
    fn m7_the_book_alone_does_not_tell_whom_a_request_is_about() {
        let dir = tempfile::tempdir().expect("tempdir");
        let book = Book::of(dir.path()).expect("opens");
        let _lock = book.lock().expect("locks");
        book.enter(&reference("a"), "900001", true).expect("enters");
        let kept = text(dir.path());
        assert!(!kept.contains("900001"), "{kept}");
        assert_eq!(found_by_trying(&kept), None);
        // It is known again, also when it is opened anew.
        let book = Book::of(dir.path()).expect("opens");
        let all = book.read().expect("reads");
        let booked = &all["opendsr shop a"];
        book.check(booked, "900001").expect("the same person");
        assert!(book.check(booked, "900002").is_err());
        assert_eq!(booked.reference.callbacks, [URL]);
        #[cfg(unix)]
        for file in ["requests.json", "requests.key"] {
            use std::os::unix::fs::PermissionsExt;
            let about = std::fs::metadata(dir.path().join(file)).expect("is there");
            assert_eq!(about.permissions().mode() & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn m7_addresses_are_not_kept_after_the_last_answer() {
        let dir = tempfile::tempdir().expect("tempdir");
        let book = Book::of(dir.path()).expect("opens");
        let _lock = book.lock().expect("locks");
        book.enter(&reference("a"), "900001", true).expect("enters");
        let name = "opendsr shop a";
        book.tell(name, URL, Status::InProgress).expect("notes");
        let all = book.read().expect("reads");
        assert_eq!(all[name].reference.callbacks, [URL], "it is told more");
        assert_eq!(book.told(&all[name], URL), Some(Status::InProgress));
        book.tell(name, URL, Status::Completed).expect("notes");
        let all = book.read().expect("reads");
        assert!(all[name].reference.callbacks.is_empty());
        assert!(!text(dir.path()).contains("sealed"));
        assert_eq!(
            book.told(&all[name], URL),
            Some(Status::Completed),
            "told once"
        );
    }

    #[test]
    fn m7_a_book_of_an_earlier_version_is_taken_over() {
        let dir = tempfile::tempdir().expect("tempdir");
        let salt = "5a".repeat(32);
        let old = serde_json::json!({ "opendsr shop a": {
            "reference": {
                "format": "opendsr", "id": "a", "controller": "shop", "received": 1, "due": 2,
                "callbacks": [URL],
            },
            "about": [salt, salted(&salt, "900001")],
            "unknown": true, "cancelled": false,
            "told": { URL: "in_progress" },
        }});
        let path = dir.path().join("requests.json");
        std::fs::write(&path, old.to_string()).expect("writes");
        assert_eq!(found_by_trying(&text(dir.path())), Some(900_001));
        let before = File::open(&path).expect("is there");
        let book = Book::of(dir.path()).expect("opens");
        drop(book.lock().expect("locks"));
        let kept = text(dir.path());
        assert_eq!(found_by_trying(&kept), None, "{kept}");
        assert!(!kept.contains("controller.example"), "{kept}");
        let bytes = std::io::read_to_string(before).expect("reads");
        assert!(bytes.bytes().all(|b| b == 0), "the old file is overwritten");
        let all = book.read().expect("reads");
        let booked = &all["opendsr shop a"];
        book.check(booked, "900001").expect("the same person");
        assert!(book.check(booked, "900002").is_err());
        assert_eq!(book.told(booked, URL), Some(Status::InProgress));
        assert_eq!(booked.reference.callbacks, [URL]);
    }

    #[test]
    fn m7_a_book_without_its_key_is_an_error_and_stays_as_it_is() {
        let dir = tempfile::tempdir().expect("tempdir");
        let book = Book::of(dir.path()).expect("opens");
        book.enter(&reference("a"), "900001", true).expect("enters");
        let kept = text(dir.path());
        std::fs::remove_file(dir.path().join("requests.key")).expect("is there");
        let e = Book::of(dir.path()).expect_err("the key is missing");
        assert!(e.to_string().contains("requests.key"), "{e}");
        assert_eq!(text(dir.path()), kept);
    }
}
