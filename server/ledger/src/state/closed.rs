//! What a restored data folder names and nobody can read: its keys were destroyed after the backup
//! was made.

use std::collections::BTreeSet;

use super::{Run, State};
use crate::event::Event;
use crate::ids::{Now, Owner, ShardKey, StageKey};

impl State {
    /// Shards whose state stands on a stage that no key opens, and that nothing is about to destroy
    /// anyway: they begin anew, as damaged ones do. Those that are known to be lost are left out.
    pub(crate) fn closed_shards(&self) -> Vec<ShardKey> {
        let going = self.going();
        let living = self.shards().filter(|(key, _, _)| !self.ended(key.epoch));
        let known = living.filter(|(key, _, _)| !self.core.lost.contains(key));
        let closed = known.filter(|(key, _, shard)| self.is_closed(&shard.run, *key, &going));
        closed.map(|(key, _, _)| key).collect()
    }

    /// The same of replays: they are given up.
    pub(crate) fn closed_replays(&self, now: Now) -> Vec<Event> {
        let going = self.going();
        let mut events = vec![];
        for (key, _, shard) in self.shards() {
            let replay = shard.replay.as_ref().filter(|r| r.runs());
            if replay.is_some_and(|r| self.is_closed(&r.run, key, &going)) {
                events.push(Event::ReplayEnded {
                    shard: key,
                    at: now.unix_ms,
                    hashes: None,
                    failure: Some("its keys were destroyed: ask for another replay".into()),
                });
            }
        }
        events
    }

    /// Stages whose keys are being destroyed: their records may be gone already.
    fn going(&self) -> BTreeSet<StageKey> {
        let executing = self.core.executing.iter().flat_map(|e| e.stages.iter());
        let spent = self.core.spent.iter().filter_map(|owner| match owner {
            Owner::Stage(stage) => Some(stage),
            _ => None,
        });
        executing.chain(spent).copied().collect()
    }

    fn is_closed(&self, run: &Run, key: ShardKey, going: &BTreeSet<StageKey>) -> bool {
        let mut stages = run.stage_keys(key, 1);
        stages.any(|stage| !self.stages.contains_key(&stage) && !going.contains(&stage))
    }
}
