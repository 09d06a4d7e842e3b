//! Decisions: what a command makes happen, or why it is refused.

use lethe_proto::message::Refusal;

use crate::apply::apply;
use crate::command::Command;
use crate::event::Event;
use crate::ids::{Now, Owner, Refused};
use crate::state::State;

mod catalogue;
mod deletions;
mod devices;
mod evidence;
mod execution;
mod holds;
mod identities;
mod lists;
mod logged;
mod policy;
mod proofs;
mod replays;
mod restrictions;
mod rolls;
mod rounds;
mod serving;

pub(crate) use evidence::Proven;

/// What a decision gives.
pub(crate) type Decided = Result<Vec<Event>, Refused>;

/// What a command makes happen. All of it is written as one batch, or none. An empty list: nothing
/// (any more), for the results of jobs that came too late.
pub fn decide(state: &State, command: Command, now: Now) -> Result<Vec<Event>, Refused> {
    let events = route(state, command, now)?;
    let dead = |e: &Event| match e.owner() {
        Owner::Public => false,
        // Those who stay are written under fresh keys, in the list that begins with the end of the
        // old ones.
        owner => state.index.destroying.contains(&owner) || state.core.spent.contains(&owner),
    };
    let ends = events.first() == Some(&Event::KeysDestroyed);
    if !ends && events.iter().any(dead) {
        return Err(Refused::executing());
    }
    Ok(events)
}

fn route(state: &State, command: Command, now: Now) -> Decided {
    match command {
        Command::Invite { .. }
        | Command::InviteFirstOperator { .. }
        | Command::RecoverOperator { .. }
        | Command::Enrol { .. }
        | Command::Renew { .. }
        | Command::CertificateUsed { .. } => identities::decide(state, command, now),
        Command::Propose { .. }
        | Command::Approve { .. }
        | Command::NoteInvitations { .. }
        | Command::Note { .. } => policy::decide(state, command, now),
        Command::Hello { .. }
        | Command::Join { .. }
        | Command::Erased { .. }
        | Command::Fetched { .. }
        | Command::Errors { .. }
        | Command::GiveUpWaiting => devices::decide(state, command, now),
        Command::Offer { .. }
        | Command::StoreUpdates { .. }
        | Command::Decline { .. }
        | Command::OpenRound { .. }
        | Command::Deadline { .. }
        | Command::SealRound { .. }
        | Command::RoundAggregated { .. }
        | Command::RoundShort { .. }
        | Command::AggregationFailed { .. } => rounds::decide(state, command, now),
        Command::FoundEpoch { .. }
        | Command::BeginEpoch { .. }
        | Command::DropEpoch { .. }
        | Command::Retire { .. }
        | Command::Lacks { .. } => rolls::decide(state, command, now),
        Command::Publish { .. } => serving::decide(state, command, now),
        Command::Started {
            floor,
            journal,
            lost,
            stayed,
            fresh: _,
        } => {
            let outside = execution::Outside {
                floor,
                journal,
                lost,
                stayed,
            };
            execution::started(state, outside, now)
        }
        Command::Forget {
            requests,
            reference,
            asked,
            confirmed,
            plans,
            fresh,
        } => {
            deletions::check(state, &requests, confirmed, now)?;
            let accepted = deletions::Asked {
                requests,
                reference,
                asked,
                plans,
                fresh,
            };
            deletions::forget(state, accepted, now)
        }
        Command::BeginExecution { lists } => execution::begin(state, lists.as_deref()),
        Command::ListsPublished { snapshot } => lists::published(state, snapshot, now),
        Command::KeysDestroyed => execution::keys_destroyed(state, now),
        Command::SpentDestroyed { keys } => {
            let known = keys.iter().any(|k| state.core.spent.contains(k));
            Ok(known
                .then_some(Event::SpentDestroyed { keys })
                .into_iter()
                .collect())
        }
        Command::MembersHashed { .. } | Command::Logged { .. } => {
            evidence::decide(state, command, now)
        }
        Command::ApplyCatalogue { .. } => catalogue::decide(state, command, now),
        Command::Finish { id } => evidence::finish(state, id, now),
        Command::ReceiptIssued { id, receipt } => Ok(evidence::issued(state, id, receipt)),
        Command::Replay { shard, by, fresh } => replays::start(state, shard, by, fresh, now),
        Command::ReplayWithoutMissing { shard, by, fresh } => {
            proofs::start(state, shard, by, fresh, now)
        }
        Command::HoldShard { shard, by, fresh } => holds::hold(state, shard, by, fresh, now),
        Command::ReleaseShard { shard, by, fresh } => holds::release(state, shard, by, fresh, now),
        Command::ReleaseLogged { .. } | Command::SnapshotLogged { .. } => {
            logged::decide(state, command)
        }
        Command::ReplayFailed { shard, why } => Ok(replays::fail(state, shard, why, now)),
    }
}

/// The state as it will be: for decisions that stand on others of the same list.
pub(crate) fn after(state: &State, events: &[Event]) -> State {
    let mut after = state.clone();
    events.iter().for_each(|e| apply(&mut after, e));
    after
}

pub(crate) fn refuse(code: Refusal, message: impl Into<String>) -> Decided {
    Err(Refused::new(code, message))
}
