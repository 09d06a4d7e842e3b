//! Replays that have to do without somebody: what they prove, what they leave out, and that they
//! end.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use crate::common::{House, digest, name, terms};
use lethe_ledger::{Aggregation, Command, Event, Placement, Refused, ShardKey, Terms};
use lethe_proto::ids::SubjectId;
use lethe_proto::people::{ReplayProgress, ReplayVerdict, StageOutcome};

/// Ada is in the first slice, the others in the second: who is here longer is earlier.
fn house() -> House {
    let terms = Terms {
        placement: Placement::Tenure,
        slices: 3,
        ..terms()
    };
    let mut house = House::with(terms, &[]);
    house.state.set_rules(lethe_ledger::Rules {
        min_subjects: 3,
        ..house.state.rules().clone()
    });
    for person in ["ada", "ben", "eva"] {
        house.joins(person, 1);
        house.wait(10);
    }
    house.settle();
    assert!(house.state.current_release().is_some());
    house
}

fn shard(house: &House) -> ShardKey {
    house.state.shards().next().unwrap().0
}

fn replay(house: &mut House) -> Result<Vec<Event>, Refused> {
    let command = Command::ReplayWithoutMissing {
        shard: shard(house),
        by: digest("operator a"),
        fresh: house.fresh(),
    };
    house.run(command)
}

fn progress(house: &House) -> ReplayProgress {
    house
        .state
        .replay_progress(shard(house), house.now)
        .unwrap()
}

/// Lets deadlines pass until the replay has ended.
fn to_its_end(house: &mut House) -> ReplayProgress {
    for _ in 0..100 {
        house.settle();
        let now = progress(house);
        if now.verdict != ReplayVerdict::Running {
            return now;
        }
        house.wait(61);
    }
    panic!("it never ends: {:?}", progress(house));
}

#[test]
fn with_everybody_there_it_is_a_replay_like_any_other() {
    let mut house = house();
    replay(&mut house).unwrap();
    house.settle();
    let done = progress(&house);
    assert_eq!(done.verdict, ReplayVerdict::Equal);
    let equal = |n: u16| (n, StageOutcome::Equal);
    let stages: Vec<_> = done.stages.iter().map(|s| (s.stage, s.outcome)).collect();
    assert_eq!(stages, [equal(1), equal(2), equal(3)]);
    assert!(done.missing.is_empty() && done.hashes.is_some() && done.why.is_empty());
    // The older question has the same answer.
    let state = house.state.replay_state(shard(&house), house.now).unwrap();
    assert_eq!(state.hashes, done.hashes);
}

#[test]
fn stages_that_need_somebody_who_is_missing_are_left_out_and_the_others_proven() {
    let mut house = house();
    // Who came last enters with the last stage alone.
    let slice = |who: &str| {
        let profile = house.state.profile(&name(who)).unwrap();
        profile.places.values().next().unwrap().slice
    };
    assert_eq!(["ada", "ben", "eva"].map(slice), [0, 1, 2]);
    house.away.insert(name("eva"));
    replay(&mut house).unwrap();
    house.settle();
    let waits = progress(&house);
    assert_eq!(waits.verdict, ReplayVerdict::Running);
    assert_eq!(
        (&waits.waiting[..], waits.waiting_in_all),
        (&[name("eva")][..], 1)
    );
    assert_eq!(waits.stages.len(), 2, "the first two are proven meanwhile");
    let done = to_its_end(&mut house);
    assert_eq!(done.verdict, ReplayVerdict::Partial);
    let stages: Vec<_> = done.stages.iter().map(|s| s.outcome).collect();
    assert_eq!(
        stages,
        [
            StageOutcome::Equal,
            StageOutcome::Equal,
            StageOutcome::Unproven { missing: 1 }
        ]
    );
    assert_eq!(done.missing[0].subject, Some(name("eva")));
    assert_eq!(done.hashes, None, "nothing is said of the shard's adapter");
    assert_eq!(
        done.why,
        "PARTIAL; as recorded: stages 1, 2; not proven: stage 3, which cannot be trained again \
         without 1 who are missing"
    );
    let old = house.state.replay_state(shard(&house), house.now);
    assert_eq!(old.unwrap_err().message, done.why);
    // Nothing of it is left, and another may begin.
    let live = &house.state.shard(shard(&house)).unwrap().run;
    let generations: Vec<u32> = house.state.stages().keys().map(|k| k.generation).collect();
    assert!(generations.iter().all(|g| *g == live.generation));
    assert!(house.state.core().spent.is_empty());
    house.away.clear();
    replay(&mut house).unwrap();
    assert_eq!(to_its_end(&mut house).verdict, ReplayVerdict::Equal);
}

