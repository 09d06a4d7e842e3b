//! What monitoring sees.

use lethe_proto::admin::DeletionPhase;
use lethe_proto::ids::ShardId;

use super::Core;
use crate::records::ProposalRecord;

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardView {
    pub(crate) subjects: u64,
    pub(crate) rounds: (u32, u32),
    pub(crate) quarantined: bool,
    /// Deadlines in a row that passed without enough answers.
    pub(crate) starved: u32,
    /// Clients of the open round that have not answered.
    pub(crate) waiting: u64,
}

/// The state at one time. It names nobody.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    pub(crate) subjects: u64,
    pub(crate) release: u64,
    pub(crate) shards: Vec<ShardView>,
    /// Deletions per phase.
    pub(crate) deletions: [(&'static str, u64); 4],
    pub(crate) overdue: u64,
    /// Seconds until the first deadline of a deletion that is not done; negative when it has
    /// passed.
    pub(crate) next_deadline: Option<f64>,
    /// Seconds from acceptance until exact, of every deletion that got there.
    pub(crate) exact: Vec<f64>,
    pub(crate) proposals: u64,
    pub(crate) log_entries: u64,
    pub(crate) space_held: bool,
}

impl Core {
    pub(crate) fn view(&self) -> View {
        let count = |phase| self.deletions.values().filter(|d| d.phase == phase).count() as u64;
        let bound = self.config.deadline_days * 86_400_000;
        let left = |requested: u64| ((requested + bound) as f64 - self.unix_ms as f64) / 1000.0;
        let open = || {
            self.deletions
                .values()
                .filter(|d| d.phase != DeletionPhase::Done)
                .map(|d| left(d.requested_at))
        };
        let shard = |k: usize| {
            let run = &self.runs[k];
            ShardView {
                subjects: self.members(ShardId(k as u16)).count() as u64,
                rounds: run.progress(&self.recipe),
                quarantined: self
                    .store
                    .quarantined()
                    .iter()
                    .any(|q| usize::from(q.shard) == k),
                starved: run.open.as_ref().map_or(0, |o| o.starved),
                waiting: run.open.as_ref().map_or(0, |o| o.round.waiting() as u64),
            }
        };
        View {
            subjects: self.subjects.len() as u64,
            release: self.counters.release,
            shards: (0..self.runs.len()).map(shard).collect(),
            deletions: [
                ("accepted", count(DeletionPhase::Planned)),
                ("waiting-for-device", count(DeletionPhase::WaitingForDevice)),
                ("retraining", count(DeletionPhase::Retraining)),
                ("done", count(DeletionPhase::Done)),
            ],
            overdue: open().filter(|s| *s < 0.0).count() as u64,
            next_deadline: open().reduce(f64::min),
            exact: self
                .deletions
                .values()
                .filter_map(|d| d.exact_after_ms)
                .map(|ms| ms as f64 / 1000.0)
                .collect(),
            proposals: self.store.keys::<ProposalRecord>().len() as u64,
            log_entries: self.tree.len(),
            space_held: self.reserve.held(),
        }
    }
}
