//! The sums of everybody who counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use lethe_parts::contribution::Contribution;
use lethe_parts::sums::Sums;
use lethe_parts::{Refused, refold};
use lethe_proto::ids::Digest;
use rayon::prelude::*;

use super::releasing::Noise;
use super::{Inner, Tally};
use crate::Statement;
use crate::cells::{Fold, State};
use crate::error::TallyError;
use crate::vault::VersionOf;

/// People whose contributions are in memory together while everybody is folded.
const CHUNK: usize = 8_192;

/// What folding everybody again gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refolded {
    /// People who count.
    pub people: u32,
    /// SHA-256 of the sums, without the salt of the signed text: for nobody but who may see the
    /// sums.
    pub digest: Digest,
    /// Whether what is served was solved from these sums, as its signed text says; none: nothing is
    /// served, or who counts has changed since.
    pub stated: Option<bool>,
    /// Whether the sums in memory have the same bytes; none: there are none.
    pub memory: Option<bool>,
    /// Whether the sums in the folder have the same bytes; none: none of these people are kept.
    pub folder: Option<bool>,
}

/// Contributions that are subtracted later at most: what is owed stays in memory until then.
const OWED: usize = CHUNK;

impl Inner {
    pub(super) fn drop_sums(&mut self) {
        self.sums = None;
        self.owed = vec![];
    }

    /// Subtracts what is owed, and adds what comes in.
    fn pay(&mut self, incoming: &[Contribution], cleared: &[u32]) -> Result<(), Refused> {
        let owed = std::mem::take(&mut self.owed);
        let Some(sums) = &mut self.sums else {
            return Ok(());
        };
        if owed.is_empty() && incoming.is_empty() && cleared.is_empty() {
            return Ok(());
        }
        // A job that solves keeps what it has: it is copied then.
        let sums = Arc::make_mut(sums);
        sums.unfold_all(&owed)?;
        sums.fold_all(incoming)?;
        sums.clear_items(cleared)
    }

    /// The same; sums that do not hold what they should are folded again when they are needed.
    pub(super) fn pay_or_drop(&mut self, incoming: &[Contribution], cleared: &[u32]) {
        if let Err(e) = self.pay(incoming, cleared) {
            tracing::error!("the sums are not what they should be ({e}): they are folded again");
            self.drop_sums();
        }
    }
}

/// Names what sums are made of: who counts with which version, what is cleared, and how much of
/// each version counts, where noise bounds it.
pub(super) fn basis(
    fold: &Fold,
    cleared: &BTreeSet<u32>,
    items: usize,
    noise: Option<&Noise>,
) -> [u8; 32] {
    let members = fold.cells.values().flatten();
    let mut members: Vec<(u64, u32)> = members.map(|m| (m.0.0, m.1.0)).collect();
    members.sort_unstable();
    let mut bytes = vec![];
    for (number, version) in members {
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&version.to_le_bytes());
    }
    let cleared: Vec<u8> = cleared.iter().flat_map(|i| i.to_le_bytes()).collect();
    let items = (items as u64).to_le_bytes();
    match noise {
        None => Digest::of(&[b"tally sums", &bytes, &cleared, &items]).0,
        Some(noise) => {
            let clip = noise.mechanism.clip.to_le_bytes();
            let repeats = noise.mechanism.repeats.to_le_bytes();
            let cut = [clip, repeats].concat();
            Digest::of(&[b"tally sums, cut", &bytes, &cleared, &items, &cut]).0
        }
    }
}

/// Everybody who counts, with the version that does.
fn counting(state: &State) -> Vec<VersionOf> {
    let members = state.members().iter();
    let counting = members.filter_map(|(number, member)| {
        Some(VersionOf {
            handle: state.handle(*number)?,
            version: member.counts.as_ref()?.0,
        })
    });
    counting.collect()
}

impl Tally {
    /// Contributions, in the order of their names.
    pub(super) fn contributions(&self, all: &[VersionOf]) -> Result<Vec<Contribution>, TallyError> {
        let items = self.items();
        let noise = self.noise();
        let read = |of: &VersionOf| {
            let content = self.vault.contribution(of)?;
            let (whole, events) = (content.whole, &content.events);
            // What was sealed under larger settings has more than the noise is made for.
            let read = match noise.map(|n| n.mechanism) {
                None => refold::contribution(whole, events, items),
                Some(m) => refold::clipped(whole, events, items, m.clip, m.repeats),
            };
            Ok(read?)
        };
        all.par_iter().map(read).collect()
    }

