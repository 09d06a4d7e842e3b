//! Invitations, enrolment, renewal, revocation.

use std::collections::{BTreeMap, BTreeSet};

use lethe_proto::admin::OperatorState;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::Refusal;

use super::{Decided, policy, refuse};
use crate::command::Command;
use crate::event::Event;
use crate::ids::{Now, PersonNo, Refused};
use crate::state::{Numbers, Operator, State};

/// Whoever acts from the server's own machine: no certificate has this fingerprint.
const THIS_MACHINE: Digest = Digest([0; 32]);

/// Most invitations of a person that nobody has used.
const MAX_INVITATIONS: usize = 64;
/// Most devices of a person.
const MAX_DEVICES: usize = 64;

pub(super) fn decide(state: &State, command: Command, now: Now) -> Decided {
    match command {
        Command::Invite { subject, secret } => invite(state, subject, secret),
        Command::InviteFirstOperator { secret } => {
            if !state.core.operators.is_empty() {
                return Ok(vec![]);
            }
            Ok(vec![
                Event::OperatorInvitationsWithdrawn,
                Event::OperatorInvited { secret },
            ])
        }
        Command::RecoverOperator { secret, fresh } => {
            let valid = state.valid_operators(now).len();
            let what =
                format!("invite an operator from the server's machine ({valid} valid before)");
            let mut events = policy::note(state, THIS_MACHINE, what, fresh, now);
            events.push(Event::OperatorInvited { secret });
            Ok(events)
        }
        Command::Enrol {
            secret,
            certificate,
            expires,
            device_of,
        } => enrol(state, secret, certificate, expires, device_of.as_ref(), now),
        Command::Renew {
            current,
            certificate,
            expires,
        } => renew(state, current, certificate, expires, now),
        Command::CertificateUsed { certificate } => Ok(used(state, certificate)),
        _ => Ok(vec![]),
    }
}

/// Refuses an invitation that would be one too many of a person, or for a new name that looks like
/// another.
pub(super) fn may_invite(state: &State, subject: &SubjectId) -> Result<(), Refused> {
    let Some(known) = state.people.get(subject) else {
        let new = subject.check_new();
        return new.map_err(|e| Refused::invalid(e.to_string()));
    };
    let waiting = known.invitations.len();
    if waiting >= MAX_INVITATIONS {
        return Err(Refused::invalid(format!(
            "{waiting} invitations of this person wait to be used, at most {MAX_INVITATIONS}: \
             give one of those out, or withdraw them with `lethe-admin revoke`"
        )));
    }
    let devices = known.devices.len();
    if devices >= MAX_DEVICES {
        return Err(Refused::invalid(format!(
            "this person has {devices} devices, at most {MAX_DEVICES}: withdraw them with \
             `lethe-admin revoke`, then invite again"
        )));
    }
    Ok(())
}

pub(super) fn invite(state: &State, subject: SubjectId, secret: Digest) -> Decided {
    may_invite(state, &subject)?;
    let mut events = vec![];
    if !state.people.contains_key(&subject) {
        let number = state.core.numbers.person + 1;
        let numbers = Numbers {
            person: number,
            ..Numbers::default()
        };
        events.push(Event::NumbersTaken { numbers });
        events.push(Event::PersonKnown {
            subject: subject.clone(),
            number: PersonNo(number),
        });
    }
    events.push(Event::Invited { subject, secret });
    Ok(events)
}

fn enrol(
    state: &State,
    secret: Digest,
    certificate: Digest,
    expires: u64,
    device_of: Option<&SubjectId>,
    now: Now,
) -> Decided {
    let subject = state.index.invitations.get(&secret);
    if subject.is_none() && !state.core.operator_invitations.contains(&secret) {
        return refuse(
            Refusal::Forbidden,
            "this invitation is not known or was used already: ask for a new one",
        );
    }
    if device_of.is_some() && subject != device_of {
        let message = "this invitation is for another person than the one whose history this \
                       device holds: use a new folder for them";
        return refuse(Refusal::Invalid, message);
    }
    Ok(vec![match subject.cloned() {
        Some(subject) => Event::DeviceEnrolled {
            subject,
            secret,
            certificate,
        },
        None => Event::OperatorEnrolled {
            secret,
            certificate,
            operator: Operator {
                root: certificate,
                since: Some(now.unix_ms / 1000),
                expires: Some(expires),
                replaces: None,
            },
        },
    }])
}

