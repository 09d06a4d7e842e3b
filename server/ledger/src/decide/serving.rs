//! Releases: what is served, and what is retired.

use lethe_proto::ids::ShardId;
use lethe_proto::message::Refusal;

use super::{Decided, rolls};
use crate::command::Command;
use crate::event::Event;
use crate::ids::{EpochNo, Now, PartId, Refused, ShardKey};
use crate::state::{Numbers, Person, Release, ServedShard, Shard, State, Step};

pub(super) fn decide(state: &State, command: Command, now: Now) -> Decided {
    match command {
        Command::Publish { epoch } => Ok(publish(state, epoch, now)),
        _ => Ok(vec![]),
    }
}

impl State {
    /// Whether a release of an epoch's shards, as trained, is due.
    pub(crate) fn may_publish(&self, no: EpochNo) -> bool {
        let Some(epoch) = self.epochs.get(&no).filter(|e| e.trained()) else {
            return false;
        };
        if self.ended(no) {
            return false;
        }
        if self.unexecuted() || self.core.serving.is_some_and(|serving| serving > no) {
            return false;
        }
        let Some((_, release)) = self.current_release() else {
            return true;
        };
        let trained = epoch.shards.iter().map(|s| s.run.hash);
        release.epoch != no || !release.shards.iter().map(|s| s.digest).eq(trained)
    }

    /// Whether what an epoch learned is to go: another one serves, nothing is being executed, and
    /// no deletion that is not done yet is about it.
    pub(crate) fn may_retire(&self, no: EpochNo) -> bool {
        let followed = self.core.serving.is_some_and(|serving| serving > no);
        let Some(epoch) = self.epochs.get(&no).filter(|_| followed) else {
            return false;
        };
        let about = |id: &u64| {
            let deletion = self.deletions.get(id);
            deletion.is_some_and(|d| d.rolled_back.iter().any(|r| r.shard.epoch == no))
        };
        let waited_for = self.index.waiting.iter().any(about);
        let joined = self.index.joined.contains_key(&no);
        let learned = |s: &Shard| !s.run.stages.is_empty() || s.run.state.is_some();
        let left = joined
            || epoch
                .shards
                .iter()
                .any(|s| learned(s) || s.replay.is_some());
        self.is_quiet() && !waited_for && (left || !self.ended(no))
    }

    /// Refuses to serve while what is served is not exact.
    pub fn may_serve(&self) -> Result<(), Refused> {
        if self.holds_serving() || !self.core.lost.is_empty() {
            return Err(Refused::executing());
        }
        Ok(())
    }

    /// Whether this release is the one that may be served now.
    pub fn current(&self, release: u64) -> Result<(), Refused> {
        self.may_serve()?;
        let now = self.current_release().map_or(0, |(no, _)| no);
        if release != now {
            let message =
                format!("release {release} was withdrawn, the current one is {now}: fetch it");
            return Err(Refused::new(Refusal::StaleRelease, message));
        }
        self.release_is_logged()
    }

    /// Refuses to serve a release that the log does not hold yet.
    pub fn release_is_logged(&self) -> Result<(), Refused> {
        match (self.current_release(), self.served_release()) {
            (Some((no, _)), None) => {
                let message =
                    format!("the log does not hold release {no} yet: try again in a moment");
                Err(Refused::new(Refusal::Busy, message))
            }
            _ => Ok(()),
        }
    }

    /// Releases up to this number are recalled: nothing made with them may be shown.
    pub fn recalled(&self) -> u64 {
        self.index.recalled
    }
}

fn publish(state: &State, no: EpochNo, now: Now) -> Vec<Event> {
    let epoch = state.epochs.get(&no).filter(|_| state.may_publish(no));
    let Some(epoch) = epoch else {
        return vec![];
    };
    let served = |(k, shard): (usize, &Shard)| ServedShard {
        digest: shard.run.hash,
        value: shard.run.state.clone(),
        stage: shard.run.stage - 1,
        census: state.census(at(no, k), shard.run.stage - 1),
    };
    let shards = epoch.shards.iter().enumerate().map(served).collect();
    let mut events = released(state, no, shards, now);
    if state.core.serving != Some(no) {
        events.push(rolls::reached(no, Step::Served, now));
    }
    events
}

