//! The middle layers over the connection.

use std::sync::Arc;
use std::time::Duration;

use lethe_model::ModelError;
use lethe_model::layout::Layout;
use lethe_model::split::{Middle, Stage};
use lethe_proto::ids::RoundKey;
use lethe_proto::message::{BatchShape, Purpose, Reply, Request};
use lethe_proto::payload::{Payload, WireFormat};
use lethe_transport::TransportError;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::conditions::Watch;
use crate::session::Session;

/// Longest that a list waits for a coordinator that has too much to do.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs on a blocking thread; each pass is one call.
pub(crate) struct RemoteMiddle {
    session: Arc<Session>,
    runtime: Handle,
    purpose: Purpose,
    format: WireFormat,
    width: usize,
    rows: usize,
    /// Training may be stopped between passes; scoring is not.
    watch: Option<Watch>,
    /// The round's end: until then a pass is tried again on a new connection.
    until: Option<Instant>,
    /// Training passes so far.
    pass: u32,
    /// A layer below the middle is trained: the gradient comes back.
    pub(crate) below_trains: bool,
    /// Backward passes until the optimiser step, this one included.
    pub(crate) passes_in_step: usize,
    /// How long scoring waits for a coordinator that has too much to do, all its passes together.
    patience: Duration,
}

impl RemoteMiddle {
    pub(crate) fn new(
        session: Arc<Session>,
        purpose: Purpose,
        format: WireFormat,
        width: usize,
    ) -> Self {
        Self {
            session,
            runtime: Handle::current(),
            purpose,
            format,
            width,
            rows: 0,
            watch: None,
            until: None,
            pass: 0,
            below_trains: true,
            passes_in_step: 0,
            patience: PATIENCE,
        }
    }

    /// Stops when `watch` says so; until the end of the round, lost connections are opened again.
    pub(crate) fn watched(mut self, watch: Watch, until: Instant) -> Self {
        (self.watch, self.until) = (Some(watch), Some(until));
        self
    }

    fn round(&self) -> Option<RoundKey> {
        match &self.purpose {
            Purpose::Train { round, .. } | Purpose::Frozen { round } => Some(*round),
            Purpose::Score { .. } => None,
        }
    }

    fn exchange(&mut self, request: &Request, sent: usize) -> Result<Vec<f32>, ModelError> {
        let failed = |e: TransportError| ModelError::Middle(Box::new(e));
        let call = async {
            match self.until {
                Some(until) => self.session.call_until(request, until).await,
                None => {
                    let patience = &mut self.patience;
                    self.session.call_while_busy(request, patience).await
                }
            }
        };
        let reply = match &self.watch {
            None => self.runtime.block_on(call),
            Some(watch) => {
                watch.pass()?;
                self.runtime.block_on(async {
                    tokio::select! {
                        reply = call => Ok(reply),
                        stopped = watch.ended() => Err(ModelError::Middle(Box::new(stopped))),
                    }
                })?
            }
        };
        match reply.map_err(failed)? {
            Reply::Hidden(p) => {
                self.session.count_activations(sent + p.bytes.len());
                p.decode(self.rows, self.width)
                    .map_err(|e| ModelError::Middle(Box::new(e)))
            }
            _ => Err(failed(TransportError::UnexpectedReply {
                asked: "forward or backward",
            })),
        }
    }
}

impl Middle for RemoteMiddle {
    fn forward(
        &mut self,
        layout: &Layout,
        hidden: Vec<f32>,
        stage: Stage,
    ) -> Result<Vec<f32>, ModelError> {
        if stage == Stage::Above {
            return Err(ModelError::Shape(
                "the coordinator's middle scores from its first layer on".into(),
            ));
        }
        self.rows = layout.rows();
        let purpose = match (stage, self.round()) {
            (Stage::Frozen, Some(round)) => Purpose::Frozen { round },
            (_, Some(round)) => {
                self.pass += 1;
                Purpose::Train {
                    round,
                    pass: self.pass,
                }
            }
            (_, None) => self.purpose.clone(),
        };
        let hidden = Payload::encode(&hidden, self.width, self.format);
        let sent = hidden.bytes.len();
        let shape = BatchShape {
            prefix: layout.prefix,
            lens: layout.lens.clone(),
        };
        self.exchange(
            &Request::Forward {
                purpose,
                shape,
                hidden,
            },
            sent,
        )
    }

    fn backward(&mut self, grad: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        let round = self
            .round()
            .ok_or_else(|| ModelError::Shape("a scoring pass has no backward".into()))?;
        self.passes_in_step = self.passes_in_step.saturating_sub(1);
        self.pass += 1;
        let grad = Payload::encode(&grad, self.width, self.format);
        if !self.below_trains {
            self.rows = 0;
        }
        let sent = grad.bytes.len();
        self.exchange(
            &Request::Backward {
                round,
                pass: self.pass,
                grad,
                step: self.passes_in_step == 0,
            },
            sent,
        )
    }
}
