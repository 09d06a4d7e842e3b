//! Requests to answers: locks the core for decisions, runs passes outside the lock.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lethe_model::lora::Adapter;
use lethe_model::source::open;
use lethe_model::split::DeviceModel;
use lethe_proto::codec;
use lethe_proto::ids::{Digest, RoundKey, SubjectId};
use lethe_proto::limits::{MAX_POLL_WAIT, MAX_SMALL, MAX_TOKENS, MINOR};
use lethe_proto::message::{Purpose, Refusal, Reply, Request, Role, Task};
use lethe_proto::payload::Payload;
use lethe_receipt::audit::Bundle;
use lethe_recipe::Combination;
use lethe_recsys::data::{DataSpec, load_items};
use lethe_transport::identity::Invitation;
use lethe_transport::server::{Handler, ReplyFuture, Server};

use crate::CoordinatorError;
use crate::arrivals::{Arrivals, Arrived};
use crate::config::ServerConfig;
use crate::core::updates::Sent;
use crate::core::{Core, Work};
use crate::fatal;
use crate::metrics::{self, Traffic};
use crate::middle::MiddleHost;
use crate::records::Update;
use crate::waiters::Waiters;

/// A running coordinator; cloning shares it.
#[derive(Clone)]
pub struct Coordinator(Arc<Inner>);

struct Inner {
    core: Mutex<Core>,
    middle: MiddleHost,
    server: OnceLock<Server>,
    waiters: Waiters,
    arrivals: Arrivals,
    started: Instant,
    update_bytes: AtomicU64,
    activation_bytes: AtomicU64,
    /// Bytes of training, both ways; the core takes them into its rates.
    training_bytes: Arc<AtomicU64>,
    /// Longest update and longest activations that anybody has reason to send, in bytes.
    longest: (usize, usize),
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Coordinator")
    }
}

fn refuse(code: Refusal, message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(code, message)
}

/// The wall clock; nothing but this shell reads it.
fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

impl Coordinator {
    /// Loads the middle layers and the state in the configured folder.
    pub fn open(config: ServerConfig) -> Result<Self, CoordinatorError> {
        let source = open(&config.model)?;
        let items = load_items(&config.catalogue, &DataSpec::of_folder(&config.catalogue)?)?;
        let (passes, tapes) = (config.passes, config.tapes);
        let core = Core::open(config, source.config(), &items, now_unix_ms())?;
        let cut = core.recipe.lora.first_trained(source.config().layers);
        let segment =
            DeviceModel::load_middle(source.as_ref(), core.recipe.split, core.recipe.compute)?;
        tracing::info!(
            mib = segment.weight_bytes() >> 20,
            layers = segment.range().len(),
            "middle layers loaded"
        );
        let threads = |source| CoordinatorError::Threads { source };
        // No number format takes more than six bytes a value.
        let longest = (
            6 * core.whole().shape.len(),
            4 * MAX_TOKENS * source.config().hidden,
        );
        let longest = (longest.0 + MAX_SMALL, longest.1 + MAX_SMALL);
        let mut failed = None;
        let inner = Arc::new_cyclic(|this: &Weak<Inner>| {
            let this = this.clone();
            let take = move |arrived| {
                if let Some(inner) = this.upgrade() {
                    Self(inner).take_updates(arrived);
                }
            };
            let arrivals = Arrivals::start(take).unwrap_or_else(|e| {
                failed = Some(e);
                Arrivals::closed()
            });
            Inner {
                training_bytes: core.meter.bytes.clone(),
                core: Mutex::new(core),
                middle: MiddleHost::new(segment, cut, (passes, tapes)),
                server: OnceLock::new(),
                waiters: Waiters::default(),
                arrivals,
                started: Instant::now(),
                update_bytes: AtomicU64::new(0),
                activation_bytes: AtomicU64::new(0),
                longest,
            }
        });
        match failed {
            Some(e) => Err(threads(e)),
            None => Ok(Self(inner)),
        }
    }

    /// For an auditor: trains the rounds of a verified bundle again, when `lethe-admin replay` asks
    /// for its shard. The data folder must be new.
    pub fn audit(&self, bundle: &Bundle) -> Result<(), CoordinatorError> {
        self.core().audit(bundle)
    }