struct Alone {
    house: House,
    only: SubjectId,
    later: SubjectId,
}

/// A world with one person a round; somebody who contributed to the first stage alone, and somebody
/// of the second.
fn alone(seed: u64) -> Option<Alone> {
    let terms = Terms {
        slices: 3,
        cohort: 1,
        seed,
        ..terms()
    };
    let mut house = House::with(terms, &["ada", "ben", "eva", "ian"]);
    house.settle();
    let rounds = house.state.recorded_rounds(shard(&house));
    let of = |stages: &[u16]| {
        let own = rounds.iter().filter(|((s, _), _)| stages.contains(s));
        let names = own.flat_map(|(_, c)| c).map(|(s, _)| s.clone());
        names.collect::<BTreeSet<_>>()
    };
    let only = of(&[1]).difference(&of(&[2, 3])).next().cloned()?;
    let later = of(&[2]).into_iter().next()?;
    Some(Alone { house, only, later })
}

#[test]
fn after_a_stage_that_was_left_out_the_next_begins_with_what_was_recorded() {
    // A world in which somebody of the first stage is in no later one.
    let found = (1..100).find_map(alone).expect("one of a hundred worlds");
    let mut house = found.house;
    let only = found.only;
    let later = found.later;
    house.away.insert(only);
    replay(&mut house).unwrap();
    let done = to_its_end(&mut house);
    assert_eq!(done.verdict, ReplayVerdict::Partial, "{done:?}");
    let outcomes: Vec<_> = done.stages.iter().map(|s| s.outcome).collect();
    assert_eq!(
        outcomes,
        [
            StageOutcome::Unproven { missing: 1 },
            StageOutcome::Equal,
            StageOutcome::Equal
        ]
    );
    // And one whose data is not what it was is found all the same.
    house.changed.insert(later);
    replay(&mut house).unwrap();
    let done = to_its_end(&mut house);
    assert_eq!(done.verdict, ReplayVerdict::Different, "{done:?}");
    assert!(done.why.starts_with("DIFFERENT"), "{}", done.why);
    assert!(done.stages[1].outcome != StageOutcome::Equal);
}

#[test]
fn who_has_no_device_any_more_is_not_waited_for() {
    let mut house = house();
    house
        .run(Command::Propose {
            what: lethe_proto::deletion::Proposal::Revoke(name("eva")),
            confirmed: true,
            note: None,
            by: digest("operator a"),
            secret: digest("no invitation"),
            plans: vec![],
            fresh: lethe_ledger::Fresh::default(),
        })
        .unwrap();
    replay(&mut house).unwrap();
    house.settle();
    let done = progress(&house);
    assert_eq!(done.verdict, ReplayVerdict::Partial, "at once");
    assert_eq!(done.missing[0].why, "has no device");
    // As a replay that needs all of them: it ends, and names who is missing.
    let command = Command::Replay {
        shard: shard(&house),
        by: digest("operator a"),
        fresh: house.fresh(),
    };
    house.run(command).unwrap();
    let ended = to_its_end(&mut house);
    assert_eq!(ended.verdict, ReplayVerdict::GivenUp);
    assert_eq!(ended.missing[0].subject, Some(name("eva")));
    assert!(ended.why.contains("--without-missing"), "{}", ended.why);
}

#[test]
fn what_everybody_keeps_from_stage_to_stage_needs_everybody() {
    let terms = Terms {
        aggregation: Aggregation::Personalized,
        ..terms()
    };
    let mut house = House::with(terms, &["ada", "ben"]);
    house.settle();
    let refused = replay(&mut house).unwrap_err();
    assert!(refused.message.contains("personalized"), "{refused}");
}
