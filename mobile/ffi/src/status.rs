//! How a client is.

use lethe_client::{
    Contributes, ListCounts, Outcome, PendingErasure, SnapshotStatus, Status, TrainsFrom,
};

use crate::FfiListSource;

/// Who can read what a person contributes.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FfiContributes {
    /// They do not contribute.
    No,
    /// Nothing was contributed yet: how is for the coordinator to say.
    NotYet,
    /// The coordinator reads it.
    InClear,
    /// Only the tally reads it, and never again is anything contributed in clear.
    Sealed {
        /// Key of the tally: compare it with what its operator publishes. None: the coordinator is
        /// another one than before, and its tally is not known yet.
        tally: Option<String>,
    },
    /// The file that says to whom contributions are sealed is damaged: nothing is contributed
    /// until the app calls `FfiClient.accept_embedded` or `FfiClient.erase`.
    Blocked,
}

/// The tables that a device holds.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FfiTables {
    /// Number of the snapshot.
    pub number: u64,
    /// Items in it.
    pub items: u32,
    /// Its length.
    pub bytes: u64,
    /// When it was got, in seconds since 1970.
    pub got: i64,
    /// It may be used until then without asking again, in seconds since 1970.
    pub until: i64,
}

/// A contribution that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FfiContribution {
    /// When, in seconds since 1970.
    pub time: i64,
    /// Of how many events.
    pub events: u32,
}

/// What the person did with lists of one kind.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FfiListCounts {
    /// Where the lists came from.
    pub source: FfiListSource,
    /// Items that were opened, played or put into the basket.
    pub clicked: u32,
    /// Items that were liked.
    pub liked: u32,
    /// Items that were sent away.
    pub dismissed: u32,
    /// Items that were shown, and nothing happened.
    pub ignored: u32,
}

/// An order to erase (almost) everything, which waits for the person's consent.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FfiPendingErasure {
    /// Numbers of the deletions behind it, as in receipts.
    pub deletions: Vec<u64>,
    /// Events that would go.
    pub events: u32,
    /// Events that are there.
    pub of: u32,
    /// Everything at or after this time would go, in seconds since 1970; none: only items.
    pub since: Option<i64>,
}

/// How a client is.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct FfiStatus {
    /// There is a certificate: the device has enrolled.
    pub enrolled: bool,
    /// There is an invitation that was not used yet.
    pub invited: bool,
    /// Whose history this is, as the coordinator said.
    pub subject: Option<String>,
    /// Last second of the certificate, since 1970.
    pub certificate_until: Option<i64>,
    /// Events of the history.
    pub events: u32,
    /// Events among them whose items are not in the catalogue (any more).
    pub unknown_events: u32,
    /// Version of the catalogue in force; 1: the one that the app ships.
    pub catalogue: u32,
    /// Training samples of the data that counts in this epoch.
    pub training_samples: u32,
    /// Number of the newest epoch that the device joined.
    pub epoch: Option<u32>,
    /// The person's data trains adapters now.
    pub trains: bool,
    /// Why nothing is trained on the person's data, in words of the coordinator; empty when it is,
    /// or when nothing is known of that.
    pub not_trained: String,
    /// The app has to load another model, or be updated, before the device can take part in the
    /// newest epoch. Lists go on without.
    pub needs_model: bool,
    /// The tables that lists are made from.
    pub tables: Option<FfiTables>,
    /// The person takes part in the sums behind lists.
    pub contributing: bool,
    /// How it does, as far as is known.
    pub contributes: FfiContributes,
    /// The last contribution that was accepted.
    pub contributed: Option<FfiContribution>,
    /// What the person did with lists, by where the lists came from.
    pub feedback: Vec<FfiListCounts>,
    /// Consent is withdrawn from this time on, in seconds since 1970.
    pub consent_until: Option<i64>,
    /// An order to erase that waits for consent.
    pub pending_erasure: Option<FfiPendingErasure>,
    /// The person's data is restricted: it is kept and used for nothing.
    pub restricted: bool,
}

/// A count for languages whose numbers have 32 bits; none here comes near the end of them.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl From<Contributes> for FfiContributes {
    fn from(contributes: Contributes) -> Self {
        match contributes {
            Contributes::No => Self::No,
            Contributes::NotYet => Self::NotYet,
            Contributes::InClear => Self::InClear,
            Contributes::Sealed { tally } => Self::Sealed { tally },
            Contributes::Blocked => Self::Blocked,
        }
    }
}

impl From<SnapshotStatus> for FfiTables {
    fn from(s: SnapshotStatus) -> Self {
        Self {
            number: s.number,
            items: count(s.items),
            bytes: s.bytes as u64,
            got: s.got,
            until: s.until,
        }
    }
}

impl From<ListCounts> for FfiListCounts {
    fn from(c: ListCounts) -> Self {
        Self {
            source: c.source.into(),
            clicked: c.of(Outcome::Clicked),
            liked: c.of(Outcome::Liked),
            dismissed: c.of(Outcome::Dismissed),
            ignored: c.of(Outcome::Ignored),
        }
    }
}

impl From<PendingErasure> for FfiPendingErasure {
    fn from(order: PendingErasure) -> Self {
        Self {
            deletions: order.deletions,
            events: count(order.events),
            of: count(order.of),
            since: order.from,
        }
    }
}

impl From<Status> for FfiStatus {
    fn from(s: Status) -> Self {
        let contributed = s.contributed.map(|c| FfiContribution {
            time: c.0,
            events: c.1,
        });
        Self {
            enrolled: s.enrolled,
            invited: s.invited,
            subject: s.subject,
            certificate_until: s.certificate_until,
            events: count(s.events),
            unknown_events: count(s.unknown_events),
            catalogue: s.catalogue,
            training_samples: count(s.training_samples),
            epoch: s.epoch,
            trains: matches!(s.trains, Some(TrainsFrom::Now { .. })),
            not_trained: s.not_trained,
            needs_model: s.needs.is_some(),
            tables: s.snapshot.map(Into::into),
            contributing: s.contributing,
            contributes: s.contributes.into(),
            contributed,
            feedback: s.feedback.into_iter().map(Into::into).collect(),
            consent_until: s.consent_until,
            pending_erasure: s.pending_erasure.map(Into::into),
            restricted: s.restricted,
        }
    }
}
