//! The state, as slices and events give it.

use std::collections::BTreeSet;

use lethe_ledger::{Event, State, Table, apply};
use lethe_store::StoreError;
use lethe_store::sealed::{Batch, SealedStore};

use super::tables::{
    EventRow, EventsHead, EvidenceEvent, EvidenceSlice, PersonEvent, PersonSlice, PublicEvent,
    PublicSlice, SliceRow, StageEvent, StageSlice,
};
use super::values::{delete_value, stored};
use crate::CoordinatorError;

/// What was read.
pub(super) struct Read {
    pub(super) state: State,
    /// Number of the newest event.
    pub(super) last: u64,
    /// Events since the last snapshot.
    pub(super) events: u64,
}

/// Reads the state: slices, then the events after them, each where its key lives. Removes what a
/// write has left that was cut off.
pub(super) fn state(store: &SealedStore) -> Result<Read, CoordinatorError> {
    let last = store.get::<EventsHead>("")?.unwrap_or_default().last;
    let cut_off = delete_events(Batch::new(), store, |number| number > last);
    if !cut_off.is_empty() {
        // Before these numbers are given again.
        store.write(cut_off)?;
    }
    let mut state = State::default();
    insert::<PublicSlice>(store, &mut state)?;
    insert::<PersonSlice>(store, &mut state)?;
    insert::<StageSlice>(store, &mut state)?;
    insert::<EvidenceSlice>(store, &mut state)?;
    state.finish();
    let mut events: Vec<(u64, Event)> = vec![];
    collect::<PublicEvent>(store, &mut events)?;
    collect::<PersonEvent>(store, &mut events)?;
    collect::<StageEvent>(store, &mut events)?;
    collect::<EvidenceEvent>(store, &mut events)?;
    events.sort_by_key(|(number, _)| *number);
    for (_, event) in &events {
        apply(&mut state, event);
    }
    remove_orphans(store, &state)?;
    // All of these are among the orphans.
    state.dropped.clear();
    Ok(Read {
        state,
        last,
        events: events.len() as u64,
    })
}

fn insert<T: SliceRow>(store: &SealedStore, state: &mut State) -> Result<(), StoreError> {
    for (_, row) in store.all::<T>()? {
        let (id, content) = row.take();
        state
            .insert(id, &content)
            .map_err(|e| StoreError::Corrupt {
                // Whose slice it is stays out of messages.
                name: T::TABLE.into(),
                why: e.why,
            })?;
    }
    Ok(())
}

fn collect<T: EventRow>(
    store: &SealedStore,
    events: &mut Vec<(u64, Event)>,
) -> Result<(), StoreError> {
    for (key, row) in store.all::<T>()? {
        let number = key.parse().map_err(|_| StoreError::Corrupt {
            name: T::TABLE.into(),
            why: "an event has no number".into(),
        })?;
        events.push((number, row.take()));
    }
    Ok(())
}

/// Removes events whose numbers are chosen.
pub(super) fn delete_events(
    batch: Batch,
    store: &SealedStore,
    chosen: impl Fn(u64) -> bool,
) -> Batch {
    fn of<T: EventRow>(batch: Batch, store: &SealedStore, chosen: &dyn Fn(u64) -> bool) -> Batch {
        let keys = store.keys::<T>().into_iter();
        let chosen = keys.filter(|key| key.parse().is_ok_and(chosen));
        chosen.fold(batch, |b, key| b.delete::<T>(&key))
    }
    let batch = of::<PublicEvent>(batch, store, &chosen);
    let batch = of::<PersonEvent>(batch, store, &chosen);
    let batch = of::<StageEvent>(batch, store, &chosen);
    of::<EvidenceEvent>(batch, store, &chosen)
}

/// Values that the state does not name: of writes that were cut off, and those whose removal was.
fn remove_orphans(store: &SealedStore, state: &State) -> Result<(), StoreError> {
    let named = state.values().into_iter();
    let named: BTreeSet<(Table, String)> = named.map(|(v, _)| (v.table, v.id)).collect();
    let all = stored(store).into_iter();
    let orphans = all.filter(|value| !named.contains(value));
    let batch = orphans.fold(Batch::new(), |b, (table, id)| delete_value(b, table, &id));
    if batch.is_empty() {
        return Ok(());
    }
    store.write(batch)
}
