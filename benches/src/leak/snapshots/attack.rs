//! Attacks: from a change between two snapshots to a ranking of items that a person has met.

use std::collections::BTreeSet;

use lethe_parts::contribution::Contribution;

use super::days::{AGES, Ages, Days, normalised};
use super::evidence::Evidence;
use super::fleet::Known;
use super::view::Change;

/// Rounds of guessing items from items that were guessed.
const ROUNDS: usize = 8;
/// Guessed items that others are guessed from.
const ANCHORS: usize = 80;
/// Share of a person's days that may be days of which nothing is known.
const OTHER_DAYS: f64 = 0.1;

/// How far evidence of several items is trusted: it is not independent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Trust {
    /// Factor of the sum of log-likelihood ratios.
    pub(super) factor: f64,
    /// The sum is divided by this power of the number of items.
    pub(super) power: f64,
}

impl Trust {
    /// What the attacker tries on cells that it knows.
    pub(super) const GRID: [Self; 6] = [
        Self::new(0.5, 0.3),
        Self::new(0.5, 0.6),
        Self::new(1.0, 0.6),
        Self::new(1.0, 0.85),
        Self::new(2.0, 0.85),
        Self::new(1.0, 1.0),
    ];

    const fn new(factor: f64, power: f64) -> Self {
        Self { factor, power }
    }
}

/// A change, with everything that is read out of it.
pub(super) struct Case<'a> {
    pub(super) change: &'a Change,
    pub(super) evidence: &'a Evidence,
    pub(super) days: &'a Days,
    /// Members of the cell.
    pub(super) size: usize,
    /// The day of both snapshots.
    pub(super) today: i32,
}

/// A guess of one history: candidates with log-odds, and whether they are expected to be in it.
pub(super) struct Guess {
    /// Place of each candidate that was not known, best first.
    pub(super) ranking: Vec<usize>,
    /// Chance of each candidate, as the attacker sees it.
    pub(super) chances: Vec<f64>,
}

impl Case<'_> {
    /// The history that contains what is known.
    pub(super) fn expand(&self, known: &[Known], trust: Trust) -> Guess {
        let candidates = &self.evidence.candidates;
        let place = |item: u32| candidates.binary_search(&(item as usize)).ok();
        let anchors: Vec<usize> = known.iter().filter_map(|k| place(k.item)).collect();
        let mut days = vec![0.0; AGES];
        for one in known {
            let age = (self.today - 1 - one.day).max(0) as usize;
            if age < AGES {
                days[age] += 1.0;
            }
        }
        self.rounds(&anchors, &normalised(days), trust)
    }

    /// The history of whoever met the candidate at this place; no day is known.
    pub(super) fn grow(&self, place: usize, trust: Trust) -> Guess {
        let mut days = vec![0.0; AGES];
        self.days.add(place, &self.days.own, 1.0, &mut days);
        self.rounds(&[place], &days, trust)
    }

    fn rounds(&self, known: &[usize], days: &Ages, trust: Trust) -> Guess {
        let count = self.evidence.candidates.len();
        let mut chances = vec![0.0f64; count];
        known.iter().for_each(|p| chances[*p] = 1.0);
        let mut person = self.mixed(days);
        let mut scores = vec![0.0f64; count];
        for _ in 0..ROUNDS {
            let mut anchors: Vec<usize> = (0..count).filter(|p| chances[*p] > 0.5).collect();
            anchors.sort_by(|a, b| chances[*b].total_cmp(&chances[*a]).then(a.cmp(b)));
            anchors.truncate(ANCHORS);
            self.score(&anchors, &chances, &person, trust, &mut scores);
            for (chance, score) in chances.iter_mut().zip(&scores) {
                *chance = 1.0 / (1.0 + (-score).exp());
            }
            known.iter().for_each(|p| chances[*p] = 1.0);
            // What was guessed tells more days.
            let mut found: Ages = days.iter().map(|d| 3.0 * d).collect();
            for (at, chance) in chances.iter().enumerate() {
                let item = self.evidence.candidates[at];
                if *chance > 0.7 && self.change.members[item] <= 2 {
                    self.days.add(at, &person, *chance, &mut found);
                }
            }
            person = self.mixed(&normalised(found));
        }
        let mut ranking: Vec<usize> = (0..count).filter(|p| !known.contains(p)).collect();
        ranking.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        Guess { ranking, chances }
    }

    /// Days of a person: those that are known, and some of which nothing is.
    fn mixed(&self, days: &Ages) -> Ages {
        let known = if days.iter().sum::<f64>() > 0.0 {
            1.0 - OTHER_DAYS
        } else {
            0.0
        };
        let all = days.iter().zip(&self.days.own);
        all.map(|d| known * d.0 + (1.0 - known) * d.1).collect()
    }

    fn score(
        &self,
        anchors: &[usize],
        chances: &[f64],
        person: &Ages,
        trust: Trust,
        scores: &mut [f64],
    ) {
        let total: f64 = anchors.iter().map(|a| chances[*a]).sum();
        let scale = trust.factor / total.max(1.0).powf(trust.power);
        scores.iter_mut().for_each(|s| *s = 0.0);
        for anchor in anchors {
            let weight = chances[*anchor];
            for (score, value) in scores.iter_mut().zip(self.evidence.of(*anchor)) {
                *score += weight * f64::from(*value);
            }
        }
        for (at, score) in scores.iter_mut().enumerate() {
            let members = self.change.members[self.evidence.candidates[at]] as f64;
            let others = (self.size as f64 - members).max(0.05);
            *score *= scale;
            *score += (members / others).ln() + self.days.ratio(at, person);
        }
    }

    /// The best guess of the history of anybody of the cell, with all that was tried: every item
    /// that one member met is somebody's. A guess is trusted as far as the guesses that grow out of
    /// its own items agree with it.
    pub(super) fn anybody(&self, trust: Trust, most: usize) -> Vec<Grown> {
        let candidates = &self.evidence.candidates;
        let alone = (0..candidates.len()).filter(|p| {
            let item = candidates[*p];
            self.change.members[item] == 1 && !self.change.hidden[item]
        });
        let mut alone: Vec<usize> = alone.collect();
        // Rare items first: their rows show most.
        alone.sort_by_key(|p| self.change.before[candidates[*p]]);
        alone.truncate(most);
        let mut all: Vec<Grown> = vec![];
        for place in alone {
            let guess = self.grow(place, trust);
            let likely = |p: &usize| guess.chances[*p] > 0.9;
            let named: BTreeSet<usize> = (0..candidates.len()).filter(likely).collect();
            all.push(Grown {
                place,
                named,
                ranking: guess.ranking,
                agreement: 0.0,
            });
        }
        let agreements: Vec<f64> = all.iter().map(|one| agreement(one, &all)).collect();
        for (one, agreement) in all.iter_mut().zip(agreements) {
            one.agreement = agreement;
        }
        all.sort_by(|a, b| {
            b.agreement
                .total_cmp(&a.agreement)
                .then(a.place.cmp(&b.place))
        });
        all
    }
}

