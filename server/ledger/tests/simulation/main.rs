//! The ledger's decisions under a seeded scheduler in virtual time: a shell that fails, jobs that
//! are late, lost or done twice, devices that follow the client's rules, operators, backups.
//!
//! Invariants, after every event (the costly ones now and then):
//! 1. Nothing is served without its record and its entry in the log, and what is served can be
//!    read.
//! 2. Nothing of a deleted person is in a live part, checkpoint, contribution or slice; what the
//!    state refers to is sealed under living keys.
//! 3. Every acknowledged write survives.
//! 4. Every round ends: all rounds, validations, replays and deletions come to their end.
//! 5. Orders are in the log before devices are told.
//! 6. Epochs never mix; generations, stages, rounds and releases never go back.
//! 7. Snapshot and later events, without those whose key is gone, give the live state; indexes that
//!    are kept are those that are rebuilt.
//! 8. Lists show nobody who was deleted, and a deletion is done when they are complete again.
//! 9. Whose data is restricted is used for nothing, until the restriction is lifted.
//! 10. In the end every shard's adapter is what its recorded rounds give when they are computed
//!     anew from what devices hold now.
//!
//! `LETHE_SIM_SEEDS=FROM-TO cargo test --release -p lethe-ledger --test simulation` runs others.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lethe_ledger::{RunKey, ShardKey};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::Digest;

use disk::difference;
use world::{Count, END, World};

mod disk;
mod world;

/// 1.
fn served_with_its_record(w: &World) {
    let Some((no, release)) = w
        .state
        .current_release()
        .filter(|_| w.state.may_serve().is_ok())
    else {
        return;
    };
    // The log holds it, too, word for word.
    if w.state.served_release().is_none() {
        return;
    }
    assert!(
        w.log_holds_what_is_served(),
        "{}: {no} is not in the log",
        w.tell()
    );
    assert!(no <= w.floor, "{}: a release above the floor", w.tell());
    assert!(
        !release.recalled,
        "{}: {no} is recalled and served",
        w.tell()
    );
    for shard in &release.shards {
        let content = shard.value.as_ref().map(|v| w.disk.read(v));
        let content = content.map_or_else(|| Some(world::initial()), |c| c.cloned());
        let content = content.unwrap_or_else(|| panic!("{}: {no} cannot be read", w.tell()));
        assert_eq!(Digest::of_values(&content), shard.digest, "{}", w.tell());
    }
}

/// 2 and 6.
fn nothing_of_the_deleted(w: &World) {
    if !w.state.to_execute().is_empty() || !w.state.core().lost.is_empty() || w.state.unexecuted() {
        return;
    }
    for (value, owners) in w.state.values() {
        assert!(
            w.disk.read(&value).is_some() || value.table == lethe_ledger::Table::Receipt,
            "{}: {value:?} of {owners:?} cannot be read",
            w.tell()
        );
        for owner in &owners {
            if let lethe_ledger::Owner::Stage(key) = owner {
                let epoch = format!("e{}/", key.epoch.0);
                assert!(
                    value.id.starts_with(&epoch),
                    "{}: {value:?} in {owner:?}",
                    w.tell()
                );
            }
        }
    }
    for subject in &w.forgotten {
        assert!(
            !w.state.people().contains_key(subject),
            "{}: {subject} is back",
            w.tell()
        );
        for (key, stage) in w.state.stages() {
            let names = stage.stored.keys().chain(stage.rounds.values().flatten());
            let there = names
                .map(|(s, _)| s)
                .chain(stage.personal.keys())
                .any(|s| s == subject);
            assert!(!there, "{}: {subject} in {key:?}", w.tell());
        }
    }
}

