//! Rounds: opening, handing out work, taking updates, closing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lethe_model::lora::Adapter;
use lethe_proto::ids::{RoundKey, ShardId, SubjectId};
use lethe_proto::message::{Refusal, RoundStart, Task};
use lethe_proto::packed::Packed;
use lethe_proto::round::{NotTaken, Outcome, Round};
use lethe_recipe::Aggregation;
use lethe_store::sealed::{Batch, KeyName};
use rayon::prelude::*;
use tokio::sync::oneshot;

use super::replay::Recorded;
use super::updates::SealedUpdate;
use super::{Core, checkpoint_id, stage_key};
use crate::CoordinatorError;
use crate::aggregate::{Clip, Contribution, apply, median_norm};
use crate::arrivals::Arrived;
use crate::records::{
    BegunRecord, Checkpoint, Contributor, NormRecord, RatesRecord, RoundRecord, RunRecord,
};
use crate::run::{OpenRound, Run, round_seed};

/// How often a starved round is tried again before its shard waits for people to look.
const MAX_STARVED: u32 = 1000;

/// Updates that wait for the round that counts them.
pub(super) type Buffer = BTreeMap<Contributor, Contribution>;

/// What a client is told of its update.
pub(crate) type Answer = (
    oneshot::Sender<Result<(), CoordinatorError>>,
    Result<(), CoordinatorError>,
);

/// Work for a client; a training task brings the middle adapter for its session.
pub(crate) enum Work {
    /// A task without a session.
    Task(Task),
    /// A round: the task, and the middle part of the adapter.
    Train(RoundStart, Arc<Adapter>),
}

fn refuse(code: Refusal, message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(code, message)
}

impl Core {
    /// The next thing that `subject` should do, if there is any.
    pub(crate) fn next_work(
        &mut self,
        subject: &SubjectId,
        now: u64,
    ) -> Result<Option<Work>, CoordinatorError> {
        let Some(record) = self.subjects.get(subject) else {
            return Ok(None);
        };
        // Offered until the device has joined again: a device that stopped between its two answers
        // goes on from here.
        if let Some(e) = &record.erase {
            // Told once for a connection; then the app or the person has to say something.
            let waits = self.unconsented.contains(subject);
            let task = Task::Erase { task: e.task };
            return Ok((!waits).then_some(Work::Task(task)));
        }
        self.open_rounds(now)?;
        let offered = self.all_runs().find_map(|run| {
            let open = run.open.as_mut()?;
            let deadline = open.round.deadline();
            if !open.round.offer(subject, now) {
                return None;
            }
            open.began(subject, now);
            Some((deadline, run.key(), run.live, run.counted_of(subject)))
        });
        if let Some((deadline, round, live, counted)) = offered {
            let parts = match self.personal_theta(round, live, subject)? {
                Some(own) => Arc::new(self.start_parts(own)?),
                None => self.round_parts(round)?,
            };
            let seed = round_seed(&self.recipe, round).0;
            let adapter = Packed::clone(&parts.0);
            // Where updates may be late, a device may take longer than its round.
            let late = self.recipe.staleness.unwrap_or(0) as u64 * self.recipe.deadline_s * 1000;
            let start = RoundStart {
                round,
                adapter,
                counted,
                seed,
                deadline_ms: deadline.saturating_sub(now) + late,
            };
            return Ok(Some(Work::Train(start, parts.1.clone())));
        }
        Ok(self.validation_due(subject).map(|shards| {
            Work::Task(Task::Validate {
                release: self.counters.release,
                shards,
            })
        }))
    }

    /// What a client starts a round from: the device's part as it is sent, and the middle part.
    fn start_parts(&self, theta: Vec<f32>) -> Result<(Packed, Arc<Adapter>), CoordinatorError> {
        let whole = Adapter::from_data(&self.shape, theta)?;
        Ok((
            self.device_part(&whole)?,
            Arc::new(whole.select(|l| !self.on_device(l))),
        ))
    }

