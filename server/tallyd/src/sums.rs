//! Who was in the sum of a round: what keeps a coordinator from asking for two sums that differ by
//! one person (`docs/secure-sums.md`).
//!
//! Rows are sealed under a key for each stage. When somebody leaves, the rows of their stages are
//! sealed anew without them, and the keys of before are destroyed.

use std::collections::{BTreeMap, BTreeSet};

use lethe_proto::masked::{MOST_KEPT, MasksAsked};
use lethe_store::StoreError;

use crate::TallydError;
use crate::office::{Office, SumRow};

/// A handle.
type Handle = [u8; 16];

/// Data folders of a coordinator whose deletions are counted.
const LINEAGES: usize = 64;

/// A stage of a shard, whatever generation it is trained in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StageId {
    /// Of the coordinator's data folder.
    pub(crate) lineage: [u8; 8],
    pub(crate) epoch: u32,
    pub(crate) shard: u16,
    pub(crate) stage: u16,
}

impl StageId {
    fn of(asked: &MasksAsked) -> Self {
        let round = &asked.round;
        Self {
            lineage: asked.lineage,
            epoch: round.epoch.0,
            shard: round.shard.0,
            stage: round.stage,
        }
    }
}

/// What is kept of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stage {
    /// Number of the key that its rows are sealed under.
    pub(crate) key: u32,
    pub(crate) rounds: BTreeMap<u16, SumRow>,
}

/// All rows.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    stages: BTreeMap<StageId, Stage>,
    /// Keys whose rows were sealed anew, and which may be there still.
    old_keys: BTreeSet<(StageId, u32)>,
    /// The highest number of a deletion that a coordinator has told, by its lineage.
    left: BTreeMap<[u8; 8], u64>,
}

/// Who is counted, by place in what was asked, and why others are not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) places: Vec<usize>,
    /// People of the sum of before who are not there.
    pub(crate) missing: usize,
    pub(crate) why: String,
}

/// Who may be summed: `asked` are the handles whose envelopes open, with their places; `before` are
/// those of the round's sum of before who have not left.
fn judge(before: Option<&SumRow>, asked: &[(usize, Handle)], least: usize) -> Counted {
    let nobody = |missing: usize, why: String| Counted {
        places: vec![],
        missing,
        why,
    };
    let mut places: Vec<usize> = asked.iter().map(|(place, _)| *place).collect();
    let mut why = String::new();
    if let Some(row) = before.filter(|row| !row.handles.is_empty()) {
        let there: BTreeSet<&Handle> = asked.iter().map(|(_, handle)| handle).collect();
        let missing = row.handles.iter().filter(|h| !there.contains(h)).count();
        if missing > 0 {
            let why = format!(
                "{missing} of {} people of the sum of before are missing, who have not left: two \
                 sums would tell their updates",
                row.handles.len()
            );
            return nobody(missing, why);
        }
        let known: BTreeSet<&Handle> = row.handles.iter().collect();
        let own = asked.iter().filter(|(_, handle)| known.contains(handle));
        places = own.map(|(place, _)| *place).collect();
        let more = asked.len() - places.len();
        if more > 0 {
            why = format!(
                "{more} people were not in the sum of before: two sums would tell their updates"
            );
        }
    }
    if places.len() < least {
        let why = format!(
            "{} people, expected at least {least}: a sum of fewer says too much of each",
            places.len()
        );
        return nobody(0, why);
    }
    Counted {
        places,
        missing: 0,
        why,
    }
}

impl Sums {
    /// Reads what is kept, and destroys keys that a crash has left.
    pub(crate) fn open(office: &Office) -> Result<Self, TallydError> {
        let mut sums = Self {
            stages: office.sums()?,
            old_keys: BTreeSet::new(),
            left: BTreeMap::new(),
        };
        let old = sums.stages.iter();
        let old = old.flat_map(|(id, stage)| (0..stage.key).map(|key| (*id, key)));
        sums.old_keys = old.collect();
        sums.destroy_old(office)?;
        Ok(sums)
    }

    /// The highest number of a deletion so far.
    pub(crate) fn have_left(&mut self, lineage: [u8; 8], left: u64) {
        // One coordinator has a tally, and few data folders.
        if self.left.len() > LINEAGES {
            self.left.clear();
        }
        let highest = self.left.entry(lineage).or_default();
        *highest = left.max(*highest);
    }

    /// Whether somebody has left since this was asked for.
    pub(crate) fn is_late(&self, asked: &MasksAsked) -> bool {
        let highest = self.left.get(&asked.lineage);
        highest.is_some_and(|highest| asked.left < *highest)
    }

    /// A coordinator with another data folder has other rounds, and knows people by other handles:
    /// nothing of before can be compared with what comes.
    fn begin_lineage(&mut self, office: &Office, lineage: [u8; 8]) -> Result<(), StoreError> {
        let others = self.stages.iter().filter(|(id, _)| id.lineage != lineage);
        let others: BTreeSet<(StageId, u32)> = others.map(|(id, stage)| (*id, stage.key)).collect();
        if others.is_empty() {
            return Ok(());
        }
        tracing::warn!("another coordinator asks for sums of masks: those of before are forgotten");
        office.destroy_sums(&others)?;
        self.stages.retain(|id, _| id.lineage == lineage);
        Ok(())
    }

