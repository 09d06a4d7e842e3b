//! The tally as those see it who use it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{DAY, Disk, ITEMS, NOW, events, handle, offer, options};
use lethe_parts::history::Interaction;
use lethe_parts::snapshot;
use lethe_tally::cells::{CellSettings, Refused, WasShown};
use lethe_tally::{
    Finished, Handle, Held, Leaver, Lists, Offer, Options, Published, Served, Statement, Tally,
    TallyError,
};

fn come(tally: &Tally, who: std::ops::Range<u8>, count: u32, now: u64) {
    for who in who {
        tally
            .contribute(&offer(handle(who), &events(who, count)), now)
            .unwrap();
    }
}

fn served(tally: &Tally) -> std::sync::Arc<Published> {
    match tally.served() {
        Served::Snapshot(published) => published,
        other => panic!("{other:?}"),
    }
}

/// A handle that counts.
fn counting(tally: &Tally, who: std::ops::Range<u8>) -> Handle {
    let before = tally.status(NOW).unwrap().cells;
    // Whoever leaves with a cell counted; the tally itself does not tell.
    let found = who.map(handle).find(|h| {
        tally.leave(&[*h], NOW).unwrap();
        tally.status(NOW).unwrap().cells < before
    });
    found.unwrap()
}

#[test]
fn contributions_are_checked() {
    let disk = Disk::default();
    let tally = disk.open();
    let refused = |events: &[_], now| {
        tally
            .contribute(&offer(handle(1), events), now)
            .unwrap_err()
    };
    let bounds = |e: TallyError| match e {
        TallyError::Bounds(e) => e,
        other => panic!("{other}"),
    };
    let many = bounds(refused(&events(1, 21), NOW));
    assert!(matches!(
        many,
        lethe_parts::Refused::TooMany { clip: 20, .. }
    ));
    let mut unknown = events(1, 3);
    unknown[1].item = ITEMS;
    let unknown = bounds(refused(&unknown, NOW));
    assert!(matches!(unknown, lethe_parts::Refused::UnknownItem { .. }));
    let early = bounds(refused(&events(1, 3), NOW - 90 * 86_400));
    assert!(matches!(early, lethe_parts::Refused::Day { .. }));
    assert_eq!(tally.status(NOW).unwrap().people, 0);
    tally
        .contribute(&offer(handle(1), &events(1, 3)), NOW)
        .unwrap();
    // The same once more: an answer was lost.
    tally
        .contribute(&offer(handle(1), &events(1, 3)), NOW + 1)
        .unwrap();
    let soon = refused(&events(1, 4), NOW + 40);
    assert!(matches!(
        soon,
        TallyError::Refused(Refused::TooSoon { wait_s: 60, .. })
    ));
    tally
        .contribute(&offer(handle(1), &events(1, 4)), NOW + 100)
        .unwrap();
    assert_eq!(tally.status(NOW).unwrap().people, 1);
    let unknown = tally.take_down(&[ITEMS], NOW).unwrap_err();
    assert!(unknown.to_string().contains("item 12"), "{unknown}");
}

#[test]
fn an_item_counts_a_few_times_a_person() {
    let disk = Disk::default();
    let options = Options {
        repeats: 2,
        ..options()
    };
    let tally = disk.try_open(options).unwrap();
    let one = events(1, 3);
    let [first, second, third] = one[..] else {
        panic!("three events")
    };
    assert_ne!(first.item, second.item);
    let pushed = [first, second, first, first, third].map(|e| Interaction { day: DAY, ..e });
    let bring = |events: &[Interaction]| tally.contribute(&offer(handle(1), events), NOW);
    bring(&pushed).unwrap();
    // As if only the newest two had come: it is what stands, and changes nothing.
    bring(&pushed[1..]).unwrap();
    let other = bring(&pushed[2..]).unwrap_err();
    assert!(matches!(
        other,
        TallyError::Refused(Refused::TooSoon { .. })
    ));
}

#[test]
fn a_device_says_whether_its_history_is_whole() {
    let starts = |whole: bool, count: u32| {
        let disk = Disk::default();
        let tally = disk.open();
        for who in 0..16 {
            let events = events(who, count);
            let offer = Offer {
                whole,
                ..offer(handle(who), &events)
            };
            tally.contribute(&offer, NOW).unwrap();
        }
        tally.open_cells(NOW).unwrap();
        tally.publish(DAY, NOW).unwrap();
        let tables = snapshot::decode(&served(&tally).bytes).unwrap();
        tables.columns().starts.iter().sum::<u64>()
    };
    // As many events as are taken may be all there are; fewer may be the end of more.
    assert!(starts(true, 20) > 0);
    assert_eq!(starts(false, 8), 0);
}

