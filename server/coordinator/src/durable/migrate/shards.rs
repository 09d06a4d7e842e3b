//! Shards: runs, checkpoints, rounds, updates of rounds that have not closed.

use std::collections::{BTreeMap, BTreeSet};

use lethe_ledger::{
    Checkpoint, Contributor, Owner, Person, RoundSum, Run, RunKey, Shard, ShardKey, SliceId, Stage,
    StageKey, StageSum, TrainingRecord,
};
use lethe_proto::ids::{Digest, ShardId, SubjectId};

use super::super::values::{NewValue, checkpoint_ref, personal_ref, run_state_ref, update_ref};
use super::old;
use super::people::counters;
use super::{Part, Source, bytes};
use crate::CoordinatorError;

/// What is read of a shard, and what becomes of it.
struct Old<'a> {
    source: &'a Source,
    key: ShardKey,
    generation: u32,
    part: Part,
    stages: BTreeMap<u16, Stage>,
}

fn checkpoint_id(shard: ShardId, stage: u16) -> String {
    format!("{:05}/{stage:05}", shard.0)
}

/// A shard as the ledger has it, with what its stages hold.
pub(super) fn shard(
    source: &Source,
    shard: ShardId,
    people: &BTreeMap<SubjectId, Person>,
) -> Result<(Shard, Part), CoordinatorError> {
    let known = source.store.get::<old::Generation>(&shard.0.to_string())?;
    let new = || counters(source).map(|c| c.generation + 1 + u32::from(shard.0));
    let mut from = Old {
        source,
        key: source.shard(shard),
        generation: known.map_or_else(new, |g| Ok(g.0))?,
        part: Part::default(),
        stages: BTreeMap::new(),
    };
    let mut run = from.run()?;
    from.rounds(&run)?;
    from.sums(&mut run)?;
    from.updates(&run, people)?;
    from.personal(&run)?;
    for (stage, content) in std::mem::take(&mut from.stages) {
        let key = from.stage_key(stage);
        from.part.slice(SliceId::Stage(key), &content)?;
    }
    let logged = source
        .store
        .get::<old::TrainingRecord>(&shard.0.to_string())?;
    let shard = Shard {
        run: run.run,
        intended: None,
        logged: logged.map(training),
        replay: None,
    };
    Ok((shard, from.part))
}

pub(super) fn training(t: old::TrainingRecord) -> TrainingRecord {
    TrainingRecord {
        training: t.training,
        salt: t.salt,
        index: t.index,
    }
}

/// A run, and the losses that its state has kept.
struct Losses {
    run: Run,
    losses: Vec<f32>,
}

