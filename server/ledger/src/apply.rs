//! Events make the state. Each arm changes slices of its event's owner alone; a public event may
//! change any slice, each as a function of itself, of what is public, and of the event. So a
//! destroyed key, whose events are missing, takes along what it sealed and nothing else.

use std::collections::BTreeMap;

use lethe_proto::ids::SubjectId;

use crate::event::Event;
use crate::ids::{EpochNo, Owner, ShardKey, SliceId};
use crate::state::{ActionRecord, Core, Execution, Lifted, ListsRecord, State, Step};

mod people;
mod proofs;
mod rounds;

use people::apply_person;
pub(crate) use rounds::keys_of_run;
use rounds::{apply_shard, apply_stage, apply_volatile, forget_rounds};

/// Makes an event part of the state; only after it is on disk.
pub fn apply(state: &mut State, event: &Event) {
    if event.is_volatile() {
        return apply_volatile(state, event);
    }
    match event.owner() {
        Owner::Public => apply_public(state, event),
        Owner::Person(subject) => apply_person(state, &subject, event),
        Owner::Stage(stage) => apply_stage(state, stage, event),
        Owner::Deletion(id) => apply_deletion(state, id, event),
        Owner::Kept(id) => {
            if let Event::PeopleKept { kept, .. } = event {
                state.kept.insert(id, kept.clone());
                state.touch(SliceId::Kept(id));
            }
        }
        Owner::Proposal(id) => apply_proposal(state, id, event),
    }
}

fn apply_public(state: &mut State, event: &Event) {
    match event {
        Event::NumbersTaken { numbers } => {
            state.edit_core(|c| c.numbers = c.numbers.max(*numbers));
        }
        Event::EpochFounded { no, epoch } => {
            state.epochs.insert(*no, (**epoch).clone());
            state.touch(SliceId::Epoch(*no));
            for k in 0..epoch.shards.len() {
                let key = crate::state::shard_key(*no, k);
                // The index of runs, and the first version of members.
                state.edit_shard(key, |_| {});
                state.touched(key);
            }
        }
        Event::EpochBegan { no, partition } => {
            if let Some(epoch) = state.epochs.get_mut(no) {
                epoch.partition = Some(partition.clone());
                state.touch(SliceId::Epoch(*no));
            }
            place_everybody(state, *no);
        }
        Event::ActionNoted { no, salt, action } => {
            let record = ActionRecord {
                salt: *salt,
                action: action.clone(),
                index: None,
            };
            state.actions.insert(*no, record);
            state.index.unlogged.insert(*no);
            state.touch(SliceId::Action(*no));
        }
        Event::ActionLogged { no, index } => {
            if let Some(action) = state.actions.get_mut(no) {
                action.index = Some(*index);
                state.index.unlogged.remove(no);
                state.touch(SliceId::Action(*no));
            }
        }
        Event::Released { no, release } => {
            let epoch = release.epoch;
            state.releases.insert(*no, (**release).clone());
            state.touch(SliceId::Release(*no));
            state.edit_core(|c| c.serving = Some(epoch));
            // Everybody is asked to measure this one.
            state.volatile.unmeasured.clear();
        }
        Event::Recalled { up_to } => recall(state, *up_to),
        Event::EpochRetired { no } => rounds::retire(state, *no),
        Event::EpochAsked { no, life } => {
            state.lives.insert(*no, life.clone());
            state.touch(SliceId::Life(*no));
        }
        Event::EpochReached { no, step, at } => {
            if *step == Step::Dropped {
                rounds::retire(state, *no);
            }
            state.lives.entry(*no).or_default().reach(*step, *at);
            state.touch(SliceId::Life(*no));
            if state.ended(*no) {
                state.volatile.lacks.remove(no);
            }
        }
        Event::ExecutionBegan { execution } => begin_execution(state, execution),
        Event::KeysDestroyed => keys_destroyed(state),
        Event::ProposalClosed { id } => {
            state.remove_owner(&Owner::Proposal(*id));
            state.edit_core(|c| c.spent.extend([Owner::Proposal(*id)]));
        }
        Event::ListsBegan { id, left } => {
            let record = ListsRecord {
                left: *left,
                whole: None,
            };
            // An execution that is begun again after a crash finds less than the first did.
            let record = state.lists.entry(*id).or_insert(record);
            if !record.is_whole() {
                state.index.unlisted.insert(*id);
            }
            state.touch(SliceId::Lists(*id));
        }
        Event::ListsWhole {
            id,
            snapshot,
            after_ms,
        } => {
            if let Some(record) = state.lists.get_mut(id) {
                record.whole.get_or_insert((*snapshot, *after_ms));
                state.index.unlisted.remove(id);
                state.touch(SliceId::Lists(*id));
            }
        }
        Event::CatalogueApplied { version, record } => {
            state.catalogues.insert(*version, record.clone());
            state.touch(SliceId::Catalogue(*version));
        }
        Event::CatalogueLogged { version, index } => {
            state.edit_catalogue(*version, |r| r.index = Some(*index));
        }
        Event::RestrictionsLifted { ids, at } => {
            for id in ids {
                state.lifted.insert(*id, Lifted { at: *at });
                state.touch(SliceId::Lifted(*id));
            }
        }
        Event::ShardHeld { shard, hold } => {
            state.holds.insert(*shard, *hold);
            state.touch(SliceId::Hold(*shard));
        }
        Event::ShardReleased { shard } => {
            state.holds.remove(shard);
            state.touch(SliceId::Hold(*shard));
            state.edit_core(|c| {
                c.quarantined.remove(shard);
            });
        }
        Event::ReleaseLogged { part } => {
            state.logged.release = Some(part.clone());
            state.touch(SliceId::Logged);
        }
        Event::SnapshotLogged { part } => {
            state.logged.snapshot = Some(part.clone());
            state.touch(SliceId::Logged);
        }
        Event::ReplayScoped { .. } | Event::StageReplayed { .. } | Event::StageUnproven { .. } => {
            proofs::apply_proof(state, event);
        }
        Event::TrainingStated { .. }
        | Event::TrainingLogged { .. }
        | Event::RoundClosed { .. }
        | Event::ReplayBegan { .. }
        | Event::ReplayEnded { .. }
        | Event::RolledBack { .. } => apply_shard(state, event),
        other => state.edit_core(|c| apply_core(c, other)),
    }
}

