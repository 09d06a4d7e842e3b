//! Shards that wait for an operator.
#![allow(missing_docs, clippy::unwrap_used)]

use crate::common::{House, digest, name};
use lethe_ledger::{Command, Event, Refused, Rules, ShardKey};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::DeletionRequest;

const HOUR: u64 = 3600;

fn house() -> House {
    let mut house = House::of(&["ada", "ben"]);
    house.state.set_rules(Rules {
        quarantine_ms: 24 * HOUR * 1000,
        ..house.state.rules().clone()
    });
    house.settle();
    assert_eq!(house.state.current_release().unwrap().0, 1);
    house
}

fn shard(house: &House) -> ShardKey {
    house.state.shards().next().unwrap().0
}

fn trained(house: &House) -> bool {
    house.state.shard_view(shard(house)).unwrap().done
}

fn damaged(house: &mut House) {
    let command = Command::Started {
        floor: house.state.core().numbers.release,
        journal: vec![],
        lost: vec![shard(house)],
        stayed: vec![],
        fresh: house.fresh(),
    };
    house.run(command).unwrap();
    house.settle();
}

fn hold(house: &mut House) -> Result<Vec<Event>, Refused> {
    let command = Command::HoldShard {
        shard: shard(house),
        by: digest("operator a"),
        fresh: house.fresh(),
    };
    house.run(command)
}

fn release(house: &mut House) -> Result<Vec<Event>, Refused> {
    let command = Command::ReleaseShard {
        shard: shard(house),
        by: digest("operator a"),
        fresh: house.fresh(),
    };
    house.run(command)
}

#[test]
fn a_damaged_shard_waits_until_it_is_released_or_its_time_is_over() {
    for released in [true, false] {
        let mut house = house();
        damaged(&mut house);
        let view = house.state.shard_view(shard(&house)).unwrap();
        assert!(view.quarantined && view.held && view.rounds.0 == 0);
        assert!(house.state.may_serve().is_ok(), "what is served goes on");
        assert_eq!(house.state.current_release().unwrap().0, 2);
        let held = house.state.held_shards(house.now);
        assert!(held.len() == 1 && held[0].damaged && held[0].until.is_some());
        house.wait(23 * HOUR);
        house.settle();
        assert!(!trained(&house));
        match released {
            true => drop(release(&mut house).unwrap()),
            false => house.wait(2 * HOUR),
        }
        house.settle();
        let view = house.state.shard_view(shard(&house)).unwrap();
        assert!(
            view.done && !view.held && !view.quarantined,
            "{released}: {view:?}"
        );
        assert!(house.state.held_shards(house.now).is_empty());
        assert!(release(&mut house).is_err(), "it is not held any more");
    }
}

#[test]
fn an_operator_holds_a_shard_for_as_long_as_they_like_and_deletions_wait_and_say_so() {
    let mut house = house();
    hold(&mut house).unwrap();
    assert!(
        hold(&mut house)
            .unwrap_err()
            .message
            .contains("is held already")
    );
    let subject = name("ben");
    let id = house.ask(DeletionRequest::Erase { subject });
    house.settle();
    let deletion = &house.state.deletions()[&id];
    assert!(deletion.exact_after_ms.is_some(), "exact at once");
    assert_eq!(deletion.phase, DeletionPhase::Retraining);
    let waits = house.state.waits_for(deletion, house.now);
    assert_eq!(
        waits,
        "shard 0: it is held, and nothing is trained in it: `lethe-admin shard release 0`"
    );
    house.wait(1000 * HOUR);
    house.settle();
    assert!(!trained(&house));
    release(&mut house).unwrap();
    house.settle();
    assert_eq!(house.state.deletions()[&id].phase, DeletionPhase::Done);
}

#[test]
fn who_holds_a_damaged_shard_ends_its_time() {
    let mut house = house();
    damaged(&mut house);
    hold(&mut house).unwrap();
    house.wait(48 * HOUR);
    house.settle();
    assert!(!trained(&house));
    // Damaged once more: it stays with the operator.
    damaged(&mut house);
    assert_eq!(house.state.held_shards(house.now)[0].until, None);
    release(&mut house).unwrap();
    house.settle();
    assert!(trained(&house));
}
