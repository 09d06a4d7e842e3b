//! Replay: a shard retrained from nothing on what remains, with the recorded rounds, compared byte
//! for byte.

use std::collections::BTreeMap;

use lethe_proto::admin::ReplayState;
use lethe_proto::ids::{Digest, EpochNo, RoundKey, ShardId, SubjectId};
use lethe_proto::message::Refusal;
use lethe_proto::round::Outcome;

use lethe_store::sealed::{Batch, KeyName};

use super::Core;
use super::closing::{Closed, Job};
use crate::CoordinatorError;
use crate::records::Contributor;
use crate::run::{Run, initial};

/// Deadlines that may pass without all recorded contributors before a replay is given up.
const MAX_STARVED: u32 = 3;

/// Whose updates counted in each `(stage, round)`.
pub(crate) type Recorded = BTreeMap<(u16, u16), Vec<Contributor>>;

/// A replay in progress or finished. Kept in memory only: after a restart it is asked for again.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) run: Run,
    schedule: Recorded,
    /// What must come out; `None`: what is live.
    expected: Option<Digest>,
    started: u64,
    ended: Option<u64>,
    hashes: Option<(Digest, Digest)>,
    failure: Option<String>,
}

impl Replay {
    /// Who began in the run's round: also those whose updates counted in a later one.
    fn cohort(&self) -> Vec<SubjectId> {
        let (stage, round) = (self.run.stage, self.run.round);
        let from_now_on = self
            .schedule
            .range((stage, round)..=(stage, u16::MAX))
            .flat_map(|(_, c)| c);
        from_now_on
            .filter(|(_, begun)| *begun == round)
            .map(|(s, _)| s.clone())
            .collect()
    }
}

impl Replay {
    /// It ends without a result.
    fn fail(&mut self, why: &CoordinatorError, now: u64) {
        self.ended = Some(now);
        self.run.open = None;
        self.failure = Some(format!("the store failed in a round: {why}; replay again"));
    }
}

impl Core {
    /// What a replay of this shard would train, and what must come out (`None`: what is live), if
    /// it may be started now.
    pub(super) fn may_replay(
        &self,
        shard: ShardId,
    ) -> Result<(Recorded, Option<Digest>), CoordinatorError> {
        let refuse = |m: &str| Err(CoordinatorError::refuse(Refusal::Invalid, m));
        let Some(live) = self.runs.get(usize::from(shard.0)) else {
            return refuse("there is no such shard: `lethe-admin status` lists them");
        };
        let schedule = match &self.audited {
            Some(a) if a.shard == shard => (a.rounds.clone(), Some(a.adapter)),
            Some(_) => return refuse("this is an audit of another shard"),
            None if !live.done(&self.recipe) => {
                return refuse(
                    "the shard is being trained: replay it when `lethe-admin status` says it is \
                     done",
                );
            }
            None => (self.recorded_rounds(shard)?, None),
        };
        if self.replays.get(&shard).is_some_and(|r| r.ended.is_none()) {
            return refuse("a replay of this shard is running already");
        }
        Ok(schedule)
    }

    /// Starts a replay of a finished shard.
    pub(crate) fn start_replay(
        &mut self,
        shard: ShardId,
        now: u64,
    ) -> Result<(), CoordinatorError> {
        let (schedule, expected) = self.may_replay(shard)?;
        let mut counters = self.counters.clone();
        counters.generation += 1;
        self.store
            .write(Batch::new().put(&KeyName::public(), "", &counters)?)?;
        self.counters = counters;
        let state = initial(&self.recipe, &self.shape);
        let key = RoundKey {
            epoch: EpochNo::FIRST,
            shard,
            generation: self.counters.generation,
            stage: 1,
            round: 0,
        };
        let run = Run::at(key, false, state);
        let replay = Replay {
            run,
            schedule,
            expected,
            started: now,
            ended: None,
            hashes: None,
            failure: None,
        };
        self.replays.insert(shard, replay);
        Ok(())
    }

