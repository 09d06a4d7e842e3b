//! How much one person can change what is noised: bounds of L2 norms, squared.
//!
//! Data sets are neighbours when one has a person more. Everything noised is a sum over people, so
//! the bound is on the norm of what one person adds. A person has at most `clip` events, and an
//! item at most `repeats` = r of them (`refold::clipped` cuts whatever was sealed under larger
//! settings).
//!
//! **Items** (`seen`, `rated`, `likes`): at most `clip` items, 1 each. `stars` are half stars less
//! 6 a rating, -4 to 4 an item: 16 `clip`.
//!
//! **Pairs** of two different items that were met: 1 for each of at most `clip (clip - 1) / 2`.
//!
//! **Greedy groups.** Let weights `w_1 >= w_2 >= ...` be split among entries, at most r of them to
//! each. The sum of the squares of the entries is largest when the first r go to one entry, the
//! next r to the second and so on: the k largest entries of any split have at most k r weights,
//! so together no more than the k first entries of this one, and all entries together have the
//! same. This split majorises every other, and a sum of squares is Schur-convex.
//!
//! **What was met first** (`starts`): the weights of at most ten events, an item at most r of
//! them: greedy groups of ten weights. **What was met lately** (`recent`): at most `clip` pairs of
//! a day and an item, at most r of an item, each weighing at most 64: greedy groups of `clip` times
//! 64.
//!
//! **Transitions.** The event at position p adds a vector `a_p` to the row of its item: the weights
//! of the lags 1 to `min(L, events after p)`, an item at most r of them. So `|a_p|^2` is at most
//! that of greedy groups. A row is the sum of at most r such vectors, and by Cauchy and Schwarz its
//! squared norm is at most r times the sum of theirs. All rows: `r sum_p |a_p|^2`. With r = 1 an
//! item stands once, and the bound is exact.

use crate::contribution::STARTS;
use crate::noise::{Group, RECENT_UNIT};
use crate::sums::{far_weights, near_weights};

/// The squared L2 norm of what one person adds to a group of sums, at most.
pub(super) fn squared(group: Group, clip: u32, repeats: u32) -> u128 {
    let clip = clip as usize;
    let most = repeats as usize;
    let events = clip as u128;
    match group {
        Group::Seen | Group::Rated | Group::Likes => events,
        Group::Stars => 16 * events,
        Group::Met => events * events.saturating_sub(1) / 2,
        Group::Near => transitions(&near_weights(), clip, most),
        Group::Far => transitions(&far_weights(), clip, most),
        Group::Starts => {
            let weights = near_weights();
            greedy(&weights[..STARTS.min(weights.len()).min(clip)], most)
        }
        Group::Recent => greedy(&vec![RECENT_UNIT; clip], most),
    }
}

/// The sum of squares of greedy groups; the weights fall.
fn greedy(weights: &[u64], most: usize) -> u128 {
    let groups = weights.chunks(most.max(1));
    let squares = groups.map(|group| {
        let sum: u128 = group.iter().map(|w| u128::from(*w)).sum();
        sum * sum
    });
    squares.sum()
}

fn transitions(weights: &[u64], clip: usize, most: usize) -> u128 {
    let of_position = |later: usize| greedy(&weights[..later.min(weights.len())], most);
    // An item of which an event stands r times needs r events at least.
    let rows = most.min(clip) as u128;
    rows * (0..clip).map(of_position).sum::<u128>()
}

#[cfg(test)]
mod tests {
    use lethe_learn::seed::{Seed, Stream};

    use super::*;
    use crate::contribution::Contribution;
    use crate::history::Interaction;
    use crate::noise::queries::Queries;
    use crate::refold::clipped;
    use crate::sums::Sums;

    const ITEMS: usize = 60;
    const DAY: i32 = 1_000;

    fn event(item: u32, day: i32, half_stars: u8) -> Interaction {
        Interaction {
            item,
            day,
            seen: true,
            half_stars: Some(half_stars),
            liked: half_stars > 6,
            hidden: false,
        }
    }

    fn norms(one: &Contribution) -> Vec<(Group, u128)> {
        let mut sums = Sums::new(ITEMS);
        sums.fold(one).expect("folds");
        let queries = Queries::of(&sums, DAY);
        let squares = |group: Group| {
            let rows = (0..ITEMS as u32).flat_map(|row| queries.row(group, row));
            let of_one = |value: i64| u128::from(value.unsigned_abs()).pow(2);
            (group, rows.map(of_one).sum())
        };
        Group::ALL.into_iter().map(squares).collect()
    }

    /// Events that try to add much: runs of an item, items in turns, few items, all newest days,
    /// extreme ratings; and random ones.
    fn attempt(rng: &mut Stream, events: usize) -> Vec<Interaction> {
        let items = 1 + rng.below(ITEMS);
        let run = 1 + rng.below(5);
        let how = rng.below(4);
        let days = [0, 1, 40][rng.below(3)];
        let mut all = vec![];
        for at in 0..events {
            let item = match how {
                0 => at / run % items,
                1 => at % items,
                2 => rng.below(items),
                _ => at % run + run * (at / (run * run)) % items,
            };
            let item = (item % ITEMS) as u32;
            let back = (events - at) * days / events.max(1);
            let half_stars = [2, 10, 2 + rng.below(9) as u8][rng.below(3)];
            all.push(event(item, DAY - 1 - back as i32, half_stars));
        }
        all
    }

    #[test]
    fn nobody_adds_more_than_the_bound() {
        let seed = Seed::from_u64(1);
        let mut nearest = vec![0.0f64; Group::ALL.len()];
        for turn in 0..4_000u32 {
            let mut rng = seed.derive("attempt", &[&turn.to_le_bytes()]).rng();
            let clip = 1 + rng.below(70) as u32;
            let repeats = 1 + rng.below(5) as u32;
            // More than counts: what is cut must be.
            let events = 2 * clip as usize;
            let events = attempt(&mut rng, events);
            let one = clipped(true, &events, ITEMS, clip, repeats).expect("within bounds");
            for (at, (group, got)) in norms(&one).into_iter().enumerate() {
                let most = squared(group, clip, repeats);
                assert!(got <= most, "{group:?}, {clip}, {repeats}: {got} > {most}");
                if most > 0 {
                    nearest[at] = nearest[at].max(got as f64 / most as f64);
                }
            }
        }
        for (group, nearest) in Group::ALL.into_iter().zip(nearest) {
            assert!(
                nearest > 0.9,
                "{group:?}: the attempts reach {nearest} only"
            );
        }
    }

    #[test]
    fn without_repetitions_the_bounds_are_exact() {
        let clip = 50;
        let events: Vec<Interaction> = (0..clip).map(|i| event(i, DAY - 1, 10)).collect();
        let one = clipped(true, &events, ITEMS, clip, 1).expect("within bounds");
        for (group, got) in norms(&one) {
            assert_eq!(got, squared(group, clip, 1), "{group:?}");
        }
    }
}