#[test]
fn a_restored_backup_brings_nobody_back() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally, 0..40, 8, NOW);
    tally.open_cells(NOW).unwrap();
    tally.publish(DAY, NOW).unwrap();
    // In the record 0 to 9 have left; 10 to 12 had left before, and came again.
    let leaver = |who: u8| Leaver {
        handle: handle(who),
        before: if who < 10 { NOW } else { NOW - 1 },
    };
    let leavers: Vec<Leaver> = (0..13).map(leaver).collect();
    tally.leave_older(&leavers, NOW + 5).unwrap();
    assert_eq!(tally.status(NOW).unwrap().people, 30);
    assert_eq!(tally.served(), Served::Out { since: NOW + 5 });
    tally.publish(DAY, NOW + 6).unwrap();
    let before = served(&tally);
    // At every start again: nothing more happens, also not to those who came later.
    come(&tally, 0..3, 8, NOW + 10);
    tally.leave_older(&leavers, NOW + 20).unwrap();
    assert_eq!(tally.status(NOW).unwrap().people, 33);
    assert_eq!(served(&tally), before);
    drop(tally);
    let tally = disk.open();
    tally.leave_older(&leavers, NOW + 30).unwrap();
    assert_eq!(tally.status(NOW).unwrap().people, 33);
}

#[test]
fn nobody_counts_alone_and_who_waits_leaves_no_trace() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally, 0..15, 5, NOW);
    assert_eq!(tally.open_cells(NOW).unwrap(), 0);
    come(&tally, 15..16, 5, NOW);
    assert_eq!(tally.open_cells(NOW).unwrap(), 1);
    tally.publish(DAY, NOW).unwrap();
    let before = served(&tally);
    assert_eq!(before.statement.people, 4);
    assert_eq!(before.statement.cell, 4);
    // Find somebody who waits: no cell goes with them.
    let waiting = (0..16).map(handle).find(|h| {
        let cells = tally.status(NOW).unwrap().cells;
        tally.leave(&[*h], NOW).unwrap();
        tally.status(NOW).unwrap().cells == cells
    });
    assert!(waiting.is_some());
    if tally.status(NOW).unwrap().cells == 1 {
        assert_eq!(served(&tally), before, "who waited was never in it");
    }
}

#[test]
fn a_deletion_is_out_until_the_next_snapshot_and_deltas_lead_on_again() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally, 0..40, 8, NOW);
    assert_eq!(tally.open_cells(NOW).unwrap(), 7);
    tally.publish(DAY, NOW).unwrap();
    let first = served(&tally);
    tally.publish(DAY + 1, NOW).unwrap();
    let second = served(&tally);
    let delta = &second.deltas[&first.statement.number];
    assert_eq!(snapshot::apply(&first.bytes, delta).unwrap(), *second.bytes);

    let job = tally.job(DAY + 1, NOW).unwrap();
    counting(&tally, 0..40);
    let out = Lists {
        served: Served::Out { since: NOW },
        recalled: 2,
    };
    assert_eq!(tally.lists(), out);
    let status = tally.status(NOW + 9).unwrap();
    assert_eq!(status.recalled, 2);
    assert_eq!((status.out.unwrap().cells, status.out_s), (1, Some(9)));
    // What was begun before somebody left is never published, nor are its sums kept.
    let late = job.run().unwrap();
    assert_eq!(tally.finish(&late, NOW).unwrap(), Finished::TooLate);
    assert!(!tally.keep_sums(&late).unwrap());
    assert_eq!(tally.served(), Served::Out { since: NOW });

    tally.publish(DAY + 1, NOW).unwrap();
    let third = served(&tally);
    assert!(third.deltas.is_empty(), "none leads from what was recalled");
    assert_eq!(third.statement.number, 3);
    assert!(third.statement.people <= 24);
    for day in 2..8 {
        tally.publish(DAY + day, NOW).unwrap();
    }
    let last = served(&tally);
    let from: Vec<u64> = last.deltas.keys().copied().collect();
    assert_eq!(from, [6, 7, 8]);
    // A restart serves the same, and has the sums.
    let notes = tally.published().unwrap();
    assert_eq!(notes.len(), 9);
    drop(tally);
    let tally = disk.open();
    assert_eq!(served(&tally), last);
    assert_eq!(tally.recalled(), 2, "also after others were published");
    let refolded = tally.refold(NOW).unwrap().unwrap();
    assert_eq!((refolded.memory, refolded.folder), (None, Some(true)));
    assert_eq!(refolded.stated, Some(true));
    // Nobody can test a guess of the sums on what is signed.
    assert_ne!(refolded.digest.0, last.statement.sums);
}

