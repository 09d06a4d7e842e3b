//! What an auditor gets, and how a coordinator trains a shard again from it.

use std::collections::BTreeMap;

use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::Refusal;
use lethe_receipt::audit::{Bundle, MAX_BUNDLE, Member, Round, VERSION};
use lethe_receipt::hex::hex;
use lethe_receipt::receipt::logged;
use lethe_receipt::statement::canonical;

use super::Core;
use super::log::key_of;
use crate::CoordinatorError;
use crate::records::Contributor;

fn refuse(why: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(Refusal::Invalid, why)
}

/// What a member of a bundle is called in the auditor's federation; in the order of the bundle.
fn alias(member: usize) -> String {
    format!("member-{member:06}")
}

/// What an audit trains: rounds with their clients, and what must come out.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(crate) shard: ShardId,
    pub(crate) rounds: BTreeMap<(u16, u16), Vec<Contributor>>,
    pub(crate) adapter: Digest,
}

impl Schedule {
    /// From a bundle that was verified.
    pub(crate) fn of(bundle: &Bundle) -> Result<Self, CoordinatorError> {
        let names: Vec<SubjectId> = (0..bundle.members.len())
            .map(|i| SubjectId::new(alias(i)).map_err(|e| refuse(e.to_string())))
            .collect::<Result<_, _>>()?;
        let clients = |r: &Round| -> Vec<Contributor> {
            let begun = |i: usize| r.begun.get(i).copied().unwrap_or(r.round);
            r.members
                .iter()
                .enumerate()
                .filter_map(|(i, m)| Some((names.get(*m as usize)?.clone(), begun(i))))
                .collect()
        };
        Ok(Self {
            shard: ShardId(bundle.training.training.shard),
            rounds: bundle
                .rounds
                .iter()
                .map(|r| ((r.stage, r.round), clients(r)))
                .collect(),
            adapter: Digest::parse(&bundle.adapter)
                .ok_or_else(|| refuse("the bundle's adapter is no hash"))?,
        })
    }
}

impl Core {
    /// A shard's training as it stands, for an auditor.
    pub(super) fn audit_bundle(&self, shard: ShardId) -> Result<String, CoordinatorError> {
        let Some(run) = self.runs.get(usize::from(shard.0)) else {
            return Err(refuse(
                "there is no such shard: `lethe-admin status` lists them",
            ));
        };
        if !run.done(&self.recipe) {
            return Err(refuse(
                "the shard is being trained: export it when `lethe-admin status` says it is done",
            ));
        }
        let training = self
            .logged_training(shard)?
            .filter(|t| self.records_now(t).is_some());
        let training = training
            .ok_or_else(|| refuse("the log does not yet say what the shard is trained on"))?;
        let all: Vec<_> = self
            .members(shard)
            .filter(|(_, r)| r.erase.is_none())
            .collect();
        let position: BTreeMap<&SubjectId, u32> = all
            .iter()
            .enumerate()
            .map(|(i, (s, _))| (*s, i as u32))
            .collect();
        let round = |((stage, round), contributors): ((u16, u16), Vec<Contributor>)| {
            let members: Option<Vec<u32>> = contributors
                .iter()
                .map(|(s, _)| position.get(s).copied())
                .collect();
            let members = members
                .ok_or_else(|| refuse("a round has somebody who is not in the shard any more"))?;
            let late = contributors.iter().any(|(_, begun)| *begun != round);
            let begun = contributors
                .iter()
                .filter(|_| late)
                .map(|(_, begun)| *begun)
                .collect();
            Ok(Round {
                stage,
                round,
                members,
                begun,
            })
        };
        let member = |(s, r): &(&SubjectId, &crate::records::SubjectRecord)| Member {
            key: hex(&key_of(&r.salt, s)),
            data: r.commitment.hex(),
            slice: r.slice,
        };
        let bundle = Bundle {
            version: VERSION,
            recipe: self.recipe.to_json(),
            training: logged(
                training.training,
                &training.salt,
                training.index,
                &self.tree,
            )?,
            members: all.iter().map(member).collect(),
            rounds: self
                .recorded_rounds(shard)?
                .into_iter()
                .map(round)
                .collect::<Result<_, CoordinatorError>>()?,
            adapter: run.hash().hex(),
            engine: lethe_model::engine(),
            checkpoint: self.checkpoint(),
        };
        let text = String::from_utf8_lossy(&canonical(&bundle)).into_owned();
        if text.len() > MAX_BUNDLE - 1024 {
            let (got, most) = (text.len(), MAX_BUNDLE - 1024);
            return Err(refuse(format!(
                "the shard's bundle has {got} bytes, at most {most} fit into a reply"
            )));
        }
        Ok(text)
    }

    /// From now on a replay of the bundle's shard trains the bundle's rounds.
    pub(crate) fn audit(&mut self, bundle: &Bundle) -> Result<(), CoordinatorError> {
        if self.recipe.to_json() != bundle.recipe
            || self.recipe_digest.hex() != bundle.training.training.recipe
        {
            return Err(refuse(
                "the bundle has another recipe than this coordinator's configuration",
            ));
        }
        if self.model.hex() != bundle.training.training.base_model {
            let (got, want) = (self.model.hex(), &bundle.training.training.base_model);
            return Err(refuse(format!(
                "the bundle is about base model {want}, this is {got}"
            )));
        }
        if self.epoch.is_some() {
            return Err(refuse(
                "an audit needs an empty data folder: this one holds an epoch",
            ));
        }
        self.audited = Some(Schedule::of(bundle)?);
        Ok(())
    }
}
