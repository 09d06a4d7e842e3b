//! Heavy work without any lock: rounds are added up from what is stored, and the result is offered
//! to the ledger, which may find that it comes too late.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use lethe_ledger::{
    Aggregation, Command, Contributor, Owner, RunKey, ShardKey, Spent, Table, ValueRef,
};
use lethe_proto::codec;
use lethe_proto::ids::{Digest, SubjectId};
use rayon::prelude::*;

use super::caches::{Seen, Trained};
use super::{Kit, Shell};
use crate::CoordinatorError;
use crate::aggregate::{Clip, Contribution, apply, apply_personalized, median_norm};
use crate::content::{Personal, TrainState, Update};
use crate::durable::{NewValue, checkpoint_ref, personal_ref, run_state_ref};
use crate::fatal;
use crate::rounds::{internal, parts};

/// Wait after a round that could not be added up.
const PAUSE: Duration = Duration::from_secs(1);

/// A round that is to be added up.
pub(crate) struct Job {
    pub(super) run: RunKey,
    pub(super) counted: Vec<Contributor>,
    pub(super) cancelled: Arc<AtomicBool>,
}

#[derive(Default)]
struct Work {
    waiting: Vec<Job>,
    /// Waiting or running, by generation.
    known: BTreeMap<u32, (ShardKey, Arc<AtomicBool>)>,
    /// Somebody asked to look for duties.
    look: bool,
    ended: bool,
}

#[cfg(test)]
impl Job {
    pub(super) fn run(&self) -> RunKey {
        self.run
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Ends the jobs of these shards: what threads do in earnest, in a test that has none.
#[cfg(test)]
pub(super) type Ender = dyn Fn(&[ShardKey]) + Send + Sync;

/// Jobs that wait and run, and who waits for them.
#[derive(Default)]
pub(crate) struct Jobs {
    work: Mutex<Work>,
    changed: Condvar,
    #[cfg(test)]
    pub(super) ender: Mutex<Option<Arc<Ender>>>,
}

impl Jobs {
    fn work(&self) -> MutexGuard<'_, Work> {
        fatal::lock(&self.work)
    }

    /// Something may be due.
    pub(crate) fn look(&self) {
        self.work().look = true;
        self.changed.notify_all();
    }

    /// Waits until somebody asks to look for duties, or for this long. False: the coordinator ends.
    pub(super) fn wait_for_look(&self, longest: Duration) -> bool {
        let work = self.work();
        let waits = |w: &mut Work| !w.look && !w.ended;
        let waited = self.changed.wait_timeout_while(work, longest, waits);
        let Ok((mut work, _)) = waited else {
            fatal::broken("a panic left the jobs half changed");
        };
        work.look = false;
        !work.ended
    }

    /// No job begins any more.
    pub(crate) fn end(&self) {
        let mut work = self.work();
        work.ended = true;
        for (_, cancelled) in work.known.values() {
            cancelled.store(true, Ordering::Relaxed);
        }
        drop(work);
        self.changed.notify_all();
    }

    /// Adds a round up, unless that is being done.
    pub(super) fn begin(&self, run: RunKey, counted: Vec<Contributor>) {
        let mut work = self.work();
        if work.known.contains_key(&run.generation) {
            return;
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let known = (run.shard_key(), cancelled.clone());
        work.known.insert(run.generation, known);
        work.waiting.push(Job {
            run,
            counted,
            cancelled,
        });
        drop(work);
        self.changed.notify_all();
    }

    /// The jobs of these shards are to end; those that wait do not begin.
    pub(crate) fn cancel(&self, shards: &[ShardKey]) {
        let mut work = self.work();
        for (shard, cancelled) in work.known.values() {
            if shards.contains(shard) {
                cancelled.store(true, Ordering::Relaxed);
            }
        }
        let waiting = std::mem::take(&mut work.waiting);
        for job in waiting {
            if job.cancelled.load(Ordering::Relaxed) {
                work.known.remove(&job.run.generation);
            } else {
                work.waiting.push(job);
            }
        }
        drop(work);
        self.changed.notify_all();
    }

    /// Waits until no job of these shards runs.
    pub(super) fn wait_for(&self, shards: &[ShardKey]) {
        #[cfg(test)]
        {
            let ender = fatal::lock(&self.ender).clone();
            if let Some(end) = ender {
                end(shards);
                let mut all = self.work().known.clone().into_values();
                let left = all.any(|(s, _)| shards.contains(&s));
                assert!(!left, "a job is waited for that nobody told to end");
            }
        }
        let work = self.work();
        let runs = |w: &mut Work| w.known.values().any(|(s, _)| shards.contains(s));
        if self.changed.wait_while(work, runs).is_err() {
            fatal::broken("a panic left the jobs half changed");
        }
    }

    fn next(&self) -> Option<Job> {
        let work = self.work();
        let waits = |w: &mut Work| w.waiting.is_empty() && !w.ended;
        let Ok(mut work) = self.changed.wait_while(work, waits) else {
            fatal::broken("a panic left the jobs half changed");
        };
        match work.ended {
            true => None,
            false => Some(work.waiting.remove(0)),
        }
    }

    /// The next job, if one waits.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn take(&self) -> Option<Job> {
        let mut work = self.work();
        (!work.waiting.is_empty()).then(|| work.waiting.remove(0))
    }

    /// A job has ended, or nobody waits for it any longer.
    pub(crate) fn done(&self, generation: u32) {
        self.work().known.remove(&generation);
        self.changed.notify_all();
    }
}

/// What the next round starts from.
struct Next {
    at: ValueRef,
    /// Of theta.
    hash: Digest,
    state: Arc<TrainState>,
    /// When the sum began.
    seen: Seen,
}

/// What a round comes to.
pub(super) struct Sum {
    pub(super) counted: Vec<Contributor>,
    pub(super) left_out: Vec<Contributor>,
    pub(super) state: TrainState,
    pub(super) norm: Option<f32>,
    pub(super) loss: Option<f32>,
    /// Everybody's own parameters.
    pub(super) own: Vec<(SubjectId, Vec<f32>)>,
}

pub(super) fn missing() -> CoordinatorError {
    internal(&"an acknowledged update is missing")
}

pub(super) fn stopped() -> CoordinatorError {
    internal(&"stopped: a deletion concerns the shard")
}

impl Shell {
    /// Adds rounds up until the coordinator ends.
    pub(crate) fn work(&self) {
        while let Some(job) = self.jobs.next() {
            let result = self.add_up(&job);
            if !self.job_ended(&job, result) {
                // It is tried again at once, and fails again.
                std::thread::sleep(PAUSE);
            }
            self.jobs.look();
        }
    }

