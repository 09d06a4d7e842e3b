//! What many devices bring at the same time, on its way to the store: updates of a round, and that
//! a release was fetched.

use std::sync::Arc;
use std::time::Duration;

use lethe_ledger::RunKey;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::Refusal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::CoordinatorError;
use crate::aggregate::Contribution;
use crate::content::Update;
use crate::group_commit::GroupCommit;
use crate::rounds::internal;

/// Most bytes of updates in one write: what it holds is in memory twice. A write is synced once,
/// whatever it holds.
const TOGETHER: usize = 8 << 20;
/// Most KiB that wait; who comes then waits to be let in.
const WAITING: usize = 128 << 10;
/// Longest wait to be let in.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most fetches in one write.
const FETCHES: usize = 1024;

/// Who waits for an answer.
pub(crate) type Answer = oneshot::Sender<Result<(), CoordinatorError>>;

/// An update that was checked and is to be stored.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) run: RunKey,
    pub(crate) subject: SubjectId,
    pub(crate) update: Update,
    /// What is kept of it in memory.
    pub(crate) contribution: Arc<Contribution>,
    pub(crate) answer: Answer,
    /// Its share of what may wait, until it is stored.
    place: Option<OwnedSemaphorePermit>,
}

impl Arrived {
    pub(crate) fn new(
        run: RunKey,
        subject: SubjectId,
        update: Update,
        contribution: Contribution,
        answer: Answer,
    ) -> Self {
        Self {
            run,
            subject,
            update,
            contribution: Arc::new(contribution),
            answer,
            place: None,
        }
    }

    fn bytes(&self) -> usize {
        self.update.device.bytes.len() + 4 * (self.update.middle.len() + self.update.sketch.len())
    }
}

/// A device that is given a release.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) certificate: Digest,
    pub(crate) release: u64,
    pub(crate) answer: Answer,
}

/// The way in.
#[derive(Debug)]
pub(crate) struct Arrivals {
    updates: GroupCommit<Arrived>,
    fetches: GroupCommit<Fetch>,
    places: Arc<Semaphore>,
}

impl Arrivals {
    /// Starts the threads that store; they end with the last sender.
    pub(crate) fn start(
        store: impl FnMut(Vec<Arrived>) + Send + 'static,
        note: impl FnMut(Vec<Fetch>) + Send + 'static,
    ) -> std::io::Result<Self> {
        Ok(Self {
            updates: GroupCommit::start("lethe-updates", Arrived::bytes, TOGETHER, store)?,
            fetches: GroupCommit::start("lethe-fetches", |_| 1, FETCHES, note)?,
            places: Arc::new(Semaphore::new(WAITING)),
        })
    }

    /// A way that leads nowhere.
    pub(crate) fn closed() -> Self {
        Self {
            updates: GroupCommit::closed(),
            fetches: GroupCommit::closed(),
            places: Arc::new(Semaphore::new(0)),
        }
    }

    /// Stores an update; when this returns, it is durable or it does not count.
    pub(crate) async fn store(
        &self,
        run: RunKey,
        subject: SubjectId,
        update: Update,
        contribution: Contribution,
    ) -> Result<(), CoordinatorError> {
        let ended = || internal(&"the coordinator is shutting down");
        let busy = || {
            CoordinatorError::refuse(
                Refusal::Busy,
                "too many updates wait to be stored: try again",
            )
        };
        let (answer, answered) = oneshot::channel();
        let mut arrived = Arrived::new(run, subject, update, contribution, answer);
        let share = (1 + (arrived.bytes() >> 10)).min(WAITING) as u32;
        let place =
            tokio::time::timeout(PATIENCE, self.places.clone().acquire_many_owned(share)).await;
        arrived.place = Some(place.map_err(|_| busy())?.map_err(|_| ended())?);
        self.updates.put(arrived)?;
        answered.await.map_err(|_| ended())?
    }

    /// Writes down that a device holds a release. A connection has few requests at once, which
    /// bounds how many wait.
    pub(crate) async fn fetched(
        &self,
        certificate: Digest,
        release: u64,
    ) -> Result<(), CoordinatorError> {
        let (answer, answered) = oneshot::channel();
        self.fetches.put(Fetch {
            certificate,
            release,
            answer,
        })?;
        let ended = |_| internal(&"the coordinator is shutting down");
        answered.await.map_err(ended)?
    }
}
