//! The handle that an app holds, and what it does on the device alone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lethe_proto::ids::ShardId;
use lethe_proto::limits::MAX_ID;
use lethe_proto::message::{Declined, Task};
use lethe_recsys::samples::Part;

use crate::actor::{self, Actor};
use crate::conditions::{Canceller, Conditions};
use crate::contributed;
use crate::erasure::PendingErasure;
use crate::feedback_of_lists::{Outcome, Told, counts};
use crate::lists::{Explanation, Input, ListId, Page, Query};
use crate::local::{Ended, Local, Shared, now_unix_s};
use crate::options::Options;
use crate::status::{SnapshotStatus, Status};
use crate::transfer::{self, Export};
use crate::vault::{self, FolderLock};
use crate::{Catalogue, ClientError, EventId, LocalEvent};

/// Most events of one call.
const MAX_AT_ONCE: usize = 200_000;

/// One person's client: a handle that is cheap to clone, and may be used from any thread.
///
/// Functions that are not `async` work on the device alone: they need no network and no runtime,
/// and answer while a round is running. Those that are `async` talk to the coordinator, one after
/// the other, on threads of their own; they may be awaited under any executor, and dropping the
/// future stops what it began. One that waits for work makes way for the others.
///
/// The folder belongs to this client and its clones until the last of them is dropped.
#[derive(Clone, Debug)]
pub struct Client(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) actor: Actor,
}

