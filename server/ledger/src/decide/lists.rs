//! Lists: who may contribute to their sums, and what a deletion still waits for.

use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::Refusal;

use super::Decided;
use crate::event::Event;
use crate::ids::{Now, Refused};
use crate::state::{Deletion, ListsRecord, SnapshotRef, State};
use lethe_receipt::statement::{StatedLists, StatedSnapshot};

/// How long training leaves the machine to a snapshot that a deletion waits for, in milliseconds.
const LISTS_FIRST: u64 = 5_000;

/// A snapshot is served: deletions that recalled an earlier one are whole.
pub(super) fn published(state: &State, snapshot: SnapshotRef, now: Now) -> Decided {
    let mut events = vec![];
    for id in &state.index.unlisted {
        let Some(record) = state.lists.get(id) else {
            continue;
        };
        let newer = record
            .left
            .recalled
            .is_some_and(|r| r.number < snapshot.number);
        let Some(d) = state.deletions.get(id) else {
            continue;
        };
        if newer && record.whole.is_none() && d.exact_after_ms.is_some() {
            events.push(Event::ListsWhole {
                id: *id,
                snapshot,
                after_ms: now.unix_ms.saturating_sub(d.accepted_at),
            });
        }
    }
    Ok(events)
}

fn stated(snapshot: &SnapshotRef) -> StatedSnapshot {
    StatedSnapshot {
        number: snapshot.number,
        sha256: snapshot.digest.hex(),
        people: snapshot.people,
    }
}

impl State {
    /// Whose contribution to the sums a device may bring now.
    ///
    /// # Errors
    /// [`Refused`]: nobody's, or not now, with what to do.
    pub fn may_contribute(&self, device: &Digest) -> Result<SubjectId, Refused> {
        let forbidden = |message: &str| Refused::new(Refusal::Forbidden, message);
        let Some(holder) = self.index.holders.get(device) else {
            return Err(forbidden("this subject's certificates were withdrawn"));
        };
        let subject = &holder.subject;
        if self.holds_serving() || self.is_planned(subject) {
            return Err(Refused::executing());
        }
        let Some(profile) = self.profile(subject) else {
            return Err(Refused::invalid("join first, then contribute"));
        };
        if profile.restricted {
            return Err(forbidden(
                "this person's data is restricted: it is kept and not used",
            ));
        }
        let device = self
            .people
            .get(subject)
            .map(|p| p.devices.get(&holder.device));
        let confirmed = device.flatten().and_then(|d| d.confirmed);
        if profile
            .erase
            .as_ref()
            .is_some_and(|e| confirmed != Some(e.task))
        {
            return Err(Refused::new(
                Refusal::Busy,
                "this device has to erase events first: ask for work, then contribute",
            ));
        }
        Ok(subject.clone())
    }

    /// An accepted deletion whose execution has not begun.
    pub fn waits_for_execution(&self, deletion: u64) -> bool {
        let executing = self.core.executing.as_ref();
        let begun = executing.is_some_and(|e| e.ids.contains(&deletion));
        !begun && self.index.planned.contains(&deletion)
    }

    /// An accepted deletion that waits for its execution concerns this person by name.
    pub(crate) fn is_planned(&self, subject: &SubjectId) -> bool {
        let planned = self.index.planned.iter();
        let mut planned = planned.filter_map(|id| self.deletions.get(id));
        planned.any(|d| d.request.subject() == Some(subject))
    }

    /// An accepted deletion has waited for others as long as it may.
    pub(crate) fn window_is_over(&self, now: Now) -> bool {
        let planned = self.index.planned.iter();
        let mut planned = planned.filter_map(|id| self.deletions.get(id));
        let window = self.rules.erase_window_ms;
        planned.any(|d| now.unix_ms >= d.accepted_at.saturating_add(window))
    }

    /// For how long an accepted deletion waits for others, in milliseconds.
    pub fn erase_window_ms(&self) -> u64 {
        self.rules.erase_window_ms
    }

    /// What a deletion did to the lists; none: there were none when it was executed.
    pub fn lists_of(&self, id: u64) -> Option<&ListsRecord> {
        self.lists.get(&id)
    }

    /// What the statement of a deletion says of the lists.
    pub(crate) fn stated_lists(&self, id: u64) -> Option<StatedLists> {
        let record = self.lists.get(&id)?;
        let left = &record.left;
        Some(StatedLists {
            held: left.held,
            recalled: left.recalled.as_ref().map(stated),
            replaced_by: record.whole.as_ref().map(|(snapshot, _)| stated(snapshot)),
            whole_after_ms: record.whole.map_or(0, |(_, after_ms)| after_ms),
            devices: left.devices,
            bytes: left.devices * left.recalled.map_or(0, |s| s.bytes),
            held_until: left.held_until,
            key: self.rules.lists_key.clone(),
        })
    }

    /// Deletions that wait for a snapshot.
    pub fn lists_wait(&self) -> bool {
        !self.index.unlisted.is_empty()
    }

    /// For a moment after a deletion training leaves the machine to the snapshot that everybody
    /// waits for.
    pub(crate) fn lists_go_first(&self, now: Now) -> bool {
        let waiting = self.index.unlisted.iter();
        let mut waiting = waiting.filter_map(|id| self.deletions.get(id));
        waiting.any(|d| {
            let exact = d.accepted_at + d.exact_after_ms.unwrap_or(0);
            now.unix_ms < exact.saturating_add(LISTS_FIRST)
        })
    }

    /// Requests that the present execution, or the next one, carries out.
    pub fn to_execute(&self) -> Vec<(u64, &Deletion)> {
        let executing = self.core.executing.as_ref().map(|e| e.ids.clone());
        let planned = || self.index.planned.iter().copied().collect();
        let ids: Vec<u64> = executing.unwrap_or_else(planned);
        let known = |id: u64| Some((id, self.deletions.get(&id)?));
        ids.into_iter().filter_map(known).collect()
    }
}
