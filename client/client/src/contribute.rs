//! The person's part in the sums behind lists, and the tables that come back.

use std::sync::Arc;

use lethe_parts::event::Event;
use lethe_parts::history::Interaction;
use lethe_parts::snapshot;
use lethe_proto::ids::Digest;
use lethe_proto::lists::{
    Contributed, ListState, ListTerms, ServedTables, SharedEvent, SnapshotReply, items_digest,
};
use lethe_proto::message::{Refusal, Reply, Request};
use lethe_proto::tally::SealingTerms;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::snapshot::SnapshotStatement;
use lethe_transport::TransportError;

use crate::backoff::Backoff;
use crate::client::Refreshed;
use crate::contributed;
use crate::lists::{Held, Lazy};
use crate::local::{Local, now_unix_s};
use crate::person::Accepted;
use crate::sealing::{self, Sealed};
use crate::worker::{LISTS, Worker};
use crate::{Catalogue, ClientError};

/// How often a snapshot is asked for before an error is said.
const SNAPSHOT_TRIES: usize = 6;

/// After a failure or a refusal that will pass, so many seconds are waited.
const PAUSE_S: i64 = 60;
/// After a refusal by the tally, which would refuse the same again, so many seconds are waited.
const REFUSED_S: i64 = 3_600;
/// Items that the coordinator may not know, in one attempt to contribute.
const MOST_UNKNOWN: usize = 64;

/// What is contributed now, with what names it.
struct Contribution {
    body: Contributed,
    digest: Digest,
    /// Events with items that the tables do not name.
    left_out: usize,
}

/// What came of an attempt to contribute.
enum Attempt {
    /// The coordinator, or the tally, has it.
    Accepted,
    /// Nothing is due.
    Nothing,
    /// Not before so many seconds.
    Later(i64),
}

impl Local {
    /// The newest events that count, as many as the terms allow. Where `named` is given (by
    /// position in the catalogue), items that the tables do not name are left out.
    fn contribution(
        &self,
        catalogue: &Catalogue,
        terms: &ListTerms,
        named: Option<&[bool]>,
    ) -> Result<Contribution, ClientError> {
        let known = catalogue.known(self.events.iter());
        let taken = |e: &Event| !self.refused.contains(&catalogue.at(e.item).id);
        let all = known.len();
        let named = |e: &Event| named.is_none_or(|n| n.get(e.item as usize) == Some(&true));
        let known: Vec<Event> = known.into_iter().filter(named).collect();
        let left_out = all - known.len();
        let known: Vec<Event> = known.into_iter().filter(taken).collect();
        let read = Interaction::read(&known, catalogue.meaning());
        let older = read.len().saturating_sub(terms.clip as usize);
        let shared = |i: &Interaction| SharedEvent {
            item: catalogue.at(i.item).id.clone(),
            day: self.times.round(i.day),
            half_stars: i.half_stars.unwrap_or(0),
            flags: i.flags(),
        };
        let body = Contributed {
            source: self.events.source,
            whole: older == 0,
            events: read[older..].iter().map(shared).collect(),
        };
        let bytes = sealing::bytes_of(&body)?;
        Ok(Contribution {
            digest: Digest::of(&[b"lethe-contribution", &bytes]),
            body,
            left_out,
        })
    }

    /// What is asked of contributions, unless the person contributes nothing, or has not long ago.
    fn may_be_due(&self, now: i64) -> Option<ListTerms> {
        let lists = &self.person.lists;
        // What would be refused is not offered.
        let may = !lists.opted_out && !self.is_restricted() && !self.owes;
        let terms = lists.terms.filter(|_| may)?;
        let refresh = i64::try_from(terms.refresh_s).unwrap_or(i64::MAX);
        let waits = |last: Accepted| now < last.at.saturating_add(refresh) && now >= last.at;
        (!lists.contributed.is_some_and(waits)).then_some(terms)
    }

    /// What is due to be contributed: what has changed since the coordinator accepted it last, and
    /// not more often than it asks.
    fn due(
        &self,
        catalogue: &Catalogue,
        named: Option<&[bool]>,
        now: i64,
    ) -> Result<Option<Contribution>, ClientError> {
        let Some(terms) = self.may_be_due(now) else {
            return Ok(None);
        };
        let lists = &self.person.lists;
        let one = self.contribution(catalogue, &terms, named)?;
        let same = lists
            .contributed
            .is_some_and(|last| last.digest == one.digest);
        let nothing = one.body.events.is_empty() && lists.contributed.is_none();
        Ok((!same && !nothing).then_some(one))
    }

