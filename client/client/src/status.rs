//! How a client is.

use lethe_proto::epochs::TrainsFrom;
use lethe_proto::ids::ShardId;

use crate::epochs::Needs;
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
    /// Events among them whose items are not in the catalogue (any more): lists, sums and prompts
    /// leave them out, and the history keeps them.
    pub unknown_events: usize,
    /// Version of the catalogue in force; 1: the one that the app ships.
    pub catalogue: u32,
    /// Training samples of the data that counts in this epoch.
    pub training_samples: usize,
    /// The shard that the data is in.
    pub shard: Option<ShardId>,
    /// Number of the newest epoch that the device joined.
    pub epoch: Option<u32>,
    /// From when on the person's data trains adapters, as the coordinator said at the last join;
    /// forgotten with the process, and unknown to coordinators of before.
    pub trains: Option<TrainsFrom>,
    /// What the device needs to take part in the newest epoch: the app has to load it. Lists go on
    /// without.
    pub needs: Option<Needs>,
    /// The tables that lists are made from.
    pub snapshot: Option<SnapshotStatus>,
    /// Snapshots up to this number are recalled.
    pub recalled: u64,
    /// The person takes part in the sums behind lists.
    pub contributing: bool,
    /// How it does, as far as is known.
    pub contributes: Contributes,
    /// The last contribution that was accepted: when, in seconds since 1970, and of how many
    /// events.
    pub contributed: Option<(i64, u32)>,
    /// Items that the coordinator does not know: they are left out of contributions.
    pub refused_items: Vec<String>,
    /// Events of the history that the last sealed contribution left out, because the tables do not
    /// name their items: a refusal by name would tell the coordinator of them.
    pub left_out: usize,
    /// What the person did with lists, by where the lists came from.
    pub feedback: Vec<ListCounts>,
    /// Consent is withdrawn from this time on, in seconds since 1970.
    pub consent_until: Option<i64>,
    /// An order to erase that waits for consent.
    pub pending_erasure: Option<PendingErasure>,
    /// The person's data is restricted, as the coordinator said last: it is kept and used for
    /// nothing, and nothing is contributed.
    pub restricted: bool,
    /// Why nothing is trained on the person's data, in words of the coordinator; empty when it is,
    /// or when nothing is known of that.
    pub not_trained: String,
}

/// Who can read what a person contributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contributes {
    /// They do not contribute.
    No,
    /// Nothing was contributed yet: how is for the coordinator to say.
    NotYet,
    /// The coordinator reads it.
    InClear,
    /// Only the tally reads it, and never again is anything contributed in clear
    /// ([`crate::Client::accept_embedded`]).
    Sealed {
        /// Key of the tally (verifier key text): compare it with what its operator publishes. None:
        /// the coordinator is another one than before, and its tally is not known yet.
        tally: Option<String>,
    },
    /// The file that says to whom contributions are sealed is damaged: nothing is contributed
    /// until the app decides ([`crate::ClientError::SealingDamaged`]).
    Blocked,
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
