//! Everything that a client keeps, behind one lock that is held for moments: never across the
//! network, training or ranking.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use lethe_proto::ids::ShardId;
use tokio::sync::Semaphore;

use crate::conditions::Guard;
use crate::erasure::PendingErasure;
use crate::events::Events;
use crate::history::{Cutoffs, Erasure, Joined, TrainingEvent};
use crate::lists::{Fallback, Held, Input, KEPT_ORDERS, Lazy, Ranked};
use crate::options::Options;
use crate::person::{KeptList, Person};
use crate::session::{Counters, Session};
use crate::vault::{self, FolderLock, IDENTITY, LIST, SNAPSHOT, Vault};
use crate::{Catalogue, ClientError, ClientModel, migrate};

/// Seconds since 1970, by this device's clock.
pub(crate) fn now_unix_s() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Why a client does nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The last handle is gone: the folder may be open elsewhere.
    Closed,
    /// Everything was erased.
    Erased,
}

/// What is on disk, and what follows from it.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) vault: Vault,
    pub(crate) person: Person,
    pub(crate) events: Events,
    /// The last list of the language model.
    pub(crate) list: Option<KeptList>,
    /// The newest snapshot.
    pub(crate) snapshot: Option<Arc<Lazy>>,
    /// Orders that were ranked last, newest last.
    pub(crate) ranked: VecDeque<Arc<Ranked>>,
    /// An order to erase that waits for consent.
    pub(crate) pending: Option<PendingErasure>,
    pub(crate) shard: Option<ShardId>,
    /// Items that the coordinator does not know.
    pub(crate) refused: BTreeSet<String>,
    pub(crate) ended: Option<Ended>,
    /// Given back with the last handle.
    pub(crate) lock: Option<FolderLock>,
}

/// What handles and the client's work share.
#[derive(Debug)]
pub(crate) struct Shared {
    local: Mutex<Local>,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) model: Option<Arc<ClientModel>>,
    pub(crate) guard: Guard,
    pub(crate) passes: Arc<Semaphore>,
    pub(crate) counters: Arc<Counters>,
    /// The session of the present identity.
    session: Mutex<Option<Arc<Session>>>,
    pub(crate) options: Options,
}

impl Shared {
    pub(crate) fn new(local: Local, options: Options) -> Self {
        Self {
            local: Mutex::new(local),
            catalogue: options.catalogue.clone(),
            model: options.model.clone(),
            guard: options.guard.clone(),
            passes: options
                .passes
                .clone()
                .unwrap_or_else(|| Arc::new(Semaphore::new(1))),
            counters: Arc::default(),
            session: Mutex::new(None),
            options,
        }
    }

    /// The local state. Every change of it is one assignment or ends with a write to disk, so that
    /// a panic elsewhere leaves nothing half done.
    pub(crate) fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The local state, unless the client has ended.
    pub(crate) fn alive(&self) -> Result<MutexGuard<'_, Local>, ClientError> {
        let local = self.local();
        match local.ended {
            None => Ok(local),
            Some(Ended::Closed) => Err(ClientError::Closed),
            Some(Ended::Erased) => Err(ClientError::Erased),
        }
    }

    pub(crate) fn session(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends connections at once; none is opened again.
    pub(crate) fn cut_off(&self) {
        if let Some(session) = self.session().take() {
            session.shut();
        }
    }
}

impl Local {
    /// Opens a folder, or begins one.
    pub(crate) fn open(folder: &std::path::Path, options: &Options) -> Result<Self, ClientError> {
        std::fs::create_dir_all(folder).map_err(crate::vault::io(folder))?;
        let mut lock = FolderLock::take(folder)?;
        if vault::ends_an_erasure(folder)? {
            lock = FolderLock::take(folder)?;
        }
        let vault = Vault::open(folder, options.key)?;
        migrate::take_over(&vault, &options.catalogue)?;
        let fresh = vault.read::<Person>(IDENTITY)?.is_none();
        let mut person = vault.person()?;
        let mut events = Events::open(&vault.history(), vault.key())?;
        let mut changed = fresh;
        if let Some(what) = person.erasing.take() {
            events.erase(&what)?;
            changed = true;
        }
        if person.cutoffs.is_none() && options.cutoffs.is_some() {
            person.cutoffs = options.cutoffs;
            changed = true;
        }
        if let Some(wanted) = options.contribute.filter(|c| *c == person.lists.opted_out) {
            person.lists.opted_out = !wanted;
            person.lists.to_withdraw = !wanted;
            changed = true;
        }
        let text = options.invitation.clone();
        let text = text.filter(|t| !t.trim().is_empty() && !crate::enrolment::tried(&person, t));
        if text.is_some() && text != person.invitation {
            person.invitation = text;
            changed = true;
        }
        let snapshot = held(&vault, &person, &options.catalogue)?;
        let list = match vault.read(LIST) {
            Err(ClientError::Sealed { .. }) => None,
            other => other?,
        };
        let local = Self {
            vault,
            person,
            events,
            list,
            snapshot,
            ranked: VecDeque::new(),
            pending: None,
            shard: None,
            refused: BTreeSet::new(),
            ended: None,
            lock: Some(lock),
        };
        if changed {
            local.save()?;
        }
        Ok(local)
    }

    /// Replaces the file of the identity.
    pub(crate) fn save(&self) -> Result<(), ClientError> {
        self.vault.write(IDENTITY, &self.person)
    }

    /// Likes and dislikes, oldest first.
    pub(crate) fn training(&self, catalogue: &Catalogue) -> Vec<TrainingEvent> {
        catalogue.training(self.events.iter())
    }