    /// The coordinator has taken it.
    fn accepted(&mut self, one: &Contribution, at: i64) -> Result<(), ClientError> {
        // Before it counts as accepted: what fails here is sent again.
        match one.body.events.is_empty() {
            true => contributed::drop_all(&self.vault)?,
            false => contributed::keep(&self.vault, &one.body, at)?,
        }
        self.left_out = one.left_out;
        self.person.lists.contributed = Some(Accepted {
            digest: one.digest,
            at,
            events: one.body.events.len() as u32,
        });
        self.save()
    }
}

impl Worker {
    /// What is to be done about lists before work is asked for. Nothing of it keeps a device from
    /// other work: what fails is tried again later.
    pub(crate) async fn tend_lists(&mut self) {
        if self.minor() < LISTS || now_unix_s() < self.lists_at {
            return;
        }
        let done = async {
            self.stands_if_due().await?;
            self.withdraw_if_asked().await?;
            if self.wants_snapshot()? {
                self.fetch_snapshot().await?;
            }
            self.contribute_if_due().await
        };
        match done.await {
            Ok(_) => {}
            Err(ClientError::NoLists) => self.lists_at = now_unix_s() + PAUSE_S,
            Err(e) => {
                tracing::warn!("lists: {e}");
                self.lists_at = now_unix_s() + PAUSE_S;
            }
        }
    }

    /// Asks for the snapshot, and contributes if that is due.
    pub(crate) async fn refresh(&mut self) -> Result<Refreshed, ClientError> {
        // The app asks: so newer versions of the catalogue are asked for, too.
        self.catalogue_at = 0;
        self.ready().await?;
        if self.minor() < LISTS {
            return Err(ClientError::NoLists);
        }
        self.stands().await?;
        self.withdraw_if_asked().await?;
        let fetched = self.fetch_snapshot().await?;
        let contributed = self.contribute_if_due().await?;
        Ok(Refreshed {
            fetched,
            contributed,
        })
    }

    /// Whether the person contributes from now on. What it was before is told to the coordinator.
    pub(crate) async fn set_contributing(&mut self, wanted: bool) -> Result<(), ClientError> {
        {
            let mut local = self.local()?;
            local.person.lists.opted_out = !wanted;
            local.person.lists.to_withdraw = !wanted;
            local.save()?;
            if !wanted {
                contributed::drop_all(&local.vault)?;
            }
        }
        if wanted {
            return Ok(());
        }
        self.ready().await?;
        self.withdraw_if_asked().await
    }

    async fn withdraw_if_asked(&mut self) -> Result<(), ClientError> {
        if !self.local()?.person.lists.to_withdraw || self.minor() < LISTS {
            return Ok(());
        }
        match self.call(&Request::Uncontribute).await {
            Ok(_) => {}
            // A coordinator without lists holds nothing to withdraw.
            Err(e) if e.refusal() == Some(Refusal::Invalid) => tracing::info!("{e}"),
            Err(e) => return Err(e),
        }
        let mut local = self.local()?;
        contributed::drop_all(&local.vault)?;
        local.person.lists.to_withdraw = false;
        local.person.lists.contributed = None;
        local.save()
    }

    /// What the coordinator says of lists, with any answer: what is recalled goes at once, from
    /// memory and from disk.
    pub(crate) fn hear_of_lists(&mut self, state: ListState) -> Result<(), ClientError> {
        self.lists = state;
        self.local()?.recall_snapshot(state.recalled)
    }

    /// Whether another snapshot is served than this device has, or its own grows old, or the
    /// coordinator was not asked yet.
    fn wants_snapshot(&self) -> Result<bool, ClientError> {
        let unreadable = self.held()?.is_none();
        let local = self.local()?;
        let lists = &local.person.lists;
        let Some(terms) = lists.terms else {
            return Ok(true);
        };
        let have = local.snapshot.as_ref().map(|s| s.held.number);
        let half = i64::try_from(terms.valid_s / 2).unwrap_or(i64::MAX);
        let old = have.is_some() && now_unix_s() >= lists.until.saturating_sub(half);
        let other = self.lists.served.is_some() && self.lists.served != have;
        Ok(other || old || (have.is_some() && unreadable))
    }

