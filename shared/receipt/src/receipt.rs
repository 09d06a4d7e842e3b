//! The receipt of a deletion: how it is put together and how it is verified.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::hex::{hex, unhex32};
use crate::merkle::{Hash, Tree, verify_inclusion};
use crate::note::{Algorithm, NoteError, SignedNote, Signer, VerifierKey, open_checkpoint};
use crate::records::{Leaf, record_key, verify_absent};
use crate::snapshot::SnapshotStatement;
use crate::statement::{
    EpochStood, Kind, StatedEpoch, StatedLists, StatedSnapshot, Statement, Training, VERSION,
    VERSION_WITHOUT_EPOCHS, VERSION_WITHOUT_LISTS, VERSION_WITHOUT_REMOVED, canonical, commitment,
    entry,
};
use crate::vouch::{SnapshotName, VouchStatement};
use crate::witness::time_of;

/// Largest receipt that is read.
pub const MAX_RECEIPT: usize = 4 << 20;

/// Why a receipt does not verify.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// Not a receipt, or not in canonical form.
    #[error("not a receipt as issued: {0}")]
    Format(String),
    /// The signed checkpoint is not accepted.
    #[error(transparent)]
    Checkpoint(#[from] NoteError),
    /// A statement is not in the log.
    #[error("a statement is not the log's entry {index}: it was altered after it was issued")]
    NotIncluded {
        /// Claimed index.
        index: u64,
    },
    /// The subject is not the one the statement is about.
    #[error("the subject or salt does not match the statement's commitment")]
    Subject,
    /// What the tally of its own has signed does not fit.
    #[error("the tally's statement: {0}")]
    Tally(String),
    /// What the receipt says about records does not hold.
    #[error("shard {shard}: {why}")]
    Records {
        /// Which shard.
        shard: u16,
        /// What does not hold.
        why: &'static str,
    },
}

/// A training statement that the log holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logged {
    /// The statement.
    pub training: Training,
    /// Salt of its entry, hexadecimal.
    pub salt: String,
    /// Index of the entry.
    pub index: u64,
    /// Audit path, hexadecimal.
    pub proof: Vec<String>,
}

/// What became of the person's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fate {
    /// It is not among the records any more: the two neighbours that its key lies between.
    Absent([Leaf; 2]),
    /// It is, with other data.
    Replaced(Leaf),
    /// It is, with the same data: what the device erased was not among what it trains on.
    Unchanged(Leaf),
}

/// A shard whose records held the person's: before, and now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordProof {
    /// Salt of the record's key, hexadecimal.
    pub salt: String,
    /// What the shard was trained on before.
    pub before: Logged,
    /// The person's record in it.
    pub member: Leaf,
    /// What it was trained on after.
    pub after: Logged,
    /// The person's record in that.
    pub fate: Fate,
}

/// A receipt as handed to the requester. `subject`, `items`, `from` and `salt` open the commitment;
/// the coordinator keeps them too, encrypted under a key of this deletion alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// What was done.
    pub statement: Statement,
    /// Who was deleted; empty: everybody.
    pub subject: String,
    /// Which items; empty: everything.
    pub items: Vec<String>,
    /// From which time on, in Unix seconds; `None`: all.
    pub from: Option<i64>,
    /// Salt of the commitment and of the log's entry, hexadecimal.
    pub salt: String,
    /// Index of the log entry.
    pub index: u64,
    /// Audit path, hexadecimal.
    pub proof: Vec<String>,
    /// What the person's record says of the shard that held it; `None` when no shard had been
    /// trained on it.
    pub records: Option<RecordProof>,
    /// Signed head of the log.
    pub checkpoint: String,
    /// What a tally of its own says of the person now ([`crate::vouch`]), signed with the key that
    /// the statement names for lists. None: the coordinator held the sums itself, or there were
    /// none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tally: Option<String>,
    /// The signed note of the snapshot that was served when the receipt was issued
    /// ([`crate::snapshot`]), where sums have noise: it says what that snapshot and all together
    /// have spent. None: there is no noise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub noise: Option<String>,
    /// Keys of the witnesses whose signatures the head carries (verifier key text), in the order of
    /// the signatures: so every byte of the receipt is checked. Whether these witnesses are to be
    /// trusted a policy says ([`crate::policy`]). Empty: none has signed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub witnesses: Vec<String>,
}

/// What whoever holds the sums has signed, for a receipt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignedByTally {
    /// Its statement about handles: [`Receipt::tally`].
    pub vouch: Option<String>,
    /// Its note of a snapshot with noise: [`Receipt::noise`].
    pub noise: Option<String>,
}

