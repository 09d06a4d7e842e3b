//! Updates on their way to the store: those that arrive while one write is being synced go together into the next.

use std::time::Duration;

use lethe_proto::ids::{RoundKey, SubjectId};
use lethe_proto::message::Refusal;
use tokio::sync::{mpsc, oneshot};

use crate::CoordinatorError;
use crate::records::Update;

/// Most updates of one write: what it holds is in memory twice.
const TOGETHER: usize = 64;
/// Most that wait; who comes then waits to be let in.
const WAITING: usize = 256;
/// Longest wait to be let in.
const PATIENCE: Duration = Duration::from_secs(60);

/// An update that was checked and is to be stored.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) round: RoundKey,
    pub(crate) subject: SubjectId,
    pub(crate) update: Update,
    pub(crate) answer: oneshot::Sender<Result<(), CoordinatorError>>,
}

/// The way in.
#[derive(Debug)]
pub(crate) struct Arrivals(mpsc::Sender<Arrived>);

impl Arrivals {
    /// Starts the thread that stores; it ends with the last sender.
    pub(crate) fn start(store: impl FnMut(Vec<Arrived>) + Send + 'static) -> std::io::Result<Self> {
        let (send, receive) = mpsc::channel(WAITING);
        std::thread::Builder::new().name("lethe-updates".into()).spawn(move || run(receive, store))?;
        Ok(Self(send))
    }

    /// A way that leads nowhere.
    pub(crate) fn closed() -> Self {
        Self(mpsc::channel(1).0)
    }

    /// Stores an update; when this returns, it is durable or it does not count.
    pub(crate) async fn store(
        &self,
        round: RoundKey,
        subject: SubjectId,
        update: Update,
    ) -> Result<(), CoordinatorError> {
        let internal = || CoordinatorError::refuse(Refusal::Internal, "the coordinator is shutting down");
        let busy = || CoordinatorError::refuse(Refusal::Busy, "too many updates wait to be stored: try again");
        let (answer, answered) = oneshot::channel();
        let arrived = Arrived { round, subject, update, answer };
        tokio::time::timeout(PATIENCE, self.0.send(arrived)).await.map_err(|_| busy())?.map_err(|_| internal())?;
        answered.await.map_err(|_| internal())?
    }
}

fn run(mut receive: mpsc::Receiver<Arrived>, mut store: impl FnMut(Vec<Arrived>)) {
    while let Some(first) = receive.blocking_recv() {
        let mut together = vec![first];
        while together.len() < TOGETHER
            && let Ok(next) = receive.try_recv()
        {
            together.push(next);
        }
        store(together);
    }
}