    /// The same for everybody in a round: made once.
    fn round_parts(
        &mut self,
        round: RoundKey,
    ) -> Result<Arc<(Packed, Arc<Adapter>)>, CoordinatorError> {
        let closed = || refuse(Refusal::RoundClosed, "the round is over");
        let run = self.run_of(round).ok_or_else(closed)?;
        if let Some(parts) = run.open.as_ref().and_then(|o| o.parts.clone()) {
            return Ok(parts);
        }
        let theta = run.state.theta.clone();
        let parts = Arc::new(self.start_parts(theta)?);
        if let Some(open) = self.run_of(round).and_then(|r| r.open.as_mut()) {
            open.parts = Some(parts.clone());
        }
        Ok(parts)
    }

    fn all_runs(&mut self) -> impl Iterator<Item = &mut Run> {
        self.runs
            .iter_mut()
            .chain(self.replays.values_mut().map(|r| &mut r.run))
    }

    fn run_of(&mut self, key: RoundKey) -> Option<&mut Run> {
        self.all_runs().find(|r| r.key() == key)
    }

    /// The run whose stage this round belongs to.
    fn stage_of(&mut self, key: RoundKey) -> Option<&mut Run> {
        self.all_runs().find(|r| {
            RoundKey {
                round: key.round,
                ..r.key()
            } == key
        })
    }

    /// Whether this round takes updates and holds that of `subject` already.
    pub(crate) fn holds(&mut self, key: RoundKey, subject: &SubjectId) -> bool {
        let round = self.stage_of(key).and_then(|r| r.round_mut(key.round));
        round.is_some_and(|r| r.check(subject, 0) == Err(NotTaken::Duplicate))
    }

    /// Whether this round takes updates and waits for `subject`.
    pub(crate) fn expects(
        &mut self,
        key: RoundKey,
        subject: &SubjectId,
        now: u64,
    ) -> Result<(), CoordinatorError> {
        let round = self.stage_of(key).and_then(|r| r.round_mut(key.round));
        match round.map(|r| r.check(subject, now)) {
            Some(Ok(())) => Ok(()),
            Some(Err(NotTaken::Duplicate)) => Err(refuse(
                Refusal::RoundClosed,
                "the update of this round is stored already",
            )),
            Some(Err(NotTaken::Late)) => Err(refuse(
                Refusal::RoundClosed,
                "the round's deadline has passed: ask for work again",
            )),
            Some(Err(NotTaken::NotChosen)) | None => Err(refuse(
                Refusal::RoundClosed,
                "the round is over, or did not choose this client: ask for work again",
            )),
        }
    }

    /// Opens a round for every live run that has none and may go on.
    fn open_rounds(&mut self, now: u64) -> Result<(), CoordinatorError> {
        // While an accepted deletion could not be executed (the store fails), nothing is trained on
        // what it concerns.
        let deadline = now + self.recipe.deadline_s * 1000;
        if self.audited.is_some() {
            return self.open_replays(deadline);
        }
        if self.epoch.is_none() || self.deletion_unexecuted() || !self.rolling.is_empty() {
            return Ok(());
        }
        for i in 0..self.runs.len() {
            let run = &self.runs[i];
            if run.open.is_some() || run.stale || run.done(&self.recipe) || self.held(run.shard) {
                continue;
            }
            self.log_training(self.runs[i].shard)?;
            let run = &self.runs[i];
            let members = self.members(run.shard).map(|(s, r)| (s, r.slice));
            let cohort = run.cohort(&self.recipe, members);
            let goal = self.recipe.goal;
            let late = self.stored_late(run)?;
            let (mut open, stored) = self.reopen(run.key(), cohort, deadline)?;
            if let Some(goal) = goal {
                open.round = open.round.with_goal(goal);
            }
            self.wake.subjects.extend(open.round.members().cloned());
            let run = &mut self.runs[i];
            (run.open, run.resumed) = (Some(open), false);
            run.buffer.extend(late.into_iter().chain(stored));
            run.count_late();
        }
        self.open_replays(deadline)
    }

