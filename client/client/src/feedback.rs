//! Error feedback (Stich et al., NeurIPS 2018): what a compressed update leaves out is added to the
//! next.
//!
//! It begins with nothing at every stage, and the coordinator says which of the client's rounds
//! counted, so that a replay of the stage sends the same bytes.

use lethe_proto::ids::{EpochNo, RoundKey, ShardId};
use serde::{Deserialize, Serialize};

/// Rounds that are kept: a live one and a replay, each with the one before it.
const KEPT: usize = 4;

/// What was left out, by round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Feedback(Vec<(RoundKey, Vec<f32>)>);

/// A round as clients kept it before rounds had an epoch.
#[derive(Serialize, Deserialize)]
struct RoundV1 {
    shard: ShardId,
    generation: u32,
    stage: u16,
    round: u16,
}

/// The same as it was kept then: all of it is of the first epoch.
#[derive(Serialize, Deserialize)]
pub(crate) struct FeedbackV1(Vec<(RoundV1, Vec<f32>)>);

impl From<FeedbackV1> for Feedback {
    fn from(old: FeedbackV1) -> Self {
        let round = |r: RoundV1| RoundKey {
            epoch: EpochNo::FIRST,
            shard: r.shard,
            generation: r.generation,
            stage: r.stage,
            round: r.round,
        };
        Self(
            old.0
                .into_iter()
                .map(|(r, left)| (round(r), left))
                .collect(),
        )
    }
}

impl Feedback {
    /// What the update of a round left out.
    pub(crate) fn of(&self, round: RoundKey) -> Option<&[f32]> {
        self.0
            .iter()
            .find(|(r, _)| *r == round)
            .map(|(_, left)| &left[..])
    }

    /// Keeps what `round` left out and what the one that counted before it did.
    pub(crate) fn keep(&mut self, round: RoundKey, counted: Option<u16>, left: Vec<f32>) {
        let before = counted.map(|r| RoundKey { round: r, ..round });
        let same_stage =
            |r: &RoundKey| RoundKey { round: 0, ..*r } == RoundKey { round: 0, ..round };
        self.0.retain(|(r, _)| !same_stage(r) || Some(*r) == before);
        self.0.push((round, left));
        let many = self.0.len().saturating_sub(KEPT);
        self.0.drain(..many);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(generation: u32, round: u16) -> RoundKey {
        RoundKey {
            epoch: EpochNo::FIRST,
            shard: ShardId(0),
            generation,
            stage: 1,
            round,
        }
    }

    #[test]
    fn what_was_kept_before_epochs_is_of_the_first() {
        let old = RoundV1 {
            shard: ShardId(0),
            generation: 4,
            stage: 1,
            round: 2,
        };
        let bytes = lethe_proto::codec::to_bytes(&FeedbackV1(vec![(old, vec![1.5])]));
        let kept: FeedbackV1 =
            lethe_proto::codec::from_bytes(&bytes.expect("encodes"), 1 << 10).expect("decodes");
        let feedback = Feedback::from(kept);
        assert_eq!(feedback.of(round(4, 2)), Some(&[1.5][..]));
    }

    #[test]
    fn keeps_what_counted_and_the_newest() {
        let mut f = Feedback::default();
        f.keep(round(1, 0), None, vec![1.0]);
        // Round 1 was late: round 0 still is what counted last.
        f.keep(round(1, 1), Some(0), vec![2.0]);
        f.keep(round(1, 2), Some(0), vec![3.0]);
        assert_eq!(f.of(round(1, 0)), Some(&[1.0][..]));
        assert_eq!(f.of(round(1, 1)), None);
        f.keep(round(1, 5), Some(2), vec![4.0]);
        assert_eq!(
            (f.of(round(1, 0)), f.of(round(1, 2))),
            (None, Some(&[3.0][..]))
        );
        // A replay does not disturb the live round.
        for r in 0..9 {
            f.keep(round(2, r), r.checked_sub(1), vec![9.0]);
        }
        assert_eq!(f.of(round(1, 5)), Some(&[4.0][..]));
    }
}
