//! Noise on the sums, before anything is solved: differential privacy of one person's whole
//! contribution (Dwork and Roth, 2014), with an accountant.
//!
//! [`noised`] gives sums that everything else takes for sums. What devices get is computed from
//! them alone, so it tells no more of a person than they do. `docs/noise.md` says what is promised,
//! what is not, and the price.
//!
//! - [`Settings`]: what an operator asks for; [`Mechanism`]: what follows from it, in whole
//!   numbers, so that an auditor's machine has the same;
//! - [`accountant`]: what releases cost together;
//! - `sensitivity`: how much one person can change, with the proofs;
//! - `gaussian`: exact samples of the discrete Gaussian.

pub mod accountant;
mod gaussian;
mod queries;
mod sensitivity;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::contribution::MAX_CLIP;
use crate::matrix::{DENSE_ITEMS, SumMatrix};
use crate::sums::{Counts, Sums};
use gaussian::{Gaussian, MOST_VARIANCE};
use queries::{MIDDLE, Queries};

/// What an event of the newest day weighs in what was met lately, before it is divided again.
pub(crate) const RECENT_UNIT: u64 = 64;
/// Epsilons that can be asked for. Smaller ones need orders that the accountant does not have.
const EPSILONS: [f64; 2] = [0.05, 100.0];
/// Budgets: the sum of a year of the largest is no budget any more.
const BUDGETS: [f64; 2] = [0.05, 1_000.0];
/// Deltas.
const DELTAS: [f64; 2] = [1e-12, 1e-2];

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// What a release may cost.
    pub epsilon: f64,
    /// The chance with which the promise of one release, or of all together, may fail; well below
    /// one in the number of people.
    pub delta: f64,
    /// What all releases together may cost, at the same delta.
    pub budget: f64,
}

/// Why there is no noise.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// A number outside its range.
    #[error("noise: {what} = {got}, expected {least} to {most}")]
    Range {
        /// Which.
        what: &'static str,
        /// What was given.
        got: f64,
        /// The least.
        least: f64,
        /// The most.
        most: f64,
    },
    /// Too many items: all pairs get noise, those that nobody met, too.
    #[error(
        "noise over {got} items, expected at most {most}: all pairs of items get noise; cut the \
         catalogue, or turn noise off"
    )]
    Items {
        /// Items.
        got: usize,
        /// The most.
        most: usize,
    },
    /// Noise that is larger than can be drawn.
    #[error(
        "noise of the variance {got} on {group:?}, expected at most {most}: raise epsilon, or \
         lower `clip` or `repeats`"
    )]
    Large {
        /// On what.
        group: Group,
        /// Its variance.
        got: u128,
        /// The most.
        most: u64,
    },
}

fn range(what: &'static str, got: f64, least: f64, most: f64) -> Result<(), Unfit> {
    match (least..=most).contains(&got) {
        true => Ok(()),
        false => Err(Unfit::Range {
            what,
            got,
            least,
            most,
        }),
    }
}