    /// A round, and the updates of it that were stored before a restart.
    pub(super) fn reopen(
        &self,
        key: RoundKey,
        cohort: Vec<SubjectId>,
        deadline: u64,
    ) -> Result<(OpenRound, Buffer), CoordinatorError> {
        let mut round = Round::open(key, cohort.iter().cloned(), deadline, self.recipe.quorum);
        let mut stored = Buffer::new();
        for subject in cohort {
            if let Some(u) = self.load_update(key, &subject)? {
                round.stored(&subject);
                stored.insert(
                    (subject, key.round),
                    u.contribution(&self.recipe, &self.whole())?,
                );
            }
        }
        Ok((
            OpenRound {
                round,
                began: BTreeMap::new(),
                starved: 0,
                parts: None,
            },
            stored,
        ))
    }

    /// Late updates that were stored before a restart, of those who are still there. A round's own
    /// record says what has counted: the write that closed it may have been cut off before it
    /// removed them.
    fn stored_late(&self, run: &Run) -> Result<Buffer, CoordinatorError> {
        let mut out = Buffer::new();
        let Some(most) = self.recipe.staleness.filter(|_| run.resumed) else {
            return Ok(out);
        };
        let members: BTreeSet<&SubjectId> = self.members(run.shard).map(|(s, _)| s).collect();
        let recorded = self.recorded_rounds(run.shard)?;
        let counted: BTreeSet<&Contributor> = recorded
            .range((run.stage, 0)..=(run.stage, run.round))
            .flat_map(|(_, c)| c)
            .collect();
        for (subject, begun) in self.updates_of(run.key()) {
            let late = run
                .round
                .checked_sub(begun)
                .map(usize::from)
                .filter(|l| *l > 0);
            let counts = members.contains(&subject) && !counted.contains(&(subject.clone(), begun));
            if late.is_some_and(|l| l <= most) && counts {
                let key = RoundKey {
                    round: begun,
                    ..run.key()
                };
                if let Some(u) = self.load_update(key, &subject)? {
                    let c = u.contribution(&self.recipe, &self.whole())?;
                    out.insert((subject, begun), c);
                }
            }
        }
        Ok(out)
    }

    /// A shard with a member that has yet to erase items waits.
    fn held(&self, shard: ShardId) -> bool {
        self.members(shard).any(|(_, r)| r.erase.is_some())
    }

    /// Stores updates (both parts of the split joined) in one write; each is answered only when all
    /// are durable.
    pub(crate) fn take_updates(&mut self, arrived: Vec<Arrived>, now: u64) -> Vec<Answer> {
        let (mut answers, mut taken): (Vec<Answer>, Vec<Arrived>) = (vec![], vec![]);
        let mut known = BTreeSet::new();
        for a in arrived {
            match self.expects(a.round, &a.subject, now) {
                Ok(()) if known.insert((a.round, a.subject.clone())) => taken.push(a),
                // A client may have sent it twice, and both came together.
                Ok(()) => answers.push((
                    a.answer,
                    Err(refuse(Refusal::Busy, "this update is being stored already")),
                )),
                Err(e) => answers.push((a.answer, Err(e))),
            }
        }
        if taken.is_empty() {
            return answers;
        }
        if let Err(e) = self.store_updates(&taken) {
            let why = e.to_string();
            answers.extend(
                taken
                    .into_iter()
                    .map(|a| (a.answer, Err(refuse(Refusal::Internal, why.clone())))),
            );
            return answers;
        }
        for a in taken {
            if let Some(run) = self.stage_of(a.round) {
                run.stored((a.subject.clone(), a.round.round), a.contribution);
                let open = run.open.as_mut().filter(|_| run.round == a.round.round);
                let began = open.and_then(|o| o.began.remove(&a.subject));
                self.answered(began, now);
            }
            answers.push((a.answer, Ok(())));
        }
        // The updates are stored: what fails from here on is the coordinator's affair, and is tried
        // again by the timer.
        if let Err(e) = self.tick(now) {
            tracing::error!("after an update: {e}");
        }
        answers
    }

    /// A client says that it does not take part in a round; the round may close with that.
    pub(crate) fn declined(
        &mut self,
        key: RoundKey,
        subject: &SubjectId,
        now: u64,
    ) -> Result<(), CoordinatorError> {
        if let Some(open) = self.run_of(key).and_then(|r| r.open.as_mut()) {
            open.round.decline(subject);
            open.began.remove(subject);
        }
        self.tick(now)
    }

