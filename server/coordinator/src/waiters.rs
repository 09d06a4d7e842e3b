//! Polls that wait for work, by subject: only those for whom something changed are woken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lethe_ledger::Wake;
use lethe_proto::ids::SubjectId;
use tokio::sync::Notify;

/// The polls that wait, each with its own notification: several devices of a person wait each for
/// itself.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<HashMap<SubjectId, Vec<Arc<Notify>>>>);

/// One poll that waits; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    all: &'a Waiters,
    subject: SubjectId,
    /// Told when to look again; also what happened between two looks is not missed.
    pub(crate) notify: Arc<Notify>,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<SubjectId, Vec<Arc<Notify>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a subject from here on.
    pub(crate) fn enter(&self, subject: &SubjectId) -> Waiting<'_> {
        let notify = Arc::<Notify>::default();
        let mut places = self.lock();
        let place = places.entry(subject.clone()).or_default();
        place.push(notify.clone());
        Waiting {
            all: self,
            subject: subject.clone(),
            notify,
        }
    }

    /// Wakes polls, or lets the next look of each not wait.
    pub(crate) fn wake(&self, who: &Wake) {
        let places = self.lock();
        if who.everybody {
            places.values().flatten().for_each(|p| p.notify_one());
            return;
        }
        let theirs = who.subjects.iter().filter_map(|s| places.get(s));
        theirs.flatten().for_each(|p| p.notify_one());
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut places = self.all.lock();
        if let Some(place) = places.get_mut(&self.subject) {
            place.retain(|notify| !Arc::ptr_eq(notify, &self.notify));
            if place.is_empty() {
                places.remove(&self.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_those_concerned_wake_and_nothing_is_missed() {
        let waiters = Waiters::default();
        let id = |n: u32| SubjectId::new(n.to_string()).expect("a number");
        let (a, b) = (waiters.enter(&id(1)), waiters.enter(&id(2)));
        waiters.wake(&Wake {
            everybody: false,
            subjects: [id(1), id(9)].into(),
        });
        let soon = std::time::Duration::from_millis(20);
        assert!(
            tokio::time::timeout(soon, a.notify.notified())
                .await
                .is_ok(),
            "told before it looked"
        );
        assert!(
            tokio::time::timeout(soon, b.notify.notified())
                .await
                .is_err()
        );
        waiters.wake(&Wake {
            everybody: true,
            ..Wake::default()
        });
        assert!(
            tokio::time::timeout(soon, b.notify.notified())
                .await
                .is_ok()
        );
        drop((a, b));
        assert!(waiters.lock().is_empty());
    }

    #[tokio::test]
    async fn each_device_of_a_person_wakes() {
        let waiters = Waiters::default();
        let id = SubjectId::new("1").expect("a name");
        let phone = waiters.enter(&id);
        let tablet = waiters.enter(&id);
        waiters.wake(&Wake {
            everybody: false,
            subjects: [id].into(),
        });
        let soon = std::time::Duration::from_millis(20);
        for device in [&phone, &tablet] {
            let woken = tokio::time::timeout(soon, device.notify.notified()).await;
            assert!(woken.is_ok());
        }
    }
}
