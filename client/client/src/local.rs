//! Everything that a client keeps, behind one lock that is held for moments: never across the
//! network, training or ranking.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use lethe_proto::people::Standing;
use tokio::sync::Semaphore;

use crate::clock::{Clock, Moment};
use crate::conditions::Guard;
use crate::contributed;
use crate::epochs::{Old, Places, Told};
use crate::erasure::PendingErasure;
use crate::events::Events;
use crate::history::{Cutoffs, Erasure, Joined, TrainingEvent};
use crate::lists::{Fallback, Held, Input, KEPT_ORDERS, Lazy, ListId, Ranked};
use crate::options::{Options, TimeGranularity};
use crate::person::{KeptList, Lists, Person};
use crate::renew::Failed;
use crate::sealing::Sealing;
use crate::session::{Counters, Session};
use crate::vault::{self, EPOCHS, FolderLock, IDENTITY, LIST, SNAPSHOT, Vault};
use crate::versions::Known;
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
    /// What each epoch was joined with.
    pub(crate) places: Places,
    /// What the coordinator said of it last.
    pub(crate) told: Told,
    pub(crate) events: Events,
    /// The last list of the language model.
    pub(crate) list: Option<KeptList>,
    /// The newest snapshot.
    pub(crate) snapshot: Option<Arc<Lazy>>,
    /// Orders that were ranked last, newest last.
    pub(crate) ranked: VecDeque<Arc<Ranked>>,
    /// An order to erase that waits for consent.
    pub(crate) pending: Option<PendingErasure>,
    /// Items that the coordinator does not know.
    pub(crate) refused: BTreeSet<String>,
    pub(crate) sealing: Sealing,
    /// Events that the last sealed contribution left out.
    pub(crate) left_out: usize,
    /// Versions of the catalogue beyond the app's.
    pub(crate) known: Option<Known>,
    /// How the person stands, as the coordinator said last.
    pub(crate) standing: Option<Standing>,
    /// Orders are not carried out yet that an older copy of this folder lacks.
    pub(crate) owes: bool,
    /// The newest time at which the folder was used.
    pub(crate) clock: Clock,
    /// How exactly contributions say when.
    pub(crate) times: TimeGranularity,
    pub(crate) ended: Option<Ended>,
    /// Given back with the last handle.
    pub(crate) lock: Option<FolderLock>,
}

