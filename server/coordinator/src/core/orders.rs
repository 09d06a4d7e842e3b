//! Orders to erase: entered into the log before a device is told, and what devices answer.

use lethe_proto::admin::{DeletionPhase, Removed};
use lethe_proto::ids::SubjectId;
use lethe_proto::message::{EraseOrder, Erased, Orders, Refusal};
use lethe_receipt::order::Order;
use lethe_store::sealed::{Batch, KeyName};

use super::Core;
use crate::CoordinatorError;
use crate::records::{DeletionRecord, OrderRecord, PendingErase, RemovedRecord, SubjectRecord};

fn refuse(code: Refusal, message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(code, message)
}

/// The statement that the log's entry commits to.
fn order(id: u64, d: &DeletionRecord) -> Order {
    let r = &d.request;
    let subject = r.subject().map_or("", SubjectId::as_str);
    Order::new(id, r.kind(), &d.salt, subject, r.items(), r.from())
}

/// Whether a deletion is part of what a device has yet to erase.
fn is_part(d: &DeletionRecord, pending: &PendingErase) -> bool {
    let later = |from: i64| pending.from.is_some_and(|p| p <= from);
    let named = d.request.items().iter().all(|i| pending.items.contains(i));
    d.task.is_some() && named && d.request.from().is_none_or(later)
}

impl Core {
    /// Enters the order of a deletion into the log, unless it is there. Returns its entry.
    pub(super) fn log_order(&mut self, id: u64) -> Result<u64, CoordinatorError> {
        if let Some(known) = self.orders.get(&id) {
            return Ok(known.index);
        }
        let Some(d) = self.deletions.get(&id) else {
            return Err(refuse(Refusal::Internal, format!("no deletion {id}")));
        };
        let (order, salt) = (order(id, d), d.salt);
        let index = self.enter_entry(&order.entry(&salt))?;
        let record = OrderRecord { index };
        let batch = Batch::new().put(&KeyName::evidence(id), &id.to_string(), &record)?;
        self.store.write(batch)?;
        self.orders.insert(id, record);
        Ok(index)
    }

    /// Enters the orders of deletions that ask devices.
    pub(super) fn log_orders(&mut self, ids: &[u64]) -> Result<(), CoordinatorError> {
        for id in ids {
            if self.deletions.get(id).is_some_and(|d| d.task.is_some()) {
                self.log_order(*id)?;
            }
        }
        Ok(())
    }

    /// A device connects anew: it is told again what it has yet to erase.
    pub(crate) fn said_hello(&mut self, subject: &SubjectId) {
        self.unconsented.remove(subject);
    }

    /// The orders behind a task, for a device that has seen a head of `seen` entries.
    pub(crate) fn orders(
        &mut self,
        subject: &SubjectId,
        task: u64,
        seen: u64,
    ) -> Result<Orders, CoordinatorError> {
        let pending = self.subjects.get(subject).and_then(|r| r.erase.clone());
        let Some(pending) = pending.filter(|e| e.task == task) else {
            let message = "there is no such order now: ask for work again";
            return Err(refuse(Refusal::RoundClosed, message));
        };
        let ids: Vec<u64> = self
            .deletions
            .iter()
            .filter(|(_, d)| d.request.concerns(subject) && is_part(d, &pending))
            .map(|(id, _)| *id)
            .collect();
        // All are in the log before the first proof: each has to be about the head that is sent.
        self.log_orders(&ids)?;
        let mut orders = vec![];
        for id in ids {
            let index = self.log_order(id)?;
            let proof = self.tree.inclusion(index).unwrap_or_default();
            let Some(d) = self.deletions.get(&id) else {
                continue;
            };
            let r = &d.request;
            orders.push(EraseOrder {
                deletion: id,
                kind: r.kind().into(),
                subject: r.subject().map_or("", SubjectId::as_str).into(),
                items: r.items().to_vec(),
                from: r.from(),
                salt: d.salt,
                index,
                proof,
            });
        }
        let consistency = self.tree.consistency(seen).unwrap_or_default();
        Ok(Orders {
            orders,
            checkpoint: self.checkpoint(),
            consistency,
        })
    }

    /// What a subject's device did with an order.
    pub(crate) fn erased(
        &mut self,
        subject: &SubjectId,
        task: u64,
        outcome: &Erased,
    ) -> Result<(), CoordinatorError> {
        let Some(mut record) = self.subjects.get(subject).cloned() else {
            return Ok(());
        };
        let Some(e) = record.erase.as_mut() else {
            return Ok(());
        };
        if e.task != task {
            // More was ordered meanwhile. What the device removed must not be lost with an
            // acknowledgement: it reports it with the newer task.
            let message = "more was ordered meanwhile: ask for work again";
            return Err(refuse(Refusal::RoundClosed, message));
        }
        match outcome {
            Erased::Done { removed } => {
                if e.confirmed {
                    return Ok(());
                }
                e.confirmed = true;
                self.confirm(subject, record, removed)
            }
            Erased::WaitsForConsent => {
                self.unconsented.insert(subject.clone());
                if record.idle {
                    return Ok(());
                }
                // Nobody waits for it: the person is left out of training, as after the deadline.
                record.idle = true;
                self.save_subject(subject, record)?;
                self.wake.everybody = true;
                Ok(())
            }
        }
    }

    /// One write: that the device has answered, and what it removed for each deletion.
    fn confirm(
        &mut self,
        subject: &SubjectId,
        record: SubjectRecord,
        removed: &[(u64, u32)],
    ) -> Result<(), CoordinatorError> {
        let owner = KeyName::subject(subject.as_str());
        let mut batch = Batch::new().put(&owner, subject.as_str(), &record)?;
        let mut changed = vec![];
        for (id, d) in &self.deletions {
            let open = d.phase != DeletionPhase::Done && d.task.is_some();
            let told = removed.iter().find(|(deletion, _)| deletion == id);
            let Some((_, events)) = told.filter(|_| open && d.request.concerns(subject)) else {
                continue;
            };
            let before = self.removed.get(id).copied().unwrap_or_default();
            let now = RemovedRecord {
                events: before.events.saturating_add(u64::from(*events)),
                answered: before.answered.saturating_add(1),
            };
            batch = batch.put(&KeyName::evidence(*id), &id.to_string(), &now)?;
            changed.push((*id, now));
        }
        self.store.write(batch)?;
        self.unconsented.remove(subject);
        self.touched(record.shard);
        self.subjects.insert(subject.clone(), record);
        self.removed.extend(changed);
        Ok(())
    }

    /// What devices removed for a deletion so far; `None` when it asks nothing of them.
    pub(super) fn removed_for(&self, id: u64, d: &DeletionRecord) -> Option<Removed> {
        d.task?;
        let told = self.removed.get(&id).copied().unwrap_or_default();
        let away = self.subjects.iter().filter(|(s, r)| {
            let pending = r.erase.as_ref().filter(|e| !e.confirmed && is_part(d, e));
            d.request.concerns(s) && pending.is_some() && r.idle
        });
        let (waiting, silent): (Vec<_>, Vec<_>) =
            away.partition(|(s, _)| self.unconsented.contains(*s));
        Some(Removed {
            events: told.events,
            answered: told.answered,
            silent: silent.len() as u32,
            unconsented: waiting.len() as u32,
        })
    }
}
