//! The integer sums over people: `counts`, `pairs` and `transitions`.
//!
//! Sums of integers do not depend on the order of people, on how they are grouped, or on threads;
//! taking a person out again leaves exactly the sums without them.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};

use crate::codec::{Reader, Writer};
use crate::contribution::Contribution;
use crate::matrix::{Entry, RowSum, SumMatrix, collect};
use crate::part::Refused;

/// How transitions are weighted by their distance.
#[derive(Clone, Copy)]
struct Lags {
    /// The greatest distance that counts, in events.
    most: usize,
    /// Events after which the weight falls to `1 / e`.
    decay: f64,
}

const NEAR: Lags = Lags {
    most: 10,
    decay: 5.0,
};
const FAR: Lags = Lags {
    most: 40,
    decay: 20.0,
};
/// The most items of a catalogue: a bound on what a decoder allocates.
pub const MAX_ITEMS: usize = 4_000_000;
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

/// Sums per pair of items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairs {
    /// `G`: people who met both.
    pub met: SumMatrix,
    /// `N`: people who rated both.
    pub rated: SumMatrix,
    /// `Y`: products of the two ratings, in half stars.
    pub products: SumMatrix,
    /// `Q[i, j]`: rating of `i`, in half stars, by people who rated `j` too.
    pub ratings: SumMatrix,
}

/// Sums per ordered pair of items: how often the second was met after the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transitions {
    /// `C10`: lags 1 to 10, weights `round(64 exp(-(lag - 1) / 5))`.
    pub near: SumMatrix,
    /// `C40`: lags 1 to 40, weights `round(64 exp(-(lag - 1) / 20))`.
    pub far: SumMatrix,
}

