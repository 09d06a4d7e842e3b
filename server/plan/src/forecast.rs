//! What a plan will cost, said before it is executed.

use lethe_proto::ids::ShardId;
use serde::{Deserialize, Serialize};

use crate::inventory::{Inventory, ShardInventory};

/// What rounds have cost so far, in sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Updates aggregated.
    pub client_rounds: u64,
    /// Milliseconds in which at least one round was open.
    pub busy_ms: u64,
    /// Milliseconds between a client's start in a round and its update, summed.
    pub client_ms: u64,
    /// Bytes of training passes and updates, both ways.
    pub bytes: u64,
}

/// A cost, forecast or actual. Times and bytes are 0 when nothing was measured yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Rounds.
    pub rounds: u32,
    /// Updates, one per client and round.
    pub client_rounds: u64,
    /// Samples trained on, counted once per round.
    pub samples: u64,
    /// Minutes that devices work, summed.
    pub client_minutes: f64,
    /// Bytes, both ways.
    pub bytes: u64,
    /// Seconds until everything is retrained, if enough devices are there.
    pub seconds: f64,
}

/// A forecast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Shards that are retrained, with first and last stage.
    pub shards: Vec<(ShardId, u16, u16)>,
    /// Retraining them.
    pub cost: Cost,
    /// Retraining everything.
    pub everything: Cost,
    /// Per retrained shard: mean training loss of the checkpoint served meanwhile (`None`: the
    /// untrained adapter) and of what is served now.
    pub degraded: Vec<(ShardId, Option<f32>, Option<f32>)>,
}

/// Cost of training `stages` of a shard on members for which `stays` holds.
pub(crate) fn stages_cost(
    inventory: &Inventory,
    shard: &ShardInventory,
    stages: std::ops::RangeInclusive<u16>,
    stays: impl Fn(&crate::Member) -> bool,
) -> Cost {
    let mut cost = Cost::default();
    for stage in stages {
        let eligible: Vec<u32> = shard
            .members
            .iter()
            .filter(|m| m.slice < stage && !m.idle && m.samples > 0 && stays(m))
            .map(|m| m.samples.min(inventory.samples_per_round))
            .collect();
        let n = eligible.len() as u64;
        let cohort = n.min(u64::from(inventory.cohort));
        let all: u64 = eligible.iter().map(|s| u64::from(*s)).sum();
        let per_round = (all * cohort).checked_div(n).unwrap_or(0);
        let rounds = u64::from(inventory.rounds_per_stage);
        cost.rounds += inventory.rounds_per_stage;
        cost.client_rounds += rounds * cohort;
        cost.samples += rounds * per_round;
    }
    cost
}

impl Cost {
    pub(crate) fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.client_rounds += other.client_rounds;
        self.samples += other.samples;
    }

    /// With times and bytes at the measured rates.
    pub(crate) fn at(mut self, rates: &Rates) -> Self {
        let per = |sum: u64| sum as f64 / rates.client_rounds.max(1) as f64;
        let n = self.client_rounds as f64;
        self.client_minutes = n * per(rates.client_ms) / 60_000.0;
        self.bytes = (n * per(rates.bytes)) as u64;
        self.seconds = n * per(rates.busy_ms) / 1000.0;
        self
    }
}
