//! What one person adds to the sums, within bounds.

use crate::history::{Interaction, Rated};
use crate::part::Refused;

/// The most events that any operator can allow one person to contribute.
///
/// With at most `u32::MAX` people no sum can overflow 64 bits: an entry of the transitions grows by
/// at most `64 * MAX_CLIP^2 = 2^30` a person, an entry of the ratings' products by 100.
pub const MAX_CLIP: usize = 4_096;

/// Events that count as a person's beginning.
pub const STARTS: usize = 10;

/// The highest rating, in half stars.
pub const MOST_HALF_STARS: u8 = 10;
/// The lowest rating, in half stars.
const LEAST_HALF_STARS: u8 = 2;

/// The last day that any operator can allow, and the most different days: 65,536 days after 1970 is
/// in the year 2149. No event is older than 1970.
pub const MAX_DAYS: i32 = 65_536;

/// What a contribution may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Items in the catalogue.
    pub items: usize,
    /// The most events of one person; at most [`MAX_CLIP`].
    pub clip: usize,
    /// First day since 1970 that is taken; at least 0.
    pub first_day: i32,
    /// Last day since 1970 that is taken; below [`MAX_DAYS`].
    pub last_day: i32,
}

/// One person's contribution to `counts`, `pairs` and `transitions`: their newest events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contribution {
    items: usize,
    whole: bool,
    seen: Vec<u32>,
    distinct: Vec<u32>,
    days: Vec<(i32, u32)>,
    rated: Vec<Rated>,
}

impl Contribution {
    /// A whole history: nothing older was left out. Checks every bound.
    ///
    /// Of an item that was rated repeatedly the newest rating counts; an item that was met
    /// repeatedly on one day counts once for that day.
    ///
    /// # Errors
    /// [`Refused`] names the first event that is outside `bounds`.
    pub fn new(interactions: &[Interaction], bounds: &Bounds) -> Result<Self, Refused> {
        let clip = bounds.clip.min(MAX_CLIP);
        if interactions.len() > clip {
            return Err(Refused::TooMany {
                got: interactions.len(),
                clip,
            });
        }
        let mut before = i32::MIN;
        for (event, one) in interactions.iter().enumerate() {
            check(event, one, bounds)?;
            if one.day < before {
                return Err(Refused::Order { event });
            }
            before = one.day;
        }
        let seen: Vec<u32> = seen_items(interactions).collect();
        let mut distinct = seen.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let mut days: Vec<(i32, u32)> = interactions
            .iter()
            .filter(|i| i.seen)
            .map(|i| (i.day, i.item))
            .collect();
        days.sort_unstable();
        days.dedup();
        Ok(Self {
            items: bounds.items,
            whole: true,
            seen,
            distinct,
            days,
            rated: newest_ratings(interactions),
        })
    }

    /// The end of a history: something older was left out, so it says nothing about beginnings.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn tail(interactions: &[Interaction], bounds: &Bounds) -> Result<Self, Refused> {
        Ok(Self {
            whole: false,
            ..Self::new(interactions, bounds)?
        })
    }

    /// The newest `bounds.clip` events of a history.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn newest(interactions: &[Interaction], bounds: &Bounds) -> Result<Self, Refused> {
        match interactions.len().saturating_sub(bounds.clip.min(MAX_CLIP)) {
            0 => Self::new(interactions, bounds),
            start => Self::tail(&interactions[start..], bounds),
        }
    }

    /// Items of the catalogue that the contribution was checked against.
    pub fn items(&self) -> usize {
        self.items
    }

    /// Items that were met, oldest first, with repetitions.
    pub fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// The first items that the person ever met, at most [`STARTS`]; empty if older events were
    /// left out.
    pub fn starts(&self) -> &[u32] {
        if self.whole {
            &self.seen[..STARTS.min(self.seen.len())]
        } else {
            &[]
        }
    }

    /// Items that were met, ascending, each once.
    pub fn distinct(&self) -> &[u32] {
        &self.distinct
    }

    /// Days and the items that were met on them, ascending, each pair once.
    pub fn days(&self) -> &[(i32, u32)] {
        &self.days
    }

    /// Rated items, ascending by item, each once.
    pub fn rated(&self) -> &[Rated] {
        &self.rated
    }
}

