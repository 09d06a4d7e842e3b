//! Proposals that more than one operator has to agree to, and what the log is to hold of what
//! operators do.

use lethe_proto::deletion::Proposal;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::limits::{MAX_REFERENCE, MAX_SCAN_TEXT, MAX_SCAN_TEXTS};
use lethe_proto::message::Refusal;

use super::{Decided, deletions, identities, restrictions};
use crate::command::{Command, OwnPlans};
use crate::event::Event;
use crate::ids::{Fresh, Now, Refused};
use crate::state::{Action, Numbers, ProposalRecord, State};

/// Most proposals that wait at once.
const MAX_PROPOSALS: usize = 1000;

/// Most of them that one operator has made.
const MAX_OWN_PROPOSALS: usize = 250;

/// How many milliseconds of invitations make one entry of the log.
const INVITATIONS_TOGETHER: u64 = 60_000;

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
        Command::NoteInvitations { fresh } => Ok(note_invitations(state, fresh, now)),
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
    let waits = state.needs_agreement(&what, by);
    if waits {
        state.has_room_for_a_proposal(by)?;
    }
    let mut events = match state.line_of(&what, line) {
        // Its deletions enter the log as well, so it has no need of a pace of its own.
        Some(line) if !waits && matches!(what, Proposal::Forget { .. }) => {
            note(state, by, line, means.fresh, now)
        }
        Some(line) => note_by(state, by, line, means.fresh, now)?,
        None => vec![],
    };
    if !waits {
        let accepted = Agreed {
            what,
            asked: now.unix_ms,
            by,
        };
        events.extend(carry_out(state, accepted, means, now)?);
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
        Proposal::CancelProposal(id) => state.proposal(*id).map(drop),
        Proposal::InviteDevice(subject) => identities::may_invite(state, subject),
        Proposal::Revoke(subject) if state.people.contains_key(subject) => Ok(()),
        Proposal::Revoke(subject) => {
            Err(Refused::invalid(format!("nothing is known of {subject}")))
        }
        Proposal::Scan { texts } => check_texts(texts),
    }
}

/// What is searched for in the records.
fn check_texts(texts: &[String]) -> Result<(), Refused> {
    let got = texts.len();
    if got == 0 || got > MAX_SCAN_TEXTS {
        let message = format!("{got} texts to search for: expected 1 to {MAX_SCAN_TEXTS}");
        return Err(Refused::invalid(message));
    }
    match texts.iter().map(String::len).max() {
        Some(longest) if longest > MAX_SCAN_TEXT => Err(Refused::invalid(format!(
            "a text of {longest} bytes to search for, at most {MAX_SCAN_TEXT}"
        ))),
        _ => Ok(()),
    }
}

/// What is agreed to.
struct Agreed {
    what: Proposal,
    /// When it was asked for, in milliseconds since 1970.
    asked: u64,
    /// Who asked first.
    by: Digest,
}

fn carry_out(state: &State, agreed: Agreed, means: Means, now: Now) -> Decided {
    let Agreed { what, asked, by } = agreed;
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
        Proposal::CancelProposal(id) => Ok(vec![Event::ProposalClosed { id }]),
        Proposal::InviteDevice(subject) => {
            let known = state.has_a_device(&subject);
            let mut events = identities::invite(state, subject, means.secret)?;
            if !known {
                events.push(Event::InvitationCounted { by });
            }
            Ok(events)
        }
        Proposal::Revoke(subject) => Ok(vec![Event::Withdrawn { subject }]),
        // The shell searches: nothing changes here.
        Proposal::Scan { .. } => Ok(vec![]),
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
    let agreed = Agreed {
        what: p.what.clone(),
        asked: p.at,
        by: p.approved.first().copied().unwrap_or(by),
    };
    events.extend(carry_out(state, agreed, means, now)?);
    // In one list: it is carried out and gone, or neither.
    events.push(Event::ProposalClosed { id });
    // Whoever wanted it withdrawn is too late.
    let late = state.proposals.iter();
    let late = late.filter(|(_, p)| p.what == Proposal::CancelProposal(id));
    events.extend(late.map(|(id, _)| Event::ProposalClosed { id: *id }));
    Ok(events)
}

