//! How a round closes: what it counts is fixed under the lock, added up without it, and taken over
//! under the lock if nothing has happened to the shard meanwhile.

use std::sync::Arc;

use lethe_proto::ids::{Digest, RoundKey, SubjectId};
use lethe_proto::message::Refusal;
use lethe_proto::round::Outcome;
use lethe_recipe::{Aggregation, Recipe};
use lethe_store::sealed::{Batch, KeyName, SealedStore};
use rayon::prelude::*;

use super::personal::{PersonalRound, aggregate_personal};
use super::serving::{Parts, round_parts};
use super::updates::{SealedUpdate, Whole, drop_updates, load_update, sealed_update};
use super::{Core, checkpoint_id, stage_key};
use crate::CoordinatorError;
use crate::aggregate::{Clip, Contribution, apply, median_norm};
use crate::records::{
    BegunRecord, Checkpoint, Contributor, NormRecord, RatesRecord, RoundRecord, RunRecord,
    TrainState,
};
use crate::run::Run;

fn missing() -> CoordinatorError {
    CoordinatorError::refuse(Refusal::Internal, "an acknowledged update is missing")
}

/// Work that needs no lock.
pub(crate) enum Job {
    /// A round is to be added up.
    AddUp(Box<Closing>),
    /// Updates that have counted are to be removed.
    Clean(Counted),
}

/// Updates that have counted. The record of their round says so: should they stay, they are not
/// counted again, and the next opening of the folder removes them.
pub(crate) struct Counted {
    store: Arc<SealedStore>,
    key: RoundKey,
    counted: Vec<Contributor>,
}

impl Counted {
    /// Removes them.
    pub(crate) fn remove(self) -> Result<(), CoordinatorError> {
        let batch = drop_updates(Batch::new(), self.key, &self.counted);
        Ok(self.store.write(batch)?)
    }
}

/// A round whose counted updates are fixed and still have to be added up. It holds copies: whoever
/// runs it needs no lock.
pub(crate) struct Closing {
    key: RoundKey,
    live: bool,
    /// Whose updates count, in the order in which they are added.
    counted: Vec<Contributor>,
    contributions: Vec<Arc<Contribution>>,
    /// Median lengths of the rounds before, oldest first.
    norms: Vec<f32>,
    state: Arc<TrainState>,
    recipe: Arc<Recipe>,
    whole: Whole,
    store: Arc<SealedStore>,
}

/// What a round comes to.
pub(crate) struct Aggregated {
    state: Arc<TrainState>,
    hash: Digest,
    /// Median length of its updates.
    norm: Option<f32>,
    /// What it leaves beside the shard's state: everybody's own parameters (`personalized`).
    own: Batch,
    /// What the next round starts from.
    next: Option<Arc<Parts>>,
}

/// A round that was added up, or could not be.
pub(crate) struct Closed {
    key: RoundKey,
    live: bool,
    counted: Vec<Contributor>,
    result: Result<Aggregated, CoordinatorError>,
}

impl Closing {
    /// Adds up. Reads the updates, and writes nothing.
    pub(crate) fn run(self) -> Closed {
        let result = self.aggregate();
        Closed {
            key: self.key,
            live: self.live,
            counted: self.counted,
            result,
        }
    }

    fn aggregate(&self) -> Result<Aggregated, CoordinatorError> {
        let contributions: Vec<&Contribution> =
            self.contributions.iter().map(AsRef::as_ref).collect();
        let clip = Clip::of(&self.recipe, &self.norms, &contributions);
        let mut state = TrainState::clone(&self.state);
        let personalized = self.recipe.aggregation == Aggregation::Personalized;
        let own = if personalized {
            self.mix(&mut state, &contributions, &clip)?
        } else {
            self.add(&mut state, &contributions, &clip)?;
            Batch::new()
        };
        // Where everybody has parameters of their own, there is no start in common.
        let next = match personalized {
            true => None,
            false => Some(Arc::new(round_parts(
                &self.recipe,
                &self.whole,
                state.theta.clone(),
            )?)),
        };
        Ok(Aggregated {
            hash: Digest::of_values(&state.theta),
            state: Arc::new(state),
            norm: median_norm(&contributions),
            own,
            next,
        })
    }

    /// The round that an update was begun in.
    fn begun(&self, of: &Contributor) -> RoundKey {
        RoundKey {
            round: of.1,
            ..self.key
        }
    }

