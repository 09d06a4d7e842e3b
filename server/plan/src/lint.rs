//! A second look at a plan, by other code than made it, before anything is written.

use lethe_proto::deletion::DeletionRequest as Request;
use thiserror::Error;

use crate::inventory::Inventory;
use crate::plan::{Plan, Step};

/// A plan that must not be executed: a bug in the planner or an inventory that does not fit.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the plan is not safe to execute: {0}")]
pub struct LintError(pub &'static str);

impl Plan {
    /// Refuses a plan that would leave something affected serving, touch something unaffected, or
    /// lack evidence.
    pub fn lint(&self, inventory: &Inventory) -> Result<(), LintError> {
        self.lint_shards(inventory)?;
        self.lint_subjects()?;
        let at = |wanted: &dyn Fn(&Step) -> bool| self.steps.iter().position(wanted);
        let rolled = at(&|s| matches!(s, Step::RollBack { .. }));
        let released = at(&|s| *s == Step::Release);
        let recalled = at(&|s| *s == Step::Recall);
        let retrained = at(&|s| matches!(s, Step::Retrain { .. }));
        match (rolled, released, recalled, retrained) {
            (None, None, None, None) => {}
            (Some(a), Some(b), Some(c), Some(d)) if a < b && b < c && c < d => {}
            _ => {
                return Err(LintError(
                    "what is served is not made exact, recalled and retrained in this order",
                ));
            }
        }
        if at(&|s| *s == Step::Reweigh).is_none() {
            return Err(LintError("measurements on the data would be kept"));
        }
        let want = Step::Receipts {
            count: self.requests.len() as u32,
        };
        if self.steps.last() != Some(&want)
            || self.steps.iter().filter(|s| **s == want).count() != 1
        {
            return Err(LintError("not one receipt per request at the end"));
        }
        Ok(())
    }

    fn lint_shards(&self, inventory: &Inventory) -> Result<(), LintError> {
        let affected = self.affected();
        for shard in &inventory.shards {
            // The earliest stage that any concerned member entered, found member by member.
            let mut must: Option<u16> = None;
            for m in &shard.members {
                let stage = m.slice + 1;
                if !m.idle
                    && stage <= shard.trained_stage
                    && self.requests.iter().any(|r| r.concerns(&m.subject))
                {
                    must = Some(must.map_or(stage, |s| s.min(stage)));
                }
            }
            let mut rolls = affected.iter().filter(|(id, _)| *id == shard.id);
            let does = rolls.next().map(|(_, stage)| *stage);
            if rolls.next().is_some() {
                return Err(LintError("a shard would be rolled back twice"));
            }
            match (must, does) {
                (Some(m), Some(d)) if d == m => {}
                (Some(m), Some(d)) if d < m => {
                    return Err(LintError("more stages than needed would be destroyed"));
                }
                (Some(_), _) => {
                    return Err(LintError(
                        "a shard that saw the data would go on serving what it learned",
                    ));
                }
                (None, Some(_)) => {
                    return Err(LintError(
                        "a shard that never saw the data would be rolled back",
                    ));
                }
                (None, None) => {}
            }
            if does.is_some() == self.untouched.contains(&shard.id) {
                return Err(LintError("affected and untouched shards do not add up"));
            }
            let again = self.steps.iter().filter(|s| match s {
                Step::Retrain {
                    shard: id,
                    from_stage,
                    to_stage,
                    ..
                } => {
                    *id == shard.id && Some(*from_stage) == does && *to_stage == shard.trained_stage
                }
                _ => false,
            });
            if again.count() != usize::from(does.is_some()) {
                return Err(LintError(
                    "a rollback without retraining, or retraining without a rollback",
                ));
            }
        }
        if affected
            .iter()
            .any(|(id, _)| inventory.shards.iter().all(|s| s.id != *id))
        {
            return Err(LintError("a shard that does not exist"));
        }
        Ok(())
    }

    fn lint_subjects(&self) -> Result<(), LintError> {
        let renews = self
            .steps
            .iter()
            .any(|s| matches!(s, Step::RenewKeys { .. }));
        if renews != self.requests.iter().any(|r| r.subject().is_none()) {
            return Err(LintError(
                "everybody's keys go with a request about everybody, and only then",
            ));
        }
        for r in &self.requests {
            let Some(s) = r.subject() else { continue };
            let has = |step: Step| self.steps.contains(&step);
            let keys = has(Step::DestroyKeys { subject: s.clone() });
            match r {
                Request::Restrict { .. } if keys => {
                    return Err(LintError("restricted data would be destroyed"));
                }
                Request::Restrict { .. } if !has(Step::SetAside { subject: s.clone() }) => {
                    return Err(LintError("restricted data would be used"));
                }
                Request::Restrict { .. } => {}
                _ if !keys => return Err(LintError("the subject's keys would be kept")),
                Request::Erase { .. } if !has(Step::Withdraw { subject: s.clone() }) => {
                    return Err(LintError("the subject could come back"));
                }
                _ => {}
            }
        }
        for step in &self.steps {
            if let Step::Withdraw { subject }
            | Step::DestroyKeys { subject }
            | Step::SetAside { subject } = step
                && !self.requests.iter().any(|r| r.subject() == Some(subject))
            {
                return Err(LintError("somebody else's data would be touched"));
            }
        }
        Ok(())
    }
}
