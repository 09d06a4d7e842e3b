//! Replays: a shard trained again from nothing on what remains, with the recorded rounds. They
//! survive a restart: what they have done is in the state, and what they follow is what is live.

use lethe_proto::admin::ReplayState;
use lethe_proto::ids::Digest;

use super::{Decided, policy};
use crate::event::Event;
use crate::ids::{Fresh, Now, Refused, ShardKey};
use crate::state::{Numbers, State};
use crate::terms::Mode;

/// Deadlines that may pass without all recorded contributors before a replay is given up.
pub(crate) const MAX_STARVED: u32 = 3;

/// Why a replay is given up when its clients are not there.
pub(super) fn missing(needed: usize) -> String {
    format!(
        "not all of the {needed} clients that the round needs took part: replay again when they \
         are online, or with `--without-missing`"
    )
}

pub(super) fn start(state: &State, key: ShardKey, by: Digest, fresh: Fresh, now: Now) -> Decided {
    state.may_replay(key)?;
    let line = format!("replay {}", key.shard);
    let mut events = policy::note_by(state, by, line, fresh, now)?;
    events.extend(begin(state, key, false, now));
    Ok(events)
}

pub(super) fn begin(state: &State, shard: ShardKey, without_missing: bool, now: Now) -> Vec<Event> {
    let generation = state.core.numbers.generation + 1;
    let numbers = Numbers {
        generation,
        ..Numbers::default()
    };
    vec![
        Event::NumbersTaken { numbers },
        Event::ReplayBegan {
            shard,
            generation,
            at: now.unix_ms,
        },
        Event::ReplayScoped {
            shard,
            without_missing,
        },
    ]
}

pub(super) fn fail(state: &State, key: ShardKey, why: String, now: Now) -> Vec<Event> {
    let runs = state
        .shard(key)
        .and_then(|s| s.replay.as_ref())
        .is_some_and(|r| r.runs());
    let event = runs.then_some(Event::ReplayEnded {
        shard: key,
        at: now.unix_ms,
        hashes: None,
        failure: Some(why),
    });
    event.into_iter().collect()
}

impl State {
    /// Whether a replay of this shard may be started now.
    pub fn may_replay(&self, key: ShardKey) -> Result<(), Refused> {
        let refuse = |m: &str| Err(Refused::invalid(m));
        let Some((epoch, shard)) = self.epochs.get(&key.epoch).zip(self.shard(key)) else {
            return refuse("there is no such shard: `lethe-admin status` lists them");
        };
        match &self.rules.mode {
            Mode::Audit(a) if a.shard != key.shard || a.epoch != key.epoch => {
                return refuse("this is an audit of another shard");
            }
            Mode::Serve if epoch.partition.is_none() => {
                return refuse(
                    "the epoch has not started: nothing is trained yet that could be replayed",
                );
            }
            Mode::Serve if !shard.run.done(&epoch.terms) => {
                return refuse(
                    "the shard is being trained: replay it when `lethe-admin status` says it is \
                     done",
                );
            }
            Mode::Audit(_) | Mode::Serve => {}
        }
        if shard.replay.as_ref().is_some_and(|r| r.runs()) {
            return refuse("a replay of this shard is running already");
        }
        if self.unexecuted() {
            return Err(Refused::executing());
        }
        Ok(())
    }

    /// How far a replay got.
    pub fn replay_state(&self, key: ShardKey, now: Now) -> Result<ReplayState, Refused> {
        let known = self.shard(key).and_then(|s| s.replay.as_ref());
        let known = known.zip(self.epochs.get(&key.epoch));
        let Some((r, epoch)) = known else {
            let message = format!("no replay of {} was asked for", key.shard);
            return Err(Refused::invalid(message));
        };
        if let Some(why) = &r.failure {
            return Err(Refused::invalid(why.clone()));
        }
        let until = r.ended.unwrap_or(now.unix_ms);
        Ok(ReplayState {
            shard: key.shard,
            rounds: r.run.progress(&epoch.terms),
            hashes: r.hashes,
            seconds: until.saturating_sub(r.started) as f64 / 1000.0,
        })
    }

    /// What a replay has to give.
    pub(crate) fn expected_of(&self, key: ShardKey) -> Digest {
        match &self.rules.mode {
            Mode::Audit(a) => a.adapter,
            Mode::Serve => self.shard(key).map_or(Digest::default(), |s| s.run.hash),
        }
    }
}
