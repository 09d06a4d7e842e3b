//! One handler for each request. A handler locks the core for moments, to ask and to decide; passes
//! over the model, checks of updates and writes that many wait for happen without the lock.

use lethe_model::lora::Adapter;
use lethe_proto::admin::AdminRequest;
use lethe_proto::ids::{Digest, RoundKey, SubjectId};
use lethe_proto::limits::{MAX_POLL_WAIT, MINOR};
use lethe_proto::message::{BatchShape, Erased, Purpose, Refusal, Reply, Request, Role, Task};
use lethe_proto::payload::Payload;
use lethe_recipe::Combination;

use crate::CoordinatorError;
use crate::coordinator::Coordinator;
use crate::core::Work;
use crate::core::updates::Sent;
use crate::records::Update;

/// What came with a request: the digest of the client's certificate, and the request's length.
#[derive(Clone, Copy)]
pub(crate) struct Envelope {
    pub(crate) certificate: Option<Digest>,
    pub(crate) bytes: usize,
}

/// A request for a pass over the coordinator's layers.
struct Pass {
    purpose: Purpose,
    shape: BatchShape,
    hidden: Payload,
}

/// The gradient that comes back from a device's loss.
struct Gradient {
    round: RoundKey,
    pass: u32,
    grad: Payload,
    step: bool,
}

fn refuse(code: Refusal, message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(code, message)
}

fn forbidden() -> CoordinatorError {
    refuse(
        Refusal::Forbidden,
        "this certificate has no right to this request: enrol, or use an admin identity",
    )
}

impl Coordinator {
    /// Answers a request of anybody.
    pub(crate) async fn answer(
        &self,
        envelope: Envelope,
        request: Request,
    ) -> Result<Reply, CoordinatorError> {
        let Some(certificate) = envelope.certificate else {
            return match request {
                Request::Enrol {
                    token,
                    csr,
                    subject,
                } => self.enrol(&token, &csr, subject.as_ref()),
                _ => Err(forbidden()),
            };
        };
        let role = self.core().role(&certificate);
        match (role, request) {
            (Some(role), Request::Renew { csr }) => self.renew(role, certificate, &csr),
            (Some(Role::Admin), Request::Admin(request)) => self.admin(request, certificate),
            (Some(Role::Subject(subject)), request) => {
                self.answer_device(subject, request, envelope.bytes).await
            }
            _ => Err(forbidden()),
        }
    }

    async fn answer_device(
        &self,
        subject: SubjectId,
        request: Request,
        bytes: usize,
    ) -> Result<Reply, CoordinatorError> {
        match request {
            Request::Hello { model, .. } => self.hello(&subject, model),
            Request::Join {
                anchor,
                samples,
                commitment,
            } => self.join(&subject, anchor, samples, commitment),
            Request::Poll => self.poll(&subject).await,
            Request::Forward {
                purpose,
                shape,
                hidden,
            } => {
                let pass = Pass {
                    purpose,
                    shape,
                    hidden,
                };
                self.forward(subject, pass, bytes).await
            }
            Request::Backward {
                round,
                pass,
                grad,
                step,
            } => {
                let gradient = Gradient {
                    round,
                    pass,
                    grad,
                    step,
                };
                self.backward(subject, gradient, bytes).await
            }
            Request::Update {
                round,
                delta,
                loss,
                samples,
            } => {
                let sent = Sent {
                    device: delta,
                    middle: vec![],
                    loss,
                    samples,
                    joined: 0,
                };
                self.update(subject, round, sent, bytes).await
            }
            Request::Release { have, adapters } => self.release(&subject, have, &adapters).await,
            Request::Weigh { embedding } => self.weigh(&embedding),
            Request::Errors { release, rows } => {
                self.core().take_errors(&subject, release, rows)?;
                Ok(Reply::Ack)
            }
            Request::Erased { task, outcome } => self.erased(&subject, task, &outcome),
            Request::Orders { task, seen } => {
                Ok(Reply::Orders(self.core().orders(&subject, task, seen)?))
            }
            Request::Decline { round, why } => {
                tracing::debug!(%subject, ?round, ?why, "declined");
                self.decline(&subject, round)
            }
            Request::Enrol { .. } | Request::Renew { .. } | Request::Admin(_) => Err(refuse(
                Refusal::Forbidden,
                "not with a subject's certificate",
            )),
        }
    }

