//! The client as other languages hold it.

use std::sync::Arc;

use lethe_client::{Client, Done, EventId, ListId, Options, Query, Refreshed};

use crate::{
    FfiConditions, FfiError, FfiEvent, FfiExplanation, FfiOptions, FfiOutcome, FfiPage,
    FfiPendingErasure, FfiQuery, FfiRecommendation, FfiRecorded, FfiStatus,
};

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FfiDone {
    /// There was nothing to do.
    Nothing,
    /// Took part in a round.
    Trained,
    /// Was in a round that went on without it (late, or the coordinator restarted).
    RoundLost,
    /// Told the coordinator that it does not take part in the round, or measures nothing.
    Declined {
        /// Why, in words.
        why: String,
    },
    /// Did not ask: the conditions do not hold. Ask again when they change.
    NotNow {
        /// What holds.
        holds: FfiConditions,
    },
    /// Reported validation errors.
    Validated,
    /// Erased items that the coordinator named, or everything.
    Erased,
    /// Was told to erase (almost) everything, and waits for the person's consent.
    ConsentNeeded,
    /// Heard that other tables are served, or that what it had is recalled.
    Refreshed,
}

/// What a refresh did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FfiRefreshed {
    /// There are new tables.
    pub fetched: bool,
    /// The history was contributed.
    pub contributed: bool,
}

impl From<Done> for FfiDone {
    fn from(done: Done) -> Self {
        match done {
            Done::Nothing => Self::Nothing,
            Done::Trained => Self::Trained,
            Done::RoundLost => Self::RoundLost,
            Done::Declined(why) => Self::Declined {
                why: format!("{why:?}"),
            },
            Done::NotNow(holds) => Self::NotNow {
                holds: holds.into(),
            },
            Done::Validated => Self::Validated,
            Done::Erased => Self::Erased,
            Done::ConsentNeeded => Self::ConsentNeeded,
            Done::Refreshed => Self::Refreshed,
        }
    }
}

impl From<Refreshed> for FfiRefreshed {
    fn from(refreshed: Refreshed) -> Self {
        Self {
            fetched: refreshed.fetched,
            contributed: refreshed.contributed,
        }
    }
}

/// Erases a folder without opening it, also with its key lost.
#[uniffi::export]
pub fn erase_folder(folder: String) -> Result<(), FfiError> {
    Ok(Client::erase_folder(folder)?)
}

/// Opens a client's folder, or begins one. It needs no network: an invitation is used by the first
/// function that does.
// No constructor: UniFFI 0.32 forgets these when types get other names in Kotlin.
#[uniffi::export]
pub fn open_client(folder: String, options: FfiOptions) -> Result<Arc<FfiClient>, FfiError> {
    let client = Client::open(folder, Options::try_from(options)?)?;
    Ok(Arc::new(FfiClient(client)))
}

/// One person's history on this device, the lists that are made of it, and the line to the
/// coordinator. It may be used from any thread. A folder belongs to one client at a time.
#[derive(Debug, uniffi::Object)]
pub struct FfiClient(Client);

#[uniffi::export]
impl FfiClient {
    /// Records an event. It is on disk when this returns, counts for lists at once, and for
    /// training from the next epoch on. Returns its name, for `undo`.
    pub fn record(&self, event: FfiEvent) -> Result<u64, FfiError> {
        Ok(self.0.record(event.into())?.number())
    }

    /// Records several events with one write; all or, after an error, none.
    pub fn record_all(&self, events: Vec<FfiEvent>) -> Result<Vec<u64>, FfiError> {
        let ids = self.0.record_all(events.into_iter().map(Into::into))?;
        Ok(ids.into_iter().map(EventId::number).collect())
    }

    /// Takes an event back, and returns it; none if there is none of that name.
    pub fn undo(&self, id: u64) -> Result<Option<FfiEvent>, FfiError> {
        Ok(self.0.undo(EventId::from_number(id))?.map(Into::into))
    }

    /// Takes the event back that was recorded last, and returns it; none if there is none.
    pub fn undo_last(&self) -> Result<Option<FfiEvent>, FfiError> {
        Ok(self.0.undo_last()?.map(Into::into))
    }

    /// The history, oldest first.
    pub fn history(&self) -> Vec<FfiRecorded> {
        let named = self.0.named_history().into_iter();
        named.map(|n| FfiRecorded::of(n.0, n.1)).collect()
    }

    /// A list for the person: from the whole catalogue or from candidates, without what they have
    /// met or hidden. It needs no network, no model and no events.
    pub fn top(&self, query: FfiQuery) -> Result<FfiPage, FfiError> {
        Ok(self.0.top(&Query::from(query))?.into())
    }