    /// The snapshot that is here, if it can be used.
    fn held(&self) -> Result<Option<Arc<Lazy>>, ClientError> {
        let held = self.local()?.snapshot.clone();
        // Decoded without the lock.
        Ok(held.filter(|h| h.view().is_some()))
    }

    /// Asks for the snapshot; returns whether there is a new one.
    async fn fetch_snapshot(&mut self) -> Result<bool, ClientError> {
        let mut held = self.held()?;
        let mut pauses = Backoff::default();
        for _ in 1..SNAPSHOT_TRIES {
            match self.ask_for_snapshot(held.clone()).await {
                // The difference does not fit what is here, or that was damaged: then the whole
                // one.
                Err(ClientError::BadSnapshot(why)) if held.is_some() => {
                    tracing::info!("{why}; the whole snapshot is fetched");
                    held = None;
                }
                // Another one is served since it was given, or the log does not hold it yet. While
                // many people begin to contribute that may happen several times in a row.
                Err(e) if e.refusal() == Some(Refusal::StaleRelease) => {
                    tokio::time::sleep(pauses.next()).await;
                }
                other => return other,
            }
        }
        self.ask_for_snapshot(held).await
    }

    async fn ask_for_snapshot(&mut self, held: Option<Arc<Lazy>>) -> Result<bool, ClientError> {
        let ids = match &held {
            Some(held) => held.held.items.clone(),
            None => self
                .catalogue()
                .items()
                .iter()
                .map(|i| i.id.clone())
                .collect(),
        };
        let ask = Request::Snapshot {
            have: held.as_ref().map_or(0, |h| h.held.number),
            items: items_digest(ids.iter().map(String::as_str)),
        };
        let Reply::Snapshot(reply) = self.call(&ask).await? else {
            return Err(TransportError::UnexpectedReply { asked: "snapshot" }.into());
        };
        self.hear_of_lists(reply.state)?;
        let terms = reply.terms.ok_or(ClientError::NoLists)?;
        self.learn_terms(&terms, &reply.key)?;
        let items = match reply.items.is_empty() {
            true => &ids,
            false => &reply.items,
        };
        self.named = Some(self.catalogue().places_of(items));
        let until = now_unix_s().saturating_add(i64::try_from(terms.valid_s).unwrap_or(i64::MAX));
        match (&reply.tables, &held) {
            (ServedTables::None, _) => Ok(false),
            (ServedTables::Same, Some(held)) => {
                self.held_is_logged(&held.held).await?;
                self.still_valid(held, until).map(|()| false)
            }
            (ServedTables::Same, None) => Err(ClientError::BadSnapshot(
                "no tables, for a device with none".into(),
            )),
            _ => {
                let state = reply.state;
                let catalogue = self.catalogue();
                let new = self.blocking(move || opened(reply, held, ids, &catalogue));
                let new = new.await?;
                self.held_is_logged(&new.held).await?;
                self.keep_snapshot(new, &state, until).map(|()| true)
            }
        }
    }

    async fn held_is_logged(&mut self, held: &Held) -> Result<(), ClientError> {
        let sha256 = Digest(snapshot::digest(&held.bytes));
        self.snapshot_is_logged(held.number, sha256).await
    }

    /// Keeps the key at first use, unless the app pins another one, and the terms.
    fn learn_terms(&self, terms: &ListTerms, key: &str) -> Result<(), ClientError> {
        let pinned = self.shared.options.pinned_key()?;
        let mut local = self.local()?;
        let lists = &mut local.person.lists;
        if let Some(known) = pinned.or(lists.key.clone()).filter(|k| *k != key) {
            let got = key.to_owned();
            return Err(ClientError::OtherListKey { known, got });
        }
        if lists.key.is_some() && lists.terms == Some(*terms) {
            return Ok(());
        }
        // A key that does not parse is never kept.
        VerifierKey::parse(key).map_err(|e| ClientError::BadSnapshot(e.to_string()))?;
        lists.key = Some(key.to_owned());
        lists.terms = Some(*terms);
        local.save()
    }

    fn still_valid(&self, held: &Arc<Lazy>, until: i64) -> Result<(), ClientError> {
        let mut local = self.local()?;
        // It may have been recalled meanwhile.
        if local
            .snapshot
            .as_ref()
            .is_some_and(|s| Arc::ptr_eq(s, held))
        {
            local.person.lists.until = until;
            local.save()?;
            let Local { clock, vault, .. } = &mut *local;
            clock.begin(vault)?;
        }
        Ok(())
    }

