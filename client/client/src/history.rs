//! The likes and dislikes of a history, and the samples that they give to adapters.

use lethe_proto::ids::Digest;
use lethe_recsys::samples::{HISTORY, Part};
use serde::{Deserialize, Serialize};

/// A like or dislike: what the adapters are trained on, and what commitments are about. Events that
/// count as neither give none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingEvent {
    /// Item of the catalogue.
    pub item: String,
    /// Liked or not.
    pub liked: bool,
    /// Seconds since 1970.
    pub time: i64,
}

/// Events that are to be erased.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Erasure {
    /// Those with one of these items.
    pub(crate) items: Vec<String>,
    /// Those at or after this time, in seconds since 1970.
    pub(crate) from: Option<i64>,
}

impl Erasure {
    pub(crate) fn concerns(&self, item: &str, time: i64) -> bool {
        self.items.iter().any(|i| i == item) || self.from.is_some_and(|t| time >= t)
    }
}

/// Which likes and dislikes are for training, validation and test, by their position among all
/// likes and dislikes of the history. Without cutoffs the last tenth (at least one sample)
/// validates and the rest trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cutoffs {
    /// Events before this position train.
    pub train: usize,
    /// Events from `train` up to this position validate; later ones test.
    pub validate: usize,
}

impl Cutoffs {
    /// The default for a history of `n` events.
    pub fn of(n: usize) -> Self {
        Self {
            train: n - (n / 10).max(1).min(n),
            validate: n,
        }
    }

    /// The same division of `events` once some are gone.
    pub(crate) fn without(&self, events: &[TrainingEvent], what: &Erasure) -> Self {
        let left = |n: usize| {
            let lost = events[..n.min(events.len())]
                .iter()
                .filter(|e| what.concerns(&e.item, e.time))
                .count();
            n - lost
        };
        Self {
            train: left(self.train),
            validate: left(self.validate),
        }
    }

    fn part(&self, position: usize) -> Part {
        if position < self.train {
            Part::Train
        } else if position < self.validate {
            Part::Validation
        } else {
            Part::Test
        }
    }
}

/// The data that a client takes part with, as it was when it joined: what is recorded later waits
/// for the next epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// In chronological order.
    pub(crate) events: Vec<TrainingEvent>,
    /// How they are divided.
    pub(crate) cutoffs: Cutoffs,
}

impl Joined {
    pub(crate) fn samples(&self, part: Part) -> Vec<LocalSample<'_>> {
        samples(&self.events, self.cutoffs, part)
    }

    /// The events that train.
    pub(crate) fn train(&self) -> &[TrainingEvent] {
        &self.events[..self.cutoffs.train.min(self.events.len())]
    }

    pub(crate) fn commitment(&self, salt: &[u8; 32]) -> Digest {
        commitment(salt, self.train())
    }

    /// Without these events.
    pub(crate) fn without(&self, what: &Erasure) -> Self {
        let events = self
            .events
            .iter()
            .filter(|e| !what.concerns(&e.item, e.time))
            .cloned()
            .collect();
        Self {
            cutoffs: self.cutoffs.without(&self.events, what),
            events,
        }
    }
}

/// A sample: the target event and the positions of its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalSample<'a> {
    pub(crate) history: &'a [TrainingEvent],
    pub(crate) target: &'a TrainingEvent,
}

impl LocalSample<'_> {
    /// Identity of a sample: its target, not its position, so that erasing one leaves the choice of
    /// the others alone.
    pub(crate) fn id(&self) -> Vec<u8> {
        [self.target.item.as_bytes(), &self.target.time.to_le_bytes()].concat()
    }
}

/// Samples of one part, in order.
pub(crate) fn samples(
    events: &[TrainingEvent],
    cutoffs: Cutoffs,
    part: Part,
) -> Vec<LocalSample<'_>> {
    let of = |i: usize| LocalSample {
        history: &events[i - HISTORY..i],
        target: &events[i],
    };
    (HISTORY..events.len())
        .filter(|i| cutoffs.part(*i) == part)
        .map(of)
        .collect()
}

/// Salted commitment to the training events: what a checkpoint's lineage names instead of the data.
pub(crate) fn commitment(salt: &[u8; 32], train: &[TrainingEvent]) -> Digest {
    let rows: Vec<Vec<u8>> = train
        .iter()
        .map(|e| {
            [
                &[u8::from(e.liked)][..],
                &e.time.to_le_bytes(),
                e.item.as_bytes(),
            ]
            .concat()
        })
        .collect();
    let mut parts: Vec<&[u8]> = vec![b"lethe-history", salt];
    parts.extend(rows.iter().map(Vec::as_slice));
    Digest::of(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn erasure(items: &[&str]) -> Erasure {
        Erasure {
            items: items.iter().map(|i| (*i).to_owned()).collect(),
            from: None,
        }
    }

    #[test]
    fn parts_are_by_position_and_histories_strictly_before() {
        let events: Vec<TrainingEvent> = (0..30)
            .map(|i| TrainingEvent {
                item: i.to_string(),
                liked: i % 2 == 0,
                time: i,
            })
            .collect();
        let c = Cutoffs {
            train: 20,
            validate: 25,
        };
        let train = samples(&events, c, Part::Train);
        assert_eq!(train.len(), 10);
        assert_eq!(
            (
                train[0].target.time,
                train[0].history.len(),
                train[0].history[9].time
            ),
            (10, 10, 9)
        );
        assert_eq!(samples(&events, c, Part::Test).len(), 5);
        assert_eq!(
            Cutoffs::of(0),
            Cutoffs {
                train: 0,
                validate: 0
            }
        );
        assert_eq!(
            Cutoffs::of(30),
            Cutoffs {
                train: 27,
                validate: 30
            }
        );
        let joined = Joined { events, cutoffs: c };
        let gone = joined.without(&erasure(&["3", "21", "29"]));
        assert_eq!(
            (gone.events.len(), gone.cutoffs),
            (
                27,
                Cutoffs {
                    train: 19,
                    validate: 23
                }
            )
        );
        assert_ne!(joined.commitment(&[0; 32]), gone.commitment(&[0; 32]));
        assert_eq!(
            joined.commitment(&[0; 32]),
            joined.without(&erasure(&["25"])).commitment(&[0; 32]),
            "only training data"
        );
    }
}
