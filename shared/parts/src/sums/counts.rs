//! Sums per item.

use std::collections::BTreeMap;

use crate::codec::{Reader, Writer};
use crate::contribution::Contribution;
use crate::matrix::collect;
use crate::part::Refused;
use crate::sums::transitions::{NEAR, lag_weights};

/// The most days with events.
const MAX_DAYS: usize = 65_536;

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
        }
    }

    pub(crate) fn add(&mut self, one: &Contribution) {
        for item in one.distinct() {
            self.seen[*item as usize] += 1;
        }
        for r in one.rated() {
            let item = r.item as usize;
            self.rated[item] += 1;
            self.half_stars[item] += u64::from(r.half_stars);
            self.likes[item] += u64::from(r.liked);
        }
        for (item, weight, people) in start_entries(one) {
            self.starts[item as usize] += weight;
            self.starters[item as usize] += people;
        }
        for (day, item) in one.days() {
            *self.days.entry(*day).or_default().entry(*item).or_default() += 1;
        }
    }

    pub(crate) fn holds(&self, one: &Contribution) -> bool {
        let met = |item: &u32| self.seen[*item as usize] > 0;
        let rated = |r: &crate::history::Rated| {
            let item = r.item as usize;
            self.rated[item] > 0
                && self.half_stars[item] >= u64::from(r.half_stars)
                && self.likes[item] >= u64::from(r.liked)
        };
        let start = |(item, weight, people): (u32, u64, u64)| {
            self.starts[item as usize] >= weight && self.starters[item as usize] >= people
        };
        let day = |d: &(i32, u32)| {
            self.days
                .get(&d.0)
                .is_some_and(|day| day.contains_key(&d.1))
        };
        one.distinct().iter().all(met)
            && one.rated().iter().all(rated)
            && start_entries(one).into_iter().all(start)
            && one.days().iter().all(day)
    }

    pub(crate) fn subtract(&mut self, one: &Contribution) {
        for item in one.distinct() {
            self.seen[*item as usize] -= 1;
        }
        for r in one.rated() {
            let item = r.item as usize;
            self.rated[item] -= 1;
            self.half_stars[item] -= u64::from(r.half_stars);
            self.likes[item] -= u64::from(r.liked);
        }
        for (item, weight, people) in start_entries(one) {
            self.starts[item as usize] -= weight;
            self.starters[item as usize] -= people;
        }
        for (day, item) in one.days() {
            let Some(of_day) = self.days.get_mut(day) else {
                continue;
            };
            if let Some(count) = of_day.get_mut(item) {
                *count -= 1;
                if *count == 0 {
                    of_day.remove(item);
                }
            }
            if of_day.is_empty() {
                self.days.remove(day);
            }
        }
    }

    /// What was met lately, as of the beginning of `today`: `R = sum over days d < today of
    /// D[d] .5^((today - 1 - d) / 30)`, one number per item.
    pub fn recent(&self, today: i32) -> Vec<f64> {
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

    pub(super) fn clear_items(&mut self, items: &[u32]) {
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

    pub(super) fn decode(items: usize, from: &mut Reader<'_>) -> Result<Self, Refused> {
        let mut counts = Self::new(items);
        for column in [
            &mut counts.seen,
            &mut counts.rated,
            &mut counts.half_stars,
            &mut counts.likes,
            &mut counts.starts,
            &mut counts.starters,
        ] {
            for n in column.iter_mut() {
                *n = from.number()?;
            }
        }
        for _ in 0..from.count(MAX_DAYS, "days")? {
            let day = i32::try_from(from.signed()?).map_err(|e| from.bad(e.to_string()))?;
            let mut of_day = BTreeMap::new();
            for _ in 0..from.count(items, "items of a day")? {
                let item = from.count(items - 1, "(an item)")? as u32;
                let count = from.number()?;
                if count == 0 || of_day.insert(item, count).is_some() {
                    return Err(from.bad(format!("item {item} twice, or zero times, in a day")));
                }
            }
            if of_day.is_empty() || counts.days.insert(day, of_day).is_some() {
                return Err(from.bad(format!("day {day} twice, or without an item")));
            }
        }
        Ok(counts)
    }
}

/// Item, weight and 1 for each of the first items, each once.
fn start_entries(one: &Contribution) -> Vec<(u32, u64, u64)> {
    let weighted = one.starts().iter().zip(lag_weights(NEAR));
    let entries = collect(weighted.map(|(item, weight)| (*item, 0, weight)).collect());
    entries.into_iter().map(|e| (e.0, e.2, 1)).collect()
}
