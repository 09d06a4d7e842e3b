//! When an epoch was founded, began, was served and ended, and which epochs are alive.

use lethe_proto::ids::{Digest, SubjectId};
use serde::{Deserialize, Serialize};

use super::{Epoch, State};
use crate::ids::{EpochNo, Now};
use crate::terms::Roll;

/// When an epoch was founded, and how far it came. All times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// When it was founded.
    pub founded: u64,
    /// The operator who asked for it; zeros: the server itself.
    pub by: Digest,
    /// File of its base model on the coordinator's machine; none: the configured one.
    pub base: Option<String>,
    /// When it began.
    pub began: Option<u64>,
    /// When it was served first.
    pub served: Option<u64>,
    /// When it was retired: another one is served.
    pub retired: Option<u64>,
    /// When it was given up.
    pub dropped: Option<u64>,
}

/// How far an epoch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// People have their places; it is trained.
    Began,
    /// The first release of it.
    Served,
    /// Another one has followed, and what it learned is gone.
    Retired,
    /// It was given up, and what it learned is gone.
    Dropped,
}

impl Life {
    /// Retired, or given up.
    pub fn ended(&self) -> bool {
        self.retired.is_some() || self.dropped.is_some()
    }

    pub(crate) fn reach(&mut self, step: Step, at: u64) {
        let when = match step {
            Step::Began => &mut self.began,
            Step::Served => &mut self.served,
            Step::Retired => &mut self.retired,
            Step::Dropped => &mut self.dropped,
        };
        when.get_or_insert(at);
    }
}

impl State {
    /// What is known of an epoch's times; none of one that an older version founded and that has
    /// come no further since.
    pub fn life(&self, no: EpochNo) -> Option<&Life> {
        self.lives.get(&no)
    }

    /// Retired, or given up.
    pub fn ended(&self, no: EpochNo) -> bool {
        self.lives.get(&no).is_some_and(Life::ended)
    }

    /// Epochs that are neither retired nor given up, oldest first: the one that is served, and the
    /// one that follows it.
    pub fn living(&self) -> impl DoubleEndedIterator<Item = (EpochNo, &Epoch)> {
        let all = self.epochs.iter().map(|(no, epoch)| (*no, epoch));
        all.filter(|(no, _)| !self.ended(*no))
    }

    /// The epoch that people join now: the newest that is alive.
    pub fn joining(&self) -> Option<EpochNo> {
        self.living().next_back().map(|(no, _)| no)
    }

    /// The epoch that follows the one that is served, while it is not served itself.
    pub fn rolling(&self) -> Option<EpochNo> {
        let serving = self.core.serving?;
        self.joining().filter(|no| *no > serving)
    }

    /// Since when an epoch is served, in milliseconds since 1970.
    pub(crate) fn served_since(&self, no: EpochNo) -> Option<u64> {
        let known = self.lives.get(&no).and_then(|l| l.served);
        let first = || {
            let mut own = self.releases.values().filter(|r| r.epoch == no);
            own.next().map(|r| r.at.saturating_mul(1000))
        };
        known.or_else(first)
    }

    /// People with a place in an epoch, as `(all, with samples)`.
    pub fn joined_in(&self, no: EpochNo) -> (usize, usize) {
        let names = self.index.joined.get(&no);
        let all = names.map_or(0, std::collections::BTreeSet::len);
        let trains = |s: &&SubjectId| {
            let profile = self.profile(s);
            profile.is_some_and(|p| p.trained(no).is_some())
        };
        let with = names.into_iter().flatten().filter(trains).count();
        (all, with)
    }

    /// So many people nobody waits longer for, before an epoch begins that follows another: a part
    /// of those in the one that is served.
    pub fn enough(&self) -> usize {
        let serving = self.core.serving;
        let names = serving.and_then(|no| self.index.joined.get(&no));
        let all = names.map_or(0, std::collections::BTreeSet::len);
        // At most a few million people: no digit is lost.
        (all as f64 * Roll::ENOUGH).ceil() as usize
    }

    /// When devices are waited for no longer, in milliseconds since 1970.
    pub fn joins_until(&self, no: EpochNo) -> Option<u64> {
        let life = self.lives.get(&no)?;
        Some(life.founded.saturating_add(self.rules.roll.join_ms))
    }

    /// When the rule founds the next epoch because of the time, in milliseconds since 1970.
    pub fn next_roll(&self) -> Option<u64> {
        let every = self.rules.roll.every_ms?;
        let since = self.served_since(self.core.serving?)?;
        Some(since.saturating_add(every))
    }

    /// People who joined and train only from the next epoch on, and all who joined.
    pub fn newcomers(&self) -> (usize, usize) {
        let joined = self.people.values().filter_map(|p| p.profile.as_ref());
        let mut all = 0;
        let mut new = 0;
        for profile in joined.filter(|p| !p.restricted) {
            all += 1;
            let place = self.core.serving.and_then(|no| profile.places.get(&no));
            // Who is there with too little history is no newcomer: the next epoch changes nothing.
            // Nor is who is away, and has joined nothing: they would start epochs for ever.
            new += usize::from(place.is_some_and(|p| p.excluded));
        }
        (new, all)
    }

    /// Whether the rule founds the next epoch now. It looks at everybody: ask seldom.
    pub fn roll_is_due(&self, now: Now) -> bool {
        if self.may_found().is_err() || self.core.serving.is_none() {
            return false;
        }
        // One that was given up is not tried again at once.
        let given_up = self.lives.values().filter_map(|life| life.dropped).max();
        let pause = self.rules.roll.join_ms;
        if given_up.is_some_and(|at| now.unix_ms < at.saturating_add(pause)) {
            return false;
        }
        if self.next_roll().is_some_and(|at| now.unix_ms >= at) {
            return true;
        }
        let Some(part) = self.rules.roll.new_people else {
            return false;
        };
        let (new, all) = self.newcomers();
        new > 0 && new as f64 >= part * all as f64
    }
}