impl Settings {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Unfit::Range`].
    pub fn check(&self) -> Result<(), Unfit> {
        range("epsilon", self.epsilon, EPSILONS[0], EPSILONS[1])?;
        range("delta", self.delta, DELTAS[0], DELTAS[1])?;
        range("budget", self.budget, BUDGETS[0], BUDGETS[1])?;
        range("epsilon", self.epsilon, EPSILONS[0], self.budget)
    }

    /// What all releases together may be charged.
    pub fn allowed(&self) -> u64 {
        accountant::charge(self.budget, self.delta)
    }
}

/// Sums that are noised with a variance of their own: their units differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// People who met an item.
    Seen,
    /// People who met two items.
    Met,
    /// Near transitions.
    Near,
    /// Far transitions.
    Far,
    /// What was met lately, in 64ths of an event.
    Recent,
    /// What was met first.
    Starts,
    /// People who rated an item.
    Rated,
    /// Their ratings.
    Stars,
    /// How many of those are likes.
    Likes,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Seen,
        Self::Met,
        Self::Near,
        Self::Far,
        Self::Recent,
        Self::Starts,
        Self::Rated,
        Self::Stars,
        Self::Likes,
    ];
}

/// How the charge is shared among groups, and what is taken for noise afterwards. Neither changes
/// what is promised: shares add up to 100, and cuts see noised numbers only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Hundredths of the charge, in the order of [`Group::ALL`].
    pub shares: [u32; 9],
    /// Numbers below so many standard deviations of their noise become 0; in the same order.
    pub cuts: [u32; 9],
}

impl Shape {
    /// The best of seven on validation events of MovieLens-100K, over three orders, two clips and
    /// three epsilons together (`bench-recommend --only noise --shapes`; docs/noise.md).
    pub const DEFAULT: Self = Self {
        shares: [10, 60, 5, 15, 5, 2, 1, 1, 1],
        cuts: [1, 3, 3, 3, 1, 1, 1, 0, 1],
    };

    fn share(&self, group: Group) -> u32 {
        self.shares[group as usize]
    }

    fn cut(&self, group: Group) -> u32 {
        self.cuts[group as usize]
    }
}

/// How noise is made, in whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mechanism {
    /// What a release is charged ([`accountant`]).
    pub charge: u64,
    /// The most events of a person.
    pub clip: u32,
    /// The most events of a person with one item.
    pub repeats: u32,
}

impl Mechanism {
    /// For a catalogue of `items` items.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn new(
        settings: &Settings,
        clip: usize,
        repeats: usize,
        items: usize,
    ) -> Result<Self, Unfit> {
        settings.check()?;
        let whole = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mechanism = Self {
            charge: accountant::charge(settings.epsilon, settings.delta),
            clip: whole(clip),
            repeats: whole(repeats),
        };
        mechanism.check(items)?;
        Ok(mechanism)
    }

    /// Checks what somebody else may have made up.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn check(&self, items: usize) -> Result<(), Unfit> {
        if items > DENSE_ITEMS {
            return Err(Unfit::Items {
                got: items,
                most: DENSE_ITEMS,
            });
        }
        let most = accountant::MOST_CHARGE as f64;
        range("charge", self.charge as f64, 1.0, most)?;
        range("clip", f64::from(self.clip), 1.0, MAX_CLIP as f64)?;
        range("repeats", f64::from(self.repeats), 1.0, MAX_CLIP as f64)?;
        for group in Group::ALL {
            self.variance(group, &Shape::DEFAULT)?;
        }
        Ok(())
    }

    /// The variance of a group's noise: with `rho` = charge 1e-12 share / 100, it is the squared
    /// sensitivity over 2 `rho`, rounded up.
    fn variance(&self, group: Group, shape: &Shape) -> Result<u64, Unfit> {
        // Below 2^60 times 2^47.
        let squared = sensitivity::squared(group, self.clip, self.repeats);
        let share = u128::from(shape.share(group).max(1));
        let over = 2 * u128::from(self.charge.max(1)) * share;
        let got = (squared * 100_000_000_000_000).div_ceil(over).max(1);
        match u64::try_from(got) {
            Ok(variance) if variance <= MOST_VARIANCE => Ok(variance),
            _ => Err(Unfit::Large {
                group,
                got,
                most: MOST_VARIANCE,
            }),
        }
    }

    /// The standard deviation of a group's noise.
    ///
    /// # Errors
    /// [`Unfit::Large`].
    pub fn deviation(&self, group: Group) -> Result<f64, Unfit> {
        Ok((self.variance(group, &Shape::DEFAULT)? as f64).sqrt())
    }
}

/// The noise of one release. The seed is as secret as the sums: with it the noise can be taken off.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drawn {
    /// How it is made.
    pub mechanism: Mechanism,
    /// What it is drawn from; of this release alone.
    pub seed: [u8; 32],
}

impl std::fmt::Debug for Drawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Drawn({:?})", self.mechanism)
    }
}

/// The sums with noise, as of the beginning of `day`. Every number of a group gets noise, also
/// where nobody added anything; only items that were taken down, which is public, get none. What is
/// below 0, or below its cut, becomes 0. Products of ratings are left out: they are 0.
///
/// # Errors
/// [`Unfit`]: more than 4,096 items, or noise that cannot be drawn.
pub fn noised(sums: &Sums, drawn: &Drawn, day: i32) -> Result<Sums, Unfit> {
    noised_as(&Shape::DEFAULT, sums, drawn, day)
}

/// As [`noised`], with other shares and cuts; for measurements.
///
/// # Errors
/// As [`noised`].
pub fn noised_as(shape: &Shape, sums: &Sums, drawn: &Drawn, day: i32) -> Result<Sums, Unfit> {
    let noising = Noising::new(shape, sums, drawn, day)?;
    let items = sums.items();
    let seen = noising.column(Group::Seen)?;
    let met = noising.rows(Group::Met)?;
    let met = symmetric(met, &seen);
    let near = noising.rows(Group::Near)?;
    let far = noising.rows(Group::Far)?;
    let mut counts = Counts::new(items);
    counts.days = noising.days(day)?;
    noising.ratings(&mut counts)?;
    counts.starts = noising.column(Group::Starts)?;
    // Nobody counted who begins with an item: whoever does has met it.
    let begins = counts.starts.iter().zip(&seen);
    counts.starters = begins.map(|(s, n)| if *s > 0 { *n } else { 0 }).collect();
    counts.seen = seen;
    let near = SumMatrix::of_rows(near);
    Ok(Sums::of_noised(counts, met, near, SumMatrix::of_rows(far)))
}

/// What was met lately alone, with noise, as sums that have nothing else but who `seen` says has
/// met an item; for measurements over past days.
///
/// # Errors
/// As [`noised`].
pub fn noised_recent(
    shape: &Shape,
    sums: &Sums,
    seen: &[u64],
    drawn: &Drawn,
    day: i32,
) -> Result<Counts, Unfit> {
    let noising = Noising::new(shape, sums, drawn, day)?;
    let mut counts = Counts::new(sums.items());
    counts.days = noising.days(day)?;
    counts.seen = seen.to_vec();
    Ok(counts)
}

struct Noising<'a> {
    shape: &'a Shape,
    queries: Queries<'a>,
    drawn: &'a Drawn,
    /// Which items were not taken down.
    counts: Vec<bool>,
}

impl<'a> Noising<'a> {
    fn new(shape: &'a Shape, sums: &'a Sums, drawn: &'a Drawn, day: i32) -> Result<Self, Unfit> {
        drawn.mechanism.check(sums.items())?;
        let mut counts = vec![true; sums.items()];
        for item in sums.cleared() {
            counts[item as usize] = false;
        }
        Ok(Self {
            shape,
            queries: Queries::of(sums, day),
            drawn,
            counts,
        })
    }

    /// A group's numbers with noise, row by row, each from a stream of its own: threads do not
    /// matter.
    fn signed(&self, group: Group) -> Result<Vec<Vec<i64>>, Unfit> {
        let variance = self.drawn.mechanism.variance(group, self.shape)?;
        let gaussian = Gaussian::new(variance);
        let least = u64::from(self.shape.cut(group)) * variance.isqrt();
        let of_row = |row: u32| {
            let mut rng = stream(&self.drawn.seed, group, row);
            let mut numbers = self.queries.row(group, row);
            let first = self.counts.len() - numbers.len();
            for (at, number) in numbers.iter_mut().enumerate() {
                let column = if numbers_an_item(group) {
                    row as usize
                } else {
                    first + at
                };
                if !(self.counts[row as usize] && self.counts[column]) {
                    *number = 0;
                    continue;
                }
                *number = number.saturating_add(gaussian.draw(&mut rng));
                if number.unsigned_abs() < least {
                    *number = 0;
                }
            }
            numbers
        };
        let rows = 0..self.counts.len() as u32;
        Ok(rows.into_par_iter().map(of_row).collect())
    }

    fn rows(&self, group: Group) -> Result<Vec<Vec<u64>>, Unfit> {
        let signed = self.signed(group)?;
        let of_row = |row: Vec<i64>| row.into_iter().map(positive).collect();
        Ok(signed.into_par_iter().map(of_row).collect())
    }

    fn column(&self, group: Group) -> Result<Vec<u64>, Unfit> {
        Ok(self.rows(group)?.into_iter().flatten().collect())
    }

    /// What was met lately, as if all of it had been met on the day before.
    fn days(&self, today: i32) -> Result<Days, Unfit> {
        let all = self.column(Group::Recent)?;
        let whole = all.iter().map(|n| (n + RECENT_UNIT / 2) / RECENT_UNIT);
        let met: std::collections::BTreeMap<u32, u64> =
            (0..).zip(whole).filter(|(_, n)| *n > 0).collect();
        let mut days = Days::new();
        if !met.is_empty() {
            days.insert(today.saturating_sub(1), met);
        }
        Ok(days)
    }

    /// Ratings that agree with each other: from 2 to 10 half stars, no more likes than ratings.
    fn ratings(&self, counts: &mut Counts) -> Result<(), Unfit> {
        let rated = self.column(Group::Rated)?;
        let above = self.signed(Group::Stars)?.into_iter().flatten();
        let stars = above.zip(&rated).map(|(above, n)| {
            let n = i64::try_from(*n).unwrap_or(i64::MAX / 16);
            positive((above.saturating_add(MIDDLE * n)).clamp(2 * n, 10 * n))
        });
        counts.half_stars = stars.collect();
        let likes = self.column(Group::Likes)?.into_iter().zip(&rated);
        counts.likes = likes.map(|(likes, n)| likes.min(*n)).collect();
        counts.rated = rated;
        Ok(())
    }
}

type Days = std::collections::BTreeMap<i32, std::collections::BTreeMap<u32, u64>>;

fn numbers_an_item(group: Group) -> bool {
    !matches!(group, Group::Met | Group::Near | Group::Far)
}

fn positive(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Pairs in both orders, no more than met one of the two; on the diagonal who met the item.
fn symmetric(above: Vec<Vec<u64>>, seen: &[u64]) -> SumMatrix {
    let items = seen.len();
    let mut rows = vec![vec![0; items]; items];
    for (i, row) in above.into_iter().enumerate() {
        rows[i][i] = seen[i];
        for (at, number) in row.into_iter().enumerate() {
            let j = i + 1 + at;
            let number = number.min(seen[i]).min(seen[j]);
            rows[i][j] = number;
            rows[j][i] = number;
        }
    }
    SumMatrix::of_rows(rows)
}

/// The stream of a row: ChaCha20 under SHA-256 of the seed, the group and the row.
fn stream(seed: &[u8; 32], group: Group, row: u32) -> ChaCha20Rng {
    let mut context = Context::new(&SHA256);
    context.update(b"lethe noise 1\n");
    context.update(seed);
    context.update(&[group as u8]);
    context.update(&row.to_le_bytes());
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    ChaCha20Rng::from_seed(key)
}

#[cfg(test)]
mod tests;
