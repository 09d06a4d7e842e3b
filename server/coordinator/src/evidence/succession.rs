//! The log's key is exchanged: the key source has the key of now and, of each one before, the note
//! that both have signed ([`lethe_receipt::succession`]).

use lethe_receipt::note::{Signer, VerifierKey};
use lethe_receipt::succession::{KeyChange, MOST_CHANGES};
use lethe_store::keys::Keys;
use lethe_store::{StoreError, private};
use zeroize::Zeroizing;

use super::Evidence;
use crate::durable::LOG;
use crate::{CoordinatorError, fatal};

/// `log-past-N` is the note of the exchange of `log-N`.
const PAST: &str = "log-past";

/// File with the notes, beside those that auditors copy.
const FILE: &str = "tiles/log-keys";

/// Notes of all exchanges, the oldest first. Of an exchange that was cut off, what is left is put
/// in order.
pub(crate) fn changes(keys: &Keys) -> Result<Vec<String>, CoordinatorError> {
    let all = keys.numbers(LOG)?;
    let Some((now, before)) = all.split_last() else {
        return Ok(vec![]);
    };
    for number in before {
        keys.destroy(&format!("{LOG}-{number}"))?;
    }
    let mut notes = vec![];
    let past = keys.numbers(PAST)?;
    let before = past.iter().filter(|n| *n < now).count();
    for (place, number) in past.into_iter().enumerate() {
        let name = format!("{PAST}-{number}");
        if number >= *now {
            // The key that it names was never kept, and nobody was told of it.
            keys.destroy(&name)?;
            continue;
        }
        if place + MOST_CHANGES < before {
            keys.destroy(&name)?;
            continue;
        }
        let note = keys.secret(&name)?;
        let note = note.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        notes.push(note.ok_or_else(|| wrong(keys, format!("{name} is no text")))?);
    }
    Ok(notes)
}

fn wrong(keys: &Keys, why: String) -> CoordinatorError {
    let place = keys.place().into();
    StoreError::Keys { place, why }.into()
}

/// Another key signs the log.
#[derive(Debug)]
pub(crate) struct Exchanged {
    /// Which.
    pub(crate) key: VerifierKey,
    /// Why the one of before may be there still, or why files for auditors are behind.
    pub(crate) left: Option<CoordinatorError>,
}

impl Evidence {
    /// Says which keys the log had before: once, after the opening.
    pub(crate) fn remember(&mut self, changes: Vec<String>) -> Result<(), CoordinatorError> {
        self.changes = changes;
        self.publish_changes()
    }

    /// Notes of exchanges of the log's key, the oldest first.
    pub(crate) fn changes(&self) -> Vec<String> {
        self.changes.clone()
    }

    /// Every key that the log has had.
    pub(crate) fn own_keys(&self) -> Vec<VerifierKey> {
        let notes = self.changes.iter();
        let before = notes.filter_map(|note| Some(KeyChange::open(note).ok()?.old));
        before.chain([self.signer.verifier().clone()]).collect()
    }

    /// From now on another key signs, and the one of before is destroyed. A crash leaves the one or
    /// the other; the next start puts the rest in order.
    ///
    /// # Errors
    /// The key source cannot be written: the key of before goes on signing.
    pub(crate) fn exchange(&mut self, keys: &Keys) -> Result<Exchanged, CoordinatorError> {
        let number = keys.numbers(LOG)?.last().copied().unwrap_or(0);
        self.is_signer(keys, number)?;
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(lethe_seal::random()?);
        let next = Signer::from_seed(self.signer.verifier().name(), &seed)?;
        let tree = self.log.tree();
        let note = KeyChange::sign(&self.signer, &next, tree.len(), &tree.root())?;
        keys.keep(&format!("{PAST}-{number}"), note.as_bytes())?;
        // With it the new key is the log's.
        let name = format!("{LOG}-{}", number + 1);
        if let Err(e) = keys.keep(&name, &*seed) {
            // It may be there all the same, and would count from the next start on.
            let gone = match keys.secret(&name) {
                Ok(Some(kept)) if kept.as_slice() == *seed => Ok(false),
                Ok(_) => keys.destroy(&name).map(|()| true),
                Err(e) => Err(e),
            };
            match gone {
                Ok(false) => {}
                Ok(true) => return Err(e.into()),
                // Going on with the old key would sign heads that nobody believes, should the next
                // start find the new one.
                Err(_) => fatal::broken(&format!(
                    "the key source does not say whether it has another key of the log: {e}"
                )),
            }
        }
        self.signer = next;
        // Witnesses have signed a head that the old key did.
        self.cosigned = None;
        self.changes.push(note);
        let left = self.put_in_order(keys).err();
        Ok(Exchanged {
            key: self.signer.verifier().clone(),
            left,
        })
    }

    /// What follows from an exchange; it may be repeated.
    fn put_in_order(&mut self, keys: &Keys) -> Result<(), CoordinatorError> {
        let surplus = self.changes.len().saturating_sub(MOST_CHANGES);
        self.changes.drain(..surplus);
        self.log.resign(&self.signer).map_err(|source| {
            let path = self.folder.join("tiles/checkpoint");
            StoreError::Io { path, source }
        })?;
        self.publish_changes()?;
        let all = keys.numbers(LOG)?;
        let before = all.split_last().map(|(_, before)| before);
        for number in before.unwrap_or_default() {
            keys.destroy(&format!("{LOG}-{number}"))?;
        }
        let past = keys.numbers(PAST)?;
        let surplus = past.len().saturating_sub(MOST_CHANGES);
        for number in &past[..surplus] {
            keys.destroy(&format!("{PAST}-{number}"))?;
        }
        Ok(())
    }

    /// The key that is in the source is the one that signs.
    fn is_signer(&self, keys: &Keys, number: u64) -> Result<(), CoordinatorError> {
        let own = self.signer.verifier();
        let seed = keys.secret(&format!("{LOG}-{number}"))?;
        let seed = seed.and_then(|s| <[u8; 32]>::try_from(s.as_slice()).ok());
        let kept = seed.map(Zeroizing::new);
        let kept = kept.and_then(|seed| Signer::from_seed(own.name(), &seed).ok());
        match kept.is_some_and(|kept| kept.verifier() == own) {
            true => Ok(()),
            false => Err(wrong(
                keys,
                format!(
                    "{LOG}-{number} is not the key that this process signs the log with: an \
                     earlier exchange was cut off; restart the server, and repeat it"
                ),
            )),
        }
    }

    fn publish_changes(&self) -> Result<(), CoordinatorError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let path = self.folder.join(FILE);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| StoreError::Io {
                path: folder.to_owned(),
                source,
            })?;
        }
        Ok(private::write(&path, self.changes.concat().as_bytes())?)
    }
}
