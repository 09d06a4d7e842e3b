//! Updates on their way to the store: those that arrive while one write is being synced go together
//! into the next.

use std::sync::Arc;
use std::time::Duration;

use lethe_ledger::RunKey;
use lethe_proto::ids::SubjectId;
use lethe_proto::message::Refusal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::CoordinatorError;
use crate::aggregate::Contribution;
use crate::content::Update;
use crate::fatal::guarded;

/// Most bytes of updates in one write: what it holds is in memory twice. A write is synced once,
/// whatever it holds.
const TOGETHER: usize = 8 << 20;
/// Most KiB that wait; who comes then waits to be let in.
const WAITING: usize = 128 << 10;
/// How long the first of a write waits for others: a write costs the same for one as for many.
const GATHER: Duration = Duration::from_millis(5);
/// Longest wait to be let in.
const PATIENCE: Duration = Duration::from_secs(60);

/// An update that was checked and is to be stored.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) run: RunKey,
    pub(crate) subject: SubjectId,
    pub(crate) update: Update,
    /// What is kept of it in memory.
    pub(crate) contribution: Arc<Contribution>,
    pub(crate) answer: oneshot::Sender<Result<(), CoordinatorError>>,
    /// Its share of what may wait, until it is stored.
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

impl Arrived {
    fn bytes(&self) -> usize {
        self.update.device.bytes.len() + 4 * (self.update.middle.len() + self.update.sketch.len())
    }
}

/// The way in.
#[derive(Debug)]
pub(crate) struct Arrivals {
    send: mpsc::UnboundedSender<Arrived>,
    places: Arc<Semaphore>,
}

impl Arrivals {
    /// Starts the thread that stores; it ends with the last sender.
    pub(crate) fn start(store: impl FnMut(Vec<Arrived>) + Send + 'static) -> std::io::Result<Self> {
        let (send, receive) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("lethe-updates".into())
            .spawn(move || guarded("the thread that stores updates", || run(receive, store)))?;
        Ok(Self {
            send,
            places: Arc::new(Semaphore::new(WAITING)),
        })
    }

    /// A way that leads nowhere.
    pub(crate) fn closed() -> Self {
        Self {
            send: mpsc::unbounded_channel().0,
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
        let internal =
            || CoordinatorError::refuse(Refusal::Internal, "the coordinator is shutting down");
        let busy = || {
            CoordinatorError::refuse(
                Refusal::Busy,
                "too many updates wait to be stored: try again",
            )
        };
        let (answer, answered) = oneshot::channel();
        let mut arrived = Arrived {
            run,
            subject,
            update,
            contribution: Arc::new(contribution),
            answer,
            place: None,
        };
        let share = (1 + (arrived.bytes() >> 10)).min(WAITING) as u32;
        let place =
            tokio::time::timeout(PATIENCE, self.places.clone().acquire_many_owned(share)).await;
        arrived.place = Some(place.map_err(|_| busy())?.map_err(|_| internal())?);
        self.send.send(arrived).map_err(|_| internal())?;
        answered.await.map_err(|_| internal())?
    }
}

fn run(mut receive: mpsc::UnboundedReceiver<Arrived>, mut store: impl FnMut(Vec<Arrived>)) {
    while let Some(first) = receive.blocking_recv() {
        std::thread::sleep(GATHER);
        let mut bytes = first.bytes();
        let mut together = vec![first];
        while bytes < TOGETHER
            && let Ok(next) = receive.try_recv()
        {
            bytes += next.bytes();
            together.push(next);
        }
        store(together);
    }
}