/// What opens a statement's commitment.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Subject; empty: everybody.
    pub subject: String,
    /// Items.
    pub items: Vec<String>,
    /// Time from which on.
    pub from: Option<i64>,
    /// Salt.
    pub salt: [u8; 32],
}

/// A training statement with what proves it, for a receipt.
pub fn logged(
    training: Training,
    salt: &[u8; 32],
    index: u64,
    tree: &Tree,
) -> Result<Logged, VerifyError> {
    let proof = tree
        .inclusion(index)
        .ok_or(VerifyError::NotIncluded { index })?;
    Ok(Logged {
        training,
        salt: hex(salt),
        index,
        proof: proof.iter().map(|h| hex(h)).collect(),
    })
}

/// Assembles the receipt of a statement that is entry `index` of `tree`.
pub fn issue(
    statement: Statement,
    opening: Opening,
    index: u64,
    records: Option<RecordProof>,
    tally: SignedByTally,
    tree: &Tree,
    signer: &Signer,
) -> Result<Vec<u8>, VerifyError> {
    let proof = tree
        .inclusion(index)
        .ok_or(VerifyError::NotIncluded { index })?;
    let receipt = Receipt {
        statement,
        subject: opening.subject,
        items: opening.items,
        from: opening.from,
        salt: hex(&opening.salt),
        index,
        proof: proof.iter().map(|h| hex(h)).collect(),
        records,
        checkpoint: signer.checkpoint(tree.len(), &tree.root()),
        tally: tally.vouch,
        noise: tally.noise,
        witnesses: vec![],
    };
    Ok(receipt.bytes())
}

/// A head that witnesses have signed, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cosigned {
    /// Entries.
    pub size: u64,
    /// The checkpoint, with the signatures of the log and of these witnesses alone.
    pub checkpoint: String,
    /// Their keys (verifier key text), in the order of their signatures.
    pub witnesses: Vec<String>,
}

impl Receipt {
    /// The same receipt under a head that witnesses have signed, if that head holds all that the
    /// receipt names. `tree` is the log's, of that size or larger.
    pub fn under(&self, head: &Cosigned, tree: &Tree) -> Option<Self> {
        let path = |index: u64| {
            let path = tree.inclusion_of(index, head.size)?;
            Some(path.iter().map(|h| hex(h)).collect::<Vec<String>>())
        };
        let mut out = self.clone();
        out.proof = path(out.index)?;
        if let Some(records) = &mut out.records {
            records.before.proof = path(records.before.index)?;
            records.after.proof = path(records.after.index)?;
        }
        out.checkpoint.clone_from(&head.checkpoint);
        out.witnesses.clone_from(&head.witnesses);
        Some(out)
    }

    /// The receipt as a file has it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = canonical(self);
        bytes.push(b'\n');
        bytes
    }
}

/// A signed head: size and root.
struct Head(u64, Hash);

impl Head {
    fn includes(&self, entry: &[u8], index: u64, proof: &[String]) -> Result<(), VerifyError> {
        let path: Option<Vec<Hash>> = proof.iter().map(|h| unhex32(h)).collect();
        let path = path.ok_or_else(|| {
            VerifyError::Format("a proof hash is not 32 bytes, hexadecimal".into())
        })?;
        if !verify_inclusion(entry, index, self.0, &path, &self.1) {
            return Err(VerifyError::NotIncluded { index });
        }
        Ok(())
    }
}

/// Verifies a receipt offline. The bytes must be exactly as issued.
pub fn verify(bytes: &[u8], key: &VerifierKey) -> Result<Receipt, VerifyError> {
    if bytes.len() > MAX_RECEIPT {
        return Err(VerifyError::Format(format!(
            "{} bytes, at most {MAX_RECEIPT}",
            bytes.len()
        )));
    }
    let receipt: Receipt =
        serde_json::from_slice(bytes).map_err(|e| VerifyError::Format(e.to_string()))?;
    if receipt.bytes() != bytes {
        return Err(VerifyError::Format(
            "its bytes differ from the canonical form".into(),
        ));
    }
    check_version(&receipt.statement)?;
    let head = open_head(&receipt, key)?;
    let salt = unhex32(&receipt.salt).ok_or(VerifyError::Subject)?;
    head.includes(
        &entry(Kind::Deletion, &salt, &canonical(&receipt.statement)),
        receipt.index,
        &receipt.proof,
    )?;
    if commitment(&salt, &receipt.subject, &receipt.items, receipt.from)
        != receipt.statement.commitment
    {
        return Err(VerifyError::Subject);
    }
    let (who, what) = (!receipt.subject.is_empty(), !receipt.items.is_empty());
    let fits = match receipt.statement.kind.as_str() {
        "erase-subject" | "restrict" => who && !what && receipt.from.is_none(),
        "erase-items" => who && what && receipt.from.is_none(),
        "withdraw-consent" => who && !what && receipt.from.is_some(),
        "takedown" => !who && what && receipt.from.is_none(),
        _ => false,
    };
    if !fits || receipt.records.is_some() != receipt.statement.recorded {
        return Err(VerifyError::Format(
            "its kind, subject, items, time and proofs do not fit together".into(),
        ));
    }
    if let Some(r) = &receipt.records {
        verify_records(r, &receipt, &head)?;
    }
    receipt.vouched()?;
    receipt.noise_stated()?;
    Ok(receipt)
}

