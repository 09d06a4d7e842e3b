//! Proposals that more than one operator has to agree to, and what the log is to hold of what
//! operators do.

use lethe_proto::deletion::Proposal;
use lethe_proto::ids::Digest;
use lethe_proto::limits::MAX_REFERENCE;
use lethe_proto::message::Refusal;

use super::{Decided, deletions, restrictions};
use crate::command::{Command, OwnPlans};
use crate::event::Event;
use crate::ids::{Fresh, Now, Refused};
use crate::state::{Action, Numbers, ProposalRecord, State};

/// Most proposals that wait at once.
const MAX_PROPOSALS: usize = 1000;
/// Most of them by one operator.
const MAX_PROPOSALS_OF_ONE: usize = 250;

/// Entries of the log that an operator may make at once, and milliseconds until one more.
const BURST: u64 = 60;
const PERIOD: u64 = 1000;

/// What a proposal needs to be carried out.
struct Means {
    secret: Digest,
    plans: Vec<OwnPlans>,
    fresh: Fresh,
}

pub(super) fn decide(state: &State, command: Command, now: Now) -> Decided {
    match command {
        Command::Propose {
            what,
            confirmed,
            note,
            by,
            secret,
            plans,
            fresh,
        } => {
            let means = Means {
                secret,
                plans,
                fresh,
            };
            propose(state, what, confirmed, note, state.operator(by), means, now)
        }
        Command::Approve {
            id,
            by,
            secret,
            plans,
            fresh,
        } => {
            let means = Means {
                secret,
                plans,
                fresh,
            };
            approve(state, id, state.operator(by), means, now)
        }
        Command::Cancel { id, by, fresh } => {
            state.proposal(id)?;
            let line = format!("cancel proposal {id}");
            let mut events = note_by(state, by, line, fresh, now)?;
            events.push(Event::ProposalClosed { id });
            Ok(events)
        }
        Command::Note { by, line, fresh } => note_by(state, by, line, fresh, now),
        _ => Ok(vec![]),
    }
}

fn propose(
    state: &State,
    what: Proposal,
    confirmed: bool,
    line: Option<String>,
    by: Digest,
    means: Means,
    now: Now,
) -> Decided {
    check(state, &what, confirmed || line.is_some(), now)?;
    let line = match &what {
        Proposal::LiftRestriction(subject) => Some(restrictions::line(state, subject)),
        _ => line,
    };
    let waits = state.approvals() > 1;
    if waits && state.proposals.len() >= MAX_PROPOSALS {
        let message = format!("{MAX_PROPOSALS} proposals wait already: approve or cancel some");
        return Err(Refused::invalid(message));
    }
    let own = state.proposals.values();
    let own = own.filter(|p| p.approved.first() == Some(&by)).count();
    if waits && own >= MAX_PROPOSALS_OF_ONE {
        let message = format!(
            "{own} proposals of this operator wait already, at most {MAX_PROPOSALS_OF_ONE}: let \
             others approve them, or cancel some"
        );
        return Err(Refused::invalid(message));
    }
    let mut events = match line {
        Some(line) => note_by(state, by, line, means.fresh, now)?,
        None => vec![],
    };
    if !waits {
        events.extend(carry_out(state, what, now.unix_ms, means, now)?);
        return Ok(events);
    }
    let id = state.core.numbers.proposal + 1;
    let numbers = Numbers {
        proposal: id,
        ..Numbers::default()
    };
    events.push(Event::NumbersTaken { numbers });
    events.push(Event::Proposed {
        id,
        proposal: ProposalRecord {
            what,
            at: now.unix_ms,
            approved: vec![by],
        },
    });
    Ok(events)
}

/// Refuses at once what could not be carried out later.
fn check(state: &State, what: &Proposal, confirmed: bool, now: Now) -> Result<(), Refused> {
    match what {
        Proposal::Forget {
            requests,
            reference,
            ..
        } => {
            if reference.len() > MAX_REFERENCE {
                let got = reference.len();
                return Err(Refused::invalid(format!(
                    "a reference of {got} bytes, at most {MAX_REFERENCE}"
                )));
            }
            deletions::check(state, requests, confirmed, now)
        }
        Proposal::InviteOperator => Ok(()),
        Proposal::Approvals(n) => {
            let operators = state.valid_operators(now).len();
            if *n == 0 || usize::from(*n) > operators {
                return Err(Refused::invalid(format!(
                    "{n} approvals: expected 1 to {operators}, the number of operators"
                )));
            }
            Ok(())
        }
        Proposal::RemoveOperator(who) => state.may_remove_operator(*who, now),
        Proposal::LiftRestriction(subject) => restrictions::check(state, subject).map(drop),
    }
}