    /// Closes what is due; call it after every update and from a timer.
    pub(crate) fn tick(&mut self, now: u64) -> Result<(), CoordinatorError> {
        self.reload_stale()?;
        self.execute_pending()?;
        self.finish_rollback()?;
        self.measure(now);
        if now > self.space_checked + 60_000 {
            self.space_checked = now;
            self.set_aside_space();
            self.warn_overdue();
        }
        for i in 0..self.runs.len() {
            let outcome = self.runs[i]
                .open
                .as_ref()
                .and_then(|o| o.round.outcome(now));
            match outcome {
                Some(Outcome::Aggregate(_)) => self.close_round(i)?,
                Some(Outcome::Starved { got, needed }) => self.starved(i, got, needed, now),
                None => {}
            }
        }
        // Who took part is online: the next round need not wait for somebody to ask.
        if self.closed {
            self.open_rounds(now)?;
        }
        self.tick_replays(now)?;
        self.publish(now)
    }

    fn starved(&mut self, i: usize, got: usize, needed: usize, now: u64) {
        let deadline = now + self.recipe.deadline_s * 1000;
        let run = &mut self.runs[i];
        let key = run.key();
        if let Some(open) = run.open.as_mut().filter(|o| o.starved < MAX_STARVED) {
            open.starved += 1;
            open.round.extend(deadline);
            self.wake.subjects.extend(open.round.members().cloned());
            tracing::warn!(
                ?key,
                got,
                needed,
                "round starved: too few clients answered in time; trying again"
            );
        }
    }

    /// Aggregates updates in a round of `run`, reading one at a time, in the order of subjects. The
    /// batch removes what was read and stores what the round leaves beside the run's state.
    pub(super) fn aggregate(
        &self,
        run: &mut Run,
        counted: &[Contributor],
    ) -> Result<Batch, CoordinatorError> {
        let key = run.key();
        let begun = |c: &Contributor| RoundKey { round: c.1, ..key };
        let whole = self.whole();
        let missing = || refuse(Refusal::Internal, "an acknowledged update is missing");
        let recipe = &self.recipe;
        if self.recipe.updates.feeds_back() {
            run.counted.extend(counted.iter().cloned());
        }
        let taken: Vec<Contribution> = counted
            .iter()
            .map(|c| run.buffer.remove(c).ok_or_else(missing))
            .collect::<Result<_, _>>()?;
        let contributions: Vec<&Contribution> = taken.iter().collect();
        let batch = if self.recipe.aggregation == Aggregation::Personalized {
            let load = |i: usize| {
                let (c, stored) = (
                    &counted[i],
                    self.load_update(begun(&counted[i]), &counted[i].0)?,
                );
                debug_assert_eq!(c.1, key.round, "nobody is late in this mode");
                stored.ok_or_else(missing)?.delta(recipe, &whole)
            };
            let subjects: Vec<SubjectId> = counted.iter().map(|(s, _)| s.clone()).collect();
            self.aggregate_personal(run, &subjects, &contributions, load)?
        } else {
            // Read one after the other, opened and unpacked on all cores.
            let load = |range: std::ops::Range<usize>| {
                let sealed: Vec<_> = counted[range]
                    .iter()
                    .map(|c| self.sealed_update(begun(c), &c.0)?.ok_or_else(missing))
                    .collect::<Result<_, CoordinatorError>>()?;
                let open = |s: SealedUpdate| s.open()?.ok_or_else(missing)?.delta(recipe, &whole);
                sealed.into_par_iter().map(open).collect()
            };
            let late: Vec<u16> = counted.iter().map(|(_, begun)| key.round - begun).collect();
            let clip = Clip::of(recipe, &run.norms, &contributions);
            apply(recipe, &mut run.state, &contributions, &late, &clip, load)?;
            Batch::new()
        };
        run.norms.extend(median_norm(&contributions));
        Ok(Self::drop_updates(batch, key, counted))
    }

