//! What is read for devices: what a round starts from, what is served, the error table.

use std::sync::Arc;

use lethe_learn::apa::ErrorRow;
use lethe_ledger::{CatalogueVersion, EpochNo, Owner, Release, RunKey, ValueRef};
use lethe_proto::codec;
use lethe_proto::ids::{ShardId, SubjectId};
use lethe_proto::message::{ErrorReport, Refusal};

use super::{Kit, Served, Shell};
use crate::CoordinatorError;
use crate::content::{ErrorRows, Personal, TrainState};
use crate::durable::{NewValue, error_rows_ref};
use crate::rounds::{Parts, internal, parts};
use crate::rows::together;

/// By shard; none: what everybody starts from.
type Values = Vec<Option<ValueRef>>;

fn values(release: &Release) -> Values {
    release.shards.iter().map(|s| s.value.clone()).collect()
}

fn no_release() -> CoordinatorError {
    CoordinatorError::refuse(
        Refusal::Busy,
        "no release yet: the first training has not finished",
    )
}

impl Shell {
    /// The epoch that people join now: the newest that is alive.
    pub(crate) fn joining(&self) -> Result<EpochNo, CoordinatorError> {
        let newest = self.state().joining();
        newest.ok_or_else(|| internal(&"there is no epoch"))
    }

    /// The epoch whose layers score: the one that is served or, before that, the one that people
    /// join.
    pub(crate) fn scoring(&self) -> Result<EpochNo, CoordinatorError> {
        let serving = self.state().core().serving;
        serving.map_or_else(|| self.joining(), Ok)
    }

    /// The epoch that is served.
    pub(crate) fn serving(&self) -> Result<EpochNo, CoordinatorError> {
        let state = self.state();
        let (_, release) = state.current_release().ok_or_else(no_release)?;
        state.release_is_logged()?;
        Ok(release.epoch)
    }

    /// What a client starts a round from: its own parameters, or what everybody starts from.
    pub(crate) fn start_for(
        &self,
        run: &RunKey,
        kit: &Kit,
        subject: &SubjectId,
    ) -> Result<Arc<Parts>, CoordinatorError> {
        if kit.recipe.aggregation == lethe_recipe::Aggregation::Personalized {
            let own = self.own_theta(run, kit, subject)?;
            return Ok(Arc::new(parts(&kit.recipe, &kit.whole, own)?));
        }
        let seen = self.caches.seen();
        let hash = {
            let state = self.state();
            let closed = || CoordinatorError::refuse(Refusal::RoundClosed, "the round is over");
            state.start_of(run).ok_or_else(closed)?.1
        };
        if let Some(known) = self.caches.start(run, &hash) {
            return Ok(known);
        }
        let theta = self.trained(run, kit)?.theta.clone();
        let made = Arc::new(parts(&kit.recipe, &kit.whole, theta)?);
        self.caches.keep_start(run, hash, made.clone(), seen);
        Ok(made)
    }

    /// The current release, decoded and packed once.
    pub(crate) fn served(&self) -> Result<Arc<Served>, CoordinatorError> {
        let seen = self.caches.seen();
        self.may_serve()?;
        let (no, epoch, values) = {
            let state = self.state();
            let (no, release) = state.current_release().ok_or_else(no_release)?;
            state.release_is_logged()?;
            (no, release.epoch, values(release))
        };
        if let Some(known) = self.caches.served(no) {
            return Ok(known);
        }
        let served = self.made(no, epoch, values)?;
        self.caches.keep_served(served.clone(), seen);
        Ok(served)
    }

    /// Epoch, version of the catalogue, and values of the current release, if it has this number.
    pub(super) fn values_of(&self, no: u64) -> Option<(EpochNo, CatalogueVersion, Values)> {
        let state = self.state();
        let (_, release) = state.current_release().filter(|(now, _)| *now == no)?;
        let version = state.epoch(release.epoch)?.catalogue;
        Some((release.epoch, version, values(release)))
    }