/// The head of a receipt: signed by the log, by the witnesses that the receipt names, and by nobody
/// else, in this order.
fn open_head(receipt: &Receipt, key: &VerifierKey) -> Result<Head, VerifyError> {
    let (size, root) = open_checkpoint(&receipt.checkpoint, key)?;
    let note = SignedNote::parse(&receipt.checkpoint)?;
    let mut keys = vec![key.clone()];
    for text in &receipt.witnesses {
        let witness = VerifierKey::parse(text)?;
        if witness.text() != *text || witness.algorithm() == Algorithm::Ed25519 {
            return Err(NoteError::Key.into());
        }
        time_of(&note, &witness)?;
        keys.push(witness);
    }
    note.only(&keys.iter().collect::<Vec<_>>())?;
    let signed = note.signatures.iter().map(|s| (s.name, s.id));
    if !signed.eq(keys.iter().map(|k| (k.name(), k.id()))) {
        return Err(VerifyError::Format(
            "its head has not the signatures of the log and of the witnesses that it names, in \
             this order"
                .into(),
        ));
    }
    Ok(Head(size, root))
}

/// Which fields a statement has follows from its version and kind.
fn check_version(s: &Statement) -> Result<(), VerifyError> {
    let asks_devices = matches!(
        s.kind.as_str(),
        "erase-items" | "withdraw-consent" | "takedown"
    );
    let removed_fits = s.removed.is_some() == asks_devices;
    let none_stated = s.epochs.is_none();
    let fits = match s.version {
        VERSION => removed_fits && (s.lists.is_none() || lists_fit(s)) && epochs_fit(s),
        VERSION_WITHOUT_EPOCHS => removed_fits && lists_fit(s) && none_stated,
        VERSION_WITHOUT_LISTS => removed_fits && s.lists.is_none() && none_stated,
        VERSION_WITHOUT_REMOVED => s.removed.is_none() && s.lists.is_none() && none_stated,
        got => {
            return Err(VerifyError::Format(format!(
                "version {got}, this build knows {VERSION_WITHOUT_REMOVED} to {VERSION}"
            )));
        }
    };
    if fits {
        Ok(())
    } else {
        Err(VerifyError::Format(
            "what devices removed, what became of lists, or which epochs it is about, does not fit \
             its version and kind"
                .into(),
        ))
    }
}

/// A recalled snapshot has a later one in its place. Their bytes may be equal: what fewer than k
/// people share is in neither.
fn lists_fit(s: &Statement) -> bool {
    let Some(lists) = &s.lists else {
        return false;
    };
    match (&lists.recalled, &lists.replaced_by) {
        (None, None) => true,
        (Some(old), Some(new)) => old.number < new.number,
        _ => false,
    }
}

/// Each epoch is named once, oldest first, and at most one was served: that one has the recipe and
/// the base model of the statement. Shards that were touched are of an epoch that has them.
fn epochs_fit(s: &Statement) -> bool {
    let Some(epochs) = &s.epochs else {
        return false;
    };
    let ascends = epochs.windows(2).all(|w| match w {
        [a, b] => a.epoch < b.epoch,
        _ => true,
    });
    let mut served = epochs.iter().filter(|e| e.stood == EpochStood::Served);
    let first = served.next();
    let own = |e: &StatedEpoch| e.recipe == s.recipe && e.base_model == s.base_model;
    let fits = first.is_none_or(|e| own(e) && e.rolled_back.is_empty());
    let touched = s.affected.is_empty() || epochs.iter().any(own);
    ascends && fits && served.next().is_none() && touched
}

