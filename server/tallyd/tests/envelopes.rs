//! Tickets and envelopes: what is opened, for whom, and how often.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Asked, Disk, NOW, Sent, body, handle, read, seal};
use lethe_proto::lists::Contributed;
use lethe_proto::tally::{
    BringAnswer, Confided, MAX_ENVELOPE, PADDED, TOGETHER, TallyRefusal, TallyReply, TallyRequest,
    padded,
};
use lethe_receipt::note::Signer;
use lethe_receipt::sealing::SealingStatement;
use lethe_seal::envelope::SecretKey;
use lethe_tally::settings::CellsConfig;
use lethe_tallyd::Service;

fn said(service: &Service, sent: &Sent, now: u64) -> Confided {
    read(sent, &service.bring(&[sent], now)[0])
}

fn is_unreadable(service: &Service, sent: &Sent) -> bool {
    service.bring(&[sent], NOW)[0] == BringAnswer::Unreadable
}

#[test]
fn a_contribution_is_stored_once_for_each_ticket() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let sent = service.sealed(1, 5, NOW);
    assert_eq!(said(&service, &sent, NOW), Confided::Taken);
    assert_eq!(said(&service, &sent, NOW), Confided::Stale, "sent again");
    assert_eq!(service.tally().status(NOW).unwrap().people, 1);
    // Two at once, in their order: the second comes too soon after the first.
    let both = [service.sealed(2, 5, NOW), service.sealed(2, 6, NOW)];
    let answers = service.bring(&[&both[0], &both[1]], NOW);
    assert_eq!(read(&both[0], &answers[0]), Confided::Taken);
    let Confided::TooSoon { wait_s: 100 } = read(&both[1], &answers[1]) else {
        panic!("{answers:?}");
    };
    // The other way round the answer cannot be read.
    let BringAnswer::Sealed(bytes) = &answers[0] else {
        panic!("{answers:?}");
    };
    assert_eq!(both[1].answer.open(bytes), None);
}

#[test]
fn what_two_devices_have_sealed_is_merged() {
    let sums = |shares: &[(u8, std::ops::Range<usize>)]| {
        let mut disk = Disk::new();
        disk.lists.cells = CellsConfig::Off;
        let service = disk.open(NOW);
        for (device, which) in shares {
            let terms = service.terms(NOW);
            let all = body(1, 8);
            let own = Contributed {
                source: [*device; 16],
                events: all.events[which.clone()].to_vec(),
                whole: true,
            };
            let plain = padded(&own).unwrap();
            let ticket = service.ticket(1, NOW);
            let sent = seal(&terms.note, &terms.key, 1, ticket, &plain);
            // Whatever another device has brought, this one is told the same.
            assert_eq!(said(&service, &sent, NOW), Confided::Taken);
        }
        service.work(NOW);
        service.tally().refold(NOW).unwrap().unwrap().digest
    };
    let all = sums(&[(1, 0..8)]);
    assert_eq!(sums(&[(1, 0..5), (2, 3..8)]), all);
    assert_eq!(sums(&[(2, 3..8), (1, 0..5)]), all);
    assert_eq!(sums(&[(1, 0..8), (2, 2..3)]), all);
    assert_ne!(sums(&[(1, 0..5)]), all);
}

#[test]
fn a_ticket_is_of_one_handle_for_some_minutes_and_ends_with_a_restart() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let terms = service.terms(NOW);
    let plain = padded(&body(1, 5)).unwrap();
    let ticket = service.ticket(1, NOW);
    let other = seal(&terms.note, &terms.key, 2, ticket, &plain);
    assert_eq!(
        said(&service, &other, NOW),
        Confided::Stale,
        "another handle's"
    );
    // What was sealed for one handle opens for no other.
    let mut moved = seal(&terms.note, &terms.key, 1, ticket, &plain);
    moved.brought.handle = handle(2);
    assert!(is_unreadable(&service, &moved));
    let old = service.sealed(1, 5, NOW);
    assert_eq!(said(&service, &old, NOW + 600), Confided::Stale);
    let left = service.sealed(1, 5, NOW);
    assert!(matches!(service.leave(&[1], NOW), TallyReply::Done(_)));
    assert_eq!(
        said(&service, &left, NOW),
        Confided::Stale,
        "of before the leaving"
    );
    let before = service.sealed(1, 5, NOW);
    drop(service);
    let service = disk.open(NOW);
    assert_eq!(
        said(&service, &before, NOW),
        Confided::Stale,
        "of before the restart"
    );
    assert_eq!(service.tally().status(NOW).unwrap().people, 0);
}

#[test]
fn an_older_deletion_ends_older_tickets_only() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let old = service.sealed(1, 5, NOW);
    let new = service.sealed(1, 5, NOW + 1);
    let leavers = vec![(handle(1), NOW)];
    let reply = service.answer(TallyRequest::LeaveOlder { leavers }, NOW + 1);
    assert!(matches!(reply, TallyReply::Done(_)));
    assert_eq!(said(&service, &old, NOW + 1), Confided::Stale);
    assert_eq!(said(&service, &new, NOW + 1), Confided::Taken);
}

