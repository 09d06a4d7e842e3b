//! How deletions, moves and lost shards are executed: keys go in one step, what is left is put in
//! order in the next. Both may be repeated.

use std::collections::{BTreeMap, BTreeSet};

use lethe_plan::Request;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::Proposal;
use lethe_proto::ids::SubjectId;

use super::{Decided, after, deletions, holds, serving};
use crate::apply::keys_of_run;
use crate::command::Accepted;
use crate::event::Event;
use crate::ids::{Now, Owner, ShardKey};
use crate::state::{
    Deletion, Execution, Identity, Kept, ListsLeft, Moving, Numbers, PendingErase, Person, Profile,
    ProposalRecord, RolledShard, State,
};

/// September 2020, in Unix seconds: before the first ledger.
const SINCE: u64 = 1_600_000_000;

/// Begins with everything that waits: accepted deletions, people who move, lost shards.
pub(super) fn begin(state: &State, lists: Option<&[(u64, ListsLeft)]>) -> Decided {
    if state.core.executing.is_some() {
        return Ok(vec![]);
    }
    let planned = state.index.planned.iter().copied();
    // A receipt says what the lists had of the data: without a record of it nothing is executed.
    let recorded = |id: &u64| lists.is_none_or(|all| all.iter().any(|(known, _)| known == id));
    let ids: Vec<u64> = planned.filter(recorded).collect();
    let mut rolled: BTreeMap<ShardKey, u16> = BTreeMap::new();
    let mut add = |key: ShardKey, stage: u16| {
        // A shard that has not come so far (another rollback was in between) has nothing to lose.
        if state.shard(key).is_none_or(|s| s.run.stage < stage) {
            return;
        }
        let first = rolled.entry(key).or_insert(stage);
        *first = stage.min(*first);
    };
    let all: Vec<&Deletion> = ids
        .iter()
        .filter_map(|id| state.deletions.get(id))
        .collect();
    for (key, stage) in all.iter().flat_map(|d| d.affected()) {
        add(key, stage);
    }
    for (key, stage) in state.moves() {
        add(key, stage);
    }
    state.core.lost.iter().for_each(|key| add(*key, 1));
    if ids.is_empty() && rolled.is_empty() && state.index.moving.is_empty() {
        return Ok(vec![]);
    }
    let rolled: Vec<(ShardKey, u16)> = rolled.into_iter().collect();
    // All names from the first stage on, whether anything is known to be sealed under them: what a
    // write has left that was cut off goes with them. And those of a replay.
    let mut stages = vec![];
    for (key, from) in &rolled {
        let Some(shard) = state.shard(*key) else {
            continue;
        };
        stages.extend(keys_of_run(&shard.run, *key, *from));
        let replay = shard.replay.as_ref().filter(|r| r.runs());
        stages.extend(
            replay
                .into_iter()
                .flat_map(|r| keys_of_run(&r.run, *key, 1)),
        );
    }
    let kept = kept(state, &ids);
    let id = ids.first().copied().filter(|_| !kept.0.is_empty());
    let mut events = vec![];
    if let Some(id) = id {
        events.push(Event::PeopleKept { id, kept });
    }
    for (id, left) in lists
        .into_iter()
        .flatten()
        .filter(|(id, _)| ids.contains(id))
    {
        events.push(Event::ListsBegan {
            id: *id,
            left: *left,
        });
    }
    events.push(Event::ExecutionBegan {
        execution: Execution {
            ids,
            rolled,
            stages,
            kept: id,
        },
    });
    Ok(events)
}

/// Those who stay when these deletions are executed, with what their devices have to erase.
fn kept(state: &State, ids: &[u64]) -> Kept {
    let all: Vec<&Deletion> = ids
        .iter()
        .filter_map(|id| state.deletions.get(id))
        .collect();
    let erased: BTreeSet<&SubjectId> = all
        .iter()
        .filter(|d| d.request.erases_subject())
        .filter_map(|d| d.request.subject())
        .collect();
    let mut out: BTreeMap<SubjectId, Person> = BTreeMap::new();
    for d in all.iter().filter(|d| d.request.asks_devices()) {
        let concerned: Vec<&SubjectId> = match d.request.subject() {
            Some(s) => vec![s],
            None => state.people.keys().collect(),
        };
        for subject in concerned.into_iter().filter(|s| !erased.contains(s)) {
            let known = state.people.get(subject).filter(|p| p.profile.is_some());
            let Some(known) = known else {
                continue;
            };
            let person = out
                .entry(subject.clone())
                .or_insert_with(|| known.stripped());
            if let Some(profile) = person.profile.as_mut() {
                profile.merge_erase(PendingErase::of(d.task.unwrap_or(0), &d.request));
            }
        }
    }
    Kept(out)
}