    /// Adds updates to the shard's state, a few at a time, in the order of subjects.
    fn add(
        &self,
        state: &mut TrainState,
        contributions: &[&Contribution],
        clip: &Clip,
    ) -> Result<(), CoordinatorError> {
        // Read one after the other, opened and unpacked on all cores.
        let load = |range: std::ops::Range<usize>| {
            let sealed: Vec<(SealedUpdate, f32)> = range
                .map(|i| {
                    let of = &self.counted[i];
                    let sealed = sealed_update(&self.store, self.begun(of), &of.0)?;
                    Ok((sealed.ok_or_else(missing)?, contributions[i].norm))
                })
                .collect::<Result<_, CoordinatorError>>()?;
            let open = |(sealed, norm): (SealedUpdate, f32)| {
                let update = sealed.open()?.ok_or_else(missing)?;
                update.delta(&self.recipe, &self.whole, norm)
            };
            sealed.into_par_iter().map(open).collect()
        };
        let late: Vec<u16> = self
            .counted
            .iter()
            .map(|(_, begun)| self.key.round - begun)
            .collect();
        apply(&self.recipe, state, contributions, &late, clip, load)
    }

    /// The same in mode `personalized`.
    fn mix(
        &self,
        state: &mut TrainState,
        contributions: &[&Contribution],
        clip: &Clip,
    ) -> Result<Batch, CoordinatorError> {
        let load = |i: usize| {
            let of = &self.counted[i];
            debug_assert_eq!(of.1, self.key.round, "nobody is late in this mode");
            let stored = load_update(&self.store, self.begun(of), &of.0)?;
            let update = stored.ok_or_else(missing)?;
            update.delta(&self.recipe, &self.whole, contributions[i].norm)
        };
        let subjects: Vec<SubjectId> = self.counted.iter().map(|(s, _)| s.clone()).collect();
        let round = PersonalRound {
            store: &self.store,
            recipe: &self.recipe,
            shape: &self.whole.shape,
            key: self.key,
            live: self.live,
        };
        aggregate_personal(&round, state, &subjects, contributions, clip, load)
    }
}

impl Core {
    /// What a round counts, with all that adding it up needs. The caller marks the run as closing:
    /// from then on its round takes no more.
    pub(super) fn closing_of(
        &self,
        run: &Run,
        counted: Vec<Contributor>,
    ) -> Result<Closing, CoordinatorError> {
        let contributions = counted
            .iter()
            .map(|c| run.buffer.get(c).cloned().ok_or_else(missing))
            .collect::<Result<_, _>>()?;
        Ok(Closing {
            key: run.key(),
            live: run.live,
            counted,
            contributions,
            norms: run.norms.clone(),
            state: run.state.clone(),
            recipe: self.recipe.clone(),
            whole: self.whole(),
            store: self.store.clone(),
        })
    }

    /// Begins to close every round that has what it needs, and gives those more time that have not.
    pub(super) fn close_rounds(&mut self, now: u64) -> Result<(), CoordinatorError> {
        let mut result = Ok(());
        for i in 0..self.runs.len() {
            let run = &self.runs[i];
            let open = run.open.as_ref().filter(|_| !run.closing);
            match open.and_then(|o| o.round.outcome(now)) {
                Some(Outcome::Aggregate(_)) => {
                    // All that is stored, late or not.
                    let counted = run.buffer.keys().cloned().collect();
                    // One shard that cannot close must not keep the others waiting.
                    if let Err(e) = self.close_live(i, counted) {
                        result = Err(e);
                    }
                }
                Some(Outcome::Starved { got, needed }) => self.starved(i, got, needed, now),
                None => {}
            }
        }
        result
    }

    fn close_live(&mut self, i: usize, counted: Vec<Contributor>) -> Result<(), CoordinatorError> {
        let closing = self.closing_of(&self.runs[i], counted)?;
        self.runs[i].closing = true;
        self.jobs.push(Job::AddUp(Box::new(closing)));
        Ok(())
    }

    /// A round has been added up. It counts, unless its shard was rolled back, or somebody who
    /// counted in it left, in the meantime.
    pub(crate) fn round_closed(&mut self, closed: Closed, now: u64) {
        let result = match closed.live {
            true => self.take_over(closed),
            false => self.take_over_replay(closed, now),
        };
        if let Err(e) = result {
            tracing::error!("a round could not be closed: {e}");
        }
        self.tick(now);
    }

