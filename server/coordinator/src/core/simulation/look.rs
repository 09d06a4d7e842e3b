//! What must hold after every event.

use std::collections::BTreeSet;

use lethe_proto::ids::{Digest, RoundKey, SubjectId};

use super::world::Simulation;
use crate::core::Core;
use crate::records::{Contributor, ReleaseRecord, SubjectRecord};

impl Simulation {
    /// What must hold after every event.
    pub(super) fn look(&mut self) {
        let Some(core) = self.core.as_ref() else {
            return;
        };
        assert!(
            core.counters.release >= self.release,
            "{}: a release number went back",
            self.story()
        );
        self.release = core.counters.release;
        for (k, run) in core.runs.iter().enumerate() {
            let place = usize::from(run.shard.0);
            assert_eq!(place, k, "{}: a run is missing", self.story());
        }
        assert_eq!(core.runs.len(), core.recipe.shards, "{}", self.story());
        self.look_at_served(core);
        self.look_at_recalls(core);
        let mut closed = vec![];
        // What a failed write left in doubt is not known yet.
        for (run, seen) in core.runs.iter().zip(&self.seen).filter(|(r, _)| !r.stale) {
            let at = (run.generation, run.stage, run.round);
            let before = (seen.generation, seen.stage, seen.round);
            assert!(
                at >= before,
                "{}: shard {} went back from {before:?} to {at:?}",
                self.story(),
                run.shard
            );
            if at != before && seen.generation == run.generation {
                closed.push(*seen);
            }
        }
        for key in closed {
            let Ok(recorded) = core.recorded_rounds(key.shard) else {
                continue;
            };
            let stage = recorded.range((key.stage, 0)..=(key.stage, key.round));
            let counted: Vec<(u16, &Contributor)> = stage
                .flat_map(|((_, round), c)| c.iter().map(|c| (*round, c)))
                .collect();
            let distinct: BTreeSet<&Contributor> = counted.iter().map(|(_, c)| *c).collect();
            assert_eq!(
                distinct.len(),
                counted.len(),
                "{}: {key:?} counted an update twice: {counted:?}",
                self.story()
            );
            let most = core.recipe.staleness.unwrap_or(0);
            let late = counted
                .iter()
                .find(|(round, (_, begun))| usize::from(round - begun) > most);
            assert_eq!(late, None, "{}: too late", self.story());
            self.count.late += counted
                .iter()
                .filter(|(r, (_, begun))| *r == key.round && begun < r)
                .count() as u64;
            let begun = |k: &RoundKey| {
                RoundKey {
                    round: key.round,
                    ..*k
                } == key
                    && k.round <= key.round
            };
            // Taken while the write that closed the round was in doubt: it is late, and waits for
            // the next.
            let next = key.round + 1;
            let waits = |begun: u16, s: &SubjectId| {
                let may =
                    usize::from(next) < core.recipe.rounds && usize::from(next - begun) <= most;
                may && core.updates_of(key).contains(&(s.clone(), begun))
            };
            for (k, subjects) in self.acknowledged.iter().filter(|(k, _)| begun(k)) {
                for s in subjects
                    .iter()
                    .filter(|s| !self.forgotten.contains(s) && !self.doubted.contains(s))
                {
                    let here = distinct.contains(&(s.clone(), k.round)) || waits(k.round, s);
                    assert!(
                        here,
                        "{}: {key:?} lost the acknowledged update of {s} in {k:?}",
                        self.story()
                    );
                }
            }
        }
        for (run, seen) in core
            .runs
            .iter()
            .zip(&mut self.seen)
            .filter(|(r, _)| !r.stale)
        {
            *seen = run.key();
        }
    }

    /// What may be fetched is what the store says is served.
    fn look_at_served(&self, core: &Core) {
        let release = core.counters.release;
        if release == 0 || core.may_serve().is_err() {
            return;
        }
        let hashes = core.served_hashes();
        assert_eq!(
            core.counters.served,
            hashes,
            "{}: served without a release",
            self.story()
        );
        // While the disk is dead nothing can be compared.
        let Ok(record) = core.store.get::<ReleaseRecord>(&release.to_string()) else {
            return;
        };
        let record = record.unwrap_or_else(|| {
            panic!(
                "{}: release {release} is served, and not stored",
                self.story()
            )
        });
        let stored: Vec<Digest> = record.shards.iter().map(|(d, _)| *d).collect();
        assert_eq!(stored, hashes, "{}: release {release}", self.story());
        assert!(
            !record.recalled,
            "{}: {release} is recalled and served",
            self.story()
        );
    }

    /// What counts as recalled or restricted is stored as that.
    fn look_at_recalls(&self, core: &Core) {
        if core.recalled > 0 {
            let id = core.recalled.to_string();
            // While the disk is dead nothing can be compared.
            if let Ok(stored) = core.store.get::<ReleaseRecord>(&id) {
                let so = stored.is_some_and(|r| r.recalled);
                assert!(so, "{}: recalled, and not stored as that", self.story());
            }
        }
        for (s, _) in core.subjects.iter().filter(|(_, r)| r.restricted) {
            if let Ok(stored) = core.store.get::<SubjectRecord>(s.as_str()) {
                // Gone: a deletion of the person has destroyed its key, and is to be executed.
                let so = stored.is_none_or(|r| r.restricted);
                assert!(so, "{}: {s} is restricted, and not stored", self.story());
            }
        }
    }
}
