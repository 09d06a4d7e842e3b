//! The receipt of a deletion: how it is put together and how it is verified.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::hex::{hex, unhex32};
use crate::merkle::{Hash, Tree, verify_inclusion};
use crate::note::{NoteError, Signer, VerifierKey, open_checkpoint};
use crate::records::{Leaf, record_key, verify_absent};
use crate::statement::{
    Kind, Statement, Training, VERSION, VERSION_WITHOUT_LISTS, VERSION_WITHOUT_REMOVED, canonical,
    commitment, entry,
};
use crate::vouch::{SnapshotName, VouchStatement};

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
    tally: Option<String>,
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
        tally,
    };
    let mut bytes = canonical(&receipt);
    bytes.push(b'\n');
    Ok(bytes)
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
    let mut again = canonical(&receipt);
    again.push(b'\n');
    if again != bytes {
        return Err(VerifyError::Format(
            "its bytes differ from the canonical form".into(),
        ));
    }
    check_version(&receipt.statement)?;
    let (size, root) = open_checkpoint(&receipt.checkpoint, key)?;
    let head = Head(size, root);
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
    Ok(receipt)
}

/// Which fields a statement has follows from its version and kind.
fn check_version(s: &Statement) -> Result<(), VerifyError> {
    let asks_devices = matches!(
        s.kind.as_str(),
        "erase-items" | "withdraw-consent" | "takedown"
    );
    let fits = match s.version {
        VERSION => s.removed.is_some() == asks_devices && lists_fit(s),
        VERSION_WITHOUT_LISTS => s.removed.is_some() == asks_devices && s.lists.is_none(),
        VERSION_WITHOUT_REMOVED => s.removed.is_none() && s.lists.is_none(),
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
            "what devices removed, or what became of lists, does not fit its version and kind"
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

impl Receipt {
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
        let wrong = |why: &str| Err(VerifyError::Tally(why.to_owned()));
        let Some(lists) = &self.statement.lists else {
            return wrong("the deletion says nothing of lists");
        };
        let refused = |e: NoteError| VerifyError::Tally(e.to_string());
        let key = VerifierKey::parse(&lists.key).map_err(refused)?;
        let vouched = VouchStatement::open(note, &key).map_err(refused)?;
        let people = usize::from(!self.subject.is_empty());
        if vouched.handles.len() != people {
            return wrong("it is about another number of people");
        }
        let accepted = self.statement.accepted_at.saturating_sub(CLOCKS);
        let stays = |since: Option<u64>| since.is_some_and(|since| since < accepted);
        if vouched.handles.iter().any(|v| stays(v.since)) {
            return wrong("it still has what was contributed before the request");
        }
        let recalled = lists.recalled.as_ref().map_or(0, |s| s.number);
        if vouched.recalled < recalled {
            return wrong("the snapshot that the statement calls recalled is not");
        }
        let Some(replaced) = &lists.replaced_by else {
            return Ok(Some(vouched));
        };
        let newer = |s: &SnapshotName| match s.number.cmp(&replaced.number) {
            Ordering::Less => false,
            Ordering::Equal => hex(&s.digest) == replaced.sha256,
            Ordering::Greater => true,
        };
        // A later deletion may have recalled that one, too.
        let later = vouched.serves.is_none() && vouched.recalled >= replaced.number;
        if !later && !vouched.serves.as_ref().is_some_and(newer) {
            return wrong(
                "it does not serve the snapshot that the statement names, or a newer one",
            );
        }
        Ok(Some(vouched))
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
    for t in [&r.before.training, &r.after.training] {
        if (&t.recipe, &t.base_model) != (&receipt.statement.recipe, &receipt.statement.base_model)
        {
            return bad("it was trained with another recipe or base model");
        }
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
mod tests {
    use super::*;
    use crate::records::Records;
    use crate::statement::{
        AffectedShard, Cost, Removed, StatedLists, StatedSnapshot, TRAINING_VERSION,
    };

    fn training(generation: u32, records: &Records) -> Training {
        Training {
            version: TRAINING_VERSION,
            shard: 2,
            generation,
            root: hex(&records.root()),
            count: records.count(),
            recipe: "ff".into(),
            seed: 1,
            base_model: "00".into(),
            build: "test".into(),
        }
    }

    fn statement(kind: &str) -> Statement {
        Statement {
            version: VERSION_WITHOUT_LISTS,
            kind: kind.into(),
            deletion: 1,
            batch: 1,
            commitment: commitment(&[5; 32], "alice", &[], None),
            accepted_at: 1_700_000_000,
            exact_after_ms: 12,
            retrained_after_ms: 3400,
            keys_destroyed: 3,
            affected: vec![AffectedShard {
                shard: 2,
                from_stage: 1,
                before: "aa".into(),
                rolled_back_to: "bb".into(),
                after: "cc".into(),
                lineage: "dd".into(),
                rounds: 8,
            }],
            untouched: vec![(0, "ee".into())],
            release: 2,
            recipe: "ff".into(),
            base_model: "00".into(),
            build: "test".into(),
            recorded: true,
            forecast: Cost {
                rounds: 8,
                ..Cost::default()
            },
            actual: Cost {
                rounds: 8,
                client_rounds: 16,
                bytes: 5,
                milliseconds: 3388,
            },
            removed: None,
            lists: None,
        }
    }

    /// A receipt for alice, whose record is `fate` after: gone, the same, or with other data.
    fn sample(kind: &str, after_data: Option<Hash>) -> (Vec<u8>, Signer) {
        let items: Vec<String> = if kind == "erase-items" {
            vec!["i1".into()]
        } else {
            vec![]
        };
        let removed = Removed {
            events: u64::from(after_data != Some([77; 32])),
            answered: 1,
            ..Removed::default()
        };
        let s = Statement {
            commitment: commitment(&[5; 32], "alice", &items, None),
            removed: (kind == "erase-items").then_some(removed),
            ..statement(kind)
        };
        receipt_of(s, items, after_data)
    }

    /// The receipt of this statement.
    fn receipt_of(s: Statement, items: Vec<String>, after_data: Option<Hash>) -> (Vec<u8>, Signer) {
        let kind = s.kind.clone();
        let signer = Signer::from_seed("lethe-test", &[1; 32]).expect("a seed");
        let key = record_key(&[8; 32], "alice");
        let others: Vec<(Hash, Hash)> = (0..5)
            .map(|i| (record_key(&[i; 32], "somebody"), [i; 32]))
            .collect();
        let before = Records::new(others.iter().copied().chain([(key, [77; 32])]));
        let after = Records::new(others.iter().copied().chain(after_data.map(|d| (key, d))));
        let (t1, t2) = (training(1, &before), training(2, &after));
        let mut tree = Tree::default();
        tree.push(b"other");
        let i1 = tree.push(&entry(Kind::Training, &[2; 32], &canonical(&t1)));
        let i2 = tree.push(&entry(Kind::Training, &[3; 32], &canonical(&t2)));
        let index = tree.push(&entry(Kind::Deletion, &[5; 32], &canonical(&s)));
        tree.push(b"later");
        let fate = match after_data {
            None => Fate::Absent(after.absent(&key).expect("absent")),
            Some([77, ..]) if kind == "erase-items" => {
                Fate::Unchanged(after.member(&key).expect("there"))
            }
            Some(_) => Fate::Replaced(after.member(&key).expect("there")),
        };
        let records = RecordProof {
            salt: hex(&[8; 32]),
            before: logged(t1, &[2; 32], i1, &tree).expect("logged"),
            member: before.member(&key).expect("there"),
            after: logged(t2, &[3; 32], i2, &tree).expect("logged"),
            fate,
        };
        let opening = Opening {
            subject: "alice".into(),
            items,
            from: None,
            salt: [5; 32],
        };
        (
            issue(s, opening, index, Some(records), None, &tree, &signer).expect("issues"),
            signer,
        )
    }

    #[test]
    fn verifies_as_issued() {
        let (bytes, signer) = sample("erase-subject", None);
        assert_eq!(
            verify(&bytes, signer.verifier()).expect("verifies").subject,
            "alice"
        );
        let (bytes, signer) = sample("erase-items", Some([78; 32]));
        assert!(verify(&bytes, signer.verifier()).is_ok());
        let (bytes, signer) = sample("unknown-kind", Some([78; 32]));
        assert!(verify(&bytes, signer.verifier()).is_err());
        let (bytes, signer) = sample("erase-items", Some([77; 32]));
        assert!(matches!(
            verify(&bytes, signer.verifier())
                .expect("verifies")
                .records
                .expect("has one")
                .fate,
            Fate::Unchanged(_)
        ));
    }

    #[test]
    fn an_erasure_that_removed_nothing_says_so() {
        let key = |s: &Signer| s.verifier().clone();
        let (bytes, signer) = sample("erase-items", Some([77; 32]));
        let nothing = verify(&bytes, &key(&signer)).expect("a genuine receipt");
        assert_eq!(nothing.effect(), Effect::NothingRemoved);
        assert!(crate::report::text(&nothing).starts_with("NOTHING WAS REMOVED"));
        assert!(!crate::report::text(&nothing).contains("VERIFIED"));
        assert!(!crate::report::html(&nothing).contains("were deleted"));
        let (bytes, signer) = sample("erase-items", Some([78; 32]));
        let some = verify(&bytes, &key(&signer)).expect("a genuine receipt");
        assert_eq!(some.effect(), Effect::Done);
        assert!(crate::report::text(&some).starts_with("VERIFIED: items i1 of subject alice"));
        // A device that stays away: the person is left out altogether, and the receipt says that.
        let items = vec!["i1".to_owned()];
        let away = Statement {
            commitment: commitment(&[5; 32], "alice", &items, None),
            removed: Some(Removed {
                silent: 1,
                ..Removed::default()
            }),
            ..statement("erase-items")
        };
        let (bytes, signer) = receipt_of(away, items, None);
        let away = verify(&bytes, &key(&signer)).expect("a genuine receipt");
        assert_eq!(away.effect(), Effect::Done);
        assert!(crate::report::text(&away).contains("1 device(s) did not answer"));
    }

    #[test]
    fn receipts_of_the_version_before_still_verify() {
        let items = vec!["i1".to_owned()];
        let old = Statement {
            version: VERSION_WITHOUT_REMOVED,
            commitment: commitment(&[5; 32], "alice", &items, None),
            ..statement("erase-items")
        };
        let (bytes, signer) = receipt_of(old.clone(), items.clone(), Some([78; 32]));
        assert!(!String::from_utf8_lossy(&bytes).contains("removed\""));
        assert!(verify(&bytes, signer.verifier()).is_ok());
        // This version has to say what was removed, that one could not.
        let newer = Statement {
            version: VERSION_WITHOUT_LISTS,
            ..old.clone()
        };
        let (bytes, signer) = receipt_of(newer, items.clone(), Some([78; 32]));
        assert!(verify(&bytes, signer.verifier()).is_err());
        let mixed = Statement {
            removed: Some(Removed::default()),
            ..old
        };
        let (bytes, signer) = receipt_of(mixed, items, Some([78; 32]));
        assert!(verify(&bytes, signer.verifier()).is_err());
    }

    #[test]
    fn what_became_of_lists_fits_the_version() {
        let shown = |number| {
            Some(StatedSnapshot {
                number,
                sha256: "aa".into(),
                people: 16,
            })
        };
        let lists = |recalled, replaced_by| {
            Some(StatedLists {
                held: true,
                recalled,
                replaced_by,
                ..StatedLists::default()
            })
        };
        let verdict = |version, lists| {
            let stated = Statement {
                version,
                lists,
                ..statement("erase-subject")
            };
            let (bytes, signer) = receipt_of(stated, vec![], None);
            verify(&bytes, signer.verifier()).is_ok()
        };
        assert!(verdict(VERSION, lists(shown(1), shown(2))));
        assert!(verdict(VERSION, lists(None, None)));
        for wrong in [
            lists(shown(2), shown(2)),
            lists(shown(1), None),
            lists(None, shown(1)),
            None,
        ] {
            assert!(!verdict(VERSION, wrong));
        }
        assert!(!verdict(VERSION_WITHOUT_LISTS, lists(None, None)));
    }

    /// A receipt whose lists a tally of its own signed, as `change` makes it.
    fn signed_by_tally(change: impl FnOnce(&mut VouchStatement)) -> Result<Receipt, VerifyError> {
        let tally = Signer::from_seed("tally", &[9; 32]).expect("a seed");
        let shown = |number, byte: u8| StatedSnapshot {
            number,
            sha256: hex(&[byte; 32]),
            people: 16,
        };
        let stated = Statement {
            version: VERSION,
            lists: Some(StatedLists {
                held: true,
                recalled: Some(shown(1, 1)),
                replaced_by: Some(shown(2, 2)),
                key: tally.verifier().text(),
                ..StatedLists::default()
            }),
            ..statement("erase-subject")
        };
        let mut vouched = VouchStatement {
            at: stated.accepted_at + 5,
            recalled: 1,
            serves: Some(SnapshotName {
                number: 2,
                digest: [2; 32],
            }),
            handles: vec![crate::vouch::Vouched {
                handle: crate::vouch::handle_hash(&[4; 16]),
                since: None,
            }],
        };
        change(&mut vouched);
        let (bytes, signer) = receipt_of(stated, vec![], None);
        let mut receipt: Receipt = serde_json::from_slice(&bytes).expect("a receipt");
        receipt.tally = Some(vouched.sign(&tally).expect("signs"));
        let mut bytes = canonical(&receipt);
        bytes.push(b'\n');
        verify(&bytes, signer.verifier())
    }

    #[test]
    fn a_tallys_statement_has_to_fit_the_receipt() {
        let receipt = signed_by_tally(|_| {}).expect("fits");
        let text = crate::report::text(&receipt);
        assert!(
            text.contains("the tally vouches that: at 1700000005"),
            "{text}"
        );
        assert!(text.contains("the coordinator vouches for"), "{text}");
        let fits = |change: fn(&mut VouchStatement)| signed_by_tally(change).is_ok();
        assert!(fits(|v| v.serves.as_mut().expect("serves").number = 3));
        assert!(fits(|v| v.handles[0].since = Some(v.at)));
        assert!(fits(|v| {
            v.serves = None;
            v.recalled = 2;
        }));
        let wrong: [fn(&mut VouchStatement); 7] = [
            |v| v.handles[0].since = Some(1_600_000_000),
            |v| v.handles.clear(),
            |v| v.handles.push(v.handles[0]),
            |v| v.recalled = 0,
            |v| v.serves = None,
            |v| v.serves.as_mut().expect("serves").number = 1,
            |v| v.serves.as_mut().expect("serves").digest = [7; 32],
        ];
        for (n, change) in wrong.into_iter().enumerate() {
            let verdict = signed_by_tally(change);
            assert!(matches!(verdict, Err(VerifyError::Tally(_))), "{n}");
        }
        // A receipt without one says that nobody but the coordinator vouches.
        assert!(
            !crate::report::text(&Receipt {
                tally: None,
                ..receipt
            })
            .contains("the tally vouches")
        );
    }

    #[test]
    fn a_statement_of_another_tally_is_refused() {
        let other = Signer::from_seed("tally", &[8; 32]).expect("a seed");
        let mut receipt = signed_by_tally(|_| {}).expect("fits");
        let note = receipt.tally.take().expect("is there");
        let lists = receipt.statement.lists.as_mut().expect("is there");
        let key = std::mem::replace(&mut lists.key, other.verifier().text());
        receipt.tally = Some(note);
        assert!(matches!(receipt.vouched(), Err(VerifyError::Tally(_))));
        assert_ne!(key, other.verifier().text());
    }

    #[test]
    fn a_record_that_is_still_trained_on_is_refused() {
        for (kind, data) in [
            ("erase-subject", [77; 32]),
            ("restrict", [77; 32]),
            ("erase-subject", [78; 32]),
        ] {
            let (bytes, signer) = sample(kind, Some(data));
            assert!(
                matches!(
                    verify(&bytes, signer.verifier()),
                    Err(VerifyError::Records { shard: 2, .. })
                ),
                "{kind}"
            );
        }
    }

    #[test]
    fn any_altered_byte_is_refused() {
        let (bytes, signer) = sample("erase-subject", None);
        for i in 0..bytes.len() {
            for flip in [0x01, 0x20, 0x80] {
                let mut b = bytes.clone();
                b[i] ^= flip;
                assert!(
                    verify(&b, signer.verifier()).is_err(),
                    "byte {i} xor {flip:#x}"
                );
            }
        }
        assert!(verify(&[&bytes[..], b" "].concat(), signer.verifier()).is_err());
        // Nor can fields be moved into each other, or proofs be left out.
        let r = verify(&bytes, signer.verifier()).expect("as issued");
        let again =
            |r: &Receipt| verify(&[canonical(r), b"\n".to_vec()].concat(), signer.verifier());
        assert!(again(&r).is_ok());
        assert!(
            again(&Receipt {
                records: None,
                ..r.clone()
            })
            .is_err()
        );
        assert!(
            again(&Receipt {
                from: Some(5),
                ..r.clone()
            })
            .is_err()
        );
        assert!(
            again(&Receipt {
                items: vec!["5".into()],
                ..r
            })
            .is_err()
        );
        assert_ne!(
            commitment(&[1; 32], "a", &["5".into()], None),
            commitment(&[1; 32], "a", &[], Some(5))
        );
    }
}