/// One entry for each operator who has invited people of whom nothing was known.
fn note_invitations(state: &State, fresh: Fresh, now: Now) -> Vec<Event> {
    let mut events = vec![];
    let mut no = state.core.numbers.action;
    for (by, invited) in state.invitations_to_note(now) {
        no += 1;
        let numbers = Numbers {
            action: no,
            ..Numbers::default()
        };
        let what = match invited {
            1 => "invite a person".to_owned(),
            n => format!("invite {n} people"),
        };
        let action = Action {
            at: now.unix_ms / 1000,
            by,
            what,
        };
        let salt = fresh.salt(no);
        events.push(Event::NumbersTaken { numbers });
        events.push(Event::ActionNoted { no, salt, action });
        let at = now.uptime_ms;
        events.push(Event::InvitationsNoted { by, at });
    }
    events
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
    /// Operators who have invited people, and how many, that the log is to hold now.
    fn invitations_to_note(&self, now: Now) -> Vec<(Digest, u64)> {
        let due = |noted: Option<u64>| match noted {
            Some(at) => now.uptime_ms >= at + INVITATIONS_TOGETHER,
            None => true,
        };
        let all = self.volatile.invited.iter();
        all.filter(|(_, i)| i.count > 0 && due(i.noted))
            .map(|(by, i)| (*by, i.count))
            .collect()
    }

    pub(crate) fn has_invitations_to_note(&self, now: Now) -> bool {
        !self.invitations_to_note(now).is_empty()
    }

    /// The person has a device that may connect, or had one.
    fn has_a_device(&self, subject: &SubjectId) -> bool {
        let person = self.people.get(subject);
        person.is_some_and(|p| !p.devices.is_empty())
    }

    /// Whether this waits until other operators agree. Everything does where more than one has to,
    /// but withdrawing what one has proposed oneself, and the first invitation of a person: nobody
    /// can be impersonated of whom nothing is known.
    fn needs_agreement(&self, what: &Proposal, by: Digest) -> bool {
        if self.approvals() < 2 {
            return false;
        }
        match what {
            Proposal::CancelProposal(id) => {
                let proposal = self.proposals.get(id);
                proposal.is_none_or(|p| p.approved.first() != Some(&by))
            }
            Proposal::InviteDevice(subject) => self.has_a_device(subject),
            _ => true,
        }
    }

    fn has_room_for_a_proposal(&self, by: Digest) -> Result<(), Refused> {
        let own = self.proposals.values();
        let own = own.filter(|p| p.approved.first() == Some(&by)).count();
        if own >= MAX_OWN_PROPOSALS {
            let message = format!(
                "{MAX_OWN_PROPOSALS} proposals of this operator wait already: withdraw some"
            );
            return Err(Refused::invalid(message));
        }
        if self.proposals.len() >= MAX_PROPOSALS {
            let message = format!("{MAX_PROPOSALS} proposals wait already: approve or cancel some");
            return Err(Refused::invalid(message));
        }
        Ok(())
    }

    /// What the log is to hold of it. It names nobody.
    fn line_of(&self, what: &Proposal, line: Option<String>) -> Option<String> {
        match what {
            Proposal::LiftRestriction(subject) => Some(restrictions::line(self, subject)),
            Proposal::Forget { requests, .. } => match requests.len() {
                1 => Some("ask for a deletion".to_owned()),
                n => Some(format!("ask for {n} deletions")),
            },
            Proposal::CancelProposal(id) => Some(format!("withdraw proposal {id}")),
            // First invitations are entered together.
            Proposal::InviteDevice(subject) => self
                .has_a_device(subject)
                .then(|| "invite another device of a person".to_owned()),
            Proposal::Revoke(_) => Some("refuse the devices of a person".to_owned()),
            Proposal::Scan { texts } => Some(format!(
                "search the records, decrypted, for {} texts",
                texts.len()
            )),
            Proposal::InviteOperator | Proposal::Approvals(_) | Proposal::RemoveOperator(_) => line,
        }
    }

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
