//! One key of a log succeeds another: a note that both have signed.
//!
//! ```text
//! lethe log key v1
//! NAME OF THE LOG
//! OLD KEY (verifier key text)
//! NEW KEY
//! ENTRIES OF THE LOG, THE LAST THAT THE OLD KEY HAS SIGNED
//! ROOT OF THEIR TREE (base64)
//!
//! signature of the old key
//! signature of the new key
//! ```
//!
//! Whoever knows the old key follows to the new one: the old key says so. Whoever knows the new one
//! accepts what the old key has signed, up to that head: the new key says so. A head of the old key
//! that is larger was signed by somebody who was not to have it any more.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::merkle::Hash;
use crate::note::{
    Algorithm, NoteError, SignedNote, Signer, VerifierKey, decimal, open_checkpoint,
};
use crate::receipt::{self, Receipt, VerifyError};

/// First line of the text.
const TITLE: &str = "lethe log key v1";

/// Most exchanges that are followed.
pub const MOST_CHANGES: usize = 64;

/// Longest note of one, in bytes.
pub const MAX_CHANGE: usize = 4096;

/// A key of a log, and the one that succeeds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The key of before.
    pub old: VerifierKey,
    /// The key from then on.
    pub new: VerifierKey,
    /// Entries of the last head of the old key.
    pub size: u64,
    /// Its root.
    pub root: Hash,
}

impl KeyChange {
    /// Signs an exchange with both keys.
    ///
    /// # Errors
    /// [`NoteError::Format`]: the keys are of different logs, or the same.
    pub fn sign(old: &Signer, new: &Signer, size: u64, root: &Hash) -> Result<String, NoteError> {
        let change = Self {
            old: old.verifier().clone(),
            new: new.verifier().clone(),
            size,
            root: *root,
        };
        change.check()?;
        let text = change.text();
        let signed = [old, new].map(|signer| signer.signature(&text));
        Ok(format!("{text}\n{}", signed.concat()))
    }

    fn text(&self) -> String {
        let Self {
            old,
            new,
            size,
            root,
        } = self;
        let name = old.name();
        let root = BASE64.encode(root);
        format!(
            "{TITLE}\n{name}\n{}\n{}\n{size}\n{root}\n",
            old.text(),
            new.text()
        )
    }

    fn check(&self) -> Result<(), NoteError> {
        let are_logs = [&self.old, &self.new].map(|k| k.algorithm() == Algorithm::Ed25519);
        if self.old.name() != self.new.name() || are_logs != [true, true] {
            return Err(NoteError::Format("the keys are not of one log"));
        }
        if self.old == self.new {
            return Err(NoteError::Format("a key succeeds itself"));
        }
        Ok(())
    }

    /// Reads a note, and verifies that both keys that it names have signed it. Whether one of them
    /// is known is for the caller to say.
    ///
    /// # Errors
    /// [`NoteError::Format`]: a byte of it is not as issued. [`NoteError::Signature`],
    /// [`NoteError::Key`].
    pub fn open(note: &str) -> Result<Self, NoteError> {
        const WRONG: NoteError = NoteError::Format("it is no exchange of a log's key");
        if note.len() > MAX_CHANGE {
            return Err(WRONG);
        }
        let signed = SignedNote::parse(note)?;
        let lines: Vec<&str> = signed.text.lines().collect();
        let [title, name, old, new, size, root] = lines.as_slice() else {
            return Err(WRONG);
        };
        let root = BASE64.decode(root).map_err(|_| WRONG)?;
        let change = Self {
            old: VerifierKey::parse(old)?,
            new: VerifierKey::parse(new)?,
            size: decimal(size).ok_or(WRONG)?,
            root: root.try_into().map_err(|_| WRONG)?,
        };
        if *title != TITLE || change.old.name() != *name || change.text() != signed.text {
            return Err(WRONG);
        }
        change.check()?;
        let keys = [&change.old, &change.new];
        for key in keys {
            signed.verify(key)?;
        }
        signed.only(&keys)?;
        let ids = signed.signatures.iter().map(|s| s.id);
        if !ids.eq(keys.map(VerifierKey::id)) {
            return Err(NoteError::Format(
                "the signatures are not in order: the old key's, then the new one's",
            ));
        }
        Ok(change)
    }
}

/// The exchanges of one log, from the oldest that is known to the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Succession(Vec<KeyChange>);