/// What a genuine receipt shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What was asked for has happened.
    Done,
    /// There was nothing to remove: no device had what was named, or nothing was held of the
    /// person.
    NothingRemoved,
}

/// The clocks of two machines may differ by this, in seconds.
const CLOCKS: u64 = 300;

fn wrong_of_tally<T>(why: &str) -> Result<T, VerifyError> {
    Err(VerifyError::Tally(why.to_owned()))
}

fn not_of_tally(e: NoteError) -> VerifyError {
    VerifyError::Tally(e.to_string())
}

/// Whether a snapshot is the one that a statement names, or a later one.
fn is_or_follows(number: u64, digest: &Hash, named: &StatedSnapshot) -> bool {
    match number.cmp(&named.number) {
        Ordering::Less => false,
        Ordering::Equal => hex(digest) == named.sha256,
        Ordering::Greater => true,
    }
}

impl Receipt {
    /// What the statement says of lists, and the key that signs for whoever holds the sums.
    fn lists_and_key(&self) -> Result<(&StatedLists, VerifierKey), VerifyError> {
        let Some(lists) = &self.statement.lists else {
            return wrong_of_tally("the deletion says nothing of lists");
        };
        let key = VerifierKey::parse(&lists.key).map_err(not_of_tally)?;
        Ok((lists, key))
    }

    /// What the tally of its own has signed, checked against the statement; none: there is no such
    /// tally.
    ///
    /// # Errors
    /// [`VerifyError::Tally`]: the signature is not of the key that the statement names, the tally
    /// still has what was to go, or it serves something else than the statement says.
    pub fn vouched(&self) -> Result<Option<VouchStatement>, VerifyError> {
        let Some(note) = &self.tally else {
            return Ok(None);
        };
        let (lists, key) = self.lists_and_key()?;
        let vouched = VouchStatement::open(note, &key).map_err(not_of_tally)?;
        let people = usize::from(!self.subject.is_empty());
        if vouched.handles.len() != people {
            return wrong_of_tally("it is about another number of people");
        }
        let accepted = self.statement.accepted_at.saturating_sub(CLOCKS);
        let stays = |since: Option<u64>| since.is_some_and(|since| since < accepted);
        if vouched.handles.iter().any(|v| stays(v.since)) {
            return wrong_of_tally("it still has what was contributed before the request");
        }
        let recalled = lists.recalled.as_ref().map_or(0, |s| s.number);
        if vouched.recalled < recalled {
            return wrong_of_tally("the snapshot that the statement calls recalled is not");
        }
        let Some(replaced) = &lists.replaced_by else {
            return Ok(Some(vouched));
        };
        let newer = |s: &SnapshotName| is_or_follows(s.number, &s.digest, replaced);
        // A later deletion may have recalled that one, too.
        let later = vouched.serves.is_none() && vouched.recalled >= replaced.number;
        if !later && !vouched.serves.as_ref().is_some_and(newer) {
            return wrong_of_tally(
                "it does not serve the snapshot that the statement names, or a newer one",
            );
        }
        Ok(Some(vouched))
    }

    /// What is signed of the noise on the sums, checked against the statement; none: the receipt
    /// says nothing of noise.
    ///
    /// # Errors
    /// [`VerifyError::Tally`]: the signature is not of the key that the statement names, the note
    /// is of an older snapshot than the one that it names, or says nothing of noise.
    pub fn noise_stated(&self) -> Result<Option<SnapshotStatement>, VerifyError> {
        let Some(note) = &self.noise else {
            return Ok(None);
        };
        let (lists, key) = self.lists_and_key()?;
        let stated = SnapshotStatement::open(note, &key).map_err(not_of_tally)?;
        if stated.noise.is_none() {
            return wrong_of_tally("the note about noise says nothing of noise");
        }
        let Some(replaced) = &lists.replaced_by else {
            return Ok(Some(stated));
        };
        match is_or_follows(stated.number, &stated.snapshot, replaced) {
            true => Ok(Some(stated)),
            false => {
                wrong_of_tally("the note about noise is of another snapshot than the statement's")
            }
        }
    }

    /// The verdict for programs: whether it is genuine, and whether what was asked for happened.
    pub fn verdict(&self) -> serde_json::Value {
        let done = self.effect() == Effect::Done;
        let effect = if done { "done" } else { "nothing-removed" };
        serde_json::json!({
            "verified": done, "genuine": true, "effect": effect, "receipt": self,
        })
    }

