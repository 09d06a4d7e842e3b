//! Sums per item.

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::{Reader, Writer};
use crate::contribution::{Contribution, MAX_DAYS, MOST_HALF_STARS, STARTS};
use crate::history::Rated;
use crate::matrix::collect;
use crate::part::Refused;
use crate::sums::transitions::{NEAR, lag_weights};

/// Sums per item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// People who met the item.
    pub seen: Vec<u64>,
    /// People who rated it.
    pub rated: Vec<u64>,
    /// Sum of their newest ratings, in half stars.
    pub half_stars: Vec<u64>,
    /// How many of those count as likes.
    pub likes: Vec<u64>,
    /// What people met first: weights `round(64 exp(-n / 5))` of the first ten events, n from 0.
    pub starts: Vec<u64>,
    /// People among whose first ten events the item is.
    pub starters: Vec<u64>,
    /// Day, then item: people who met the item on the day.
    pub days: BTreeMap<i32, BTreeMap<u32, u64>>,
    /// Items that were taken down: they count for nobody, now and later.
    cleared: BTreeSet<u32>,
}

impl Counts {
    /// Nobody, over `items` items.
    pub fn new(items: usize) -> Self {
        Self {
            seen: vec![0; items],
            rated: vec![0; items],
            half_stars: vec![0; items],
            likes: vec![0; items],
            starts: vec![0; items],
            starters: vec![0; items],
            days: BTreeMap::new(),
            cleared: BTreeSet::new(),
        }
    }

    /// What of a contribution counts: all but cleared items.
    fn counting(&self, one: &Contribution) -> Counting {
        let counts = |item: &u32| !self.cleared.contains(item);
        Counting {
            seen: one.distinct().iter().copied().filter(counts).collect(),
            rated: one
                .rated()
                .iter()
                .copied()
                .filter(|r| counts(&r.item))
                .collect(),
            starts: start_entries(one)
                .into_iter()
                .filter(|s| counts(&s.0))
                .collect(),
            days: one
                .days()
                .iter()
                .copied()
                .filter(|d| counts(&d.1))
                .collect(),
        }
    }

    pub(crate) fn add(&mut self, one: &Contribution) {
        let Counting {
            seen,
            rated,
            starts,
            days,
        } = self.counting(one);
        for item in seen {
            self.seen[item as usize] += 1;
        }
        for r in rated {
            let item = r.item as usize;
            self.rated[item] += 1;
            self.half_stars[item] += u64::from(r.half_stars);
            self.likes[item] += u64::from(r.liked);
        }
        for (item, weight) in starts {
            self.starts[item as usize] += weight;
            self.starters[item as usize] += 1;
        }
        for (day, item) in days {
            *self.days.entry(day).or_default().entry(item).or_default() += 1;
        }
    }

    pub(crate) fn holds(&self, one: &Contribution) -> bool {
        let counting = self.counting(one);
        let met = |item: &u32| self.seen[*item as usize] > 0;
        let rated = |r: &Rated| {
            let item = r.item as usize;
            self.rated[item] > 0
                && self.half_stars[item] >= u64::from(r.half_stars)
                && self.likes[item] >= u64::from(r.liked)
        };
        let start = |s: &(u32, u64)| {
            let item = s.0 as usize;
            self.starts[item] >= s.1 && self.starters[item] > 0
        };
        let day = |d: &(i32, u32)| {
            self.days
                .get(&d.0)
                .is_some_and(|day| day.contains_key(&d.1))
        };
        counting.seen.iter().all(met)
            && counting.rated.iter().all(rated)
            && counting.starts.iter().all(start)
            && counting.days.iter().all(day)
    }

    pub(crate) fn subtract(&mut self, one: &Contribution) {
        let Counting {
            seen,
            rated,
            starts,
            days,
        } = self.counting(one);
        for item in seen {
            self.seen[item as usize] -= 1;
        }
        for r in rated {
            let item = r.item as usize;
            self.rated[item] -= 1;
            self.half_stars[item] -= u64::from(r.half_stars);
            self.likes[item] -= u64::from(r.liked);
        }
        for (item, weight) in starts {
            self.starts[item as usize] -= weight;
            self.starters[item as usize] -= 1;
        }
        for (day, item) in days {
            let Some(of_day) = self.days.get_mut(&day) else {
                continue;
            };
            if let Some(count) = of_day.get_mut(&item) {
                *count -= 1;
                if *count == 0 {
                    of_day.remove(&item);
                }
            }
            if of_day.is_empty() {
                self.days.remove(&day);
            }
        }
    }

    /// Takes many people out; false if not all of them are held, and nothing was changed.
    pub(super) fn subtract_all(&mut self, all: &[Contribution]) -> bool {
        for (at, one) in all.iter().enumerate() {
            if !self.holds(one) {
                all[..at].iter().for_each(|c| self.add(c));
                return false;
            }
            self.subtract(one);
        }
        true
    }

    /// Numbers that change when this contribution is taken out.
    pub(crate) fn entries_of(&self, one: &Contribution) -> u64 {
        let counting = self.counting(one);
        let liked = counting.rated.iter().filter(|r| r.liked).count();
        let of_ratings = 2 * counting.rated.len() + liked;
        let of_starts = 2 * counting.starts.len();
        (counting.seen.len() + of_ratings + of_starts + counting.days.len()) as u64
    }