    fn enrol(
        &self,
        token: &str,
        csr: &[u8],
        device_of: Option<&SubjectId>,
    ) -> Result<Reply, CoordinatorError> {
        let (certificate, subject) = self.core().enrol(token, csr, device_of)?;
        Ok(Reply::Enrolled {
            certificate,
            subject,
        })
    }

    fn renew(&self, role: Role, current: Digest, csr: &[u8]) -> Result<Reply, CoordinatorError> {
        let certificate = self.core().renew(current, csr)?;
        let subject = match role {
            Role::Subject(s) => Some(s),
            Role::Admin => None,
        };
        Ok(Reply::Enrolled {
            certificate,
            subject,
        })
    }

    fn admin(&self, request: AdminRequest, by: Digest) -> Result<Reply, CoordinatorError> {
        let traffic = self.traffic();
        let now = self.now();
        let changes = request.changes();
        let reply = {
            let mut core = self.core();
            let reply = core.admin(request, by, traffic, now);
            core.wake.everybody |= changes;
            reply?
        };
        self.after_change(true);
        Ok(Reply::Admin(reply))
    }

    fn hello(&self, subject: &SubjectId, model: Digest) -> Result<Reply, CoordinatorError> {
        let mut core = self.core();
        if model != core.model {
            let message = format!(
                "this epoch uses base model {}, the client has {}",
                core.model, model
            );
            return Err(refuse(Refusal::WrongModel, message));
        }
        core.said_hello(subject);
        Ok(Reply::Welcome {
            recipe: core.recipe.to_json(),
            anchors: core.anchors.clone(),
            engine: lethe_model::engine(),
            minor: MINOR,
            log_key: core.log_key(),
            recalled: core.recalled,
        })
    }

    fn join(
        &self,
        subject: &SubjectId,
        anchor: Option<u16>,
        samples: u32,
        commitment: Digest,
    ) -> Result<Reply, CoordinatorError> {
        let (shard, commitment) = self.core().join(subject, anchor, samples, commitment)?;
        self.after_change(false);
        Ok(Reply::Joined { shard, commitment })
    }

    /// Answers at once when there is work, else when something changes or the wait is over.
    async fn poll(&self, subject: &SubjectId) -> Result<Reply, CoordinatorError> {
        let deadline = tokio::time::Instant::now() + MAX_POLL_WAIT;
        let waiting = self.waiters().enter(subject);
        let known = self.core().recalled;
        loop {
            let now = self.now();
            let (work, recalled) = {
                let mut core = self.core();
                (core.next_work(subject, now)?, core.recalled)
            };
            self.wake_others();
            let task = match work {
                Some(Work::Task(task)) => task,
                Some(Work::Train(start, middle)) => {
                    self.middle().open(start.round, subject, middle);
                    Task::Train(start)
                }
                // A device that waits must not go on showing what was recalled.
                None if recalled != known => Task::Wait,
                None => {
                    let told = waiting.notify.notified();
                    if tokio::time::timeout_at(deadline, told).await.is_ok() {
                        continue;
                    }
                    Task::Wait
                }
            };
            // As it is now: the wait may have been long.
            let recalled = recalled.max(self.core().recalled);
            return Ok(Reply::Task { task, recalled });
        }
    }

    async fn forward(
        &self,
        subject: SubjectId,
        pass: Pass,
        bytes: usize,
    ) -> Result<Reply, CoordinatorError> {
        self.count_activations(bytes);
        let Pass {
            purpose,
            shape,
            hidden,
        } = pass;
        let (layout, x) = self.middle().unpack(shape, &hidden)?;
        let trains = !matches!(purpose, Purpose::Score { .. });
        let reply = match purpose {
            Purpose::Train { round, pass } => {
                let now = self.now();
                self.core().expects(round, &subject, now)?;
                let at = (round, subject);
                self.middle()
                    .forward(at, pass, layout, x, hidden.format)
                    .await?
            }
            Purpose::Frozen { round } => {
                let now = self.now();
                self.core().expects(round, &subject, now)?;
                self.middle().frozen(layout, x, hidden.format).await?
            }
            Purpose::Score { release, omega } => {
                let adapter = self.mixed(&subject, release, &omega)?;
                let tuned = adapter.is_some();
                let reply = self
                    .middle()
                    .score(layout, x, adapter, hidden.format)
                    .await?;
                if tuned {
                    // A deletion may have withdrawn the release during the pass: what it knew is
                    // not given out.
                    self.core().current(release)?;
                }
                reply
            }
        };
        if trains {
            self.count_training(bytes + reply.bytes.len());
        }
        Ok(self.hidden(reply))
    }