    /// Offers what came of a job to the ledger. False: it failed, and is tried again.
    pub(crate) fn job_ended(
        &self,
        job: &Job,
        result: Result<(Command, Vec<NewValue>), CoordinatorError>,
    ) -> bool {
        let cancelled = job.cancelled.load(Ordering::Relaxed);
        let added_up = result.is_ok();
        let command = match result {
            Ok((command, values)) => self.execute(command, values),
            Err(e) => {
                let why = e.to_string();
                if !cancelled {
                    self.complain("add a round up", &e);
                }
                self.execute(Command::AggregationFailed { run: job.run, why }, vec![])
            }
        };
        self.jobs.done(job.run.generation);
        match command {
            Ok(events) if events.is_empty() => {
                tracing::debug!(run = ?job.run, "the result of a round came too late");
            }
            Ok(_) => {}
            Err(e) => {
                self.complain("close a round", &e);
                return cancelled;
            }
        }
        added_up || cancelled
    }

    /// What a round comes to: the command that says so, and the values that it names.
    pub(crate) fn add_up(&self, job: &Job) -> Result<(Command, Vec<NewValue>), CoordinatorError> {
        let run = job.run;
        let kit = self.kit(run.epoch)?;
        let seen = self.caches.seen();
        let before = self.trained(&run, &kit)?;
        let contributions = self.contributions(job, &kit)?;
        let refs: Vec<&Contribution> = contributions.iter().map(AsRef::as_ref).collect();
        let sum = match kit.recipe.grid() {
            Some(grid) => match self.sum_masked(job, &kit, &before, &refs, &grid)? {
                Ok(sum) => sum,
                Err(why) => return Ok((Command::RoundShort { run, why }, vec![])),
            },
            None => {
                let norms = self.norms_before(&run);
                let clip = Clip::of(&kit.recipe, &norms, &refs);
                self.sum(job, &kit, &before, &refs, &clip)?
            }
        };
        let ends = usize::from(run.round) + 1 >= kit.recipe.rounds;
        let lineage = ends.then(|| {
            let state = self.state();
            let version = state.members_of_tree(run.shard_key()).version;
            (version, state.lineage(run.shard_key(), run.stage))
        });
        let stage = Owner::Stage(run.stage_key());
        let content = codec::to_bytes(&sum.state).map_err(|e| internal(&e))?;
        let at = match ends {
            true => checkpoint_ref(&run.stage_key(), &content),
            false => run_state_ref(&run, &content),
        };
        let mut values = vec![NewValue::new(at.clone(), stage.clone(), content)];
        let mut personal = vec![];
        for (subject, theta) in sum.own {
            let content = codec::to_bytes(&Personal(theta)).map_err(|e| internal(&e))?;
            let own = personal_ref(&run, &subject, &content);
            values.push(NewValue::new(own.clone(), stage.clone(), content));
            personal.push((subject, own));
        }
        let hash = Digest::of_values(&sum.state.theta);
        let next = Next {
            at: at.clone(),
            hash,
            state: Arc::new(sum.state),
            seen,
        };
        self.prepare(&run, &kit, next)?;
        let command = Command::RoundAggregated {
            run,
            counted: sum.counted,
            left_out: sum.left_out,
            checkpoint: (at.table == Table::Checkpoint).then(|| at.clone()),
            state: at,
            hash,
            norm: sum.norm,
            loss: sum.loss,
            personal,
            lineage,
            spent: self.take_spent(),
        };
        Ok((command, values))
    }

