//! The coordinator's decisions and devices' rules under a seeded scheduler: virtual time, and a
//! network, disks, devices and a coordinator that fail. The coordinator is the real one ([`Core`]
//! with its sealed store, keys, log and journal); what is left out is QUIC, the engine, and the
//! group commit in front of the store, which the end-to-end tests have.
//!
//! Invariants, after every event:
//! 1. No update counts twice; when a round closes, every update that was acknowledged has counted
//!    in it or before it (or waits for the next, if it came while the closing write was in doubt
//!    and `staleness` allows), but for those of the deleted. None counts later than `staleness`
//!    allows.
//! 2. A shard's `(generation, stage, round)` and the number of the release never go back, over
//!    crashes either.
//! 3. After a crash the coordinator starts, whatever its disk did.
//!
//! 4. Nothing is served without its record: the release that may be fetched, and the adapters that
//!    it serves, are those that the store holds. So are recalls and restrictions.
//! 5. A device gets no order to erase that its log does not hold, and the log that it sees only
//!    grows.
//! 6. No shard's run is missing, and each is in its place.
//!
//! When the faults have ended:
//!
//! 7. All rounds, validations and deletions come to their end.
//! 8. Every shard's adapter is, byte for byte, what its recorded rounds give when they are computed
//!    anew from what the devices hold now: nothing of an erased person or item is left, and nothing
//!    counts twice or is lost.
//! 9. The same seed gives the same trace.
//!
//! And without faults: the order in which people join, and devices answer, changes no byte.
//!
//! `LETHE_SIM_SEEDS=FROM-TO cargo test --release -p lethe-coordinator simulation` runs others.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lethe_proto::ids::{Digest, RoundKey};

use super::Core;
use super::updates::Sent;
use crate::aggregate::{Clip, Contribution, apply, median_norm};
use crate::records::Update;
use crate::run::initial;
use record::Count;
use world::Simulation;

mod device;
mod disk;
mod exchange;
mod look;
mod record;
mod world;

/// Seeds that once failed. 40, 93: a round whose write failed while the store could not be read
/// either went on from a state that was not stored, without a record of who had taken part. 257,
/// 319: a crash cut off the write that closed a round before it removed the round's updates, and
/// the next round counted them again as late. 445, 849: what was left of a person after an erasure
/// moved to another shard, which was rolled back and served without a release of its own. 1190: a
/// late update was taken while the last round of its stage was being added up. 4964: a rollback
/// that a crash cut off left its shard at an earlier stage of the same generation.
const REGRESSIONS: &[u64] = &[40, 93, 257, 319, 445, 849, 1190, 4964];

/// A shard's adapter from its recorded rounds and what devices hold now.
fn anew(sim: &Simulation, core: &Core, shard: usize) -> Digest {
    let (recipe, whole) = (&core.recipe, core.whole());
    let run = &core.runs[shard];
    let mut state = initial(recipe, &core.shape);
    let mut norms = vec![];
    for ((stage, round), contributors) in core.recorded_rounds(run.shard).unwrap() {
        let updates: Vec<Update> = contributors
            .iter()
            .map(|(s, begun)| {
                let key = RoundKey {
                    epoch: run.epoch,
                    shard: run.shard,
                    generation: run.generation,
                    stage,
                    round: *begun,
                };
                let device = sim.devices.iter().find(|d| d.subject == *s).unwrap();
                let (delta, loss, samples) = device::update(&sim.common, s, device.erased, key);
                let sent = Sent {
                    device: delta,
                    middle: exchange::middle(core),
                    loss,
                    samples,
                    joined: samples,
                };
                Update::checked(recipe, &whole, key, sent).unwrap()
            })
            .collect();
        let contributions: Vec<Contribution> = updates
            .iter()
            .map(|u| u.contribution(recipe, &whole).unwrap())
            .collect();
        let late: Vec<u16> = contributors
            .iter()
            .map(|(_, begun)| round - begun)
            .collect();
        let refs: Vec<&Contribution> = contributions.iter().collect();
        let clip = Clip::of(recipe, &norms, &refs);
        apply(recipe, &mut state, &refs, &late, &clip, |r| {
            let of = |i: usize| updates[i].delta(recipe, &whole, refs[i].norm);
            r.map(of).collect()
        })
        .unwrap();
        norms.extend(median_norm(&refs));
    }
    Digest::of_values(&state.theta)
}

fn run(seed: u64) -> (Digest, Count) {
    let mut sim = Simulation::new(seed);
    while sim.step() {}
    let core = sim
        .core
        .as_ref()
        .unwrap_or_else(|| panic!("{}: the coordinator is down", sim.story()));
    assert!(
        sim.now < world::END,
        "{}: does not come to its end: {}",
        sim.story(),
        sim.stuck()
    );
    for shard in 0..core.runs.len() {
        assert_eq!(
            core.runs[shard].hash(),
            anew(&sim, core, shard),
            "{}: shard {shard}",
            sim.story()
        );
        for contributors in core
            .recorded_rounds(core.runs[shard].shard)
            .unwrap()
            .values()
        {
            let left = contributors.iter().find(|(s, _)| sim.forgotten.contains(s));
            assert_eq!(left, None, "{}: a deleted subject counts", sim.story());
        }
    }
    (sim.trace(), sim.count)
}

fn seeds() -> std::ops::Range<u64> {
    let text = std::env::var("LETHE_SIM_SEEDS").unwrap_or_else(|_| "0-6000".into());
    let (from, to) = text.split_once('-').expect("FROM-TO");
    from.parse().unwrap()..to.parse().unwrap()
}

#[test]
fn rounds_and_deletions_survive_everything() {
    let (range, started) = (seeds(), std::time::Instant::now());
    let (next, count) = (AtomicU64::new(range.start), Mutex::new(Count::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= range.end {
                return;
            }
            let one = run(seed).1;
            *count.lock().unwrap() += one;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|s| (0..threads).for_each(|_| drop(s.spawn(work))));
    let (n, c) = (range.end - range.start, count.into_inner().unwrap());
    eprintln!("{n} seeds, {:.1} s: {c:?}", started.elapsed().as_secs_f64());
    let often = [
        c.crashes,
        c.failed_writes,
        c.updates,
        c.repeated,
        c.deletions,
        c.late,
        c.slow,
    ]
    .iter()
    .all(|k| *k > n / 20);
    assert!(
        n < 1000 || (often && c.failed_starts > 0),
        "a simulation in which little happens: {c:?}"
    );
}

#[test]
fn seeds_that_once_failed_pass() {
    for seed in REGRESSIONS {
        run(*seed);
    }
}

#[test]
fn a_seed_gives_its_trace_again() {
    for seed in 0..8 {
        assert_eq!(run(seed).0, run(seed).0, "seed {seed}");
    }
}

#[test]
fn the_order_of_joins_and_answers_changes_no_byte() {
    let hashes = |seed: u64, order: u64| -> Vec<Digest> {
        let mut sim = Simulation::quiet(seed, order);
        while sim.step() {}
        let core = sim.core.as_ref().expect("runs");
        assert!(sim.now < world::END, "{}: {}", sim.story(), sim.stuck());
        core.runs.iter().map(crate::run::Run::hash).collect()
    };
    let mut distinct = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let first = hashes(seed, 0);
        for order in 1..5 {
            assert_eq!(first, hashes(seed, order), "seed {seed}, order {order}");
        }
        distinct.insert(format!("{first:?}"));
    }
    assert!(distinct.len() > 3, "other seeds are other federations");
}