    fn take_over(&mut self, closed: Closed) -> Result<(), CoordinatorError> {
        let key = closed.key;
        let waits = |r: &Run| r.closing && r.key() == key;
        let Some(i) = self.runs.iter().position(waits) else {
            return Ok(());
        };
        let run = &mut self.runs[i];
        run.closing = false;
        if !closed.counted.iter().all(|c| run.buffer.contains_key(c)) {
            // Somebody left: the timer closes it again, without them.
            return Ok(());
        }
        let result = closed
            .result
            .and_then(|a| self.store_round(i, &closed.counted, a));
        let run = &mut self.runs[i];
        if result.is_err() {
            // The store may hold it as it was, or as it became: it is read again.
            run.stale = true;
            run.open = None;
        }
        self.closed = true;
        result
    }

    /// Writes a closed round, then goes on from it.
    fn store_round(
        &mut self,
        i: usize,
        counted: &[Contributor],
        mut aggregated: Aggregated,
    ) -> Result<(), CoordinatorError> {
        let run = &self.runs[i];
        let key = run.key();
        let owner = stage_key(run.shard, run.stage);
        let round_id = format!("{}/{:05}", checkpoint_id(run.shard, run.stage), run.round);
        let contributors: Vec<SubjectId> = counted.iter().map(|(s, _)| s.clone()).collect();
        let begun: Vec<u16> = counted.iter().map(|(_, begun)| *begun).collect();
        let late = begun.iter().filter(|b| **b != key.round).count();
        let mut batch = std::mem::take(&mut aggregated.own);
        if late > 0 {
            batch = batch.put(&owner, &round_id, &BegunRecord(begun))?;
        }
        batch = batch.put(&owner, &round_id, &RoundRecord { contributors })?;
        if let Some(norm) = aggregated.norm {
            batch = batch.put(&owner, &round_id, &NormRecord(norm))?;
        }
        let next = run.after_round(&self.recipe);
        if next.stage != key.stage {
            let checkpoint = Checkpoint {
                lineage: self.lineage(key.shard, key.stage),
                state: TrainState::clone(&aggregated.state),
            };
            batch = batch.put(&owner, &checkpoint_id(key.shard, key.stage), &checkpoint)?;
        }
        // Sealed under the stage that it has learned from, so that a rollback of that stage takes
        // it along.
        let record = RunRecord {
            stage: next.stage,
            round: next.round,
            state: TrainState::clone(&aggregated.state),
        };
        batch = batch.put(&owner, &key.shard.0.to_string(), &record)?;
        let rates = self.with_round(counted.len());
        let sums = RatesRecord(rates);
        self.store
            .write(batch.put(&KeyName::public(), "", &sums)?)?;
        self.measured(rates);
        self.jobs.push(Job::Clean(Counted {
            store: self.store.clone(),
            key,
            counted: counted.to_vec(),
        }));
        let feeds_back = self.recipe.updates.feeds_back();
        let recipe = self.recipe.clone();
        let run = &mut self.runs[i];
        go_on(run, &recipe, counted, feeds_back, aggregated);
        let loss = run.losses().last().copied().flatten();
        tracing::info!(
            shard = %key.shard,
            stage = key.stage,
            round = key.round,
            clients = counted.len(),
            late,
            ?loss,
            "round closed"
        );
        Ok(())
    }

    /// A round of a replay: it leaves no record of itself, only its result.
    pub(super) fn store_replayed(
        &self,
        run: &mut Run,
        counted: &[Contributor],
        mut aggregated: Aggregated,
    ) -> Result<(), CoordinatorError> {
        let own = std::mem::take(&mut aggregated.own);
        self.store.write(drop_updates(own, run.key(), counted))?;
        let feeds_back = self.recipe.updates.feeds_back();
        go_on(run, &self.recipe, counted, feeds_back, aggregated);
        Ok(())
    }
}

impl Closed {
    /// Whether it is the round that this run waits for.
    pub(super) fn is_of(&self, run: &Run) -> bool {
        run.closing && run.key() == self.key
    }

    pub(super) fn into_parts(self) -> (Vec<Contributor>, Result<Aggregated, CoordinatorError>) {
        (self.counted, self.result)
    }

    pub(super) fn key(&self) -> RoundKey {
        self.key
    }
}

/// A run takes over what its round came to, and goes on to the next.
fn go_on(
    run: &mut Run,
    recipe: &Recipe,
    counted: &[Contributor],
    feeds_back: bool,
    aggregated: Aggregated,
) {
    for c in counted {
        run.buffer.remove(c);
    }
    if feeds_back {
        run.counted.extend(counted.iter().cloned());
    }
    run.norms.extend(aggregated.norm);
    run.state = aggregated.state;
    run.hash = aggregated.hash;
    run.start = aggregated.next;
    run.advance(recipe);
}