    fn keep_snapshot(&self, new: Lazy, state: &ListState, until: i64) -> Result<(), ClientError> {
        let mut local = self.local()?;
        let lists = &mut local.person.lists;
        let number = new.held.number;
        let served = state.served.is_some_and(|s| s == number);
        if number < lists.seen || number <= lists.recalled || !served {
            return Err(ClientError::OldSnapshot {
                got: number,
                known: lists.seen,
                recalled: lists.recalled,
            });
        }
        lists.seen = number;
        lists.until = until;
        local.save()?;
        let Local { clock, vault, .. } = &mut *local;
        clock.begin(vault)?;
        local.take_snapshot(Arc::new(new))
    }

    /// Contributes if that is due; returns whether it did.
    async fn contribute_if_due(&mut self) -> Result<bool, ClientError> {
        let now = now_unix_s();
        if now < self.contribute_at {
            return Ok(false);
        }
        let wait = match self.contribute(now).await {
            Ok(Attempt::Accepted) => return Ok(true),
            Ok(Attempt::Nothing) => return Ok(false),
            Ok(Attempt::Later(wait)) => wait,
            Err(e) if e.refusal() == Some(Refusal::Busy) => {
                tracing::info!("the contribution waits: {e}");
                PAUSE_S
            }
            Err(e) => {
                if e.refusal() == Some(Refusal::Forbidden) {
                    // It may be that the person's data was restricted.
                    self.stands_at = 0;
                }
                let refused = matches!(e, ClientError::ContributionRefused(_));
                let wait = if refused { REFUSED_S } else { PAUSE_S };
                self.contribute_at = now.saturating_add(wait);
                return Err(e);
            }
        };
        self.contribute_at = now.saturating_add(wait);
        Ok(false)
    }

