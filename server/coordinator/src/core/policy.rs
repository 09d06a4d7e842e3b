//! Whose word counts: proposals that more than one operator has to agree to, and the record of what
//! operators do.

use std::collections::BTreeMap;

use lethe_proto::admin::{ActionState, AdminReply, ProposalState};
use lethe_proto::deletion::Proposal;
use lethe_proto::ids::Digest;
use lethe_proto::limits::MAX_REFERENCE;
use lethe_proto::message::Refusal;
use lethe_receipt::statement::{Kind, canonical};
use lethe_store::sealed::{Batch, KeyName};

use super::{Core, page};
use crate::CoordinatorError;
use crate::records::{Action, ActionRecord, Counters, Policy, ProposalRecord};

/// Most proposals that wait at once.
const MAX_PROPOSALS: usize = 1000;

/// Entries of the log that an operator may make at once, and milliseconds until one more.
const BURST: u64 = 60;
const PERIOD: u64 = 1000;

/// How fast operators may write into the log, which only grows (the generic cell rate algorithm,
/// ITU-T I.371).
#[derive(Debug, Default)]
pub(crate) struct Pace(BTreeMap<Digest, u64>);

impl Pace {
    fn take(&mut self, by: Digest, now: u64) -> Result<(), CoordinatorError> {
        // When all that this operator has entered would have been, one a period.
        let full = self.0.get(&by).copied().unwrap_or(0).max(now);
        if full - now > (BURST - 1) * PERIOD {
            let seconds = (full - now - (BURST - 1) * PERIOD).div_ceil(1000);
            let message = format!(
                "this operator has entered {BURST} actions into the log in a row: try again in \
                 {seconds} s"
            );
            return Err(CoordinatorError::refuse(Refusal::Busy, message));
        }
        self.0.insert(by, full + PERIOD);
        Ok(())
    }
}

fn refuse(message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(Refusal::Invalid, message)
}

fn owner(id: u64) -> KeyName {
    KeyName::evidence_of(&format!("proposal/{id}"))
}

impl Core {
    /// How many operators have to agree to a deletion.
    pub(super) fn approvals(&self) -> Result<u8, CoordinatorError> {
        Ok(self.store.get::<Policy>("")?.map_or(1, |p| p.approvals))
    }

    /// Does what an operator asks, or keeps it until enough others agree.
    pub(super) fn propose(
        &mut self,
        what: Proposal,
        confirmed: bool,
        by: Digest,
        now: u64,
    ) -> Result<AdminReply, CoordinatorError> {
        self.open_databases()?;
        self.check(&what, confirmed)?;
        if self.approvals()? <= 1 {
            return self.carry_out(what, self.unix_ms, now);
        }
        self.may_propose()?;
        let counters = Counters {
            proposal: self.counters.proposal + 1,
            ..self.counters.clone()
        };
        let record = ProposalRecord {
            what,
            at: self.unix_ms,
            approved: vec![by],
        };
        let id = counters.proposal;
        self.with_space(|core| {
            let batch = Batch::new().put(&owner(id), &id.to_string(), &record)?;
            Ok(core
                .store
                .write(batch.put(&KeyName::public(), "", &counters)?)?)
        })?;
        self.counters = counters;
        Ok(AdminReply::Proposed(self.proposal_state(id, record)?))
    }

    /// Refuses what would wait when too much does.
    fn may_propose(&self) -> Result<(), CoordinatorError> {
        let waits = self.approvals()? > 1;
        if waits && self.store.keys::<ProposalRecord>().len() >= MAX_PROPOSALS {
            let message = format!("{MAX_PROPOSALS} proposals wait already: approve or cancel some");
            return Err(refuse(message));
        }
        Ok(())
    }

