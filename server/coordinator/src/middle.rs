//! The middle layers: training sessions, and passes on a bounded pool.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lethe_model::layout::Layout;
use lethe_model::lora::Adapter;
use lethe_model::segment::Segment;
use lethe_model::split::{LocalMiddle, Middle, Stage};
use lethe_proto::ids::{RoundKey, SubjectId};
use lethe_proto::limits::MAX_TOKENS;
use lethe_proto::message::{BatchShape, Refusal};
use lethe_proto::payload::{Payload, WireFormat};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::CoordinatorError;
use crate::batch::Queue;
use crate::slots::{Slots, Taken};

/// Longest wait of a training forward for memory to be free.
const TAPE_WAIT: Duration = Duration::from_secs(60);

/// Longest time between a training forward and its backward; what the forward keeps is dropped then.
const TAPE_LIFE: Duration = Duration::from_secs(180);

/// A client's middle adapter during a round; dropped when the round closes, the client sends its update or goes away.
#[derive(Debug)]
pub(crate) struct Session {
    middle: LocalMiddle,
    start: Vec<f32>,
    /// Held from a training forward to its backward: what the passes keep in memory is bounded.
    tape: Option<(OwnedSemaphorePermit, Instant)>,
}

type At = (RoundKey, SubjectId);

/// Layers, sessions and the bound on passes.
#[derive(Debug)]
pub(crate) struct MiddleHost {
    segment: Segment,
    /// The first trained layer of the whole model.
    cut: usize,
    slots: Mutex<Slots<At, Session>>,
    /// Scoring passes that wait.
    queue: Queue,
    passes: Arc<Semaphore>,
    tapes: Arc<Semaphore>,
}

fn refuse(code: Refusal, message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(code, message)
}

fn lost() -> CoordinatorError {
    refuse(Refusal::SessionLost, "no training session for this round: ask for work again")
}

impl MiddleHost {
    pub(crate) fn new(segment: Segment, cut: usize, (passes, tapes): (usize, usize)) -> Self {
        let bound = |n: usize| Arc::new(Semaphore::new(n.max(1)));
        let (passes, tapes) = (bound(passes), bound(tapes));
        Self { segment, cut, slots: Mutex::default(), queue: Queue::default(), passes, tapes }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots<At, Session>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens (or restarts) a subject's session with the round's middle adapter.
    pub(crate) fn open(&self, round: RoundKey, subject: &SubjectId, adapter: Adapter) {
        let start = adapter.data.clone();
        let middle = LocalMiddle::new(self.segment.clone(), adapter);
        self.slots().open((round, subject.clone()), Session { middle, start, tape: None });
    }

    fn take(&self, at: &At) -> Result<Taken<Session>, CoordinatorError> {
        self.slots().take(at).ok_or_else(lost)
    }

    /// Puts a session back, unless it was closed or replaced while the pass ran: then its results count no more.
    fn put_back(&self, at: &At, taken: Taken<Session>) -> Result<(), CoordinatorError> {
        if self.slots().put_back(at, taken) { Ok(()) } else { Err(lost()) }
    }

    /// Ends a session: the change of the middle adapter, flat.
    pub(crate) fn finish(&self, round: RoundKey, subject: &SubjectId) -> Result<Vec<f32>, CoordinatorError> {
        let at = (round, subject.clone());
        let s = self.take(&at)?.content;
        self.slots().close(&at);
        Ok(s.middle.adapter.data.iter().zip(&s.start).map(|(a, b)| a - b).collect())
    }

    /// The sessions that are open.
    pub(crate) fn open_sessions(&self) -> Vec<At> {
        self.slots().keys()
    }

    /// Drops a session; a pass that works on it loses its result.
    pub(crate) fn close(&self, round: RoundKey, subject: &SubjectId) {
        self.slots().close(&(round, subject.clone()));
    }

    /// Drops all sessions of a subject, whose client went away.
    pub(crate) fn close_all(&self, subject: &SubjectId) {
        self.slots().retain(|(_, s), _| s != subject);
    }

    /// Drops sessions whose backward has not come in time: what they keep is needed by others.
    pub(crate) fn expire(&self) {
        let late = |s: &Session| s.tape.as_ref().is_some_and(|(_, since)| since.elapsed() > TAPE_LIFE);
        self.slots().retain(|_, session| !session.is_some_and(late));
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
        let out = self.queue.run(&self.segment, &self.passes, (layout, hidden, adapter)).await?;
        Ok(self.pack(&out, format))
    }

    /// The layers below the first trained one.
    pub(crate) async fn frozen(
        &self,
        layout: Layout,
        hidden: Vec<f32>,
        format: WireFormat,
    ) -> Result<Payload, CoordinatorError> {
        let below = self.segment.part(0..self.cut);
        let out = self.pass(move || Ok(below.forward(&layout, hidden, None)?)).await?;
        Ok(self.pack(&out, format))
    }

    /// Forward pass of a training batch.
    pub(crate) async fn forward(
        &self,
        at: At,
        layout: Layout,
        hidden: Vec<f32>,
        format: WireFormat,
    ) -> Result<Payload, CoordinatorError> {
        // A repeated forward gives back what the one before it kept before it waits for its turn.
        let mut taken = self.take(&at)?;
        taken.content.middle.drop_tape();
        taken.content.tape = None;
        self.put_back(&at, taken)?;
        let busy = || refuse(Refusal::Busy, "too many clients train at once: try again");
        let wait = tokio::time::timeout(TAPE_WAIT, self.tapes.clone().acquire_owned()).await;
        let permit = wait.map_err(|_| busy())?.map_err(|_| busy())?;
        let mut taken = self.take(&at)?;
        taken.content.tape = Some((permit, Instant::now()));
        let (out, taken) = self
            .pass(move || {
                let out = taken.content.middle.forward(&layout, hidden, Stage::Train)?;
                Ok((out, taken))
            })
            .await?;
        self.put_back(&at, taken)?;
        Ok(self.pack(&out, format))
    }

    /// Backward pass of the last training batch; with `step`, one gradient step at rate `lr` follows.
    pub(crate) async fn backward(&self, at: At, grad: Payload, step: Option<f32>) -> Result<Payload, CoordinatorError> {
        let mut taken = self.take(&at)?;
        let width = self.segment.config().hidden;
        let rows = taken.content.middle.pending_rows().unwrap_or(0);
        let format = grad.format;
        // Nobody below is trained: no gradient is sent.
        let needed = self.cut < self.segment.range().start;
        let grad = grad.decode(rows, width).map_err(|e| refuse(Refusal::Invalid, e.to_string()))?;
        let (out, taken) = self
            .pass(move || {
                let mut out = taken.content.middle.backward(grad)?;
                if !needed {
                    out.clear();
                }
                taken.content.tape = None;
                if let Some(lr) = step {
                    taken.content.middle.descend(lr);
                }
                Ok((out, taken))
            })
            .await?;
        self.put_back(&at, taken)?;
        Ok(self.pack(&out, format))
    }
}
