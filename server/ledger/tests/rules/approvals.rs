//! What one operator may do alone where two have to agree, and what the log holds of it (audit M2).
#![allow(missing_docs, clippy::unwrap_used)]

use crate::common::{House, digest, name};
use lethe_ledger::{Command, Event, Now, Refused, due};
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::Digest;
use lethe_proto::message::{Refusal, Role};

/// Two operators who have to agree; Ada has joined.
fn two() -> House {
    let mut house = House::of(&["ada"]);
    house.operator("b");
    house.propose(Proposal::Approvals(2), "a").unwrap();
    house
}

fn forget(of: &str) -> Proposal {
    Proposal::Forget {
        requests: vec![DeletionRequest::Erase { subject: name(of) }],
        asked: 0,
        reference: String::new(),
    }
}

fn approve(house: &mut House, id: u64, by: &str) -> Result<Vec<Event>, Refused> {
    let fresh = house.fresh();
    house.run(Command::Approve {
        id,
        by: digest(&format!("operator {by}")),
        secret: digest("invitation"),
        plans: vec![],
        fresh,
    })
}

fn waiting(house: &House) -> Vec<u64> {
    house.state.proposals().keys().copied().collect()
}

/// Lines that the log holds of what operators did, once all that is due is done.
fn lines(house: &mut House) -> Vec<String> {
    house.settle();
    let all = house.state.action_list();
    all.into_iter().map(|a| a.what).collect()
}

#[test]
fn one_operator_does_not_cancel_the_deletion_of_another() {
    let mut house = two();
    house.propose(forget("ada"), "a").unwrap();
    let [id] = waiting(&house)[..] else {
        panic!("one proposal");
    };
    house.propose(Proposal::CancelProposal(id), "b").unwrap();
    assert_eq!(waiting(&house), [id, id + 1], "the other has to agree");
    // Whoever wanted it withdrawn is too late when it is carried out.
    approve(&mut house, id, "b").unwrap();
    assert!(waiting(&house).is_empty());
    assert_eq!(house.state.deletions().len(), 1);
}

#[test]
fn what_one_has_proposed_oneself_is_withdrawn_alone_and_what_two_agree_to_withdraw_goes() {
    let mut house = two();
    house.propose(forget("ada"), "a").unwrap();
    let own = waiting(&house)[0];
    house.propose(Proposal::CancelProposal(own), "a").unwrap();
    assert!(waiting(&house).is_empty());
    house.propose(forget("ada"), "a").unwrap();
    let second = waiting(&house)[0];
    house
        .propose(Proposal::CancelProposal(second), "b")
        .unwrap();
    approve(&mut house, second + 1, "a").unwrap();
    assert!(waiting(&house).is_empty() && house.state.deletions().is_empty());
    let missing = house.propose(Proposal::CancelProposal(second), "a");
    assert_eq!(missing.unwrap_err().code, Refusal::Invalid);
}

#[test]
fn one_operator_does_not_refuse_a_persons_devices() {
    let mut house = two();
    let phone = digest("ada phone");
    let known = Some(Role::Subject(name("ada")));
    house.propose(Proposal::Revoke(name("ada")), "a").unwrap();
    assert_eq!(house.state.role(&phone), known);
    let id = waiting(&house)[0];
    let events = approve(&mut house, id, "b").unwrap();
    let subject = name("ada");
    assert!(events.contains(&Event::Withdrawn { subject }));
    assert_eq!(house.state.role(&phone), None);
    let nobody = house.propose(Proposal::Revoke(name("nobody")), "a");
    assert_eq!(nobody.unwrap_err().code, Refusal::Invalid);
}

#[test]
fn one_operator_does_not_enrol_as_a_person_who_is_there() {
    let mut house = two();
    let invited = |events: &[Event]| events.iter().any(|e| matches!(e, Event::Invited { .. }));
    // Of whom nothing is known, nobody can be impersonated.
    let new = Proposal::InviteDevice(name("eva"));
    assert!(invited(&house.propose(new, "a").unwrap()));
    let second = Proposal::InviteDevice(name("ada"));
    let proposed = house.propose(second.clone(), "a").unwrap();
    assert!(!invited(&proposed) && waiting(&house).len() == 1);
    let id = waiting(&house)[0];
    let approved = approve(&mut house, id, "b").unwrap();
    assert!(invited(&approved), "who agrees last gets the invitation");
    let note = "invite another device of a person".to_owned();
    assert!(lines(&mut house).contains(&note));
    // Where one operator decides, a second device needs nobody else; the log has it all the same.
    let mut house = House::of(&["ada"]);
    assert!(invited(&house.propose(second, "a").unwrap()));
    assert!(lines(&mut house).contains(&note));
}

