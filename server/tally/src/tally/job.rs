//! Heavy work: solving, packing, signing. A job owns what it works on; its result may come too
//! late.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use lethe_parts::content::Content;
use lethe_parts::snapshot::Packing;
use lethe_parts::sums::Sums;
use lethe_parts::{refold, solve};
use lethe_proto::ids::Digest;
use lethe_receipt::merkle::{Hash, Tree, leaf_hash};
use lethe_receipt::note::Signer;
use lethe_store::StoreError;

use super::change::Change;
use super::folding::basis;
use super::releasing::Release;
use super::served::{Published, Served, deltas};
use super::{Inner, Tally};
use crate::Statement;
use crate::cells::{Command, Fold, State, lint_pair};
use crate::error::TallyError;
use crate::vault::{Kept, Last, Salt};

/// Earlier snapshots that deltas lead from.
const EARLIER: usize = 3;

/// What is needed to make a snapshot.
pub struct Job {
    fold: Fold,
    root: Digest,
    forgets: u64,
    generation: u64,
    basis: [u8; 32],
    changed: u64,
    sums: Arc<Sums>,
    content: Arc<Content>,
    solve: solve::Settings,
    packing: Packing,
    day: i32,
    earlier: Vec<Kept>,
    signer: Arc<Signer>,
    release: Release,
}

/// What a job made.
pub struct Done {
    fold: Fold,
    forgets: u64,
    generation: u64,
    basis: [u8; 32],
    /// The sums, in their canonical bytes.
    sums: Vec<u8>,
    salt: Salt,
    release: Release,
    /// Names the content that it was solved with.
    content: [u8; 32],
    published: Arc<Published>,
}

/// What became of the result of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It is served.
    Published(Arc<Published>),
    /// Somebody left, an item was taken down or another snapshot was published meanwhile.
    TooLate,
}

/// Root of the Merkle tree (RFC 6962) of a fold. A leaf is a member's salted number and the salted
/// digest of the version that counts, 64 bytes; leaves are in the order of their hashes, so that
/// their places say nothing. Whoever has a member's salt can find the leaf; when the salt is
/// destroyed nobody can.
pub fn fold_root(leaves: impl IntoIterator<Item = (Digest, Digest)>) -> Digest {
    let leaves = leaves.into_iter();
    let mut hashes: Vec<Hash> = leaves
        .map(|leaf| leaf_hash(&[leaf.0.0, leaf.1.0].concat()))
        .collect();
    hashes.sort_unstable();
    Digest(Tree::from_leaves(hashes).root())
}

fn root(state: &State) -> Digest {
    let members = state.members().values();
    fold_root(members.filter_map(|m| Some((m.name, m.counts.as_ref()?.1))))
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job(snapshot {})", self.fold.number)
    }
}

impl Done {
    /// The number of the snapshot.
    pub fn number(&self) -> u64 {
        self.fold.number
    }
}

impl std::fmt::Debug for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Done(snapshot {})", self.fold.number)
    }
}

impl Job {
    /// Solves, packs and signs. Takes from half a second to minutes, and no lock.
    ///
    /// # Errors
    /// [`TallyError::NotMade`] for damaged sums, or a packing that devices could not read;
    /// [`TallyError::Seal`]: no randomness.
    pub fn run(self) -> Result<Done, TallyError> {
        let salt = Salt(lethe_seal::random()?);
        // The sums are written and hashed while they are solved: solving has steps that only one
        // thread can do.
        let write = || {
            let sums = self.sums.to_bytes();
            let digest = salt.digest(&lethe_parts::snapshot::digest(&sums));
            (sums, digest)
        };
        let make = || {
            let Self { sums, content, .. } = &self;
            let (solve, packing) = (&self.solve, &self.packing);
            match &self.release.drawn {
                None => refold::snapshot(sums, content, solve, packing, self.day),
                Some(drawn) => {
                    refold::noised_snapshot(sums, drawn, content, solve, packing, self.day)
                }
            }
        };
        let (made, written) = rayon::join(make, write);
        let (sums, digest) = written;
        let bytes = made?;
        let smallest = self.fold.cells.values().map(BTreeMap::len).min();
        let statement = Statement {
            number: self.fold.number,
            day: self.day,
            snapshot: lethe_parts::snapshot::digest(&bytes),
            sums: digest.0,
            fold: self.root.0,
            people: self.fold.people() as u64,
            cell: smallest.unwrap_or(0) as u64,
            changed: self.changed,
            k: self.solve.k,
            noise: self.release.stated,
        };
        let published = Published {
            note: statement.sign(&self.signer)?,
            statement,
            deltas: deltas(&self.earlier, &bytes)?,
            bytes: Arc::new(bytes),
        };
        Ok(Done {
            fold: self.fold,
            forgets: self.forgets,
            generation: self.generation,
            basis: self.basis,
            sums,
            salt,
            release: self.release,
            content: self.content.digest(),
            published: Arc::new(published),
        })
    }
}