    /// A release, decoded and packed.
    pub(super) fn made(
        &self,
        no: u64,
        epoch: EpochNo,
        values: Values,
    ) -> Result<Arc<Served>, CoordinatorError> {
        let kit = self.kit(epoch)?;
        let mut all = vec![];
        for at in values {
            let theta = match at {
                None => kit.initial.theta.clone(),
                Some(at) => self.theta(&at)?,
            };
            all.push(Arc::new(parts(&kit.recipe, &kit.whole, theta)?));
        }
        Ok(Arc::new(Served {
            release: no,
            parts: all,
        }))
    }

    /// What is served to a subject: every shard's part, its own in place of its shard's in mode
    /// `personalized`.
    pub(crate) fn parts_for(
        &self,
        served: &Served,
        subject: &SubjectId,
    ) -> Result<Vec<Arc<Parts>>, CoordinatorError> {
        let mut all = served.parts.clone();
        let own = self
            .state()
            .own_adapter(subject)
            .map(|(key, at)| (key, at.clone()));
        if let Some((key, at)) = own {
            let content = self.values().get(&at)?;
            let content = content.ok_or_else(|| internal(&"a person's parameters are missing"))?;
            let own: Personal =
                codec::from_bytes(&content, content.len()).map_err(|e| internal(&e))?;
            let kit = self.kit(key.epoch)?;
            if let Some(place) = all.get_mut(usize::from(key.shard.0)) {
                *place = Arc::new(parts(&kit.recipe, &kit.whole, own.0)?);
            }
        }
        Ok(all)
    }

    /// Rows whose errors are all measured on what is served.
    pub(crate) fn table(&self) -> Result<Arc<Vec<ErrorRow>>, CoordinatorError> {
        if let Some(known) = self.caches.table() {
            return Ok(known);
        }
        let seen = self.caches.seen();
        let measured = self.state().measured();
        let mut rows = vec![];
        for person in measured {
            let mut shards: Vec<ErrorRows> = vec![];
            for at in &person.shards {
                let content = self.values().get(at)?;
                let content = content.ok_or_else(|| internal(&"measured errors are missing"))?;
                shards.push(codec::from_bytes(&content, content.len()).map_err(|e| internal(&e))?);
            }
            rows.extend(together(&person.samples, &shards));
        }
        let table = Arc::new(rows);
        self.caches.keep_table(table.clone(), seen);
        Ok(table)
    }

    /// Reported rows with those of earlier reports that they do not replace, by shard.
    pub(crate) fn merge_rows(
        &self,
        subject: &SubjectId,
        reported: &[ErrorReport],
    ) -> Result<Vec<(ShardId, NewValue)>, CoordinatorError> {
        let mut shards: Vec<ShardId> = reported
            .iter()
            .flat_map(|r| r.errors.iter().map(|(s, _)| *s))
            .collect();
        shards.sort_unstable();
        shards.dedup();
        let mut out = vec![];
        for shard in shards {
            let (key, before) = {
                let state = self.state();
                let Some(key) = state.shard_of_wire(shard) else {
                    continue;
                };
                (key, state.rows_of(subject, key).cloned())
            };
            let mut rows = match before {
                None => ErrorRows::default(),
                Some(at) => match self.values().get(&at)? {
                    None => ErrorRows::default(),
                    Some(content) => {
                        codec::from_bytes(&content, content.len()).map_err(|e| internal(&e))?
                    }
                },
            };
            rows.merge(shard, reported);
            let content = codec::to_bytes(&rows).map_err(|e| internal(&e))?;
            let at = error_rows_ref(&key, subject, self.sequence(), &content);
            let owner = Owner::Person(subject.clone());
            out.push((shard, NewValue::new(at, owner, content)));
        }
        Ok(out)
    }

    /// The parameters in a training state.
    fn theta(&self, at: &ValueRef) -> Result<Vec<f32>, CoordinatorError> {
        let content = self.values().get(at)?;
        let content = content.ok_or_else(|| internal(&"a served adapter is missing"))?;
        let state: TrainState =
            codec::from_bytes(&content, content.len()).map_err(|e| internal(&e))?;
        Ok(state.theta)
    }
}
