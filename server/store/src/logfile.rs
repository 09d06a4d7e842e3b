//! The transparency log on disk: one fsynced, hash-chained, append-only file, independent of the
//! database.
//!
//! Each record is `length (u32 LE) | entry | SHA-256(previous chain value || entry)`. An unfinished
//! record at the end (a crash before the sync returned, so never acknowledged) is cut off at
//! opening; anything else that does not fit the chain is an error. The number of acknowledged
//! entries is in a small file beside it (`.count`): a log that lost its end would look like one
//! that a crash cut short. Both files are there twice (`.copy`): what one lost comes from the
//! other.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lethe_proto::ids::Digest;

use crate::StoreError;
use crate::head::Head;

/// Longest entry, in bytes.
const MAX_ENTRY: usize = 1 << 20;

/// One of the two files.
#[derive(Debug)]
struct Strand {
    file: File,
    path: PathBuf,
    /// Bytes of complete, acknowledged entries; what lies behind them is the rest of an append that
    /// failed.
    len: u64,
    chain: Digest,
    entries: Vec<Vec<u8>>,
    head: Head,
}

impl Strand {
    /// Opens or creates it, and checks the chain.
    fn open(path: &Path) -> Result<Self, StoreError> {
        let io = || StoreError::io(path);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io())?;
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).map_err(io())?;
        let (head, acknowledged) = Head::open(&beside(path, ".count"), &[0; 32])?;
        let mut log = Self {
            file,
            path: path.to_owned(),
            len: 0,
            chain: Digest::default(),
            entries: vec![],
            head,
        };
        let mut at = 0;
        while let Some((entry, next)) = log.parse(&bytes, at)? {
            log.chain = link(&log.chain, &entry);
            log.entries.push(entry);
            at = next;
        }
        let corrupt = |why: String| StoreError::Corrupt {
            name: path.display().to_string(),
            why,
        };
        let found = log.entries.len() as u64;
        match acknowledged {
            // One entry without a count: the crash came before the first was acknowledged.
            None if found > 1 => {
                return Err(corrupt(
                    "the file that counts its entries is missing".into(),
                ));
            }
            Some(n) if found < n => {
                return Err(corrupt(format!(
                    "its last {} of {n} acknowledged entries are lost",
                    n - found
                )));
            }
            _ => {}
        }
        log.file.set_len(at as u64).map_err(io())?;
        log.len = at as u64;
        Ok(log)
    }

    fn parse(&self, bytes: &[u8], at: usize) -> Result<Option<(Vec<u8>, usize)>, StoreError> {
        let corrupt = |why: String| StoreError::Corrupt {
            name: self.path.display().to_string(),
            why,
        };
        let Some(head) = bytes.get(at..at + 4) else {
            return Ok(None);
        };
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if len > MAX_ENTRY {
            return Err(corrupt(format!(
                "entry {} claims {len} bytes",
                self.entries.len()
            )));
        }
        let end = at + 4 + len + 32;
        let Some(body) = bytes.get(at + 4..end) else {
            return Ok(None);
        };
        let (entry, mark) = body.split_at(len);
        if link(&self.chain, entry).0 != mark {
            return Err(corrupt(format!(
                "entry {} does not follow from the one before",
                self.entries.len()
            )));
        }
        Ok(Some((entry.to_vec(), end)))
    }

    /// Appends an entry; when it returns, the entry is durable. Returns its index. After an error
    /// the log is as it was: the next append overwrites what the failed one left.
    fn append(&mut self, entry: &[u8]) -> Result<u64, StoreError> {
        if entry.len() > MAX_ENTRY {
            return Err(StoreError::Encode {
                table: "log",
                why: format!("an entry of {} bytes", entry.len()),
            });
        }
        let chain = link(&self.chain, entry);
        let record = [&(entry.len() as u32).to_le_bytes()[..], entry, &chain.0].concat();
        self.write_at_end(&record)
            .map_err(StoreError::io(&self.path))?;
        self.head.set(self.entries.len() as u64 + 1)?;
        self.len += record.len() as u64;
        self.chain = chain;
        self.entries.push(entry.to_vec());
        Ok(self.entries.len() as u64 - 1)
    }

    /// Takes back what came after the first `entries`.
    fn cut(&mut self, entries: usize) -> Result<(), StoreError> {
        if self.entries.len() <= entries {
            return Ok(());
        }
        let kept = &self.entries[..entries];
        let chain = kept.iter().fold(Digest::default(), |c, e| link(&c, e));
        let len = kept.iter().map(|e| e.len() as u64 + 4 + 32).sum();
        self.head.set(entries as u64)?;
        self.file
            .set_len(len)
            .and_then(|()| self.file.sync_all())
            .map_err(StoreError::io(&self.path))?;
        self.entries.truncate(entries);
        (self.chain, self.len) = (chain, len);
        Ok(())
    }

    fn write_at_end(&mut self, record: &[u8]) -> std::io::Result<()> {
        self.file.set_len(self.len)?;
        self.file.seek(SeekFrom::Start(self.len))?;
        self.file.write_all(record)?;
        self.file.sync_all()
    }
}

