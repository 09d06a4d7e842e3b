//! What a tally signs about people who were to leave: what it has of them now, and what it serves
//! without them.

use ring::digest::{Context, SHA256};

use crate::hex::{hex, unhex32};
use crate::merkle::Hash;
use crate::note::{NoteError, Signer, VerifierKey, open_note};

const FIRST: &str = "lethe tally statement about handles";
const VERSION: u32 = 1;
const WRONG: NoteError = NoteError::Format("no statement about handles");

/// The most handles of a statement.
pub const MOST_HANDLES: usize = 1_024;

/// Names a handle without telling it: SHA-256 of a label and the handle.
pub fn handle_hash(handle: &[u8; 16]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(b"lethe handle\n");
    context.update(handle);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// What the tally has of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vouched {
    /// [`handle_hash`].
    pub handle: Hash,
    /// None: nothing. Else a membership that began then, in seconds since 1970: whoever left
    /// before has come again.
    pub since: Option<u64>,
}

/// A snapshot, by number and digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotName {
    /// Its number.
    pub number: u64,
    /// SHA-256 of its tables.
    pub digest: Hash,
}

/// A statement about handles, as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VouchStatement {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Snapshots up to this number are recalled; 0: none is.
    pub recalled: u64,
    /// The snapshot that is served. Nobody is in it of whom the tally has nothing.
    pub serves: Option<SnapshotName>,
    /// In the order in which they were asked for; at most [`MOST_HANDLES`].
    pub handles: Vec<Vouched>,
}

impl VouchStatement {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let Self {
            at,
            recalled,
            serves,
            handles,
        } = self;
        let serves = match serves {
            Some(s) => format!("{} {}", s.number, hex(&s.digest)),
            None => "nothing".to_owned(),
        };
        let mut out = format!("{FIRST} {VERSION}\nat {at}\nrecalled {recalled}\nserves {serves}\n");
        for one in handles {
            let has = match one.since {
                Some(since) => format!("since {since}"),
                None => "nothing".to_owned(),
            };
            out += &format!("handle {} {has}\n", hex(&one.handle));
        }
        out
    }

    /// The signed note.
    ///
    /// # Errors
    /// [`NoteError`] for a signer whose name is the first line.
    pub fn sign(&self, signer: &Signer) -> Result<String, NoteError> {
        signer.note(&self.text())
    }

    /// Verifies a signed note and reads it.
    ///
    /// # Errors
    /// [`NoteError`]: the signature, or the text.
    pub fn open(note: &str, key: &VerifierKey) -> Result<Self, NoteError> {
        let body = open_note(note, key)?;
        let read = read(&body).ok_or(WRONG)?;
        // One statement has one text.
        match read.text() == body {
            true => Ok(read),
            false => Err(WRONG),
        }
    }

    /// What it says of a handle.
    pub fn of(&self, handle: &[u8; 16]) -> Option<Vouched> {
        let hash = handle_hash(handle);
        self.handles.iter().find(|v| v.handle == hash).copied()
    }
}

fn read(body: &str) -> Option<VouchStatement> {
    let mut lines = body.lines();
    if lines.next()? != format!("{FIRST} {VERSION}") {
        return None;
    }
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    let at = value("at")?.parse().ok()?;
    let recalled = value("recalled")?.parse().ok()?;
    let serves = match value("serves")? {
        "nothing" => None,
        named => {
            let (number, digest) = named.split_once(' ')?;
            Some(SnapshotName {
                number: number.parse().ok()?,
                digest: unhex32(digest)?,
            })
        }
    };
    let handles: Option<Vec<Vouched>> = lines.map(read_handle).collect();
    Some(VouchStatement {
        at,
        recalled,
        serves,
        handles: handles.filter(|h| h.len() <= MOST_HANDLES)?,
    })
}

fn read_handle(line: &str) -> Option<Vouched> {
    let (handle, has) = line.strip_prefix("handle ")?.split_once(' ')?;
    let since = match has {
        "nothing" => None,
        other => Some(other.strip_prefix("since ")?.parse().ok()?),
    };
    Some(Vouched {
        handle: unhex32(handle)?,
        since,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_signed_read_and_refused_when_altered() {
        let signer = Signer::from_seed("tally", &[1; 32]).expect("a seed");
        let of = |n: u8, since| Vouched {
            handle: handle_hash(&[n; 16]),
            since,
        };
        let statement = VouchStatement {
            at: 1_700_000_000,
            recalled: 6,
            serves: Some(SnapshotName {
                number: 7,
                digest: [3; 32],
            }),
            handles: vec![of(1, None), of(2, Some(1_699_999_999))],
        };
        let note = statement.sign(&signer).expect("signs");
        let open = |note: &str| VouchStatement::open(note, signer.verifier());
        let read = open(&note).expect("opens");
        assert_eq!(read, statement);
        assert_eq!(read.of(&[1; 16]).expect("is there").since, None);
        assert_eq!(read.of(&[9; 16]), None);
        assert!(open(&note.replace("recalled 6", "recalled 7")).is_err());
        // A handle is nowhere in clear.
        assert!(!note.contains(&hex(&[1; 16])));
        let nothing = VouchStatement {
            serves: None,
            handles: vec![],
            ..statement
        };
        let note = nothing.sign(&signer).expect("signs");
        assert_eq!(open(&note), Ok(nothing));
    }

    #[test]
    fn texts_that_are_not_canonical_are_refused() {
        let signer = Signer::from_seed("tally", &[1; 32]).expect("a seed");
        let head = format!("{FIRST} {VERSION}\nat 1\nrecalled 0\n");
        for rest in [
            "serves 07 00\n",
            "serves nothing\nhandle x nothing\n",
            "",
            "serves nothing\nmore\n",
        ] {
            let note = signer.note(&format!("{head}{rest}")).expect("signs");
            assert_eq!(VouchStatement::open(&note, signer.verifier()), Err(WRONG));
        }
    }
}
