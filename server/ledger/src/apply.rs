//! Events make the state. Each arm changes slices of its event's owner alone; a public event may
//! change any slice, each as a function of itself, of what is public, and of the event. So a
//! destroyed key, whose events are missing, takes along what it sealed and nothing else.

use std::collections::BTreeMap;

use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::round::Round;

use crate::event::{Event, MeasuredShard, StoredUpdate};
use crate::ids::{Contributor, Owner, RunKey, ShardKey, SliceId, StageKey, Table, ValueRef};
use crate::state::{
    ActionRecord, Checkpoint, Core, Device, Errors, Execution, Intended, Measured, Open, Person,
    Profile, Replay, RoundSum, Run, Sealed, StageSum, State, TrainingRecord,
};

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
        }
        Event::Recalled { up_to } => recall(state, *up_to),
        Event::ExecutionBegan { execution } => begin_execution(state, execution),
        Event::KeysDestroyed => keys_destroyed(state),
        Event::ProposalClosed { id } => {
            state.remove_owner(&Owner::Proposal(*id));
            state.edit_core(|c| c.spent.extend([Owner::Proposal(*id)]));
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
        Event::LogGrew { head } => {
            if head.entries >= core.log.entries {
                core.log = *head;
            }
        }
        Event::ShardsLost { shards } => {
            core.quarantined = shards.iter().copied().collect();
            core.lost.extend(shards.iter().copied());
        }
        Event::SpentDestroyed { keys } => core.spent.retain(|k| !keys.contains(k)),
        _ => {}
    }
}

fn place_everybody(state: &mut State, no: crate::ids::EpochNo) {
    let joined: Vec<SubjectId> = state
        .index
        .joined
        .get(&no)
        .into_iter()
        .flatten()
        .cloned()
        .collect();
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

fn forget_rounds(state: &mut State, generation: u32) {
    state.volatile.open.remove(&generation);
    state.volatile.past.remove(&generation);
    state.volatile.abandoned.remove(&generation);
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
        for (key, _) in &execution.rolled {
            c.lost.remove(key);
        }
    });
    state.index.destroying.clear();
}

fn apply_shard(state: &mut State, event: &Event) {
    match event {
        Event::TrainingStated {
            shard,
            training,
            salt,
        } => state.edit_shard(*shard, |s| {
            s.intended = Some(Intended {
                training: training.clone(),
                salt: *salt,
            });
        }),
        Event::TrainingLogged { shard, index } => state.edit_shard(*shard, |s| {
            if let Some(Intended { training, salt }) = s.intended.take() {
                s.logged = Some(TrainingRecord {
                    training,
                    salt,
                    index: *index,
                });
            }
        }),
        Event::RoundClosed {
            run,
            sum,
            state: value,
            hash,
            checkpoint,
            rates,
        } => {
            state.edit_core(|c| c.rates = *rates);
            close_round(state, *run, *sum, (value, *hash), checkpoint.as_ref());
        }
        Event::ReplayBegan {
            shard,
            generation,
            at,
        } => {
            let initial = state.epochs.get(&shard.epoch).map(|e| e.initial);
            state.edit_shard(*shard, |s| {
                s.replay = Some(Replay {
                    run: Run::initial(*generation, initial.unwrap_or_default()),
                    started: *at,
                    ended: None,
                    hashes: None,
                    failure: None,
                });
            });
        }
        Event::ReplayEnded {
            shard,
            at,
            hashes,
            failure,
        } => {
            drop_replay(state, *shard);
            state.edit_shard(*shard, |s| {
                if let Some(replay) = s.replay.as_mut() {
                    replay.ended = Some(*at);
                    replay.hashes = *hashes;
                    replay.failure = failure.clone();
                }
            });
        }
        Event::RolledBack {
            shard,
            from_stage,
            generation,
            to,
            hash,
        } => roll_back(state, *shard, (*from_stage, *generation), (to, *hash)),
        _ => {}
    }
}

/// What a replay holds goes, with its keys.
fn drop_replay(state: &mut State, key: ShardKey) {
    let Some(replay) = state
        .shard(key)
        .and_then(|s| s.replay.clone())
        .filter(Replay::runs)
    else {
        return;
    };
    forget_rounds(state, replay.run.generation);
    let values = replay.run.values(key, 1);
    let values: Vec<ValueRef> = values.into_iter().map(|(v, _)| v.clone()).collect();
    state.dropped.extend(values);
    let keys = keys_of_run(&replay.run, key, 1);
    for stage in &keys {
        state.remove_owner(&Owner::Stage(*stage));
    }
    state.edit_core(|c| c.spent.extend(keys.into_iter().map(Owner::Stage)));
}