    /// Items that are met by those who meet `item`, or that are like it; `n` of them at most.
    pub fn similar(&self, item: String, n: u32) -> Result<FfiPage, FfiError> {
        Ok(self.0.similar(&item, n as usize)?.into())
    }

    /// What people meet first, and lately; `n` items at most.
    pub fn popular(&self, n: u32) -> Result<FfiPage, FfiError> {
        Ok(self.0.popular(n as usize)?.into())
    }

    /// What is known about an item and this person, with the own events that speak for it.
    pub fn explain(&self, item: String) -> Result<FfiExplanation, FfiError> {
        Ok(self.0.explain(&item)?.into())
    }

    /// Keeps what the person did with an item of a list, on the device only. It is no event: record
    /// one, too, where it tells something about the item.
    pub fn feedback(&self, list: u64, item: String, outcome: FfiOutcome) -> Result<(), FfiError> {
        let list = ListId::from_number(list);
        Ok(self.0.feedback(list, &item, outcome.into())?)
    }

    /// The history as JSON, for the person, a backup or another device.
    pub fn export_history(&self) -> Result<Vec<u8>, FfiError> {
        Ok(self.0.export()?)
    }

    /// Adds the events of an export that are not here yet, and returns how many that were.
    pub fn import_history(&self, json: Vec<u8>) -> Result<u32, FfiError> {
        Ok(crate::status::count(self.0.import(&json)?))
    }

    /// Erases everything on this device: history, identity, key (the key store's, too). What the
    /// fleet learned is for the operator's `forget` to remove. After an error it may be called
    /// again.
    pub fn erase(&self) -> Result<(), FfiError> {
        Ok(self.0.erase()?)
    }

    /// Gives the folder back now: what is under way stops, and every function but this one answers
    /// that the client is closed.
    pub fn release(&self) {
        self.0.release();
    }

    /// How the client is.
    pub fn status(&self) -> FfiStatus {
        self.0.status().into()
    }

    /// The person consents again: what happens from now on may be recorded.
    pub fn consent(&self) -> Result<(), FfiError> {
        Ok(self.0.consent()?)
    }

    /// The order to erase (almost) everything that waits for the person's consent.
    pub fn pending_erasure(&self) -> Option<FfiPendingErasure> {
        self.0.pending_erasure().map(Into::into)
    }

    /// Allows the coordinator to read what the person contributes from now on, if it has no tally
    /// of its own (any more). Call it when the operator has said so, and the person knows.
    pub fn accept_embedded(&self) -> Result<(), FfiError> {
        Ok(self.0.accept_embedded()?)
    }

    /// Stops what is being trained now, from any thread.
    pub fn cancel(&self) {
        self.0.canceller().cancel();
    }

    /// The device has changed its network: the connection goes on from a new socket.
    pub fn network_changed(&self) -> Result<(), FfiError> {
        Ok(self.0.network().changed()?)
    }

    /// Reaches the coordinator: uses the invitation if there is one, and agrees on the recipe.
    /// Every other network function does so by itself; this one shows whether it works.
    pub async fn connect(&self) -> Result<(), FfiError> {
        Ok(self.0.connect().await?)
    }

    /// Takes part in the newest epoch of the training with what is recorded now.
    pub async fn join(&self) -> Result<(), FfiError> {
        Ok(self.0.join().await?)
    }

    /// Fetches tables, contributes, and asks for work once and does it. Waits up to 10 s when there
    /// is none. Call it when the device is idle. Cancelling it stops the training.
    pub async fn step(&self) -> Result<FfiDone, FfiError> {
        Ok(self.0.step().await?.into())
    }

    /// Fetches the tables of lists, and contributes if that is due.
    pub async fn refresh(&self) -> Result<FfiRefreshed, FfiError> {
        Ok(self.0.refresh().await?.into())
    }

    /// Whether the person takes part in the sums behind lists. The answer is kept before anybody is
    /// told; a coordinator that cannot be reached is told when it can.
    pub async fn set_contributing(&self, wanted: bool) -> Result<(), FfiError> {
        Ok(self.0.set_contributing(wanted).await?)
    }

    /// Ranks `candidates` with the language model over the split, and returns the best `n`.
    pub async fn recommend(
        &self,
        candidates: Vec<String>,
        n: u32,
    ) -> Result<FfiRecommendation, FfiError> {
        Ok(self.0.recommend(candidates, n as usize).await?.into())
    }

    /// The person consents to the order that waits: it is fetched again, checked, and carried out.
    /// Returns whether there was one.
    pub async fn consent_to_erasure(&self) -> Result<bool, FfiError> {
        Ok(self.0.consent_to_erasure().await?)
    }

    /// Closes the connection and waits until the coordinator has been told; what is being trained
    /// stops. The next network function connects again.
    pub async fn disconnect(&self) {
        self.0.canceller().cancel();
        self.0.clone().close().await;
    }
}
