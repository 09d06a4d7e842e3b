//! Why something could not be done, by what the app can do about it.

use lethe_client::{ClientError, TransportError};

/// Why something could not be done. The kinds are what an app can act on; `reason` says what was
/// expected, what was got, and what to do. No error loses anything of the history.
#[derive(Clone, Debug, PartialEq, thiserror::Error, uniffi::Error)]
pub enum FfiError {
    /// The coordinator cannot be reached, or is busy. Everything on the device works; try again
    /// later.
    #[error("{reason}")]
    Offline {
        /// What happened.
        reason: String,
    },
    /// The coordinator refused, or answered what nobody expects.
    #[error("{reason}")]
    Refused {
        /// What happened.
        reason: String,
    },
    /// The coordinator does not know this device any more: if the person has left, erase.
    #[error("{reason}")]
    Deleted {
        /// What happened.
        reason: String,
    },
    /// There is no invitation, or it is not taken, or the certificate has expired: open the client
    /// with a fresh invitation.
    #[error("{reason}")]
    NeedsInvitation {
        /// What happened.
        reason: String,
    },
    /// The client was opened without what this function needs: a server, or a language model.
    #[error("{reason}")]
    NotConfigured {
        /// What is missing.
        reason: String,
    },
    /// The coordinator has nothing of this kind for this device (yet): tables, or a release; or the
    /// device has not joined.
    #[error("{reason}")]
    NotServed {
        /// What is missing.
        reason: String,
    },
    /// An option is not what is expected.
    #[error("{reason}")]
    BadOption {
        /// Which, and what is expected.
        reason: String,
    },
    /// Another client or process has the folder open.
    #[error("{reason}")]
    InUse {
        /// Which folder.
        reason: String,
    },
    /// The client was closed or erased: open the folder again.
    #[error("{reason}")]
    Closed {
        /// What happened.
        reason: String,
    },
    /// The item is not in the catalogue.
    #[error("{reason}")]
    UnknownItem {
        /// The item.
        item: String,
        /// What to do.
        reason: String,
    },
    /// The event, the export or the number of events is not what is expected. Nothing was recorded.
    #[error("{reason}")]
    BadInput {
        /// What is expected.
        reason: String,
    },
    /// The person has withdrawn consent: nothing later than that is recorded.
    #[error("{reason}")]
    ConsentWithdrawn {
        /// From when on, in seconds since 1970.
        since: i64,
        /// What to do.
        reason: String,
    },
    /// The list whose next page was asked for is not kept any more: ask for its first page.
    #[error("{reason}")]
    ListGone {
        /// What to do.
        reason: String,
    },
    /// The platform's key store gave no key.
    #[error("{reason}")]
    KeyStore {
        /// What it said.
        reason: String,
    },
    /// The folder was sealed with a key that is lost: it was restored on another phone, or the key
    /// store was cleared. Erase the folder, and import an export.
    #[error("{reason}")]
    KeyLost {
        /// Which folder.
        reason: String,
    },
    /// A file of the folder is damaged, or does not open with the key.
    #[error("{reason}")]
    Damaged {
        /// Which, and what to do.
        reason: String,
    },
    /// A file cannot be read or written: no space, no permission.
    #[error("{reason}")]
    Storage {
        /// Which, and why.
        reason: String,
    },
    /// The catalogue's folder cannot be used.
    #[error("{reason}")]
    Catalogue {
        /// What is wrong with it.
        reason: String,
    },
    /// The language model cannot be used, or is not what the coordinator's recipe asks for.
    #[error("{reason}")]
    Model {
        /// What is wrong with it.
        reason: String,
    },
    /// The coordinator showed something that it cannot prove, or that contradicts what it showed
    /// before. Nothing of it is used, lists go on: tell the operator.
    #[error("{reason}")]
    NotTrusted {
        /// What it showed.
        reason: String,
    },
    /// Training stopped, because it was cancelled or the conditions do not hold any more.
    #[error("{reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
    /// The device does not take part in this round: not enough memory, or nothing to train on.
    #[error("{reason}")]
    LeftOut {
        /// Why.
        reason: String,
    },
    /// A fault of this library: please report it.
    #[error("{reason}")]
    Internal {
        /// What happened.
        reason: String,
    },
}

