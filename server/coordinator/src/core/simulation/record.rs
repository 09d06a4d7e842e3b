//! What happened: for people, and to compare runs.

use std::collections::VecDeque;

use lethe_proto::ids::Digest;

/// How much of what happened, so that a test can see that it happened at all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) events: u64,
    pub(super) crashes: u64,
    pub(super) failed_starts: u64,
    pub(super) failed_writes: u64,
    pub(super) updates: u64,
    pub(super) repeated: u64,
    pub(super) deletions: u64,
    /// Updates that counted in a later round.
    pub(super) late: u64,
    /// Rounds that were added up while other things happened.
    pub(super) slow: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, o: Self) {
        self.events += o.events;
        self.crashes += o.crashes;
        self.failed_starts += o.failed_starts;
        self.failed_writes += o.failed_writes;
        self.updates += o.updates;
        self.repeated += o.repeated;
        self.deletions += o.deletions;
        self.late += o.late;
        self.slow += o.slow;
    }
}

/// A running digest, and the last lines for people.
#[derive(Default)]
pub(super) struct Trace {
    digest: Digest,
    lines: VecDeque<String>,
}

impl Trace {
    pub(super) fn line(&mut self, line: String) {
        self.digest = Digest::of(&[&self.digest.0, line.as_bytes()]);
        self.lines.push_back(line);
        if self.lines.len() > 60 {
            self.lines.pop_front();
        }
    }

    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn text(&self) -> String {
        self.lines.iter().map(|l| format!("{l}\n")).collect()
    }
}