impl Succession {
    /// Reads exchanges, each of the key that the one before names as the new one.
    ///
    /// # Errors
    /// As [`KeyChange::open`]; [`NoteError::Format`]: they do not follow each other, or are more
    /// than [`MOST_CHANGES`].
    pub fn open<'a>(notes: impl IntoIterator<Item = &'a str>) -> Result<Self, NoteError> {
        let mut all: Vec<KeyChange> = vec![];
        for note in notes {
            let change = KeyChange::open(note)?;
            let follows = all
                .last()
                .is_none_or(|last| last.new == change.old && last.size <= change.size);
            if !follows {
                return Err(NoteError::Format("one exchange does not follow another"));
            }
            if all.len() == MOST_CHANGES {
                return Err(NoteError::Format("there are too many exchanges"));
            }
            all.push(change);
        }
        Ok(Self(all))
    }

    /// Reads a file with the notes of exchanges, one after the other.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn parse(file: &str) -> Result<Self, NoteError> {
        if file.len() > MOST_CHANGES * MAX_CHANGE {
            return Err(NoteError::Format("there are too many exchanges"));
        }
        let mut starts: Vec<usize> = file.match_indices(TITLE).map(|(at, _)| at).collect();
        if !file.is_empty() && starts.first() != Some(&0) {
            return Err(NoteError::Format("it is no exchange of a log's key"));
        }
        starts.push(file.len());
        let notes = starts.windows(2).filter_map(|at| file.get(at[0]..at[1]));
        Self::open(notes)
    }

    /// The newest key, for whoever knows this one: itself, if nothing is said of it.
    #[must_use]
    pub fn newest(&self, known: &VerifierKey) -> VerifierKey {
        let from = self.0.iter().position(|change| change.old == *known);
        let last = from.and_then(|from| self.0[from..].last());
        last.map_or_else(|| known.clone(), |change| change.new.clone())
    }

    /// Every key that signs for the log whose key is known, with the largest head that it may have
    /// signed (none: any). Of exchanges that the known key is not part of, nothing is believed.
    #[must_use]
    pub fn keys(&self, known: &VerifierKey) -> Vec<(VerifierKey, Option<u64>)> {
        let named = |c: &KeyChange| c.old == *known || c.new == *known;
        if !self.0.iter().any(named) {
            return vec![(known.clone(), None)];
        }
        let mut all: Vec<(VerifierKey, Option<u64>)> = vec![];
        for change in &self.0 {
            all.push((change.old.clone(), Some(change.size)));
        }
        all.extend(self.0.last().map(|last| (last.new.clone(), None)));
        all
    }

    /// Verifies a checkpoint of the log whose key is known, with whichever of its keys has signed
    /// it. Returns its size and root.
    ///
    /// # Errors
    /// As [`open_checkpoint`]; [`NoteError::Outlived`].
    pub fn open_checkpoint(
        &self,
        text: &str,
        known: &VerifierKey,
    ) -> Result<(u64, Hash), NoteError> {
        let mut refusal = NoteError::Signature(known.name().to_owned());
        for (key, most) in self.keys(known) {
            match open_checkpoint(text, &key) {
                Ok(head) => return in_time(head.0, most).map(|()| head),
                Err(NoteError::Signature(_)) => {}
                Err(e) => refusal = e,
            }
        }
        Err(refusal)
    }

    /// Verifies a receipt of the log whose key is known ([`receipt::verify`]), with whichever of
    /// its keys has signed it.
    ///
    /// # Errors
    /// As [`receipt::verify`]; [`NoteError::Outlived`].
    pub fn verify(&self, bytes: &[u8], known: &VerifierKey) -> Result<Receipt, VerifyError> {
        let mut refusal = VerifyError::from(NoteError::Signature(known.name().to_owned()));
        for (key, most) in self.keys(known) {
            match receipt::verify(bytes, &key) {
                Ok(receipt) => {
                    let (size, _) = open_checkpoint(&receipt.checkpoint, &key)?;
                    in_time(size, most)?;
                    return Ok(receipt);
                }
                Err(VerifyError::Checkpoint(NoteError::Signature(_))) => {}
                Err(e) => refusal = e,
            }
        }
        Err(refusal)
    }
}

