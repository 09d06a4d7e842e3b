//! What one person, device or operator may make us keep.
#![allow(missing_docs, clippy::unwrap_used)]

use crate::common::{House, digest, name};
use lethe_ledger::*;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::SubjectId;
use lethe_proto::message::Erased;

fn invite(house: &mut House, of: &SubjectId, n: u32) -> Result<Vec<Event>, Refused> {
    let secret = digest(&format!("invitation {n} of {of}"));
    let subject = of.clone();
    house.run(Command::Invite { subject, secret })
}

#[test]
fn a_new_person_has_no_name_that_looks_like_another() {
    let mut house = House::of(&["ada"]);
    let hidden = [
        "ad\u{202e}a",
        "ada\u{200b}",
        "\u{2066}ada\u{2069}",
        "\u{feff}ada",
        "a\u{ad}da",
        "ada\u{61c}",
        "ada\u{e0041}",
    ];
    for id in hidden {
        let refused = invite(&mut house, &name(id), 1).unwrap_err().message;
        assert!(refused.contains("nobody sees"), "{id:?}: {refused}");
        assert!(house.state.role(&digest(id)).is_none());
    }
    for id in ["ad\u{e0}", "\u{5e2}\u{5d3}\u{5d4}", "ada 2", "\u{1f60a}"] {
        invite(&mut house, &name(id), 1).unwrap();
    }
}

#[test]
fn invitations_of_one_person_are_few_and_others_have_theirs() {
    let mut house = House::of(&["ada"]);
    let ada = name("ada");
    let mut given = 0;
    let refused = loop {
        match invite(&mut house, &ada, given) {
            Ok(_) => given += 1,
            Err(e) => break e.message,
        }
        assert!(given < 1000, "without a bound");
    };
    assert_eq!(given, 64);
    assert!(refused.contains("wait to be used"), "{refused}");
    invite(&mut house, &name("bob"), 0).unwrap();
    house.propose(Proposal::Revoke(ada.clone()), "a").unwrap();
    invite(&mut house, &ada, 1000).unwrap();
}

#[test]
fn devices_of_one_person_are_few() {
    let mut house = House::of(&["ada"]);
    for n in 1..64 {
        house.device("ada", &format!("tablet {n}"));
    }
    let refused = invite(&mut house, &name("ada"), 0).unwrap_err().message;
    assert!(refused.contains("64 devices"), "{refused}");
}

#[test]
fn proposals_of_one_operator_leave_room_for_another() {
    let mut house = House::of(&["ada"]);
    house.operator("b");
    house.propose(Proposal::Approvals(2), "a").unwrap();
    let mut waiting = 0;
    let refused = loop {
        match house.propose(Proposal::InviteOperator, "a") {
            Ok(_) => waiting += 1,
            Err(e) => break e.message,
        }
        assert!(waiting < 2000, "without a bound");
        // The log has a pace of its own.
        house.wait(2);
    };
    assert_eq!(waiting, 250);
    assert!(refused.contains("of this operator wait"), "{refused}");
    house.propose(Proposal::InviteOperator, "b").unwrap();
}

#[test]
fn a_device_says_no_more_removed_than_any_can_hold() {
    let mut house = House::of(&["ada", "bob"]);
    house.settle();
    let request = DeletionRequest::EraseItems {
        subject: name("ada"),
        items: vec!["i1".into()],
    };
    let id = house.ask(request);
    house.settle();
    let phone = digest("ada phone");
    let task = house.state.work_for(&phone, house.now);
    let Some(Work::Erase { task }) = task else {
        panic!("{task:?}");
    };
    let mut says = |n: u32| {
        let removed = vec![(id, n)];
        house.run(Command::Erased {
            device: phone,
            task,
            outcome: Erased::Done { removed },
        })
    };
    let refused = says(u32::MAX).unwrap_err().message;
    assert!(refused.contains("no device holds more"), "{refused}");
    assert!(!says(1).unwrap().is_empty());
}

/// Deadlines that pass until a shard of four is trained.
fn deadlines_with(away: Option<&str>, rounds: u16) -> u64 {
    let terms = Terms {
        slices: 1,
        rounds,
        cohort: 4,
        quorum: 2,
        ..crate::common::terms()
    };
    let people = ["ada", "bob", "cem", "dea"];
    let mut house = House::with(terms, &people);
    house.away.extend(away.map(name));
    let mut deadlines = 0;
    while house.state.current_release().is_none() {
        house.settle();
        if house.state.current_release().is_none() {
            house.wait(61);
            deadlines += 1;
        }
        assert!(deadlines < 10_000, "it never ends");
    }
    deadlines
}

#[test]
fn who_never_finishes_is_not_waited_for_in_every_round() {
    assert_eq!(deadlines_with(None, 100), 0);
    let away = deadlines_with(Some("ada"), 100);
    // Six, and then none for as long as ten last: the others need no time here.
    assert_eq!(away, 6);
}

#[test]
fn a_shard_with_a_quorum_of_silent_people_asks_them_again() {
    let terms = Terms {
        slices: 1,
        rounds: 20,
        cohort: 2,
        quorum: 2,
        ..crate::common::terms()
    };
    let mut house = House::with(terms, &["ada", "bob"]);
    house.away.insert(name("ada"));
    for _ in 0..30 {
        house.settle();
        house.wait(61);
    }
    assert!(house.state.current_release().is_none());
    house.away.clear();
    house.settle();
    assert!(
        house.state.current_release().is_some(),
        "nothing is held against them"
    );
}
