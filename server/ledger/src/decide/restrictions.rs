//! Restrictions, and how they are lifted.
//!
//! A restriction is a deletion that keeps the data ([`Request::Restrict`]). Lifting it is a request
//! of its own: the person is in lists at once again, and trains from the next epoch on that they
//! join. In epochs that have begun they stay where the restriction's receipt says that they are:
//! left out. In one that was founded and has not begun they have the place that they joined with.

use lethe_plan::Request;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::Refusal;
use lethe_proto::people::{RestrictionState, Standing};

use super::{Decided, deletions};
use crate::event::Event;
use crate::ids::{EpochNo, Now, Refused};
use crate::state::{Deletion, State};

/// What is lifted of a person: numbers of the deletions that restrict them. Refuses what cannot be
/// lifted, or not yet.
pub(super) fn check(state: &State, subject: &SubjectId) -> Result<Vec<u64>, Refused> {
    if state.unexecuted() {
        return Err(Refused::executing());
    }
    let is_restricted = match state.profile(subject) {
        Some(profile) => profile.restricted,
        None => deletions::inherited(state, subject).restricted,
    };
    if !is_restricted {
        return Err(Refused::invalid(format!(
            "the data of {subject} is not restricted: `lethe-admin restriction list` shows whose is"
        )));
    }
    let ids = state.restrictions_of(subject);
    // What its receipt says must be so when it is made.
    let is_done = |id: &&u64| {
        let deletion = state.deletions.get(id);
        deletion.is_none_or(|d| d.phase == DeletionPhase::Done)
    };
    if let Some(id) = ids.iter().find(|id| !is_done(id)) {
        let message = format!(
            "the restriction (deletion {id}) is not done yet, and its receipt is to say that the \
             data is not used: lift it when `lethe-admin status --deletion {id}` says that it is"
        );
        return Err(Refused::new(Refusal::Busy, message));
    }
    Ok(ids)
}

/// What the log is to hold of it. It names nobody.
pub(super) fn line(state: &State, subject: &SubjectId) -> String {
    let ids = state.restrictions_of(subject);
    let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
    match ids.is_empty() {
        // From before deletions were kept.
        true => "lift a restriction".into(),
        false => format!("lift the restriction of deletion {}", ids.join(", ")),
    }
}

pub(super) fn lift(state: &State, subject: &SubjectId, now: Now) -> Decided {
    let ids = check(state, subject)?;
    let mut events = vec![];
    if !ids.is_empty() {
        let at = now.unix_ms;
        events.push(Event::RestrictionsLifted { ids, at });
    }
    // Somebody who has not joined has a restriction that waits for them, and nothing else.
    if state.profile(subject).is_some() {
        let open = state.epochs.iter().filter(|(_, e)| e.partition.is_none());
        let epochs: Vec<EpochNo> = open.map(|(no, _)| *no).collect();
        let subject = subject.clone();
        events.push(Event::Readmitted { subject, epochs });
    }
    Ok(events)
}

impl State {
    /// A restriction that was lifted: when, in milliseconds since 1970.
    pub fn lifted_at(&self, deletion: u64) -> Option<u64> {
        self.lifted.get(&deletion).map(|l| l.at)
    }

    /// Restrictions of a person that are not lifted, since everything of theirs was erased last.
    pub(crate) fn restrictions_of(&self, subject: &SubjectId) -> Vec<u64> {
        let mut ids = vec![];
        let about = self.deletions.iter();
        for (id, d) in about.filter(|(_, d)| d.request.subject() == Some(subject)) {
            match &d.request {
                Request::Erase { .. } => ids.clear(),
                Request::Restrict { .. } if !self.lifted.contains_key(id) => ids.push(*id),
                _ => {}
            }
        }
        ids
    }

    /// A restriction of this person was lifted, and none has followed.
    pub(crate) fn was_readmitted(&self, subject: &SubjectId) -> bool {
        let mut lifted = self.lifted.keys().filter_map(|id| self.deletions.get(id));
        lifted.any(|d| d.request.subject() == Some(subject))
            && self.profile(subject).is_some_and(|p| !p.restricted)
    }

    /// A page of the restrictions after a number, oldest first.
    pub fn restriction_list(&self, after: u64) -> Vec<RestrictionState> {
        let shown = |(id, d): (&u64, &Deletion)| {
            let Request::Restrict { subject } = &d.request else {
                return None;
            };
            Some(RestrictionState {
                deletion: *id,
                subject: subject.clone(),
                since: d.accepted_at / 1000,
                done: d.phase == DeletionPhase::Done,
                lifted: self.lifted_at(*id).map(|at| at / 1000),
            })
        };
        let later = self.deletions.range(after.saturating_add(1)..);
        crate::views::page(later.filter_map(shown))
    }

    /// How the person of a device stands.
    ///
    /// # Errors
    /// [`Refused`]: the device is nobody's any more.
    pub fn standing(&self, device: &Digest) -> Result<Standing, Refused> {
        let Some(holder) = self.index.holders.get(device) else {
            let message = "this subject's certificates were withdrawn";
            return Err(Refused::new(Refusal::Forbidden, message));
        };
        let subject = &holder.subject;
        let own = self.deletions.iter().rev();
        let mut own = own.filter(|(_, d)| d.request.subject() == Some(subject));
        let left = own.find(|(_, d)| d.phase != DeletionPhase::Planned);
        let ordered = self.orders_carried_out(holder, 0).last();
        let restricted = match self.profile(subject) {
            Some(profile) => profile.restricted,
            None => deletions::inherited(self, subject).restricted,
        };
        Ok(Standing {
            restricted,
            left: left.map_or(0, |(id, _)| *id),
            ordered: ordered.map_or(0, |(id, _, _)| id),
            not_trained: self.not_trained(subject),
        })
    }
}
