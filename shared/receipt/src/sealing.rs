//! What a tally signs about the key that contributions are sealed to.

use crate::hex::{hex, unhex32};
use crate::note::{NoteError, Signer, VerifierKey, open_note};

const FIRST: &str = "lethe tally sealing key";
const VERSION: u32 = 1;
const WRONG: NoteError = NoteError::Format("no statement about a sealing key");

/// A public key of a tally, and how long contributions may be sealed to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealingStatement {
    /// X25519 public key.
    pub key: [u8; 32],
    /// From when on, in seconds since 1970.
    pub from: u64,
    /// Until when, in seconds since 1970.
    pub until: u64,
}

impl SealingStatement {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let Self { key, from, until } = self;
        let key = hex(key);
        format!("{FIRST} {VERSION}\nkey {key}\nfrom {from}\nuntil {until}\n")
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
}

fn read(body: &str) -> Option<SealingStatement> {
    let mut lines = body.lines();
    if lines.next()? != format!("{FIRST} {VERSION}") {
        return None;
    }
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    Some(SealingStatement {
        key: unhex32(value("key")?)?,
        from: value("from")?.parse().ok()?,
        until: value("until")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_signed_read_and_refused_when_altered() {
        let signer = Signer::from_seed("tally", &[1; 32]).expect("a seed");
        let statement = SealingStatement {
            key: [7; 32],
            from: 1_700_000_000,
            until: 1_800_000_000,
        };
        let note = statement.sign(&signer).expect("signs");
        let open = |note: &str| SealingStatement::open(note, signer.verifier());
        assert_eq!(open(&note), Ok(statement));
        assert!(open(&note.replace("until 18", "until 19")).is_err());
        let other = signer.note("lethe tally snapshot 1\n").expect("signs");
        assert_eq!(open(&other), Err(WRONG));
    }
}
