//! Requests at the same time.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use common::{Asked, Disk, NOW, handle};
use lethe_proto::tally::{Confided, TallyReply, TallyRequest};
use lethe_tally::Handle;

/// Whichever comes first: after both, nothing is there of who left.
#[test]
fn no_ticket_of_before_brings_anybody_back() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let mut brought = 0;
    for at in 0..300 {
        let now = NOW + 200 * at;
        let sent = service.sealed(1, 5, now);
        let barrier = Barrier::new(2);
        let answers = std::thread::scope(|s| {
            let bringing = s.spawn(|| {
                barrier.wait();
                service.bring(&[&sent], now)
            });
            barrier.wait();
            assert!(matches!(service.leave(&[1], now), TallyReply::Done(_)));
            bringing.join().unwrap()
        });
        match common::read(&sent, &answers[0]) {
            Confided::Taken => brought += 1,
            Confided::Stale => {}
            other => panic!("{other:?}"),
        }
        assert!(!service.tally().held(&Handle(handle(1)), now).unwrap().held);
    }
    // Both orders happened, or this tests nothing; how often says the machine.
    assert!(brought < 300, "{brought}");
}

/// Ends the others, also when an assertion fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn people_come_and_leave_while_snapshots_are_made() {
    let mut disk = Disk::new();
    disk.lists.publish_s = 0;
    disk.lists.refresh_s = 0;
    let service = disk.open(NOW);
    for who in 0..24 {
        assert_eq!(service.contribute(who, 5, NOW), Confided::Taken);
    }
    let ended = AtomicBool::new(false);
    std::thread::scope(|s| {
        let working = s.spawn(|| {
            let mut served = 0;
            while !ended.load(SeqCst) {
                let state = service.work(NOW);
                let number = state.served.map_or(0, |s| s.number);
                assert!(number == 0 || number >= served);
                served = served.max(number);
                drop(service.tables());
            }
            served
        });
        let coming = [0u8, 8, 16].map(|first| {
            let service = &service;
            s.spawn(move || {
                for round in 0..15 {
                    for who in first..first + 8 {
                        let said = service.contribute(who, 5 + round, NOW);
                        assert_eq!(said, Confided::Taken);
                    }
                    let who = first + (round % 8) as u8;
                    assert!(matches!(service.leave(&[who], NOW), TallyReply::Done(_)));
                    let held = service.tally().held(&Handle(handle(who)), NOW).unwrap();
                    assert!(!held.held);
                }
            })
        });
        let end = End(&ended);
        coming.into_iter().for_each(|c| c.join().unwrap());
        drop(end);
        assert!(working.join().unwrap() > 0, "something was published");
    });
    service.work(NOW);
    match service.answer(TallyRequest::Refold, NOW) {
        TallyReply::Refolded(Some(folded)) => {
            assert_ne!(folded.memory, Some(false));
            assert_ne!(folded.folder, Some(false));
            assert_eq!(folded.stated, Some(true));
        }
        other => panic!("{other:?}"),
    }
}