#[test]
fn sums_of_a_job_that_came_too_late_are_not_kept() {
    let disk = Disk::default();
    let tally = disk.open();
    tally.publish(DAY, NOW).unwrap();
    come(&tally, 0..40, 8, NOW);
    tally.open_cells(NOW).unwrap();
    // Nobody has seen these cells: nothing is recalled, and the generation's key lives on.
    let late = tally.job(DAY, NOW).unwrap().run().unwrap();
    counting(&tally, 0..40);
    assert!(matches!(tally.served(), Served::Snapshot(_)));
    assert_eq!(tally.finish(&late, NOW).unwrap(), Finished::TooLate);
    assert!(!tally.keep_sums(&late).unwrap());
}

#[test]
fn what_is_derived_may_be_lost() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally, 0..40, 8, NOW);
    tally.open_cells(NOW).unwrap();
    tally.publish(DAY, NOW).unwrap();
    let before = served(&tally);
    let sums = tally.refold(NOW).unwrap().unwrap().digest;
    drop(tally);
    disk.lose_derived();
    let tally = disk.open();
    assert_eq!(tally.served(), Served::Out { since: NOW });
    let refolded = tally.refold(NOW).unwrap().unwrap();
    assert_eq!((refolded.digest, refolded.stated), (sums, None));
    tally.publish(DAY, NOW).unwrap();
    let again = served(&tally).statement.sums;
    assert_ne!(again, before.statement.sums, "each snapshot has a salt");
    assert_eq!(served(&tally).bytes, before.bytes, "the same people");
}

#[test]
fn who_has_no_key_any_more_has_left() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally, 0..40, 8, NOW);
    tally.open_cells(NOW).unwrap();
    tally.publish(DAY, NOW).unwrap();
    drop(tally);
    let all: Vec<Handle> = (0..16).map(handle).collect();
    all.iter().for_each(|h| disk.destroy_key(h));
    let tally = disk.open();
    let status = tally.status(NOW).unwrap();
    assert_eq!(status.people, 24);
    assert!(
        matches!(tally.served(), Served::Out { .. }),
        "some of them counted"
    );
    tally.publish(DAY, NOW).unwrap();
    let refolded = tally.refold(NOW).unwrap().unwrap();
    assert_eq!(refolded.memory, Some(true));
}

#[test]
fn items_are_taken_down_for_good_and_cells_stay() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally, 0..40, 8, NOW);
    tally.open_cells(NOW).unwrap();
    tally.publish(DAY, NOW).unwrap();
    tally.take_down(&[3, 3, 5], NOW).unwrap();
    assert_eq!(tally.served(), Served::Out { since: NOW });
    let status = tally.status(NOW).unwrap();
    assert_eq!((status.cells, status.taken_down), (7, 2));
    // Again: nothing more happens.
    tally.take_down(&[5], NOW + 1).unwrap();
    tally.publish(DAY, NOW).unwrap();
    let tables = snapshot::decode(&served(&tally).bytes).unwrap();
    assert!(!tables.is_seen(3) && !tables.is_seen(5) && tables.is_seen(4));
    counting(&tally, 0..40);
    let refolded = tally.refold(NOW).unwrap().unwrap();
    assert_eq!(refolded.memory, Some(true), "also after people have left");
}

#[test]
fn growth_counts_when_enough_of_a_cell_have_grown() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally, 0..16, 5, NOW);
    tally.open_cells(NOW).unwrap();
    let sums = |tally: &Tally| tally.refold(NOW).unwrap().unwrap().digest;
    let before = sums(&tally);
    for who in 0..16 {
        tally
            .contribute(&offer(handle(who), &events(who, 9)), NOW + 200)
            .unwrap();
        let changed = tally.open_cells(NOW + 200).unwrap();
        let same = sums(&tally) == before;
        if changed > 0 {
            assert!(!same);
            return;
        }
        assert!(same);
    }
    panic!("four members of the cell have grown");
}

