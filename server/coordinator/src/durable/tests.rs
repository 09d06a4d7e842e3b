#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use lethe_ledger::*;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_store::StoreError;

use super::tables::{Format, key_of};
use super::*;

mod disk;
mod driver;
mod format1;
mod old_folder;

use disk::Disk;
use driver::{Driver, difference, foundation};

/// As the shell does it.
fn snapshot(durable: &mut Durable, state: &mut State) -> Result<(), CoordinatorError> {
    durable.write_snapshot(durable.snapshot_of(state)?)?;
    state.changed.clear();
    Ok(())
}

fn person(name: &str) -> SubjectId {
    SubjectId::new(name).unwrap()
}

fn shard(epoch: u32, shard: u16) -> ShardKey {
    ShardKey {
        epoch: EpochNo(epoch),
        shard: ShardId(shard),
    }
}

fn stage(generation: u32) -> StageKey {
    StageKey {
        epoch: EpochNo::FIRST,
        shard: ShardId(1),
        generation,
        stage: 1,
    }
}

fn known(name: &str) -> Event {
    Event::PersonKnown {
        subject: person(name),
        number: PersonNo(1),
    }
}

fn stored(stage: StageKey, name: &str, value: ValueRef) -> Event {
    Event::UpdatesStored {
        stage,
        updates: vec![StoredUpdate {
            subject: person(name),
            begun: 0,
            value,
        }],
    }
}

/// Real commands, with writes that fail, snapshots, restarts and interrupted destructions.
#[test]
fn what_is_read_again_is_what_was_in_memory() {
    let seeds = std::env::var("LETHE_DURABLE_SEEDS").map_or(6, |n| n.parse().unwrap());
    let mut all = [0; 4];
    for seed in 0..seeds {
        let mut world = Driver::new(seed);
        world.run(150);
        let destroyed = world.destroyed.len() as u32;
        let counts = [world.updates, world.faults, world.receipts, destroyed];
        all.iter_mut().zip(counts).for_each(|(a, n)| *a += n);
    }
    assert!(
        all.iter().all(|n| *n > 0),
        "what was meant to happen: {all:?}"
    );
}

#[test]
fn nothing_is_there_until_it_is_founded_and_later_formats_are_refused() {
    let disk = Disk::new();
    assert!(disk.try_open().unwrap().is_none());
    let opened = Durable::found(&disk.engine(), disk.folder(), foundation(), 2).unwrap();
    assert!(opened.state.epochs().is_empty() && opened.lost.is_empty());
    let again = Durable::found(&disk.engine(), disk.folder(), foundation(), 2);
    assert!(again.is_err(), "it was founded before");
    let opened = disk.open();
    assert!(opened.state.epochs().is_empty());
    let format = Format {
        number: 7,
        build: "lethe 9.1".into(),
    };
    let batch = Batch::new().put(&KeyName::public(), "", &format).unwrap();
    opened.durable.store.write(batch).unwrap();
    drop(opened);
    let refused = disk.try_open().err().unwrap().to_string();
    assert!(refused.contains("format 7") && refused.contains("lethe 9.1"));
}

#[test]
fn a_stage_ahead_of_the_main_database_is_cut_back() {
    let disk = Disk::new();
    let mut durable = disk.found();
    durable.write(&[known("ada")], vec![]).unwrap();
    let secret = durable.values().stage_secret(&stage(3)).unwrap();
    let value = secret.seal_update(&person("ada"), 0, b"update").unwrap();
    let at = value.at.clone();
    // The first write is that of the shard's database, the second that of the main one.
    disk.fail_after(1, false);
    let events = [stored(stage(3), "ada", at.clone())];
    assert!(durable.write(&events, vec![value.clone()]).is_err());
    assert!(
        durable.write(&events, vec![value.clone()]).is_err(),
        "in doubt"
    );
    drop(durable);
    let mut opened = disk.open();
    assert!(opened.state.stages().is_empty(), "never acknowledged");
    assert_eq!(opened.durable.values().get(&at).unwrap(), None);
    assert_eq!(opened.durable.last, 1, "its number is given again");
    // With another secret: the one that the shard's database has counts.
    let secret = opened.durable.values().stage_secret(&stage(3)).unwrap();
    let value = secret.seal_update(&person("ada"), 0, b"update").unwrap();
    opened.durable.write(&events, vec![value]).unwrap();
    drop(opened);
    let opened = disk.open();
    assert_eq!(opened.state.stages().len(), 1);
    let read = opened.durable.values().get(&at).unwrap();
    assert_eq!(read.as_deref(), Some(&b"update"[..]));
}