    /// What the next round starts from is there when it is asked for.
    fn prepare(&self, run: &RunKey, kit: &Kit, next: Next) -> Result<(), CoordinatorError> {
        let Next {
            at,
            hash,
            state,
            seen,
        } = next;
        let theta = state.theta.clone();
        let trained = Trained {
            at: Some(at),
            state,
        };
        self.caches.keep_trained(run, trained, seen);
        if kit.recipe.aggregation != lethe_recipe::Aggregation::Personalized {
            let parts = parts(&kit.recipe, &kit.whole, theta)?;
            self.caches.keep_start(run, hash, Arc::new(parts), seen);
        }
        Ok(())
    }

    fn sum(
        &self,
        job: &Job,
        kit: &Kit,
        before: &TrainState,
        contributions: &[&Contribution],
        clip: &Clip,
    ) -> Result<Sum, CoordinatorError> {
        let mut state = before.clone();
        let personalized = {
            let state = self.state();
            let epoch = state.epoch(job.run.epoch).ok_or_else(missing)?;
            epoch.terms.aggregation == Aggregation::Personalized
        };
        let mut own = vec![];
        if personalized {
            let thetas = self.moved(job, kit, contributions, clip)?;
            let next = apply_personalized(&kit.recipe, &mut state, contributions, &thetas);
            let subjects = job.counted.iter().map(|(s, _)| s.clone());
            own = subjects.zip(next).collect();
        } else {
            let late: Vec<u16> = job
                .counted
                .iter()
                .map(|(_, begun)| job.run.round - begun)
                .collect();
            let load = |range: std::ops::Range<usize>| self.deltas(job, kit, contributions, range);
            apply(&kit.recipe, &mut state, contributions, &late, clip, load)?;
        }
        let loss = state.losses.last().copied().filter(|l| l.is_finite());
        Ok(Sum {
            counted: job.counted.clone(),
            left_out: vec![],
            norm: median_norm(contributions),
            loss,
            state,
            own,
        })
    }

    /// Changes of a few updates: read one after the other, opened and unpacked on all cores.
    fn deltas(
        &self,
        job: &Job,
        kit: &Kit,
        contributions: &[&Contribution],
        range: std::ops::Range<usize>,
    ) -> Result<Vec<Vec<f32>>, CoordinatorError> {
        if job.cancelled.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        let sealed: Vec<(ValueRef, f32)> = {
            let state = self.state();
            let stage = state.stage(&job.run.stage_key()).ok_or_else(missing)?;
            let of = |i: usize| {
                let at = stage.stored.get(&job.counted[i])?;
                Some((at.clone(), contributions[i].norm))
            };
            range.map(of).collect::<Option<_>>().ok_or_else(missing)?
        };
        let open = |(at, norm): (ValueRef, f32)| {
            let update = self.update(&at)?.ok_or_else(missing)?;
            update.delta(&kit.recipe, &kit.whole, norm)
        };
        sealed.into_par_iter().map(open).collect()
    }

