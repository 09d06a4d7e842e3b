//! Deletion plans: pure data, computed from an inventory, checked before anything is written.
//!
//! The planner proposes, the coordinator's executor writes; nothing else schedules a deletion. Entry points:
//! [`plan`], [`Plan::lint`], [`lineage::checkpoint_key`].
//!
//! ```
//! use lethe_plan::{Inventory, Member, Request, ShardInventory, plan};
//! use lethe_proto::ids::{ShardId, SubjectId};
//! let member = |id: &str, slice| Member { subject: SubjectId::new(id).expect("an id"), slice };
//! let shard = ShardInventory { id: ShardId(0), members: vec![member("a", 0), member("b", 1)], trained_stage: 2 };
//! let inventory = Inventory { shards: vec![shard], unplaced: vec![], stages: 2, rounds_per_stage: 4 };
//! let plan = plan(&inventory, &Request { subject: SubjectId::new("b")?, items: vec![] })?;
//! assert_eq!(plan.rounds(), 4, "only the second stage is retrained");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;

use lethe_proto::ids::{ShardId, SubjectId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub mod lineage;

/// What is to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who.
    pub subject: SubjectId,
    /// Which items; empty: everything.
    pub items: Vec<String>,
}

/// A subject's place in a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The subject.
    pub subject: SubjectId,
    /// 0-based slice: the subject's data enters at stage `slice + 1`.
    pub slice: u16,
}

/// What the planner knows of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInventory {
    /// The shard.
    pub id: ShardId,
    /// Its subjects.
    pub members: Vec<Member>,
    /// Stage that training has entered (1-based; 0 before the first round).
    pub trained_stage: u16,
}

/// What the planner knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// All shards.
    pub shards: Vec<ShardInventory>,
    /// Subjects that were invited, enrolled or joined but are in no shard (yet).
    pub unplaced: Vec<SubjectId>,
    /// Stages per shard (R).
    pub stages: u16,
    /// Rounds per stage.
    pub rounds_per_stage: u32,
}

/// One step of a plan; each may be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Refuse the subject's connections.
    Revoke,
    /// Destroy the subject's keys (and with them what is stored of the subject).
    DestroySubjectKeys,
    /// Have the subject's device erase the items.
    EraseOnDevice,
    /// Destroy what the shard learned from `from_stage` on and serve the checkpoint before it.
    RollBack {
        /// The shard.
        shard: ShardId,
        /// First stage that saw the subject, 1-based.
        from_stage: u16,
    },
    /// Retrain stages `from_stage..=to_stage` on what remains.
    Retrain {
        /// The shard.
        shard: ShardId,
        /// First stage.
        from_stage: u16,
        /// Last stage.
        to_stage: u16,
    },
    /// Publish a release and tell the fleet.
    Release,
    /// Enter the statement into the log and issue the receipt.
    Receipt,
}

/// An immutable deletion plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What was asked.
    pub request: Request,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// Shards that are not touched.
    pub untouched: Vec<ShardId>,
    rounds_per_stage: u32,
    all_rounds: u32,
}

/// Why there is no plan.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// Nobody of that name.
    #[error("subject {0} is not known: it was never invited, or was deleted already")]
    UnknownSubject(SubjectId),
}