/// Keys of a run's stages from `from` on, that of the stage which it is in among them.
pub(crate) fn keys_of_run(run: &Run, key: ShardKey, from: u16) -> Vec<StageKey> {
    let mut keys: Vec<StageKey> = run.stage_keys(key, from).collect();
    let present = run.key(key).stage_key();
    if present.stage >= from && !keys.contains(&present) {
        keys.push(present);
    }
    keys
}

fn close_round(
    state: &mut State,
    run: RunKey,
    sum: RoundSum,
    after: (&ValueRef, Digest),
    checkpoint: Option<&Checkpoint>,
) {
    let Some(view) = state
        .run_view(run.generation)
        .filter(|v| v.run.key(v.at) == run)
    else {
        return;
    };
    let (key, live, terms) = (view.at, view.live, view.epoch.terms.clone());
    let old = view
        .run
        .state
        .clone()
        .filter(|v| v.table == Table::RunState);
    state.dropped.extend(old);
    let (value, hash) = after;
    state.edit_shard(key, |s| {
        let of_replay = s.replay.as_mut().filter(|_| !live).map(|r| &mut r.run);
        let r = of_replay.unwrap_or(&mut s.run);
        r.rounds.push(sum);
        r.state = Some(value.clone());
        r.hash = hash;
        let stage = r.stages.entry(r.stage).or_insert(StageSum {
            generation: run.generation,
            checkpoint: None,
        });
        if let Some(checkpoint) = checkpoint {
            stage.checkpoint = Some(checkpoint.clone());
        }
        r.round += 1;
        if r.round >= terms.rounds {
            r.round = 0;
            r.stage += 1;
        }
    });
    let ended = run.round + 1 >= terms.rounds;
    let closed = state.volatile.open.remove(&run.generation);
    state.volatile.client_ms = 0;
    let past = state.volatile.past.entry(run.generation).or_default();
    if let (Some(most), Some(closed), false, true) = (terms.staleness, closed, ended, live) {
        past.insert(run.round, closed.round.linger());
        past.retain(|begun, _| run.round + 1 - begun <= most);
    }
    if ended {
        // A stage ends with all that it learned from: what is late for its last round is lost.
        past.clear();
    }
}

fn roll_back(state: &mut State, key: ShardKey, at: (u16, u32), after: (&Option<ValueRef>, Digest)) {
    let (from_stage, generation) = at;
    drop_replay(state, key);
    let Some((epoch, shard)) = state
        .epochs
        .get(&key.epoch)
        .and_then(|e| Some((e, e.shard(key.shard)?)))
    else {
        return;
    };
    let run = shard.run.clone();
    let rounds = usize::from(epoch.terms.rounds) * usize::from(from_stage.saturating_sub(1));
    forget_rounds(state, run.generation);
    let gone = run
        .values(key, from_stage)
        .into_iter()
        .map(|(v, _)| v.clone());
    state.dropped.extend(gone);
    for stage in keys_of_run(&run, key, from_stage) {
        state.remove_owner(&Owner::Stage(stage));
    }
    let (to, hash) = after;
    state.edit_shard(key, |s| {
        s.run.generation = generation;
        s.run.stage = from_stage;
        s.run.round = 0;
        s.run.rounds.truncate(rounds);
        s.run.stages.retain(|stage, _| *stage < from_stage);
        s.run.state = to.clone();
        s.run.hash = hash;
        s.replay = None;
    });
    state.touched(key);
    forget_measurements(state, key);
}

/// What people measured on adapters that are gone.
fn forget_measurements(state: &mut State, key: ShardKey) {
    let measured = |p: &Person| {
        p.errors
            .as_ref()
            .is_some_and(|e| e.shards.contains_key(&key))
    };
    let people = state.people.iter().filter(|(_, p)| measured(p));
    let people: Vec<SubjectId> = people.map(|(s, _)| s.clone()).collect();
    for subject in people {
        state.edit_person(&subject, |p| {
            if let Some(errors) = p.errors.as_mut() {
                errors.shards.remove(&key);
            }
        });
    }
}

fn apply_person(state: &mut State, subject: &SubjectId, event: &Event) {
    match event {
        Event::PersonKnown { number, .. } => {
            let person = Person {
                number: *number,
                ..Person::default()
            };
            state.put_person(subject, person);
        }
        Event::PersonKept { person, .. } => state.put_person(subject, (**person).clone()),
        other => state.edit_person(subject, |p| edit_person(p, other)),
    }
}

