//! What operators ask about people whose data is not used, about shards that wait, and about
//! replays that have to do without somebody; and what a device is told of its own person.

use serde::{Deserialize, Serialize};

use crate::ids::SubjectId;

/// How a device's person stands: answer to [`crate::message::Request::Standing`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The person's data is restricted: it is kept and used for nothing, and nothing of it is
    /// taken.
    pub restricted: bool,
    /// Number of the newest deletion about this person that was executed; 0: none. What the person
    /// contributed before it does not count any more.
    pub left: u64,
    /// Why nothing is trained on the person's data, in words; empty when it is.
    pub not_trained: String,
}

/// A restriction of a person's data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestrictionState {
    /// Number of the deletion that it is.
    pub deletion: u64,
    /// Whose data.
    pub subject: SubjectId,
    /// Since when, in Unix seconds.
    pub since: u64,
    /// It is done: its receipt is there.
    pub done: bool,
    /// When it was lifted, in Unix seconds.
    pub lifted: Option<u64>,
}