    fn close_round(&mut self, i: usize) -> Result<(), CoordinatorError> {
        self.closed = true;
        // Worked on outside the list. What stands in its place is read from the store again, should
        // this not come to its end.
        let in_its_place = self.runs[i].doubtful();
        let mut run = std::mem::replace(&mut self.runs[i], in_its_place);
        let result = self.close_taken(&mut run);
        if result.is_err() {
            (run.stale, run.open) = (true, None);
        }
        self.runs[i] = run;
        result
    }

    /// Reads again what a failed write left in doubt.
    pub(super) fn reload_stale(&mut self) -> Result<(), CoordinatorError> {
        for i in 0..self.runs.len() {
            if self.runs[i].stale {
                self.store.recover()?;
                self.runs[i] = self.load_run(self.runs[i].shard)?;
            }
        }
        Ok(())
    }

    fn close_taken(&mut self, run: &mut Run) -> Result<(), CoordinatorError> {
        let (key, shard) = (run.key(), run.shard);
        // All that is stored, late or not.
        let counted: Vec<Contributor> = run.buffer.keys().cloned().collect();
        let clients = counted.len();
        let norms = run.norms.len();
        let mut batch = self.aggregate(run, &counted)?;
        let owner = stage_key(shard, run.stage);
        let stage = run.stage;
        let round_id = format!("{}/{:05}", checkpoint_id(shard, stage), run.round);
        let (contributors, begun): (Vec<SubjectId>, Vec<u16>) = counted.into_iter().unzip();
        let late = begun.iter().filter(|b| **b != key.round).count();
        if late > 0 {
            batch = batch.put(&owner, &round_id, &BegunRecord(begun))?;
        }
        batch = batch.put(&owner, &round_id, &RoundRecord { contributors })?;
        if let Some(norm) = run.norms.get(norms) {
            batch = batch.put(&owner, &round_id, &NormRecord(*norm))?;
        }
        if run.advance(&self.recipe) {
            let checkpoint = Checkpoint {
                lineage: self.lineage(shard, stage),
                state: run.state.clone(),
            };
            batch = batch.put(&owner, &checkpoint_id(shard, stage), &checkpoint)?;
        }
        // Sealed under the stage that it has learned from, so that a rollback of that stage takes
        // it along.
        let record = RunRecord {
            stage: run.stage,
            round: run.round,
            state: run.state.clone(),
        };
        batch = batch.put(&owner, &shard.0.to_string(), &record)?;
        let rates = self.with_round(clients);
        let sums = RatesRecord(rates);
        self.store
            .write(batch.put(&KeyName::public(), "", &sums)?)?;
        self.measured(rates);
        let loss = run.losses().last().copied().flatten();
        tracing::info!(%shard, stage, round = key.round, clients, late, ?loss, "round closed");
        Ok(())
    }

    /// Median lengths of the updates of every round that a shard's state stands on, oldest first.
    pub(super) fn recorded_norms(&self, shard: ShardId) -> Result<Vec<f32>, CoordinatorError> {
        let prefix = format!("{:05}/", shard.0);
        let mut rows: Vec<(String, NormRecord)> = self.store.all()?;
        rows.retain(|(id, _)| id.starts_with(&prefix));
        // Names are of fixed width: their order is that of stages and rounds.
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(rows.into_iter().map(|(_, n)| n.0).collect())
    }

    /// Who contributed to every round that a shard's state stands on.
    pub(super) fn recorded_rounds(&self, shard: ShardId) -> Result<Recorded, CoordinatorError> {
        let mut out = BTreeMap::new();
        let mut all_begun: BTreeMap<String, BegunRecord> = self.store.all()?.into_iter().collect();
        for (id, r) in self.store.all::<RoundRecord>()? {
            let parts: Vec<u16> = id.split('/').filter_map(|p| p.parse().ok()).collect();
            if let [s, stage, round] = parts[..]
                && s == shard.0
            {
                let begun = all_begun
                    .remove(&id)
                    .map_or_else(|| vec![round; r.contributors.len()], |b| b.0);
                out.insert(
                    (stage, round),
                    r.contributors.into_iter().zip(begun).collect(),
                );
            }
        }
        Ok(out)
    }
}
