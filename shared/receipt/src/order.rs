//! Orders to erase: what the log holds before a device is told, and how a device checks it.
//!
//! A device obeys an order only if the log's key signed a head that includes it, and that head
//! extends the newest one that the device has seen. So a coordinator cannot order what it does not
//! also put on record, under the number of a deletion.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::head::HeadError;
pub use crate::head::SeenHead;
use crate::merkle::Hash;
use crate::note::{NoteError, VerifierKey};
use crate::statement::{Kind, canonical, commitment, entry};

/// Version of the format of orders.
pub const ORDER_VERSION: u32 = 1;

/// The statement that the log's entry of an order commits to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// [`ORDER_VERSION`].
    pub version: u32,
    /// Number of the deletion.
    pub deletion: u64,
    /// Kind of the deletion, as receipts have it.
    pub kind: String,
    /// [`commitment`] to subject, items and time: the one that the receipt will hold, hexadecimal.
    pub commitment: String,
}

impl Order {
    /// The order of a deletion.
    pub fn new(
        deletion: u64,
        kind: &str,
        salt: &[u8; 32],
        subject: &str,
        items: &[String],
        from: Option<i64>,
    ) -> Self {
        Self {
            version: ORDER_VERSION,
            deletion,
            kind: kind.to_owned(),
            commitment: commitment(salt, subject, items, from),
        }
    }

    /// The log's entry.
    pub fn entry(&self, salt: &[u8; 32]) -> Vec<u8> {
        entry(Kind::Order, salt, &canonical(self))
    }
}

/// An order to erase as a device gets it, with what proves that the log holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EraseOrder {
    /// Number of the deletion.
    pub deletion: u64,
    /// Kind of the deletion.
    pub kind: String,
    /// Whose data; empty: everybody's.
    pub subject: String,
    /// Items.
    pub items: Vec<String>,
    /// Time from which on, in Unix seconds.
    pub from: Option<i64>,
    /// Salt of commitment and entry.
    pub salt: [u8; 32],
    /// The log's entry.
    pub index: u64,
    /// Audit path.
    pub proof: Vec<Hash>,
}

/// Why an order is not obeyed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OrderError {
    /// The head is not signed by the log.
    #[error("the order's head of the log: {0}")]
    Head(#[from] NoteError),
    /// The log was rewritten, or put back.
    #[error(
        "the log's head of {got} entries does not extend the one of {seen} that this device has \
         seen: the log was rewritten or put back"
    )]
    OtherLog {
        /// Entries of the new head.
        got: u64,
        /// Entries of the head that was seen.
        seen: u64,
    },
    /// The log does not hold the order.
    #[error("the log does not hold the order of deletion {deletion}")]
    NotLogged {
        /// Number of the deletion.
        deletion: u64,
    },
    /// It is about somebody else.
    #[error("the order of deletion {deletion} is about another person")]
    OtherPerson {
        /// Number of the deletion.
        deletion: u64,
    },
    /// Its parts do not fit together.
    #[error("the order of deletion {deletion} of kind {kind} does not name what that kind erases")]
    Kind {
        /// Number of the deletion.
        deletion: u64,
        /// Its kind.
        kind: String,
    },
}

impl From<HeadError> for OrderError {
    fn from(e: HeadError) -> Self {
        match e {
            HeadError::Note(e) => Self::Head(e),
            HeadError::OtherLog { got, seen } => Self::OtherLog { got, seen },
        }
    }
}

