//! Shards that wait for an operator. Public: they name nobody.

use serde::{Deserialize, Serialize};

/// Nothing is trained in a shard. What is served, and deletions, go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardHold {
    /// Since when, in milliseconds since 1970.
    pub since: u64,
    /// It ends by itself then, likewise; none: an operator ends it.
    pub until: Option<u64>,
    /// The shard's database was damaged.
    pub damaged: bool,
}