fn apply_core(core: &mut Core, event: &Event) {
    match event {
        Event::OperatorInvited { secret } => core.operator_invitations.extend([*secret]),
        Event::OperatorInvitationsWithdrawn => core.operator_invitations.clear(),
        Event::OperatorEnrolled {
            secret,
            certificate,
            operator,
        } => {
            core.operator_invitations.remove(secret);
            core.operators.insert(*certificate, *operator);
        }
        Event::OperatorRenewed {
            certificate,
            operator,
        } => {
            // An earlier renewal that was never used goes: a lost answer leaves nothing behind.
            core.operators
                .retain(|_, o| o.replaces.is_none() || o.replaces != operator.replaces);
            core.operators.insert(*certificate, *operator);
        }
        Event::OperatorReplaced { certificate } => {
            let old = core
                .operators
                .get_mut(certificate)
                .and_then(|o| o.replaces.take());
            if let Some(old) = old {
                core.operators.remove(&old);
            }
        }
        Event::OperatorRemoved { root } => {
            core.operators.retain(|_, o| o.root != *root);
            // Whoever is removed may hold invitations that nobody has used.
            core.operator_invitations.clear();
        }
        Event::PolicySet { approvals } => core.approvals = *approvals,
        Event::LogGrew { head } if head.entries >= core.log.entries => core.log = *head,
        Event::ShardsLost { shards } => {
            core.quarantined = shards.iter().copied().collect();
            core.lost.extend(shards.iter().copied());
        }
        Event::SpentDestroyed { keys } => core.spent.retain(|k| !keys.contains(k)),
        _ => {}
    }
}

/// Who has a place in an epoch.
fn joined(state: &State, no: EpochNo) -> Vec<SubjectId> {
    let names = state.index.joined.get(&no);
    names.into_iter().flatten().cloned().collect()
}

fn place_everybody(state: &mut State, no: EpochNo) {
    let joined = joined(state, no);
    let Some(epoch) = state.epochs.get(&no).cloned() else {
        return;
    };
    for subject in joined {
        state.edit_person(&subject, |p| {
            if let Some(profile) = p.profile.as_mut() {
                epoch.place(no, &subject, profile);
            }
        });
    }
    for k in 0..epoch.shards.len() {
        state.touched(crate::state::shard_key(no, k));
    }
}

fn recall(state: &mut State, up_to: u64) {
    let mut changed = vec![];
    for (no, release) in state
        .releases
        .range_mut(..=up_to)
        .filter(|(_, r)| !r.recalled)
    {
        release.recalled = true;
        // What they held is destroyed, or is held by its shard.
        release.shards.iter_mut().for_each(|s| s.value = None);
        changed.push(*no);
    }
    state.index.recalled = state
        .index
        .recalled
        .max(changed.last().copied().unwrap_or(0));
    changed
        .into_iter()
        .for_each(|no| state.touch(SliceId::Release(no)));
}

