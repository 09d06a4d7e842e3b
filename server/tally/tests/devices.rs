//! Several devices of one person are one subject: what they bring is merged.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{DAY, Disk, ITEMS, NOW, events, handle, offer, options};
use lethe_parts::history::Interaction;
use lethe_proto::ids::Digest;
use lethe_tally::cells::{CellSettings, Refused};
use lethe_tally::{Allowed, Leaver, Offer, Options, Tally, TallyError};

/// Everybody counts at once.
fn alone() -> Options {
    Options {
        cells: CellSettings::off(),
        ..options()
    }
}

fn of<'a>(who: u8, device: u8, events: &'a [Interaction]) -> Offer<'a> {
    Offer {
        source: [device; 16],
        ..offer(handle(who), events)
    }
}

/// The sums of everybody who contributes, folded again; those in memory are the same.
fn sums(tally: &Tally, now: u64) -> Digest {
    tally.open_cells(now).unwrap();
    tally.publish(DAY, now).unwrap();
    let folded = tally.refold(now).unwrap().unwrap();
    assert_ne!(folded.memory, Some(false));
    assert_ne!(folded.folder, Some(false));
    assert_eq!(folded.stated, Some(true));
    folded.digest
}

/// The sums that this person gives who has one device, beside somebody else.
fn with_one_device(events: &[Interaction], whole: bool) -> Digest {
    let disk = Disk::default();
    let tally = disk.try_open(alone()).unwrap();
    somebody_else(&tally);
    let one = Offer {
        whole,
        ..of(1, 1, events)
    };
    tally.contribute(&one, NOW).unwrap();
    sums(&tally, NOW)
}

fn somebody_else(tally: &Tally) {
    let events = events(9, 7);
    tally.contribute(&of(9, 1, &events), NOW).unwrap();
}

/// These events of a person, by number.
fn some(which: &[usize]) -> Vec<Interaction> {
    let all = events(1, 20);
    which.iter().map(|n| all[*n]).collect()
}

/// Records of the tally that name this handle, by table.
fn records(tally: &Tally, who: u8, table: &str) -> usize {
    let mut found = 0;
    let name = handle(who).hex();
    let see = |t: &str, key: &str, _: &[u8]| {
        found += usize::from(t == table && key.starts_with(&name));
    };
    tally.each(see).unwrap();
    found
}

fn is_too_soon(answer: Result<(), TallyError>) -> bool {
    matches!(answer, Err(TallyError::Refused(Refused::TooSoon { .. })))
}

#[test]
fn the_sums_are_those_of_one_device_with_all_of_it_in_whatever_order_they_come() {
    let shares = [some(&[0, 2, 5]), some(&[1, 2, 6, 7]), some(&[3, 5])];
    let expected = with_one_device(&some(&[0, 1, 2, 3, 5, 6, 7]), true);
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let disk = Disk::default();
        let tally = disk.try_open(alone()).unwrap();
        somebody_else(&tally);
        for device in order {
            let one = of(1, device as u8, &shares[device]);
            tally.contribute(&one, NOW).unwrap();
        }
        assert_eq!(sums(&tally, NOW), expected, "{order:?}");
        assert_eq!(tally.status(NOW).unwrap().people, 2);
        // What it reads again is the same.
        drop(tally);
        let tally = disk.try_open(alone()).unwrap();
        assert_eq!(sums(&tally, NOW + 10), expected, "{order:?}");
        // Together, in one write.
        let disk = Disk::default();
        let tally = disk.try_open(alone()).unwrap();
        somebody_else(&tally);
        let all = order.map(|device| Allowed {
            offer: of(1, device as u8, &shares[device]),
            at: NOW,
        });
        for answer in tally.contribute_allowed(&all, NOW).unwrap() {
            answer.unwrap();
        }
        assert_eq!(records(&tally, 1, "tally-contributions"), 1, "the newest");
        assert_eq!(sums(&tally, NOW), expected, "{order:?}");
    }
}

#[test]
fn a_device_that_grows_and_shrinks_takes_nothing_of_the_other_away() {
    let disk = Disk::default();
    let tally = disk.try_open(alone()).unwrap();
    somebody_else(&tally);
    let first = some(&[0, 1, 2, 3, 4]);
    tally.contribute(&of(1, 1, &first), NOW).unwrap();
    let second = some(&[3, 6]);
    tally.contribute(&of(1, 2, &second), NOW + 1).unwrap();
    // The first has taken two events back; one of them the second has, too.
    let less = some(&[0, 1, 2]);
    tally.contribute(&of(1, 1, &less), NOW + 100).unwrap();
    let expected = with_one_device(&some(&[0, 1, 2, 3, 6]), true);
    assert_eq!(sums(&tally, NOW + 100), expected);
    // A history that was clipped says nothing of how people begin.
    let clipped = Offer {
        whole: false,
        ..of(1, 2, &second)
    };
    tally.contribute(&clipped, NOW + 200).unwrap();
    let expected = with_one_device(&some(&[0, 1, 2, 3, 6]), false);
    assert_eq!(sums(&tally, NOW + 200), expected);
}

