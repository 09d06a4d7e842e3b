//! On which day a member met an item: what was met lately falls by `.5^(age / 30)` for each of
//! them.

use super::view::Change;

/// Days that the attacker tells apart; what is older adds next to nothing.
pub(super) const AGES: usize = 400;
/// Days after which an encounter counts half.
const HALF_LIFE: f64 = 30.0;
/// Fineness of sums of several members.
const GRID: usize = 512;
/// Members whose sums are told apart.
const MOST: usize = 6;
/// Share of the days that are taken from everybody's where the cell's own are few.
const OF_ALL: f64 = 0.3;

/// What an encounter so many days ago adds.
fn weight(age: usize) -> f64 {
    (-(age as f64) / HALF_LIFE).exp2()
}

/// A distribution over ages in days.
pub(super) type Ages = Vec<f64>;

/// Scales to a sum of 1; nothing stays nothing.
pub(super) fn normalised(mut ages: Ages) -> Ages {
    let sum: f64 = ages.iter().sum();
    if sum > 0.0 {
        ages.iter_mut().for_each(|a| *a /= sum);
    }
    ages
}

/// For each candidate, how likely its change is if one of those who met it did so on a day.
pub(super) struct Days {
    /// Ages of encounters of this cell.
    pub(super) own: Ages,
    /// By candidate and age; empty: the change says nothing.
    with: Vec<Vec<f64>>,
    without: Vec<f64>,
}

impl Days {
    /// `all`: ages of everybody's encounters, which the attacker knows roughly.
    pub(super) fn new(change: &Change, candidates: &[usize], all: &Ages) -> Self {
        let own = of_cell(change, candidates, all);
        let sums = Sums::new(&own);
        let mut with = vec![];
        let mut without = vec![];
        for item in candidates {
            let members = change.members[*item] as usize;
            if change.hidden[*item] || members > MOST {
                with.push(vec![]);
                without.push(1.0);
                continue;
            }
            let interval = change.lately[*item];
            let by_age = (0..AGES).map(|age| sums.within(members - 1, interval, weight(age)));
            let by_age: Vec<f64> = by_age.collect();
            let mean = by_age.iter().zip(&own).map(|b| b.0 * b.1).sum();
            with.push(by_age);
            without.push(mean);
        }
        Self { own, with, without }
    }

    /// Logarithm of the likelihood ratio of a candidate, for a person who met things on these days.
    pub(super) fn ratio(&self, place: usize, person: &Ages) -> f64 {
        let with = &self.with[place];
        if with.is_empty() {
            return 0.0;
        }
        let least = 1e-6;
        let expected: f64 = with.iter().zip(person).map(|w| w.0 * w.1).sum();
        ((expected + least) / (self.without[place] + least)).ln()
    }

    /// Adds the days on which a person of these days met the candidate.
    pub(super) fn add(&self, place: usize, person: &Ages, share: f64, to: &mut Ages) {
        let with = &self.with[place];
        let total: f64 = with.iter().zip(person).map(|w| w.0 * w.1).sum();
        if total <= 0.0 {
            return;
        }
        for (sum, one) in to.iter_mut().zip(with.iter().zip(person)) {
            *sum += share * one.0 * one.1 / total;
        }
    }
}

/// Days of items that one member met, as far as they can be read off.
fn of_cell(change: &Change, candidates: &[usize], all: &Ages) -> Ages {
    let mut found = vec![0.0; AGES];
    for item in candidates {
        if change.hidden[*item] || change.members[*item] != 1 {
            continue;
        }
        let [least, most] = change.lately[*item];
        let mut one = all.clone();
        for (age, share) in one.iter_mut().enumerate() {
            if !(least..=most).contains(&weight(age)) {
                *share = 0.0;
            }
        }
        // What fits many days says little about which.
        let fits: f64 = one.iter().sum();
        if fits > 0.0 && fits < 0.5 {
            for (sum, share) in found.iter_mut().zip(&one) {
                *sum += share / fits;
            }
        }
    }
    let found = normalised(found);
    let own = if found.iter().sum::<f64>() > 0.0 {
        1.0 - OF_ALL
    } else {
        0.0
    };
    let mix = found.iter().zip(all).map(|f| own * f.0 + OF_ALL * f.1);
    normalised(mix.collect())
}

/// Distributions of what several members add together, over a grid.
struct Sums {
    /// By number of members: the chance of at most so much.
    below: Vec<Vec<f64>>,
}

impl Sums {
    fn new(ages: &Ages) -> Self {
        let points = GRID * MOST;
        let mut density = vec![0.0; points + 1];
        density[0] = 1.0;
        let mut below = vec![];
        for _ in 0..MOST {
            let mut sum = 0.0;
            let cumulated = density.iter().map(|d| {
                sum += d;
                sum
            });
            below.push(cumulated.collect());
            let mut next = vec![0.0; points + 1];
            for (age, share) in ages.iter().enumerate().filter(|a| *a.1 > 0.0) {
                let shift = (weight(age) * GRID as f64).round() as usize;
                for (at, d) in density[..=points - shift].iter().enumerate() {
                    next[at + shift] += share * d;
                }
            }
            density = next;
        }
        Self { below }
    }

    /// The chance that `others` members and one of weight `own` add something of the interval.
    fn within(&self, others: usize, interval: [f64; 2], own: f64) -> f64 {
        let [least, most] = interval;
        if others == 0 {
            return if (least..=most).contains(&own) {
                1.0
            } else {
                0.0
            };
        }
        let below = &self.below[others];
        let at = |value: f64| {
            let place = (value * GRID as f64).floor();
            match place {
                p if p < 0.0 => 0.0,
                p => below[(p as usize).min(below.len() - 1)],
            }
        };
        // Half a point of the grid either way: that is how far rounding goes.
        let blur = 0.5 / GRID as f64;
        (at(most - own + blur) - at(least - own - blur)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_of_two_members_is_found_in_their_sum() {
        let mut ages = vec![0.0; AGES];
        ages[0] = 0.5;
        ages[60] = 0.5;
        let sums = Sums::new(&ages);
        // One of 1 and one of a quarter.
        let interval = [1.24, 1.26];
        assert!((sums.within(1, interval, 1.0) - 0.5).abs() < 1e-9);
        assert!((sums.within(1, interval, 0.25) - 0.5).abs() < 1e-9);
        assert_eq!(sums.within(1, interval, 0.5), 0.0);
        assert_eq!(sums.within(0, interval, 1.25), 1.0);
    }
}
