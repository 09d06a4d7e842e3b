//! What a restart forgets: open rounds, offers, pace, and which versions of members are in the log.

use std::collections::BTreeMap;

use lethe_proto::epochs::Lacks;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::round::Round;

use crate::ids::{Contributor, EpochNo, RunKey, ShardKey};

/// The part of the state that is not stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volatile {
    /// Open rounds, by generation.
    pub open: BTreeMap<u32, Open>,
    /// Closed rounds of the stage whose late updates still count, by generation and round.
    pub past: BTreeMap<u32, BTreeMap<u16, Round>>,
    /// Runs whose round was abandoned, and the uptime at which it is tried again.
    pub abandoned: BTreeMap<u32, u64>,
    /// When all that an operator has entered into the log would have been, one a period.
    pub pace: BTreeMap<Digest, u64>,
    /// Invitations of people of whom nothing was known, by the operator who made them.
    pub invited: BTreeMap<Digest, Invited>,
    /// Versions of who is trained on in each shard.
    pub versions: BTreeMap<ShardKey, Versions>,
    /// Milliseconds between tasks and updates that no closed round has taken along yet.
    pub client_ms: u64,
    /// Devices that cannot take part in an epoch with what they have, and why.
    pub lacks: BTreeMap<EpochNo, BTreeMap<Digest, Lacks>>,
    /// Devices that can measure nothing, and the release that they were asked about.
    pub unmeasured: BTreeMap<Digest, u64>,
    /// Who let the deadlines of rounds pass.
    pub silent: BTreeMap<SubjectId, Silence>,
    /// When the coordinator started, in milliseconds since 1970.
    pub started_at: u64,
}

/// How long somebody has not answered rounds that they were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Silence {
    /// Deadlines in a row that passed without their answer.
    pub deadlines: u32,
    /// Until this uptime they are asked only if there would be too few others.
    pub until: u64,
}

/// Invitations of an operator that are entered into the log together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Invited {
    /// How many the log does not have yet.
    pub count: u64,
    /// The uptime at which it was told last.
    pub noted: Option<u64>,
}

/// A round that is being trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// Which.
    pub run: RunKey,
    /// Who was asked, who answered.
    pub round: Round,
    /// When each client was given its task.
    pub began: BTreeMap<SubjectId, u64>,
    /// Deadlines in a row that passed without enough answers.
    pub starved: u32,
    /// Since it is being added up: what counts.
    pub sealed: Option<Sealed>,
}

/// What counts in a round that is being added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Whose updates.
    pub counted: Vec<Contributor>,
    /// Since which uptime.
    pub since: u64,
}

/// Versions of who is trained on in a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// Grows when they change, or their data does.
    pub members: u64,
    /// The version that the log is known to hold.
    pub logged: u64,
}