fn edit_person(p: &mut Person, event: &Event) {
    match event {
        Event::Invited { secret, .. } => p.invitations.extend([*secret]),
        Event::DeviceEnrolled {
            secret,
            certificate,
            ..
        } => {
            p.invitations.remove(secret);
            let mut device = Device::default();
            device.certificates.insert(*certificate, None);
            p.devices.insert(*certificate, device);
        }
        Event::DeviceRenewed {
            device,
            certificate,
            replaces,
            ..
        } => {
            if let Some(d) = p.devices.get_mut(device) {
                d.certificates.retain(|_, old| *old != Some(*replaces));
                d.certificates.insert(*certificate, Some(*replaces));
            }
        }
        Event::DeviceReplaced {
            device,
            certificate,
            ..
        } => {
            if let Some(d) = p.devices.get_mut(device) {
                let old = d.certificates.get_mut(certificate).and_then(Option::take);
                d.certificates.retain(|c, _| Some(*c) != old);
            }
        }
        Event::Withdrawn { .. } => {
            p.devices.clear();
            p.invitations.clear();
        }
        Event::MoveAsked { moving, .. } => p.moving = Some(moving.clone()),
        Event::ConsentAskedAgain { device, .. } => {
            if let Some(d) = p.devices.get_mut(device) {
                d.withheld = None;
            }
        }
        Event::ErasureWithheld { device, task, .. } => {
            if let Some(d) = p.devices.get_mut(device) {
                d.withheld = Some(*task);
            }
        }
        Event::DeviceErased { device, task, .. } => device_erased(p, *device, *task),
        Event::ReleaseFetched {
            device, release, ..
        } => {
            if let Some(d) = p.devices.get_mut(device) {
                d.release = *release;
            }
        }
        Event::ErrorsMeasured {
            samples, shards, ..
        } => measure(p, samples, shards),
        other => edit_profile(p, other),
    }
}

fn edit_profile(p: &mut Person, event: &Event) {
    match event {
        Event::Joined {
            epoch,
            place,
            salt,
            since,
            restricted,
            erase,
            ..
        } => {
            p.moving = None;
            let profile = p.profile.get_or_insert_with(|| Profile {
                places: BTreeMap::new(),
                restricted: false,
                erase: None,
                salt: *salt,
                since: *since,
            });
            if profile.erase.is_some() && erase.is_none() {
                // What the other epochs committed to is not what the devices hold any more.
                profile.places.values_mut().for_each(|p| p.excluded = true);
            }
            profile.places.insert(*epoch, place.clone());
            profile.restricted = *restricted;
            profile.erase = erase.clone();
        }
        Event::Excluded { .. } => {
            for place in p.profile.iter_mut().flat_map(|p| p.places.values_mut()) {
                place.excluded = true;
            }
        }
        Event::SetAside { .. } => {
            p.errors = None;
            if let Some(profile) = p.profile.as_mut() {
                profile.restricted = true;
                profile.places.values_mut().for_each(|p| p.excluded = true);
            }
        }
        _ => {}
    }
}

fn device_erased(p: &mut Person, device: Digest, task: u64) {
    if let Some(d) = p.devices.get_mut(&device) {
        d.confirmed = Some(task);
        d.withheld = None;
    }
    let all = p.all_confirmed(task);
    let pending = p.profile.as_mut().and_then(|p| p.erase.as_mut());
    if let Some(pending) = pending.filter(|e| all && e.task == task) {
        pending.confirmed = true;
    }
}

fn measure(p: &mut Person, samples: &[u32], shards: &[MeasuredShard]) {
    let errors = p.errors.get_or_insert_with(Errors::default);
    errors.samples.extend(samples);
    for m in shards {
        let known = errors.shards.remove(&m.shard).map(|k| k.samples);
        let mut all = known.unwrap_or_default();
        all.extend(m.samples.iter().map(|s| (*s, m.adapter)));
        let measured = Measured {
            samples: all,
            value: m.value.clone(),
        };
        errors.shards.insert(m.shard, measured);
    }
}

fn apply_stage(state: &mut State, key: StageKey, event: &Event) {
    match event {
        Event::UpdatesStored { updates, .. } => store_updates(state, key, updates),
        Event::RoundCounted {
            round,
            counted,
            personal,
            ..
        } => count_round(state, key, *round, counted, personal),
        _ => {}
    }
}

fn store_updates(state: &mut State, key: StageKey, updates: &[StoredUpdate]) {
    let stage = state.stages.entry(key).or_default();
    for u in updates {
        let old = stage
            .stored
            .insert((u.subject.clone(), u.begun), u.value.clone());
        state.dropped.extend(old.filter(|v| *v != u.value));
    }
    state.touch(SliceId::Stage(key));
    for u in updates {
        mark_stored(state, key, u);
    }
    count_late(state, key.generation);
}

