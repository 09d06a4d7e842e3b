//! What privacy teams ask for, and how it is answered.

use std::fmt;

use crate::ids::{Digest, SubjectId};
use serde::{Deserialize, Serialize};

/// What more than one operator may have to agree to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proposal {
    /// Carry out requests.
    Forget {
        /// What is asked.
        requests: Vec<DeletionRequest>,
        /// See [`crate::admin::AdminRequest::Forget`].
        asked: u64,
        /// Likewise.
        reference: String,
    },
    /// Invite another operator.
    InviteOperator,
    /// Change how many operators have to agree.
    Approvals(u8),
    /// Withdraw an operator's certificate, by its fingerprint.
    RemoveOperator(Digest),
    /// Use a person's data again that was restricted.
    LiftRestriction(SubjectId),
    /// Withdraw a proposal that somebody else made.
    CancelProposal(u64),
    /// Invite another device of a person who has one already.
    InviteDevice(SubjectId),
    /// Refuse a person's devices from now on.
    Revoke(SubjectId),
    /// Search the coordinator's records, decrypted, for these texts.
    Scan {
        /// At most [`crate::limits::MAX_SCAN_TEXTS`], of 4 to
        /// [`crate::limits::MAX_SCAN_TEXT`] bytes each.
        texts: Vec<String>,
    },
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InviteOperator => f.write_str("invite another operator"),
            Self::Forget { requests, .. } => {
                let all: Vec<String> = requests.iter().map(ToString::to_string).collect();
                f.write_str(&all.join("; "))
            }
            Self::Approvals(n) => write!(f, "let {n} operator(s) agree to every deletion"),
            Self::RemoveOperator(who) => write!(f, "remove operator {}", who.short()),
            Self::LiftRestriction(subject) => {
                write!(
                    f,
                    "lift the restriction of subject {subject}: use the data again"
                )
            }
            Self::CancelProposal(id) => write!(f, "withdraw proposal {id}, of another operator"),
            Self::InviteDevice(subject) => {
                write!(f, "invite another device of subject {subject}")
            }
            Self::Revoke(subject) => write!(f, "refuse the devices of subject {subject}"),
            Self::Scan { texts } => {
                write!(f, "search the records, decrypted, for {}", texts.join(", "))
            }
        }
    }
}

/// One request. What the coordinator does not know (who has which item, when something was
/// recorded) the devices answer by erasing; until they have, everything that may hold the data
/// counts as holding it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionRequest {
    /// All data of a person (GDPR Article 17).
    Erase {
        /// Who.
        subject: SubjectId,
    },
    /// Some interactions of a person.
    EraseItems {
        /// Who.
        subject: SubjectId,
        /// Which items; not empty.
        items: Vec<String>,
    },
    /// What a person's device recorded at or after a time: consent is withdrawn from then on.
    Withdraw {
        /// Who.
        subject: SubjectId,
        /// Unix seconds.
        from: i64,
    },
    /// Stop using a person's data, but keep it (GDPR Article 18).
    Restrict {
        /// Who.
        subject: SubjectId,
    },
    /// Items, for everybody.
    Takedown {
        /// Which items; not empty.
        items: Vec<String>,
    },
}

impl DeletionRequest {
    /// Whom it concerns; `None` for everybody.
    pub fn subject(&self) -> Option<&SubjectId> {
        match self {
            Self::Erase { subject }
            | Self::EraseItems { subject, .. }
            | Self::Withdraw { subject, .. }
            | Self::Restrict { subject } => Some(subject),
            Self::Takedown { .. } => None,
        }
    }

    /// Whether `subject`'s data may be concerned.
    pub fn concerns(&self, subject: &SubjectId) -> bool {
        self.subject().is_none_or(|s| s == subject)
    }

    /// Items that devices are to erase.
    pub fn items(&self) -> &[String] {
        match self {
            Self::EraseItems { items, .. } | Self::Takedown { items } => items,
            _ => &[],
        }
    }

    /// The time from which on devices are to erase, in Unix seconds.
    pub fn from(&self) -> Option<i64> {
        match self {
            Self::Withdraw { from, .. } => Some(*from),
            _ => None,
        }
    }

    /// Whether devices have to erase something before training goes on.
    pub fn asks_devices(&self) -> bool {
        matches!(
            self,
            Self::EraseItems { .. } | Self::Withdraw { .. } | Self::Takedown { .. }
        )
    }

    /// Whether the person's keys go for good.
    pub fn erases_subject(&self) -> bool {
        matches!(self, Self::Erase { .. })
    }

    /// Name of the kind, as receipts and JSON have it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Erase { .. } => "erase-subject",
            Self::EraseItems { .. } => "erase-items",
            Self::Withdraw { .. } => "withdraw-consent",
            Self::Restrict { .. } => "restrict",
            Self::Takedown { .. } => "takedown",
        }
    }
}

impl fmt::Display for DeletionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Erase { subject } => write!(f, "forget all data of subject {subject}"),
            Self::EraseItems { subject, items } => {
                write!(f, "forget items {} of subject {subject}", items.join(", "))
            }
            Self::Withdraw { subject, from } => {
                write!(
                    f,
                    "forget what subject {subject} did at or after {from} (seconds since 1970)"
                )
            }
            Self::Restrict { subject } => {
                write!(f, "stop using the data of subject {subject}, but keep it")
            }
            Self::Takedown { items } => {
                write!(f, "forget items {} for everybody", items.join(", "))
            }
        }
    }
}
