//! What operators read, made from the state alone, and what they ask for, as the ledger takes it.
//! Nothing here changes anything; what needs the log, a value or the records is not here.

use lethe_ledger::{Event, Now, OwnPlans, ShardKey, ShardView, State, ValueRef};
use lethe_proto::admin::{
    AdminReply, AdminRequest, CoordinatorStatus, DeletionState, ProposalState, ReplayState,
    ShardStatus,
};
use lethe_proto::deletion::Proposal;
use lethe_proto::ids::{Digest, EpochNo, ShardId};
use lethe_proto::people::ReplayProgress;

use super::{LogPage, refused};
use crate::CoordinatorError;

/// What the state does not know.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Live connections.
    pub(crate) connections: u32,
    /// Bytes of updates that came.
    pub(crate) update_bytes: u64,
    /// Bytes of activations, both ways.
    pub(crate) activation_bytes: u64,
    /// Public key of the log (verifier key text).
    pub(crate) log_key: String,
}

/// Something that more than one operator may have to agree to: for `Command::Propose`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// What.
    pub(crate) what: Proposal,
    /// The operator means it.
    pub(crate) confirmed: bool,
    /// The line that the log is to hold, where it is entered when it is proposed.
    pub(crate) note: Option<String>,
}

/// What the shell made for a command, and the answer shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made<'a> {
    /// The plans of all its requests together, from [`State::dry_run`].
    pub(crate) plans: &'a OwnPlans,
    /// The invitation, in case it invites somebody.
    pub(crate) token: &'a str,
}

/// The answer to a request that the state alone answers; `None` for all others. `by` is the
/// certificate of the operator who asks.
pub(crate) fn read(
    state: &State,
    request: &AdminRequest,
    by: Digest,
    now: Now,
    facts: &Facts,
) -> Option<Result<AdminReply, CoordinatorError>> {
    Some(Ok(match request {
        AdminRequest::Policy { approvals: None } => AdminReply::Policy {
            approvals: state.approvals(),
        },
        AdminRequest::Proposals { after } => AdminReply::Proposals(state.proposal_list(*after)),
        AdminRequest::Operators => {
            AdminReply::Operators(state.operator_list(Some(state.operator(by))))
        }
        AdminRequest::Actions => AdminReply::Actions(state.action_list()),
        AdminRequest::Restrictions { after } => {
            AdminReply::Restrictions(state.restriction_list(*after))
        }
        AdminRequest::HeldShards => AdminReply::HeldShards(state.held_shards(now)),
        AdminRequest::Deletions { after } => AdminReply::Deletions(state.deletion_list(*after)),
        AdminRequest::Status => AdminReply::Status(status(state, facts)),
        AdminRequest::Epochs => AdminReply::Epochs(state.epoch_states()),
        request => return read_one(state, request, now),
    }))
}

/// The same for requests about something that may not be there.
fn read_one(
    state: &State,
    request: &AdminRequest,
    now: Now,
) -> Option<Result<AdminReply, CoordinatorError>> {
    Some(match request {
        AdminRequest::Forget {
            requests,
            dry_run: true,
            confirmed,
            ..
        } => {
            let plans = state.dry_run(requests, *confirmed, now);
            plans.map(|p| planned(state, &p, vec![])).map_err(refused)
        }
        AdminRequest::LineageOfSubject { subject } => {
            let lineage = state.subject_lineage(subject);
            lineage.map(AdminReply::Subject).map_err(refused)
        }
        AdminRequest::LineageOfRelease { release } => {
            let lineage = state.release_lineage(*release);
            lineage.map(AdminReply::Release).map_err(refused)
        }
        AdminRequest::Coverage { release } => {
            let coverage = state.coverage(*release);
            coverage.map(AdminReply::Coverage).map_err(refused)
        }
        AdminRequest::Deletion { id } => deletion(state, *id, now).map(AdminReply::Deletion),
        AdminRequest::ReplayStatus { shard } => replay(state, *shard, now).map(AdminReply::Replay),
        AdminRequest::ReplayProgress { shard } => {
            replay_progress(state, *shard, now).map(AdminReply::ReplayProgress)
        }
        _ => return None,
    })
}