/// An open log.
#[derive(Debug)]
pub struct LogFile {
    /// The file and its copy; after a failed append the second may lack what the first has.
    strands: [Strand; 2],
}

impl LogFile {
    /// Opens or creates it, checks the chain of both copies, and makes one that is damaged or
    /// behind anew.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let paths = [path.to_owned(), beside(path, ".copy")];
        let strands = paths.each_ref().map(|p| Strand::open(p));
        let strands = match strands {
            [Ok(a), Ok(b)] => [a, b],
            [Ok(a), Err(e)] => [a, remake(&paths[1], e)?],
            [Err(e), Ok(b)] => [remake(&paths[0], e)?, b],
            [Err(e), Err(_)] => return Err(e),
        };
        let mut log = Self { strands };
        log.equalise()?;
        Ok(log)
    }

    /// Adds to each copy what only the other has.
    fn equalise(&mut self) -> Result<(), StoreError> {
        let [a, b] = &mut self.strands;
        let shared = a.entries.len().min(b.entries.len());
        if a.entries[..shared] != b.entries[..shared] {
            let why = "its two copies differ".into();
            return Err(StoreError::Corrupt {
                name: a.path.display().to_string(),
                why,
            });
        }
        let (longer, shorter) = if a.entries.len() > shared {
            (a, b)
        } else {
            (b, a)
        };
        longer.entries[shared..]
            .iter()
            .try_for_each(|e| shorter.append(e).map(drop))
    }

    /// Appends an entry; when it returns, the entry is durable, twice. Returns its index. After an
    /// error the log is as it was.
    pub fn append(&mut self, entry: &[u8]) -> Result<u64, StoreError> {
        let [a, b] = &mut self.strands;
        a.cut(b.entries.len())?;
        let index = a.append(entry)?;
        if let Err(e) = b.append(entry) {
            a.cut(b.entries.len())?;
            return Err(e);
        }
        Ok(index)
    }

    /// All acknowledged entries in order.
    pub fn entries(&self) -> &[Vec<u8>] {
        let [a, b] = &self.strands;
        if a.entries.len() < b.entries.len() {
            &a.entries
        } else {
            &b.entries
        }
    }
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(what);
    name.into()
}

/// An empty file in the place of a damaged one.
fn remake(path: &Path, why: StoreError) -> Result<Strand, StoreError> {
    if !matches!(why, StoreError::Corrupt { .. }) {
        return Err(why);
    }
    for path in [path.to_owned(), beside(path, ".count")] {
        let to = beside(&path, ".damaged");
        match std::fs::rename(&path, to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io(&path)(e));
            }
            _ => {}
        }
    }
    Strand::open(path)
}