fn begin_execution(state: &mut State, execution: &Execution) {
    state.edit_core(|c| c.executing = Some(execution.clone()));
    for (key, _) in &execution.rolled {
        let runs: Vec<u32> = generations_of(state, *key);
        runs.iter().for_each(|g| forget_rounds(state, *g));
    }
    let keys = state.keys_to_destroy();
    let set_aside = execution
        .ids
        .iter()
        .filter_map(|id| state.deletions.get(id));
    let concerned: Vec<SubjectId> = set_aside
        .filter_map(|d| d.request.subject().cloned())
        .chain(keys.iter().filter_map(|k| match k {
            Owner::Person(s) => Some(s.clone()),
            _ => None,
        }))
        .collect();
    for open in state.volatile.open.values_mut() {
        concerned.iter().for_each(|s| open.round.remove(s));
    }
    for round in state
        .volatile
        .past
        .values_mut()
        .flat_map(BTreeMap::values_mut)
    {
        concerned.iter().for_each(|s| round.remove(s));
    }
    state.index.destroying = keys.into_iter().collect();
}

fn generations_of(state: &State, key: ShardKey) -> Vec<u32> {
    let all = state.index.runs.iter();
    all.filter(|(_, r)| r.shard == key)
        .map(|(g, _)| *g)
        .collect()
}

fn keys_destroyed(state: &mut State) {
    let Some(execution) = state.core.executing.clone() else {
        return;
    };
    for owner in state.keys_to_destroy() {
        state.remove_owner(&owner);
    }
    if let Some(id) = execution.kept {
        state.remove_owner(&Owner::Kept(id));
    }
    state.edit_core(|c| {
        c.executing = None;
        c.spent.extend(execution.kept.map(Owner::Kept));
        // A shard that was lost while less of it was rolled back has to go as a whole yet.
        for (key, _) in execution.rolled.iter().filter(|(_, from)| *from == 1) {
            c.lost.remove(key);
        }
    });
    state.index.destroying.clear();
}

fn apply_deletion(state: &mut State, id: u64, event: &Event) {
    if let Event::DeletionAccepted { deletion, .. } = event {
        return state.put_deletion(id, (**deletion).clone());
    }
    let mut dropped = None;
    state.edit_deletion(id, |d| match event {
        Event::MadeExact {
            exact_after_ms,
            rolled,
            keys_destroyed,
            phase,
            ..
        } => {
            d.exact_after_ms.get_or_insert(*exact_after_ms);
            d.rolled_back.extend(rolled.iter().copied());
            d.keys_destroyed = *keys_destroyed;
            d.phase = *phase;
        }
        Event::AlsoRolledBack {
            rolled,
            keys_destroyed,
            ..
        } => {
            d.keys_destroyed += keys_destroyed;
            let known = d.rolled_back.iter_mut().find(|r| r.shard == rolled.shard);
            match known {
                Some(known) => known.stage = known.stage.min(rolled.stage),
                None => d.rolled_back.push(*rolled),
            }
        }
        Event::OrderLogged { index, .. } => d.order_index = Some(*index),
        Event::RemovedCounted { removed, .. } => d.removed = *removed,
        Event::DeletionRetraining { .. } => {
            d.phase = lethe_proto::admin::DeletionPhase::Retraining;
        }
        Event::StatementFixed {
            retrained_after_ms,
            statement,
            ..
        } => {
            d.retrained_after_ms = Some(*retrained_after_ms);
            d.statement = Some((*statement.0).clone());
            d.statement_index = None;
        }
        Event::StatementLogged { index, .. } => d.statement_index = Some(*index),
        Event::ReceiptIssued { receipt, .. } => {
            // What only the receipt needed goes with it.
            d.proof = None;
            d.statement = None;
            d.phase = lethe_proto::admin::DeletionPhase::Done;
            dropped = d.receipt.replace(receipt.clone());
        }
        _ => {}
    });
    state.dropped.extend(dropped);
}

fn apply_proposal(state: &mut State, id: u64, event: &Event) {
    match event {
        Event::Proposed { proposal, .. } => {
            state.proposals.insert(id, proposal.clone());
            state.touch(SliceId::Proposal(id));
        }
        Event::Approved { approved, .. } => {
            if let Some(p) = state.proposals.get_mut(&id) {
                p.approved = approved.clone();
                state.touch(SliceId::Proposal(id));
            }
        }
        _ => {}
    }
}
