//! An audit: a coordinator that trains the rounds of a verified bundle again, and nothing else.

use std::sync::Arc;

use lethe_ledger::{Contributor, EpochNo, Mode, Schedule};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_receipt::audit::{Bundle, Round};

use super::Shell;
use crate::{CoordinatorError, fatal};

/// What a member of a bundle is called in the auditor's federation; in the order of the bundle.
fn alias(member: usize) -> String {
    format!("member-{member:06}")
}

/// What a bundle that was verified says of a shard of this epoch.
fn schedule(epoch: EpochNo, bundle: &Bundle) -> Result<Schedule, CoordinatorError> {
    let names: Vec<SubjectId> = (0..bundle.members.len())
        .map(|i| SubjectId::new(alias(i)).map_err(|e| CoordinatorError::invalid(e.to_string())))
        .collect::<Result<_, _>>()?;
    let clients = |r: &Round| -> Vec<Contributor> {
        let begun = |i: usize| r.begun.get(i).copied().unwrap_or(r.round);
        r.members
            .iter()
            .enumerate()
            .filter_map(|(i, m)| Some((names.get(*m as usize)?.clone(), begun(i))))
            .collect()
    };
    let rounds = bundle.rounds.iter();
    let adapter = Digest::parse(&bundle.adapter);
    Ok(Schedule {
        epoch,
        shard: ShardId(bundle.training.training.shard),
        rounds: rounds.map(|r| ((r.stage, r.round), clients(r))).collect(),
        adapter: adapter
            .ok_or_else(|| CoordinatorError::invalid("the bundle's adapter is no hash"))?,
    })
}

impl Shell {
    /// From now on a replay of the bundle's shard trains the bundle's rounds.
    pub(crate) fn audit(&self, bundle: &Bundle) -> Result<(), CoordinatorError> {
        let epoch = self.joining()?;
        let kit = self.kit(epoch)?;
        let mut rules = fatal::lock(&self.rules);
        let mut state = self.state_alone();
        let Some(founded) = state.epoch(epoch) else {
            return Err(CoordinatorError::invalid("there is no epoch"));
        };
        let training = &bundle.training.training;
        if kit.recipe.to_json() != bundle.recipe || kit.recipe.digest().hex() != training.recipe {
            return Err(CoordinatorError::invalid(
                "the bundle has another recipe than this coordinator's configuration",
            ));
        }
        if founded.model.hex() != training.base_model {
            let got = founded.model.hex();
            let want = &training.base_model;
            return Err(CoordinatorError::invalid(format!(
                "the bundle is about base model {want}, this is {got}"
            )));
        }
        if founded.partition.is_some() {
            return Err(CoordinatorError::invalid(
                "an audit needs an empty data folder: this one holds an epoch that has begun",
            ));
        }
        rules.mode = Mode::Audit(Arc::new(schedule(epoch, bundle)?));
        state.set_rules(rules.clone());
        Ok(())
    }
}