fn link(chain: &Digest, entry: &[u8]) -> Digest {
    Digest::of(&[&chain.0, entry])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_entries_cuts_torn_tails_and_refuses_alterations() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path).expect("opens");
        assert_eq!(
            (
                log.append(b"one").expect("writes"),
                log.append(b"two").expect("writes")
            ),
            (0, 1)
        );
        let whole = std::fs::read(&path).expect("reads");
        std::fs::write(&path, [&whole[..], &[9, 0, 0, 0, 1, 2]].concat()).expect("writes");
        let mut log = LogFile::open(&path).expect("opens");
        assert_eq!(log.entries(), [b"one".to_vec(), b"two".to_vec()]);
        log.append(b"three").expect("writes");
        let mut bytes = std::fs::read(&path).expect("reads");
        bytes[5] ^= 1;
        std::fs::write(&path, &bytes).expect("writes");
        assert_eq!(
            LogFile::open(&path)
                .expect("its copy is whole")
                .entries()
                .len(),
            3
        );
        for path in [&path, &beside(&path, ".copy")] {
            std::fs::write(path, &bytes).expect("writes");
        }
        assert!(matches!(
            LogFile::open(&path),
            Err(StoreError::Corrupt { .. })
        ));
    }

    #[test]
    fn an_append_that_only_one_copy_took_is_taken_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path).expect("opens");
        log.append(b"one").expect("writes");
        log.strands[0].append(b"half").expect("writes");
        assert_eq!(log.entries().len(), 1);
        assert_eq!(log.append(b"two").expect("writes"), 1);
        drop(log);
        assert_eq!(
            LogFile::open(&path).expect("opens").entries(),
            [b"one".to_vec(), b"two".to_vec()]
        );
    }

    #[test]
    fn copies_that_say_different_things_are_an_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        LogFile::open(&a)
            .expect("opens")
            .append(b"one")
            .expect("writes");
        LogFile::open(&b)
            .expect("opens")
            .append(b"two")
            .expect("writes");
        for end in ["", ".count"] {
            std::fs::copy(beside(&b, end), beside(&beside(&a, ".copy"), end)).expect("copies");
        }
        assert!(matches!(LogFile::open(&a), Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn a_log_that_lost_its_end_has_it_from_its_copy_or_is_an_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path).expect("opens");
        for entry in [b"one", b"two"] {
            log.append(entry).expect("writes");
        }
        drop(log);
        let whole = std::fs::read(&path).expect("reads");
        let files = [path.clone(), beside(&path, ".copy")];
        for keep in 0..whole.len() {
            for file in &files {
                std::fs::write(file, &whole[..keep]).expect("writes");
                assert!(
                    matches!(Strand::open(file), Err(StoreError::Corrupt { .. })),
                    "{keep} bytes"
                );
                assert_eq!(
                    LogFile::open(&path).expect("opens").entries().len(),
                    2,
                    "{keep} bytes"
                );
                assert_eq!(std::fs::read(file).expect("reads"), whole);
            }
            files
                .iter()
                .for_each(|f| std::fs::write(f, &whole[..keep]).expect("writes"));
            assert!(
                matches!(LogFile::open(&path), Err(StoreError::Corrupt { .. })),
                "{keep} bytes of both"
            );
            files
                .iter()
                .for_each(|f| std::fs::write(f, &whole).expect("writes"));
        }
        std::fs::remove_file(beside(&path, ".count")).expect("exists");
        assert_eq!(LogFile::open(&path).expect("opens").entries().len(), 2);
        files
            .iter()
            .for_each(|f| std::fs::remove_file(beside(f, ".count")).expect("exists"));
        assert!(matches!(
            LogFile::open(&path),
            Err(StoreError::Corrupt { .. })
        ));
    }

    #[test]
    fn an_append_that_failed_half_way_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path).expect("opens");
        log.append(b"one").expect("writes");
        // What a full disk leaves: the head of a record and a part of its body.
        log.strands[0]
            .file
            .write_all(&[40, 0, 0, 0, 7, 7])
            .expect("writes");
        log.append(b"two").expect("writes");
        drop(log);
        assert_eq!(
            LogFile::open(&path).expect("opens").entries(),
            [b"one".to_vec(), b"two".to_vec()]
        );
    }
}
