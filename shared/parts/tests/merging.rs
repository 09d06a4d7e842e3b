//! Whatever devices hold, their merge is one contribution within bounds, in whatever order they
//! come. A fuzz target, too: `cargo bolero test -p lethe-parts --test merging any_devices`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;

use bolero::check;
use lethe_parts::contribution::{Bounds, Contribution};
use lethe_parts::history::Interaction;
use lethe_parts::merge::{Most, Share, merge};
use lethe_parts::sums::Sums;

const ITEMS: u32 = 5;
const DAYS: i32 = 4;

/// Few items, days and ratings: many events are the same.
fn share(bytes: &[u8]) -> Share {
    let read = |b: &u8| Interaction {
        item: u32::from(*b) % ITEMS,
        day: i32::from(b / 8) % DAYS,
        seen: true,
        half_stars: (*b > 200).then_some(4),
        liked: false,
        hidden: false,
    };
    let mut events: Vec<Interaction> = bytes.iter().take(40).map(read).collect();
    events.sort_by_key(|e| e.day);
    Share {
        whole: bytes.first().is_none_or(|b| b % 3 > 0),
        events,
    }
}

/// How often each event is there.
fn counts(events: &[Interaction]) -> BTreeMap<(i32, u32, Option<u8>), usize> {
    let mut out = BTreeMap::new();
    for e in events {
        *out.entry((e.day, e.item, e.half_stars)).or_default() += 1;
    }
    out
}

const ALL: Most = Most {
    clip: 1_000,
    repeats: 1_000,
};

#[test]
fn any_devices() {
    let input = check!().with_type::<(Vec<Vec<u8>>, u8, u8)>();
    input.for_each(|(bytes, clip, repeats)| {
        let mut shares: Vec<Share> = bytes.iter().take(8).map(|b| share(b)).collect();
        let most = Most {
            clip: 1 + *clip as usize % 50,
            repeats: 1 + *repeats as usize % 4,
        };
        let merged = merge(&shares, &most);
        let all = merge(&shares, &ALL);
        // Each event as often as the device that has most of it.
        let mut expected = BTreeMap::new();
        for one in &shares {
            for (event, n) in counts(&one.events) {
                let known: &mut usize = expected.entry(event).or_default();
                *known = n.max(*known);
            }
        }
        assert_eq!(counts(&all.events), expected);
        // The bounds of one contribution; it folds.
        let bounds = Bounds {
            items: ITEMS as usize,
            clip: most.clip,
            first_day: 0,
            last_day: DAYS,
        };
        Contribution::new(&merged.events, &bounds).unwrap();
        let items = merged.events.iter().map(|e| e.item);
        let mut of_item: BTreeMap<u32, usize> = BTreeMap::new();
        items.for_each(|i| *of_item.entry(i).or_default() += 1);
        assert!(of_item.values().all(|n| *n <= most.repeats));
        assert!(!merged.whole || shares.iter().all(|p| p.whole));
        // Neither the order nor what is known already changes anything.
        let again: Vec<Share> = shares.iter().cloned().chain(shares.clone()).collect();
        assert_eq!(merge(&again, &most), merged);
        shares.reverse();
        assert_eq!(merge(&shares, &most), merged);
        let by = shares.len() / 2;
        shares.rotate_left(by);
        assert_eq!(merge(&shares, &most), merged);
        // One alone stays as it is, and so does the merge.
        assert_eq!(merge(std::slice::from_ref(&merged), &most), merged);
        if let Some(mut some) = shares.first().cloned() {
            // Some of what another device has.
            let every_second = some.events.iter().step_by(2).copied();
            some.events = every_second.collect();
            some.whole = true;
            shares.push(some);
            assert_eq!(merge(&shares, &most), merged);
        }
    });
}

/// Two devices that met things on days of their own give the sums of one that met all of it.
#[test]
fn the_sums_are_those_of_one_device_with_all_of_it() {
    let event = |day: i32| Interaction {
        item: day as u32 % ITEMS,
        day,
        seen: true,
        half_stars: Some(2 + day as u8 % 9),
        liked: day % 2 > 0,
        hidden: false,
    };
    let of = |days: &[i32]| Share {
        whole: true,
        events: days.iter().map(|d| event(*d)).collect(),
    };
    let merged = merge(&[of(&[1, 4, 6, 7]), of(&[2, 3, 6, 9])], &ALL);
    let one = of(&[1, 2, 3, 4, 6, 7, 9]);
    assert_eq!(merged, one);
    let sums = |share: &Share| {
        let bounds = Bounds {
            items: ITEMS as usize,
            clip: 100,
            first_day: 0,
            last_day: 100,
        };
        let mut sums = Sums::new(ITEMS as usize);
        let one = Contribution::new(&share.events, &bounds).unwrap();
        sums.fold(&one).unwrap();
        sums.to_bytes()
    };
    assert_eq!(sums(&merged), sums(&one));
    assert_ne!(sums(&merged), sums(&of(&[1, 2, 3, 4, 6, 7])));
}