#[test]
fn an_update_needs_both_keys_and_a_destroyed_stage_stays_away() {
    let disk = Disk::new();
    let mut durable = disk.found();
    durable
        .write(&[known("ada"), known("bob")], vec![])
        .unwrap();
    let values = durable.values();
    let mut refs = vec![];
    for (generation, name) in [(3, "ada"), (4, "ada"), (4, "bob")] {
        let at = update_ref(&stage(generation), &person(name), 0, b"plain");
        // Sealed by the writer itself, where nobody has done so before.
        let value = NewValue::new(at.clone(), Owner::Person(person(name)), b"plain".to_vec());
        let event = stored(stage(generation), name, at.clone());
        durable.write(&[event], vec![value]).unwrap();
        refs.push(at);
    }
    let read = |i: usize| values.get(&refs[i]).unwrap().is_some();
    assert!(read(0) && read(1) && read(2));
    durable.destroy(&[Owner::Stage(stage(3))], &[]).unwrap();
    assert!(!read(0) && read(1) && read(2));
    durable
        .destroy(&[Owner::Person(person("ada"))], &[])
        .unwrap();
    assert!(!read(0) && !read(1) && read(2));
    // A late write about either brings nobody back.
    let late = update_ref(&stage(3), &person("bob"), 0, b"late");
    let value = NewValue::new(late.clone(), Owner::Person(person("bob")), b"late".to_vec());
    let event = stored(stage(3), "bob", late);
    assert!(durable.write(&[event], vec![value]).is_err());
    let invited = Event::Invited {
        subject: person("ada"),
        secret: Digest([1; 32]),
    };
    let refused = durable.write(&[invited], vec![]);
    assert!(matches!(
        refused,
        Err(CoordinatorError::Store(StoreError::NoKey { .. }))
    ));
    let state = durable.rebuild().unwrap();
    assert!(state.person(&person("ada")).is_none() && state.person(&person("bob")).is_some());
    assert_eq!(state.stages().keys().collect::<Vec<_>>(), [&stage(4)]);
    let gone = [Owner::Stage(stage(3)), Owner::Person(person("ada"))];
    assert_eq!(durable.store.existing(&gone.map(|o| key_of(&o))), 0);
}

