//! The integer sums over people: `counts`, `pairs` and `transitions`.
//!
//! Sums of integers do not depend on the order of people, on how they are grouped, or on threads;
//! taking a person out again leaves exactly the sums without them.

mod counts;
mod pairs;
mod transitions;

pub use counts::Counts;
pub use pairs::Pairs;
pub use transitions::Transitions;
pub(crate) use transitions::{far_weights, near_weights};

use std::collections::BTreeSet;

use ring::digest::{SHA256, digest};

use crate::codec::{Reader, Writer};
use crate::contribution::{Contribution, MAX_CLIP, MOST_HALF_STARS};
use crate::matrix::{SumMatrix, add_all, subtract_all};
use crate::part::Refused;

/// The most items of a catalogue: a bound on what a decoder allocates.
pub const MAX_ITEMS: usize = 4_000_000;

/// All sums of one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    people: u32,
    pub(crate) counts: Counts,
    pub(crate) pairs: Pairs,
    pub(crate) transitions: Transitions,
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

    /// Sums of nobody that have other numbers: what noise has made of somebody's.
    pub(crate) fn of_noised(
        counts: Counts,
        met: SumMatrix,
        near: SumMatrix,
        far: SumMatrix,
    ) -> Self {
        let items = counts.seen.len();
        let mut pairs = Pairs::new(items);
        pairs.met = met;
        Self {
            people: 0,
            counts,
            pairs,
            transitions: Transitions { near, far },
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
        add_all(self.pairs.terms(&pairs::Many::of(all, items)));
        add_all(self.transitions.terms(&transitions::Many::of(all, items)));
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

    /// Takes many people out, over all threads; the result is that of [`Self::unfold`] one by one.
    ///
    /// # Errors
    /// As [`Self::unfold`]; nothing was changed.
    pub fn unfold_all(&mut self, all: &[Contribution]) -> Result<(), Refused> {
        if let Some(other) = all.iter().find(|c| c.items() > self.items()) {
            return Err(self.other_catalogue(other));
        }
        let items = self.items();
        if (self.people as usize) < all.len() {
            return Err(Refused::NotFolded { what: "people" });
        }
        if !self.counts.subtract_all(all) {
            return Err(Refused::NotFolded { what: "counts" });
        }
        let pairs = pairs::Many::of(all, items);
        let transitions = transitions::Many::of(all, items);
        let mut terms = self.pairs.terms(&pairs);
        terms.extend(self.transitions.terms(&transitions));
        if !subtract_all(&mut terms) {
            all.iter().for_each(|c| self.counts.add(c));
            return Err(Refused::NotFolded {
                what: "pairs or transitions",
            });
        }
        self.people -= all.len() as u32;
        Ok(())
    }

    /// Makes room for items that were added at the catalogue's end.
    pub fn grow(&mut self, items: usize) {
        self.counts.grow(items);
        for matrix in self.matrices() {
            matrix.grow(items);
        }
    }

    /// Drops rows and columns of items, as a takedown does, for good: the items count for nobody
    /// who is folded in or taken out later. The result is that of clearing before anybody was
    /// folded in. To count an item again, fold everybody again from the start.
    ///
    /// Events keep their distance: what was met two events after another is still two events after
    /// it when the one between was taken down.
    ///
    /// # Errors
    /// [`Refused::UnknownItem`] for an item that the sums do not have; nothing was changed.
    pub fn clear_items(&mut self, items: &[u32]) -> Result<(), Refused> {
        let mut places = items.iter().enumerate();
        if let Some((event, item)) = places.find(|(_, i)| **i as usize >= self.items()) {
            return Err(Refused::UnknownItem {
                event,
                item: *item,
                items: self.items(),
            });
        }
        self.counts.clear_items(items);
        for matrix in self.matrices() {
            matrix.clear_items(items);
        }
        Ok(())
    }

    /// Items that were taken down, ascending.
    pub fn cleared(&self) -> impl Iterator<Item = u32> + '_ {
        self.counts.cleared().iter().copied()
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
        out.number(self.counts.cleared().len() as u64);
        self.cleared().for_each(|item| out.number(u64::from(item)));
        self.counts.encode(&mut out);
        let pairs = &self.pairs;
        for matrix in [&pairs.met, &pairs.rated, &pairs.products, &pairs.ratings] {
            matrix.encode(&mut out);
        }
        self.transitions.near.encode(&mut out);
        self.transitions.far.encode(&mut out);
        out.into_bytes()
    }

    /// Reads [`Self::to_bytes`] of sums over `items` items. Every number is checked against what
    /// so many people can add, so that sums that were read can be folded into and solved.
    ///
    /// Up to [`crate::DENSE_ITEMS`] items this allocates 48 bytes times items squared, as
    /// [`Self::new`] does, however few the bytes are.
    ///
    /// # Errors
    /// [`Refused::Encoding`] with the place.
    pub fn from_bytes(bytes: &[u8], items: usize) -> Result<Self, Refused> {
        let mut from = Reader::new(bytes);
        if from.take(MAGIC.len())? != MAGIC {
            return Err(from.bad("not sums of this version".into()));
        }
        let got = from.count(MAX_ITEMS, "items")?;
        if got != items {
            return Err(from.bad(format!("sums over {got} items, expected {items}")));
        }
        // Every item takes at least twelve bytes.
        if items > bytes.len() / 12 {
            return Err(from.bad(format!("{items} items in {} bytes", bytes.len())));
        }
        let people = from.count(u32::MAX as usize, "people")? as u32;
        let mut cleared = BTreeSet::new();
        for _ in 0..from.count(items, "cleared items")? {
            let item = from.count(items - 1, "(a cleared item)")? as u32;
            if cleared.last() >= Some(&item) {
                return Err(from.bad(format!("cleared item {item} is out of order")));
            }
            cleared.insert(item);
        }
        let of_all = u64::from(people);
        let counts = Counts::decode(items, of_all, &cleared, &mut from)?;
        let mut matrix = |of_one: u64| {
            let most = of_all.saturating_mul(of_one);
            SumMatrix::decode(items, &cleared, most, &mut from)
        };
        let half_stars = u64::from(MOST_HALF_STARS);
        let pairs = Pairs {
            met: matrix(1)?,
            rated: matrix(1)?,
            products: matrix(half_stars * half_stars)?,
            ratings: matrix(half_stars)?,
        };
        let transitions = Transitions {
            near: matrix(MOST_TRANSITIONS)?,
            far: matrix(MOST_TRANSITIONS)?,
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

const MAGIC: &[u8] = b"lethe sums 2\n";
/// The most that one person adds to an entry of the transitions.
const MOST_TRANSITIONS: u64 = 64 * (MAX_CLIP * MAX_CLIP) as u64;