    /// The core, with the time that its decisions go by.
    fn core(&self) -> MutexGuard<'_, Core> {
        let mut core = fatal::lock(&self.0.core);
        core.set_clock(now_unix_ms());
        core
    }

    fn now(&self) -> u64 {
        self.0.started.elapsed().as_millis() as u64
    }

    /// An invitation for the first operator, replacing earlier ones; `None` when one has enrolled
    /// already.
    pub fn first_admin(&self) -> Result<Option<Invitation>, CoordinatorError> {
        self.core().first_admin()
    }

    /// Answers monitoring in the background, where the configuration says so. Returns the bound
    /// address.
    pub async fn listen_metrics(&self) -> Result<Option<SocketAddr>, CoordinatorError> {
        let Some(addr) = self.core().config.metrics else {
            return Ok(None);
        };
        let failed = |source| CoordinatorError::Metrics { addr, source };
        let listener = metrics::bind(addr).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let this = Arc::downgrade(&self.0);
        let text = move || {
            let Some(inner) = this.upgrade() else {
                return String::new();
            };
            let this = Self(inner);
            metrics::text(&this.core().view(), this.traffic())
        };
        tokio::spawn(metrics::serve(listener, Arc::new(text)));
        Ok(Some(bound))
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            connections: self.0.server.get().map_or(0, Server::connections) as u64,
            update_bytes: self.0.update_bytes.load(Ordering::Relaxed),
            activation_bytes: self.0.activation_bytes.load(Ordering::Relaxed),
            up: self.0.started.elapsed().as_secs_f64(),
        }
    }

    /// Listens and serves in the background until [`Self::shutdown`]. Returns the bound address.
    pub fn listen(&self) -> Result<SocketAddr, CoordinatorError> {
        let server = {
            let core = self.core();
            Server::bind(core.config.listen, &core.authority)?
        };
        let addr = server.local_addr()?;
        let _ = self.0.server.set(server.clone());
        let handler: Arc<dyn Handler> = Arc::new(self.clone());
        tokio::spawn(async move { server.run(handler).await });
        let timer = self.clone();
        let ticking = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            loop {
                tick.tick().await;
                timer.tick();
            }
        });
        fatal::watch("the timer", ticking);
        Ok(addr)
    }

    /// What is due by the clock.
    fn tick(&self) {
        let now = self.now();
        if let Err(e) = self.core().tick(now) {
            tracing::error!("{e}");
        }
        self.after_change(true);
        self.0.middle.expire();
        if let Some(server) = self.0.server.get() {
            match server.renew(&self.core().authority) {
                Ok(true) => tracing::info!("the listener's certificate was renewed"),
                Ok(false) => {}
                Err(e) => tracing::error!("the listener's certificate is not renewed: {e}"),
            }
        }
    }

    /// An invitation for an operator, for whoever asks on this machine; the log says so.
    pub fn recover_admin(&self) -> Result<Invitation, CoordinatorError> {
        self.core().recover_admin()
    }

    /// Ends all connections. Clients open new ones and go on where they were.
    pub fn drop_connections(&self) {
        if let Some(s) = self.0.server.get() {
            s.drop_connections();
        }
    }

    /// Stops listening.
    pub fn shutdown(&self) {
        if let Some(s) = self.0.server.get() {
            s.close();
        }
    }

    /// Ends revoked connections, wakes the polls that something changed for, and drops sessions of
    /// rounds that closed.
    fn after_change(&self, sweep: bool) {
        let (gone, wake, closed) = {
            let mut core = self.core();
            (
                std::mem::take(&mut core.to_disconnect),
                std::mem::take(&mut core.wake),
                std::mem::take(&mut core.closed),
            )
        };
        if let Some(server) = self.0.server.get() {
            gone.iter().for_each(|c| server.disconnect(c));
        }
        if sweep || closed {
            let now = self.now();
            let mut stale = self.0.middle.open_sessions();
            {
                let mut core = self.core();
                stale.retain(|(key, subject)| core.expects(*key, subject, now).is_err());
            }
            stale
                .iter()
                .for_each(|(key, subject)| self.0.middle.close(*key, subject));
        }
        self.0.waiters.wake(&wake);
    }

    /// A round that one poll opened is work for others.
    fn wake_others(&self) {
        let wake = std::mem::take(&mut self.core().wake);
        self.0.waiters.wake(&wake);
    }

    async fn answer(
        &self,
        certificate: Option<Digest>,
        request: Request,
        bytes: usize,
    ) -> Result<Reply, CoordinatorError> {
        let role = certificate.and_then(|c| self.core().role(&c));
        match (role, request) {
            (
                None,
                Request::Enrol {
                    token,
                    csr,
                    subject,
                },
            ) if certificate.is_none() => {
                let (certificate, subject) = self.core().enrol(&token, &csr, subject.as_ref())?;
                Ok(Reply::Enrolled {
                    certificate,
                    subject,
                })
            }
            (Some(role), Request::Renew { csr }) => {
                let current = certificate.unwrap_or_default();
                let certificate = self.core().renew(current, &csr)?;
                let subject = match role {
                    Role::Subject(s) => Some(s),
                    Role::Admin => None,
                };
                Ok(Reply::Enrolled {
                    certificate,
                    subject,
                })
            }
            (Some(Role::Admin), Request::Admin(request)) => {
                let by = certificate.unwrap_or_default();
                let (traffic, now) = (self.traffic(), self.now());
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
            (Some(Role::Subject(subject)), request) => self.subject(subject, request, bytes).await,
            _ => Err(refuse(
                Refusal::Forbidden,
                "this certificate has no right to this request: enrol, or use an admin identity",
            )),
        }
    }

    async fn subject(
        &self,
        subject: SubjectId,
        request: Request,
        bytes: usize,
    ) -> Result<Reply, CoordinatorError> {
        match request {
            Request::Hello { model, .. } => {
                let mut core = self.core();
                if model != core.model {
                    let message = format!(
                        "this epoch uses base model {}, the client has {}",
                        core.model, model
                    );
                    return Err(refuse(Refusal::WrongModel, message));
                }
                core.said_hello(&subject);
                Ok(Reply::Welcome {
                    recipe: core.recipe.to_json(),
                    anchors: core.anchors.clone(),
                    engine: lethe_model::engine(),
                    minor: MINOR,
                    log_key: core.log_key(),
                    recalled: core.recalled,
                })
            }
            Request::Join {
                anchor,
                samples,
                commitment,
            } => {
                let (shard, commitment) =
                    self.core().join(&subject, anchor, samples, commitment)?;
                self.after_change(false);
                Ok(Reply::Joined { shard, commitment })
            }
            Request::Poll => self.poll(&subject).await,
            Request::Forward {
                purpose,
                shape,
                hidden,
            } => {
                self.0
                    .activation_bytes
                    .fetch_add(bytes as u64, Ordering::Relaxed);
                let (layout, x) = self.0.middle.unpack(shape, &hidden)?;
                let trains = !matches!(purpose, Purpose::Score { .. });
                let reply = match purpose {
                    Purpose::Train { round, pass } => {
                        let now = self.now();
                        self.core().expects(round, &subject, now)?;
                        self.0
                            .middle
                            .forward(((round, subject), pass), layout, x, hidden.format)
                            .await?
                    }
                    Purpose::Frozen { round } => {
                        let now = self.now();
                        self.core().expects(round, &subject, now)?;
                        self.0.middle.frozen(layout, x, hidden.format).await?
                    }
                    Purpose::Score { release, omega } => {
                        let adapter = self.mixed(&subject, release, &omega)?;
                        let tuned = adapter.is_some();
                        let reply = self
                            .0
                            .middle
                            .score(layout, x, adapter, hidden.format)
                            .await?;
                        if tuned {
                            // A deletion may have withdrawn the release during the pass: what it
                            // knew is not given out.
                            self.core().current(release)?;
                        }
                        reply
                    }
                };
                if trains {
                    self.trained(bytes + reply.bytes.len());
                }
                Ok(self.hidden(reply))
            }
            Request::Backward {
                round,
                pass,
                grad,
                step,
            } => {
                self.0
                    .activation_bytes
                    .fetch_add(bytes as u64, Ordering::Relaxed);
                let lr = self.core().recipe.local.lr;
                let reply = self
                    .0
                    .middle
                    .backward(((round, subject), pass), grad, step.then_some(lr))
                    .await?;
                self.trained(bytes + reply.bytes.len());
                Ok(self.hidden(reply))
            }
            Request::Update {
                round,
                delta,
                loss,
                samples,
            } => {
                self.0
                    .update_bytes
                    .fetch_add(bytes as u64, Ordering::Relaxed);
                self.trained(bytes);
                let sent = Sent {
                    device: delta,
                    middle: vec![],
                    loss,
                    samples,
                    joined: 0,
                };
                self.update(round, subject, sent).await
            }
            Request::Release { have, adapters } => Ok(Reply::Release(
                self.core().release(&subject, have, &adapters)?,
            )),
            Request::Weigh { embedding } => self.weigh(&embedding),
            Request::Errors { release, rows } => {
                self.core().take_errors(&subject, release, rows)?;
                Ok(Reply::Ack)
            }
            Request::Erased { task, outcome } => {
                self.core().erased(&subject, task, &outcome)?;
                self.after_change(false);
                Ok(Reply::Ack)
            }
            Request::Orders { task, seen } => {
                Ok(Reply::Orders(self.core().orders(&subject, task, seen)?))
            }
            Request::Decline { round, why } => {
                tracing::debug!(%subject, ?round, ?why, "declined");
                self.0.middle.close(round, &subject);
                let now = self.now();
                self.core().declined(round, &subject, now)?;
                self.after_change(false);
                Ok(Reply::Ack)
            }
            Request::Enrol { .. } | Request::Renew { .. } | Request::Admin(_) => Err(refuse(
                Refusal::Forbidden,
                "not with a subject's certificate",
            )),
        }
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

    fn trained(&self, bytes: usize) {
        self.0
            .training_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn hidden(&self, payload: Payload) -> Reply {
        self.0
            .activation_bytes
            .fetch_add(payload.bytes.len() as u64, Ordering::Relaxed);
        Reply::Hidden(payload)
    }

    /// The middle part of the adapters that a query's weights give.
    fn mixed(
        &self,
        subject: &SubjectId,
        release: u64,
        omega: &[f32],
    ) -> Result<Option<Adapter>, CoordinatorError> {
        let (parts, combine) = self.core().scoring(subject, release, omega)?;
        let middle: Vec<(Adapter, f32)> = {
            let core = self.core();
            let used = parts.iter().filter(|(_, w)| *w != 0.0);
            used.map(|(a, w)| (a.select(|l| !core.on_device(l)), *w))
                .collect()
        };
        if middle.is_empty() {
            return Ok(None);
        }
        let refs: Vec<(&Adapter, f32)> = middle.iter().map(|(a, w)| (a, *w)).collect();
        Ok(Some(match combine {
            Combination::Nd => Adapter::mix_nd(&refs)?,
            Combination::D => Adapter::mix_d(&refs)?,
        }))
    }

    async fn update(
        &self,
        round: RoundKey,
        subject: SubjectId,
        mut sent: Sent,
    ) -> Result<Reply, CoordinatorError> {
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
        sent.middle = self.0.middle.finish(round, &subject)?;
        let update = Update::checked(&recipe, &whole, round, sent)?;
        let contribution = update.contribution(&recipe, &whole)?;
        self.0
            .arrivals
            .store(round, subject, update, contribution)
            .await?;
        Ok(Reply::Ack)
    }

    /// Stores updates that arrived together, and answers each.
    fn take_updates(&self, arrived: Vec<Arrived>) {
        let now = self.now();
        let answers = self.core().take_updates(arrived, now);
        self.after_change(false);
        for (to, answer) in answers {
            // Whoever asked may be gone; the update counts.
            let _ = to.send(answer);
        }
    }

    /// Answers at once when there is work, else when something changes or the wait is over.
    async fn poll(&self, subject: &SubjectId) -> Result<Reply, CoordinatorError> {
        let deadline = tokio::time::Instant::now() + MAX_POLL_WAIT;
        let waiting = self.0.waiters.enter(subject);
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
                    self.0.middle.open(start.round, subject, middle);
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
}

impl Handler for Coordinator {
    fn admits(&self, certificate: &Digest) -> bool {
        let mut core = self.core();
        if core.role(certificate).is_none() {
            return false;
        }
        if let Err(e) = core.used(certificate) {
            tracing::warn!("a renewed certificate's predecessor stays for now: {e}");
        }
        true
    }

    fn longest(&self, kind: u16) -> usize {
        match kind {
            codec::UPDATE => self.0.longest.0,
            codec::FORWARD | codec::BACKWARD => self.0.longest.1,
            _ => codec::limit(kind).unwrap_or(0),
        }
    }

    fn handle(&self, certificate: Option<Digest>, request: Request, bytes: usize) -> ReplyFuture {
        let this = self.clone();
        Box::pin(async move {
            this.answer(certificate, request, bytes)
                .await
                .unwrap_or_else(CoordinatorError::reply)
        })
    }

    fn disconnected(&self, certificate: &Digest) {
        let role = self.core().role(certificate);
        if let Some(Role::Subject(s)) = role {
            self.0.middle.gone(&s);
        }
    }
}