    async fn backward(
        &self,
        subject: SubjectId,
        gradient: Gradient,
        bytes: usize,
    ) -> Result<Reply, CoordinatorError> {
        self.count_activations(bytes);
        let lr = self.core().recipe.local.lr;
        let at = (gradient.round, subject);
        let reply = self
            .middle()
            .backward(
                at,
                gradient.pass,
                gradient.grad,
                gradient.step.then_some(lr),
            )
            .await?;
        self.count_training(bytes + reply.bytes.len());
        Ok(self.hidden(reply))
    }

    async fn update(
        &self,
        subject: SubjectId,
        round: RoundKey,
        mut sent: Sent,
        bytes: usize,
    ) -> Result<Reply, CoordinatorError> {
        self.count_update(bytes);
        self.count_training(bytes);
        let now = self.now();
        let (whole, recipe) = {
            let mut core = self.core();
            if core.holds(round, &subject) {
                // The acknowledgement was lost: it counts once and is acknowledged again.
                return Ok(Reply::Ack);
            }
            core.expects(round, &subject, now)?;
            sent.joined = core.joined_samples(&subject);
            (core.whole(), core.recipe.clone())
        };
        sent.middle = self.middle().finish(round, &subject)?;
        let update = Update::checked(&recipe, &whole, round, sent)?;
        let contribution = update.contribution(&recipe, &whole)?;
        self.arrivals()
            .store(round, subject, update, contribution)
            .await?;
        Ok(Reply::Ack)
    }

    /// What is served. That the device holds it is written down first, without the lock: a
    /// thousand devices fetch a release at the same time.
    async fn release(
        &self,
        subject: &SubjectId,
        have: Option<u64>,
        known: &[Digest],
    ) -> Result<Reply, CoordinatorError> {
        let (info, note) = {
            let mut core = self.core();
            let info = core.release(subject, have, known)?;
            let note = core.will_hold(subject, info.release);
            (info, note)
        };
        if let Some(note) = note {
            let written = tokio::task::spawn_blocking(move || {
                let result = note.write();
                (note, result)
            });
            let ended = |_| refuse(Refusal::Internal, "the coordinator is shutting down");
            let (note, result) = written.await.map_err(ended)?;
            result?;
            let mut core = self.core();
            core.holds_release(note);
            // A deletion may have withdrawn it meanwhile.
            core.current(info.release)?;
        }
        Ok(Reply::Release(info))
    }

    /// APA's weights; the table is shared with the core, the arithmetic happens outside the lock.
    fn weigh(&self, embedding: &[f32]) -> Result<Reply, CoordinatorError> {
        let (apa, table, shards) = self.core().table(embedding)?;
        let factors = if self.core().recipe.combine == Combination::D {
            2
        } else {
            1
        };
        Ok(Reply::Omega(apa.amplified(
            lethe_learn::apa::omega(&apa, &table, embedding, shards),
            factors,
        )))
    }

    fn erased(
        &self,
        subject: &SubjectId,
        task: u64,
        outcome: &Erased,
    ) -> Result<Reply, CoordinatorError> {
        self.core().erased(subject, task, outcome)?;
        self.after_change(false);
        Ok(Reply::Ack)
    }

    fn decline(&self, subject: &SubjectId, round: RoundKey) -> Result<Reply, CoordinatorError> {
        self.middle().close(round, subject);
        let now = self.now();
        self.core().declined(round, subject, now);
        self.after_change(false);
        Ok(Reply::Ack)
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
        let (parts, combine, whole, recipe) = {
            let core = self.core();
            let (parts, combine) = core.scoring(subject, release, omega)?;
            (parts, combine, core.whole(), core.recipe.clone())
        };
        let used = parts.iter().filter(|(_, w)| *w != 0.0);
        let middle: Vec<(Adapter, f32)> = used
            .map(|(a, w)| (a.select(|l| !whole.on_device(&recipe, l)), *w))
            .collect();
        if middle.is_empty() {
            return Ok(None);
        }
        let refs: Vec<(&Adapter, f32)> = middle.iter().map(|(a, w)| (a, *w)).collect();
        Ok(Some(match combine {
            Combination::Nd => Adapter::mix_nd(&refs)?,
            Combination::D => Adapter::mix_d(&refs)?,
        }))
    }
}
