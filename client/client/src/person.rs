//! What a device knows of its person and of the coordinator, without the history.

use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::lists::ListTerms;
use lethe_receipt::order::SeenHead;
use lethe_transport::identity::Identity;
use serde::{Deserialize, Serialize};

use crate::history::{Cutoffs, Erasure, Joined};

/// The sealed file `identity`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Person {
    pub(crate) identity: Option<Identity>,
    /// Authority that the coordinator's certificate must come from, DER.
    pub(crate) authority: Vec<u8>,
    /// Salt of the commitments to the history.
    pub(crate) salt: [u8; 32],
    /// How likes and dislikes are divided, where the app said so.
    pub(crate) cutoffs: Option<Cutoffs>,
    /// What the first epoch was joined with, in folders of versions that knew no other: taken over
    /// into the file `epochs`.
    pub(crate) joined: Option<Joined>,
    /// What the last join offered there, likewise.
    pub(crate) offered: Option<Joined>,
    /// Consent is withdrawn from this time on, in seconds since 1970.
    pub(crate) consent_until: Option<i64>,
    /// The newest lineage of a release seen: deletions up to this number are in what is served.
    pub(crate) lineage: u64,
    /// Whose history this is, as the coordinator said at an enrolment.
    pub(crate) subject: Option<SubjectId>,
    /// Digest of the newest invitation that was used or refused.
    pub(crate) invited: Option<Digest>,
    /// An invitation that was not used yet.
    pub(crate) invitation: Option<String>,
    /// Key of the log that orders to erase must be in (verifier key text).
    pub(crate) log_key: Option<String>,
    /// The newest head of that log that was seen.
    pub(crate) head: Option<SeenHead>,
    /// What was removed for each deletion, until the coordinator knows.
    pub(crate) removed: Vec<(u64, u32)>,
    /// Events that orders have removed since the person last consented to one.
    pub(crate) ordered_away: u64,
    /// An erasure that has begun: what is in `removed` was counted, the history may still have it.
    pub(crate) erasing: Option<Erasure>,
    pub(crate) lists: Lists,
}

/// What is known of the coordinator's lists.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Lists {
    /// Key that verifies snapshots (verifier key text), kept at first use.
    pub(crate) key: Option<String>,
    /// The highest number of a snapshot that was taken.
    pub(crate) seen: u64,
    /// Snapshots up to this number are recalled.
    pub(crate) recalled: u64,
    /// The snapshot may be used until then, in seconds since 1970.
    pub(crate) until: i64,
    /// What the coordinator asks of contributions.
    pub(crate) terms: Option<ListTerms>,
    /// What the person contributes, as the coordinator accepted it last.
    pub(crate) contributed: Option<Accepted>,
    /// The app or the person does not contribute.
    pub(crate) opted_out: bool,
    /// The coordinator does not know yet that nothing is contributed any more.
    pub(crate) to_withdraw: bool,
}

/// A contribution that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) digest: Digest,
    /// Seconds since 1970.
    pub(crate) at: i64,
    pub(crate) events: u32,
}

/// The sealed file `list`: the last list that the coordinator helped to rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeptList {
    /// `(item, score)`, best first.
    pub(crate) items: Vec<(String, f32)>,
    /// It must not be shown after this time, in seconds since 1970: a deletion may have changed
    /// what it stands on.
    pub(crate) until: i64,
    /// The release that it was ranked with.
    pub(crate) release: u64,
}
