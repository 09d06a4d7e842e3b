//! The sum of the masks of a round (`docs/secure-sums.md`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use lethe_proto::ids::{RoundKey, SubjectId};
use lethe_proto::masked::{MasksAsked, MasksSummed, SealedSeed};
#[cfg(test)]
use lethe_proto::tally::SealingTerms;
use lethe_proto::tally::{TallyReply, TallyRequest};

use super::Lists;
use super::keeper::Keeper;
use super::party::Party;
use crate::CoordinatorError;
use crate::rounds::internal;

/// Longest wait for a sum: other shards' rounds wait behind it.
const PATIENCE: Duration = Duration::from_secs(120);

/// How soon a deletion ends the wait for an answer.
const LOOK: Duration = Duration::from_millis(20);

/// The masks of those whom a round counts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Masks {
    /// By place in what was asked, ascending.
    pub(crate) counted: Vec<usize>,
    /// How many people of the sum of before are not there.
    pub(crate) missing: u32,
    /// Their sum, `[values]`; empty where nobody counts.
    pub(crate) sum: Vec<u32>,
}

/// Checks an answer: the tally is the other party.
fn read(summed: &MasksSummed, asked: &MasksAsked) -> Result<Masks, String> {
    let counted: Vec<usize> = summed.counted.iter().map(|p| *p as usize).collect();
    let ascending = counted.windows(2).all(|pair| pair[0] < pair[1]);
    let there = counted.iter().all(|place| *place < asked.seeds.len());
    if !ascending || !there {
        return Err("names places that were not asked for".into());
    }
    let values = match counted.is_empty() {
        true => 0,
        false => asked.values as usize,
    };
    if summed.sum.len() != 4 * values {
        return Err(format!(
            "has {} bytes, expected {}",
            summed.sum.len(),
            4 * values
        ));
    }
    let values = summed.sum.chunks_exact(4);
    Ok(Masks {
        counted,
        missing: summed.missing,
        sum: values
            .map(|v| u32::from_le_bytes([v[0], v[1], v[2], v[3]]))
            .collect(),
    })
}

/// Asks on a thread of its own. None: whoever asked is not to wait any longer.
fn ask(
    party: &Arc<Party>,
    request: TallyRequest,
    cancelled: &AtomicBool,
) -> Result<Option<TallyReply>, CoordinatorError> {
    let (send, receive) = channel();
    let asker = party.clone();
    let thread = std::thread::Builder::new().name("lethe-masks".into());
    let spawned = thread.spawn(move || {
        // Who has stopped waiting does not hear it.
        let _ = send.send(asker.ask(request, PATIENCE));
    });
    spawned.map_err(|source| CoordinatorError::Threads { source })?;
    loop {
        match receive.recv_timeout(LOOK) {
            Ok(reply) => return reply.map(Some),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(internal(&"the thread that asks for masks has ended"));
            }
            Err(RecvTimeoutError::Timeout) if cancelled.load(Ordering::Relaxed) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

impl Lists {
    fn summing(&self) -> Result<(&Arc<Party>, [u8; 8]), CoordinatorError> {
        let Keeper::Party(party) = &self.keeper else {
            return Err(internal(&"there is no tally of its own that sums masks"));
        };
        let lineage = party.lineage();
        let lineage = lineage.ok_or_else(|| internal(&"the tally is asked for no masks"))?;
        Ok((party, lineage))
    }

    /// Whether the tally can be asked now: before anything is read for it.
    ///
    /// # Errors
    /// [`CoordinatorError::TallyAway`].
    pub(crate) fn may_sum(&self) -> Result<(), CoordinatorError> {
        self.summing()?.0.is_there()
    }

    /// Asks the tally for the sum of the masks of a round: `seeds` are everybody's who answered,
    /// `values` the length of each mask. A deletion does not wait for the answer: none, once
    /// `cancelled` says so.
    ///
    /// # Errors
    /// [`CoordinatorError::TallyAway`], [`CoordinatorError::WrongMasks`], and what it refuses.
    pub(crate) fn masks(
        &self,
        round: RoundKey,
        values: usize,
        seeds: Vec<(&SubjectId, Vec<u8>)>,
        quorum: usize,
        cancelled: &AtomicBool,
    ) -> Result<Option<Masks>, CoordinatorError> {
        let (party, lineage) = self.summing()?;
        let sealed = |(subject, envelope): (&SubjectId, Vec<u8>)| SealedSeed {
            handle: self.handle(subject).0,
            envelope,
        };
        let asked = MasksAsked {
            lineage,
            round,
            left: party.have_left(),
            values: u32::try_from(values).unwrap_or(u32::MAX),
            seeds: seeds.into_iter().map(sealed).collect(),
        };
        let Some(reply) = ask(party, TallyRequest::Masks(asked.clone()), cancelled)? else {
            return Ok(None);
        };
        let TallyReply::Masks(summed) = reply else {
            return party.unexpected();
        };
        let masks = read(&summed, &asked);
        let masks = masks.map_err(|why| CoordinatorError::WrongMasks { round, why })?;
        if quorum < summed.least as usize {
            return Err(CoordinatorError::MasksOfTooFew {
                quorum,
                least: summed.least,
            });
        }
        if masks.counted.len() < asked.seeds.len() {
            tracing::warn!(
                counted = masks.counted.len(),
                of = asked.seeds.len(),
                ?round,
                "the tally left people out of a round: {}",
                // Its words are for people, and no longer than a line.
                summed.why.chars().take(400).collect::<String>()
            );
        }
        Ok(Some(masks))
    }
}

/// For tests: what a device is told when it seals a mask; none: the tally is away.
#[cfg(test)]
impl Lists {
    pub(crate) fn masking(&self, subject: &SubjectId) -> Option<SealingTerms> {
        let Keeper::Party(party) = &self.keeper else {
            return None;
        };
        let terms = party.terms()?;
        Some(SealingTerms {
            key: terms.key,
            note: terms.note,
            handle: self.handle(subject).0,
            ticket: [0; 32],
        })
    }
}

#[cfg(test)]
mod tests {
    use lethe_proto::ids::{EpochNo, ShardId};

    use super::*;

    #[test]
    fn answers_that_do_not_fit_the_question_are_refused() {
        let seed = |n: u8| SealedSeed {
            handle: [n; 16],
            envelope: vec![],
        };
        let asked = MasksAsked {
            lineage: [1; 8],
            round: RoundKey {
                epoch: EpochNo::FIRST,
                shard: ShardId(0),
                generation: 1,
                stage: 1,
                round: 0,
            },
            left: 0,
            values: 2,
            seeds: vec![seed(1), seed(2)],
        };
        let answer = |counted: &[u32], bytes: usize| MasksSummed {
            counted: counted.to_vec(),
            least: 2,
            missing: 0,
            why: String::new(),
            sum: vec![1; bytes],
        };
        let good = read(&answer(&[0, 1], 8), &asked).expect("fits");
        assert_eq!(good.sum, [0x0101_0101; 2]);
        let nobody = read(&answer(&[], 0), &asked).expect("fits");
        assert!(nobody.counted.is_empty() && nobody.sum.is_empty());
        for (counted, bytes) in [
            (&[0, 2][..], 8),
            (&[1, 0], 8),
            (&[0, 0], 8),
            (&[0], 4),
            (&[0], 12),
            (&[], 8),
        ] {
            assert!(
                read(&answer(counted, bytes), &asked).is_err(),
                "{counted:?} {bytes}"
            );
        }
    }
}
