//! People whose data is not used for a while, and how that ends.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use crate::common::{House, digest, name, terms};
use lethe_ledger::{Command, EpochNo, Event};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::message::{Erased, Refusal};

fn restrict(of: &str) -> DeletionRequest {
    DeletionRequest::Restrict { subject: name(of) }
}

fn lift(of: &str) -> Proposal {
    Proposal::LiftRestriction(name(of))
}

/// Who is trained on in an epoch.
fn members(house: &House, epoch: u32) -> Vec<String> {
    let shards = house.state.shards();
    let own = shards.filter(|(key, _, _)| key.epoch == EpochNo(epoch));
    let all = own.flat_map(|(key, _, _)| house.state.members(key));
    all.map(|m| m.subject.to_string()).collect()
}

#[test]
fn a_lifted_restriction_is_over_in_lists_at_once_and_in_training_from_the_next_epoch_on() {
    let mut house = House::of(&["ada", "ben", "eva"]);
    let ada = digest("ada phone");
    house.settle();
    assert_eq!(house.state.current_release().unwrap().0, 1);
    let id = house.ask(restrict("ada"));
    house.settle();
    assert_eq!(house.state.deletions()[&id].phase, DeletionPhase::Done);
    assert_eq!(
        house.state.may_contribute(&ada).unwrap_err().code,
        Refusal::Forbidden
    );
    let standing = house.state.standing(&ada).unwrap();
    assert!(standing.restricted && standing.not_trained.starts_with("restricted"));
    assert_eq!(standing.left, id);
    // One who joins an epoch while their data is restricted has no part in it.
    house.found(terms());
    house.joins("ada", 2);
    assert!(house.state.profile(&name("ada")).unwrap().places[&EpochNo(2)].excluded);

    let events = house.propose(lift("ada"), "a").unwrap();
    let noted = events.iter().find_map(|e| match e {
        Event::ActionNoted { action, .. } => Some(action.what.clone()),
        _ => None,
    });
    assert_eq!(
        noted.as_deref(),
        Some("lift the restriction of deletion 1"),
        "the log is told, and named nobody"
    );
    assert_eq!(house.state.may_contribute(&ada).unwrap(), name("ada"));
    let profile = house.state.profile(&name("ada")).unwrap();
    let places = [1, 2].map(|no| profile.places[&EpochNo(no)].excluded);
    assert_eq!(
        places,
        [true, false],
        "the epoch that has begun is as it was"
    );
    let standing = house.state.standing(&ada).unwrap();
    assert!(!standing.restricted);
    assert!(
        standing
            .not_trained
            .starts_with("the restriction is lifted"),
        "{standing:?}"
    );
    let words = house.state.subject_lineage(&name("ada")).unwrap().idle;
    assert_eq!(words, standing.not_trained);
    let listed = house.state.restriction_list(0);
    assert!(listed.len() == 1 && listed[0].lifted.is_some() && listed[0].done);
    house.settle();
    assert_eq!(members(&house, 1), ["ben", "eva"]);

    house.joins("ben", 2);
    house.joins("eva", 2);
    house.settle();
    assert_eq!(members(&house, 2), ["ada", "ben", "eva"]);
    assert_eq!(house.state.core().serving, Some(EpochNo(2)));
    assert_eq!(house.state.standing(&ada).unwrap().not_trained, "");
}

#[test]
fn what_is_not_restricted_or_not_done_is_not_lifted() {
    let mut house = House::of(&["ada", "ben"]);
    house.settle();
    let refused = house.propose(lift("ada"), "a").unwrap_err();
    assert_eq!(
        refused.message,
        "the data of ada is not restricted: `lethe-admin restriction list` shows whose is"
    );
    let refused = house.propose(lift("nobody"), "a").unwrap_err();
    assert_eq!(refused.code, Refusal::Invalid);
    house.ask(restrict("ada"));
    let refused = house.propose(lift("ada"), "a").unwrap_err();
    assert_eq!(refused.code, Refusal::Busy, "{refused}");
    // Executed, and not trained again yet: the receipt is to say that nothing is used.
    house.away.insert(name("ben"));
    house.settle();
    let refused = house.propose(lift("ada"), "a").unwrap_err();
    assert!(
        refused.code == Refusal::Busy && refused.message.contains("deletion 1"),
        "{refused}"
    );
    house.away.clear();
    house.settle();
    house.propose(lift("ada"), "a").unwrap();
    let refused = house.propose(lift("ada"), "a").unwrap_err();
    assert_eq!(refused.code, Refusal::Invalid, "once is enough");
    // It may be asked for again.
    let second = house.ask(restrict("ada"));
    house.settle();
    let profile = house.state.profile(&name("ada")).unwrap();
    assert!(profile.restricted);
    let open = house.state.restriction_list(0);
    let open: Vec<u64> = open
        .iter()
        .filter(|r| r.lifted.is_none())
        .map(|r| r.deletion)
        .collect();
    assert_eq!(open, [second]);
}