/// The keys are destroyed: puts what is left in order, all in one list.
pub(super) fn keys_destroyed(state: &State, now: Now) -> Decided {
    let Some(execution) = state.core.executing.clone() else {
        return Ok(vec![]);
    };
    let mut events = vec![Event::KeysDestroyed];
    let kept = execution.kept.and_then(|id| state.kept.get(&id));
    for (subject, person) in kept.into_iter().flat_map(|k| &k.0) {
        events.push(Event::PersonKept {
            subject: subject.clone(),
            person: Box::new(person.clone()),
        });
    }
    let all: Vec<(u64, &Deletion)> = execution
        .ids
        .iter()
        .filter_map(|id| Some((*id, state.deletions.get(id)?)))
        .collect();
    let erased: BTreeSet<&SubjectId> = all
        .iter()
        .filter(|(_, d)| d.request.erases_subject())
        .filter_map(|(_, d)| d.request.subject())
        .collect();
    // A state that was read again since the keys went knows them here only.
    let stays = |s: &SubjectId| kept.is_some_and(|k| k.0.contains_key(s));
    let restricted: BTreeSet<&SubjectId> = all
        .iter()
        .filter(|(_, d)| matches!(d.request, Request::Restrict { .. }))
        .filter_map(|(_, d)| d.request.subject())
        .filter(|s| !erased.contains(s) && (state.profile(s).is_some() || stays(s)))
        .collect();
    for subject in &restricted {
        let subject = (*subject).clone();
        events.push(Event::SetAside { subject });
    }
    events.extend(roll_back(state, &execution));
    events.extend(moved(state, &execution, &restricted));
    let next = after(state, &events);
    events.extend(serving::after_rollback(&next, now));
    let hash = |key: &ShardKey| {
        let initial = next.epochs.get(&key.epoch).map(|e| e.initial);
        let newest = next.shard(*key).and_then(|s| Some(s.run.newest().1?.hash));
        newest.or(initial).unwrap_or_default()
    };
    for (id, d) in all {
        events.push(Event::MadeExact {
            id,
            exact_after_ms: now.unix_ms.saturating_sub(d.accepted_at),
            rolled: d
                .affected()
                .into_iter()
                .map(|(shard, stage)| RolledShard {
                    shard,
                    stage,
                    hash: hash(&shard),
                })
                .collect(),
            keys_destroyed: deletions::existing(state, d).max(d.keys_destroyed),
            phase: match d.task {
                Some(_) => DeletionPhase::WaitingForDevice,
                None => DeletionPhase::Retraining,
            },
        });
    }
    Ok(events)
}

fn roll_back(state: &State, execution: &Execution) -> Vec<Event> {
    let mut generation = state.core.numbers.generation;
    let mut events = vec![];
    for (key, from_stage) in &execution.rolled {
        let Some(epoch) = state.epochs.get(&key.epoch) else {
            continue;
        };
        let Some(shard) = epoch.shard(key.shard) else {
            continue;
        };
        generation += 1;
        let before = shard.run.stages.get(&(from_stage - 1));
        let to = before.and_then(|s| s.checkpoint.as_ref());
        events.push(Event::RolledBack {
            shard: *key,
            from_stage: *from_stage,
            generation,
            to: to.map(|c| c.value.clone()),
            hash: to.map_or(epoch.initial, |c| c.hash),
        });
    }
    if !events.is_empty() {
        let numbers = Numbers {
            generation,
            ..Numbers::default()
        };
        events.insert(0, Event::NumbersTaken { numbers });
    }
    events
}

