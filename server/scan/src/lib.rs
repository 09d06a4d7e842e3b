//! Searches files for what should not be in them: a person's identifiers and content, in every form
//! in which software likes to write text down.
//!
//! A clean scan shows that the files hold none of these forms. It does not show that nothing is
//! there: what is encrypted or compressed looks like noise.
//!
//! ```
//! use lethe_scan::{Scanner, Secret};
//! let folder = tempfile::tempdir()?;
//! std::fs::write(folder.path().join("log"), "user=YWxpY2UtMTczOQ==")?;
//! let scanner = Scanner::new(&[Secret::Text("alice-1739".into())])?;
//! let report = scanner.scan(&[folder.path().to_owned()])?;
//! assert_eq!(report.hits[0].form, "base64");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use serde::Serialize;
use thiserror::Error;

mod forms;

pub use forms::Secret;

/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

/// Hits that are listed; more are counted.
const MAX_HITS: usize = 1000;

/// Why a scan cannot be trusted.
#[derive(Debug, Error)]
pub enum ScanError {
    /// Too short to mean anything.
    #[error(
        "{0:?} is too short to search for: expected at least {1} bytes (or {1} tokens); what is \
         shorter is in any file by chance"
    )]
    TooShort(String, usize),
    /// Too many or too long patterns.
    #[error("the patterns cannot be compiled: {0}; search for fewer at once")]
    Patterns(String),
    /// A file that could not be read: what is in it is not known.
    #[error("{path}: {source}; scan with the right to read everything")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Something found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hit {
    /// Which secret, by its position.
    pub secret: usize,
    /// In which form: `raw`, `utf-16`, `base64`, `hex`, `percent`, `tokens` or `name` (of the
    /// file).
    pub form: &'static str,
    /// File.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
}

/// What was searched and found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Patterns searched for.
    pub patterns: usize,
    /// Hits in all.
    pub found: u64,
    /// The first of them.
    pub hits: Vec<Hit>,
}

/// Secrets, compiled.
#[derive(Debug)]
pub struct Scanner {
    machine: AhoCorasick,
    /// Secret and form of each pattern.
    meanings: Vec<(usize, &'static str)>,
    longest: usize,
}

impl Scanner {
    /// Compiles all forms of the secrets.
    pub fn new(secrets: &[Secret]) -> Result<Self, ScanError> {
        let (mut patterns, mut meanings) = (vec![], vec![]);
        for (i, s) in secrets.iter().enumerate() {
            for (form, bytes) in forms::of(s)? {
                patterns.push(bytes);
                meanings.push((i, form));
            }
        }
        let longest = patterns.iter().map(Vec::len).max().unwrap_or(0);
        let machine =
            AhoCorasick::new(&patterns).map_err(|e| ScanError::Patterns(e.to_string()))?;
        Ok(Self {
            machine,
            meanings,
            longest,
        })
    }

    /// Hits in bytes.
    pub fn count(&self, bytes: &[u8]) -> u64 {
        self.machine.find_overlapping_iter(bytes).count() as u64
    }

    /// Searches files and folders with all below them; links are not followed.
    pub fn scan(&self, paths: &[PathBuf]) -> Result<Report, ScanError> {
        let mut report = Report {
            patterns: self.meanings.len(),
            ..Report::default()
        };
        let mut left: Vec<PathBuf> = paths.to_vec();
        while let Some(path) = left.pop() {
            let io = |source| ScanError::Io {
                path: path.clone(),
                source,
            };
            let kind = fs::symlink_metadata(&path).map_err(io)?.file_type();
            if let Some(name) = path.file_name() {
                for m in self.machine.find_overlapping_iter(name.as_encoded_bytes()) {
                    self.note(
                        &mut report,
                        m.pattern().as_usize(),
                        &path,
                        m.start() as u64,
                        Some("name"),
                    );
                }
            }
            if kind.is_dir() {
                for entry in fs::read_dir(&path).map_err(io)? {
                    left.push(entry.map_err(io)?.path());
                }
            } else if kind.is_file() {
                self.file(&path, &mut report).map_err(io)?;
            }
        }
        Ok(report)
    }

    fn note(
        &self,
        report: &mut Report,
        pattern: usize,
        path: &Path,
        offset: u64,
        form: Option<&'static str>,
    ) {
        report.found += 1;
        if report.hits.len() < MAX_HITS {
            let (secret, own) = self.meanings[pattern];
            report.hits.push(Hit {
                secret,
                form: form.unwrap_or(own),
                path: path.to_owned(),
                offset,
            });
        }
    }