impl Old<'_> {
    fn stage_key(&self, stage: u16) -> StageKey {
        StageKey {
            epoch: self.key.epoch,
            shard: self.key.shard,
            generation: self.generation,
            stage,
        }
    }

    /// The run as it was stored, or from the newest checkpoint; with all checkpoints.
    fn run(&mut self) -> Result<Losses, CoordinatorError> {
        let store = &self.source.store;
        let shard = self.key.shard;
        let mut run = Run::initial(self.generation, self.source.base.initial);
        let mut losses = vec![];
        for stage in 1..=self.source.recipe.slices as u16 {
            let found = store.get::<old::Checkpoint>(&checkpoint_id(shard, stage))?;
            let Some(checkpoint) = found else {
                // What is behind a gap was trained on what is gone.
                break;
            };
            let content = bytes(&checkpoint.state)?;
            let key = self.stage_key(stage);
            let value = checkpoint_ref(&key, &content);
            let new = NewValue::new(value.clone(), Owner::Stage(key), content);
            self.part.values.push(new);
            let hash = Digest::of_values(&checkpoint.state.theta);
            run.stage = stage + 1;
            run.state = Some(value.clone());
            run.hash = hash;
            let sum = StageSum {
                generation: self.generation,
                checkpoint: Some(Checkpoint {
                    value,
                    hash,
                    lineage: checkpoint.lineage,
                }),
            };
            run.stages.insert(stage, sum);
            losses = checkpoint.state.losses;
            self.stages.entry(stage).or_default();
        }
        let stored = store.get::<old::RunRecord>(&shard.0.to_string())?;
        let stored = stored.filter(|r| r.stage == run.stage && r.round > 0);
        if let Some(record) = stored {
            losses = self.between_rounds(&mut run, record)?;
        }
        Ok(Losses { run, losses })
    }

    /// A run inside a stage: its state is a value of its own.
    fn between_rounds(
        &mut self,
        run: &mut Run,
        record: old::RunRecord,
    ) -> Result<Vec<f32>, CoordinatorError> {
        let content = bytes(&record.state)?;
        let stage = self.stage_key(record.stage);
        let left = RunKey {
            round: record.round - 1,
            ..run.key(self.key)
        };
        let value = run_state_ref(&left, &content);
        let new = NewValue::new(value.clone(), Owner::Stage(stage), content);
        self.part.values.push(new);
        run.round = record.round;
        run.hash = Digest::of_values(&record.state.theta);
        run.state = Some(value);
        let sum = StageSum {
            generation: self.generation,
            checkpoint: None,
        };
        run.stages.insert(record.stage, sum);
        self.stages.entry(record.stage).or_default();
        Ok(record.state.losses)
    }

    /// Who contributed to every round that the run stands on.
    fn rounds(&mut self, from: &Losses) -> Result<(), CoordinatorError> {
        let store = &self.source.store;
        let begun = store.all::<old::BegunRecord>()?.into_iter();
        let begun: BTreeMap<String, old::BegunRecord> = begun.collect();
        for (id, record) in store.all::<old::RoundRecord>()? {
            let parts: Vec<u16> = id.split('/').filter_map(|p| p.parse().ok()).collect();
            let [shard, stage, round] = parts[..] else {
                continue;
            };
            let run = &from.run;
            let closed = (stage, round) < (run.stage, run.round);
            if shard != self.key.shard.0 || !closed {
                continue;
            }
            let all = record.contributors.into_iter();
            let counted: Vec<Contributor> = match begun.get(&id) {
                Some(begun) => all.zip(begun.0.iter().copied()).collect(),
                None => all.map(|s| (s, round)).collect(),
            };
            let stage = self.stages.entry(stage).or_default();
            stage.rounds.insert(round, counted);
        }
        Ok(())
    }

    /// What every closed round has left: losses were in the state, lengths in records.
    fn sums(&self, from: &mut Losses) -> Result<(), CoordinatorError> {
        let rounds = self.source.recipe.rounds as u16;
        let (stage, round) = (from.run.stage, from.run.round);
        for (i, loss) in from.losses.iter().enumerate() {
            let at = (i as u16 / rounds + 1, i as u16 % rounds);
            if at >= (stage, round) {
                break;
            }
            let id = format!("{}/{:05}", checkpoint_id(self.key.shard, at.0), at.1);
            let counted = self.stages.get(&at.0).and_then(|s| s.rounds.get(&at.1));
            from.run.rounds.push(RoundSum {
                loss: loss.is_finite().then_some(*loss),
                norm: self.source.store.get::<old::NormRecord>(&id)?.map(|n| n.0),
                clients: counted.map_or(0, |c| c.len() as u32),
            });
        }
        Ok(())
    }

    /// Updates of the stage that the run is in, which have not counted yet. They are opened with
    /// the stage's old key; the writer seals them under the new one.
    fn updates(
        &mut self,
        from: &Losses,
        people: &BTreeMap<SubjectId, Person>,
    ) -> Result<(), CoordinatorError> {
        let store = &self.source.store;
        let (shard, at) = (self.key.shard, from.run.stage);
        let secret = store.get::<old::UpdateKey>(&checkpoint_id(shard, at))?;
        let Some(old::UpdateKey(secret)) = secret else {
            return Ok(());
        };
        let key = self.stage_key(at);
        let stage = self.stages.entry(at).or_default();
        let counted: BTreeSet<Contributor> = stage.rounds.values().flatten().cloned().collect();
        let prefix = format!("{}/{}/{at}/", shard.0, self.generation);
        for id in store.keys::<old::UpdateRecord>() {
            let rest = id.strip_prefix(&prefix).and_then(|r| r.split_once('/'));
            let named = rest.and_then(|(round, name)| {
                Some((SubjectId::new(name).ok()?, round.parse::<u16>().ok()?))
            });
            let Some(of) = named.filter(|of| !counted.contains(of)) else {
                continue;
            };
            let Some(record) = store.get::<old::UpdateRecord>(&id)? else {
                continue;
            };
            let plain = lethe_seal::unseal(&secret, id.as_bytes(), &record.0);
            let Some(content) = plain.filter(|_| people.contains_key(&of.0)) else {
                continue;
            };
            let value = update_ref(&key, &of.0, of.1, &content);
            let owner = Owner::Person(of.0.clone());
            let new = NewValue::new(value.clone(), owner, content);
            self.part.values.push(new);
            stage.stored.insert(of, value);
        }
        Ok(())
    }

    /// Everybody's own parameters, in mode `personalized`. Those of replays are left: a restart
    /// ended replays.
    fn personal(&mut self, from: &Losses) -> Result<(), CoordinatorError> {
        let prefix = format!("live/{}/", self.key.shard.0);
        for (id, record) in self.source.store.all::<old::PersonalRecord>()? {
            let rest = id.strip_prefix(&prefix).and_then(|r| r.split_once('/'));
            let named = rest.and_then(|(stage, name)| {
                Some((stage.parse::<u16>().ok()?, SubjectId::new(name).ok()?))
            });
            let kept = named.filter(|(stage, _)| from.run.stages.contains_key(stage));
            let Some((stage, subject)) = kept else {
                continue;
            };
            let content = bytes(&record)?;
            let key = self.stage_key(stage);
            // Which round has left them was not written down.
            let run = RunKey {
                stage,
                round: 0,
                ..from.run.key(self.key)
            };
            let value = personal_ref(&run, &subject, &content);
            let new = NewValue::new(value.clone(), Owner::Stage(key), content);
            self.part.values.push(new);
            let stage = self.stages.entry(stage).or_default();
            stage.personal.insert(subject, value);
        }
        Ok(())
    }
}