fn renew(state: &State, current: Digest, certificate: Digest, expires: u64, now: Now) -> Decided {
    if let Some(holder) = state.index.holders.get(&current) {
        return Ok(vec![Event::DeviceRenewed {
            subject: holder.subject.clone(),
            device: holder.device,
            certificate,
            replaces: current,
        }]);
    }
    let Some(known) = state.core.operators.get(&current) else {
        return refuse(Refusal::Forbidden, "this certificate is not known any more");
    };
    // Since when they are an operator, not since when they have this certificate.
    let operator = Operator {
        root: known.root,
        since: known.since.or(Some(now.unix_ms / 1000)),
        expires: Some(expires),
        replaces: Some(current),
    };
    Ok(vec![Event::OperatorRenewed {
        certificate,
        operator,
    }])
}

fn used(state: &State, certificate: Digest) -> Vec<Event> {
    if let Some(holder) = state.index.holders.get(&certificate) {
        let device = state
            .people
            .get(&holder.subject)
            .and_then(|p| p.devices.get(&holder.device));
        let replaces = device.and_then(|d| *d.certificates.get(&certificate)?);
        let event = replaces.map(|_| Event::DeviceReplaced {
            subject: holder.subject.clone(),
            device: holder.device,
            certificate,
        });
        return event.into_iter().collect();
    }
    let operator = state.core.operators.get(&certificate);
    let replaces = operator.and_then(|o| o.replaces);
    let event = replaces.map(|_| Event::OperatorReplaced { certificate });
    event.into_iter().collect()
}

impl State {
    /// Whether the first use of this certificate withdraws another.
    pub fn replaces(&self, certificate: &Digest) -> bool {
        if let Some(holder) = self.index.holders.get(certificate) {
            let person = self.people.get(&holder.subject);
            let device = person.and_then(|p| p.devices.get(&holder.device));
            return device
                .is_some_and(|d| matches!(d.certificates.get(certificate), Some(Some(_))));
        }
        let operator = self.core.operators.get(certificate);
        operator.is_some_and(|o| o.replaces.is_some())
    }

    /// Who an operator is, whatever certificate they have renewed to.
    pub fn operator(&self, certificate: Digest) -> Digest {
        self.core
            .operators
            .get(&certificate)
            .map_or(certificate, |o| o.root)
    }

    /// Operators who can connect, by who they are.
    pub fn valid_operators(&self, now: Now) -> BTreeSet<Digest> {
        let at = now.unix_ms / 1000;
        let all = self.operator_list(None).into_iter();
        let valid = all.filter(|o| o.expires.is_none_or(|e| e > at));
        valid.map(|o| o.fingerprint).collect()
    }

    /// All operators, those with expired certificates too; `you` is who asks.
    pub fn operator_list(&self, you: Option<Digest>) -> Vec<OperatorState> {
        let mut out: BTreeMap<Digest, OperatorState> = BTreeMap::new();
        for known in self.core.operators.values() {
            let fingerprint = known.root;
            let state = out.entry(fingerprint).or_insert(OperatorState {
                fingerprint,
                since: known.since,
                expires: known.expires,
                you: you == Some(fingerprint),
            });
            state.since = state.since.min(known.since);
            state.expires = state.expires.max(known.expires);
        }
        out.into_values().collect()
    }

    /// How many operators have to agree to a deletion.
    pub fn approvals(&self) -> u8 {
        self.core.approvals.max(1)
    }

    /// Refuses to remove an operator who is not one, or without whom too few are left to agree.
    pub(crate) fn may_remove_operator(&self, who: Digest, now: Now) -> Result<(), Refused> {
        if !self.core.operators.values().any(|o| o.root == who) {
            return Err(Refused::invalid(format!(
                "{} is no operator: `lethe-admin operators` lists them",
                who.short()
            )));
        }
        let mut left = self.valid_operators(now);
        left.remove(&who);
        let needed = usize::from(self.approvals());
        if left.len() < needed {
            return Err(Refused::invalid(format!(
                "{} operator(s) would be left, {needed} have to agree to a deletion: invite \
                 another one first",
                left.len()
            )));
        }
        Ok(())
    }
}