    /// Mode `personalized`: everybody's own parameters with their change.
    fn moved(
        &self,
        job: &Job,
        kit: &Kit,
        contributions: &[&Contribution],
        clip: &Clip,
    ) -> Result<Vec<Vec<f32>>, CoordinatorError> {
        let mut out = vec![];
        for (i, (subject, _)) in job.counted.iter().enumerate() {
            let delta = self.deltas(job, kit, contributions, i..i + 1)?.pop();
            let mut theta = self.own_theta(&job.run, kit, subject)?;
            let factor = clip.factor(contributions[i]);
            for (t, d) in theta.iter_mut().zip(delta.unwrap_or_default()) {
                *t += factor * d;
            }
            out.push(theta);
        }
        Ok(out)
    }

    /// A client's own parameters as of the newest stage that it took part in.
    pub(crate) fn own_theta(
        &self,
        run: &RunKey,
        kit: &Kit,
        subject: &SubjectId,
    ) -> Result<Vec<f32>, CoordinatorError> {
        let at = self.state().personal_of(run, subject).cloned();
        let Some(at) = at else {
            return Ok(kit.initial.theta.clone());
        };
        let content = self.values().get(&at)?.ok_or_else(missing)?;
        let own: Personal = codec::from_bytes(&content, content.len()).map_err(|e| internal(&e))?;
        Ok(own.0)
    }

    /// The state that a run stands at.
    pub(crate) fn trained(
        &self,
        run: &RunKey,
        kit: &Kit,
    ) -> Result<Arc<TrainState>, CoordinatorError> {
        let seen = self.caches.seen();
        let at = {
            let state = self.state();
            let (at, _) = state.start_of(run).ok_or_else(missing)?;
            at.cloned()
        };
        let Some(at) = at else {
            return Ok(kit.initial.clone());
        };
        if let Some(known) = self.caches.trained(run, Some(&at)) {
            return Ok(known);
        }
        let content = self.values().get(&at)?.ok_or_else(missing)?;
        let state: TrainState =
            codec::from_bytes(&content, content.len()).map_err(|e| internal(&e))?;
        let state = Arc::new(state);
        let trained = Trained {
            at: Some(at),
            state: state.clone(),
        };
        self.caches.keep_trained(run, trained, seen);
        Ok(state)
    }

    /// A stored update of a round's.
    pub(super) fn update_of(
        &self,
        job: &Job,
        of: &Contributor,
    ) -> Result<Update, CoordinatorError> {
        if job.cancelled.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        let at = {
            let state = self.state();
            let stage = state.stage(&job.run.stage_key()).ok_or_else(missing)?;
            stage.stored.get(of).cloned().ok_or_else(missing)?
        };
        self.update(&at)?.ok_or_else(missing)
    }

    /// A stored update.
    fn update(&self, at: &ValueRef) -> Result<Option<Update>, CoordinatorError> {
        let Some(content) = self.values().get(at)? else {
            return Ok(None);
        };
        let update = codec::from_bytes(&content, content.len()).map_err(|e| internal(&e))?;
        Ok(Some(update))
    }

    /// The numbers of the updates that count; those that came before a restart are read.
    fn contributions(
        &self,
        job: &Job,
        kit: &Kit,
    ) -> Result<Vec<Arc<Contribution>>, CoordinatorError> {
        let seen = self.caches.seen();
        let mut out = vec![];
        for of in &job.counted {
            if let Some(known) = self.caches.contribution(&job.run, of) {
                out.push(known);
                continue;
            }
            let update = self.update_of(job, of)?;
            let contribution = Arc::new(update.contribution(&kit.recipe, &kit.whole)?);
            self.caches
                .keep_contribution(&job.run, of.clone(), contribution.clone(), seen);
            out.push(contribution);
        }
        Ok(out)
    }

    /// Median lengths of the updates of the rounds before, oldest first.
    fn norms_before(&self, run: &RunKey) -> Vec<f32> {
        self.state().norms_of(run)
    }

    /// What training has cost since the last round that closed.
    fn take_spent(&self) -> Spent {
        self.meter.take()
    }
}