/// What handles and the client's work share.
#[derive(Debug)]
pub(crate) struct Shared {
    local: Mutex<Local>,
    /// The one in force: the app's, or a newer version of it. It is written under the local lock.
    catalogue: RwLock<Arc<Catalogue>>,
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
        let known = local.known.as_ref().map(|k| k.catalogue.clone());
        Self {
            catalogue: RwLock::new(known.unwrap_or_else(|| options.catalogue.clone())),
            local: Mutex::new(local),
            model: options.model.clone(),
            guard: options.guard.for_another(),
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

    /// The catalogue in force.
    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        let catalogue = self.catalogue.read();
        catalogue.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_catalogue(&self, catalogue: Arc<Catalogue>) {
        let own = self.catalogue.write();
        *own.unwrap_or_else(PoisonError::into_inner) = catalogue;
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
        let offered = crate::enrolment::offered(options)?;
        std::fs::create_dir_all(folder).map_err(crate::vault::io(folder))?;
        let mut lock = FolderLock::take(folder)?;
        if vault::ends_an_erasure(folder)? {
            lock = FolderLock::take(folder)?;
        }
        let pinned = options.pinned_key()?;
        let vault = Vault::open(folder, crate::key_store::key_of(options, folder)?)?;
        migrate::take_over(&vault, &options.catalogue)?;
        let fresh = vault.read::<Person>(IDENTITY)?.is_none();
        let mut person = vault.person()?;
        let events = Events::open(&vault.history(), vault.key())?;
        let mut changed = fresh;
        if person.cutoffs.is_none() && options.cutoffs.is_some() {
            person.cutoffs = options.cutoffs;
            changed = true;
        }
        if let Some(wanted) = options.contribute.filter(|c| *c == person.lists.opted_out) {
            person.lists.opted_out = !wanted;
            person.lists.to_withdraw = !wanted;
            changed = true;
            if !wanted {
                contributed::drop_all(&vault)?;
            }
        }
        let text = offered.filter(|t| !crate::enrolment::tried(&person, t));
        if text.is_some() && text != person.invitation {
            person.invitation = text;
            changed = true;
        }
        let sealing = Sealing::open(&vault)?;
        let known = Known::open(&vault, &options.catalogue)?;
        let newest = known.as_ref().map(|k| &k.catalogue);
        let snapshot = held(&vault, &person, newest.unwrap_or(&options.catalogue))?;
        let list = match vault.read(LIST) {
            Err(ClientError::Sealed { .. }) => None,
            other => other?,
        };
        let old = Old {
            joined: person.joined.take(),
            offered: person.offered.take(),
        };
        let takes_over = old.joined.is_some() || old.offered.is_some();
        let places = Places::of(&vault, old)?;
        if takes_over {
            // Before the other file is written without them.
            vault.write(EPOCHS, &places)?;
            changed = true;
        }
        let clock = Clock::open(&vault)?;
        let mut local = Self {
            vault,
            clock,
            person,
            places,
            told: Told::default(),
            events,
            list,
            snapshot,
            ranked: VecDeque::new(),
            pending: None,
            refused: BTreeSet::new(),
            sealing,
            left_out: 0,
            known,
            standing: None,
            owes: false,
            times: options.times,
            ended: None,
            lock: Some(lock),
        };
        if local.erase_files()?
            && let Err(e) = local.renew_key()
        {
            if local.ended.is_some() {
                return Err(e);
            }
            // Nothing of it is in the files. A full disk must not keep the app from opening them.
            tracing::warn!("an erasure is not complete, and is tried again at the next start: {e}");
        }
        local.drop_expired()?;
        local.pin(pinned)?;
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

    /// The last list of the language model, if it may be shown now.
    pub(crate) fn shown_list(&mut self) -> Result<Option<KeptList>, ClientError> {
        let Some(until) = self.list.as_ref().map(|l| l.until) else {
            return Ok(None);
        };
        match self.clock.ask(&self.vault, until) {
            Moment::Before => Ok(self.list.clone().filter(|l| !l.items.is_empty())),
            Moment::SetBack => Ok(None),
            Moment::After => self.drop_list().map(|()| None),
        }
    }

    /// What may not be shown any more goes, from memory and from disk: nobody may say that it is
    /// recalled to a device that stays away.
    fn drop_expired(&mut self) -> Result<(), ClientError> {
        self.shown_list()?;
        if self.snapshot.is_some() {
            let until = self.person.lists.until;
            if self.clock.ask(&self.vault, until) == Moment::After {
                self.drop_snapshot()?;
            }
        }
        Ok(())
    }

    /// Snapshots up to `recalled` are recalled: nothing is made from them any more.
    pub(crate) fn recall_snapshot(&mut self, recalled: u64) -> Result<(), ClientError> {
        if recalled <= self.person.lists.recalled {
            return Ok(());
        }
        let held = self.snapshot.as_ref();
        if held.is_some_and(|s| s.held.number <= recalled) {
            // The file first: what cannot be removed is tried again with the next answer.
            self.drop_snapshot()?;
        }
        self.person.lists.recalled = recalled;
        self.save()
    }

    /// No list is made from the snapshot any more.
    fn drop_snapshot(&mut self) -> Result<(), ClientError> {
        if self.snapshot.take().is_none() {
            return Ok(());
        }
        self.ranked.clear();
        self.vault.remove(SNAPSHOT)
    }

    /// The coordinator knows this person, or this device, no longer, and nobody will say any more
    /// what is recalled: what came from it goes. The person's own history stays, for which they
    /// have consented.
    pub(crate) fn was_refused(&mut self) -> Result<(), ClientError> {
        let seen = self.person.lists.seen;
        self.person.lists.contributed = None;
        contributed::drop_all(&self.vault)?;
        self.drop_list()?;
        self.vault.drop_frozen()?;
        self.vault.drop_feedback()?;
        self.recall_snapshot(seen)
    }

    /// Another coordinator: what the last one said of its lists says nothing about this one's.
    pub(crate) fn begin_lists(&mut self) -> Result<(), ClientError> {
        self.drop_snapshot()?;
        contributed::drop_all(&self.vault)?;
        self.begin_sealing()?;
        self.person.lists = Lists {
            opted_out: self.person.lists.opted_out,
            ..Lists::default()
        };
        self.save()
    }

    /// The key that was known is not counted on any more: lists begin from nothing.
    pub(crate) fn forget_tally(&mut self) -> Result<(), ClientError> {
        let to_withdraw = self.person.lists.to_withdraw;
        self.begin_lists()?;
        self.person.lists.to_withdraw = to_withdraw;
        self.save()
    }

    /// Takes a snapshot that was verified.
    pub(crate) fn take_snapshot(&mut self, new: Arc<Lazy>) -> Result<(), ClientError> {
        self.vault.write(SNAPSHOT, &new.held)?;
        self.snapshot = Some(new);
        Ok(())
    }

    /// The snapshot that lists may be made from now, or why there is none.
    fn tables(&mut self) -> Result<Arc<Lazy>, Fallback> {
        let lists = &self.person.lists;
        let until = lists.until;
        let recalled = lists.seen > 0 && lists.seen <= lists.recalled;
        // What a device had that had to give it up, and has got none since.
        let expired = lists.seen > 0 && until > 0;
        match (&self.snapshot, self.clock.ask(&self.vault, until)) {
            (Some(held), Moment::Before) => Ok(held.clone()),
            (Some(_), Moment::SetBack) => Err(Fallback::Expired),
            (Some(_), Moment::After) => {
                if let Err(e) = self.drop_snapshot() {
                    tracing::warn!("tables that have expired stay for now, unused: {e}");
                }
                Err(Fallback::Expired)
            }
            (None, _) if recalled => Err(Fallback::Recalled),
            (None, Moment::After) if expired => Err(Fallback::Expired),
            (None, _) => Err(Fallback::NoSnapshot),
        }
    }

    /// An order that was kept for its next pages, unless what it was made from may not be shown
    /// any more.
    pub(crate) fn kept_order(&mut self, list: ListId) -> Option<Arc<Ranked>> {
        if self.snapshot.is_some() && self.tables().is_err() {
            self.ranked.clear();
        }
        self.ranked.iter().find(|r| r.id == list).cloned()
    }

    /// A copy of what a list at `at` is made from. The tables are decoded by whoever has it,
    /// without the lock.
    pub(crate) fn input(&mut self, catalogue: &Arc<Catalogue>, at: Option<i64>) -> Undecoded {
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
        // Nothing counts before it is on disk: what fails here may be done again.
        let mut person = self.person.clone();
        person.cutoffs = person.cutoffs.map(|c| c.without(&training, what));
        before(&mut person);
        // With what was counted, in one write: a device that stops here goes on when it is opened
        // again, and reports what it counted.
        person.erasing = Some(what.clone());
        self.vault.write(IDENTITY, &person)?;
        self.person = person;
        self.finish_erasing()
    }

    /// Ends an erasure that has begun, if there is one.
    pub(crate) fn finish_erasing(&mut self) -> Result<(), ClientError> {
        match self.erase_files()? {
            true => self.renew_key(),
            false => Ok(()),
        }
    }

    /// Takes what is to be erased out of all files. False: nothing is.
    fn erase_files(&mut self) -> Result<bool, ClientError> {
        let Some(what) = self.person.erasing.clone() else {
            return Ok(false);
        };
        self.ranked.clear();
        self.events.erase(&what)?;
        self.places.erase(&what);
        self.save_places()?;
        self.list = None;
        self.vault.remove(LIST)?;
        // Whoever has to erase leaves the sums: nothing of it counts any more.
        contributed::drop_all(&self.vault)?;
        self.vault.drop_frozen()?;
        self.vault.drop_feedback()?;
        Ok(true)
    }

    /// Ends an erasure: the key under which the disk may still have what was erased is destroyed.
    /// The erasure is over in the file of the person that is sealed under the new one.
    fn renew_key(&mut self) -> Result<(), ClientError> {
        let mut person = self.person.clone();
        person.erasing = None;
        match self.vault.renew(&person, &mut || Ok(())) {
            Ok(()) => {}
            // The erasure is done again, and with it this.
            Err(Failed::Before(e)) => return Err(e),
            Err(Failed::After(e)) => {
                // What is written now would be replaced when the next start finishes it.
                self.ended = Some(Ended::Closed);
                return Err(e);
            }
        }
        self.person = person;
        match Events::open(&self.vault.history(), self.vault.key()) {
            Ok(events) => {
                self.events = events;
                Ok(())
            }
            Err(e) => {
                // The one that is open would write under the old key.
                self.ended = Some(Ended::Closed);
                Err(e)
            }
        }
    }

    /// Destroys everything.
    pub(crate) fn erase(&mut self) -> Result<(), ClientError> {
        self.ended = Some(Ended::Erased);
        self.vault.erase()?;
        self.events.clear();
        self.person = Person::default();
        self.places = Places::default();
        self.told = Told::default();
        self.list = None;
        self.snapshot = None;
        self.known = None;
        self.ranked.clear();
        self.pending = None;
        self.sealing = Sealing::Never;
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

#[cfg(test)]
mod tests {
    use lethe_proto::ids::EpochNo;
    use lethe_proto::lists::{Contributed, SharedEvent};

    use super::*;
    use crate::epochs::Offered;
    use crate::feedback_of_lists::{Outcome, Told};
    use crate::lists::{ListId, ListSource};
    use crate::log::Log;
    use crate::{EventTable, Item, LocalEvent};

    const GONE: &str = "gone-item";

    fn catalogue() -> Arc<Catalogue> {
        let item = |id: &str| Item {
            id: id.into(),
            title: id.into(),
            year: None,
            tags: vec![],
        };
        let items = vec![item(GONE), item("kept-item")];
        Catalogue::new(items, &EventTable::default(), None).expect("a catalogue")
    }

    /// Everything below a folder that opens with the key, as text.
    fn opened(folder: &std::path::Path, key: [u8; 32]) -> String {
        let vault = Vault::open(folder, Some(key)).expect("opens");
        let person = vault.person().expect("opens");
        let list: Option<KeptList> = vault.read(LIST).expect("opens");
        let log = Log::open(&vault.history(), vault.key()).expect("opens");
        let records = log.expect("is there").1;
        let sent = contributed::sent(&vault).expect("opens");
        let places = Places::of(&vault, Old::default()).expect("opens");
        format!("{person:?} {places:?} {list:?} {records:?} {sent:?}")
    }

    fn sent(items: &[&str]) -> Contributed {
        let event = |item: &&str| SharedEvent {
            item: (*item).into(),
            day: 1,
            half_stars: 0,
            flags: 1,
        };
        Contributed {
            source: [1; 16],
            whole: true,
            events: items.iter().map(event).collect(),
        }
    }

    fn full(folder: &std::path::Path, options: &Options) -> Local {
        let mut local = Local::open(folder, options).expect("opens");
        let events = vec![
            LocalEvent::liked(GONE, 1),
            LocalEvent::liked("kept-item", 2),
            LocalEvent::liked(GONE, 3),
        ];
        local.events.add(events).expect("adds");
        local.events.undo(None).expect("undoes");
        let told = Told {
            list: ListId::new(ListSource::PopularNow).expect("random"),
            item: GONE.into(),
            outcome: Outcome::Clicked,
            time: 4,
        };
        local.events.tell(told).expect("tells");
        let list = KeptList {
            items: vec![(GONE.into(), 0.5)],
            ..KeptList::default()
        };
        local.vault.write(LIST, &list).expect("writes");
        local.list = Some(list);
        contributed::keep(&local.vault, &sent(&[GONE, "kept-item"]), 5).expect("keeps");
        let data = local.to_join(&options.catalogue);
        let epoch = EpochNo(2);
        local.places.joined.insert(epoch, data.clone());
        local.places.joined.insert(EpochNo::FIRST, data.clone());
        local.places.offered = Some(Offered { epoch, data });
        local.save_places().expect("saves");
        local.save().expect("saves");
        local
    }

    fn what() -> Erasure {
        Erasure {
            items: vec![GONE.into()],
            from: None,
        }
    }

    #[test]
    fn what_is_erased_is_nowhere_on_disk() {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = Options::new(catalogue()).key([8; 32]);
        let mut local = full(dir.path(), &options);
        assert!(opened(dir.path(), [8; 32]).contains(GONE));
        local
            .erase_some(&what(), &options.catalogue, |p| p.removed.push((1, 1)))
            .expect("erases");
        let text = opened(dir.path(), [8; 32]);
        assert!(!text.contains(GONE), "{text}");
        assert!(text.contains("kept-item"));
        assert!(local.list.is_none() && local.person.erasing.is_none());
    }

    #[test]
    fn m1_an_erasure_renews_the_key_and_the_device_goes_on() {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = Options::new(catalogue());
        let mut local = full(dir.path(), &options);
        let before = local.vault.key();
        let old = std::fs::read(local.vault.history()).expect("reads");
        local
            .erase_some(&what(), &options.catalogue, |_| {})
            .expect("erases");
        let now = local.vault.key();
        assert_ne!(now, before);
        // It goes on under the new key, with the same name of the history, and after a start.
        let source = local.events.source;
        let more = vec![LocalEvent::liked("kept-item", 9)];
        local.events.add(more).expect("adds");
        drop(local);
        let local = Local::open(dir.path(), &options).expect("opens");
        assert_eq!(local.events.list().len(), 2);
        assert_eq!(local.events.source, source);
        assert_eq!(local.vault.key(), now);
        // The history of before is sealed under a key that is nowhere.
        std::fs::write(dir.path().join("old"), old).expect("writes");
        let opened = Log::open(&dir.path().join("old"), now);
        assert!(matches!(opened, Err(ClientError::Sealed { .. })));
    }

    #[test]
    fn m1_what_has_expired_goes_from_the_disk_also_of_a_device_that_stays_away() {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = Options::new(catalogue()).key([8; 32]);
        let mut local = full(dir.path(), &options);
        let soon = now_unix_s() + 90_000;
        local.list = local.list.take().map(|l| KeptList { until: soon, ..l });
        let list = local.list.clone().expect("one");
        local.vault.write(LIST, &list).expect("writes");
        let held = Held {
            number: 3,
            note: String::new(),
            items: vec![],
            got: 1,
            bytes: vec![],
        };
        local.person.lists.seen = 3;
        local.person.lists.until = soon;
        local.save().expect("saves");
        let tables = Arc::new(Lazy::new(held, options.catalogue.clone()));
        local.take_snapshot(tables).expect("takes");
        drop(local);
        let open = || Local::open(dir.path(), &options).expect("opens");
        let mut local = open();
        assert!(local.shown_list().expect("reads").is_some());
        assert!(local.tables().is_ok());
        // The device stays away until everything has expired.
        local.list = Some(KeptList {
            until: 5,
            ..list.clone()
        });
        local
            .vault
            .write(LIST, &KeptList { until: 5, ..list })
            .expect("writes");
        local.person.lists.until = 5;
        local.save().expect("saves");
        drop(local);
        let mut local = open();
        assert!(local.list.is_none() && local.snapshot.is_none());
        assert!(!dir.path().join("list").exists() && !dir.path().join("snapshot").exists());
        assert_eq!(local.tables().err(), Some(Fallback::Expired));
    }

    #[test]
    fn m1_a_device_that_is_refused_keeps_nothing_of_the_coordinators_and_its_own_history() {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = Options::new(catalogue()).key([8; 32]);
        let mut local = full(dir.path(), &options);
        local.was_refused().expect("drops");
        for file in ["list", "snapshot", "contributed", "feedback", "frozen"] {
            assert!(!dir.path().join(file).exists(), "{file}");
        }
        drop(local);
        let local = Local::open(dir.path(), &options).expect("opens");
        assert_eq!(local.events.list().len(), 2);
        assert!(local.list.is_none());
    }

    #[test]
    fn an_erasure_that_a_crash_cut_short_ends_at_the_next_start_and_counts_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = Options::new(catalogue()).key([8; 32]);
        let mut local = full(dir.path(), &options);
        // As far as the write of the person's file.
        local.person.removed.push((1, 1));
        local.person.erasing = Some(what());
        local.save().expect("saves");
        drop(local);
        let local = Local::open(dir.path(), &options).expect("opens");
        assert_eq!(local.events.list().len(), 1);
        assert_eq!(local.person.removed, [(1, 1)]);
        assert!(!opened(dir.path(), [8; 32]).contains("Event(EventId(0)"));
        let kept = contributed::sent(&local.vault).expect("reads");
        assert!(kept.is_empty(), "what was sent has the events: {kept:?}");
    }

    #[test]
    fn what_was_contributed_goes_with_whoever_leaves_the_lists() {
        let options = Options::new(catalogue()).key([8; 32]);
        let kept = |local: &Local| contributed::sent(&local.vault).expect("reads").len();
        let leaves: [&dyn Fn(&mut Local); 3] = [
            &|l| l.was_refused().expect("leaves"),
            &|l| l.begin_lists().expect("begins"),
            &|l| l.erase().expect("erases"),
        ];
        for leave in leaves {
            let dir = tempfile::tempdir().expect("tempdir");
            let mut local = full(dir.path(), &options);
            assert_eq!(kept(&local), 1);
            leave(&mut local);
            assert!(!dir.path().join("contributed").exists());
        }
        // An app that says so when it opens the folder.
        let dir = tempfile::tempdir().expect("tempdir");
        drop(full(dir.path(), &options));
        let local = Local::open(dir.path(), &options).expect("opens");
        assert_eq!(kept(&local), 1);
        drop(local);
        let out = Options::new(catalogue()).key([8; 32]).contribute(false);
        let local = Local::open(dir.path(), &out).expect("opens");
        assert_eq!(kept(&local), 0);
    }
}