    /// The same, for a proposal that is entered into the log when it is made: it is checked before.
    pub(super) fn note_proposal(
        &mut self,
        what: Proposal,
        line: String,
        by: Digest,
        now: u64,
    ) -> Result<AdminReply, CoordinatorError> {
        self.open_databases()?;
        self.check(&what, true)?;
        self.may_propose()?;
        self.note_by(by, line, now)?;
        self.propose(what, true, by, now)
    }

    /// Opens what a full disk has closed, with the space that was set aside if it takes that: a
    /// deletion can then be read about and planned.
    pub(super) fn open_databases(&mut self) -> Result<(), CoordinatorError> {
        self.with_space(|core| {
            core.store.recover()?;
            core.reload_stale()
        })
    }

    /// Refuses at once what could not be carried out later.
    fn check(&self, what: &Proposal, confirmed: bool) -> Result<(), CoordinatorError> {
        match what {
            Proposal::Forget {
                requests,
                reference,
                ..
            } => {
                if reference.len() > MAX_REFERENCE {
                    let got = reference.len();
                    return Err(refuse(format!(
                        "a reference of {got} bytes, at most {MAX_REFERENCE}"
                    )));
                }
                self.plan_deletion(requests, confirmed).map(drop)
            }
            Proposal::InviteOperator => Ok(()),
            Proposal::Approvals(n) => {
                let operators = self.valid_operators().len();
                if *n == 0 || usize::from(*n) > operators {
                    return Err(refuse(format!(
                        "{n} approvals: expected 1 to {operators}, the number of operators"
                    )));
                }
                Ok(())
            }
            Proposal::RemoveOperator(who) => self.may_remove_operator(*who),
        }
    }

    fn carry_out(
        &mut self,
        what: Proposal,
        asked: u64,
        now: u64,
    ) -> Result<AdminReply, CoordinatorError> {
        match what {
            Proposal::InviteOperator => Ok(AdminReply::Invited {
                token: self.invite(None)?.text(),
            }),
            Proposal::Forget {
                requests,
                asked: earlier,
                reference,
            } => {
                // A year back at most: what is older was asked of somebody else.
                let year = asked.saturating_sub(366 * 86_400_000);
                let asked = if earlier > 0 {
                    earlier.saturating_mul(1000).clamp(year, asked)
                } else {
                    asked
                };
                let (plan, ids) = self.forget(requests, &reference, asked)?;
                self.tick(now);
                Ok(super::admin::planned(&plan, ids))
            }
            Proposal::RemoveOperator(who) => {
                self.remove_operator(who)?;
                Ok(AdminReply::Done)
            }
            Proposal::Approvals(approvals) => {
                self.store.write(Batch::new().put(
                    &KeyName::public(),
                    "",
                    &Policy { approvals },
                )?)?;
                Ok(AdminReply::Policy { approvals })
            }
        }
    }

    pub(super) fn proposal(&self, id: u64) -> Result<ProposalRecord, CoordinatorError> {
        let found = self.store.get::<ProposalRecord>(&id.to_string())?;
        found.ok_or_else(|| {
            refuse(format!(
                "there is no proposal {id}: it was carried out, withdrawn, or never made"
            ))
        })
    }

    fn proposal_state(
        &self,
        id: u64,
        p: ProposalRecord,
    ) -> Result<ProposalState, CoordinatorError> {
        let missing = self.approvals()?.saturating_sub(p.approved.len() as u8);
        Ok(ProposalState {
            id,
            what: p.what,
            at: p.at / 1000,
            approved: p.approved,
            missing,
        })
    }

    /// A page of the proposals that wait, after a number.
    pub(super) fn proposals(&self, after: u64) -> Result<Vec<ProposalState>, CoordinatorError> {
        let numbered = |(k, p): (String, ProposalRecord)| Some((k.parse::<u64>().ok()?, p));
        let mut all: Vec<(u64, ProposalRecord)> = self
            .store
            .all::<ProposalRecord>()?
            .into_iter()
            .filter_map(numbered)
            .collect();
        all.retain(|(id, _)| *id > after);
        all.sort_by_key(|(id, _)| *id);
        let states: Vec<ProposalState> = all
            .into_iter()
            .map(|(id, p)| self.proposal_state(id, p))
            .collect::<Result<_, _>>()?;
        Ok(page(states.into_iter()))
    }

