//! What happened: for people, and to compare runs.

use std::collections::{BTreeMap, VecDeque};

use lethe_proto::ids::Digest;

/// How often things happened in a run, so that a test can see that they happened at all.
#[derive(Clone, Debug, Default)]
pub(super) struct Count(pub(super) BTreeMap<&'static str, u64>);

impl Count {
    pub(super) fn add(&mut self, what: &'static str, more: u64) {
        *self.0.entry(what).or_default() += more;
    }

    pub(super) fn one(&mut self, what: &'static str) {
        self.add(what, 1);
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
        if self.lines.len() > 100_000 {
            self.lines.pop_front();
        }
    }

    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn text(&self) -> String {
        let most = std::env::var("LETHE_SIM_STORY").map_or(60, |n| n.parse().unwrap());
        let skip = self.lines.len().saturating_sub(most);
        let lines = self.lines.iter().skip(skip);
        lines.map(|l| format!("{l}\n")).collect()
    }
}