    /// What was met lately, as of the beginning of `today`: `R = sum over days d < today of
    /// D[d] .5^((today - 1 - d) / 30)`, one number per item.
    pub(crate) fn recent(&self, today: i32) -> Vec<f64> {
        let mut out = vec![0.0; self.seen.len()];
        for (day, items) in self.days.range(..today) {
            let age = f64::from(today) - 1.0 - f64::from(*day);
            let weight = libm::exp2(-age / 30.0);
            for (item, count) in items {
                out[*item as usize] += weight * *count as f64;
            }
        }
        out
    }

    pub(super) fn grow(&mut self, items: usize) {
        for column in [
            &mut self.seen,
            &mut self.rated,
            &mut self.half_stars,
            &mut self.likes,
            &mut self.starts,
            &mut self.starters,
        ] {
            column.resize(items.max(column.len()), 0);
        }
    }

    pub(super) fn cleared(&self) -> &BTreeSet<u32> {
        &self.cleared
    }

    pub(super) fn clear_items(&mut self, items: &[u32]) {
        self.cleared.extend(items.iter().copied());
        for item in items {
            let at = *item as usize;
            self.seen[at] = 0;
            self.rated[at] = 0;
            self.half_stars[at] = 0;
            self.likes[at] = 0;
            self.starts[at] = 0;
            self.starters[at] = 0;
            for day in self.days.values_mut() {
                day.remove(item);
            }
        }
        self.days.retain(|_, day| !day.is_empty());
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        for column in [
            &self.seen,
            &self.rated,
            &self.half_stars,
            &self.likes,
            &self.starts,
            &self.starters,
        ] {
            column.iter().for_each(|n| out.number(*n));
        }
        out.number(self.days.len() as u64);
        for (day, items) in &self.days {
            out.signed(i64::from(*day));
            out.number(items.len() as u64);
            for (item, count) in items {
                out.number(u64::from(*item));
                out.number(*count);
            }
        }
    }

    /// Reads [`Self::encode`]; every number is checked against what `people` people can add.
    pub(super) fn decode(
        items: usize,
        people: u64,
        cleared: &BTreeSet<u32>,
        from: &mut Reader<'_>,
    ) -> Result<Self, Refused> {
        let mut counts = Self::new(items);
        counts.cleared.clone_from(cleared);
        let first_weight: u64 = lag_weights(NEAR).iter().take(STARTS).sum();
        let columns = [
            ("people who met an item", &mut counts.seen, 1),
            ("people who rated an item", &mut counts.rated, 1),
            (
                "half stars",
                &mut counts.half_stars,
                u64::from(MOST_HALF_STARS),
            ),
            ("likes", &mut counts.likes, 1),
            ("first events", &mut counts.starts, first_weight),
            ("people who began with an item", &mut counts.starters, 1),
        ];
        for (what, column, of_one) in columns {
            for (item, n) in column.iter_mut().enumerate() {
                let most = if cleared.contains(&(item as u32)) {
                    0
                } else {
                    people * of_one
                };
                *n = from.bounded(most, what)?;
            }
        }
        for item in 0..items {
            let rated = counts.rated[item];
            let most = rated.saturating_mul(u64::from(MOST_HALF_STARS));
            let half_stars = counts.half_stars[item];
            if counts.likes[item] > rated || half_stars > most || half_stars < rated {
                return Err(from.bad(format!("item {item}: ratings, likes and stars disagree")));
            }
        }
        let mut day_before = None;
        for _ in 0..from.count(MAX_DAYS as usize, "days")? {
            let day = i32::try_from(from.signed()?).map_err(|e| from.bad(e.to_string()))?;
            if day_before >= Some(day) {
                return Err(from.bad(format!("day {day} is not after the one before it")));
            }
            day_before = Some(day);
            counts
                .days
                .insert(day, of_day(items, people, cleared, from)?);
        }
        Ok(counts)
    }
}

/// The items of one day, ascending, with the people who met them.
fn of_day(
    items: usize,
    people: u64,
    cleared: &BTreeSet<u32>,
    from: &mut Reader<'_>,
) -> Result<BTreeMap<u32, u64>, Refused> {
    let mut out = BTreeMap::new();
    let mut item_before = None;
    for _ in 0..from.count(items, "items of a day")? {
        let item = from.count(items - 1, "(an item)")? as u32;
        if item_before >= Some(item) || cleared.contains(&item) {
            return Err(from.bad(format!(
                "item {item} of a day is out of order, or was cleared"
            )));
        }
        item_before = Some(item);
        let count = from.bounded(people, "people of a day")?;
        if count == 0 {
            return Err(from.bad(format!("item {item} was met by nobody on a day")));
        }
        out.insert(item, count);
    }
    if out.is_empty() {
        return Err(from.bad("a day without an item".into()));
    }
    Ok(out)
}

/// What of one contribution counts.
struct Counting {
    seen: Vec<u32>,
    rated: Vec<Rated>,
    starts: Vec<(u32, u64)>,
    days: Vec<(i32, u32)>,
}

/// Item and weight of each of the first items, each once.
fn start_entries(one: &Contribution) -> Vec<(u32, u64)> {
    let weighted = one.starts().iter().zip(lag_weights(NEAR));
    let entries = collect(weighted.map(|(item, weight)| (*item, 0, weight)).collect());
    entries.into_iter().map(|e| (e.0, e.2)).collect()
}