    fn destroy_old(&mut self, office: &Office) -> Result<(), StoreError> {
        if self.old_keys.is_empty() {
            return Ok(());
        }
        office.destroy_sums(&self.old_keys)?;
        self.old_keys.clear();
        Ok(())
    }

    /// Who is counted in this round's sum. It is written down before it is answered.
    ///
    /// # Errors
    /// [`TallydError`]: it cannot be stored, or there is no room for more.
    pub(crate) fn count(
        &mut self,
        office: &Office,
        of: &MasksAsked,
        asked: &[(usize, Handle)],
        least: usize,
    ) -> Result<Counted, TallydError> {
        self.begin_lineage(office, of.lineage)?;
        let round = of.round.round;
        let id = StageId::of(of);
        let stage = self.stages.get(&id);
        let key = stage.map_or(0, |stage| stage.key);
        let before = stage.and_then(|stage| stage.rounds.get(&round));
        let counted = judge(before, asked, least);
        let known = before.is_some_and(|row| !row.handles.is_empty());
        if counted.places.is_empty() || known {
            return Ok(counted);
        }
        let rows = self.stages.values().flat_map(|s| s.rounds.values());
        let kept: usize = rows.map(|row| row.handles.len()).sum();
        if kept + asked.len() > MOST_KEPT {
            return Err(TallydError::TooManySums { most: MOST_KEPT });
        }
        let mut handles: Vec<Handle> = asked.iter().map(|(_, handle)| *handle).collect();
        handles.sort_unstable();
        let row = SumRow {
            key,
            left: of.left,
            handles,
        };
        office.keep_sums(&id, &BTreeMap::from([(round, row.clone())]))?;
        let stage = self.stages.entry(id).or_default();
        stage.rounds.insert(round, row);
        Ok(counted)
    }

    /// These have left, where `gone` says so of a row's [`SumRow::left`].
    ///
    /// # Errors
    /// It cannot be stored; it may be repeated.
    pub(crate) fn leave(
        &mut self,
        office: &Office,
        gone: impl Fn(&Handle, u64) -> bool,
    ) -> Result<(), StoreError> {
        let leaves = |row: &SumRow| row.handles.iter().any(|h| gone(h, row.left));
        let concerned = self.stages.iter();
        let concerned = concerned.filter(|(_, stage)| stage.rounds.values().any(leaves));
        let concerned: Vec<StageId> = concerned.map(|(id, _)| *id).collect();
        for id in concerned {
            let Some(stage) = self.stages.get(&id) else {
                continue;
            };
            let key = stage.key + 1;
            let mut rounds = stage.rounds.clone();
            for row in rounds.values_mut() {
                let asked = row.left;
                row.key = key;
                row.handles.retain(|h| !gone(h, asked));
            }
            office.keep_sums(&id, &rounds)?;
            self.old_keys.insert((id, key - 1));
            self.stages.insert(id, Stage { key, rounds });
        }
        self.destroy_old(office)
    }

    /// Rounds that are kept.
    pub(crate) fn rounds(&self) -> usize {
        self.stages.values().map(|s| s.rounds.len()).sum()
    }

    /// All rows, for whoever searches.
    pub(crate) fn handles(&self) -> impl Iterator<Item = &[Handle]> {
        let rows = self.stages.values().flat_map(|s| s.rounds.values());
        rows.map(|row| &row.handles[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(who: &[u8]) -> SumRow {
        SumRow {
            key: 0,
            left: 5,
            handles: who.iter().map(|w| [*w; 16]).collect(),
        }
    }

    fn asked(who: &[u8]) -> Vec<(usize, Handle)> {
        who.iter()
            .enumerate()
            .map(|(at, w)| (at, [*w; 16]))
            .collect()
    }

    fn places(before: Option<&[u8]>, now: &[u8]) -> Vec<usize> {
        judge(before.map(row).as_ref(), &asked(now), 3).places
    }

    #[test]
    fn two_sums_of_a_round_differ_by_nobody_who_is_there() {
        assert_eq!(places(None, &[1, 2, 3, 4]), [0, 1, 2, 3]);
        assert_eq!(places(None, &[1, 2]), [0; 0], "too few");
        let before = Some(&[1, 2, 3][..]);
        assert_eq!(
            places(before, &[3, 2, 1]),
            [0, 1, 2],
            "the same, in any order"
        );
        assert_eq!(
            places(before, &[9, 1, 2, 3]),
            [1, 2, 3],
            "one more is left out"
        );
        assert_eq!(places(before, &[1, 2]), [0; 0], "one less");
        assert_eq!(places(before, &[1, 2, 4]), [0; 0], "another one");
        assert_eq!(places(before, &[7, 8, 9]), [0; 0], "others");
        assert_eq!(
            places(Some(&[1, 2]), &[1, 2, 3]),
            [0; 0],
            "too few are left"
        );
        assert_eq!(places(Some(&[]), &[7, 8, 9]), [0, 1, 2], "all have left");
    }
}
