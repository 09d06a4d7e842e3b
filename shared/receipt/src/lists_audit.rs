//! What an auditor needs to fold the sums of the lists again on another machine and compare every
//! byte. It names nobody: people are salted digests of what they contribute, sorted; what they
//! contribute comes from their devices, by those who agree.

use serde::{Deserialize, Serialize};

use crate::hex::{hex, unhex32};
use crate::merkle::Hash;
use crate::note::VerifierKey;
use crate::receipt::VerifyError;
use crate::snapshot::SnapshotStatement;

/// Version of the format.
pub const VERSION: u32 = 1;
/// Largest bundle that is read, in bytes: some seven million people.
pub const MAX_BUNDLE: usize = 512 << 20;

/// What was signed about a snapshot, and what it was made from. Whoever has it can test a guess of
/// a whole contribution: it is to be destroyed after the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListsBundle {
    /// [`VERSION`].
    pub version: u32,
    /// The signed note of the snapshot.
    pub note: String,
    /// Key that verifies it, as the operator says (verifier key text). An auditor takes it from
    /// somewhere else.
    pub key: String,
    /// Salt of people's digests, hexadecimal; drawn for this bundle.
    pub salt: String,
    /// Salt of the sums' digest in the note, hexadecimal.
    pub sums_salt: String,
    /// Digest of what is public about items, hexadecimal.
    pub content: String,
    /// How tables are solved and packed, JSON.
    pub method: String,
    /// Items in the order of the tables.
    pub items: Vec<String>,
    /// Places of the items that were taken down, ascending.
    pub taken_down: Vec<u32>,
    /// SHA-256 of the salt and the SHA-256 of what a person contributes, hexadecimal; ascending,
    /// one for each who counts.
    pub people: Vec<String>,
}

/// A bundle that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What the tally signed.
    pub statement: SnapshotStatement,
    /// Salt of people's digests.
    pub salt: Hash,
    /// Salt of the sums' digest.
    pub sums_salt: Hash,
    /// Digest of what is public about items.
    pub content: Hash,
    /// How tables are solved and packed, JSON.
    pub method: String,
    /// Items in the order of the tables.
    pub items: Vec<String>,
    /// Places of the items that were taken down.
    pub taken_down: Vec<u32>,
    /// Digests of what counts, ascending. Those who contribute the same have the same.
    pub people: Vec<Hash>,
}

impl ListsBundle {
    /// The file: JSON without blanks, fields in the order of declaration.
    pub fn bytes(&self) -> Vec<u8> {
        // Structs of strings, integers and lists do not fail to serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Puts people's digests in order, as a bundle has them.
    pub fn sorted(mut people: Vec<Hash>) -> Vec<String> {
        people.sort_unstable();
        people.iter().map(|p| hex(p)).collect()
    }

    /// Reads a bundle and checks that its note is signed under this key, which it names, and that
    /// it is about as many people. Whether it is about the right ones, only folding them tells:
    /// salts, content, method, items and people that were altered do not give the sums of the note.
    /// The bytes must be exactly as issued.
    ///
    /// # Errors
    /// [`VerifyError::Format`] with what was expected; [`VerifyError::Checkpoint`]: the note is not
    /// signed under this key.
    pub fn open(bytes: &[u8], key: &VerifierKey) -> Result<Opened, VerifyError> {
        let bad = |why: String| VerifyError::Format(why);
        if bytes.len() > MAX_BUNDLE {
            return Err(bad(format!("{} bytes, at most {MAX_BUNDLE}", bytes.len())));
        }
        let b: Self = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if b.version != VERSION {
            return Err(bad(format!(
                "version {}, this build knows {VERSION}",
                b.version
            )));
        }
        if b.bytes() != bytes {
            return Err(bad("its bytes differ from the canonical form".into()));
        }
        let statement = SnapshotStatement::open(&b.note, key)?;
        if b.key != key.text() {
            return Err(bad(
                "key: it names another than the one it is checked with".into()
            ));
        }
        let hash = |what: &str, text: &str| {
            unhex32(text).ok_or_else(|| bad(format!("{what}: expected 64 hexadecimal digits")))
        };
        let people: Result<Vec<Hash>, VerifyError> =
            b.people.iter().map(|p| hash("people", p)).collect();
        let people = people?;
        if people.len() as u64 != statement.people {
            return Err(bad(format!(
                "{} people, the note says {}",
                people.len(),
                statement.people
            )));
        }
        if !people.is_sorted() {
            return Err(bad("people: expected them in ascending order".into()));
        }
        let ascending = b.taken_down.windows(2).all(|w| w[0] < w[1]);
        let last = b.taken_down.last().map_or(0, |p| *p as usize + 1);
        if !ascending || last > b.items.len() {
            return Err(bad(format!(
                "taken_down: expected places of {} items, ascending",
                b.items.len()
            )));
        }
        Ok(Opened {
            statement,
            salt: hash("salt", &b.salt)?,
            sums_salt: hash("sums_salt", &b.sums_salt)?,
            content: hash("content", &b.content)?,
            method: b.method,
            items: b.items,
            taken_down: b.taken_down,
            people,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::Signer;

    fn bundle(signer: &Signer) -> ListsBundle {
        let statement = SnapshotStatement {
            number: 7,
            day: 20_000,
            snapshot: [1; 32],
            sums: [2; 32],
            fold: [3; 32],
            people: 3,
            cell: 3,
            changed: 2,
            k: 3,
            noise: None,
        };
        ListsBundle {
            version: VERSION,
            note: statement.sign(signer).expect("signs"),
            key: signer.verifier().text(),
            salt: hex(&[4; 32]),
            sums_salt: hex(&[5; 32]),
            content: hex(&[6; 32]),
            method: "{}".into(),
            items: vec!["a".into(), "b".into()],
            taken_down: vec![1],
            people: ListsBundle::sorted(vec![[9; 32], [8; 32], [9; 32]]),
        }
    }

    #[test]
    fn a_bundle_is_read_and_what_does_not_fit_is_refused() {
        let signer = Signer::from_seed("tally", &[7; 32]).expect("a signer");
        let good = bundle(&signer);
        let key = signer.verifier();
        let opened = ListsBundle::open(&good.bytes(), key).expect("opens");
        assert_eq!(opened.people, [[8; 32], [9; 32], [9; 32]]);
        assert_eq!((opened.statement.number, opened.salt), (7, [4; 32]));
        let changes: [&dyn Fn(&mut ListsBundle); 9] = [
            &|b| b.version = 2,
            &|b| b.note = b.note.replace("day 20000", "day 20001"),
            &|b| drop(b.people.pop()),
            &|b| b.people.swap(0, 2),
            &|b| b.people[2] = "9".into(),
            &|b| b.taken_down = vec![2],
            &|b| b.taken_down = vec![1, 1],
            &|b| b.salt = String::new(),
            &|b| b.content = "x".repeat(64),
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut b = good.clone();
            change(&mut b);
            let refused = ListsBundle::open(&b.bytes(), key);
            assert!(refused.is_err(), "change {i}");
        }
        let other = Signer::from_seed("tally", &[8; 32]).expect("a signer");
        let refused = ListsBundle::open(&good.bytes(), other.verifier());
        assert!(matches!(refused, Err(VerifyError::Checkpoint(_))));
    }
}
