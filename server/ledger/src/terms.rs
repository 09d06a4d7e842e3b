//! What is decided elsewhere: by the recipe of an epoch ([`Terms`]) and by the configuration
//! ([`Rules`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lethe_learn::seed::Seed;
use lethe_proto::ids::{Digest, ShardId};
use serde::{Deserialize, Serialize};

use crate::ids::{Contributor, EpochNo, RunKey};

/// Which slice a subject's data enters with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// A keyed hash of the subject.
    Hash,
    /// The longer somebody is here when the epoch starts, the earlier.
    Tenure,
}

/// How client results become the shard's next adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aggregation {
    /// PPLR's balance weights in mode `shared`.
    Shared,
    /// Weights by sample count.
    Fedavg,
    /// Every client keeps parameters of its own.
    Personalized,
}

/// The numbers of a recipe that decide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// Shards.
    pub shards: u16,
    /// Anchors of the partition.
    pub anchors: u16,
    /// Slices per shard, and so stages.
    pub slices: u16,
    /// Which slice a subject is in.
    pub placement: Placement,
    /// Rounds per stage.
    pub rounds: u16,
    /// Clients per round, at most.
    pub cohort: u32,
    /// A round closes as soon as so many have answered.
    pub goal: Option<u32>,
    /// An update may count so many rounds late.
    pub staleness: Option<u16>,
    /// Fewest contributions with which a round may close at its deadline.
    pub quorum: u32,
    /// Seconds until a round closes.
    pub deadline_s: u64,
    /// Validation samples of a client.
    pub validation: u32,
    /// Samples that a client trains on in a round.
    pub samples: u32,
    /// Width of the model.
    pub hidden: u32,
    /// Seed of the epoch.
    pub seed: u64,
    /// Aggregation rule.
    pub aggregation: Aggregation,
    /// Updates feed back what they lose.
    pub feeds_back: bool,
}

impl Terms {
    /// Seed of placements.
    pub fn epoch_seed(&self) -> Seed {
        Seed::from_u64(self.seed).derive("epoch", &[])
    }

    /// Seed of a shard.
    pub fn shard_seed(&self, shard: ShardId) -> Seed {
        Seed::from_u64(self.seed).derive("shard", &[&shard.0.to_le_bytes()])
    }

    /// Seed of a round. It depends on stage and round but on no generation: a replay draws the
    /// same.
    pub fn round_seed(&self, run: &RunKey) -> Seed {
        let parts: [&[u8]; 2] = [&run.stage.to_le_bytes(), &run.round.to_le_bytes()];
        self.shard_seed(run.shard).derive("round", &parts)
    }

    /// Milliseconds until a round closes.
    pub fn deadline_ms(&self) -> u64 {
        self.deadline_s * 1000
    }
}

/// Recorded rounds, and what must come out.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The epoch of the audit.
    pub epoch: EpochNo,
    /// The shard.
    pub shard: ShardId,
    /// Whose updates count in each `(stage, round)`.
    pub rounds: BTreeMap<(u16, u16), Vec<Contributor>>,
    /// The adapter's hash.
    pub adapter: Digest,
}

/// What the ledger is for.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Mode {
    /// A federation.
    #[default]
    Serve,
    /// An audit trains this and nothing else.
    Audit(Arc<Schedule>),
}

/// When the next epoch is founded by itself, and when one that follows another begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roll {
    /// Milliseconds after which an epoch that is served is followed by another.
    pub every_ms: Option<u64>,
    /// The part of those who joined, 0 to 1, that trains only from the next epoch on: at this part
    /// it is founded.
    pub new_people: Option<f64>,
    /// Milliseconds for which devices are waited for before an epoch begins without them, or is
    /// dropped for want of people.
    pub join_ms: u64,
}

impl Roll {
    /// The part of those in the epoch that is served, 0 to 1, that nobody waits longer for.
    pub const ENOUGH: f64 = 0.9;
}

impl Default for Roll {
    fn default() -> Self {
        Self {
            every_ms: None,
            new_people: None,
            join_ms: 72 * 3_600_000,
        }
    }
}

/// What the configuration decides. Set by `Command::Started`, never stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The epoch starts when this many people have joined.
    pub min_subjects: usize,
    /// Seconds that a device may take to erase.
    pub erase_wait_s: u64,
    /// Milliseconds for which accepted deletions wait for others, to be executed together.
    pub erase_window_ms: u64,
    /// Key that verifies the lists' snapshots; empty: there are no lists.
    pub lists_key: String,
    /// Days within which a deletion has to be done.
    pub deadline_days: u64,
    /// Hours for which a device may use a release without asking again.
    pub release_hours: u64,
    /// Milliseconds for which a shard that was damaged waits for an operator, at most; 0: it is
    /// trained anew at once.
    pub quarantine_ms: u64,
    /// Milliseconds after which the result of a job is not waited for any longer.
    pub job_wait_ms: u64,
    /// When the next epoch is founded, and when it begins.
    pub roll: Roll,
    /// What the ledger is for.
    pub mode: Mode,
    /// Version and build, as it appears in receipts.
    pub build: String,
    /// Items of the catalogue: requests may name these.
    pub items: Arc<BTreeSet<String>>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            min_subjects: 8,
            erase_wait_s: 600,
            erase_window_ms: 0,
            lists_key: String::new(),
            deadline_days: 30,
            release_hours: 72,
            quarantine_ms: 0,
            job_wait_ms: 600_000,
            roll: Roll::default(),
            mode: Mode::Serve,
            build: String::new(),
            items: Arc::default(),
        }
    }
}