#[test]
fn two_operators_lift_where_two_have_to_agree() {
    let mut house = House::of(&["ada", "ben"]);
    house.operator("b");
    house.ask(restrict("ada"));
    house.settle();
    house.propose(Proposal::Approvals(2), "a").unwrap();
    house.propose(lift("ada"), "a").unwrap();
    assert!(house.state.profile(&name("ada")).unwrap().restricted);
    let id = *house.state.proposals().keys().next().unwrap();
    let fresh = house.fresh();
    let events = house
        .run(Command::Approve {
            id,
            by: digest("operator b"),
            secret: digest("invitation"),
            plans: vec![],
            fresh,
        })
        .unwrap();
    assert!(events.contains(&Event::ProposalClosed { id }));
    assert!(!house.state.profile(&name("ada")).unwrap().restricted);
}

#[test]
fn a_restriction_of_somebody_who_has_not_joined_is_lifted_before_they_do() {
    let mut house = House::of(&["ada", "ben"]);
    house.settle();
    house.device("eva", "phone");
    house.ask(restrict("eva"));
    house.settle();
    let device = digest("eva phone");
    assert!(house.state.standing(&device).unwrap().restricted);
    house.propose(lift("eva"), "a").unwrap();
    assert!(!house.state.standing(&device).unwrap().restricted);
    house.joins("eva", 1);
    assert!(!house.state.profile(&name("eva")).unwrap().restricted);
    assert!(house.state.may_contribute(&device).is_ok());
}

/// A person who is asked to erase, and whose device says what it did.
fn erased(house: &mut House, device: lethe_proto::ids::Digest, outcome: Erased) {
    let task = house
        .state
        .profile(&name("ada"))
        .and_then(|p| p.erase.as_ref())
        .map(|e| e.task);
    let task = task.expect("something is to be erased");
    house
        .run(Command::Erased {
            device,
            task,
            outcome,
        })
        .unwrap();
}

#[test]
fn who_withheld_consent_or_was_away_erases_first_and_is_in_the_next_epoch() {
    for withholds in [true, false] {
        let mut house = House::of(&["ada", "ben", "eva"]);
        let ada = digest("ada phone");
        house.settle();
        house.ask(DeletionRequest::Withdraw {
            subject: name("ada"),
            from: 1_700_000_000,
        });
        house.settle();
        match withholds {
            true => erased(&mut house, ada, Erased::WaitsForConsent),
            false => house.wait(house.state.rules().erase_wait_s + 1),
        }
        house.settle();
        assert_eq!(members(&house, 1), ["ben", "eva"], "{withholds}");
        // The next epoch is founded; what the device holds has not been erased yet.
        house.found(terms());
        assert!(house.join(ada, 2, digest("all")).unwrap().is_empty());
        assert!(house.state.may_contribute(&ada).is_err());
        // Consent is given again, or the device is back: it erases, and joins with what remains.
        house.run(Command::Hello { device: ada }).unwrap();
        erased(&mut house, ada, Erased::Done { removed: vec![] });
        house.join(ada, 2, digest("what remains")).unwrap();
        assert!(house.state.may_contribute(&ada).is_ok());
        house.joins("ben", 2);
        house.joins("eva", 2);
        house.settle();
        assert_eq!(members(&house, 2), ["ada", "ben", "eva"], "{withholds}");
        assert_eq!(house.state.core().serving, Some(EpochNo(2)));
    }
}

#[test]
fn who_was_left_out_of_an_epoch_before_it_began_is_in_it_when_they_join_again() {
    let mut house = House::of(&["ada", "ben", "eva"]);
    let ada = digest("ada phone");
    house.settle();
    house.found(terms());
    house.joins("ada", 2);
    house.ask(DeletionRequest::Withdraw {
        subject: name("ada"),
        from: 1_700_000_000,
    });
    house.settle();
    house.wait(house.state.rules().erase_wait_s + 1);
    house.settle();
    let place =
        |house: &House| house.state.profile(&name("ada")).unwrap().places[&EpochNo(2)].clone();
    assert!(place(&house).excluded);
    erased(&mut house, ada, Erased::Done { removed: vec![] });
    house.join(ada, 2, digest("what remains")).unwrap();
    assert!(!place(&house).excluded && place(&house).commitment == digest("what remains"));
}
