//! What the log's key signs about a version of the catalogue.

use crate::hex::{hex, unhex32};
use crate::note::{NoteError, Signer, VerifierKey, open_note};
use crate::statement::{Kind, entry};

const FIRST: &str = "lethe catalogue manifest";
const VERSION: u32 = 1;
const WRONG: NoteError = NoteError::Format("no manifest of a catalogue");

/// A version of the catalogue. Nothing in it is about a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Number of the version, from 1.
    pub number: u32,
    /// Names it.
    pub digest: [u8; 32],
    /// Names the one before; zeros: there is none.
    pub before: [u8; 32],
    /// Places of its items, those of removed ones among them.
    pub places: u64,
    /// When it was applied, in seconds since 1970.
    pub at: u64,
}

impl Manifest {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let Self {
            number,
            digest,
            before,
            places,
            at,
        } = self;
        let digest = hex(digest);
        let before = hex(before);
        format!(
            "{FIRST} {VERSION}\nnumber {number}\ndigest {digest}\nbefore {before}\nplaces \
             {places}\nat {at}\n"
        )
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
        // One manifest has one text.
        match read.text() == body {
            true => Ok(read),
            false => Err(WRONG),
        }
    }

    /// The log's entry. A manifest is public: whoever has it can look it up.
    pub fn entry(&self) -> Vec<u8> {
        entry(Kind::Catalogue, &self.digest, self.text().as_bytes())
    }
}

fn read(body: &str) -> Option<Manifest> {
    let mut lines = body.lines();
    if lines.next()? != format!("{FIRST} {VERSION}") {
        return None;
    }
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    Some(Manifest {
        number: value("number")?.parse().ok()?,
        digest: unhex32(value("digest")?)?,
        before: unhex32(value("before")?)?,
        places: value("places")?.parse().ok()?,
        at: value("at")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_signed_read_and_refused_when_altered() {
        let signer = Signer::from_seed("log.example", &[1; 32]).expect("a seed");
        let manifest = Manifest {
            number: 2,
            digest: [7; 32],
            before: [6; 32],
            places: 1_682,
            at: 1_700_000_000,
        };
        let note = manifest.sign(&signer).expect("signs");
        let open = |note: &str| Manifest::open(note, signer.verifier());
        assert_eq!(open(&note), Ok(manifest.clone()));
        assert!(open(&note.replace("number 2", "number 3")).is_err());
        let other = Signer::from_seed("log.example", &[2; 32]).expect("a seed");
        assert!(Manifest::open(&note, other.verifier()).is_err());
        let no_manifest = signer.note("lethe tally snapshot 1\n").expect("signs");
        assert_eq!(open(&no_manifest), Err(WRONG));
        let text = String::from_utf8(manifest.entry()).expect("text");
        assert!(text.starts_with("lethe-log/2 catalogue "), "{text}");
    }
}