/// A plan that must not be executed: a bug in the planner or an inventory that does not fit.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the plan is not safe to execute: {0}")]
pub struct LintError(pub &'static str);

/// Plans a deletion.
pub fn plan(inventory: &Inventory, request: &Request) -> Result<Plan, PlanError> {
    let place = inventory
        .shards
        .iter()
        .find_map(|s| Some((s, s.members.iter().find(|m| m.subject == request.subject)?.slice + 1)));
    if place.is_none() && !inventory.unplaced.contains(&request.subject) {
        return Err(PlanError::UnknownSubject(request.subject.clone()));
    }
    let seen = place.filter(|(shard, from_stage)| shard.trained_stage >= *from_stage);
    let mut steps = if request.items.is_empty() {
        vec![Step::Revoke, Step::DestroySubjectKeys]
    } else {
        vec![Step::DestroySubjectKeys]
    };
    if let Some((shard, from_stage)) = seen {
        steps.push(Step::RollBack { shard: shard.id, from_stage });
        steps.push(Step::Release);
    }
    if !request.items.is_empty() {
        steps.push(Step::EraseOnDevice);
    }
    if let Some((shard, from_stage)) = seen {
        steps.push(Step::Retrain { shard: shard.id, from_stage, to_stage: shard.trained_stage });
        steps.push(Step::Release);
    }
    steps.push(Step::Receipt);
    let untouched = inventory.shards.iter().map(|s| s.id).filter(|id| seen.is_none_or(|(s, _)| s.id != *id)).collect();
    let all_rounds = inventory.rounds_per_stage * u32::from(inventory.stages) * inventory.shards.len() as u32;
    Ok(Plan { request: request.clone(), steps, untouched, rounds_per_stage: inventory.rounds_per_stage, all_rounds })
}

impl Plan {
    /// `(shard, first retrained stage)` of every shard that is rolled back.
    pub fn affected(&self) -> Vec<(ShardId, u16)> {
        let roll = |s: &Step| match s {
            Step::RollBack { shard, from_stage } => Some((*shard, *from_stage)),
            _ => None,
        };
        self.steps.iter().filter_map(roll).collect()
    }

    /// Forecast: rounds to retrain.
    pub fn rounds(&self) -> u32 {
        let of = |s: &Step| match s {
            Step::Retrain { from_stage, to_stage, .. } => u32::from(to_stage + 1 - from_stage) * self.rounds_per_stage,
            _ => 0,
        };
        self.steps.iter().map(of).sum()
    }

    /// Rounds of retraining everything.
    pub fn all_rounds(&self) -> u32 {
        self.all_rounds
    }

    /// Refuses a plan that would leave something affected serving, touch something unaffected, or lack evidence.
    pub fn lint(&self, inventory: &Inventory) -> Result<(), LintError> {
        let affected = self.affected();
        for shard in &inventory.shards {
            let member = shard.members.iter().find(|m| m.subject == self.request.subject);
            let must = member.filter(|m| shard.trained_stage > m.slice).map(|m| m.slice + 1);
            let does = affected.iter().find(|(id, _)| *id == shard.id).map(|(_, stage)| *stage);
            match (must, does) {
                (Some(m), Some(d)) if d <= m => {}
                (Some(_), _) => {
                    return Err(LintError("a shard that saw the subject would go on serving what it learned"));
                }
                (None, Some(_)) => return Err(LintError("a shard that never saw the subject would be rolled back")),
                (None, None) => {}
            }
            if does.is_some() == self.untouched.contains(&shard.id) {
                return Err(LintError("affected and untouched shards do not add up"));
            }
        }
        let retrains = self.steps.iter().filter(|s| matches!(s, Step::Retrain { .. })).count();
        if retrains != affected.len() || self.steps.last() != Some(&Step::Receipt) {
            return Err(LintError("a rollback without retraining, or no receipt at the end"));
        }
        if !self.steps.contains(&Step::DestroySubjectKeys) {
            return Err(LintError("the subject's keys would be kept"));
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.request.items.is_empty() {
            "all data".to_owned()
        } else {
            format!("items {}", self.request.items.join(", "))
        };
        writeln!(f, "forget {what} of subject {}", self.request.subject)?;
        for (i, step) in self.steps.iter().enumerate() {
            let text = match step {
                Step::Revoke => "refuse the subject's connections".to_owned(),
                Step::DestroySubjectKeys => "destroy the subject's encryption keys".to_owned(),
                Step::EraseOnDevice => "have the subject's device erase the items".to_owned(),
                Step::RollBack { shard, from_stage } => {
                    format!("{shard}: destroy stages {from_stage} and later, serve checkpoint {}", from_stage - 1)
                }
                Step::Retrain { shard, from_stage, to_stage } => {
                    format!("{shard}: retrain stages {from_stage} to {to_stage}")
                }
                Step::Release => "publish a release".to_owned(),
                Step::Receipt => "enter the statement into the log, issue the receipt".to_owned(),
            };
            writeln!(f, "  {}. {text}", i + 1)?;
        }
        let ids: Vec<String> = self.untouched.iter().map(|s| s.0.to_string()).collect();
        writeln!(f, "untouched shards: {}", if ids.is_empty() { "none".into() } else { ids.join(", ") })?;
        write!(f, "cost: {} rounds, against {} for retraining everything", self.rounds(), self.all_rounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(id: &str) -> SubjectId {
        SubjectId::new(id).expect("an id")
    }

    fn inventory() -> Inventory {
        let shard = |id: u16, names: [&str; 2]| ShardInventory {
            id: ShardId(id),
            members: names.iter().enumerate().map(|(i, n)| Member { subject: subject(n), slice: i as u16 }).collect(),
            trained_stage: 2,
        };
        Inventory {
            shards: vec![shard(0, ["a", "b"]), shard(1, ["c", "d"])],
            unplaced: vec![subject("e")],
            stages: 2,
            rounds_per_stage: 3,
        }
    }

    fn request(id: &str, items: &[&str]) -> Request {
        Request { subject: subject(id), items: items.iter().map(|s| (*s).to_owned()).collect() }
    }

    #[test]
    fn golden_plan_for_people() {
        let p = plan(&inventory(), &request("d", &[])).expect("known");
        assert_eq!(p.lint(&inventory()), Ok(()));
        let want = "forget all data of subject d\n  1. refuse the subject's connections\n  2. destroy the subject's \
                    encryption keys\n  3. shard 1: destroy stages 2 and later, serve checkpoint 1\n  4. publish a \
                    release\n  5. shard 1: retrain stages 2 to 2\n  6. publish a release\n  7. enter the statement into \
                    the log, issue the receipt\nuntouched shards: 0\ncost: 3 rounds, against 12 for retraining everything";
        assert_eq!(p.to_string(), want);
    }

    #[test]
    fn items_keep_the_subject_and_ask_the_device() {
        let p = plan(&inventory(), &request("c", &["50"])).expect("known");
        assert_eq!(p.lint(&inventory()), Ok(()));
        assert!(p.steps.contains(&Step::EraseOnDevice) && !p.steps.contains(&Step::Revoke));
        assert_eq!((p.affected(), p.rounds()), (vec![(ShardId(1), 1)], 6));
    }

    #[test]
    fn a_subject_that_was_never_trained_on_costs_nothing() {
        let mut inv = inventory();
        inv.shards[1].trained_stage = 1;
        let p = plan(&inv, &request("d", &[])).expect("known");
        assert_eq!((p.lint(&inv), p.rounds(), p.untouched.len()), (Ok(()), 0, 2));
        let invited = plan(&inv, &request("e", &[])).expect("known, though in no shard");
        assert_eq!((invited.lint(&inv), invited.rounds()), (Ok(()), 0));
        assert_eq!(invited.steps, [Step::Revoke, Step::DestroySubjectKeys, Step::Receipt]);
        assert_eq!(plan(&inv, &request("x", &[])), Err(PlanError::UnknownSubject(subject("x"))));
    }

    #[test]
    fn lint_catches_plans_that_forget_too_little_or_too_much() {
        let inv = inventory();
        let good = plan(&inv, &request("c", &[])).expect("known");
        let without = |f: &dyn Fn(&Step) -> bool| {
            let mut p = good.clone();
            p.steps.retain(|s| !f(s));
            p.lint(&inv)
        };
        assert!(without(&|s| matches!(s, Step::RollBack { .. })).is_err());
        assert!(without(&|s| matches!(s, Step::Retrain { .. })).is_err());
        assert!(without(&|s| *s == Step::DestroySubjectKeys).is_err());
        assert!(without(&|s| *s == Step::Receipt).is_err());
        let mut late = good.clone();
        late.steps.iter_mut().for_each(|s| {
            if let Step::RollBack { from_stage, .. } = s {
                *from_stage = 2;
            }
        });
        assert!(late.lint(&inv).is_err(), "a later checkpoint has seen the subject");
        let mut wide = good;
        wide.steps.insert(0, Step::RollBack { shard: ShardId(0), from_stage: 1 });
        assert!(wide.lint(&inv).is_err());
    }
}
