//! What is signed about a snapshot of the recommender's tables.

use crate::hex::{hex, unhex32};
use crate::merkle::Hash;
use crate::note::{NoteError, Signer, VerifierKey, open_note};

const FIRST: &str = "lethe tally snapshot";
/// Without noise.
const VERSION: u32 = 1;
/// With noise.
const WITH_NOISE: u32 = 2;

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
    /// The noise on the sums; none: there is none.
    pub noise: Option<SnapshotNoise>,
}

/// Noise on the sums that a snapshot was solved from (differential privacy of one person's whole
/// contribution), and what all snapshots of the tally have spent together. Numbers are whole:
/// epsilons in millionths, rounded up, deltas in trillionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotNoise {
    /// Epsilon of this snapshot. 0: nobody is in it.
    pub epsilon_millionths: u64,
    /// Delta of this snapshot, and of all together.
    pub delta_trillionths: u64,
    /// Epsilon of all snapshots up to this one.
    pub spent_millionths: u64,
    /// How many these are.
    pub releases: u64,
    /// The most events of a person that count.
    pub clip: u64,
    /// The most of them with one item.
    pub repeats: u64,
}

impl SnapshotNoise {
    fn text(&self) -> String {
        let Self {
            epsilon_millionths,
            delta_trillionths,
            spent_millionths,
            releases,
            clip,
            repeats,
        } = self;
        format!(
            "epsilon-millionths {epsilon_millionths}\ndelta-trillionths {delta_trillionths}\n\
             spent-millionths {spent_millionths}\nreleases {releases}\nclip {clip}\n\
             repeats {repeats}\n"
        )
    }
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
            noise,
        } = self;
        let version = noise.map_or(VERSION, |_| WITH_NOISE);
        let noise = noise.map(|n| n.text()).unwrap_or_default();
        let snapshot = hex(snapshot);
        let sums = hex(sums);
        let fold = hex(fold);
        format!(
            "{FIRST} {version}\nnumber {number}\nday {day}\nsnapshot {snapshot}\nsums {sums}\n\
             fold {fold}\npeople {people}\ncell {cell}\nchanged {changed}\nk {k}\n\
             {noise}"
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
    let first = lines.next()?;
    let with_noise = first == format!("{FIRST} {WITH_NOISE}");
    if !with_noise && first != format!("{FIRST} {VERSION}") {
        return None;
    }
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    let mut statement = SnapshotStatement {
        number: value("number")?.parse().ok()?,
        day: value("day")?.parse().ok()?,
        snapshot: unhex32(value("snapshot")?)?,
        sums: unhex32(value("sums")?)?,
        fold: unhex32(value("fold")?)?,
        people: value("people")?.parse().ok()?,
        cell: value("cell")?.parse().ok()?,
        changed: value("changed")?.parse().ok()?,
        k: value("k")?.parse().ok()?,
        noise: None,
    };
    if with_noise {
        statement.noise = Some(SnapshotNoise {
            epsilon_millionths: value("epsilon-millionths")?.parse().ok()?,
            delta_trillionths: value("delta-trillionths")?.parse().ok()?,
            spent_millionths: value("spent-millionths")?.parse().ok()?,
            releases: value("releases")?.parse().ok()?,
            clip: value("clip")?.parse().ok()?,
            repeats: value("repeats")?.parse().ok()?,
        });
    }
    Some(statement)
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
            noise: None,
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

    #[test]
    fn noise_is_part_of_what_is_signed_and_old_texts_are_what_they_were() {
        let signer = Signer::from_seed("tally", &[1; 32]).expect("a seed");
        let mut statement = SnapshotStatement {
            number: 7,
            day: 20_000,
            snapshot: [1; 32],
            sums: [2; 32],
            fold: [3; 32],
            people: 928,
            cell: 16,
            changed: 8,
            k: 3,
            noise: None,
        };
        let plain = statement.text();
        assert!(plain.starts_with("lethe tally snapshot 1\nnumber 7\n"));
        assert!(plain.ends_with("\nchanged 8\nk 3\n"));
        statement.noise = Some(SnapshotNoise {
            epsilon_millionths: 999_998,
            delta_trillionths: 1_000_000,
            spent_millionths: 2_345_678,
            releases: 4,
            clip: 200,
            repeats: 3,
        });
        let text = statement.text();
        assert!(text.starts_with("lethe tally snapshot 2\nnumber 7\n"));
        assert!(text.contains("\nk 3\nepsilon-millionths 999998\n"));
        let note = statement.sign(&signer).expect("signs");
        let read = SnapshotStatement::open(&note, signer.verifier());
        assert_eq!(read, Ok(statement));
        // Each version has its own lines.
        for wrong in [
            text.replacen('2', "1", 1),
            plain.replacen('1', "2", 1),
            text.replace("repeats 3\n", ""),
            text.replace("releases 4", "releases 04"),
            text + "more 1\n",
        ] {
            let note = signer.note(&wrong).expect("signs");
            let read = SnapshotStatement::open(&note, signer.verifier());
            assert!(read.is_err(), "{wrong}");
        }
    }
}