    /// What the receipt shows to have happened. A receipt can be genuine and be about nothing.
    pub fn effect(&self) -> Effect {
        let s = &self.statement;
        let nothing = match (s.kind.as_str(), s.removed) {
            // Who has not answered is left out of training altogether.
            // Nor is it nothing when a later request has taken the whole person out meanwhile.
            (_, Some(r)) => {
                let gone = matches!(
                    self.records.as_ref().map(|r| &r.fate),
                    Some(Fate::Absent(_))
                );
                r.events == 0 && r.silent == 0 && r.unconsented == 0 && !gone
            }
            ("erase-subject", None) => {
                let listed = s.lists.as_ref().is_some_and(|l| l.held);
                s.keys_destroyed == 0 && self.records.is_none() && !listed
            }
            // Version 2 knew only this much of what devices did.
            _ => matches!(
                self.records.as_ref().map(|r| &r.fate),
                Some(Fate::Unchanged(_))
            ),
        };
        if nothing {
            Effect::NothingRemoved
        } else {
            Effect::Done
        }
    }
}

/// The root of the records that a training statement commits to, if the log under this checkpoint
/// and key holds it.
pub(crate) fn check_logged(
    l: &Logged,
    checkpoint: &str,
    key: &VerifierKey,
) -> Result<Hash, VerifyError> {
    let (size, root) = open_checkpoint(checkpoint, key)?;
    verify_logged(l, &Head(size, root))
}

fn verify_logged(l: &Logged, head: &Head) -> Result<Hash, VerifyError> {
    let shard = l.training.shard;
    let salt = unhex32(&l.salt).ok_or(VerifyError::Records {
        shard,
        why: "a salt is not 32 bytes",
    })?;
    head.includes(
        &entry(Kind::Training, &salt, &canonical(&l.training)),
        l.index,
        &l.proof,
    )?;
    unhex32(&l.training.root).ok_or(VerifyError::Records {
        shard,
        why: "a root is not 32 bytes",
    })
}

/// Whether a statement names the recipe and the base model: those of one of the epochs that it is
/// about. A person's record may be of another one than is served in the end.
fn is_stated(training: &Training, statement: &Statement) -> bool {
    let fits = |recipe: &str, base_model: &str| {
        training.recipe == recipe && training.base_model == base_model
    };
    let mut epochs = statement.epochs.iter().flatten();
    fits(&statement.recipe, &statement.base_model) || epochs.any(|e| fits(&e.recipe, &e.base_model))
}

fn verify_records(r: &RecordProof, receipt: &Receipt, head: &Head) -> Result<(), VerifyError> {
    let shard = r.before.training.shard;
    let bad = |why: &'static str| Err(VerifyError::Records { shard, why });
    let (before, after) = (
        verify_logged(&r.before, head)?,
        verify_logged(&r.after, head)?,
    );
    if r.after.training.shard != shard {
        return bad("before and after are different shards");
    }
    if r.before.index >= receipt.index
        || r.after.index <= r.before.index
        || r.after.training.generation < r.before.training.generation
    {
        return bad("the log does not hold what was trained on before and after in this order");
    }
    for training in [&r.before.training, &r.after.training] {
        if !is_stated(training, &receipt.statement) {
            return bad("it was trained with another recipe or base model");
        }
    }
    if r.before.training.recipe != r.after.training.recipe
        || r.before.training.base_model != r.after.training.base_model
    {
        return bad("before and after were trained with different recipes or base models");
    }
    let Some(salt) = unhex32(&r.salt) else {
        return bad("the record's salt is not 32 bytes");
    };
    let key = record_key(&salt, &receipt.subject);
    if r.member.key != hex(&key) || !r.member.verify(r.before.training.count, &before) {
        return bad("the person's record is not shown to have been trained on before");
    }
    let gone = matches!(
        receipt.statement.kind.as_str(),
        "erase-subject" | "restrict"
    );
    match &r.fate {
        Fate::Absent(gap) if verify_absent(&key, gap, r.after.training.count, &after) => Ok(()),
        Fate::Replaced(leaf)
            if !gone
                && leaf.key == r.member.key
                && leaf.data != r.member.data
                && leaf.verify(r.after.training.count, &after) =>
        {
            Ok(())
        }
        Fate::Unchanged(leaf)
            if !gone
                && leaf.key == r.member.key
                && leaf.data == r.member.data
                && leaf.verify(r.after.training.count, &after) =>
        {
            Ok(())
        }
        _ => bad("the person's record is not shown to be gone from what was trained on after"),
    }
}

#[cfg(test)]
mod tests;