/// What an operator asks that others may have to agree to; `None` for everything else.
pub(crate) fn asked(request: AdminRequest) -> Option<Asked> {
    let noted = |what: Proposal, line: String| Asked {
        what,
        confirmed: true,
        note: Some(line),
    };
    // The ledger writes the line.
    let unnoted = |what: Proposal| Asked {
        what,
        confirmed: true,
        note: None,
    };
    match request {
        AdminRequest::Forget {
            requests,
            dry_run: false,
            asked,
            reference,
            confirmed,
        } => Some(Asked {
            what: Proposal::Forget {
                requests,
                asked,
                reference,
            },
            confirmed,
            note: None,
        }),
        AdminRequest::Policy { approvals: Some(n) } => {
            let line = format!("policy: {n} approvals");
            Some(noted(Proposal::Approvals(n), line))
        }
        AdminRequest::RemoveOperator { fingerprint } => {
            let line = format!("remove operator {fingerprint}");
            Some(noted(Proposal::RemoveOperator(fingerprint), line))
        }
        AdminRequest::LiftRestriction { subject } => {
            Some(unnoted(Proposal::LiftRestriction(subject)))
        }
        // Whoever invited an operator alone could agree with themselves.
        AdminRequest::Invite { subject: None } => {
            let line = "invite an operator".to_owned();
            Some(noted(Proposal::InviteOperator, line))
        }
        AdminRequest::Invite {
            subject: Some(subject),
        } => Some(unnoted(Proposal::InviteDevice(subject))),
        AdminRequest::Cancel { proposal } => Some(unnoted(Proposal::CancelProposal(proposal))),
        AdminRequest::Revoke { subject } => Some(unnoted(Proposal::Revoke(subject))),
        AdminRequest::Scan { texts } => Some(unnoted(Proposal::Scan { texts })),
        _ => None,
    }
}

/// The answer to a proposal, or to an approval, that was decided: `events` are what came of it, and
/// `state` is after them.
pub(crate) fn decided(state: &State, events: &[Event], made: Made<'_>) -> AdminReply {
    let accepted = |e: &Event| match e {
        Event::DeletionAccepted { id, .. } => Some(*id),
        _ => None,
    };
    let ids: Vec<u64> = events.iter().filter_map(accepted).collect();
    if !ids.is_empty() {
        return planned(state, made.plans, ids);
    }
    for event in events {
        match event {
            Event::Proposed { id, .. } | Event::Approved { id, .. } => {
                if let Some(proposal) = proposal(state, *id) {
                    return AdminReply::Proposed(proposal);
                }
            }
            Event::PolicySet { approvals } => {
                let approvals = *approvals;
                return AdminReply::Policy { approvals };
            }
            Event::OperatorInvited { .. } | Event::Invited { .. } => {
                let token = made.token.to_owned();
                return AdminReply::Invited { token };
            }
            _ => {}
        }
    }
    AdminReply::Done
}

fn proposal(state: &State, id: u64) -> Option<ProposalState> {
    let mut list = state.proposal_list(id.saturating_sub(1)).into_iter();
    list.next().filter(|p| p.id == id)
}

/// Plans as an operator sees them, those of several epochs one after the other. Who reads them by
/// program expects one: that of the epoch which is served or, before that, of the newest.
pub(crate) fn planned(state: &State, plans: &OwnPlans, ids: Vec<u64>) -> AdminReply {
    let serving = state.core().serving;
    let served = plans.iter().find(|(no, _)| Some(*no) == serving);
    let shown = served.or_else(|| plans.last()).map(|(_, plan)| plan);
    AdminReply::Planned {
        text: state.plans_in_words(plans),
        json: serde_json::to_string(&shown).unwrap_or_default(),
        ids,
    }
}

/// A page of the log.
pub(crate) fn log(page: LogPage) -> AdminReply {
    AdminReply::Log {
        entries: page.entries,
        checkpoint: page.checkpoint,
    }
}

