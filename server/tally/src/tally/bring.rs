//! Contributions come in.

use lethe_parts::contribution::{Bounds, Contribution};
use lethe_parts::history::{Interaction, day_of, newest_of_each};
use lethe_parts::merge::Most;
use lethe_proto::ids::Digest;

use super::change::Change;
use super::{Inner, Tally};
use crate::cells::{Command, Offered, in_time};
use crate::error::TallyError;
use crate::ids::Handle;
use crate::vault::{Brought, Source, content};

/// What a device contributes.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// Whose it is.
    pub handle: Handle,
    /// Which device it comes from.
    pub source: [u8; 16],
    /// Whether nothing older was left out. A history that was clipped says nothing about how
    /// people begin.
    pub whole: bool,
    /// The newest events, oldest first, at most `clip`.
    pub events: &'a [Interaction],
}

/// What a device contributes, and when it was allowed to.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'a> {
    /// What.
    pub offer: Offer<'a>,
    /// When, in seconds since 1970. A membership begins then: who left in between is not brought
    /// back by what was still on its way ([`Tally::leave_older`]).
    pub at: u64,
}

impl Tally {
    /// Takes the newest events of a device. What counts is the merge of what all devices of the
    /// handle have brought. It waits until a cell opens, or until enough of its cell have newer
    /// ones. What is there already changes nothing.
    ///
    /// Whether a history is whole only its device knows: it is believed.
    ///
    /// # Errors
    /// [`TallyError::Bounds`] and [`TallyError::Refused`] say why it is not taken.
    pub fn contribute(&self, offer: &Offer<'_>, now: u64) -> Result<(), TallyError> {
        let all = std::slice::from_ref(offer);
        self.contribute_all(all, now)?.remove(0)
    }

    /// The same for many who come together: one write. The answers are in the order of the
    /// contributions.
    ///
    /// # Errors
    /// [`TallyError::Store`]: nothing, or all that could be taken, was taken; repeat it.
    pub fn contribute_all(
        &self,
        all: &[Offer<'_>],
        now: u64,
    ) -> Result<Vec<Result<(), TallyError>>, TallyError> {
        let all = all.iter().copied();
        let all: Vec<Allowed<'_>> = all.map(|offer| Allowed { offer, at: now }).collect();
        self.contribute_allowed(&all, now)
    }

    /// The same for what was allowed a while ago.
    ///
    /// # Errors
    /// As [`Self::contribute_all`].
    pub fn contribute_allowed(
        &self,
        all: &[Allowed<'_>],
        now: u64,
    ) -> Result<Vec<Result<(), TallyError>>, TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        let mut change = Change::default();
        let mut answers = vec![];
        for one in all {
            answers.push(self.bring(inner, &mut change, one, now));
        }
        self.commit(inner, change)?;
        Ok(answers)
    }

    fn bring(
        &self,
        inner: &mut Inner,
        change: &mut Change,
        allowed: &Allowed<'_>,
        now: u64,
    ) -> Result<(), TallyError> {
        let Offer {
            handle,
            source,
            whole,
            events,
        } = allowed.offer;
        let bounds = Bounds {
            items: self.items(),
            clip: self.options.clip,
            first_day: 0,
            // Clocks of devices are not all right, and days are UTC.
            last_day: day_of(i64::try_from(now).unwrap_or(i64::MAX)).saturating_add(1),
        };
        Contribution::new(events, &bounds)?;
        let events = newest_of_each(events, |e| e.item, self.options.repeats);
        let own = content::to_bytes(whole, &events)?;
        let before = self.devices(inner, change, &handle)?;
        // The same once more: an answer was lost.
        if before.has_brought(&source, &own) {
            return Ok(());
        }
        let last = before.last(&source);
        let devices = before.with(Source {
            source,
            at: now,
            content: own,
        });
        let merged = devices.merged(&Most {
            clip: self.options.clip,
            repeats: self.options.repeats,
        })?;
        let content = content::to_bytes(merged.whole, &merged.events)?;
        let command = Command::Contribute {
            handle,
            offered: Offered {
                content: Digest::of(&[&content]),
                source,
                // The clip bounds them.
                events: merged.events.len() as u32,
                last,
            },
            fresh: self.fresh(&handle, allowed.at)?,
            refresh_s: self.options.refresh_s,
        };
        let at = match inner.state.people().contains_key(&handle) {
            true => now,
            false => allowed.at.min(now),
        };
        if change.step(&mut inner.state, &command, at)?.is_empty() {
            // Other devices have brought all of it. That this one has it, too, is kept: one of them
            // may take it back.
            in_time(last, self.options.refresh_s, now)?;
        } else if let Some(version) = inner.state.newest(&handle) {
            // Two devices may come together.
            change.brought.retain(|b| b.handle != handle);
            change.brought.push(Brought {
                handle,
                version,
                content,
            });
        }
        if let Some(several) = devices.several() {
            change.sources.insert(handle, several);
        }
        Ok(())
    }
}
