//! Events about shards, stages and rounds.

use std::collections::BTreeMap;

use lethe_plan::lineage::Census;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::round::Round;

use crate::event::{Event, StoredUpdate};
use crate::ids::{
    Contributor, EpochNo, Owner, RunKey, ShardKey, SliceId, StageKey, Table, ValueRef,
};
use crate::state::{
    Checkpoint, Intended, Invited, Open, Person, Replay, RoundSum, Run, Sealed, StageSum, State,
    TrainingRecord,
};

pub(super) fn forget_rounds(state: &mut State, generation: u32) {
    state.volatile.open.remove(&generation);
    state.volatile.past.remove(&generation);
    state.volatile.abandoned.remove(&generation);
}

pub(super) fn apply_shard(state: &mut State, event: &Event) {
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
            close_round(state, *run, *sum, value, *hash, checkpoint.as_ref());
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
        } => roll_back(state, *shard, *from_stage, *generation, to, *hash),
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
    value: &ValueRef,
    hash: Digest,
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

fn roll_back(
    state: &mut State,
    key: ShardKey,
    from_stage: u16,
    generation: u32,
    to: &Option<ValueRef>,
    hash: Digest,
) {
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
    super::proofs::forget_proof(state, key);
    forget_measurements(state, key);
}

/// Nobody has to look at a shard that is gone.
fn release_hold(state: &mut State, key: ShardKey) {
    if state.holds.remove(&key).is_some() {
        state.touch(SliceId::Hold(key));
    }
    if state.core.quarantined.contains(&key) {
        state.edit_core(|c| {
            c.quarantined.remove(&key);
        });
    }
}

/// What an epoch learned goes, and nobody has a place in it any more.
pub(super) fn retire(state: &mut State, no: EpochNo) {
    let Some(epoch) = state.epochs.get(&no).cloned() else {
        return;
    };
    for (k, shard) in epoch.shards.iter().enumerate() {
        let key = crate::state::shard_key(no, k);
        drop_replay(state, key);
        forget_rounds(state, shard.run.generation);
        let values = shard.run.values(key, 1).into_iter();
        let values: Vec<ValueRef> = values.map(|(v, _)| v.clone()).collect();
        state.dropped.extend(values);
        let stages = keys_of_run(&shard.run, key, 1);
        for stage in &stages {
            state.remove_owner(&Owner::Stage(*stage));
        }
        state.edit_core(|c| c.spent.extend(stages.into_iter().map(Owner::Stage)));
        state.edit_shard(key, |s| {
            s.run.state = None;
            s.run.stages.clear();
            s.replay = None;
            s.intended = None;
        });
        super::proofs::forget_proof(state, key);
        forget_measurements(state, key);
        release_hold(state, key);
    }
    for subject in super::joined(state, no) {
        state.edit_person(&subject, |p| {
            if let Some(profile) = p.profile.as_mut() {
                profile.places.remove(&no);
            }
        });
    }
    let mut emptied = vec![];
    for (number, release) in state.releases.iter_mut().filter(|(_, r)| r.epoch == no) {
        // Nobody serves it any more: whose data was in it is not kept either.
        for served in &mut release.shards {
            served.value = None;
            served.census = Census::default();
        }
        release.validation = Census::default();
        emptied.push(*number);
    }
    for number in emptied {
        state.touch(SliceId::Release(number));
    }
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

pub(super) fn apply_stage(state: &mut State, key: StageKey, event: &Event) {
    match event {
        Event::UpdatesStored { updates, .. } => store_updates(state, key, updates),
        Event::RoundCounted {
            round,
            counted,
            personal,
            ..
        } => count_round(state, key, *round, counted, personal),
        Event::UpdatesLeftOut { updates, .. } => leave_out(state, key, updates),
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

fn leave_out(state: &mut State, key: StageKey, updates: &[Contributor]) {
    let stage = state.stages.entry(key).or_default();
    let dropped = updates.iter().filter_map(|of| stage.stored.remove(of));
    state.dropped.extend(dropped);
    state.touch(SliceId::Stage(key));
}

pub(super) fn apply_volatile(state: &mut State, event: &Event) {
    match event {
        Event::Started { at } => state.volatile.started_at = *at,
        Event::PaceTaken { by, full } => drop(state.volatile.pace.insert(*by, *full)),
        Event::InvitationCounted { by } => {
            state.volatile.invited.entry(*by).or_default().count += 1;
        }
        Event::InvitationsNoted { by, at } => {
            let noted = Invited {
                count: 0,
                noted: Some(*at),
            };
            state.volatile.invited.insert(*by, noted);
        }
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
        Event::RoundSealed { run, counted, at } => {
            note_silence(state, run, counted, *at);
            with_open(state, run, |open| {
                open.sealed = Some(Sealed {
                    counted: counted.clone(),
                    since: *at,
                });
            });
        }
        Event::RoundUnsealed { run } => with_open(state, run, |open| open.sealed = None),
        Event::LackNoted {
            epoch,
            device,
            lacks,
        } => {
            let known = state.volatile.lacks.entry(*epoch).or_default();
            known.insert(*device, *lacks);
        }
        Event::LackGone { epoch, device } => {
            if let Some(known) = state.volatile.lacks.get_mut(epoch) {
                known.remove(device);
            }
        }
        Event::NothingMeasured { device, release } => {
            state.volatile.unmeasured.insert(*device, *release);
        }
        _ => {}
    }
}

/// Deadlines in a row after which somebody is not waited for in each round.
const PATIENT: u32 = 6;
/// For so many deadlines they are asked only where there would be too few others.
const QUIET: u64 = 10;

/// Who is asked again and again and never answers makes every round last until its deadline. (Who
/// takes part in a round is recorded, so that this may depend on what a restart forgets.)
fn note_silence(state: &mut State, run: &RunKey, counted: &[Contributor], at: u64) {
    let Some(view) = state.run_view(run.generation).filter(|v| v.live) else {
        return;
    };
    let quiet = QUIET * view.epoch.terms.deadline_ms();
    let open = state.volatile.open.get(&run.generation);
    let Some(open) = open.filter(|o| o.run == *run) else {
        return;
    };
    let mut silent: Vec<SubjectId> = vec![];
    if at >= open.round.deadline() {
        silent.extend(open.round.silent().cloned());
    }
    for (subject, _) in counted {
        state.volatile.silent.remove(subject);
    }
    for subject in silent {
        let known = state.volatile.silent.entry(subject).or_default();
        known.deadlines = known.deadlines.saturating_add(1);
        if known.deadlines >= PATIENT {
            known.until = at + quiet;
        }
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
