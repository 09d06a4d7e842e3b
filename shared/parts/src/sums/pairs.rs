//! Sums per pair of items.

use crate::contribution::Contribution;
use crate::matrix::{Entry, RowSum, SumMatrix, Terms};
use crate::sums::index;

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

    /// Numbers that change when this contribution is taken out.
    pub(crate) fn entries_of(&self, c: &Contribution) -> u64 {
        let met = c.distinct().iter().filter(|i| self.met.counts(**i, **i));
        let met = met.count() as u64;
        let rated = c.rated().iter();
        let rated = rated.filter(|r| self.rated.counts(r.item, r.item)).count() as u64;
        met * met + 3 * rated * rated
    }

    /// The matrices with what many people add to their rows.
    pub(super) fn terms<'a>(&'a mut self, of: &'a Many<'_>) -> Vec<Terms<'a>> {
        let met = Terms {
            matrix: &mut self.met,
            of_row: Box::new(|row, sum| of.met(row, sum)),
        };
        let rated = of.terms(&mut self.rated, one);
        let products = of.terms(&mut self.products, product);
        let ratings = of.terms(&mut self.ratings, first);
        vec![met, rated, products, ratings]
    }
}

/// Many people, by the items that they have.
pub(super) struct Many<'a> {
    all: &'a [Contribution],
    met: Vec<Vec<(u32, u32)>>,
    rated: Vec<Vec<(u32, u32)>>,
}

impl<'a> Many<'a> {
    pub(super) fn of(all: &'a [Contribution], items: usize) -> Self {
        Self {
            all,
            met: index(items, all, |c| c.distinct().to_vec()),
            rated: index(items, all, |c| c.rated().iter().map(|r| r.item).collect()),
        }
    }

    fn met(&self, row: u32, sum: &mut RowSum) {
        for (person, _) in &self.met[row as usize] {
            for item in self.all[*person as usize].distinct() {
                sum.add(*item, 1);
            }
        }
    }

    /// One loop is compiled for each `amount`: this is where folding spends its time.
    fn terms(
        &'a self,
        matrix: &'a mut SumMatrix,
        amount: impl Fn(u8, u8) -> u64 + Copy + Sync + 'a,
    ) -> Terms<'a> {
        Terms {
            matrix,
            of_row: Box::new(move |row, sum| self.ratings(row, sum, amount)),
        }
    }

    fn ratings(&self, row: u32, sum: &mut RowSum, amount: impl Fn(u8, u8) -> u64) {
        for (person, at) in &self.rated[row as usize] {
            let rated = self.all[*person as usize].rated();
            let own = rated[*at as usize].half_stars;
            for r in rated {
                sum.add(r.item, amount(own, r.half_stars));
            }
        }
    }
}