    /// The proposal, if this operator may agree to it now.
    pub(super) fn may_approve(
        &self,
        id: u64,
        by: Digest,
    ) -> Result<ProposalRecord, CoordinatorError> {
        let p = self.proposal(id)?;
        if p.approved.contains(&by) {
            let message = "another operator has to agree: this one did already";
            return Err(refuse(message));
        }
        // Who proposed it has confirmed what it says.
        self.check(&p.what, true)?;
        Ok(p)
    }

    /// Another operator agrees.
    pub(super) fn approve(
        &mut self,
        id: u64,
        by: Digest,
        now: u64,
    ) -> Result<AdminReply, CoordinatorError> {
        self.open_databases()?;
        let mut p = self.may_approve(id, by)?;
        // Who was removed, or could not connect any more, agrees to nothing.
        let valid = self.valid_operators();
        p.approved.retain(|o| valid.contains(o));
        p.approved.push(by);
        if p.approved.len() < usize::from(self.approvals()?) {
            self.with_space(|core| {
                Ok(core
                    .store
                    .write(Batch::new().put(&owner(id), &id.to_string(), &p)?)?)
            })?;
            return Ok(AdminReply::Proposed(self.proposal_state(id, p)?));
        }
        let reply = self.carry_out(p.what, p.at, now)?;
        self.store.destroy(&[owner(id)])?;
        Ok(reply)
    }

    /// Withdraws a proposal.
    pub(super) fn cancel(&mut self, id: u64) -> Result<(), CoordinatorError> {
        self.proposal(id)?;
        self.store.destroy(&[owner(id)])?;
        Ok(())
    }

    /// The same for an operator, each of whom may enter only so much.
    pub(super) fn note_by(
        &mut self,
        by: Digest,
        what: String,
        now: u64,
    ) -> Result<(), CoordinatorError> {
        self.pace.take(by, now)?;
        self.note(by, what)
    }

    /// Enters an operator's action into the log. It names nobody: names are in the deletions.
    pub(super) fn note(&mut self, by: Digest, what: String) -> Result<(), CoordinatorError> {
        let action = Action {
            at: self.unix_ms / 1000,
            by,
            what,
        };
        let salt = lethe_seal::random()?;
        let entry = self.enter(Kind::Action, &salt, &canonical(&action))?;
        let record = ActionRecord { salt, action };
        Ok(self.store.write(Batch::new().put(
            &KeyName::public(),
            &entry.to_string(),
            &record,
        )?)?)
    }

    /// What operators did.
    pub(super) fn actions(&self) -> Result<Vec<ActionState>, CoordinatorError> {
        let state = |(k, r): (String, ActionRecord)| {
            let (at, by, what) = (r.action.at, r.action.by, r.action.what);
            Some(ActionState {
                entry: k.parse().ok()?,
                at,
                by,
                what,
            })
        };
        let mut all: Vec<ActionState> = self
            .store
            .all::<ActionRecord>()?
            .into_iter()
            .filter_map(state)
            .collect();
        all.sort_by_key(|a| a.entry);
        // The newest that fit into a message.
        let skip = all.len().saturating_sub(200);
        Ok(all.split_off(skip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_enters_sixty_actions_at_once_and_then_one_a_second() {
        let mut pace = Pace::default();
        let (a, b) = (Digest([1; 32]), Digest([2; 32]));
        assert_eq!((0..100).filter(|_| pace.take(a, 5).is_ok()).count(), 60);
        assert!(pace.take(b, 5).is_ok(), "others are not concerned");
        assert!(pace.take(a, 900).is_err());
        let later = 5 + 10 * PERIOD;
        assert_eq!((0..100).filter(|_| pace.take(a, later).is_ok()).count(), 10);
    }
}