fn carry_out(state: &State, what: Proposal, asked: u64, means: Means, now: Now) -> Decided {
    match what {
        Proposal::InviteOperator => Ok(vec![Event::OperatorInvited {
            secret: means.secret,
        }]),
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
            let accepted = deletions::Asked {
                requests,
                reference,
                asked,
                plans: means.plans,
                fresh: means.fresh,
            };
            deletions::forget(state, accepted, now)
        }
        Proposal::RemoveOperator(root) => Ok(vec![Event::OperatorRemoved { root }]),
        Proposal::LiftRestriction(subject) => restrictions::lift(state, &subject, now),
        Proposal::Approvals(approvals) => Ok(vec![Event::PolicySet { approvals }]),
    }
}

fn approve(state: &State, id: u64, by: Digest, means: Means, now: Now) -> Decided {
    let p = state.may_approve(id, by, now)?;
    let line = format!("approve proposal {id}");
    let mut events = note_by(state, by, line, means.fresh, now)?;
    // Who was removed, or could not connect any more, agrees to nothing.
    let valid = state.valid_operators(now);
    let mut approved: Vec<Digest> = p
        .approved
        .iter()
        .copied()
        .filter(|o| valid.contains(o))
        .collect();
    approved.push(by);
    if approved.len() < usize::from(state.approvals()) {
        events.push(Event::Approved { id, approved });
        return Ok(events);
    }
    events.extend(carry_out(state, p.what.clone(), p.at, means, now)?);
    // In one list: it is carried out and gone, or neither.
    events.push(Event::ProposalClosed { id });
    Ok(events)
}

/// The intent to enter an operator's action into the log, if they may enter something now.
pub(super) fn note_by(state: &State, by: Digest, what: String, fresh: Fresh, now: Now) -> Decided {
    let by = state.operator(by);
    let at = now.uptime_ms;
    let full = state.volatile.pace.get(&by).copied().unwrap_or(0).max(at);
    if full - at > (BURST - 1) * PERIOD {
        let seconds = (full - at - (BURST - 1) * PERIOD).div_ceil(1000);
        let message = format!(
            "this operator has entered {BURST} actions into the log in a row: try again in \
             {seconds} s"
        );
        return Err(Refused::new(Refusal::Busy, message));
    }
    let mut events = note(state, by, what, fresh, now);
    events.push(Event::PaceTaken {
        by,
        full: full + PERIOD,
    });
    Ok(events)
}

/// The same for whoever may always. It names nobody: names are in the deletions.
pub(super) fn note(state: &State, by: Digest, what: String, fresh: Fresh, now: Now) -> Vec<Event> {
    let no = state.core.numbers.action + 1;
    let numbers = Numbers {
        action: no,
        ..Numbers::default()
    };
    let action = Action {
        at: now.unix_ms / 1000,
        by,
        what,
    };
    // Another salt than those of deletions that the same command accepts.
    let salt = fresh.salt(u64::MAX);
    vec![
        Event::NumbersTaken { numbers },
        Event::ActionNoted { no, salt, action },
    ]
}

impl State {
    pub(crate) fn proposal(&self, id: u64) -> Result<&ProposalRecord, Refused> {
        self.proposals.get(&id).ok_or_else(|| {
            Refused::invalid(format!(
                "there is no proposal {id}: it was carried out, withdrawn, or never made"
            ))
        })
    }

    /// The proposal, if this operator may agree to it now.
    pub fn may_approve(&self, id: u64, by: Digest, now: Now) -> Result<&ProposalRecord, Refused> {
        let p = self.proposal(id)?;
        if p.approved.contains(&by) {
            let message = "another operator has to agree: this one did already";
            return Err(Refused::invalid(message));
        }
        // Who proposed it has confirmed what it says.
        check(self, &p.what, true, now)?;
        Ok(p)
    }
}