#[test]
fn threads_that_seal_the_first_update_of_a_stage_agree_on_its_key() {
    let disk = Disk::new();
    let durable = disk.found();
    let values = durable.values();
    let secrets: Vec<NewValue> = std::thread::scope(|s| {
        let seal = || {
            let secret = values.stage_secret(&stage(9)).unwrap();
            secret.seal_update(&person("ada"), 0, b"same").unwrap()
        };
        let threads: Vec<_> = (0..4).map(|_| s.spawn(seal)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut durable = durable;
    durable.write(&[known("ada")], vec![]).unwrap();
    for value in secrets {
        let at = value.at.clone();
        let event = stored(stage(9), "ada", at.clone());
        durable.write(&[event], vec![value]).unwrap();
        let read = values.get(&at).unwrap();
        assert_eq!(read.as_deref(), Some(&b"same"[..]));
    }
}

#[test]
fn a_value_that_is_not_what_the_ledger_says_is_an_error() {
    let disk = Disk::new();
    let mut durable = disk.found();
    durable.write(&[known("ada")], vec![]).unwrap();
    let owner = Owner::Person(person("ada"));
    let mut at = error_rows_ref(&shard(1, 0), &person("ada"), 1, b"rows");
    at.digest = Digest([9; 32]);
    let value = NewValue::new(at.clone(), owner, b"rows".to_vec());
    durable.write(&[], vec![value]).unwrap();
    assert!(durable.values().get(&at).is_err());
    durable.values().delete(std::slice::from_ref(&at)).unwrap();
    assert_eq!(durable.values().get(&at).unwrap(), None);
}

#[test]
fn a_damaged_database_is_said_until_it_is_noted_and_a_later_epoch_has_its_own() {
    let disk = Disk::new();
    let durable = disk.found();
    let more = [shard(2, 0), shard(2, 1)];
    durable.add_databases(&disk.engine(), more).unwrap();
    let key = StageKey {
        epoch: EpochNo(2),
        ..stage(5)
    };
    let mut durable = durable;
    let at = update_ref(&key, &person("ada"), 0, b"x");
    let value = NewValue::new(at.clone(), Owner::Person(person("ada")), b"x".to_vec());
    let events = [known("ada"), stored(key, "ada", at)];
    durable.write(&events, vec![value]).unwrap();
    drop(durable);
    disk.lose("2-1");
    for _ in 0..2 {
        let opened = disk.open();
        assert_eq!(opened.lost, [shard(2, 1)]);
        assert!(opened.state.stages().is_empty());
        assert!(opened.state.person(&person("ada")).is_some());
    }
    disk.open().durable.lost_noted().unwrap();
    assert!(disk.open().lost.is_empty());
}

#[test]
fn a_snapshot_that_is_cut_off_anywhere_changes_nothing() {
    for at in 0..5 {
        for written in [false, true] {
            let disk = Disk::new();
            let mut durable = disk.found();
            let mut state = State::default();
            let value = update_ref(&stage(3), &person("ada"), 0, b"x");
            let new = NewValue::new(value.clone(), Owner::Person(person("ada")), b"x".to_vec());
            let events = [known("ada"), stored(stage(3), "ada", value)];
            durable.write(&events, vec![new]).unwrap();
            events.iter().for_each(|e| apply(&mut state, e));
            disk.fail_after(at, written);
            let failed = snapshot(&mut durable, &mut state).is_err();
            assert_eq!(state.changed.is_empty(), !failed);
            disk.mend();
            drop(durable);
            let mut opened = disk.open();
            assert_eq!(difference(&opened.state, &state), None);
            snapshot(&mut opened.durable, &mut opened.state).unwrap();
            assert_eq!(opened.durable.store.keys::<tables::PersonEvent>().len(), 0);
            assert_eq!(difference(&disk.reopen(opened).state, &state), None);
        }
    }
}

#[test]
fn a_snapshot_is_wanted_after_many_events() {
    let disk = Disk::new();
    let mut durable = disk.found();
    let events: Vec<Event> = (0..SNAPSHOT).map(|n| known(&format!("p{n}"))).collect();
    durable.write(&events[1..], vec![]).unwrap();
    assert!(!durable.wants_snapshot());
    durable.write(&events[..1], vec![]).unwrap();
    assert!(durable.wants_snapshot());
    let mut state = durable.rebuild().unwrap();
    assert!(durable.wants_snapshot(), "also after a restart");
    snapshot(&mut durable, &mut state).unwrap();
    assert!(!durable.wants_snapshot());
    let count = disk.writes.load(Relaxed);
    durable.write(&[Event::Started { at: 1 }], vec![]).unwrap();
    assert_eq!(disk.writes.load(Relaxed), count, "volatile");
    assert_eq!(Arc::strong_count(durable.store()), 2);
}