/// 3.
fn acknowledged_survive(w: &World) {
    for (run, subject) in &w.acknowledged {
        let shard = w.state.shard(run.shard_key());
        let live = shard.is_some_and(|s| {
            s.run
                .stages
                .get(&run.stage)
                .map_or(s.run.generation, |x| x.generation)
                == run.generation
                && s.run.stage >= run.stage
        });
        // What an epoch learned goes when another one has followed it.
        let followed =
            w.state.core().serving.is_some_and(|s| s > run.epoch) || w.state.ended(run.epoch);
        if !live
            || followed
            || w.state.core().executing.is_some()
            || !w.state.core().lost.is_empty()
        {
            continue;
        }
        let stage = w.state.stage(&run.stage_key());
        let contributor = (subject.clone(), run.round);
        let there = stage.is_some_and(|s| {
            s.stored.contains_key(&contributor)
                || s.rounds.values().any(|c| c.contains(&contributor))
        });
        assert!(
            there,
            "{}: the update of {subject} in {run:?} is lost",
            w.tell()
        );
    }
}

/// 6.
fn never_back(w: &mut World) {
    let mut all = vec![];
    for (key, _, shard) in w.state.shards() {
        all.push((
            key,
            (shard.run.generation, shard.run.stage, shard.run.round),
        ));
    }
    for (key, at) in all {
        let before = w.seen.insert(key, at);
        assert!(
            before.is_none_or(|b| b <= at),
            "{}: {key:?} went back",
            w.tell()
        );
    }
}

/// 7.
fn rebuilt_is_live(w: &World) {
    let rebuilt = w.disk.rebuild();
    let mut again = rebuilt.clone();
    again.finish();
    assert_eq!(
        again.index(),
        rebuilt.index(),
        "{}: indexes of the rebuilt",
        w.tell()
    );
    if w.state.core().executing.is_some() || !w.state.core().lost.is_empty() {
        return;
    }
    let differs = difference(&w.state, &rebuilt);
    assert_eq!(differs, None, "{}: differs", w.tell());
    let mut live = w.state.clone();
    live.finish();
    assert_eq!(live.index(), w.state.index(), "{}: indexes", w.tell());
}

/// 10.
fn anew(w: &World, key: ShardKey) -> Digest {
    let mut theta = world::initial();
    for ((stage, round), counted) in w.state.recorded_rounds(key) {
        let run = RunKey {
            epoch: key.epoch,
            shard: key.shard,
            generation: 0,
            stage,
            round,
        };
        let updates: Vec<_> = counted
            .iter()
            .map(|c| {
                let version = w.versions.get(&c.0).copied().unwrap_or(0);
                (c.clone(), world::update(&c.0, version, &run, c.1))
            })
            .collect();
        world::add_up(&mut theta, round, &updates);
    }
    Digest::of_values(&theta)
}

fn run(seed: u64) -> (Digest, Count) {
    let mut w = World::new(seed);
    let mut n = 0u64;
    loop {
        let more = w.step();
        n += 1;
        if w.up {
            served_with_its_record(&w);
            nothing_of_the_deleted(&w);
            w.lists_are_exact();
            w.restrictions_hold();
            never_back(&mut w);
            if n.is_multiple_of(16) {
                acknowledged_survive(&w);
            }
            if n.is_multiple_of(64) {
                w.holds_hold();
                rebuilt_is_live(&w);
            }
        }
        if !more {
            break;
        }
    }
    assert!(
        w.now < END,
        "{}: does not come to its end: {:?} {:?} {:?} {:?}",
        w.tell(),
        w.state.view(w.time()),
        lethe_ledger::due(&w.state, w.time()),
        (w.state.core(), w.state.volatile()),
        w.state
            .deletions()
            .values()
            .map(|d| (&d.request, d.phase, w.state.waits_for(d, w.time())))
            .collect::<Vec<_>>()
    );
    rebuilt_is_live(&w);
    let serving = w.state.core().serving;
    let keys: Vec<_> = w
        .state
        .shards()
        .filter(|(k, e, _)| Some(k.epoch) == serving && e.trained())
        .map(|(k, _, s)| (k, s.run.hash))
        .collect();
    for (key, hash) in keys {
        assert_eq!(hash, anew(&w, key), "{}: {key:?}", w.tell());
    }
    for d in w.state.deletions().values() {
        if let DeletionRequest::Erase { subject } = &d.request {
            assert!(
                !w.state.people().contains_key(subject),
                "{}: {subject}",
                w.tell()
            );
        }
    }
    retired(&mut w);
    destroyed_at_the_end(&mut w);
    (w.trace(), w.count)
}