    /// What a join would offer now.
    pub(crate) fn to_join(&self, catalogue: &Catalogue) -> Joined {
        let events = self.training(catalogue);
        let cutoffs = self.person.cutoffs;
        Joined {
            cutoffs: cutoffs.unwrap_or_else(|| Cutoffs::of(events.len())),
            events,
        }
    }

    /// Removes the last list of the language model.
    pub(crate) fn drop_list(&mut self) -> Result<(), ClientError> {
        if self.list.take().is_none() {
            return Ok(());
        }
        self.vault.remove(LIST)
    }

    /// Snapshots up to `recalled` are recalled: nothing is made from them any more.
    pub(crate) fn recall_snapshot(&mut self, recalled: u64) -> Result<(), ClientError> {
        if recalled <= self.person.lists.recalled {
            return Ok(());
        }
        self.person.lists.recalled = recalled;
        let held = self.snapshot.as_ref();
        if held.is_some_and(|s| s.held.number <= recalled) {
            self.snapshot = None;
            self.ranked.clear();
            self.vault.remove(SNAPSHOT)?;
        }
        self.save()
    }

    /// Takes a snapshot that was verified.
    pub(crate) fn take_snapshot(&mut self, new: Arc<Lazy>) -> Result<(), ClientError> {
        self.vault.write(SNAPSHOT, &new.held)?;
        self.snapshot = Some(new);
        Ok(())
    }

    /// The snapshot that lists may be made from now, or why there is none.
    fn tables(&self) -> Result<Arc<Lazy>, Fallback> {
        match &self.snapshot {
            Some(_) if now_unix_s() >= self.person.lists.until => Err(Fallback::Expired),
            Some(held) => Ok(held.clone()),
            None if self.person.lists.seen > 0
                && self.person.lists.seen <= self.person.lists.recalled =>
            {
                Err(Fallback::Recalled)
            }
            None => Err(Fallback::NoSnapshot),
        }
    }

    /// A copy of what a list at `at` is made from. The tables are decoded by whoever has it,
    /// without the lock.
    pub(crate) fn input(&self, catalogue: &Arc<Catalogue>, at: Option<i64>) -> Undecoded {
        Undecoded {
            tables: self.tables(),
            events: catalogue.known(self.events.iter()),
            catalogue: catalogue.clone(),
            at: at.unwrap_or_else(now_unix_s),
        }
    }

    pub(crate) fn keep_ranked(&mut self, ranked: Arc<Ranked>) {
        if self.ranked.len() == KEPT_ORDERS {
            self.ranked.pop_front();
        }
        self.ranked.push_back(ranked);
    }

    /// Erases what orders name from everything that is here. `before` is done with the person's
    /// file in the same write in which the erasure begins.
    pub(crate) fn erase_some(
        &mut self,
        what: &Erasure,
        catalogue: &Catalogue,
        before: impl FnOnce(&mut Person),
    ) -> Result<(), ClientError> {
        let training = self.training(catalogue);
        let cutoffs = self.person.cutoffs;
        self.person.cutoffs = cutoffs.map(|c| c.without(&training, what));
        let left = |j: Option<Joined>| j.map(|j| j.without(what));
        self.person.joined = left(self.person.joined.take());
        self.person.offered = left(self.person.offered.take());
        before(&mut self.person);
        self.ranked.clear();
        // With what was counted, in one write: a device that stops here goes on when it is opened
        // again, and reports what it counted.
        self.person.erasing = Some(what.clone());
        self.save()?;
        self.events.erase(what)?;
        self.person.erasing = None;
        let saved = self.save();
        self.drop_list()?;
        self.vault.drop_frozen()?;
        self.vault.drop_feedback()?;
        saved
    }

    /// Destroys everything.
    pub(crate) fn erase(&mut self) -> Result<(), ClientError> {
        self.ended = Some(Ended::Erased);
        self.vault.erase()?;
        self.events.clear();
        self.person = Person::default();
        self.list = None;
        self.snapshot = None;
        self.ranked.clear();
        self.pending = None;
        self.lock = None;
        Ok(())
    }
}

/// What a list is made from, before the tables are decoded.
pub(crate) struct Undecoded {
    catalogue: Arc<Catalogue>,
    tables: Result<Arc<Lazy>, Fallback>,
    events: Vec<lethe_parts::event::Event>,
    at: i64,
}

impl Undecoded {
    pub(crate) fn decode(self) -> Input {
        let view = |lazy: Arc<Lazy>| lazy.view().ok_or(Fallback::NoSnapshot);
        Input {
            tables: self.tables.and_then(view),
            catalogue: self.catalogue,
            events: self.events,
            at: self.at,
        }
    }
}

/// The snapshot on disk. One that is damaged, or recalled, costs a fetch and nothing else.
fn held(
    vault: &Vault,
    person: &Person,
    catalogue: &Arc<Catalogue>,
) -> Result<Option<Arc<Lazy>>, ClientError> {
    let held = match vault.read::<Held>(SNAPSHOT) {
        Err(ClientError::Sealed { path }) => {
            tracing::warn!("{} is damaged: it is fetched again", path.display());
            vault.remove(SNAPSHOT)?;
            None
        }
        other => other?,
    };
    match held {
        Some(held) if held.number <= person.lists.recalled => {
            vault.remove(SNAPSHOT)?;
            Ok(None)
        }
        Some(held) => Ok(Some(Arc::new(Lazy::new(held, catalogue.clone())))),
        None => Ok(None),
    }
}
