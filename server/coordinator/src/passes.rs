//! Passes over the coordinator's layers, for training and for lists.

use lethe_model::lora::Adapter;
use lethe_proto::ids::{RoundKey, SubjectId};
use lethe_proto::message::{BatchShape, Purpose, Reply};
use lethe_proto::payload::Payload;
use lethe_recipe::Combination;

use crate::CoordinatorError;
use crate::coordinator::Coordinator;
use crate::handlers::Device;
use crate::middle::check_weights;

/// A request for a pass over the coordinator's layers.
pub(crate) struct Pass {
    pub(crate) purpose: Purpose,
    pub(crate) shape: BatchShape,
    pub(crate) hidden: Payload,
}

/// The gradient that comes back from a device's loss.
pub(crate) struct Gradient {
    pub(crate) round: RoundKey,
    pub(crate) pass: u32,
    pub(crate) grad: Payload,
    pub(crate) step: bool,
}

impl Coordinator {
    /// Whether a device's update of a round, or a pass for it, is expected.
    fn expects(&self, device: &Device, round: RoundKey) -> Result<(), CoordinatorError> {
        let now = self.shell().clock.now();
        let state = self.shell().state();
        Ok(state.expects(round, &device.subject, now)?)
    }

    pub(crate) async fn forward(
        &self,
        device: Device,
        pass: Pass,
        bytes: usize,
    ) -> Result<Reply, CoordinatorError> {
        self.count_activations(bytes);
        let _in_work = self.middle().begin(&device.subject)?;
        let Pass {
            purpose,
            shape,
            hidden,
        } = pass;
        let epoch = match &purpose {
            Purpose::Train { round, .. } | Purpose::Frozen { round } => round.epoch,
            Purpose::Score { .. } => self.shell().scoring()?,
        };
        let (layout, x) = self.middle().unpack(epoch, shape, &hidden)?;
        let format = hidden.format;
        // Once is enough.
        drop(hidden);
        let trains = !matches!(purpose, Purpose::Score { .. });
        // Layers below the first trained one keep nothing: they wait as scoring does.
        let needs_tape = matches!(purpose, Purpose::Train { .. });
        let _held = self.middle().hold(&device.subject, needs_tape, x.len())?;
        let reply = match purpose {
            Purpose::Train { round, pass } => {
                self.expects(&device, round)?;
                let at = (round, device.subject);
                self.middle().forward(at, pass, layout, x, format).await?
            }
            Purpose::Frozen { round } => {
                self.expects(&device, round)?;
                self.middle()
                    .frozen(epoch, &device.subject, layout, x, format)
                    .await?
            }
            Purpose::Score { release, omega } => {
                let adapter = self.mixed(&device.subject, release, &omega)?;
                let tuned = adapter.is_some();
                let reply = self
                    .middle()
                    .score(epoch, &device.subject, layout, x, adapter, format)
                    .await?;
                if tuned {
                    // A deletion may have withdrawn the release during the pass: what it knew is
                    // not given out.
                    self.shell().current(release)?;
                }
                reply
            }
        };
        if trains {
            self.count_training(bytes + reply.bytes.len());
        }
        Ok(self.hidden(reply))
    }

    pub(crate) async fn backward(
        &self,
        device: Device,
        gradient: Gradient,
        bytes: usize,
    ) -> Result<Reply, CoordinatorError> {
        self.count_activations(bytes);
        let _in_work = self.middle().begin(&device.subject)?;
        let _one_of_few = self.middle().begin_backward(&device.subject)?;
        let lr = self.shell().kit(gradient.round.epoch)?.recipe.local.lr;
        let at = (gradient.round, device.subject);
        let step = gradient.step.then_some(lr);
        let reply = self
            .middle()
            .backward(at, gradient.pass, gradient.grad, step)
            .await?;
        self.count_training(bytes + reply.bytes.len());
        Ok(self.hidden(reply))
    }

    fn hidden(&self, payload: Payload) -> Reply {
        self.count_activations(payload.bytes.len());
        Reply::Hidden(payload)
    }

    /// The middle part of the adapters that a query's weights give.
    fn mixed(
        &self,
        subject: &SubjectId,
        release: u64,
        omega: &[f32],
    ) -> Result<Option<Adapter>, CoordinatorError> {
        if omega.is_empty() {
            return Ok(None);
        }
        let shell = self.shell();
        shell.current(release)?;
        let served = shell.served()?;
        let shards = served.parts.len();
        check_weights(omega, shards)?;
        let parts = shell.parts_for(&served, subject)?;
        let used = parts.iter().zip(omega).filter(|(_, w)| **w != 0.0);
        let middle: Vec<(&Adapter, f32)> = used.map(|(p, w)| (p.middle.as_ref(), *w)).collect();
        if middle.is_empty() {
            return Ok(None);
        }
        let kit = shell.kit(shell.serving()?)?;
        Ok(Some(match kit.recipe.combine {
            Combination::Nd => Adapter::mix_nd(&middle)?,
            Combination::D => Adapter::mix_d(&middle)?,
        }))
    }
}