/// People who move, now that the shards they go to are rolled back; and what their deletions say.
/// Who is set aside by the same execution moves, and is not used there either.
fn moved(state: &State, execution: &Execution, aside: &BTreeSet<&SubjectId>) -> Vec<Event> {
    let mut events = vec![];
    let going = &state.index.destroying;
    for subject in &state.index.moving {
        // Who was erased or has to erase more, meanwhile, does not move.
        let owner = Owner::Person(subject.clone());
        let Some(person) = state
            .people
            .get(subject)
            .filter(|_| !going.contains(&owner))
        else {
            continue;
        };
        let (Some(moving), Some(profile)) = (&person.moving, &person.profile) else {
            continue;
        };
        let Some(shard) = moving.place.shard else {
            continue;
        };
        let key = ShardKey {
            epoch: moving.epoch,
            shard,
        };
        let rolls = execution.rolled.iter().find(|(k, _)| *k == key);
        let enters = moving.place.slice + 1;
        match rolls.filter(|(_, from)| *from <= enters) {
            Some((_, from)) => events.extend(also_affected(state, subject, key, *from)),
            // Training has not come to the stage that the data enters at.
            None if state.shard(key).is_some_and(|s| s.run.stage < enters) => {}
            None => continue,
        }
        let restricted = profile.restricted || aside.contains(subject);
        events.push(joins(subject, profile, moving, restricted));
    }
    events
}

fn joins(subject: &SubjectId, profile: &Profile, moving: &Moving, restricted: bool) -> Event {
    let mut place = moving.place.clone();
    place.excluded |= restricted;
    Event::Joined {
        subject: subject.clone(),
        epoch: moving.epoch,
        place,
        salt: profile.salt,
        since: profile.since,
        restricted,
        erase: None,
    }
}

fn also_affected(state: &State, subject: &SubjectId, key: ShardKey, from: u16) -> Vec<Event> {
    let epoch = state.epochs.get(&key.epoch);
    let shard = state.shard(key);
    let before = shard.and_then(|s| s.run.stages.get(&(from - 1))?.checkpoint.as_ref());
    let initial = epoch.map(|e| e.initial).unwrap_or_default();
    let rolled = RolledShard {
        shard: key,
        stage: from,
        hash: before.map_or(initial, |c| c.hash),
    };
    let keys_destroyed = deletions::stage_keys(state, key, from).len() as u32;
    let waits = |id: &&u64| {
        let d = state.deletions.get(*id);
        d.is_some_and(|d| d.request.concerns(subject) && d.phase == DeletionPhase::WaitingForDevice)
    };
    let ids = state.index.waiting.iter().filter(waits);
    ids.map(|id| Event::AlsoRolledBack {
        id: *id,
        rolled,
        keys_destroyed,
    })
    .collect()
}

impl State {
    /// Where people go who move, and the first stage there that has to go.
    pub(crate) fn moves(&self) -> Vec<(ShardKey, u16)> {
        let moving = self.index.moving.iter().filter_map(|s| self.person(s));
        let of = |p: &Person| {
            let m = p.moving.as_ref()?;
            let key = ShardKey {
                epoch: m.epoch,
                shard: m.place.shard?,
            };
            Some((key, m.place.slice + 1))
        };
        moving.filter_map(of).collect()
    }
}

/// What lies outside the data folder, as [`Command::Started`](crate::Command::Started) has it.
pub(super) struct Outside {
    pub(super) floor: u64,
    pub(super) journal: Vec<Accepted>,
    pub(super) lost: Vec<ShardKey>,
    pub(super) stayed: Vec<Identity>,
}