    fn file(&self, path: &Path, report: &mut Report) -> std::io::Result<()> {
        let mut file = File::open(path)?;
        report.files += 1;
        // Blocks overlap by the longest pattern less one; hits that end within the overlap were
        // counted before.
        let keep = self.longest.saturating_sub(1);
        let (mut window, mut base) = (Vec::with_capacity(BLOCK + keep), 0u64);
        loop {
            let seen = window.len();
            window.resize(seen + BLOCK, 0);
            let mut filled = seen;
            while filled < window.len() {
                match file.read(&mut window[filled..])? {
                    0 => break,
                    n => filled += n,
                }
            }
            window.truncate(filled);
            report.bytes += (filled - seen) as u64;
            for m in self.machine.find_overlapping_iter(&window) {
                if m.end() > seen {
                    self.note(
                        report,
                        m.pattern().as_usize(),
                        path,
                        base + m.start() as u64,
                        None,
                    );
                }
            }
            if filled < seen + BLOCK {
                return Ok(());
            }
            let cut = filled.saturating_sub(keep);
            window.drain(..cut);
            base += cut as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(secret: &str, content: &[u8]) -> Report {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir(dir.path().join("sub")).expect("creates");
        fs::write(dir.path().join("sub/file"), content).expect("writes");
        let scanner = Scanner::new(&[Secret::Text(secret.into())]).expect("long enough");
        scanner.scan(&[dir.path().to_owned()]).expect("scans")
    }

    #[test]
    fn every_form_is_found_at_every_alignment() {
        use base64::Engine;
        use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
        let id = "person-\u{e9}71?>";
        let utf16: Vec<u8> = id.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let hex: String = id.bytes().map(|b| format!("{b:02X}")).collect();
        let mut contents = vec![
            ("raw", format!("xx{id}yy").into_bytes()),
            ("utf-16", [&b"x"[..], &utf16, b"y"].concat()),
            (
                "utf-16",
                id.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            ),
            ("hex", hex.clone().into_bytes()),
            ("hex", hex.to_lowercase().into_bytes()),
            ("percent", b"q=person-%C3%A971%3F%3E".to_vec()),
        ];
        for before in 0..3 {
            for after in 0..3 {
                let text = format!("{}{id}{}", "a".repeat(before), "b".repeat(after));
                contents.push(("base64", STANDARD.encode(&text).into_bytes()));
                contents.push(("base64", URL_SAFE_NO_PAD.encode(&text).into_bytes()));
            }
        }
        for (form, content) in contents {
            let r = scan(id, &content);
            assert!(
                r.hits.iter().any(|h| h.form == form),
                "{form} in {:?}: {:?}",
                String::from_utf8_lossy(&content),
                r
            );
        }
        assert_eq!(scan(id, b"person-72 and others").found, 0);
    }

    #[test]
    fn hits_on_block_borders_are_found_once() {
        for at in [BLOCK - 5, BLOCK - 1, BLOCK, 2 * BLOCK - 3] {
            let mut content = vec![b'.'; 2 * BLOCK + 100];
            content[at..at + 10].copy_from_slice(b"canary-007");
            let r = scan("canary-007", &content);
            assert_eq!(
                (r.found, r.hits[0].offset, r.bytes),
                (1, at as u64, 2 * BLOCK as u64 + 100)
            );
        }
    }

    #[test]
    fn tokens_names_and_bad_requests() {
        let dir = tempfile::tempdir().expect("tempdir");
        let ids = [17u32, 40_000, 3, 99];
        let le16: Vec<u8> = ids.iter().flat_map(|t| (*t as u16).to_le_bytes()).collect();
        let le32: Vec<u8> = ids.iter().flat_map(|t| t.to_le_bytes()).collect();
        for (i, c) in [
            le16,
            le32,
            b"[17,40000,3,99]".to_vec(),
            b"17, 40000, 3, 99".to_vec(),
        ]
        .iter()
        .enumerate()
        {
            fs::write(dir.path().join(i.to_string()), c).expect("writes");
        }
        let scanner = Scanner::new(&[Secret::Tokens(ids.to_vec())]).expect("four");
        let r = scanner.scan(&[dir.path().to_owned()]).expect("scans");
        assert_eq!((r.found, r.files), (4, 4), "{r:?}");
        fs::write(dir.path().join("alice-1739.bak"), b"").expect("writes");
        let scanner = Scanner::new(&[Secret::Text("alice-1739".into())]).expect("long");
        assert_eq!(
            scanner.scan(&[dir.path().to_owned()]).expect("scans").hits[0].form,
            "name"
        );
        assert!(matches!(
            Scanner::new(&[Secret::Text("ab".into())]),
            Err(ScanError::TooShort(..))
        ));
        assert!(matches!(
            Scanner::new(&[Secret::Tokens(vec![1])]),
            Err(ScanError::TooShort(..))
        ));
        assert!(matches!(
            scanner.scan(&[dir.path().join("none")]),
            Err(ScanError::Io { .. })
        ));
    }
}
