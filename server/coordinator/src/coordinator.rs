//! Requests to answers: locks the core for decisions, runs passes outside the lock.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lethe_model::source::open;
use lethe_model::split::DeviceModel;
use lethe_proto::codec;
use lethe_proto::ids::Digest;
use lethe_proto::limits::{MAX_SMALL, MAX_TOKENS};
use lethe_proto::message::{Request, Role};
use lethe_receipt::audit::Bundle;
use lethe_recsys::data::{DataSpec, load_items};
use lethe_transport::identity::Invitation;
use lethe_transport::server::{Handler, ReplyFuture, Server};

use crate::CoordinatorError;
use crate::arrivals::{Arrivals, Arrived};
use crate::config::ServerConfig;
use crate::core::updates::store_updates;
use crate::core::{Closed, Core, Job};
use crate::fatal;
use crate::handlers::Envelope;
use crate::metrics::{self, Traffic};
use crate::middle::MiddleHost;
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
    /// Work that is done without the lock.
    jobs: mpsc::Sender<Job>,
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
            let updates = this.clone();
            let take = move |arrived| {
                if let Some(inner) = updates.upgrade() {
                    Self(inner).take_updates(arrived);
                }
            };
            let arrivals = Arrivals::start(take).unwrap_or_else(|e| {
                failed = Some(e);
                Arrivals::closed()
            });
            let (jobs, due) = mpsc::channel();
            if let Err(e) = start_worker(this.clone(), due) {
                failed = Some(e);
            }
            Inner {
                training_bytes: core.meter.bytes.clone(),
                core: Mutex::new(core),
                middle: MiddleHost::new(segment, cut, passes, tapes),
                server: OnceLock::new(),
                waiters: Waiters::default(),
                arrivals,
                jobs,
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
    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        let mut core = fatal::lock(&self.0.core);
        core.set_clock(now_unix_ms());
        core
    }

    pub(crate) fn now(&self) -> u64 {
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

    pub(crate) fn traffic(&self) -> Traffic {
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
        self.core().tick(now);
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
    pub(crate) fn after_change(&self, sweep: bool) {
        let effects = self.core().take_effects();
        for job in effects.jobs {
            // Nobody is there to take it only when this coordinator ends.
            let _ = self.0.jobs.send(job);
        }
        if let Some(server) = self.0.server.get() {
            effects.disconnect.iter().for_each(|c| server.disconnect(c));
        }
        if sweep || effects.closed {
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
        self.0.waiters.wake(&effects.wake);
    }

    /// A round that one poll opened is work for others.
    pub(crate) fn wake_others(&self) {
        let wake = std::mem::take(&mut self.core().wake);
        self.0.waiters.wake(&wake);
    }

    /// Stores updates that arrived together, and answers each. The lock is held before and after,
    /// not while the disk works.
    fn take_updates(&self, arrived: Vec<Arrived>) {
        let now = self.now();
        let admitted = self.core().admit_updates(arrived, now);
        let mut answers = admitted.answers;
        if !admitted.taken.is_empty() {
            let stored = store_updates(&admitted.store, &admitted.taken);
            let taken = self.core().updates_stored(admitted.taken, stored, now);
            answers.extend(taken);
        }
        self.after_change(false);
        for (to, answer) in answers {
            // Whoever asked may be gone; the update counts.
            let _ = to.send(answer);
        }
    }

    /// A round has been added up.
    fn round_closed(&self, closed: Closed) {
        let now = self.now();
        self.core().round_closed(closed, now);
        self.after_change(true);
    }

    pub(crate) fn waiters(&self) -> &Waiters {
        &self.0.waiters
    }

    pub(crate) fn middle(&self) -> &MiddleHost {
        &self.0.middle
    }

    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.0.arrivals
    }

    pub(crate) fn count_update(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.0.update_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_activations(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.0.activation_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_training(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.0.training_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Starts the thread that works without the lock; it ends with the coordinator.
fn start_worker(this: Weak<Inner>, due: mpsc::Receiver<Job>) -> std::io::Result<()> {
    let work = move || {
        while let Ok(job) = due.recv() {
            match job {
                Job::AddUp(closing) => {
                    let closed = closing.run();
                    let Some(inner) = this.upgrade() else {
                        return;
                    };
                    Coordinator(inner).round_closed(closed);
                }
                Job::Clean(counted) => {
                    if let Err(e) = counted.remove() {
                        tracing::warn!("updates that have counted stay until the next start: {e}");
                    }
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("lethe-rounds".into())
        .spawn(move || fatal::guarded("the thread that adds rounds up", work))
        .map(drop)
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
            let envelope = Envelope { certificate, bytes };
            this.answer(envelope, request)
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