/// 8: nothing is left of epochs that another one has followed, but their records.
fn retired(w: &mut World) {
    let Some(serving) = w.state.core().serving else {
        return;
    };
    let state = &w.state;
    let is_old = |no: lethe_ledger::EpochNo| no < serving || state.ended(no);
    let of_old = |owner: &lethe_ledger::Owner| match owner {
        lethe_ledger::Owner::Stage(key) => is_old(key.epoch),
        _ => false,
    };
    let keys = w.disk.keys.keys().filter(|k| of_old(k)).count();
    assert_eq!(keys, 0, "{}: keys of old epochs", w.tell());
    let stages = w.state.stages().keys().filter(|k| is_old(k.epoch));
    assert_eq!(stages.count(), 0, "{}: stages of old epochs", w.tell());
    for (subject, person) in w.state.people() {
        let profile = person.profile.as_ref();
        let mut places = profile.into_iter().flat_map(|p| p.places.keys());
        let old = places.find(|no| is_old(**no));
        assert_eq!(old, None, "{}: {subject} is in an old epoch", w.tell());
    }
    let old = w.state.epochs().keys().filter(|no| **no < serving).count();
    w.count.retired += old as u64;
}

/// 7: whatever keys are destroyed, what survives gives the state without what they sealed.
fn destroyed_at_the_end(w: &mut World) {
    let owners: Vec<_> = w.disk.keys.keys().cloned().collect();
    let mut without = w.state.clone();
    for owner in owners {
        if w.dice.below(4) == 0 {
            w.disk.destroy(&owner);
            without.forget_owner(&owner);
        }
    }
    assert_eq!(
        difference(&without, &w.disk.rebuild()),
        None,
        "{}",
        w.tell()
    );
}

fn seeds() -> std::ops::Range<u64> {
    let usual = if cfg!(debug_assertions) {
        "0-300"
    } else {
        "0-6000"
    };
    let text = std::env::var("LETHE_SIM_SEEDS").unwrap_or_else(|_| usual.into());
    let (from, to) = text.split_once('-').expect("FROM-TO");
    from.parse().unwrap()..to.parse().unwrap()
}

#[test]
fn decisions_survive_everything() {
    let (range, started) = (seeds(), std::time::Instant::now());
    let next = AtomicU64::new(range.start);
    let counts = Mutex::new(vec![]);
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= range.end {
            return;
        }
        let one = run(seed).1;
        counts.lock().unwrap().push(one);
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|s| (0..threads).for_each(|_| drop(s.spawn(work))));
    let n = range.end - range.start;
    let counts = counts.into_inner().unwrap();
    let sum = |f: fn(&Count) -> u64| counts.iter().map(f).sum::<u64>();
    let all = [
        ("crashes", sum(|c| c.crashes)),
        ("faults", sum(|c| c.faults)),
        ("updates", sum(|c| c.updates)),
        ("deletions", sum(|c| c.deletions)),
        ("late", sum(|c| c.late)),
        ("moves", sum(|c| c.moves)),
        ("replays", sum(|c| c.replays)),
        ("stale", sum(|c| c.stale)),
        ("left out", sum(|c| c.left_out)),
        ("retired", sum(|c| c.retired)),
        ("dropped", sum(|c| c.dropped)),
        ("lifted", sum(|c| c.lifted)),
        ("held", sum(|c| c.held)),
        ("stages replayed", sum(|c| c.stages)),
        ("stages left out", sum(|c| c.unproven)),
        ("restored", sum(|c| c.restored)),
        ("two epochs", sum(|c| c.two_epochs)),
        ("lost shards", sum(|c| c.lost_shards)),
    ];
    eprintln!(
        "{n} seeds, {:.1} s: {all:?}",
        started.elapsed().as_secs_f64()
    );
    let often = all.iter().all(|(_, k)| *k > n / 50);
    assert!(
        n < 300 || often,
        "a simulation in which little happens: {all:?}"
    );
}

#[test]
fn a_seed_gives_its_trace_again() {
    for seed in 0..4 {
        assert_eq!(run(seed).0, run(seed).0, "seed {seed}");
    }
}
