//! Shards that wait: a damaged one until an operator has looked, any other because one says so.
//!
//! A damaged shard is rolled back at once, so that what is served is exact. It is trained anew when
//! an operator releases it, or by itself after a time: a disk that damages a shard again and again
//! costs people's devices their work, but deletions that wait for the shard must not wait for ever.

use lethe_proto::ids::Digest;
use lethe_proto::people::HeldShard;

use super::{Decided, policy};
use crate::event::Event;
use crate::ids::{Fresh, Now, Refused, ShardKey};
use crate::state::{ShardHold, State};

pub(super) fn hold(state: &State, shard: ShardKey, by: Digest, fresh: Fresh, now: Now) -> Decided {
    let no = shard.shard;
    if state.shard(shard).is_none() {
        let message = "there is no such shard: `lethe-admin status` lists them";
        return Err(Refused::invalid(message));
    }
    let known = state.holds.get(&shard).copied();
    if known.is_some_and(|h| h.until.is_none()) {
        let message = format!(
            "{no} is held already: `lethe-admin shard release {}` ends that",
            no.0
        );
        return Err(Refused::invalid(message));
    }
    let mut events = policy::note_by(state, by, format!("hold {no}"), fresh, now)?;
    // One that would end by itself does not any more.
    let hold = ShardHold {
        since: known.map_or(now.unix_ms, |h| h.since),
        until: None,
        damaged: known.is_some_and(|h| h.damaged),
    };
    events.push(Event::ShardHeld { shard, hold });
    Ok(events)
}

pub(super) fn release(
    state: &State,
    shard: ShardKey,
    by: Digest,
    fresh: Fresh,
    now: Now,
) -> Decided {
    let no = shard.shard;
    if !state.is_on_hold(shard, now) {
        let message = format!("{no} is not held: `lethe-admin shard list` shows those that are");
        return Err(Refused::invalid(message));
    }
    let mut events = policy::note_by(state, by, format!("release {no}"), fresh, now)?;
    events.push(Event::ShardReleased { shard });
    Ok(events)
}

/// Holds that are over, and those of shards that were found damaged now.
pub(super) fn started(state: &State, lost: &[ShardKey], now: Now) -> Vec<Event> {
    let over = state.holds.keys().filter(|k| !state.is_on_hold(**k, now));
    let released = over.map(|shard| Event::ShardReleased { shard: *shard });
    let mut events: Vec<Event> = released.collect();
    let wait = state.rules.quarantine_ms;
    for shard in lost.iter().filter(|_| wait > 0) {
        let known = state.holds.get(shard);
        let stays = known.is_some_and(|h| h.until.is_none());
        let hold = ShardHold {
            since: now.unix_ms,
            until: (!stays).then_some(now.unix_ms.saturating_add(wait)),
            damaged: true,
        };
        events.push(Event::ShardHeld {
            shard: *shard,
            hold,
        });
    }
    events
}

impl State {
    /// Nothing is trained in this shard now.
    pub fn is_on_hold(&self, key: ShardKey, now: Now) -> bool {
        let hold = self.holds.get(&key);
        hold.is_some_and(|h| h.until.is_none_or(|until| now.unix_ms < until))
    }

    /// Shards in which nothing is trained now.
    pub fn held_shards(&self, now: Now) -> Vec<HeldShard> {
        let on_hold = self.holds.iter().filter(|(k, _)| self.is_on_hold(**k, now));
        on_hold
            .map(|(key, hold)| HeldShard {
                epoch: key.epoch,
                shard: key.shard,
                damaged: hold.damaged,
                since: hold.since / 1000,
                until: hold.until.map(|t| t / 1000),
            })
            .collect()
    }
}