/// All sums of one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    people: u32,
    pub(crate) counts: Counts,
    pub(crate) pairs: Pairs,
    pub(crate) transitions: Transitions,
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

    fn grow(&mut self, items: usize) {
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

    fn clear_items(&mut self, items: &[u32]) {
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

    fn encode(&self, out: &mut Writer) {
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

    fn decode(items: usize, from: &mut Reader<'_>) -> Result<Self, Refused> {
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

/// The weight of every lag, from lag 1.
fn lag_weights(lags: Lags) -> Vec<u64> {
    (0..lags.most)
        .map(|lag| libm::round(64.0 * libm::exp(-(lag as f64) / lags.decay)) as u64)
        .collect()
}

/// Item, weight and 1 for each of the first items, each once.
fn start_entries(one: &Contribution) -> Vec<(u32, u64, u64)> {
    let weighted = one.starts().iter().zip(lag_weights(NEAR));
    let entries = collect(weighted.map(|(item, weight)| (*item, 0, weight)).collect());
    entries.into_iter().map(|e| (e.0, e.2, 1)).collect()
}

fn transition_entries(one: &Contribution, weights: &[u64]) -> Vec<Entry> {
    let seen = one.seen();
    let mut entries = vec![];
    for (at, from) in seen.iter().enumerate() {
        for (to, weight) in seen[at + 1..].iter().zip(weights) {
            entries.push((*from, *to, *weight));
        }
    }
    collect(entries)
}

fn met_entries(one: &Contribution) -> Vec<Entry> {
    let items = one.distinct();
    let mut out = Vec::with_capacity(items.len() * items.len());
    for i in items {
        out.extend(items.iter().map(|j| (*i, *j, 1)));
    }
    out
}

/// Entries over pairs of rated items, with the amount that `of` gives for two ratings.
fn rated_entries(one: &Contribution, of: impl Fn(u8, u8) -> u64) -> Vec<Entry> {
    let rated = one.rated();
    let mut out = Vec::with_capacity(rated.len() * rated.len());
    for a in rated {
        for b in rated {
            out.push((a.item, b.item, of(a.half_stars, b.half_stars)));
        }
    }
    out
}

fn one(_: u8, _: u8) -> u64 {
    1
}

fn product(a: u8, b: u8) -> u64 {
    u64::from(a) * u64::from(b)
}

fn first(a: u8, _: u8) -> u64 {
    u64::from(a)
}

impl Pairs {
    /// Nobody, over `items` items.
    pub fn new(items: usize) -> Self {
        Self {
            met: SumMatrix::new(items),
            rated: SumMatrix::new(items),
            products: SumMatrix::new(items),
            ratings: SumMatrix::new(items),
        }
    }

    pub(crate) fn add(&mut self, c: &Contribution) {
        self.met.add(&met_entries(c));
        self.rated.add(&rated_entries(c, one));
        self.products.add(&rated_entries(c, product));
        self.ratings.add(&rated_entries(c, first));
    }

    pub(crate) fn holds(&self, c: &Contribution) -> bool {
        self.met.holds(&met_entries(c))
            && self.rated.holds(&rated_entries(c, one))
            && self.products.holds(&rated_entries(c, product))
            && self.ratings.holds(&rated_entries(c, first))
    }

    pub(crate) fn subtract(&mut self, c: &Contribution) {
        self.met.subtract(&met_entries(c));
        self.rated.subtract(&rated_entries(c, one));
        self.products.subtract(&rated_entries(c, product));
        self.ratings.subtract(&rated_entries(c, first));
    }

    fn add_all(&mut self, all: &[Contribution], items: usize) {
        let met = index(items, all, |c| c.distinct().to_vec());
        self.met.add_rows(|row, sum| {
            for (person, _) in &met[row as usize] {
                for item in all[*person as usize].distinct() {
                    sum.add(*item, 1);
                }
            }
        });
        let rated = index(items, all, |c| c.rated().iter().map(|r| r.item).collect());
        let ratings = |row: u32, sum: &mut RowSum, of: fn(u8, u8) -> u64| {
            for (person, at) in &rated[row as usize] {
                let rated = all[*person as usize].rated();
                let own = rated[*at as usize].half_stars;
                for r in rated {
                    sum.add(r.item, of(own, r.half_stars));
                }
            }
        };
        self.rated.add_rows(|row, sum| ratings(row, sum, one));
        self.products
            .add_rows(|row, sum| ratings(row, sum, product));
        self.ratings.add_rows(|row, sum| ratings(row, sum, first));
    }
}

impl Transitions {
    /// Nobody, over `items` items.
    pub fn new(items: usize) -> Self {
        Self {
            near: SumMatrix::new(items),
            far: SumMatrix::new(items),
        }
    }

    pub(crate) fn add(&mut self, c: &Contribution) {
        self.near.add(&transition_entries(c, &lag_weights(NEAR)));
        self.far.add(&transition_entries(c, &lag_weights(FAR)));
    }

    pub(crate) fn holds(&self, c: &Contribution) -> bool {
        self.near.holds(&transition_entries(c, &lag_weights(NEAR)))
            && self.far.holds(&transition_entries(c, &lag_weights(FAR)))
    }

    pub(crate) fn subtract(&mut self, c: &Contribution) {
        self.near
            .subtract(&transition_entries(c, &lag_weights(NEAR)));
        self.far.subtract(&transition_entries(c, &lag_weights(FAR)));
    }

    fn add_all(&mut self, all: &[Contribution], items: usize) {
        let seen = index(items, all, |c| c.seen().to_vec());
        let add = |matrix: &mut SumMatrix, weights: &[u64]| {
            matrix.add_rows(|row, sum| {
                for (person, at) in &seen[row as usize] {
                    let later = &all[*person as usize].seen()[*at as usize + 1..];
                    for (item, weight) in later.iter().zip(weights) {
                        sum.add(*item, *weight);
                    }
                }
            });
        };
        add(&mut self.near, &lag_weights(NEAR));
        add(&mut self.far, &lag_weights(FAR));
    }
}

/// For every item, who has it and where in their list.
fn index(
    items: usize,
    all: &[Contribution],
    list: impl Fn(&Contribution) -> Vec<u32>,
) -> Vec<Vec<(u32, u32)>> {
    let mut out = vec![vec![]; items];
    for (person, c) in all.iter().enumerate() {
        for (at, item) in list(c).into_iter().enumerate() {
            out[item as usize].push((person as u32, at as u32));
        }
    }
    out
}

impl Sums {
    /// Nobody, over a catalogue of `items` items.
    pub fn new(items: usize) -> Self {
        Self {
            people: 0,
            counts: Counts::new(items),
            pairs: Pairs::new(items),
            transitions: Transitions::new(items),
        }
    }

    /// Items of the catalogue.
    pub fn items(&self) -> usize {
        self.counts.seen.len()
    }

    /// People who are folded in.
    pub fn people(&self) -> u32 {
        self.people
    }

    /// Sums per item.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Sums per pair of items.
    pub fn pairs(&self) -> &Pairs {
        &self.pairs
    }

    /// Sums per ordered pair of items.
    pub fn transitions(&self) -> &Transitions {
        &self.transitions
    }

    /// Bytes of memory of the pair tables.
    pub fn memory(&self) -> u64 {
        let pairs = &self.pairs;
        let tables = [
            &pairs.met,
            &pairs.rated,
            &pairs.products,
            &pairs.ratings,
            &self.transitions.near,
            &self.transitions.far,
        ];
        tables.iter().map(|m| m.memory()).sum()
    }

    /// Adds one person.
    ///
    /// # Errors
    /// [`Refused::Items`] for another catalogue, [`Refused::Full`]; nothing was changed.
    pub fn fold(&mut self, one: &Contribution) -> Result<(), Refused> {
        self.room(std::slice::from_ref(one))?;
        self.counts.add(one);
        self.pairs.add(one);
        self.transitions.add(one);
        self.people += 1;
        Ok(())
    }

    /// Adds many people, over all threads; the result is that of [`Self::fold`] one by one.
    ///
    /// # Errors
    /// As [`Self::fold`]; nothing was changed.
    pub fn fold_all(&mut self, all: &[Contribution]) -> Result<(), Refused> {
        self.room(all)?;
        all.iter().for_each(|c| self.counts.add(c));
        let items = self.items();
        self.pairs.add_all(all, items);
        self.transitions.add_all(all, items);
        self.people += all.len() as u32;
        Ok(())
    }

    /// Takes one person out again.
    ///
    /// # Errors
    /// [`Refused::NotFolded`] if a sum would become negative; nothing was changed.
    pub fn unfold(&mut self, one: &Contribution) -> Result<(), Refused> {
        if one.items() > self.items() {
            return Err(self.other_catalogue(one));
        }
        let held = [
            ("people", self.people > 0),
            ("counts", self.counts.holds(one)),
            ("pairs", self.pairs.holds(one)),
            ("transitions", self.transitions.holds(one)),
        ];
        if let Some((what, _)) = held.into_iter().find(|(_, held)| !held) {
            return Err(Refused::NotFolded { what });
        }
        self.counts.subtract(one);
        self.pairs.subtract(one);
        self.transitions.subtract(one);
        self.people -= 1;
        Ok(())
    }

    /// Makes room for items that were added at the catalogue's end.
    pub fn grow(&mut self, items: usize) {
        self.counts.grow(items);
        for matrix in self.matrices() {
            matrix.grow(items);
        }
    }

    /// Drops rows and columns of items, as a takedown does.
    ///
    /// The sums do not remember what was cleared: **forgetting is not exact afterwards**. Nobody who
    /// met such an item may be folded or unfolded; fold everybody again from the start instead.
    pub fn clear_items(&mut self, items: &[u32]) {
        self.counts.clear_items(items);
        for matrix in self.matrices() {
            matrix.clear_items(items);
        }
    }

    fn matrices(&mut self) -> [&mut SumMatrix; 6] {
        let pairs = &mut self.pairs;
        [
            &mut pairs.met,
            &mut pairs.rated,
            &mut pairs.products,
            &mut pairs.ratings,
            &mut self.transitions.near,
            &mut self.transitions.far,
        ]
    }

    fn other_catalogue(&self, one: &Contribution) -> Refused {
        Refused::Items {
            got: one.items(),
            items: self.items(),
        }
    }

    fn room(&self, all: &[Contribution]) -> Result<(), Refused> {
        if let Some(other) = all.iter().find(|c| c.items() > self.items()) {
            return Err(self.other_catalogue(other));
        }
        match u32::try_from(all.len()).map(|n| self.people.checked_add(n)) {
            Ok(Some(_)) => Ok(()),
            _ => Err(Refused::Full(self.people)),
        }
    }

    /// The canonical bytes: equal sums have equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(MAGIC);
        out.number(self.items() as u64);
        out.number(u64::from(self.people));
        self.counts.encode(&mut out);
        let pairs = &self.pairs;
        for matrix in [&pairs.met, &pairs.rated, &pairs.products, &pairs.ratings] {
            matrix.encode(&mut out);
        }
        self.transitions.near.encode(&mut out);
        self.transitions.far.encode(&mut out);
        out.into_bytes()
    }

    /// Reads [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`Refused::Encoding`] with the place.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refused> {
        let mut from = Reader::new(bytes);
        if from.take(MAGIC.len())? != MAGIC {
            return Err(from.bad("not sums of this version".into()));
        }
        let items = from.count(MAX_ITEMS, "items")?;
        let people = from.count(u32::MAX as usize, "people")? as u32;
        // Every item takes at least twelve bytes: what is allocated is bounded by what was sent.
        if items > bytes.len() / 12 {
            return Err(from.bad(format!("{items} items in {} bytes", bytes.len())));
        }
        let counts = Counts::decode(items, &mut from)?;
        let pairs = Pairs {
            met: SumMatrix::decode(items, &mut from)?,
            rated: SumMatrix::decode(items, &mut from)?,
            products: SumMatrix::decode(items, &mut from)?,
            ratings: SumMatrix::decode(items, &mut from)?,
        };
        let transitions = Transitions {
            near: SumMatrix::decode(items, &mut from)?,
            far: SumMatrix::decode(items, &mut from)?,
        };
        from.end()?;
        Ok(Self {
            people,
            counts,
            pairs,
            transitions,
        })
    }

    /// SHA-256 of [`Self::to_bytes`].
    pub fn digest(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, &self.to_bytes()).as_ref());
        out
    }
}

const MAGIC: &[u8] = b"lethe sums 1\n";