#[test]
fn cells_may_be_off_and_that_is_said() {
    let disk = Disk::default();
    let off = Options {
        cells: CellSettings::off(),
        ..options()
    };
    let tally = disk.try_open(off).unwrap();
    come(&tally, 0..3, 5, NOW);
    assert_eq!(tally.open_cells(NOW).unwrap(), 3);
    let status = tally.status(NOW).unwrap();
    assert_eq!((status.n, status.m, status.counting), (1, 1, 3));
    assert!(status.gives_away.unwrap().contains("can work out"));
    let bad = Options {
        cells: CellSettings {
            changed: 1,
            ..CellSettings::default()
        },
        ..options()
    };
    let refused = Disk::default().try_open(bad).unwrap_err().to_string();
    assert!(refused.contains("changed = 1, expected 2"), "{refused}");
}

#[test]
fn cells_may_become_larger() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally, 0..40, 8, NOW);
    tally.open_cells(NOW).unwrap();
    tally.publish(DAY, NOW).unwrap();
    drop(tally);
    let larger = Options {
        cells: CellSettings {
            least: 6,
            changed: 3,
            ..options().cells
        },
        ..options()
    };
    let tally = disk.try_open(larger).unwrap();
    // A cell of four, as they were, is the difference: that is no fault.
    counting(&tally, 0..40);
    tally.publish(DAY, NOW).unwrap();
    assert_eq!(served(&tally).statement.number, 2);
}

#[test]
fn an_empty_tally_publishes_nobody() {
    let disk = Disk::default();
    let tally = disk.open();
    assert_eq!(tally.served(), Served::Nothing);
    tally.publish(DAY, NOW).unwrap();
    let published = served(&tally);
    let statement = Statement::open(&published.note, tally.verifier()).unwrap();
    assert_eq!((statement.people, statement.cell), (0, 0));
    assert_eq!(statement, published.statement);
}

#[test]
fn an_older_copy_gives_no_number_again() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally, 0..40, 8, NOW);
    tally.open_cells(NOW).unwrap();
    tally.publish(DAY, NOW).unwrap();
    tally.skip_to(1, NOW).unwrap();
    assert_eq!(served(&tally).statement.number, 1, "nothing is behind");
    tally.skip_to(9, NOW).unwrap();
    assert_eq!(tally.served(), Served::Out { since: NOW });
    assert_eq!(tally.recalled(), 9);
    tally.publish(DAY, NOW).unwrap();
    assert_eq!(served(&tally).statement.number, 10);
}

#[test]
fn a_copy_from_before_the_first_snapshot_recalls_those_that_came_later() {
    let disk = Disk::default();
    let tally = disk.open();
    tally.skip_to(9, NOW).unwrap();
    assert_eq!(tally.served(), Served::Nothing);
    assert_eq!(tally.recalled(), 9);
    drop(tally);
    assert_eq!(disk.open().recalled(), 9);
}

#[test]
fn who_was_shown_with_somebody_who_left_is_known_until_they_are_shown_again() {
    let disk = Disk::default();
    let tally = disk.open();
    come(&tally, 0..24, 6, NOW);
    let everybody = || (0..24).map(handle);
    let held = |h: &Handle| tally.held(h, NOW).unwrap();
    tally.open_cells(NOW).unwrap();
    tally.publish(DAY, NOW).unwrap();
    let first = served(&tally).statement.number;
    assert_eq!(tally.statement(first).unwrap().unwrap().number, first);
    assert_eq!(tally.statement(first + 1).unwrap(), None);
    let shown: Vec<Handle> = everybody().filter(|h| held(h).shown).collect();
    assert!(everybody().all(|h| held(&h).was_shown.is_none()));

    tally.leave(&[shown[0]], NOW + 7).unwrap();
    let was = WasShown {
        number: first,
        at: NOW + 7,
    };
    let mates: Vec<Handle> = everybody()
        .filter(|h| held(h).was_shown.is_some())
        .collect();
    assert!(mates.len() >= 3 && mates.iter().all(|h| held(h).was_shown == Some(was)));
    assert!(mates.iter().all(|h| shown.contains(h) && !held(h).shown));
    assert_eq!(held(&shown[0]), Held::default(), "nothing is known of them");
    drop(tally);
    let tally = disk.open();
    assert_eq!(tally.held(&mates[0], NOW).unwrap().was_shown, Some(was));
}
