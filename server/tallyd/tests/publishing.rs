//! Snapshots: when they are made, what comes back from a backup, a full disk, damage.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Asked, Disk, NOW, catalogue, handle, items, log_of};
use lethe_proto::tally::{Confided, HeldOf, TallyRefusal, TallyReply, TallyRequest, TallyState};
use lethe_receipt::note::VerifierKey;
use lethe_receipt::snapshot::SnapshotStatement;
use lethe_receipt::vouch::handle_hash;
use lethe_tally::{Catalogue, NoiseConfig, Per};
use lethe_tallyd::{Service, TallydError};

fn come(service: &Service, who: std::ops::Range<u8>, events: usize, now: u64) {
    for who in who {
        assert_eq!(service.contribute(who, events, now), Confided::Taken);
    }
}

fn number(state: &TallyState) -> u64 {
    state.served.unwrap().number
}

/// Who is in the snapshot that is served: others wait.
fn shown(service: &Service) -> Vec<u8> {
    let of = (0..24).map(|w| HeldOf::Handle(handle(w))).collect();
    let TallyReply::Held(held) = service.answer(TallyRequest::Held { of }, NOW) else {
        panic!("not answered");
    };
    let shown = (0..24).zip(held).filter(|h| h.1.shown).map(|h| h.0);
    let shown: Vec<u8> = shown.collect();
    assert!(shown.len() >= 8);
    shown
}

/// A tally with a snapshot.
fn published(disk: &Disk) -> Service {
    let service = disk.open(NOW);
    come(&service, 0..24, 5, NOW);
    assert_eq!(number(&service.work(NOW)), 1);
    service
}

#[test]
fn a_snapshot_is_made_when_one_is_due_and_not_when_somebody_asks() {
    let disk = Disk::new();
    let service = published(&disk);
    let state = service.work(NOW + 1);
    assert_eq!(number(&state), 1, "nothing has changed");
    come(&service, 30..50, 5, NOW + 1);
    let waiting = service.tally().status(NOW + 1).unwrap().waiting;
    assert!(waiting > 0);
    assert_eq!(
        number(&service.work(NOW + 999)),
        1,
        "publish_s has not passed"
    );
    let state = service.work(NOW + 1_000);
    assert_eq!(number(&state), 2);
    // Tables are what the note says, and a delta leads to them.
    let tables = service.tables().unwrap();
    let key = VerifierKey::parse(&service.key()).unwrap();
    let statement = SnapshotStatement::open(&tables.note, &key).unwrap();
    assert_eq!(
        statement.snapshot,
        lethe_parts::snapshot::digest(&tables.bytes)
    );
    assert_eq!(statement.people, state.served.unwrap().people);
    for delta in &tables.deltas {
        assert_eq!(delta.from, 1);
        assert!(delta.bytes.len() < tables.bytes.len());
    }
    // Who leaves recalls it, and the next is made at once.
    let TallyReply::Done(state) = service.leave(&shown(&service)[..1], NOW + 1_001) else {
        panic!("not done");
    };
    assert_eq!((state.served, state.recalled), (None, 2));
    assert_eq!(service.tables(), None);
    assert_eq!(number(&service.work(NOW + 1_001)), 3);
    // After a start there is one more: settings may have changed.
    drop(service);
    let service = disk.open(NOW + 1_002);
    assert_eq!(number(&service.work(NOW + 1_002)), 4);
    assert_eq!(number(&service.work(NOW + 1_003)), 4);
    assert_eq!(number(&service.work(NOW + 86_400)), 5, "another day");
}