/// Whether a key might sign a head of this size.
fn in_time(size: u64, most: Option<u64>) -> Result<(), NoteError> {
    match most.filter(|most| size > *most) {
        Some(most) => Err(NoteError::Outlived { size, most }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(n: u8) -> Signer {
        Signer::from_seed("example.org/log", &[n; 32]).expect("a name")
    }

    fn change(old: u8, new: u8, size: u64) -> String {
        KeyChange::sign(&signer(old), &signer(new), size, &[7; 32]).expect("signs")
    }

    fn key(n: u8) -> VerifierKey {
        signer(n).verifier().clone()
    }

    #[test]
    fn whoever_knows_an_older_key_follows_and_the_newest_knows_the_older() {
        let notes = [change(1, 2, 5), change(2, 3, 9)];
        let all = Succession::open(notes.iter().map(String::as_str)).expect("opens");
        assert_eq!(all, Succession::parse(&notes.concat()).expect("parses"));
        for n in [1, 2, 3] {
            assert_eq!(all.newest(&key(n)), key(3), "{n}");
            let keys = [(key(1), Some(5)), (key(2), Some(9)), (key(3), None)];
            assert_eq!(all.keys(&key(n)), keys, "{n}");
        }
        // A stranger's key stays what it is.
        assert_eq!(all.newest(&key(4)), key(4));
        assert_eq!(all.keys(&key(4)), [(key(4), None)]);
        assert_eq!(
            Succession::parse("").expect("parses"),
            Succession::default()
        );
    }

    #[test]
    fn a_head_of_an_older_key_counts_up_to_the_exchange() {
        let notes = [change(1, 2, 5), change(2, 3, 9)];
        let all = Succession::open(notes.iter().map(String::as_str)).expect("opens");
        let open = |n: u8, size: u64, known: u8| {
            let head = signer(n).checkpoint(size, &[7; 32]);
            all.open_checkpoint(&head, &key(known))
        };
        for known in [1, 2, 3] {
            for (n, size) in [(1, 5), (2, 9), (3, 9), (3, 1000)] {
                assert_eq!(open(n, size, known), Ok((size, [7; 32])));
            }
            let outlived = NoteError::Outlived { size: 6, most: 5 };
            assert_eq!(open(1, 6, known), Err(outlived));
            let outlived = NoteError::Outlived { size: 10, most: 9 };
            assert_eq!(open(2, 10, known), Err(outlived));
        }
        assert!(matches!(open(4, 1, 1), Err(NoteError::Signature(_))));
        assert!(matches!(open(1, 1, 4), Err(NoteError::Signature(_))));
    }

    #[test]
    fn exchanges_that_do_not_follow_each_other_are_refused() {
        let open = |notes: &[String]| Succession::open(notes.iter().map(String::as_str));
        assert!(open(&[change(1, 2, 5), change(3, 4, 9)]).is_err());
        assert!(open(&[change(1, 2, 5), change(2, 3, 4)]).is_err());
        assert!(KeyChange::sign(&signer(1), &signer(1), 1, &[0; 32]).is_err());
        let other = Signer::from_seed("example.org/other", &[2; 32]).expect("a name");
        assert!(KeyChange::sign(&signer(1), &other, 1, &[0; 32]).is_err());
        let many: Vec<String> = (0..=MOST_CHANGES as u8)
            .map(|n| change(n, n + 1, u64::from(n)))
            .collect();
        assert!(open(&many[..MOST_CHANGES]).is_ok() && open(&many).is_err());
    }

    #[test]
    fn every_byte_of_an_exchange_counts() {
        let note = change(1, 2, 5);
        KeyChange::open(&note).expect("opens");
        for at in 0..note.len() {
            for bit in [1, 4, 32] {
                let mut bytes = note.clone().into_bytes();
                bytes[at] ^= bit;
                if let Ok(text) = String::from_utf8(bytes) {
                    assert!(KeyChange::open(&text).is_err(), "byte {at}");
                }
            }
        }
        for more in [" ", "\n", "x"] {
            assert!(KeyChange::open(&format!("{note}{more}")).is_err());
        }
        // One of the two has not signed.
        let (text, lines) = note.split_once("\n\n").expect("signatures");
        let lines: Vec<&str> = lines.split_inclusive('\n').collect();
        let unsigned = format!("{text}\n\n{}", lines[0]);
        assert!(matches!(
            KeyChange::open(&unsigned),
            Err(NoteError::Signature(_))
        ));
        let swapped = format!("{text}\n\n{}{}", lines[1], lines[0]);
        assert!(KeyChange::open(&swapped).is_err());
    }
}