#[test]
fn envelopes_of_another_key_and_damaged_ones_are_unreadable() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let plain = padded(&body(1, 5)).unwrap();
    let signer = Signer::from_seed("tally", &[1; 32]).unwrap();
    let statement = SealingStatement {
        key: SecretKey::from_seed(&[2; 32]).public().0,
        from: NOW,
        until: NOW + 9,
    };
    let note = statement.sign(&signer).unwrap();
    let key = signer.verifier().text();
    let other = seal(&note, &key, 1, service.ticket(1, NOW), &plain);
    assert!(is_unreadable(&service, &other));
    let mut sent = service.sealed(1, 5, NOW);
    let good = sent.brought.sealed.envelope.clone();
    for bad in [
        vec![],
        good[..31].to_vec(),
        good[..good.len() - 1].to_vec(),
        vec![0; 4_096],
    ] {
        sent.brought.sealed.envelope = bad;
        assert!(is_unreadable(&service, &sent));
    }
    // None of them has used the ticket up.
    sent.brought.sealed.envelope = good;
    assert_eq!(said(&service, &sent, NOW), Confided::Taken);
}

#[test]
fn what_is_out_of_bounds_is_told_to_the_device_alone() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let terms = service.terms(NOW);
    let mut unknown = body(1, 5);
    unknown.events[3].item = "a secret".into();
    let mut rated = body(1, 5);
    rated.events[0].half_stars = 11;
    let mut late = body(1, 5);
    late.events[0].day = i32::MAX;
    let plain = |b| padded(&b).unwrap();
    let cases = [
        (vec![], "padded"),
        (vec![7; PADDED], "padded"),
        (plain(unknown), "event 3"),
        (plain(rated), "event 0"),
        (plain(late), "day"),
        (plain(body(1, 21)), "21 events, expected at most 20"),
    ];
    for (plain, why) in cases {
        let sent = seal(&terms.note, &terms.key, 1, service.ticket(1, NOW), &plain);
        let Confided::Invalid(said) = said(&service, &sent, NOW) else {
            panic!("{why}");
        };
        assert!(said.contains(why) && !said.contains("secret"), "{said}");
    }
    assert_eq!(service.tally().status(NOW).unwrap().people, 0);
}

#[test]
fn counts_are_bounded() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let many = vec![handle(1); TOGETHER + 1];
    let long = vec![0; TOGETHER + 1];
    let requests = [
        TallyRequest::Tickets {
            handles: many.clone(),
        },
        TallyRequest::Leave {
            handles: many.clone(),
        },
        TallyRequest::Search {
            handles: many.clone(),
        },
        TallyRequest::Vouch {
            handles: many.clone(),
        },
        TallyRequest::TakeDown {
            items: long.clone(),
        },
        TallyRequest::TakeDown { items: vec![999] },
        TallyRequest::Held {
            of: vec![lethe_proto::tally::HeldOf::Items(long)],
        },
        TallyRequest::LeaveOlder {
            leavers: vec![(handle(1), 1); TOGETHER + 1],
        },
    ];
    for request in requests {
        let name = format!("{request:?}").chars().take(20).collect::<String>();
        match service.answer(request, NOW) {
            TallyReply::Refused { code, .. } => assert_eq!(code, TallyRefusal::Invalid, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let mut sent = service.sealed(1, 5, NOW);
    sent.brought.sealed.envelope = vec![0; MAX_ENVELOPE + 1];
    assert!(is_unreadable(&service, &sent));
    let much = vec![sent.brought.clone(); 17];
    match service.answer(TallyRequest::Bring { sealed: much }, NOW) {
        TallyReply::Refused { code, .. } => assert_eq!(code, TallyRefusal::Invalid),
        other => panic!("{other:?}"),
    }
}

#[test]
fn after_a_rotation_the_key_before_opens_for_a_day() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let terms = service.terms(NOW);
    service.rotate(NOW).unwrap();
    let next = service.terms(NOW);
    assert_ne!(terms.note, next.note);
    assert_eq!(terms.key, next.key);
    let plain = padded(&body(1, 5)).unwrap();
    let seal_old = |service: &Service, who, now| {
        seal(
            &terms.note,
            &terms.key,
            who,
            service.ticket(who, now),
            &plain,
        )
    };
    let sent = seal_old(&service, 1, NOW);
    assert_eq!(said(&service, &sent, NOW), Confided::Taken);
    drop(service);
    let service = disk.open(NOW + 86_399);
    let sent = seal_old(&service, 2, NOW + 86_399);
    assert_eq!(said(&service, &sent, NOW + 86_399), Confided::Taken);
    let late = seal_old(&service, 3, NOW + 86_400);
    assert_eq!(
        service.bring(&[&late], NOW + 86_400),
        [BringAnswer::Unreadable]
    );
    service.tend(NOW + 86_400).unwrap();
    drop(service);
    // It is destroyed: a clock that was set back does not bring it back.
    let service = disk.open(NOW);
    let sent = seal_old(&service, 4, NOW);
    assert!(is_unreadable(&service, &sent));
    assert_eq!(service.contribute(5, 5, NOW), Confided::Taken);
}
