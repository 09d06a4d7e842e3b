//! Decoded copies of what is stored: nothing here decides, and all of it can be read again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use lethe_learn::apa::ErrorRow;
use lethe_ledger::{Contributor, Event, RunKey, ShardKey, ValueRef};
use lethe_proto::ids::{Digest, SubjectId};

use crate::aggregate::Contribution;
use crate::content::TrainState;
use crate::fatal;
use crate::rounds::Parts;

/// A shard's training state, as a value holds it.
#[derive(Clone)]
pub(crate) struct Trained {
    pub(crate) at: Option<ValueRef>,
    pub(crate) state: Arc<TrainState>,
}

/// What a release serves.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) release: u64,
    /// By shard number.
    pub(crate) parts: Vec<Arc<Parts>>,
}

/// How far the caches had come when something was read. What was read before a change is not kept
/// after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Changes of what is served, or of the error table.
    served: u64,
    /// Times that something was forgotten.
    forgotten: u64,
}

#[derive(Default)]
struct Content {
    seen: Seen,
    /// By generation of the run.
    trained: BTreeMap<u32, Trained>,
    /// What clients start from, by generation, with the hash of what it was made of.
    starts: BTreeMap<u32, (Digest, Arc<Parts>)>,
    /// Numbers of stored updates, by generation.
    contributions: BTreeMap<u32, BTreeMap<(u16, Contributor), Arc<Contribution>>>,
    served: Option<Arc<Served>>,
    /// The rows of the error table that count now.
    table: Option<Arc<Vec<ErrorRow>>>,
    /// Which shard each generation belongs to.
    shards: BTreeMap<u32, ShardKey>,
}

/// All caches of the shell.
#[derive(Default)]
pub(crate) struct Caches(Mutex<Content>);

impl Caches {
    fn content(&self) -> MutexGuard<'_, Content> {
        fatal::lock(&self.0)
    }

    /// Forgets everything: the state was read again.
    pub(crate) fn clear(&self) {
        let mut content = self.content();
        let seen = Seen {
            served: content.seen.served + 1,
            forgotten: content.seen.forgotten + 1,
        };
        *content = Content {
            seen,
            ..Content::default()
        };
    }

    /// Ask before something is read, and hand it over with what was read.
    pub(crate) fn seen(&self) -> Seen {
        self.content().seen
    }

    /// Forgets what these shards learned, and what these people sent.
    pub(crate) fn forget(&self, shards: &[ShardKey], people: &[SubjectId]) {
        let mut content = self.content();
        let gone: Vec<u32> = content
            .shards
            .iter()
            .filter(|(_, shard)| shards.contains(shard))
            .map(|(generation, _)| *generation)
            .collect();
        for generation in gone {
            content.trained.remove(&generation);
            content.starts.remove(&generation);
            content.contributions.remove(&generation);
            content.shards.remove(&generation);
        }
        for sent in content.contributions.values_mut() {
            sent.retain(|(_, (subject, _)), _| !people.contains(subject));
        }
        content.seen.served += 1;
        content.seen.forgotten += 1;
        content.served = None;
        content.table = None;
    }

    /// Forgets what events have changed.
    pub(crate) fn note(&self, events: &[Event]) {
        let mut content = self.content();
        for event in events {
            match event {
                Event::Released { .. } | Event::Recalled { .. } | Event::KeysDestroyed => {
                    content.seen.served += 1;
                    content.served = None;
                    content.table = None;
                }
                Event::ErrorsMeasured { .. } | Event::SetAside { .. } => {
                    content.seen.served += 1;
                    content.table = None;
                }
                Event::RoundCounted { stage, counted, .. } => {
                    if let Some(sent) = content.contributions.get_mut(&stage.generation) {
                        sent.retain(|(at, of), _| *at != stage.stage || !counted.contains(of));
                    }
                }
                Event::ReplayEnded { shard, .. } => {
                    let known = content.shards.clone();
                    for (generation, _) in known.iter().filter(|(_, s)| *s == shard) {
                        // The live run's is read again when it is asked for.
                        content.trained.remove(generation);
                        content.starts.remove(generation);
                    }
                }
                _ => {}
            }
        }
    }

    /// The state of a run, if it is the one that this value holds.
    pub(crate) fn trained(&self, run: &RunKey, at: Option<&ValueRef>) -> Option<Arc<TrainState>> {
        let content = self.content();
        let known = content.trained.get(&run.generation)?;
        (known.at.as_ref() == at).then(|| known.state.clone())
    }

    pub(crate) fn keep_trained(&self, run: &RunKey, trained: Trained, seen: Seen) {
        let mut content = self.content();
        if content.seen.forgotten != seen.forgotten {
            return;
        }
        content.shards.insert(run.generation, run.shard_key());
        content.trained.insert(run.generation, trained);
    }

    /// What clients of a run start from, if it was made of an adapter of this hash.
    pub(crate) fn start(&self, run: &RunKey, of: &Digest) -> Option<Arc<Parts>> {
        let content = self.content();
        let (known, parts) = content.starts.get(&run.generation)?;
        (known == of).then(|| parts.clone())
    }

    pub(crate) fn keep_start(&self, run: &RunKey, of: Digest, parts: Arc<Parts>, seen: Seen) {
        let mut content = self.content();
        if content.seen.forgotten != seen.forgotten {
            return;
        }
        content.shards.insert(run.generation, run.shard_key());
        content.starts.insert(run.generation, (of, parts));
    }

    /// The numbers of a stored update.
    pub(crate) fn contribution(&self, run: &RunKey, of: &Contributor) -> Option<Arc<Contribution>> {
        let content = self.content();
        let sent = content.contributions.get(&run.generation)?;
        sent.get(&(run.stage, of.clone())).cloned()
    }

    pub(crate) fn keep_contribution(
        &self,
        run: &RunKey,
        of: Contributor,
        contribution: Arc<Contribution>,
        seen: Seen,
    ) {
        let mut content = self.content();
        if content.seen.forgotten != seen.forgotten {
            return;
        }
        content.shards.insert(run.generation, run.shard_key());
        let sent = content.contributions.entry(run.generation).or_default();
        sent.insert((run.stage, of), contribution);
    }

    /// An update was not stored after all.
    pub(crate) fn drop_contribution(&self, run: &RunKey, of: &Contributor) {
        if let Some(sent) = self.content().contributions.get_mut(&run.generation) {
            sent.remove(&(run.stage, of.clone()));
        }
    }

    /// What a release serves, if it was decoded already.
    pub(crate) fn served(&self, release: u64) -> Option<Arc<Served>> {
        let content = self.content();
        content.served.clone().filter(|s| s.release == release)
    }

    pub(crate) fn keep_served(&self, served: Arc<Served>, seen: Seen) {
        let mut content = self.content();
        if content.seen == seen {
            content.served = Some(served);
        }
    }

    /// The error table.
    pub(crate) fn table(&self) -> Option<Arc<Vec<ErrorRow>>> {
        self.content().table.clone()
    }

    pub(crate) fn keep_table(&self, table: Arc<Vec<ErrorRow>>, seen: Seen) {
        let mut content = self.content();
        if content.seen == seen {
            content.table = Some(table);
        }
    }
}
