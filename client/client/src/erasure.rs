//! Orders to erase: checked against the log, bounded by what they name, and, when they would erase
//! (almost) everything, by the person's consent.

use std::sync::Arc;

use lethe_proto::message::{Erased, Orders, Refusal, Reply, Request};
use lethe_receipt::order::{EraseOrder, check};
use lethe_transport::TransportError;

use crate::ClientError;
use crate::client::Done;
use crate::history::Erasure;
use crate::worker::Worker;

/// An order that would leave less than a tenth of the history. It is not obeyed before the app or
/// the person consents: whoever gets hold of a coordinator's keys must not be able to empty its
/// devices. Until then the person is left out of training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingErasure {
    /// The coordinator's number for the task.
    pub task: u64,
    /// Numbers of the deletions behind it, as in receipts.
    pub deletions: Vec<u64>,
    /// Events that would go.
    pub events: usize,
    /// Events that are there.
    pub of: usize,
    /// Everything at or after this time would go, in seconds since 1970; `None`: only items.
    pub from: Option<i64>,
}

type Consents = Arc<dyn Fn(&PendingErasure) -> bool + Send + Sync>;

/// What the app says to such an order; nothing unless it was asked to.
#[derive(Clone, Default)]
pub(crate) struct Consent(Option<Consents>);

impl Consent {
    pub(crate) fn new(consents: impl Fn(&PendingErasure) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(consents)))
    }

    pub(crate) fn given(&self, to: &PendingErasure) -> bool {
        self.0.as_ref().is_some_and(|consents| consents(to))
    }
}

impl std::fmt::Debug for Consent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Consent({})", self.0.is_some())
    }
}

/// Orders that hold, and what all of them together erase.
pub(crate) struct Checked {
    orders: Vec<EraseOrder>,
    what: Erasure,
}

impl Checked {
    /// There is nothing to carry out.
    pub(crate) fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// The newest deletion that is carried out with these.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.orders.iter().map(|o| o.deletion).max()
    }
}

fn erasure(o: &EraseOrder) -> Erasure {
    Erasure {
        items: o.items.clone(),
        from: o.from,
    }
}

impl Worker {
    /// Carries out the order that waits for the person's consent; returns whether there was one,
    /// and it is still the one that was shown.
    pub(crate) async fn consent_to_erasure(&mut self) -> Result<bool, ClientError> {
        let shown = self.local()?.pending.clone();
        let Some(shown) = shown else {
            return Ok(false);
        };
        self.ready().await?;
        if shown.task == 0 {
            // Orders that an older copy of this folder lacks.
            let ordered = shown.deletions.iter().copied().max().unwrap_or(0);
            return self.erase_what_is_left(ordered, true).await;
        }
        let checked = match self.fetch_orders(shown.task).await {
            // Another order has taken its place: it comes with the next step.
            Err(e) if e.refusal() == Some(Refusal::RoundClosed) => {
                self.local()?.pending = None;
                return Ok(false);
            }
            other => other?,
        };
        let now = self.pending_of(shown.task, &checked)?;
        if now.deletions != shown.deletions || now.from != shown.from {
            // More was ordered meanwhile: the person has not seen that.
            self.local()?.pending = Some(now);
            return Ok(false);
        }
        self.erase_some(shown.task, checked, true).await?;
        Ok(true)
    }

    /// Does what a task to erase asks, if it may.
    pub(crate) async fn obey(&mut self, task: u64) -> Result<Done, ClientError> {
        let checked = self.fetch_orders(task).await?;
        let pending = self.pending_of(task, &checked)?;
        let left = (pending.of - pending.events) as u64;
        // With what earlier orders have removed: many small ones are as good as a large one.
        let all = pending.of as u64 + self.local()?.person.ordered_away;
        let almost_all = pending.events > 0 && left * 10 < all;
        if almost_all && self.shared.options.consent.given(&pending) {
            self.erase_some(task, checked, true).await?;
            return Ok(Done::Erased);
        }
        if almost_all {
            self.local()?.pending = Some(pending);
            let outcome = Erased::WaitsForConsent;
            self.call(&Request::Erased { task, outcome }).await?;
            return Ok(Done::ConsentNeeded);
        }
        self.erase_some(task, checked, false).await?;
        Ok(Done::Erased)
    }

    fn pending_of(&self, task: u64, checked: &Checked) -> Result<PendingErasure, ClientError> {
        let local = self.local()?;
        Ok(PendingErasure {
            task,
            deletions: checked.orders.iter().map(|o| o.deletion).collect(),
            events: local.events.concerned(&checked.what),
            of: local.events.list().len(),
            from: checked.what.from,
        })
    }