/// A guess that grew out of one item.
pub(super) struct Grown {
    /// The item it grew out of.
    pub(super) place: usize,
    /// Items that it is sure of.
    named: BTreeSet<usize>,
    /// All others, best first.
    pub(super) ranking: Vec<usize>,
    /// How far guesses out of its items agree, 0 to 1.
    agreement: f64,
}

/// Fewer items are no history.
const LEAST: usize = 10;

fn agreement(one: &Grown, all: &[Grown]) -> f64 {
    if one.named.len() < LEAST {
        return 0.0;
    }
    let others = all.iter().filter(|o| o.place != one.place);
    let within = others.filter(|o| one.named.contains(&o.place));
    let overlap = |other: &Grown| {
        let both = one.named.intersection(&other.named).count() as f64;
        both / one.named.union(&other.named).count() as f64
    };
    let overlaps: Vec<f64> = within.map(overlap).collect();
    // Two that agree may do so by chance.
    overlaps.iter().sum::<f64>() / (overlaps.len() as f64 + 2.0)
}

/// Somebody who knows what all others of the cell contributed: what is left is the person's.
/// Items, best first; those of which the counts say that they are not the person's are left out.
pub(super) fn without_others(change: &Change, others: &[Contribution], k: u64) -> Vec<u32> {
    let mut known = vec![0u64; change.items];
    for other in others {
        other
            .distinct()
            .iter()
            .for_each(|i| known[*i as usize] += 1);
    }
    let mut certain = vec![];
    let mut open = vec![];
    for (item, others) in known.into_iter().enumerate() {
        if change.hidden[item] {
            // Those who are left are fewer than k.
            match change.before[item].saturating_sub(others) {
                left if left >= k => certain.push(item as u32),
                0 => {}
                _ => open.push(item as u32),
            }
        } else if change.members[item] > others {
            certain.push(item as u32);
        }
    }
    certain.extend(open);
    certain
}

/// Somebody who sees the sums themselves, and knows these items of a person: what follows with
/// certainty first. An item is the person's if everybody of the cell who met one of their items has
/// met it.
pub(super) fn of_sums(members: &[Contribution], items: usize, known: &[Known]) -> Vec<u32> {
    let mut by_item: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); items];
    for (at, member) in members.iter().enumerate() {
        for item in member.distinct() {
            by_item[*item as usize].insert(at);
        }
    }
    // Only what pair counts say is used: how many met an item, and how many met both of two.
    let met = |item: usize| by_item[item].len();
    let both = |a: usize, b: usize| by_item[a].intersection(&by_item[b]).count();
    let start: Vec<usize> = known.iter().map(|k| k.item as usize).collect();
    let mut certain: BTreeSet<usize> = start.iter().copied().collect();
    let mut order = vec![];
    let mut next = start.clone();
    while let Some(own) = next.pop() {
        for item in 0..items {
            if !certain.contains(&item) && met(own) > 0 && both(own, item) == met(own) {
                certain.insert(item);
                order.push(item as u32);
                next.push(item);
            }
        }
    }
    let rest = (0..items).filter(|i| !certain.contains(i) && met(*i) > 0);
    let mut rest: Vec<usize> = rest.collect();
    let share = |item: usize| -> f64 {
        let of = |own: &usize| (both(*own, item) as f64 + 0.01) / (met(*own) as f64 + 0.01);
        certain.iter().map(|own| of(own).ln()).sum()
    };
    rest.sort_by_cached_key(|i| std::cmp::Reverse((share(*i) * 1e6) as i64));
    order.extend(rest.iter().map(|i| *i as u32));
    order
}