#[test]
fn one_operator_does_not_search_the_records_and_no_search_is_without_its_entry() {
    let mut house = two();
    let texts = vec!["ada@example.org".to_owned()];
    let scan = Proposal::Scan { texts };
    house.propose(scan.clone(), "a").unwrap();
    let id = waiting(&house)[0];
    approve(&mut house, id, "b").unwrap();
    assert!(waiting(&house).is_empty());
    let mut alone = House::of(&["ada"]);
    alone.propose(scan, "a").unwrap();
    for mut house in [house, alone] {
        let noted = lines(&mut house);
        let of = |l: &String| l.starts_with("search the records");
        assert_eq!(noted.iter().filter(|l| of(l)).count(), 1, "{noted:?}");
        assert!(noted.iter().all(|l| !l.contains("ada")), "it names nobody");
    }
    for texts in [vec![], vec!["text".to_owned(); 65], vec!["x".repeat(5000)]] {
        let mut house = two();
        let refused = house.propose(Proposal::Scan { texts }, "a");
        assert_eq!(refused.unwrap_err().code, Refusal::Invalid);
        assert!(waiting(&house).is_empty());
    }
}

#[test]
fn a_request_for_a_deletion_is_an_action_of_its_operator() {
    let mut house = House::of(&["ada", "ben"]);
    house.propose(forget("ada"), "a").unwrap();
    house.settle();
    let noted = house.state.action_list();
    let own = noted.iter().filter(|a| a.what == "ask for a deletion");
    let own: Vec<Digest> = own.map(|a| a.by).collect();
    assert_eq!(own, [digest("operator a")]);
    // It keeps no pace of its own: a privacy team with a thousand requests does not wait for it.
    let mut house = House::of(&["ada", "ben"]);
    for _ in 0..200 {
        let subject = name("ada");
        let restrict = Proposal::Forget {
            requests: vec![DeletionRequest::Restrict { subject }],
            asked: 0,
            reference: String::new(),
        };
        let decided = house.propose(restrict, "a");
        assert!(decided.is_ok_and(|events| !events.is_empty()));
        house.settle();
    }
}

#[test]
fn first_invitations_enter_the_log_together_and_none_is_left_out() {
    let mut house = House::of(&["ada"]);
    let later = |house: &House, ms: u64| Now {
        unix_ms: house.now.unix_ms + ms,
        uptime_ms: house.now.uptime_ms + ms,
    };
    let invite = |house: &mut House, n: u64| {
        let what = Proposal::InviteDevice(name(&format!("person {n}")));
        house.propose(what, "a").unwrap();
    };
    invite(&mut house, 0);
    house.settle();
    // More than the pace of an operator's actions would let through.
    (1..=500).for_each(|n| invite(&mut house, n));
    house.settle();
    let noted = |house: &mut House| {
        let all = lines(house).into_iter();
        all.filter(|l| l.starts_with("invite ")).collect::<Vec<_>>()
    };
    assert_eq!(noted(&mut house).last().unwrap(), "invite a person");
    house.now = later(&house, 60_000);
    house.settle();
    assert_eq!(noted(&mut house).last().unwrap(), "invite 500 people");
    assert!(due(&house.state, house.now).is_empty());
}

#[test]
fn one_operator_does_not_fill_the_room_for_proposals() {
    let mut house = two();
    let mut refused = None;
    for n in 0..2000 {
        // One a second: the pace of the log is not what stops it.
        house.now.uptime_ms += 1000;
        house.now.unix_ms += 1000;
        if let Err(e) = house.propose(forget("ada"), "a") {
            refused = Some((n, e));
            break;
        }
    }
    let (n, why) = refused.unwrap();
    assert_eq!(n, 250, "{why}");
    assert!(house.propose(forget("ada"), "b").is_ok());
}
