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

use ring::digest::{SHA256, digest};

use crate::codec::{Reader, Writer};
use crate::contribution::Contribution;
use crate::matrix::SumMatrix;
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