    async fn contribute(&mut self, now: i64) -> Result<Attempt, ClientError> {
        // Only who has joined may contribute.
        let mut joins = {
            let local = self.local()?;
            local.places.joined.is_empty() && !local.places.takes_part
        };
        let mut has_joined_again = false;
        let mut was_stale = false;
        let mut in_clear = false;
        for _ in 0..MOST_UNKNOWN {
            let Some(one) = self.due(now).await? else {
                return Ok(Attempt::Nothing);
            };
            if std::mem::take(&mut joins) {
                match self.join().await {
                    // Another device of the person has joined, with other data: that is enough.
                    Err(ClientError::OtherData) => {}
                    joined => joined?,
                }
            }
            let tried = match one.body.events.is_empty() {
                // Everything was taken back.
                true => self.withdraw(&one, now).await,
                false if in_clear => self.contribute_in_clear(&one, now).await,
                false => match self.sealing_terms().await {
                    Ok(None) => {
                        in_clear = true;
                        continue;
                    }
                    Ok(Some(terms)) => self.contribute_sealed(&terms, now).await,
                    Err(e) => Err(e),
                },
            };
            match tried {
                Ok(Some(Sealed::Taken)) => return Ok(Attempt::Accepted),
                Ok(Some(Sealed::Later(wait))) => return Ok(Attempt::Later(wait)),
                Ok(Some(Sealed::Stale)) if was_stale => break,
                Ok(Some(Sealed::Stale)) => was_stale = true,
                // What is left without unknown items is not due.
                Ok(None) => return Ok(Attempt::Later(PAUSE_S)),
                // Where contributions are sealed, no refusal may have a device do something that
                // depends on its items: whoever wrote it could ask for one after the other.
                Err(e) if in_clear && self.leaves_out_unknown(&one.body, &e)? => {}
                // A coordinator that was restored from a backup may not know that.
                Err(e) if e.refusal() == Some(Refusal::Invalid) && !has_joined_again => {
                    tracing::info!("{e}");
                    joins = true;
                    has_joined_again = true;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Attempt::Later(PAUSE_S))
    }

    /// What is due now.
    async fn due(&mut self, now: i64) -> Result<Option<Contribution>, ClientError> {
        let seals = {
            let local = self.local()?;
            if local.may_be_due(now).is_none() {
                return Ok(None);
            }
            local.seals(&self.shared.options)
        };
        match seals {
            true => self.due_sealed(now).await,
            false => self.local()?.due(&self.catalogue(), None, now),
        }
    }

    /// What is due, without items that the tables do not name: nobody but the tally may learn what
    /// is refused.
    async fn due_sealed(&mut self, now: i64) -> Result<Option<Contribution>, ClientError> {
        if self.named.is_none() {
            let held = self.local()?.snapshot.clone();
            match held {
                Some(held) => self.named = Some(self.catalogue().places_of(&held.held.items)),
                None => {
                    self.fetch_snapshot().await?;
                }
            }
        }
        let named = self.named.as_deref().unwrap_or_default();
        self.local()?.due(&self.catalogue(), Some(named), now)
    }

    async fn withdraw(
        &mut self,
        one: &Contribution,
        now: i64,
    ) -> Result<Option<Sealed>, ClientError> {
        self.call(&Request::Uncontribute).await?;
        self.local()?.accepted(one, now)?;
        Ok(Some(Sealed::Taken))
    }

    async fn contribute_in_clear(
        &mut self,
        one: &Contribution,
        now: i64,
    ) -> Result<Option<Sealed>, ClientError> {
        self.call(&Request::Contribute(one.body.clone())).await?;
        self.local()?.accepted(one, now)?;
        Ok(Some(Sealed::Taken))
    }

    /// Contributes to a tally of its own; none: what is left is not due.
    async fn contribute_sealed(
        &mut self,
        terms: &SealingTerms,
        now: i64,
    ) -> Result<Option<Sealed>, ClientError> {
        let Some(one) = self.due_sealed(now).await? else {
            return Ok(None);
        };
        if one.body.events.is_empty() {
            return self.withdraw(&one, now).await;
        }
        if one.left_out > 0 {
            let count = one.left_out;
            tracing::info!("{count} events are left out: the tables do not name their items");
        }
        let sent = self.send_sealed(terms, &one.body, PAUSE_S).await;
        if matches!(sent, Ok(Sealed::Taken)) {
            self.local()?.accepted(&one, now)?;
        }
        sent.map(Some)
    }

    /// If the refusal names an item of the contribution, that item is left out from now on.
    fn leaves_out_unknown(
        &self,
        body: &Contributed,
        why: &ClientError,
    ) -> Result<bool, ClientError> {
        if !matches!(why.refusal(), Some(Refusal::Invalid | Refusal::NotFound)) {
            return Ok(false);
        }
        let text = why.to_string();
        let named = |e: &&SharedEvent| text.contains(&format!("{:?}", e.item));
        let Some(event) = body.events.iter().find(named) else {
            return Ok(false);
        };
        let mut local = self.local()?;
        local.refused.insert(event.item.clone());
        Ok(true)
    }
}

/// Verifies what was sent: the note by the key, the bytes by the note, the tables by decoding them.
fn opened(
    reply: SnapshotReply,
    held: Option<Arc<Lazy>>,
    asked: Vec<String>,
    catalogue: &Arc<Catalogue>,
) -> Result<Lazy, ClientError> {
    let bad = |why: &dyn std::fmt::Display| ClientError::BadSnapshot(why.to_string());
    let (note, bytes) = match (reply.tables, &held) {
        (ServedTables::Whole { note, bytes }, _) => (note, bytes),
        (ServedTables::Delta { note, bytes }, Some(held)) => {
            let whole = snapshot::apply(&held.held.bytes, &bytes).map_err(|e| bad(&e))?;
            (note, whole)
        }
        _ => return Err(bad(&"a difference, for a device that has nothing")),
    };
    let key = VerifierKey::parse(&reply.key).map_err(|e| bad(&e))?;
    let statement = SnapshotStatement::open(&note, &key).map_err(|e| bad(&e))?;
    if snapshot::digest(&bytes) != statement.snapshot {
        return Err(bad(&"the bytes are not those that the note is about"));
    }
    let items = match reply.items.is_empty() {
        true => asked,
        false => reply.items,
    };
    let held = Held {
        number: statement.number,
        note,
        items,
        got: now_unix_s(),
        bytes,
    };
    let lazy = Lazy::new(held, catalogue.clone());
    match lazy.view() {
        Some(_) => Ok(lazy),
        None => Err(bad(&format!(
            "they do not decode, or are not about {} items",
            lazy.held.items.len()
        ))),
    }
}