impl Inner {
    /// Gives the folder back. What is under way stops.
    fn leave(&self) {
        // Work that is still under way keeps nothing: the folder may be opened elsewhere.
        self.shared.guard.canceller().cancel();
        let mut local = self.shared.local();
        if local.ended.is_none() {
            local.ended = Some(Ended::Closed);
            local.vault.leave();
            local.events.close();
            local.lock = None;
        }
        drop(local);
        self.shared.cut_off();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What a [`Client::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// There was nothing to do.
    Nothing,
    /// Took part in a round.
    Trained,
    /// Was in a round that went on without it (late, or the coordinator restarted).
    RoundLost,
    /// Told the coordinator that it does not take part in the round, or measures nothing.
    Declined(Declined),
    /// Did not ask: the conditions do not hold. Ask again when they change.
    NotNow(Conditions),
    /// Reported validation errors.
    Validated,
    /// Erased items that the coordinator named.
    Erased,
    /// Was told to erase (almost) everything, and waits for the person's consent:
    /// [`Client::pending_erasure`].
    ConsentNeeded,
    /// Heard that other tables are served, or that what it had is recalled.
    Refreshed,
}

/// What a [`Client::refresh`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refreshed {
    /// There is a new snapshot.
    pub fetched: bool,
    /// The history was contributed.
    pub contributed: bool,
}

/// Work that the coordinator asked for; give it to [`Client::perform`].
#[derive(Debug)]
pub struct Assigned(pub(crate) Task);

/// Where the system's news about networks goes.
#[derive(Clone, Debug)]
pub struct Network(Arc<Shared>);

impl Network {
    /// The device has changed its network: the connection goes on from a new socket (QUIC
    /// migration, RFC 9000, 9), and with it what is being trained. Without this call the loss is
    /// noticed after 30 s without an answer, and the client connects again by itself.
    ///
    /// # Errors
    /// [`ClientError::Transport`] if no socket can be opened.
    pub fn changed(&self) -> Result<(), ClientError> {
        let session = self.0.session().clone();
        let Some(session) = session else {
            return Ok(());
        };
        // A socket belongs to the runtime on which it is opened.
        let runtime = actor::runtime(&self.0)?;
        let _on = runtime.enter();
        Ok(session.rebind()?)
    }
}

/// What was exchanged so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Updates and adapters, both ways.
    pub update_bytes: u64,
    /// Hidden states and gradients, both ways.
    pub activation_bytes: u64,
    /// Samples of the updates that were sent.
    pub samples: u64,
}

impl Client {
    /// Opens the client's folder, or begins one. It needs no network: an invitation is used by the
    /// first function that does.
    ///
    /// # Errors
    /// [`ClientError::InUse`] if another client has the folder; [`ClientError::Sealed`] if its
    /// files do not open with the key, [`ClientError::KeyLost`] if nobody brings one,
    /// [`ClientError::KeyStore`], [`ClientError::KeyInFolder`]; [`ClientError::Transport`] if the
    /// invitation does not parse; [`ClientError::Damaged`]; [`ClientError::TallyKey`];
    /// [`ClientError::Io`].
    pub fn open(folder: impl AsRef<Path>, options: Options) -> Result<Self, ClientError> {
        let local = Local::open(folder.as_ref(), &options)?;
        let shared = Arc::new(Shared::new(local, options));
        Ok(Self(Arc::new(Inner {
            shared,
            actor: Actor::default(),
        })))
    }

    /// Erases a folder without opening it, also with its key lost.
    ///
    /// # Errors
    /// [`ClientError::InUse`] if a client has it open: use [`Self::erase`]; [`ClientError::Io`].
    pub fn erase_folder(folder: impl AsRef<Path>) -> Result<(), ClientError> {
        let folder = folder.as_ref();
        if !folder.exists() {
            return Ok(());
        }
        let _lock = FolderLock::take(folder)?;
        vault::destroy(folder)
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// The catalogue in force: the one that the client was opened with, or a newer version of it
    /// that the coordinator has sent since.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.shared().catalogue()
    }

    /// Records an event. It is on disk when this returns, counts for lists at once, and for
    /// training from the next epoch on.
    ///
    /// # Errors
    /// As [`Self::record_all`].
    pub fn record(&self, event: LocalEvent) -> Result<EventId, ClientError> {
        let ids = self.record_all([event])?;
        let first = ids.first().copied();
        first.ok_or_else(|| ClientError::Internal("an event without a name".into()))
    }

    /// Records several events with one write; all or, after an error, none.
    ///
    /// # Errors
    /// [`ClientError::UnknownItem`], [`ClientError::BadEvent`]; [`ClientError::ConsentWithdrawn`];
    /// [`ClientError::TooMany`]; [`ClientError::Io`].
    pub fn record_all(
        &self,
        events: impl IntoIterator<Item = LocalEvent>,
    ) -> Result<Vec<EventId>, ClientError> {
        let events: Vec<LocalEvent> = events.into_iter().collect();
        if events.len() > MAX_AT_ONCE {
            return Err(ClientError::TooMany {
                got: events.len(),
                most: MAX_AT_ONCE,
            });
        }
        let catalogue = self.catalogue();
        for e in &events {
            catalogue.had(&e.item)?;
            check_value(e)?;
        }
        let mut local = self.shared().alive()?;
        check_consent(&local, &events)?;
        local.events.add(events)
    }

    /// Takes the event back that was recorded last, and returns it; `None` if there is none.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn undo_last(&self) -> Result<Option<LocalEvent>, ClientError> {
        self.shared().alive()?.events.undo(None)
    }

    /// Takes an event back, and returns it; `None` if there is none of that name. What was
    /// contributed of it is replaced by the next contribution.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn undo(&self, id: EventId) -> Result<Option<LocalEvent>, ClientError> {
        self.shared().alive()?.events.undo(Some(id))
    }

    /// The local history, oldest first.
    pub fn history(&self) -> Vec<LocalEvent> {
        self.shared().local().events.iter().cloned().collect()
    }

    /// The same, with the names of the events.
    pub fn named_history(&self) -> Vec<(EventId, LocalEvent)> {
        let local = self.shared().local();
        let named = local.events.list().iter();
        named.map(|s| (s.id, s.event.clone())).collect()
    }

    /// What a list is made from, decoded without the lock.
    fn input(&self, at: Option<i64>) -> Result<Input, ClientError> {
        let copied = self.shared().alive()?.input(&self.catalogue(), at);
        Ok(copied.decode())
    }

    /// A list for the person: from the whole catalogue or from candidates, without what they have
    /// met or hidden. It needs no network, no model and no events.
    ///
    /// # Errors
    /// [`ClientError::UnknownItem`] for a candidate; [`ClientError::ListGone`] for the next page of
    /// a list that is not kept any more (the last 8 are).
    pub fn top(&self, query: &Query) -> Result<Page, ClientError> {
        if let Some(after) = query.after {
            let kept = self.shared().alive()?.kept_order(after.list);
            let kept = kept.ok_or(ClientError::ListGone)?;
            return Ok(kept.page(after.offset, query.n));
        }
        let held = self.snapshot_number();
        let ranked = Arc::new(self.input(query.at)?.rank(query)?);
        let page = ranked.page(0, query.n);
        let mut local = self.shared().alive()?;
        // What was recalled while the list was made is not kept for another page.
        if local.snapshot.as_ref().map(|s| s.held.number) == held {
            local.keep_ranked(ranked);
        }
        Ok(page)
    }

    fn snapshot_number(&self) -> Option<u64> {
        let local = self.shared().local();
        local.snapshot.as_ref().map(|s| s.held.number)
    }

    /// Items that are met by those who meet `item`, or that are like it; `n` of them at most.
    ///
    /// # Errors
    /// [`ClientError::UnknownItem`].
    pub fn similar(&self, item: &str, n: usize) -> Result<Page, ClientError> {
        self.input(None)?.similar(item, n)
    }

    /// What people meet first, and lately; `n` items at most.
    ///
    /// # Errors
    /// [`ClientError::Erased`], [`ClientError::Closed`].
    pub fn popular(&self, n: usize) -> Result<Page, ClientError> {
        self.input(None)?.popular(n)
    }

    /// What is known about an item and this person, with the own events that speak for it: the
    /// one without which the score would fall most comes first.
    ///
    /// # Errors
    /// [`ClientError::UnknownItem`].
    pub fn explain(&self, item: &str) -> Result<Explanation, ClientError> {
        self.input(None)?.explain(item)
    }

    /// Keeps what the person did with an item of a list: counts are in [`Status::feedback`]. The
    /// newest 1,000 are kept, on the device only. It is no event: record one, too, where it tells
    /// something about the item.
    ///
    /// # Errors
    /// [`ClientError::UnknownItem`]; [`ClientError::Io`].
    pub fn feedback(
        &self,
        list: ListId,
        item: impl Into<String>,
        outcome: Outcome,
    ) -> Result<(), ClientError> {
        let told = Told {
            list,
            item: item.into(),
            outcome,
            time: now_unix_s(),
        };
        self.catalogue().had(&told.item)?;
        self.shared().alive()?.events.tell(told)
    }

    /// The history as JSON, for the person, a backup or another device; with the newest
    /// contributions to the sums of the lists that the coordinator accepted, as they were sent.
    ///
    /// # Errors
    /// [`ClientError::Erased`], [`ClientError::Closed`]; [`ClientError::Io`].
    pub fn export(&self) -> Result<Vec<u8>, ClientError> {
        let local = self.shared().alive()?;
        let sent = contributed::sent(&local.vault)?;
        Export::of(&local.events, sent).to_json()
    }

    /// Adds the events of an export that are not here yet, and returns how many that were. Events
    /// of items that the catalogue does not have are kept: a newer catalogue may have them again.
    ///
    /// # Errors
    /// [`ClientError::Export`] for anything else; [`ClientError::ConsentWithdrawn`];
    /// [`ClientError::Io`].
    pub fn import(&self, json: &[u8]) -> Result<usize, ClientError> {
        let export = Export::parse(json)?;
        if export.events.len() > MAX_AT_ONCE {
            return Err(ClientError::TooMany {
                got: export.events.len(),
                most: MAX_AT_ONCE,
            });
        }
        for e in &export.events {
            check_value(e)?;
        }
        let mut local = self.shared().alive()?;
        let new = transfer::new_events(&local.events, export.events);
        check_consent(&local, &new)?;
        Ok(local.events.add(new)?.len())
    }

    /// Erases everything on this device: history, identity, key. A key store
    /// ([`crate::Options::key_store`]) is told to remove its key. What the fleet learned is for the
    /// privacy team's `forget` to remove. After an error it may be called again.
    ///
    /// # Errors
    /// [`ClientError::Io`]; [`ClientError::KeyStore`], when everything else is erased.
    pub fn erase(&self) -> Result<(), ClientError> {
        self.shared().guard.canceller().cancel();
        let erased = self.shared().local().erase();
        self.shared().cut_off();
        erased?;
        match &self.shared().options.key_store {
            Some(store) => Ok(store.remove()?),
            None => Ok(()),
        }
    }

    /// Gives the folder back now, whatever other handles there are: they answer
    /// [`ClientError::Closed`], and so does what is under way. Without this call the folder is
    /// given back when the last handle is gone.
    pub fn release(&self) {
        self.0.leave();
    }

    /// Allows the coordinator to read what the person contributes from now on, if it has no tally
    /// of its own (any more). A device that has once sealed a contribution refuses that
    /// ([`ClientError::WouldContributeInClear`]): whoever runs the coordinator could otherwise ask
    /// for it. Call it when the operator has said so, and the person knows.
    ///
    /// What was known of the tally is forgotten, with its tables: the next key that the coordinator
    /// shows is kept. A key that the app pins ([`crate::Options::tally_key`]) goes on counting.
    ///
    /// # Errors
    /// [`ClientError::Erased`], [`ClientError::Closed`]; [`ClientError::Io`].
    pub fn accept_embedded(&self) -> Result<(), ClientError> {
        self.shared().alive()?.accept_embedded()
    }

    /// How the client is.
    pub fn status(&self) -> Status {
        let local = self.shared().local();
        let person = &local.person;
        let lists = &person.lists;
        let snapshot = local.snapshot.as_ref().map(|s| SnapshotStatus {
            number: s.held.number,
            items: s.held.items.len(),
            bytes: s.held.bytes.len(),
            got: s.held.got,
            until: lists.until,
        });
        Status {
            enrolled: person.identity.is_some(),
            invited: person.invitation.is_some(),
            subject: person.subject.as_ref().map(|s| s.as_str().to_owned()),
            certificate_until: person
                .identity
                .as_ref()
                .and_then(|i| i.validity().ok())
                .map(|v| v.until),
            events: local.events.list().len(),
            unknown_events: self.catalogue().unknown(local.events.iter()),
            catalogue: local.known.as_ref().map_or(1, |k| k.versions.newest()),
            training_samples: samples(&local),
            shard: local.shard(),
            trains: local.told.trains,
            epoch: local.places.newest().map(|(no, _)| no.0),
            needs: local.told.needs.clone(),
            snapshot,
            recalled: lists.recalled,
            contributing: !lists.opted_out,
            contributes: local.contributes(&self.shared().options),
            contributed: lists.contributed.map(|c| (c.at, c.events)),
            refused_items: local.refused.iter().cloned().collect(),
            left_out: local.left_out,
            feedback: counts(local.events.told()),
            consent_until: person.consent_until,
            pending_erasure: local.pending.clone(),
            restricted: local.is_restricted(),
            not_trained: local
                .standing
                .as_ref()
                .map_or_else(String::new, |s| s.not_trained.clone()),
        }
    }

    /// From when on consent is withdrawn, in seconds since 1970: nothing at or after that time is
    /// recorded.
    pub fn consent_until(&self) -> Option<i64> {
        self.shared().local().person.consent_until
    }

    /// The person consents again: what happens from now on may be recorded.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn consent(&self) -> Result<(), ClientError> {
        let mut local = self.shared().alive()?;
        local.person.consent_until = None;
        local.save()
    }

    /// Training samples of the data that counts in this epoch. A history of at most
    /// [`HISTORY`](lethe_recsys::samples::HISTORY) likes and dislikes gives none: the person is not
    /// trained on.
    pub fn training_samples(&self) -> usize {
        samples(&self.shared().local())
    }

    /// The shard this person's data is in, once the epoch has started.
    pub fn shard(&self) -> Option<ShardId> {
        self.shared().local().shard()
    }

    /// The order that waits for the person's consent, if there is one.
    pub fn pending_erasure(&self) -> Option<PendingErasure> {
        self.shared().local().pending.clone()
    }

    /// Bytes exchanged so far.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared().counters;
        Stats {
            update_bytes: counters.update_bytes.load(Ordering::Relaxed),
            activation_bytes: counters.activation_bytes.load(Ordering::Relaxed),
            samples: counters.samples.load(Ordering::Relaxed),
        }
    }

    /// What the device is doing now, as the app's function says.
    pub fn conditions(&self) -> Conditions {
        self.shared().guard.now()
    }

    /// Stops what is being trained, from another task or thread.
    pub fn canceller(&self) -> Canceller {
        self.shared().guard.canceller()
    }

    /// For whoever learns that the device has another network, while this client works.
    pub fn network(&self) -> Network {
        Network(self.shared().clone())
    }
}

fn samples(local: &Local) -> usize {
    local.joined().map_or(0, |j| j.samples(Part::Train).len())
}

fn check_value(e: &LocalEvent) -> Result<(), ClientError> {
    if e.item.is_empty() || e.item.len() > MAX_ID {
        return Err(ClientError::UnknownItem(e.item.clone()));
    }
    match e.value.is_finite() {
        true => Ok(()),
        false => Err(ClientError::BadEvent {
            item: e.item.clone(),
            value: e.value,
        }),
    }
}

fn check_consent(local: &Local, events: &[LocalEvent]) -> Result<(), ClientError> {
    match local.person.consent_until {
        Some(from) if events.iter().any(|e| e.time >= from) => {
            Err(ClientError::ConsentWithdrawn { from })
        }
        _ => Ok(()),
    }
}