    /// Folds from nothing.
    fn fold_all(&self, all: &[VersionOf], cleared: &BTreeSet<u32>) -> Result<Sums, TallyError> {
        let cleared: Vec<u32> = cleared.iter().copied().collect();
        let chunks = all.chunks(CHUNK).map(|chunk| self.contributions(chunk));
        refold::fold(self.items(), &cleared, chunks)
    }

    /// The sums of nobody.
    pub(super) fn of_nobody(&self, cleared: &BTreeSet<u32>) -> Result<Sums, TallyError> {
        self.fold_all(&[], cleared)
    }

    /// Changes the sums in memory by what counts from now on, and by items that were cleared. Where
    /// people only went, they are subtracted before the sums are read again.
    pub(super) fn fold_in(
        &self,
        inner: &mut Inner,
        incoming: &[VersionOf],
        cleared: &BTreeSet<u32>,
    ) {
        if inner.sums.is_none() || (incoming.is_empty() && cleared.is_empty()) {
            if inner.owed.len() > OWED {
                inner.pay_or_drop(&[], &[]);
            }
            return;
        }
        let cleared: Vec<u32> = cleared.iter().copied().collect();
        match self.contributions(incoming) {
            Ok(incoming) => inner.pay_or_drop(&incoming, &cleared),
            Err(e) => {
                tracing::error!("what counts cannot be read ({e}): everybody is folded again");
                inner.drop_sums();
            }
        }
    }

    /// The sums of everybody who counts: those in memory, else those in the folder, else folded.
    pub(super) fn sums(&self, inner: &mut Inner) -> Result<Arc<Sums>, TallyError> {
        inner.pay_or_drop(&[], &[]);
        if let Some(sums) = &inner.sums {
            return Ok(sums.clone());
        }
        let sums = match self.kept_sums(&inner.state)? {
            Some(sums) => sums,
            None => self.fold_all(&counting(&inner.state), inner.state.cleared())?,
        };
        Ok(inner.sums.insert(Arc::new(sums)).clone())
    }

    fn kept_sums(&self, state: &State) -> Result<Option<Sums>, TallyError> {
        let basis = basis(
            &state.fold(),
            state.cleared(),
            self.items(),
            self.noise().as_ref(),
        );
        let Some(bytes) = self.vault.sums(basis)? else {
            return Ok(None);
        };
        let read = Sums::from_bytes(&bytes, self.items());
        Ok(read
            .ok()
            .filter(|s| s.people() as usize == state.counting()))
    }

    /// Whether the text of what is served names sums of this digest, if it is about who counts now
    /// and about the items that there are now.
    fn is_stated(&self, inner: &Inner, sums: &[u8; 32]) -> Option<bool> {
        let core = inner.state.core();
        // Items that are taken down recall what is served: they are the same.
        let same = inner.last.as_ref()?.fold.cells == inner.state.fold().cells;
        let newest = inner.kept.last().filter(|k| Some(k.number) == core.served);
        let newest = newest.filter(|_| same)?;
        // One of a shorter catalogue: the next is not there yet, and other sums are folded now.
        let items = lethe_parts::snapshot::decode(&newest.bytes).ok()?.items();
        if items != self.items() {
            return None;
        }
        let statement = Statement::open(&newest.note, self.verifier()).ok()?;
        Some(statement.sums == newest.salt.digest(sums).0)
    }

    /// Folds everybody who counts again, from what is sealed, and compares with the sums in memory
    /// and in the folder. None: something changed meanwhile; ask again.
    ///
    /// # Errors
    /// [`TallyError`]: something that counts cannot be read.
    pub fn refold(&self, now: u64) -> Result<Option<Refolded>, TallyError> {
        let mut guard = self.lock();
        self.settle(&mut guard, now)?;
        let forgets = guard.state.core().forgets;
        let changes = guard.state.core().changes;
        let all = counting(&guard.state);
        let cleared = guard.state.cleared().clone();
        drop(guard);
        let folded = self.fold_all(&all, &cleared);
        let mut guard = self.lock();
        if guard.doubt || guard.state.core().changes != changes {
            return Ok(None);
        }
        debug_assert_eq!(guard.state.core().forgets, forgets);
        let folded = folded?;
        guard.pay_or_drop(&[], &[]);
        let bytes = folded.to_bytes();
        let basis = basis(
            &guard.state.fold(),
            guard.state.cleared(),
            self.items(),
            self.noise().as_ref(),
        );
        let kept = self.vault.sums(basis)?;
        let digest = lethe_parts::snapshot::digest(&bytes);
        Ok(Some(Refolded {
            people: folded.people(),
            digest: Digest(digest),
            stated: self.is_stated(&guard, &digest),
            memory: guard.sums.as_ref().map(|s| **s == folded),
            folder: kept.map(|k| k == bytes),
        }))
    }
}
