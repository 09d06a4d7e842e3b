//! The local history and the samples that it gives.

use lethe_proto::ids::Digest;
use lethe_recsys::samples::{HISTORY, Part};
use serde::{Deserialize, Serialize};

/// One event of the person on this device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalEvent {
    /// Item of the catalogue.
    pub item: String,
    /// Liked or not.
    pub liked: bool,
    /// Seconds since 1970.
    pub time: i64,
}

/// Which events are for training, validation and test, by position in the history. Without cutoffs the last tenth (at
/// least one sample) validates and the rest trains.
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
        Self { train: n - (n / 10).max(1).min(n), validate: n }
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

/// A sample: the target event and the positions of its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalSample<'a> {
    pub(crate) history: &'a [LocalEvent],
    pub(crate) target: &'a LocalEvent,
}

impl LocalSample<'_> {
    /// Identity of a sample: its target, not its position, so that erasing one leaves the choice of the others alone.
    pub(crate) fn id(&self) -> Vec<u8> {
        [self.target.item.as_bytes(), &self.target.time.to_le_bytes()].concat()
    }
}

/// Samples of one part, in order.
pub(crate) fn samples(events: &[LocalEvent], cutoffs: Cutoffs, part: Part) -> Vec<LocalSample<'_>> {
    let of = |i: usize| LocalSample { history: &events[i - HISTORY..i], target: &events[i] };
    (HISTORY..events.len()).filter(|i| cutoffs.part(*i) == part).map(of).collect()
}

/// Salted commitment to the training events: what a checkpoint's lineage names instead of the data.
pub(crate) fn commitment(salt: &[u8; 32], events: &[LocalEvent], cutoffs: Cutoffs) -> Digest {
    let rows: Vec<Vec<u8>> = events[..cutoffs.train.min(events.len())]
        .iter()
        .map(|e| [&[u8::from(e.liked)][..], &e.time.to_le_bytes(), e.item.as_bytes()].concat())
        .collect();
    let mut parts: Vec<&[u8]> = vec![b"lethe-history", salt];
    parts.extend(rows.iter().map(Vec::as_slice));
    Digest::of(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_by_position_and_histories_strictly_before() {
        let events: Vec<LocalEvent> =
            (0..30).map(|i| LocalEvent { item: i.to_string(), liked: i % 2 == 0, time: i }).collect();
        let c = Cutoffs { train: 20, validate: 25 };
        let train = samples(&events, c, Part::Train);
        assert_eq!(train.len(), 10);
        assert_eq!((train[0].target.time, train[0].history.len(), train[0].history[9].time), (10, 10, 9));
        assert_eq!(samples(&events, c, Part::Test).len(), 5);
        assert_eq!(Cutoffs::of(0), Cutoffs { train: 0, validate: 0 });
        assert_eq!(Cutoffs::of(30), Cutoffs { train: 27, validate: 30 });
        let other = commitment(&[0; 32], &events[1..], c);
        assert_ne!(commitment(&[0; 32], &events, c), other);
    }
}
