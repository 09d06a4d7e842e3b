//! What several devices of one person contribute, as one contribution.
//!
//! A contribution has days and no times. Two events are the same if item, day, rating and flags
//! are: an event that one device imported from another is in both contributions, and counts once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::history::{Interaction, newest_of_each};

/// What one device contributes, or all of them together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Nothing older was left out.
    pub whole: bool,
    /// By day, oldest first.
    pub events: Vec<Interaction>,
}

/// How much of a merge counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Events: the newest.
    pub clip: usize,
    /// Events of one item: the newest.
    pub repeats: usize,
}

/// What makes two events of one day the same.
type Same = [u32; 3];

fn same(e: &Interaction) -> Same {
    [
        e.item,
        u32::from(e.half_stars.unwrap_or(0)),
        u32::from(e.flags()),
    ]
}

/// One contribution of all parts, within bounds. Of each event it has as many as the part that has
/// most of it. The order of the parts changes nothing, nor does a part of which another has
/// everything in the same order. One part alone, within the bounds, stays as it is.
pub fn merge(parts: &[Share], most: &Most) -> Share {
    let mut days: BTreeMap<i32, Vec<&[Interaction]>> = BTreeMap::new();
    for part in parts {
        for day in part.events.chunk_by(|a, b| a.day == b.day) {
            days.entry(day[0].day).or_default().push(day);
        }
    }
    let all: Vec<Interaction> = days.into_values().flat_map(merge_day).collect();
    let all = newest_of_each(&all, |e| e.item, most.repeats);
    let older = all.len().saturating_sub(most.clip);
    Share {
        whole: older == 0 && parts.iter().all(|p| p.whole),
        events: all[older..].to_vec(),
    }
}

/// The longest first, then by content: what is within another is found there.
fn merge_day(mut parts: Vec<&[Interaction]>) -> Vec<Interaction> {
    let names = |part: &[Interaction]| -> Vec<Same> { part.iter().map(same).collect() };
    parts.sort_by_cached_key(|part| (std::cmp::Reverse(part.len()), names(part)));
    let first = parts.first().map_or(vec![], |p| p.to_vec());
    parts
        .iter()
        .skip(1)
        .fold(first, |all, part| add(&all, part))
}

/// Adds what is not there yet, each event after the one that it follows in its own part.
fn add(all: &[Interaction], part: &[Interaction]) -> Vec<Interaction> {
    // Where each event stands that no event of the part was found to be yet.
    let mut free: HashMap<Same, BTreeSet<usize>> = HashMap::new();
    for (at, e) in all.iter().enumerate() {
        free.entry(same(e)).or_default().insert(at);
    }
    let mut new: BTreeMap<usize, Vec<Interaction>> = BTreeMap::new();
    let mut cursor = 0;
    for e in part {
        let places = free.entry(same(e)).or_default();
        let found = places.range(cursor..).next().or(places.first()).copied();
        match found {
            Some(at) => {
                places.remove(&at);
                cursor = cursor.max(at + 1);
            }
            None => new.entry(cursor).or_default().push(*e),
        }
    }
    let mut out = Vec::with_capacity(all.len() + part.len());
    for (at, e) in all.iter().enumerate() {
        out.extend(new.remove(&at).unwrap_or_default());
        out.push(*e);
    }
    out.extend(new.into_values().flatten());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Most = Most {
        clip: 100,
        repeats: 100,
    };

    fn event(day: i32, item: u32) -> Interaction {
        Interaction {
            item,
            day,
            seen: true,
            half_stars: None,
            liked: false,
            hidden: false,
        }
    }

    fn share(events: &[(i32, u32)]) -> Share {
        Share {
            whole: true,
            events: events.iter().map(|e| event(e.0, e.1)).collect(),
        }
    }

    fn items(parts: &[Share], most: &Most) -> Vec<u32> {
        merge(parts, most).events.iter().map(|e| e.item).collect()
    }

    #[test]
    fn an_imported_event_counts_once_and_another_day_is_another_event() {
        let one = share(&[(1, 5), (2, 6), (9, 5)]);
        let other = share(&[(1, 5), (3, 5)]);
        let merged = merge(&[one, other], &ALL);
        let expected = share(&[(1, 5), (2, 6), (3, 5), (9, 5)]);
        assert_eq!(merged, expected);
        // A rating is another event than to have met the item.
        let mut rated = share(&[(1, 5)]);
        rated.events[0].half_stars = Some(8);
        assert_eq!(items(&[rated, share(&[(1, 5)])], &ALL), [5, 5]);
        // What one device has twice counts twice, and not three times.
        let twice = share(&[(1, 5), (1, 5)]);
        assert_eq!(items(&[share(&[(1, 5)]), twice], &ALL), [5, 5]);
    }

    #[test]
    fn the_order_of_a_day_holds_where_it_can() {
        let most = share(&[(1, 1), (1, 2), (1, 3), (1, 4)]);
        let some = share(&[(1, 2), (1, 4)]);
        assert_eq!(merge(&[some.clone(), most.clone()], &ALL), most);
        // Seven came after two.
        let more = share(&[(1, 2), (1, 7), (1, 4)]);
        assert_eq!(items(&[more, most.clone(), some], &ALL), [1, 2, 7, 3, 4]);
        let turned = share(&[(1, 4), (1, 1), (1, 8)]);
        assert_eq!(items(&[turned, most], &ALL), [1, 2, 3, 4, 8]);
    }

    #[test]
    fn bounds_are_those_of_one_contribution() {
        let one = share(&[(1, 5), (2, 5), (3, 6)]);
        let other = share(&[(4, 5), (5, 7)]);
        let few = Most {
            clip: 100,
            repeats: 2,
        };
        let merged = merge(&[one.clone(), other.clone()], &few);
        assert!(
            merged.whole,
            "as with one device: what is repeated is no beginning"
        );
        assert_eq!(merged, share(&[(2, 5), (3, 6), (4, 5), (5, 7)]));
        let clipped = Most {
            clip: 2,
            repeats: 2,
        };
        let merged = merge(&[one.clone(), other], &clipped);
        assert!(!merged.whole);
        assert_eq!(merged.events, share(&[(4, 5), (5, 7)]).events);
        let tail = Share {
            whole: false,
            ..one.clone()
        };
        assert!(!merge(&[one, tail], &ALL).whole);
        assert_eq!(merge(&[], &ALL), share(&[]));
    }
}
