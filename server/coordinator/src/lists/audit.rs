//! What an auditor of the lists is given: digests of what counts in the snapshot that is served,
//! and what it takes to fold and solve them again. It names nobody.

use std::collections::BTreeSet;

use lethe_proto::admin::{AuditedItem, ListsAuditPage, ListsAuditPlace};
use lethe_proto::ids::Digest;
use lethe_proto::limits::PAGE;
use lethe_proto::message::Refusal;
use lethe_proto::tally::{TallyReply, TallyRequest};
use lethe_tally::Audited;

use super::Lists;
use super::keeper::Keeper;
use super::party::{QUICK, SLOW};
use crate::CoordinatorError;
use crate::fatal;
use crate::rounds::internal;
use crate::shell::Shell;

/// People of a page: 256 KiB of digests.
const PEOPLE: usize = 8_192;

impl Lists {
    /// A page, from `at` on.
    ///
    /// # Errors
    /// `Busy`: no snapshot is served, or another one than `at` is about.
    pub(crate) fn audit(
        &self,
        shell: &Shell,
        at: Option<&ListsAuditPlace>,
    ) -> Result<ListsAuditPage, CoordinatorError> {
        let now = shell.clock.now().unix_ms / 1000;
        let audited = self.auditable(shell, now)?;
        let at = match at {
            Some(at) => *at,
            None => ListsAuditPlace {
                snapshot: audited.number,
                salt: Digest(lethe_seal::random()?),
                items: 0,
                people: 0,
            },
        };
        let items = self.page_of_items(&audited, at.items);
        let items_done = at.items.saturating_add(items.len() as u64);
        let left = self.catalogue().ids().len() as u64 > items_done;
        let most = if left { 0 } else { PEOPLE };
        let from = usize::try_from(at.people).unwrap_or(usize::MAX);
        let people = self.audited_people(&at, from, most, now)?.ok_or_else(|| {
            busy(
                "what counts in that snapshot was replaced since: begin again when the next \
                     is served",
            )
        })?;
        let people_done = at.people.saturating_add(people.len() as u64);
        let next = ListsAuditPlace {
            items: items_done,
            people: people_done,
            ..at
        };
        let more = left || people_done < audited.people as u64;
        Ok(ListsAuditPage {
            key: self.key(),
            salt: at.salt,
            sums_salt: Digest(audited.salt),
            content: Digest(audited.content),
            method: serde_json::to_string(&audited.method).map_err(|e| internal(&e))?,
            note: audited.note,
            items,
            people,
            next: more.then_some(next),
        })
    }

    /// The snapshot that devices are given now, if it was made by this process: settings, titles
    /// and tags may have changed since an earlier one was made.
    fn auditable(&self, shell: &Shell, now: u64) -> Result<Audited, CoordinatorError> {
        let served = self.state(shell).served;
        let audited = match served {
            Some(_) => self.audited(now)?,
            None => None,
        };
        let audited = audited.filter(|a| Some(a.number) == served);
        let audited = audited.ok_or_else(|| {
            busy("no snapshot is served that can be audited: ask again when the next is served")
        })?;
        if !self.is_sealed() && fatal::lock(&self.publishing).last.is_none() {
            return Err(busy(
                "the snapshot that is served was made before this coordinator started, maybe with \
                 other settings: ask again when the next is served",
            ));
        }
        Ok(audited)
    }

    /// A tally of its own gives it with its operator's consent only (`audits`).
    fn audited(&self, now: u64) -> Result<Option<Audited>, CoordinatorError> {
        let party = match &self.keeper {
            Keeper::Embedded(tally) => return Ok(tally.audited(now)?),
            Keeper::Party(party) => party,
        };
        let TallyReply::Audited(audited) = party.ask(TallyRequest::Audited, QUICK)? else {
            return party.unexpected();
        };
        let Some(audited) = audited else {
            return Ok(None);
        };
        Ok(Some(Audited {
            number: audited.number,
            note: audited.note,
            salt: audited.salt,
            method: serde_json::from_str(&audited.method).map_err(|e| internal(&e))?,
            content: audited.content.0,
            taken_down: audited.taken_down,
            people: usize::try_from(audited.people).unwrap_or(usize::MAX),
        }))
    }

    /// Digests of people, from the `from`th on, at most `most`.
    fn audited_people(
        &self,
        at: &ListsAuditPlace,
        from: usize,
        most: usize,
        now: u64,
    ) -> Result<Option<Vec<Digest>>, CoordinatorError> {
        let party = match &self.keeper {
            Keeper::Embedded(tally) => {
                return Ok(tally.audited_people(at.snapshot, &at.salt.0, from, most, now)?);
            }
            Keeper::Party(party) => party,
        };
        let request = TallyRequest::AuditedPeople {
            number: at.snapshot,
            salt: at.salt.0,
            from: from as u64,
        };
        let TallyReply::AuditedPeople(people) = party.ask(request, SLOW)? else {
            return party.unexpected();
        };
        Ok(people.map(|mut people| {
            people.truncate(most);
            people
        }))
    }

    fn page_of_items(&self, audited: &Audited, from: u64) -> Vec<AuditedItem> {
        let taken_down: BTreeSet<u32> = audited.taken_down.iter().copied().collect();
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let catalogue = self.catalogue();
        let ids = (0..).zip(catalogue.ids()).skip(from);
        let fits = |item: &(u32, &String)| {
            bytes += item.1.len() + 8;
            bytes <= PAGE
        };
        ids.take_while(fits)
            .map(|(at, id)| AuditedItem {
                id: id.clone(),
                taken_down: taken_down.contains(&at),
            })
            .collect()
    }
}

fn busy(why: &str) -> CoordinatorError {
    CoordinatorError::refuse(Refusal::Busy, why)
}