impl From<ClientError> for FfiError {
    fn from(e: ClientError) -> Self {
        let reason = e.to_string();
        if e.is_offline() {
            return Self::Offline { reason };
        }
        if e.is_stopped() {
            return Self::Stopped { reason };
        }
        match e.transport() {
            // What the app gave does not parse.
            Some(TransportError::Invitation | TransportError::Place { .. }) => {
                return Self::BadOption { reason };
            }
            Some(TransportError::Withdrawn) => return Self::Deleted { reason },
            Some(TransportError::Expired { .. }) => return Self::NeedsInvitation { reason },
            Some(_) => return Self::Refused { reason },
            None => {}
        }
        match e {
            ClientError::Transport(_) | ClientError::ContributionRefused(_) => {
                Self::Refused { reason }
            }
            ClientError::Deleted => Self::Deleted { reason },
            ClientError::CertificateExpired(_)
            | ClientError::NotInvited(_)
            | ClientError::NotEnrolled => Self::NeedsInvitation { reason },
            ClientError::NoServer | ClientError::NoModel => Self::NotConfigured { reason },
            ClientError::NotJoined | ClientError::NoRelease | ClientError::NoLists => {
                Self::NotServed { reason }
            }
            ClientError::TallyKey { .. } => Self::BadOption { reason },
            ClientError::InUse { .. } => Self::InUse { reason },
            ClientError::Closed | ClientError::Erased => Self::Closed { reason },
            ClientError::UnknownItem(item) => Self::UnknownItem { item, reason },
            ClientError::BadEvent { .. }
            | ClientError::TooMany { .. }
            | ClientError::Export(_)
            | ClientError::AuditExport(_)
            | ClientError::ShortHistory { .. } => Self::BadInput { reason },
            ClientError::ConsentWithdrawn { from } => Self::ConsentWithdrawn {
                since: from,
                reason,
            },
            ClientError::ListGone => Self::ListGone { reason },
            ClientError::KeyStore(_) => Self::KeyStore { reason },
            ClientError::KeyLost { .. } => Self::KeyLost { reason },
            ClientError::KeyInFolder { .. } => Self::BadOption { reason },
            ClientError::Damaged { .. }
            | ClientError::Sealed { .. }
            | ClientError::SealingDamaged { .. } => Self::Damaged { reason },
            ClientError::Io { .. } => Self::Storage { reason },
            ClientError::Meaning(_) | ClientError::TextVectors { .. } | ClientError::Data(_) => {
                Self::Catalogue { reason }
            }
            ClientError::Model(_)
            | ClientError::Recipe(_)
            | ClientError::OtherOptions { .. }
            | ClientError::OtherModel { .. }
            | ClientError::NewerRecipe { .. } => Self::Model { reason },
            ClientError::OtherListKey { .. }
            | ClientError::OldSnapshot { .. }
            | ClientError::BadSnapshot(_)
            | ClientError::WouldContributeInClear { .. }
            | ClientError::WouldUpdateInClear { .. }
            | ClientError::OtherHandle { .. }
            | ClientError::BadSealing(_)
            | ClientError::BadAnswer
            | ClientError::Order(_)
            | ClientError::Served(_)
            | ClientError::LogKey(_)
            | ClientError::Unlogged { .. }
            | ClientError::BadCatalogue(_)
            | ClientError::OldCatalogue { .. }
            | ClientError::OldLineage { .. } => Self::NotTrusted { reason },
            ClientError::Stopped(_) => Self::Stopped { reason },
            ClientError::Memory { .. }
            | ClientError::FeedbackLost
            | ClientError::UnknownEpoch(_)
            | ClientError::EpochOver { .. }
            | ClientError::NothingToTrain
            | ClientError::OtherData => Self::LeftOut { reason },
            ClientError::Internal(_) => Self::Internal { reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use lethe_client::{ModelError, Stopped};

    use super::*;

    #[test]
    fn errors_have_the_kind_that_says_what_to_do() {
        let of = |e: ClientError| FfiError::from(e);
        let away = TransportError::Connect {
            place: "example.org:4433".into(),
            why: "timed out".into(),
        };
        assert!(matches!(of(away.into()), FfiError::Offline { .. }));
        let invitation = ClientError::from(TransportError::Invitation);
        assert!(matches!(of(invitation), FfiError::BadOption { .. }));
        let withdrawn = ClientError::from(TransportError::Withdrawn);
        assert!(matches!(of(withdrawn), FfiError::Deleted { .. }));
        assert!(matches!(
            of(ClientError::NotEnrolled),
            FfiError::NeedsInvitation { .. }
        ));
        assert!(matches!(
            of(ClientError::NotJoined),
            FfiError::NotServed { .. }
        ));
        assert!(matches!(
            of(ClientError::BadAnswer),
            FfiError::NotTrusted { .. }
        ));
        assert!(matches!(
            of(ClientError::NothingToTrain),
            FfiError::LeftOut { .. }
        ));
        let unknown = of(ClientError::UnknownItem("77".into()));
        assert_eq!(
            unknown.to_string(),
            ClientError::UnknownItem("77".into()).to_string()
        );
        assert!(matches!(unknown, FfiError::UnknownItem { item, .. } if item == "77"));
    }

    #[test]
    fn an_error_on_the_line_during_a_pass_is_no_fault_of_the_model() {
        let lost = TransportError::Connect {
            place: "example.org:4433".into(),
            why: "lost".into(),
        };
        let middle = |e: Box<dyn std::error::Error + Send + Sync>| {
            FfiError::from(ClientError::from(ModelError::Middle(e)))
        };
        assert!(matches!(middle(Box::new(lost)), FfiError::Offline { .. }));
        let withdrawn = Box::new(TransportError::Withdrawn);
        assert!(matches!(middle(withdrawn), FfiError::Deleted { .. }));
        let stopped = Box::new(Stopped::Cancelled);
        assert!(matches!(middle(stopped), FfiError::Stopped { .. }));
    }
}