/// A deletion, as far as it got.
pub(crate) fn deletion(
    state: &State,
    id: u64,
    now: Now,
) -> Result<DeletionState, CoordinatorError> {
    let known = state.deletion_state(id, now);
    known.ok_or_else(|| CoordinatorError::invalid(format!("there is no deletion {id}")))
}

/// Where the receipt of a deletion is.
///
/// # Errors
/// What the deletion still waits for, if it is not done.
pub(crate) fn receipt_at(state: &State, id: u64, now: Now) -> Result<ValueRef, CoordinatorError> {
    let Some(d) = state.deletions().get(&id) else {
        return Err(CoordinatorError::invalid(format!(
            "there is no deletion {id}: `lethe-admin list` shows those that there are"
        )));
    };
    d.receipt.clone().ok_or_else(|| {
        let waits = match state.waits_for(d, now) {
            none if none.is_empty() => String::new(),
            what => format!(" It waits for {what}."),
        };
        CoordinatorError::invalid(format!(
            "deletion {id} has no receipt yet: it is not done.{waits} `lethe-admin status \
             --deletion {id}` tells more"
        ))
    })
}

/// The receipt of a deletion, from the value that the deletion names.
pub(crate) fn receipt(id: u64, value: Option<&[u8]>) -> Result<AdminReply, CoordinatorError> {
    let bytes = value.ok_or_else(|| {
        CoordinatorError::invalid(format!(
            "deletion {id} has no receipt (yet): `lethe-admin status --deletion {id}` tells"
        ))
    })?;
    let text = String::from_utf8_lossy(bytes).into_owned();
    Ok(AdminReply::Receipt(text))
}

/// How far the replay of a shard got.
pub(crate) fn replay(
    state: &State,
    shard: ShardId,
    now: Now,
) -> Result<ReplayState, CoordinatorError> {
    let key = state.shard_of_wire(shard);
    let key = key
        .ok_or_else(|| CoordinatorError::invalid(format!("no replay of {shard} was asked for")))?;
    state.replay_state(key, now).map_err(refused)
}

/// The same, with who is missing.
pub(crate) fn replay_progress(
    state: &State,
    of: ShardId,
    now: Now,
) -> Result<ReplayProgress, CoordinatorError> {
    let key = shard(state, of)?;
    state.replay_progress(key, now).map_err(refused)
}

/// The shard that an operator means, of the epoch that [`status`] lists.
pub(crate) fn shard(state: &State, shard: ShardId) -> Result<ShardKey, CoordinatorError> {
    let key = state.shard_of_wire(shard);
    key.ok_or_else(|| {
        CoordinatorError::invalid("there is no such shard: `lethe-admin status` lists them")
    })
}

/// The line that the log is to hold of an export: for `Command::Note`.
pub(crate) fn export_line(shard: ShardId) -> String {
    format!("export {shard} for an audit")
}

/// The coordinator at a glance: the epoch that is served or, before that, trained.
pub(crate) fn status(state: &State, facts: &Facts) -> CoordinatorStatus {
    let epoch: Option<EpochNo> = state.shard_of_wire(ShardId(0)).map(|key| key.epoch);
    let known = epoch.and_then(|no| state.epoch(no));
    let joined = state.people().values().filter(|p| p.profile.is_some());
    let own = state
        .shards()
        .filter(|(key, _, _)| Some(key.epoch) == epoch);
    let views = own.filter_map(|(key, _, _)| state.shard_view(key));
    CoordinatorStatus {
        build: state.rules().build.clone(),
        subjects: joined.count() as u32,
        started: known.is_some_and(|e| e.partition.is_some()),
        release: state.served_release().map_or(0, |(no, _)| no),
        validated: state.validated(),
        shards: views.map(shard_status).collect(),
        connections: facts.connections,
        bytes: (facts.update_bytes, facts.activation_bytes),
        log_key: facts.log_key.clone(),
    }
}

fn shard_status(view: ShardView) -> ShardStatus {
    ShardStatus {
        subjects: view.subjects as u32,
        rounds: view.rounds,
        adapter: view.adapter,
        done: view.done,
        quarantined: view.quarantined,
        losses: view.losses,
    }
}
