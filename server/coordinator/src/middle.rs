//! The middle layers: training sessions, and passes on a bounded pool.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lethe_model::layout::Layout;
use lethe_model::lora::Adapter;
use lethe_model::segment::Segment;
use lethe_model::split::{LocalMiddle, Middle};
use lethe_proto::ids::{RoundKey, SubjectId};
use lethe_proto::limits::MAX_TOKENS;
use lethe_proto::message::{BatchShape, Refusal};
use lethe_proto::payload::{Payload, WireFormat};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::CoordinatorError;

/// Longest wait of a training forward for memory to be free.
const TAPE_WAIT: Duration = Duration::from_secs(60);

/// A client's middle adapter during a round; dropped when the round closes or the client sends its update.
#[derive(Debug)]
pub(crate) struct Session {
    middle: LocalMiddle,
    start: Vec<f32>,
    /// Held from a training forward to its backward: what the passes keep in memory is bounded.
    tape: Option<OwnedSemaphorePermit>,
}

/// Layers, sessions and the bound on passes.
#[derive(Debug)]
pub(crate) struct MiddleHost {
    segment: Segment,
    sessions: Mutex<HashMap<(RoundKey, SubjectId), Session>>,
    passes: Arc<Semaphore>,
    tapes: Arc<Semaphore>,
}

fn refuse(code: Refusal, message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(code, message)
}

impl MiddleHost {
    pub(crate) fn new(segment: Segment, passes: usize, tapes: usize) -> Self {
        let bound = |n: usize| Arc::new(Semaphore::new(n.max(1)));
        Self { segment, sessions: Mutex::default(), passes: bound(passes), tapes: bound(tapes) }
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<(RoundKey, SubjectId), Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens (or restarts) a subject's session with the round's middle adapter.
    pub(crate) fn open(&self, round: RoundKey, subject: &SubjectId, adapter: Adapter) {
        let start = adapter.data.clone();
        let middle = LocalMiddle::new(self.segment.clone(), adapter);
        self.sessions().insert((round, subject.clone()), Session { middle, start, tape: None });
    }

    fn take(&self, round: RoundKey, subject: &SubjectId) -> Result<Session, CoordinatorError> {
        self.sessions()
            .remove(&(round, subject.clone()))
            .ok_or_else(|| refuse(Refusal::SessionLost, "no training session for this round: ask for work again"))
    }

    /// Ends a session: the change of the middle adapter, flat.
    pub(crate) fn finish(&self, round: RoundKey, subject: &SubjectId) -> Result<Vec<f32>, CoordinatorError> {
        let s = self.take(round, subject)?;
        Ok(s.middle.adapter.data.iter().zip(&s.start).map(|(a, b)| a - b).collect())
    }

    /// The sessions that are open and not inside a pass.
    pub(crate) fn open_sessions(&self) -> Vec<(RoundKey, SubjectId)> {
        self.sessions().keys().cloned().collect()
    }

    /// Drops a session.
    pub(crate) fn close(&self, round: RoundKey, subject: &SubjectId) {
        self.sessions().remove(&(round, subject.clone()));
    }

    /// Layout and hidden values of a request, within all limits.
    pub(crate) fn unpack(&self, shape: BatchShape, hidden: &Payload) -> Result<(Layout, Vec<f32>), CoordinatorError> {
        let layout = Layout { prefix: shape.prefix, lens: shape.lens };
        let invalid = |e: String| refuse(Refusal::Invalid, e);
        layout.check(MAX_TOKENS, self.segment.config().max_positions).map_err(invalid)?;
        let x = hidden.decode(layout.rows(), self.segment.config().hidden).map_err(|e| invalid(e.to_string()))?;
        if x.iter().any(|v| !v.is_finite()) {
            return Err(refuse(Refusal::Invalid, "hidden states hold values that are not finite"));
        }
        Ok((layout, x))
    }

    fn pack(&self, values: &[f32], format: WireFormat) -> Payload {
        Payload::encode(values, self.segment.config().hidden, format)
    }

    async fn pass<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T, CoordinatorError> + Send + 'static,
    ) -> Result<T, CoordinatorError> {
        let failed = |e: String| refuse(Refusal::Internal, e);
        let permit = self.passes.clone().acquire_owned().await.map_err(|e| failed(e.to_string()))?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            f()
        })
        .await
        .map_err(|e| failed(format!("a pass failed: {e}")))?
    }

    /// Scores with an adapter that was mixed for the query (or the untuned model).
    pub(crate) async fn score(
        &self,
        layout: Layout,
        hidden: Vec<f32>,
        adapter: Option<Adapter>,
        format: WireFormat,
    ) -> Result<Payload, CoordinatorError> {
        let segment = self.segment.clone();
        let out = self.pass(move || Ok(segment.forward(&layout, hidden, adapter.as_ref())?)).await?;
        Ok(self.pack(&out, format))
    }

    /// Forward pass of a training batch.
    pub(crate) async fn forward(
        &self,
        at: (RoundKey, SubjectId),
        layout: Layout,
        hidden: Vec<f32>,
        format: WireFormat,
    ) -> Result<Payload, CoordinatorError> {
        let busy = || refuse(Refusal::Busy, "too many clients train at once: try again");
        let wait = tokio::time::timeout(TAPE_WAIT, self.tapes.clone().acquire_owned()).await;
        let permit = wait.map_err(|_| busy())?.map_err(|_| busy())?;
        let mut session = self.take(at.0, &at.1)?;
        session.tape = Some(permit);
        let (out, session) = self
            .pass(move || {
                let out = session.middle.forward(&layout, hidden, true)?;
                Ok((out, session))
            })
            .await?;
        self.sessions().insert(at, session);
        Ok(self.pack(&out, format))
    }

    /// Backward pass of the last training batch; with `step`, one gradient step at rate `lr` follows.
    pub(crate) async fn backward(
        &self,
        at: (RoundKey, SubjectId),
        grad: Payload,
        step: Option<f32>,
    ) -> Result<Payload, CoordinatorError> {
        let mut session = self.take(at.0, &at.1)?;
        let width = self.segment.config().hidden;
        let rows = session.middle.pending_rows().unwrap_or(0);
        let format = grad.format;
        let grad = grad.decode(rows, width).map_err(|e| refuse(Refusal::Invalid, e.to_string()))?;
        let (out, session) = self
            .pass(move || {
                let out = session.middle.backward(grad)?;
                session.tape = None;
                if let Some(lr) = step {
                    session.middle.descend(lr);
                }
                Ok((out, session))
            })
            .await?;
        self.sessions().insert(at, session);
        Ok(self.pack(&out, format))
    }
}