fn at(epoch: EpochNo, k: usize) -> ShardKey {
    ShardKey {
        epoch,
        shard: ShardId(k as u16),
    }
}

fn released(state: &State, epoch: EpochNo, shards: Vec<ServedShard>, now: Now) -> Vec<Event> {
    let no = state.core.numbers.release + 1;
    let numbers = Numbers {
        release: no,
        ..Numbers::default()
    };
    // Rows of another epoch are not used in this one.
    let own = |p: &&std::sync::Arc<Person>| {
        let shards = p.errors.iter().flat_map(|e| &e.shards);
        shards.into_iter().any(|(key, _)| key.epoch == epoch)
    };
    let measured = state.people.values().filter(own);
    let release = Release {
        at: now.unix_ms / 1000,
        epoch,
        part: PartId::Adapters,
        shards,
        validation: measured.map(|p| p.number.0).collect(),
        recalled: false,
    };
    vec![
        Event::NumbersTaken { numbers },
        Event::Released {
            no,
            release: Box::new(release),
        },
    ]
}

/// What is served after shards were rolled back: of those the newest checkpoint that is left, of
/// the others what was served.
fn left(state: &State, release: &Release) -> Vec<ServedShard> {
    let Some(epoch) = state.epochs.get(&release.epoch) else {
        return release.shards.clone();
    };
    let mut out = vec![];
    for (k, served) in release.shards.iter().enumerate() {
        let Some(shard) = epoch.shards.get(k) else {
            continue;
        };
        // The served adapter is still there: as a checkpoint, or as what everything starts from.
        let mut kept = shard
            .run
            .stages
            .values()
            .filter_map(|s| s.checkpoint.as_ref());
        let stays = match &served.value {
            Some(value) => kept.any(|c| c.value == *value),
            None => served.digest == epoch.initial,
        };
        let (stage, newest) = shard.run.newest();
        let (digest, value, stage) = if stays {
            (served.digest, served.value.clone(), served.stage)
        } else {
            let digest = newest.map_or(epoch.initial, |c| c.hash);
            (digest, newest.map(|c| c.value.clone()), stage)
        };
        out.push(ServedShard {
            digest,
            value,
            stage,
            census: state.census(at(release.epoch, k), stage),
        });
    }
    out
}

/// If what is served is no longer what the newest release says, recalls that one, and all before
/// it, and makes another.
pub(super) fn after_rollback(state: &State, now: Now) -> Vec<Event> {
    let Some((no, release)) = state.current_release() else {
        return vec![];
    };
    let shards = left(state, release);
    // By where it is, too: what is destroyed cannot be served, even if what is left is equal.
    let same = |a: &ServedShard, b: &ServedShard| a.digest == b.digest && a.value == b.value;
    if shards.iter().zip(&release.shards).all(|(a, b)| same(a, b)) {
        return vec![];
    }
    let mut events = vec![Event::Recalled { up_to: no }];
    events.extend(released(state, release.epoch, shards, now));
    events
}

/// A release of what is served, under a number that nobody has seen.
pub(super) fn again(state: &State, now: Now) -> Vec<Event> {
    if let Some((_, release)) = state.current_release() {
        let shards = left(state, release);
        return released(state, release.epoch, shards, now);
    }
    let Some(no) = state.newest_begun() else {
        return vec![];
    };
    let shards = state.epochs.get(&no).into_iter().flat_map(|e| {
        let initial = e.initial;
        e.shards.iter().map(move |s| (initial, s.run.newest()))
    });
    let served = shards
        .enumerate()
        .map(|(k, (initial, (stage, newest)))| ServedShard {
            digest: newest.map_or(initial, |c| c.hash),
            value: newest.map(|c| c.value.clone()),
            stage,
            census: state.census(at(no, k), stage),
        });
    let served: Vec<ServedShard> = served.collect();
    released(state, no, served, now)
}