/// What lies outside the data folder, which may have come back from a backup: numbers, lost shards,
/// people whom it knows under destroyed keys only, and deletions that it lacks.
pub(super) fn started(state: &State, outside: Outside, now: Now) -> Decided {
    let Outside {
        floor,
        journal,
        lost,
        stayed,
    } = outside;
    // Files of an epoch that a restored backup does not know are of no use to it.
    let lost: Vec<ShardKey> = lost
        .into_iter()
        .filter(|k| state.shard(*k).is_some())
        .collect();
    // Keys are not put back with a data folder: what it has under destroyed ones is lost with them.
    let closed: Vec<ShardKey> = state.closed_shards();
    let mut events = vec![Event::Started { at: now.unix_ms }];
    events.extend(state.closed_replays(now));
    let lacks = journal
        .iter()
        .filter(|a| !state.deletions.contains_key(&a.id));
    let lacks: Vec<&Accepted> = lacks.collect();
    let newest = state.current_release().map_or(0, |(no, _)| no);
    let known = state.deletions.values().filter_map(|d| d.task);
    let tasks = known.chain(journal.iter().filter_map(|a| a.task));
    let numbers = Numbers {
        release: floor,
        deletion: journal.iter().map(|a| a.id).max().unwrap_or(0),
        task: tasks.max().unwrap_or(0),
        // Devices may be at work in generations that the backup does not know: none of them comes
        // to mean another run. The time is larger than any number that was counted.
        generation: if !lacks.is_empty() || floor > newest {
            let seconds = (now.unix_ms / 1000).saturating_sub(SINCE);
            u32::try_from(seconds).unwrap_or(0)
        } else {
            0
        },
        ..Numbers::default()
    };
    if state.core.numbers.max(numbers) != state.core.numbers {
        events.push(Event::NumbersTaken { numbers });
    }
    events.extend(stayed_on(state, &stayed));
    let all: BTreeSet<ShardKey> = lost.iter().chain(&closed).copied().collect();
    if all != state.core.quarantined || !all.is_empty() {
        let shards = all.into_iter().collect();
        events.push(Event::ShardsLost { shards });
    }
    events.extend(holds::started(state, &lost, now));
    if !lacks.is_empty() {
        let inventories = deletions::inventories(state);
        let mut trees = BTreeMap::new();
        for accepted in lacks {
            events.push(deletions::again(state, &inventories, accepted, &mut trees)?);
        }
        let carried_out = carried_out(state, &journal);
        events.extend(carried_out.map(|id| Event::ProposalClosed { id }));
    }
    // A number that devices may hold already must not come to mean something else.
    if floor > newest {
        let next = after(state, &events);
        events.extend(serving::again(&next, now));
    }
    Ok(events)
}

/// People whom a restored backup does not know any more, since their keys were destroyed after it
/// was made. They are known as after their enrolment: their devices join again, and are told what
/// they have to erase.
fn stayed_on(state: &State, stayed: &[Identity]) -> Vec<Event> {
    // Whoever stays in an execution that is under way comes back with its end.
    let executing = state.core.executing.as_ref().and_then(|e| e.kept);
    let kept = executing.and_then(|id| state.kept.get(&id));
    let returns = |s: &SubjectId| kept.is_some_and(|k| k.0.contains_key(s));
    let unknown = |i: &&Identity| !state.people.contains_key(&i.subject) && !returns(&i.subject);
    let unknown: Vec<&Identity> = stayed.iter().filter(unknown).collect();
    // Nobody else gets the number of one of them.
    let Some(person) = unknown.iter().map(|i| i.number.0).max() else {
        return vec![];
    };
    let numbers = Numbers {
        person,
        ..Numbers::default()
    };
    let mut events = vec![Event::NumbersTaken { numbers }];
    events.extend(unknown.into_iter().map(|i| Event::PersonKept {
        subject: i.subject.clone(),
        person: Box::new(i.person()),
    }));
    events
}

impl State {
    /// Those who stay when the keys of the execution that is under way are destroyed.
    pub fn who_stays(&self) -> Vec<Identity> {
        let kept = self.core.executing.as_ref().and_then(|e| e.kept);
        let kept = kept.and_then(|id| self.kept.get(&id));
        let people = kept.into_iter().flat_map(|k| &k.0);
        people.map(|(s, person)| person.identity(s)).collect()
    }
}

/// Proposals that were carried out, as far as the journal got: what was to be written after it was
/// lost, that they are closed too.
fn carried_out<'a>(state: &'a State, journal: &'a [Accepted]) -> impl Iterator<Item = u64> + 'a {
    let lacks = |a: &Accepted| !state.deletions.contains_key(&a.id);
    let is = move |p: &ProposalRecord| {
        let Proposal::Forget {
            requests,
            reference,
            ..
        } = &p.what
        else {
            return false;
        };
        let same = |batch: &[Accepted]| {
            let pairs = batch.iter().zip(requests);
            pairs.clone().all(|(a, r)| {
                lacks(a) && a.request == *r && a.reference == *reference && a.at >= p.at
            })
        };
        !requests.is_empty() && journal.windows(requests.len()).any(same)
    };
    let proposals = state.proposals.iter();
    proposals.filter(move |(_, p)| is(p)).map(|(id, _)| *id)
}