impl Tally {
    /// What is needed to make the next snapshot, as of the beginning of `day` (since 1970).
    ///
    /// # Errors
    /// [`TallyError`]: the sums cannot be read or folded. [`TallyError::Budget`]: all snapshots
    /// have spent what they may, and one is served, or none ever was. Where one was recalled, the
    /// next has nobody in it.
    pub fn job(&self, day: i32, now: u64) -> Result<Job, TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        let release = self.release(&inner.state)?;
        let sums = match release.nobody {
            false => self.sums(inner)?,
            true => Arc::new(self.of_nobody(inner.state.cleared())?),
        };
        let state = &inner.state;
        let mut fold = state.fold();
        let mut root = root(state);
        if release.nobody {
            fold.cells.clear();
            root = fold_root([]);
        }
        let from = inner.kept.len().saturating_sub(EARLIER);
        Ok(Job {
            root,
            forgets: state.core().forgets,
            generation: state.core().generation,
            basis: basis(&fold, state.cleared(), self.items(), self.noise().as_ref()),
            changed: u64::from(state.settings().changed),
            sums,
            content: self.content(),
            solve: self.options.solve,
            packing: self.options.packing,
            day,
            earlier: inner.kept[from..].to_vec(),
            signer: self.signer.clone(),
            release,
            fold,
        })
    }

    /// Publishes what a job made, if it is not too late.
    ///
    /// # Errors
    /// [`TallyError::Store`]; it may be repeated. [`TallyError::Lint`] for a fault of this program.
    pub fn finish(&self, done: &Done, now: u64) -> Result<Finished, TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        if let Some(last) = &inner.last {
            let settings = last.lint_settings(inner.state.settings());
            lint_pair(&last.fold, &done.fold, &settings)?;
        }
        let command = Command::Publish {
            number: done.fold.number,
            forgets: done.forgets,
            cells: done.fold.cells.keys().copied().collect(),
            charge: done.release.charge,
        };
        let mut change = Change::default();
        if change.step(&mut inner.state, &command, now)?.is_empty() {
            return Ok(Finished::TooLate);
        }
        self.write_published(inner, done)?;
        self.serve(Served::Snapshot(done.published.clone()), &inner.state);
        Ok(Finished::Published(done.published.clone()))
    }

    fn write_published(&self, inner: &mut Inner, done: &Done) -> Result<(), TallyError> {
        inner.doubt = true;
        let changed = inner.state.take_changed();
        let new = Kept {
            number: done.fold.number,
            bytes: done.published.bytes.clone(),
            note: done.published.note.clone(),
            salt: done.salt,
            drawn: done.release.drawn,
        };
        let from = inner.kept.len().saturating_sub(EARLIER);
        inner.kept.drain(..from);
        let keep: Vec<u64> = inner.kept.iter().map(|k| k.number).collect();
        let last = Last {
            fold: done.fold.clone(),
            settings: *inner.state.settings(),
        };
        let before = inner.last.as_ref();
        self.vault
            .publish(&inner.state, &changed, &new, &keep, before, &last)?;
        inner.last = Some(last);
        inner.behind = inner.state.fold().cells != done.fold.cells;
        inner.solved = Some((done.fold.number, done.content));
        inner.kept.push(new);
        inner.doubt = false;
        Ok(())
    }

    /// Keeps the sums of a job that was published, sealed, so that the next start need not fold.
    /// Nobody waits for it. Returns whether they are kept: not those that were recalled meanwhile.
    ///
    /// # Errors
    /// [`TallyError::Store`]; nothing is lost then but time.
    pub fn keep_sums(&self, done: &Done) -> Result<bool, TallyError> {
        let _alone = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        let core = self.lock().state.core().clone();
        // The key of the generation seals nothing but what was published in it: whoever leaves
        // takes it along. After this moment a recall destroys the key.
        if core.served != Some(done.fold.number) || core.generation != done.generation {
            return Ok(false);
        }
        match self
            .vault
            .keep_sums(done.generation, done.basis, &done.sums)
        {
            Ok(()) => Ok(true),
            Err(TallyError::Store(StoreError::NoKey { .. })) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes the next snapshot, publishes it and keeps its sums.
    ///
    /// # Errors
    /// As [`Self::job`], [`Job::run`] and [`Self::finish`].
    pub fn publish(&self, day: i32, now: u64) -> Result<Finished, TallyError> {
        let done = self.job(day, now)?.run()?;
        let finished = self.finish(&done, now)?;
        if finished != Finished::TooLate {
            self.keep_sums(&done)?;
        }
        Ok(finished)
    }
}
