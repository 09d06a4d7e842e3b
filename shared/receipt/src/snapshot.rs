//! What is signed about a snapshot of the recommender's tables.

use crate::hex::{hex, unhex32};
use crate::merkle::Hash;
use crate::note::{NoteError, Signer, VerifierKey, open_note};

const FIRST: &str = "lethe tally snapshot";
const VERSION: u32 = 1;

/// What is said of a snapshot. None of it is about one person: the root is over salted digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStatement {
    /// The snapshot's number, from 1.
    pub number: u64,
    /// Day since 1970 at whose beginning the tables are.
    pub day: i32,
    /// SHA-256 of the snapshot.
    pub snapshot: Hash,
    /// SHA-256 of a salt and the SHA-256 of the sums that it was solved from. The tally has the
    /// salt.
    pub sums: Hash,
    /// Root of the Merkle tree over everybody who counts (`lethe_tally::fold_root`).
    pub fold: Hash,
    /// People who count.
    pub people: u64,
    /// Members of the smallest cell, n; 0 without a cell.
    pub cell: u64,
    /// Members of a cell who change together at least, m.
    pub changed: u64,
    /// People who must share a pair for it to count, k.
    pub k: u64,
}

impl SnapshotStatement {
    /// The text that is signed: a line for each number.
    pub fn text(&self) -> String {
        let Self {
            number,
            day,
            snapshot,
            sums,
            fold,
            people,
            cell,
            changed,
            k,
        } = self;
        let snapshot = hex(snapshot);
        let sums = hex(sums);
        let fold = hex(fold);
        format!(
            "{FIRST} {VERSION}\nnumber {number}\nday {day}\nsnapshot {snapshot}\nsums {sums}\n\
             fold {fold}\npeople {people}\ncell {cell}\nchanged {changed}\nk {k}\n"
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
        let read = read(&body).ok_or(NoteError::Format("no statement about a snapshot"))?;
        // One statement has one text.
        match read.text() == body {
            true => Ok(read),
            false => Err(NoteError::Format("no statement about a snapshot")),
        }
    }
}

fn read(body: &str) -> Option<SnapshotStatement> {
    let mut lines = body.lines();
    if lines.next()? != format!("{FIRST} {VERSION}") {
        return None;
    }
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    Some(SnapshotStatement {
        number: value("number")?.parse().ok()?,
        day: value("day")?.parse().ok()?,
        snapshot: unhex32(value("snapshot")?)?,
        sums: unhex32(value("sums")?)?,
        fold: unhex32(value("fold")?)?,
        people: value("people")?.parse().ok()?,
        cell: value("cell")?.parse().ok()?,
        changed: value("changed")?.parse().ok()?,
        k: value("k")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_signed_read_and_refused_when_altered() {
        let signer = Signer::from_seed("tally", &[1; 32]).expect("a seed");
        let digest = |n: u8| [n; 32];
        let statement = SnapshotStatement {
            number: 7,
            day: -3,
            snapshot: digest(1),
            sums: digest(2),
            fold: digest(3),
            people: 928,
            cell: 16,
            changed: 8,
            k: 3,
        };
        let note = statement.sign(&signer).expect("signs");
        assert_eq!(
            SnapshotStatement::open(&note, signer.verifier()),
            Ok(statement)
        );
        let altered = note.replace("people 928", "people 929");
        assert!(SnapshotStatement::open(&altered, signer.verifier()).is_err());
        let other = signer.note("lethe tally snapshot 2\n").expect("signs");
        assert!(SnapshotStatement::open(&other, signer.verifier()).is_err());
    }
}