fn check(event: usize, one: &Interaction, bounds: &Bounds) -> Result<(), Refused> {
    if one.item as usize >= bounds.items {
        return Err(Refused::UnknownItem {
            event,
            item: one.item,
            items: bounds.items,
        });
    }
    let first = bounds.first_day.max(0);
    let last = bounds.last_day.min(MAX_DAYS - 1);
    if !(first..=last).contains(&one.day) {
        return Err(Refused::Day {
            event,
            day: one.day,
            first,
            last,
        });
    }
    match one.half_stars {
        Some(half_stars) if !(LEAST_HALF_STARS..=MOST_HALF_STARS).contains(&half_stars) => {
            Err(Refused::Stars { event, half_stars })
        }
        _ => Ok(()),
    }
}

fn seen_items(interactions: &[Interaction]) -> impl Iterator<Item = u32> {
    interactions.iter().filter(|i| i.seen).map(|i| i.item)
}

fn newest_ratings(interactions: &[Interaction]) -> Vec<Rated> {
    let mut rated: Vec<Rated> = interactions
        .iter()
        .rev()
        .filter_map(|i| {
            Some(Rated {
                item: i.item,
                half_stars: i.half_stars?,
                liked: i.liked,
            })
        })
        .collect();
    // Stable, newest first: `dedup` keeps the newest of each item.
    rated.sort_by_key(|r| r.item);
    rated.dedup_by_key(|r| r.item);
    rated
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        items: 5,
        clip: 4,
        first_day: 100,
        last_day: 200,
    };

    fn event(item: u32, day: i32, half_stars: Option<u8>) -> Interaction {
        Interaction {
            item,
            day,
            seen: true,
            half_stars,
            liked: half_stars.is_some_and(|h| h > 6),
            hidden: false,
        }
    }

    #[test]
    fn every_bound_is_checked() {
        let refused = |events: &[Interaction]| Contribution::new(events, &BOUNDS).expect_err("bad");
        assert!(matches!(
            refused(&[event(1, 150, None); 5]),
            Refused::TooMany { got: 5, clip: 4 }
        ));
        assert!(matches!(
            refused(&[event(5, 150, None)]),
            Refused::UnknownItem { item: 5, .. }
        ));
        assert!(matches!(
            refused(&[event(1, 99, None)]),
            Refused::Day { .. }
        ));
        assert!(matches!(
            refused(&[event(1, 201, None)]),
            Refused::Day { .. }
        ));
        assert!(matches!(
            refused(&[event(1, 150, None), event(1, 149, None)]),
            Refused::Order { event: 1 }
        ));
        assert!(matches!(
            refused(&[event(1, 150, Some(11))]),
            Refused::Stars { .. }
        ));
    }

    #[test]
    fn the_newest_rating_of_an_item_counts() {
        let events = [
            event(3, 150, Some(2)),
            event(1, 150, None),
            event(3, 150, Some(8)),
        ];
        let c = Contribution::new(&events, &BOUNDS).expect("within bounds");
        assert_eq!(c.seen(), [3, 1, 3]);
        assert_eq!(c.distinct(), [1, 3]);
        assert_eq!(c.days(), [(150, 1), (150, 3)]);
        assert_eq!(c.rated().len(), 1);
        assert_eq!(c.rated()[0].half_stars, 8);
        let older: Vec<Interaction> = (0..5).map(|i| event(i, 150, None)).collect();
        let newest = Contribution::newest(&older, &BOUNDS).expect("clipped");
        assert_eq!(newest.seen(), [1, 2, 3, 4]);
        assert!(newest.starts().is_empty(), "the first event was left out");
        assert_eq!(c.starts(), [3, 1, 3]);
    }
}
