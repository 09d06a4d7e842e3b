//! How a client is.

use lethe_proto::ids::ShardId;

use crate::erasure::PendingErasure;
use crate::feedback_of_lists::ListCounts;

/// How a client is; [`crate::Client::status`].
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// There is a certificate.
    pub enrolled: bool,
    /// There is an invitation that was not used yet.
    pub invited: bool,
    /// Whose history this is, as the coordinator said.
    pub subject: Option<String>,
    /// Last second of the certificate, since 1970.
    pub certificate_until: Option<i64>,
    /// Events of the history.
    pub events: usize,
    /// Training samples of the data that counts in this epoch.
    pub training_samples: usize,
    /// The shard that the data is in.
    pub shard: Option<ShardId>,
    /// The tables that lists are made from.
    pub snapshot: Option<SnapshotStatus>,
    /// Snapshots up to this number are recalled.
    pub recalled: u64,
    /// The person takes part in the sums behind lists.
    pub contributing: bool,
    /// The last contribution that was accepted: when, in seconds since 1970, and of how many
    /// events.
    pub contributed: Option<(i64, u32)>,
    /// Items that the coordinator does not know: they are left out of contributions.
    pub refused_items: Vec<String>,
    /// What the person did with lists, by where the lists came from.
    pub feedback: Vec<ListCounts>,
    /// Consent is withdrawn from this time on, in seconds since 1970.
    pub consent_until: Option<i64>,
    /// An order to erase that waits for consent.
    pub pending_erasure: Option<PendingErasure>,
}

/// The tables that a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// Number of the snapshot.
    pub number: u64,
    /// Items in it.
    pub items: usize,
    /// Its length.
    pub bytes: usize,
    /// When it was got, in seconds since 1970.
    pub got: i64,
    /// It may be used until then without asking again, in seconds since 1970.
    pub until: i64,
}