/// Checks orders for `subject` under a signed head; returns the head, for the next time.
///
/// # Errors
/// [`OrderError`] says which order is not to be obeyed, and why. Nothing of the task may be obeyed
/// then.
pub fn check(
    orders: &[EraseOrder],
    subject: &str,
    checkpoint: &str,
    key: &VerifierKey,
    seen: Option<SeenHead>,
    consistency: &[Hash],
) -> Result<SeenHead, OrderError> {
    let head = SeenHead::next(seen, checkpoint, key, consistency)?;
    for o in orders {
        let deletion = o.deletion;
        if !o.subject.is_empty() && o.subject != subject {
            return Err(OrderError::OtherPerson { deletion });
        }
        let named = !o.subject.is_empty();
        let fits = match o.kind.as_str() {
            "erase-items" => named && !o.items.is_empty() && o.from.is_none(),
            "withdraw-consent" => named && o.items.is_empty() && o.from.is_some(),
            "takedown" => !named && !o.items.is_empty() && o.from.is_none(),
            _ => false,
        };
        if !fits {
            let kind = o.kind.clone();
            return Err(OrderError::Kind { deletion, kind });
        }
        let order = Order::new(deletion, &o.kind, &o.salt, &o.subject, &o.items, o.from);
        if !head.includes(&order.entry(&o.salt), o.index, &o.proof) {
            return Err(OrderError::NotLogged { deletion });
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::Tree;
    use crate::note::Signer;

    struct Log {
        signer: Signer,
        tree: Tree,
    }

    impl Log {
        fn new(seed: u8) -> Self {
            let mut tree = Tree::default();
            tree.push(b"first");
            Self {
                signer: Signer::from_seed("log.example", &[seed; 32]).expect("a seed"),
                tree,
            }
        }

        fn order(&mut self, kind: &str, subject: &str, items: &[&str]) -> EraseOrder {
            let items: Vec<String> = items.iter().map(|i| (*i).to_owned()).collect();
            let order = Order::new(7, kind, &[3; 32], subject, &items, None);
            let index = self.tree.push(&order.entry(&[3; 32]));
            EraseOrder {
                deletion: 7,
                kind: kind.into(),
                subject: subject.into(),
                items,
                from: None,
                salt: [3; 32],
                index,
                proof: self.tree.inclusion(index).expect("there"),
            }
        }

        fn check(
            &self,
            order: &EraseOrder,
            seen: Option<SeenHead>,
        ) -> Result<SeenHead, OrderError> {
            let head = self.signer.checkpoint(self.tree.len(), &self.tree.root());
            let proof = seen.and_then(|s| self.tree.consistency(s.size));
            let orders = std::slice::from_ref(order);
            let key = self.signer.verifier();
            check(orders, "a", &head, key, seen, &proof.unwrap_or_default())
        }
    }

    #[test]
    fn only_what_the_log_holds_is_obeyed() {
        let mut log = Log::new(1);
        let good = log.order("erase-items", "a", &["5"]);
        assert_eq!(log.check(&good, None).expect("obeyed").size, 2);
        let not_logged = Err(OrderError::NotLogged { deletion: 7 });
        let mut more = good.clone();
        more.items.push("6".into());
        assert_eq!(log.check(&more, None), not_logged, "more than was ordered");
        let other_number = EraseOrder {
            deletion: 8,
            ..good.clone()
        };
        assert!(matches!(
            log.check(&other_number, None),
            Err(OrderError::NotLogged { deletion: 8 })
        ));
        let from = EraseOrder {
            kind: "withdraw-consent".into(),
            items: vec![],
            from: Some(i64::MIN),
            ..good.clone()
        };
        assert_eq!(log.check(&from, None), not_logged);
        let everybody = EraseOrder {
            kind: "takedown".into(),
            subject: String::new(),
            ..good.clone()
        };
        assert_eq!(log.check(&everybody, None), not_logged);
        let other = log.order("erase-items", "b", &["5"]);
        assert_eq!(
            log.check(&other, None),
            Err(OrderError::OtherPerson { deletion: 7 })
        );
        let all = log.order("erase-subject", "a", &[]);
        assert!(matches!(
            log.check(&all, None),
            Err(OrderError::Kind { .. })
        ));
    }

    #[test]
    fn a_log_of_another_key_or_that_was_put_back_is_refused() {
        let mut log = Log::new(1);
        let first = log.order("takedown", "", &["5"]);
        let seen = log.check(&first, None).expect("obeyed");
        log.tree.push(b"later");
        let first = EraseOrder {
            proof: log.tree.inclusion(first.index).expect("there"),
            ..first
        };
        let seen = log.check(&first, Some(seen)).expect("a log that grew");
        assert_eq!(seen.size, 3);
        // The same key, another history: a copy of the folder in somebody else's hands.
        let mut forked = Log::new(1);
        let order = forked.order("takedown", "", &["9"]);
        forked.tree.push(b"other");
        forked.tree.push(b"more");
        let order = EraseOrder {
            proof: forked.tree.inclusion(order.index).expect("there"),
            ..order
        };
        assert!(matches!(
            forked.check(&order, Some(seen)),
            Err(OrderError::OtherLog { got: 4, seen: 3 })
        ));
        let stranger = Log::new(2);
        let head = stranger.signer.checkpoint(log.tree.len(), &log.tree.root());
        let key = log.signer.verifier();
        assert!(matches!(
            check(&[first], "a", &head, key, None, &[]),
            Err(OrderError::Head(_))
        ));
    }
}
