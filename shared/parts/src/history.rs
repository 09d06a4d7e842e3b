//! One person's events, as their device sees them.

use std::collections::HashMap;

use crate::event::{Event, Meaning};

/// Seconds of a day; days are UTC.
const DAY: i64 = 86_400;

/// The day of a time, counted from 1970-01-01 UTC.
pub fn day_of(time: i64) -> i32 {
    i32::try_from(time.div_euclid(DAY)).unwrap_or(if time < 0 { i32::MIN } else { i32::MAX })
}

/// A rated item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rated {
    /// Index into the catalogue.
    pub item: u32,
    /// Rating in half stars, 2 to 10.
    pub half_stars: u8,
    /// It counts as a like.
    pub liked: bool,
}

impl Rated {
    /// The rating in stars, 1 to 5.
    pub fn stars(self) -> f64 {
        f64::from(self.half_stars) / 2.0
    }
}

/// One event that counts, with what it counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interaction {
    /// Index into the catalogue.
    pub item: u32,
    /// Day since 1970.
    pub day: i32,
    /// The person met the item.
    pub seen: bool,
    /// Rating in half stars, if the event stands for one.
    pub half_stars: Option<u8>,
    /// It counts as a like.
    pub liked: bool,
    /// The person asked not to be shown the item again.
    pub hidden: bool,
}

/// Bits of what an event counts as, in contributions: [`Interaction::of_flags`].
const SEEN: u8 = 1;
const LIKED: u8 = 2;
const HIDDEN: u8 = 4;

impl Interaction {
    /// An event of a contribution. `half_stars` 0: it stands for no rating. Flags: bit 0 seen, bit
    /// 1 liked, bit 2 hidden.
    pub fn of_flags(item: u32, day: i32, half_stars: u8, flags: u8) -> Self {
        Self {
            item,
            day,
            seen: flags & SEEN > 0,
            half_stars: (half_stars > 0).then_some(half_stars),
            liked: flags & LIKED > 0,
            hidden: flags & HIDDEN > 0,
        }
    }

    /// What it counts as, as [`Self::of_flags`] reads it.
    pub fn flags(&self) -> u8 {
        let bit = |is: bool, bit: u8| if is { bit } else { 0 };
        bit(self.seen, SEEN) | bit(self.liked, LIKED) | bit(self.hidden, HIDDEN)
    }

    /// Reads events by the catalogue's table and sorts them by time; events at the same second
    /// keep their order. Events that count as nothing are left out.
    pub fn read(events: &[Event], meaning: &Meaning) -> Vec<Self> {
        let mut sorted: Vec<&Event> = events.iter().collect();
        sorted.sort_by_key(|e| e.time);
        sorted
            .into_iter()
            .map(|event| {
                let reading = meaning.read(event);
                Self {
                    item: event.item,
                    day: day_of(event.time),
                    seen: reading.seen,
                    half_stars: reading.half_stars,
                    liked: reading.liked == Some(true),
                    hidden: reading.hidden,
                }
            })
            .filter(|i| i.seen || i.half_stars.is_some() || i.hidden)
            .collect()
    }
}

/// The newest `most` of every item, in the order that they have, oldest first. Who meets an item
/// again and again then adds no more to it than somebody who met it so often.
pub fn newest_of_each<T: Copy>(all: &[T], item: impl Fn(&T) -> u32, most: usize) -> Vec<T> {
    let mut times: HashMap<u32, usize> = HashMap::new();
    let mut keep = vec![false; all.len()];
    for (at, one) in all.iter().enumerate().rev() {
        let times = times.entry(item(one)).or_default();
        *times += 1;
        keep[at] = *times <= most;
    }
    let kept = all.iter().zip(keep).filter(|(_, keep)| *keep);
    kept.map(|(one, _)| *one).collect()
}

/// A person's history on their device, oldest first.
///
/// The age of an event is its distance from the newest one of its list, which has age 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    seen: Vec<u32>,
    rated: Vec<Rated>,
    met: Vec<u32>,
}

impl History {
    /// From events that were read, oldest first.
    pub fn new(interactions: &[Interaction]) -> Self {
        let seen = interactions.iter().filter(|i| i.seen).map(|i| i.item);
        let rated = interactions.iter().filter_map(|i| {
            Some(Rated {
                item: i.item,
                half_stars: i.half_stars?,
                liked: i.liked,
            })
        });
        let mut met: Vec<u32> = interactions.iter().map(|i| i.item).collect();
        met.sort_unstable();
        met.dedup();
        Self {
            seen: seen.collect(),
            rated: rated.collect(),
            met,
        }
    }

    /// From events as an app records them.
    pub fn of_events(events: &[Event], meaning: &Meaning) -> Self {
        Self::new(&Interaction::read(events, meaning))
    }

    /// Items that were met, oldest first, with repetitions.
    pub fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// Rated items, oldest first, with repetitions.
    pub fn rated(&self) -> &[Rated] {
        &self.rated
    }

    /// Every item of the history, hidden ones included, in ascending order: lists leave them out.
    pub fn met(&self) -> &[u32] {
        &self.met
    }

    /// Whether the item is in the history.
    pub fn has_met(&self, item: u32) -> bool {
        self.met.binary_search(&item).is_ok()
    }

    /// The newest `n` seen items with their ages, newest first.
    pub fn newest_seen(&self, n: usize) -> impl Iterator<Item = (usize, u32)> {
        self.seen.iter().rev().take(n).copied().enumerate()
    }

    /// The newest `n` rated items, newest first: the position is the age.
    pub fn newest_rated(&self, n: usize) -> impl Iterator<Item = Rated> {
        self.rated.iter().rev().take(n).copied()
    }
}