#[test]
fn what_says_nothing_new_makes_no_version() {
    let disk = Disk::default();
    let tally = disk.open();
    let all: Vec<Vec<Interaction>> = (0..16).map(|who| events(who, 8)).collect();
    let come = |device: u8, count: usize, now: u64| {
        for who in 0..16u8 {
            let own = &all[usize::from(who)][..count];
            tally.contribute(&of(who, device, own), now).unwrap();
        }
    };
    come(1, 8, NOW);
    assert_eq!(tally.open_cells(NOW).unwrap(), 1);
    let before = tally.fold(NOW).unwrap();
    // Second devices with some of it: they are kept, and nothing grows.
    come(2, 5, NOW + 1);
    assert_eq!(records(&tally, 0, "tally-sources"), 1);
    assert_eq!(tally.open_cells(NOW + 1).unwrap(), 0);
    // They take turns, and write nothing.
    let writes = disk.writes();
    for turn in 0..10 {
        come(1, 8, NOW + 100 * turn);
        come(2, 5, NOW + 100 * turn);
    }
    assert_eq!(disk.writes(), writes);
    assert_eq!(tally.open_cells(NOW + 1_000).unwrap(), 0);
    assert_eq!(tally.fold(NOW + 1_000).unwrap(), before);
    // What counts is of the same people with more, as soon as enough have more.
    for who in 0..16u8 {
        let more = events(who, 9);
        tally.contribute(&of(who, 3, &more[7..]), NOW + 2).unwrap();
    }
    assert_eq!(tally.open_cells(NOW + 1_000).unwrap(), 1);
    assert_ne!(tally.fold(NOW + 1_000).unwrap(), before);
}

#[test]
fn each_device_contributes_once_in_a_while_and_eight_are_kept() {
    let disk = Disk::default();
    let tally = disk.try_open(alone()).unwrap();
    somebody_else(&tally);
    let bring = |device: u8, which: &[usize], now: u64| {
        let events = some(which);
        tally.contribute(&of(1, device, &events), now)
    };
    for device in 1..=8u8 {
        let own = [usize::from(device)];
        bring(device, &own, NOW + u64::from(device)).unwrap();
        assert!(is_too_soon(bring(device, &[0], NOW + 50)), "{device}");
    }
    // A ninth waits until a place was quiet for long enough, also if it says nothing new.
    assert!(is_too_soon(bring(9, &[9], NOW + 100)));
    assert!(is_too_soon(bring(9, &[5], NOW + 100)));
    bring(9, &[9], NOW + 101).unwrap();
    let expected = with_one_device(&some(&[2, 3, 4, 5, 6, 7, 8, 9]), true);
    assert_eq!(sums(&tally, NOW + 101), expected, "the first made way");
    assert!(
        is_too_soon(bring(1, &[1], NOW + 101)),
        "so it comes as a ninth"
    );
}

#[test]
fn the_merge_is_within_the_bounds_of_one_contribution() {
    let disk = Disk::default();
    let tally = disk.try_open(alone()).unwrap();
    somebody_else(&tally);
    // 4 devices of 20 events each, on days of their own, over 12 items.
    let event = |n: i32| Interaction {
        item: n as u32 % ITEMS,
        day: DAY - 80 + n,
        seen: true,
        half_stars: None,
        liked: true,
        hidden: false,
    };
    let all: Vec<Interaction> = (0..80).map(event).collect();
    for device in 0..4usize {
        let own: Vec<Interaction> = all.iter().skip(device).step_by(4).copied().collect();
        tally.contribute(&of(1, device as u8, &own), NOW).unwrap();
    }
    // At most 20 events, and an item three times at most: the newest 20.
    let expected = with_one_device(&all[60..], false);
    assert_eq!(sums(&tally, NOW), expected);
}

#[test]
fn who_leaves_leaves_with_all_devices() {
    let disk = Disk::default();
    let tally = disk.try_open(alone()).unwrap();
    somebody_else(&tally);
    let nobody = sums(&tally, NOW);
    for older in [false, true] {
        for device in 1..4u8 {
            let own = some(&[usize::from(device), 9]);
            tally.contribute(&of(1, device, &own), NOW).unwrap();
        }
        assert_eq!(records(&tally, 1, "tally-sources"), 1);
        match older {
            false => tally.leave(&[handle(1)], NOW).unwrap(),
            true => {
                let handle = handle(1);
                let before = NOW;
                tally
                    .leave_older(&[Leaver { handle, before }], NOW)
                    .unwrap();
            }
        }
        for table in ["tally-sources", "tally-contributions", "tally-people"] {
            assert_eq!(records(&tally, 1, table), 0, "{table}");
        }
        assert_eq!(sums(&tally, NOW), nobody);
    }
    // One device is back: it counts with what it has, and nothing of the others.
    let own = some(&[4, 5]);
    tally.contribute(&of(1, 2, &own), NOW).unwrap();
    assert_eq!(sums(&tally, NOW), with_one_device(&own, true));
    assert_eq!(records(&tally, 1, "tally-sources"), 0, "it is the only one");
    tally.leave(&[handle(1)], NOW).unwrap();
    drop(tally);
    assert_eq!(disk.keys_of(&[handle(1)]), 0);
}

/// A kill at every write of what several devices bring: all of it is there in the end, once.
#[test]
fn a_kill_loses_nothing_and_doubles_nothing() {
    let expected = with_one_device(&some(&[0, 1, 2, 5, 6]), true);
    for after in 0..6 {
        for written in [false, true] {
            let disk = Disk::default();
            let mut tally = disk.try_open(alone()).unwrap();
            somebody_else(&tally);
            disk.fail_after(after, written);
            let shares = [some(&[0, 1, 2]), some(&[1, 5]), some(&[1]), some(&[5, 6])];
            for (device, own) in shares.iter().enumerate() {
                while tally.contribute(&of(1, device as u8, own), NOW).is_err() {
                    drop(tally);
                    tally = disk.try_open(alone()).unwrap();
                }
            }
            disk.mend();
            assert_eq!(sums(&tally, NOW), expected, "{after} {written}");
            drop(tally);
            let tally = disk.try_open(alone()).unwrap();
            assert_eq!(sums(&tally, NOW + 1), expected, "{after} {written}");
        }
    }
}