    /// Fetches the orders of a task and checks them.
    async fn fetch_orders(&mut self, task: u64) -> Result<Checked, ClientError> {
        let seen = self.seen()?;
        self.checked(Request::Orders { task, seen }).await
    }

    /// Entries of the newest head of the log that was seen.
    pub(crate) fn seen(&self) -> Result<u64, ClientError> {
        Ok(self.local()?.person.head.map_or(0, |h| h.size))
    }

    /// Fetches orders and checks them. None of them is obeyed unless all hold.
    pub(crate) async fn checked(&mut self, ask: Request) -> Result<Checked, ClientError> {
        let Reply::Orders(orders) = self.call(&ask).await? else {
            return Err(TransportError::UnexpectedReply { asked: "orders" }.into());
        };
        let Orders {
            orders,
            checkpoint,
            consistency,
        } = orders;
        let key = self.log_key_of(&checkpoint).await?;
        let local = self.local()?;
        // A device that enrolled with an older version does not know whose it is.
        let named = orders
            .iter()
            .map(|o| o.subject.as_str())
            .find(|s| !s.is_empty());
        let own = local.person.subject.as_ref().map(|s| s.as_str());
        let subject = own.or(named).unwrap_or_default().to_owned();
        let head = check(
            &orders,
            &subject,
            &checkpoint,
            &key,
            local.person.head,
            &consistency,
        )?;
        drop(local);
        self.see(head)?;
        let items = orders.iter().flat_map(|o| o.items.clone()).collect();
        let from = orders.iter().filter_map(|o| o.from).min();
        let what = Erasure { items, from };
        Ok(Checked { orders, what })
    }

    /// Erases what orders name that an older copy of this folder lacks. The coordinator is told
    /// nothing: it knows them as carried out. False: the person has to consent first.
    pub(crate) fn erase_again(
        &mut self,
        checked: &Checked,
        consented: bool,
    ) -> Result<bool, ClientError> {
        let pending = self.pending_of(0, checked)?;
        let left = (pending.of - pending.events) as u64;
        let all = pending.of as u64 + self.local()?.person.ordered_away;
        let almost_all = pending.events > 0 && left * 10 < all;
        if almost_all && !consented && !self.shared.options.consent.given(&pending) {
            self.local()?.pending = Some(pending);
            return Ok(false);
        }
        self.erase_locally(checked, almost_all)?;
        let mut local = self.local()?;
        // What it counted was counted when it was carried out first.
        local.person.removed.clear();
        local.person.lists.contributed = None;
        local.save()?;
        Ok(true)
    }

    /// Erases what the orders name, tells the coordinator how much that was, and joins with what
    /// remains.
    async fn erase_some(
        &mut self,
        task: u64,
        checked: Checked,
        consented: bool,
    ) -> Result<(), ClientError> {
        let removed = self.erase_locally(&checked, consented)?;
        if let Some(newest) = checked.newest() {
            self.local()?.has_erased(newest)?;
        }
        let outcome = Erased::Done { removed };
        self.call(&Request::Erased { task, outcome }).await?;
        {
            let mut local = self.local()?;
            local.person.removed.clear();
            // The person has left the sums: what remains is contributed again.
            local.person.lists.contributed = None;
            local.save()?;
        }
        // It may have been refused for what this device had to erase.
        self.contribute_at = 0;
        // What remains of what counted, not what was recorded since: the rest of the shard's
        // training stands on it.
        self.join_what_remains().await
    }

    /// What is to be reported: per deletion, how many events are gone.
    fn erase_locally(
        &self,
        checked: &Checked,
        consented: bool,
    ) -> Result<Vec<(u64, u32)>, ClientError> {
        let mut local = self.local()?;
        // What an earlier attempt has counted is not counted again.
        local.finish_erasing()?;
        let found: Vec<(u64, usize)> = checked
            .orders
            .iter()
            .map(|o| (o.deletion, local.events.concerned(&erasure(o))))
            .collect();
        let gone = local.events.concerned(&checked.what) as u64;
        let what = &checked.what;
        local.pending = None;
        local.erase_some(what, &self.catalogue(), |person| {
            for (deletion, events) in found {
                count_removed(&mut person.removed, deletion, events as u32);
            }
            let earlier = person.ordered_away;
            person.ordered_away = if consented { 0 } else { earlier + gone };
            person.consent_until = person.consent_until.into_iter().chain(what.from).min();
        })?;
        Ok(local.person.removed.clone())
    }
}

/// Adds to what is reported for a deletion.
fn count_removed(removed: &mut Vec<(u64, u32)>, deletion: u64, events: u32) {
    match removed.iter_mut().find(|(d, _)| *d == deletion) {
        Some((_, n)) => *n = n.saturating_add(events),
        None => removed.push((deletion, events)),
    }
}
