//! Sums of masks: what makes a round's sum of masked updates readable, and no update alone
//! (`docs/secure-sums.md`).

use std::collections::BTreeSet;
use std::sync::TryLockError;

use lethe_proto::masked::{
    ENVELOPE, MASK, MOST_MEMBERS, MOST_VALUES, MOST_WORK, MasksAsked, MasksSummed, SealedSeed,
    bound_to,
};
use lethe_proto::tally::{ANSWER, TallyReply};
use lethe_seal::{SealError, mask};
use rayon::prelude::*;

use super::work::aside;
use super::{Answer, Refused, Service, busy, invalid, locked, shared};
use crate::TallydError;

/// Nobody's mask is told alone, whatever cells are.
const LEAST: u32 = 2;

/// A handle, with the seed of its mask; none: the envelope does not open.
type Opened = Option<[u8; 32]>;

fn check(asked: &MasksAsked) -> Result<(), Refused> {
    let values = asked.values as usize;
    if !(1..=MOST_VALUES).contains(&values) {
        return Err(invalid(format!(
            "masks of {values} values, expected 1 to {MOST_VALUES}: train fewer layers, or a lower \
             rank"
        )));
    }
    let members = asked.seeds.len();
    if members > MOST_MEMBERS || members.saturating_mul(values) > MOST_WORK {
        return Err(invalid(format!(
            "{members} masks of {values} values, expected at most {MOST_MEMBERS}, and {MOST_WORK} \
             values in all: choose a smaller cohort"
        )));
    }
    let distinct: BTreeSet<&[u8; 16]> = asked.seeds.iter().map(|s| &s.handle).collect();
    if distinct.len() != members {
        return Err(invalid(format!(
            "{members} masks of {} people, expected one of each",
            distinct.len()
        )));
    }
    Ok(())
}

/// Adds masks up, on all threads.
fn sum(seeds: &[[u8; 32]], values: usize) -> Result<Vec<u32>, SealError> {
    let piece = seeds.len().div_ceil(rayon::current_num_threads()).max(1);
    let of = |seeds: &[[u8; 32]]| {
        let mut sum = vec![0; values];
        for seed in seeds {
            mask::add(seed, &mut sum)?;
        }
        Ok(sum)
    };
    let sums: Vec<Vec<u32>> = seeds.par_chunks(piece).map(of).collect::<Result<_, _>>()?;
    let mut sums = sums.into_iter();
    let mut total = sums.next().unwrap_or_else(|| vec![0; values]);
    for other in sums {
        for (to, more) in total.iter_mut().zip(other) {
            *to = to.wrapping_add(more);
        }
    }
    Ok(total)
}

impl Service {
    /// The sum of the masks of those who may be counted.
    pub(super) fn masks(&self, asked: &MasksAsked, now: u64) -> Answer {
        check(asked)?;
        let _alone = match self.masking.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(busy("another sum of masks is being made: ask again"));
            }
        };
        self.tend(now)?;
        let opened: Vec<Opened> = asked
            .seeds
            .par_iter()
            .map(|sealed| self.seed(asked, sealed, now))
            .collect();
        let there: Vec<(usize, [u8; 16])> = opened
            .iter()
            .enumerate()
            .filter(|(_, seed)| seed.is_some())
            .map(|(place, _)| (place, asked.seeds[place].handle))
            .collect();
        let least = self.lists.options().cells.least.max(LEAST);
        let counted = {
            // Nobody leaves between the decision and the writing.
            let _nobody_leaves = shared(&self.gate);
            let mut sums = locked(&self.sums);
            if sums.is_late(asked) {
                // Whoever left may be among those that are asked about.
                return Err(busy(
                    "somebody has left since this sum was asked for: ask again",
                ));
            }
            sums.count(&self.office, asked, &there, least as usize)?
        };
        let seeds: Vec<[u8; 32]> = counted.places.iter().filter_map(|p| opened[*p]).collect();
        let mut summed = MasksSummed {
            counted: counted.places.iter().map(|p| *p as u32).collect(),
            least,
            missing: counted.missing as u32,
            why: counted.why,
            sum: vec![],
        };
        let unread = asked.seeds.len() - there.len();
        if unread > 0 {
            let also = format!("{unread} envelopes do not open");
            let parts = [std::mem::take(&mut summed.why), also];
            summed.why = parts
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("; ");
        }
        if !seeds.is_empty() {
            let total = aside(|| sum(&seeds, asked.values as usize))?;
            summed.sum = total.iter().flat_map(|v| v.to_le_bytes()).collect();
        }
        Ok(TallyReply::Masks(summed))
    }

    fn seed(&self, asked: &MasksAsked, sealed: &SealedSeed, now: u64) -> Opened {
        if sealed.envelope.len() != ENVELOPE {
            return None;
        }
        let bound = bound_to(&sealed.handle, &asked.round, asked.values);
        let keys = shared(&self.sealing);
        let opened = keys.open_envelope(MASK, &bound, &sealed.envelope, ANSWER, now)?;
        opened.plain.try_into().ok()
    }

    /// These have left by a deletion. Whoever calls it holds the gate alone.
    pub(super) fn leave_sums(
        &self,
        gone: impl Fn(&[u8; 16], u64) -> bool,
    ) -> Result<(), TallydError> {
        self.with_space(|| locked(&self.sums).leave(&self.office, &gone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_masks_is_that_of_each() {
        let seeds: Vec<[u8; 32]> = (1..6).map(|s| [s; 32]).collect();
        let mut want = vec![0; 40_000];
        for seed in &seeds {
            mask::add(seed, &mut want).expect("a seed");
        }
        assert_eq!(sum(&seeds, 40_000).expect("sums"), want);
        assert_eq!(sum(&[], 3).expect("sums"), [0; 3]);
    }
}