#[test]
fn what_is_held_and_vouched_for_is_what_is_there() {
    let disk = Disk::new();
    let service = published(&disk);
    let one = shown(&service)[0];
    let vouched = service.vouch(&[one, 99], NOW + 5).unwrap();
    assert_eq!(vouched.of(&handle(one)).unwrap().since, Some(NOW));
    assert_eq!(vouched.of(&handle(99)).unwrap().since, None);
    assert_eq!(vouched.serves.unwrap().number, 1);
    let held = |service: &Service, of| match service.answer(TallyRequest::Held { of }, NOW) {
        TallyReply::Held(held) => held,
        other => panic!("{other:?}"),
    };
    let of = vec![
        HeldOf::Handle(handle(one)),
        HeldOf::Handle(handle(99)),
        HeldOf::Items(vec![1, 77]),
    ];
    let found = held(&service, of);
    assert!(found[0].held && found[0].shown && found[0].cell >= 4);
    assert!(!found[1].held && found[2].held && found[2].shown);
    assert!(!held(&service, vec![HeldOf::Items(vec![77])])[0].held);
    let searched = |service: &Service, who| {
        let handles = vec![handle(who)];
        match service.answer(TallyRequest::Search { handles }, NOW) {
            TallyReply::Searched { records, hits } => {
                assert!(records > 24);
                hits
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(!searched(&service, one).is_empty());
    assert!(matches!(
        service.leave(&[one], NOW + 6),
        TallyReply::Done(_)
    ));
    assert_eq!(searched(&service, one), []);
    let vouched = service.vouch(&[one], NOW + 6).unwrap();
    assert_eq!(
        (vouched.of(&handle(one)).unwrap().since, vouched.serves),
        (None, None)
    );
    assert_eq!(vouched.recalled, 1);
    assert_eq!(number(&service.work(NOW + 6)), 2);
    // Those of the same cell were shown before.
    let of = (0..24).map(|w| HeldOf::Handle(handle(w))).collect();
    let was = held(&service, of).into_iter().filter_map(|h| h.was_shown);
    let was: Vec<_> = was.collect();
    assert!(!was.is_empty() && was.iter().all(|w| (w.number, w.at) == (1, NOW + 6)));
    assert!(was.iter().all(|w| w.people > 0 && w.digest.0 != [0; 32]));
    // All that was signed is in the log, and no handle is.
    drop(service);
    let log = log_of(&disk);
    let count = |first: &str| log.iter().filter(|e| e.starts_with(first)).count();
    assert_eq!(count("lethe tally snapshot"), 2);
    assert_eq!(count("lethe tally statement about handles"), 2);
    assert_eq!(count("lethe tally sealing key"), 1);
    let hex = lethe_receipt::hex::hex(&handle(one));
    assert!(!log.iter().any(|e| e.contains(&hex)));
    let named = lethe_receipt::hex::hex(&handle_hash(&handle(one)));
    assert!(log.iter().any(|e| e.contains(&named)));
}

/// Each snapshot costs: a process that is started often does not spend the budget.
#[test]
fn with_noise_a_start_makes_no_snapshot_before_its_time() {
    const DAY: u64 = 86_400;
    let mut disk = Disk::new();
    disk.lists.publish_s = 7 * DAY;
    disk.lists.noise = Some(NoiseConfig {
        epsilon: 100.0,
        delta: 1e-6,
        per: Per::Release,
        budget: 1_000.0,
    });
    drop(published(&disk));
    for days in [0, 1, 6] {
        let service = disk.open(NOW + days * DAY);
        assert_eq!(number(&service.work(NOW + days * DAY)), 1, "day {days}");
    }
    let service = disk.open(NOW + 7 * DAY);
    assert_eq!(number(&service.work(NOW + 7 * DAY)), 2);
    let TallyReply::Status(status) = service.answer(TallyRequest::Status, NOW + 7 * DAY) else {
        panic!("not answered");
    };
    assert!(status.noise.contains("spent by 2 of"), "{}", status.noise);
}

#[test]
fn a_restored_backup_publishes_above_what_was_published_and_serves_nothing_older() {
    let disk = Disk::new();
    let service = published(&disk);
    let all = shown(&service);
    let [one, two, stays] = [all[0], all[1], all[2]];
    drop(service);
    let backup = disk.back_up();
    let service = disk.open(NOW + 10);
    let sealed_before = service.terms(NOW + 10).note;
    assert!(matches!(
        service.leave(&[one], NOW + 10),
        TallyReply::Done(_)
    ));
    assert_eq!(number(&service.work(NOW + 10)), 2);
    service.rotate(NOW + 10).unwrap();
    assert!(matches!(
        service.leave(&[two], NOW + 11),
        TallyReply::Done(_)
    ));
    let entries = service.log_entries();
    drop(service);

    disk.restore(&backup);
    let service = disk.open(NOW + 20);
    let state = service.state();
    assert_eq!(state.served, None, "devices have seen newer numbers");
    assert!(state.recalled >= 2);
    assert!(service.log_entries() > entries, "the log goes on");
    assert_ne!(
        service.terms(NOW + 20).note,
        sealed_before,
        "that key was replaced"
    );
    // Keys do not come back with a folder. The coordinator's journal says who has left since, too.
    assert!(
        !service
            .tally()
            .held(&lethe_tally::Handle(handle(one)), NOW)
            .unwrap()
            .held
    );
    let leavers = vec![(handle(one), NOW + 10), (handle(two), NOW + 11)];
    let reply = service.answer(TallyRequest::LeaveOlder { leavers }, NOW + 20);
    assert!(matches!(reply, TallyReply::Done(_)));
    let vouched = service.vouch(&[one, two, stays], NOW + 20).unwrap();
    let since: Vec<_> = vouched.handles.iter().map(|h| h.since).collect();
    assert_eq!(since, [None, None, Some(NOW)]);
    assert!(number(&service.work(NOW + 20)) > 2);
}

#[test]
fn a_coordinator_that_knows_of_a_higher_number_is_believed_within_bounds() {
    let disk = Disk::new();
    let service = published(&disk);
    let open = |service: &Service, floor| {
        let items = catalogue().digest();
        service.answer(TallyRequest::Open { items, floor }, NOW)
    };
    let TallyReply::Refused { code, .. } = open(&service, u64::MAX) else {
        panic!("an end of numbers");
    };
    assert_eq!(code, TallyRefusal::Invalid);
    assert_eq!(number(&service.state()), 1);
    assert!(matches!(open(&service, 7), TallyReply::Opened(_)));
    assert_eq!(
        (service.state().served, service.state().recalled),
        (None, 7)
    );
    assert_eq!(number(&service.work(NOW)), 8);
    let items = Catalogue::new(["other"]).digest();
    match service.answer(TallyRequest::Open { items, floor: 0 }, NOW) {
        TallyReply::Refused { code, .. } => assert_eq!(code, TallyRefusal::OtherCatalogue),
        other => panic!("{other:?}"),
    }
}

#[test]
fn somebody_leaves_on_a_full_disk() {
    let disk = Disk::new();
    let service = published(&disk);
    let one = shown(&service)[0];
    disk.fill(true);
    assert_eq!(service.contribute(60, 5, NOW + 1), Confided::Busy);
    assert!(matches!(
        service.leave(&[one], NOW + 1),
        TallyReply::Done(_)
    ));
    assert!(!disk.data().join("reserve").exists());
    assert_eq!(
        service.vouch(&[one], NOW + 1).unwrap().handles[0].since,
        None
    );
    disk.fill(false);
    assert_eq!(number(&service.work(NOW + 2)), 2);
    service.tend(NOW + 60).unwrap();
    assert!(
        disk.data().join("reserve").exists(),
        "space is set aside again"
    );
}

#[test]
fn damaged_lost_and_other_folders_are_refused() {
    let disk = Disk::new();
    let service = published(&disk);
    let in_use = disk.try_open(NOW);
    assert!(matches!(in_use, Err(TallydError::InUse { .. })));
    drop(service);
    let shorter = items().split_off(1);
    let other = disk.try_open_with(shorter, NOW);
    assert!(matches!(other, Err(TallydError::OtherCatalogue(_))));
    // The evidence folder is lost, then an older copy of it.
    let aside = disk.dir.path().join("aside");
    std::fs::rename(disk.evidence(), &aside).unwrap();
    let lost = disk.try_open(NOW);
    assert!(matches!(lost, Err(TallydError::Evidence { has: 0, .. })));
    std::fs::remove_dir_all(disk.evidence()).unwrap();
    std::fs::rename(&aside, disk.evidence()).unwrap();
    drop(disk.open(NOW));
    disk.damage();
    let damaged = disk.try_open(NOW);
    assert!(matches!(
        damaged,
        Err(TallydError::Store(_) | TallydError::Tally(_))
    ));
}

#[test]
fn audits_need_the_tallys_consent() {
    let mut disk = Disk::new();
    let service = published(&disk);
    let people = TallyRequest::AuditedPeople {
        number: 1,
        salt: [3; 32],
        from: 0,
    };
    for request in [TallyRequest::Audited, people.clone()] {
        match service.answer(request, NOW) {
            TallyReply::Refused { code, .. } => assert_eq!(code, TallyRefusal::Forbidden),
            other => panic!("{other:?}"),
        }
    }
    drop(service);
    disk.audits = true;
    let service = disk.open(NOW);
    let before = service.answer(TallyRequest::Audited, NOW);
    assert_eq!(before, TallyReply::Audited(None), "another process made it");
    let number = number(&service.work(NOW));
    let TallyReply::Audited(Some(audited)) = service.answer(TallyRequest::Audited, NOW) else {
        panic!("it is served");
    };
    assert_eq!(audited.number, number);
    let people = TallyRequest::AuditedPeople {
        number,
        salt: [3; 32],
        from: 0,
    };
    match service.answer(people, NOW) {
        TallyReply::AuditedPeople(Some(all)) => assert_eq!(all.len() as u64, audited.people),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_sums_own_digest_stays_here() {
    let disk = Disk::new();
    let service = published(&disk);
    let refold = |service: &Service| match service.answer(TallyRequest::Refold, NOW) {
        TallyReply::Refolded(Some(folded)) => folded,
        other => panic!("{other:?}"),
    };
    let (one, two) = (refold(&service), refold(&service));
    assert_eq!(
        (one.stated, one.memory, one.snapshot),
        (Some(true), Some(true), Some(1))
    );
    assert_ne!(one.digest, two.digest, "a salt that is not told");
    let own = service.tally().refold(NOW).unwrap().unwrap().digest;
    assert!(own != one.digest && own != two.digest);
}

#[test]
fn statements_are_bounded_in_number() {
    let disk = Disk::new();
    let service = published(&disk);
    let said = (0..300).map(|who| service.vouch(&[(who % 200) as u8], NOW));
    let refused = said.filter(|s| *s == Err(TallyRefusal::Busy)).count();
    assert_eq!(refused, 300 - 256);
    assert!(service.vouch(&[1], NOW + 1).is_ok());
    assert_eq!(service.vouch(&[2], NOW + 1), Err(TallyRefusal::Busy));
    // A long one is in the log by its digest.
    let entries = service.log_entries();
    let many: Vec<u8> = (0..1_024).map(|n| (n % 251) as u8).collect();
    assert_eq!(service.vouch(&many, NOW + 9).unwrap().handles.len(), 1_024);
    assert_eq!(service.log_entries(), entries + 1);
    drop(service);
    assert!(
        log_of(&disk)
            .last()
            .unwrap()
            .starts_with("lethe tally long note 1\nsha256 ")
    );
}