fn mark_stored(state: &mut State, key: StageKey, u: &StoredUpdate) {
    let open = state.volatile.open.get_mut(&key.generation);
    let own = open.filter(|o| o.run.stage == key.stage && o.run.round == u.begun);
    if let Some(open) = own {
        return open.round.stored(&u.subject);
    }
    let past = state.volatile.past.get_mut(&key.generation);
    if let Some(round) = past.and_then(|p| p.get_mut(&u.begun)) {
        round.stored(&u.subject);
    }
}

/// Tells the open round how many updates of earlier ones count in it.
fn count_late(state: &mut State, generation: u32) {
    let live = state.index.runs.get(&generation).is_some_and(|r| r.live);
    let Some(open) = state.volatile.open.get_mut(&generation).filter(|_| live) else {
        return;
    };
    let stage = state.stages.get(&open.run.stage_key());
    let late = stage.map_or(0, |s| {
        s.stored.keys().filter(|(_, b)| *b < open.run.round).count()
    });
    open.round.count_late(late);
}

fn count_round(
    state: &mut State,
    key: StageKey,
    round: u16,
    counted: &[Contributor],
    personal: &[(SubjectId, ValueRef)],
) {
    let last = state
        .epochs
        .get(&key.epoch)
        .is_some_and(|e| round + 1 >= e.terms.rounds);
    let stage = state.stages.entry(key).or_default();
    let mut dropped: Vec<ValueRef> = counted
        .iter()
        .filter_map(|c| stage.stored.remove(c))
        .collect();
    if last {
        dropped.extend(std::mem::take(&mut stage.stored).into_values());
    }
    stage.rounds.insert(round, counted.to_vec());
    for (subject, value) in personal {
        dropped.extend(stage.personal.insert(subject.clone(), value.clone()));
    }
    state.dropped.extend(dropped);
    state.touch(SliceId::Stage(key));
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
            d.statement = Some(statement.0.clone());
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

fn apply_volatile(state: &mut State, event: &Event) {
    match event {
        Event::Started { at } => state.volatile.started_at = *at,
        Event::PaceTaken { by, full } => drop(state.volatile.pace.insert(*by, *full)),
        Event::MembersLogged { shard, version } => {
            state.volatile.versions.entry(*shard).or_default().logged = *version;
        }
        Event::RoundOpened {
            run,
            cohort,
            deadline,
        } => open_round(state, *run, cohort, *deadline),
        Event::TaskOffered { run, subject, at } => with_open(state, run, |open| {
            if open.round.offer(subject, *at) {
                open.began.entry(subject.clone()).or_insert(*at);
            }
        }),
        Event::UpdatesArrived { run, subjects, at } => {
            let mut spent = 0;
            with_open(state, run, |open| {
                let began = subjects.iter().filter_map(|s| open.began.remove(s));
                spent = began.map(|b| at.saturating_sub(b)).sum();
            });
            state.volatile.client_ms += spent;
        }
        Event::Declined { run, subject } => with_open(state, run, |open| {
            open.round.decline(subject);
            open.began.remove(subject);
        }),
        Event::RoundExtended { run, deadline } => with_open(state, run, |open| {
            open.starved += 1;
            open.round.extend(*deadline);
        }),
        Event::RoundAbandoned { run, until } => {
            state.volatile.open.remove(&run.generation);
            state.volatile.abandoned.insert(run.generation, *until);
        }
        Event::RoundSealed { run, counted, at } => with_open(state, run, |open| {
            open.sealed = Some(Sealed {
                counted: counted.clone(),
                since: *at,
            });
        }),
        Event::RoundUnsealed { run } => with_open(state, run, |open| open.sealed = None),
        _ => {}
    }
}

fn with_open(state: &mut State, run: &RunKey, edit: impl FnOnce(&mut Open)) {
    let open = state.volatile.open.get_mut(&run.generation);
    if let Some(open) = open.filter(|o| o.run == *run) {
        edit(open);
    }
}

fn open_round(state: &mut State, run: RunKey, cohort: &[SubjectId], deadline: u64) {
    let Some(view) = state.run_view(run.generation) else {
        return;
    };
    let terms = &view.epoch.terms;
    let names = cohort.iter().cloned();
    let mut round = Round::open(run.wire(), names, deadline, terms.quorum as usize);
    if let Some(goal) = terms.goal.filter(|_| view.live) {
        round = round.with_goal(goal as usize);
    }
    // Updates of it that were stored before a restart.
    let stage = state.stages.get(&run.stage_key());
    for (subject, begun) in stage.into_iter().flat_map(|s| s.stored.keys()) {
        if *begun == run.round {
            round.stored(subject);
        }
    }
    let open = Open {
        run,
        round,
        began: BTreeMap::new(),
        starved: 0,
        sealed: None,
    };
    state.volatile.open.insert(run.generation, open);
    state.volatile.abandoned.remove(&run.generation);
    count_late(state, run.generation);
}