    /// How far a replay got.
    pub(crate) fn replay_state(
        &self,
        shard: ShardId,
        now: u64,
    ) -> Result<ReplayState, CoordinatorError> {
        let refuse = |m: String| CoordinatorError::refuse(Refusal::Invalid, m);
        let r = self
            .replays
            .get(&shard)
            .ok_or_else(|| refuse(format!("no replay of {shard} was asked for")))?;
        if let Some(why) = &r.failure {
            return Err(refuse(why.clone()));
        }
        let seconds = (r.ended.unwrap_or(now) - r.started) as f64 / 1000.0;
        Ok(ReplayState {
            shard,
            rounds: r.run.progress(&self.recipe),
            hashes: r.hashes,
            seconds,
        })
    }

    pub(super) fn open_replays(&mut self, deadline: u64) -> Result<(), CoordinatorError> {
        let due: Vec<ShardId> = self
            .replays
            .iter()
            .filter(|(_, r)| r.ended.is_none() && r.run.open.is_none())
            .map(|(s, _)| *s)
            .collect();
        for shard in due {
            let Some(r) = self.replays.get(&shard) else {
                continue;
            };
            let (open, stored) = self.reopen(r.run.key(), r.cohort(), deadline)?;
            self.wake.subjects.extend(open.round.members().cloned());
            if let Some(r) = self.replays.get_mut(&shard) {
                r.run.open = Some(open);
                r.run.buffer.extend(stored);
            }
        }
        Ok(())
    }

    pub(super) fn tick_replays(&mut self, now: u64) -> Result<(), CoordinatorError> {
        let due: Vec<ShardId> = self
            .replays
            .iter()
            .filter(|(_, r)| r.ended.is_none())
            .map(|(s, _)| *s)
            .collect();
        for shard in due {
            let Some(mut replay) = self.replays.remove(&shard) else {
                continue;
            };
            let result = self.tick_replay(&mut replay, now);
            self.replays.insert(shard, replay);
            result?;
        }
        Ok(())
    }

    fn tick_replay(&mut self, replay: &mut Replay, now: u64) -> Result<(), CoordinatorError> {
        let expected = replay.cohort().len();
        let Some(open) = replay.run.open.as_mut().filter(|_| !replay.run.closing) else {
            return Ok(());
        };
        match open.round.outcome(now) {
            Some(Outcome::Aggregate(subjects)) if subjects.len() == expected => {
                let at = (replay.run.stage, replay.run.round);
                let counted = replay.schedule.get(&at).cloned().unwrap_or_default();
                let closing = self.closing_of(&replay.run, counted);
                let closing = closing.inspect_err(|e| replay.fail(e, now))?;
                replay.run.closing = true;
                self.jobs.push(Job::AddUp(Box::new(closing)));
            }
            Some(_) => {
                open.starved += 1;
                open.round.extend(now + self.recipe.deadline_s * 1000);
                if open.starved >= MAX_STARVED {
                    replay.ended = Some(now);
                    replay.run.open = None;
                    let why = format!(
                        "not all of the {expected} clients that the round needs took part: replay \
                         again when they are online"
                    );
                    replay.failure = Some(why);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// A round of a replay has been added up.
    pub(super) fn take_over_replay(
        &mut self,
        closed: Closed,
        now: u64,
    ) -> Result<(), CoordinatorError> {
        let shard = closed.key().shard;
        let waits = |r: &Replay| closed.is_of(&r.run);
        if !self.replays.get(&shard).is_some_and(waits) {
            return Ok(());
        }
        let Some(mut replay) = self.replays.remove(&shard) else {
            return Ok(());
        };
        replay.run.closing = false;
        self.closed = true;
        let result = self.replay_goes_on(&mut replay, closed, now);
        self.replays.insert(shard, replay);
        result
    }

    fn replay_goes_on(
        &mut self,
        replay: &mut Replay,
        closed: Closed,
        now: u64,
    ) -> Result<(), CoordinatorError> {
        let (counted, result) = closed.into_parts();
        let stored = result.and_then(|a| self.store_replayed(&mut replay.run, &counted, a));
        stored.inspect_err(|e| replay.fail(e, now))?;
        if replay.run.done(&self.recipe) {
            replay.ended = Some(now);
            let live = || self.runs[usize::from(replay.run.shard.0)].hash();
            let live = replay.expected.unwrap_or_else(live);
            replay.hashes = Some((replay.run.hash(), live));
            let equal = replay.run.hash() == live;
            tracing::info!(shard = %replay.run.shard, equal, "replay finished");
            self.drop_personal(&replay.run)?;
        }
        Ok(())
    }
}
