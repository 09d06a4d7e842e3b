//! Made-up people: samples of the task that nobody's data went into.
//!
//! A model can learn what a prompt asks (that somebody who liked nine films of ten will probably
//! like the next, that tastes follow genres) from people who never lived. What is trained on them
//! can be in the base of every shard: no deletion ever reaches it.

use lethe_learn::seed::{Seed, Stream};

use crate::data::Item;
use crate::features::item_features;
use crate::samples::{HISTORY, Part, TaskSample};

/// How strongly made-up people differ; in logits of liking an item.
const RATE: f32 = 1.2;
const TASTE: f32 = 1.0;

/// `n` samples, one of each made-up person, from the public catalogue alone. `event` counts them;
/// `user` does too.
///
/// A person has a rate of liking, normal in logits, and a taste, normal over [`item_features`];
/// each of their eleven items is drawn evenly from the catalogue and liked with the probability
/// that both give.
pub fn people(items: &[Item], n: usize, seed: &Seed) -> Vec<TaskSample> {
    if items.is_empty() {
        return vec![];
    }
    let features: Vec<Vec<f32>> = item_features(items).into_iter().map(unit).collect();
    (0..n as u32)
        .map(|person| {
            let mut rng = seed.derive("person", &[&person.to_le_bytes()]).rng();
            let rate = 0.2 + RATE * rng.normal();
            let taste: Vec<f32> = (0..features[0].len())
                .map(|_| TASTE * rng.normal())
                .collect();
            let mut history: Vec<(u32, bool)> = (0..=HISTORY)
                .map(|_| meets(&mut rng, rate, &taste, &features))
                .collect();
            let (item, label) = history.pop().unwrap_or_default();
            TaskSample {
                user: person,
                item,
                event: person,
                history,
                label,
                part: Part::Train,
            }
        })
        .collect()
}

fn meets(rng: &mut Stream, rate: f32, taste: &[f32], features: &[Vec<f32>]) -> (u32, bool) {
    let item = rng.below(features.len());
    let logit = rate
        + taste
            .iter()
            .zip(&features[item])
            .map(|(t, f)| t * f)
            .sum::<f32>();
    (item as u32, rng.unit() < 1.0 / (1.0 + (-logit).exp()))
}

fn unit(v: Vec<f32>) -> Vec<f32> {
    let length = v.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
    v.into_iter().map(|x| x / length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Vec<Item> {
        let tags = ["Drama", "Comedy", "War"];
        let item = |i: usize| Item {
            id: i.to_string(),
            title: format!("t{i}"),
            year: None,
            tags: vec![tags[i % 3].into()],
        };
        (0..60).map(item).collect()
    }

    #[test]
    fn a_person_does_not_depend_on_how_many_there_are() {
        let (few, more) = (
            people(&items(), 3, &Seed::from_u64(1)),
            people(&items(), 9, &Seed::from_u64(1)),
        );
        assert_eq!(few[..], more[..3]);
        assert_ne!(few, people(&items(), 3, &Seed::from_u64(2)));
        assert!(people(&[], 3, &Seed::from_u64(1)).is_empty());
    }

    #[test]
    fn the_past_tells_about_the_target() {
        let all = people(&items(), 4000, &Seed::from_u64(1));
        let liked = |s: &TaskSample| s.history.iter().filter(|h| h.1).count();
        let rate =
            |of: &[&TaskSample]| of.iter().filter(|s| s.label).count() as f32 / of.len() as f32;
        let many: Vec<&TaskSample> = all.iter().filter(|s| liked(s) >= 8).collect();
        let few: Vec<&TaskSample> = all.iter().filter(|s| liked(s) <= 2).collect();
        assert!(
            rate(&many) > 0.7 && rate(&few) < 0.3,
            "{} and {}",
            rate(&many),
            rate(&few)
        );
        // Within a person's rate the taste decides: items of the target's genre were liked as the
        // target is.
        let agrees = |same: bool| {
            let (mut agree, mut n) = (0, 0);
            for s in &all {
                for (_, liked) in s.history.iter().filter(|h| (h.0 % 3 == s.item % 3) == same) {
                    (agree, n) = (agree + u32::from(*liked == s.label), n + 1);
                }
            }
            f64::from(agree) / f64::from(n)
        };
        let (same, other) = (agrees(true), agrees(false));
        assert!(
            same > other + 0.05,
            "{same} within a genre, {other} over genres"
        );
    }
}
