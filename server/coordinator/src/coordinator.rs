//! The coordinator: the ledger's shell, the middle layers, and who listens.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

use lethe_ledger::{Command, Event, Wake};
use lethe_model::source::open;
use lethe_proto::admin::AdminRequest;
use lethe_proto::codec;
use lethe_proto::disks::KeyDisk;
use lethe_proto::ids::Digest;
use lethe_proto::limits::{MAX_SMALL, MAX_TOKENS};
use lethe_proto::message::{Refusal, Request, Role};
use lethe_receipt::audit::Bundle;
use lethe_recipe::{Recipe, model_digest};
use lethe_recsys::data::{DataSpec, read_items};
use lethe_store::sealed::SharedEngine;
use lethe_store::sled_backend::SledStorage;
use lethe_transport::identity::{Authority, Invitation, Validity};
use lethe_transport::server::{Handler, ReplyFuture, Server};
use tokio::sync::Semaphore;

use crate::CoordinatorError;
use crate::arrivals::Arrivals;
use crate::config::ServerConfig;
use crate::disks;
use crate::durable::{NewValue, authorities};
use crate::fatal;
use crate::handlers::Envelope;
use crate::lists::Contributions;
use crate::metrics::{self, Traffic};
use crate::middle::MiddleHost;
use crate::quota::{InWork, Paces, Shares, enough, is_heavy};
use crate::rounds::internal;
use crate::shell::{BaseModel, Clock, Kit, Opening, Shell, Told, over_quic};
use crate::waiters::Waiters;
use crate::witnesses::{self, Witnesses};

/// A running coordinator; cloning shares it.
#[derive(Clone)]
pub struct Coordinator(Arc<Inner>);

struct Inner {
    config: ServerConfig,
    /// Where keys lie.
    key_disks: Vec<KeyDisk>,
    /// Whoever signs with it, or takes its certificate for the listener, holds it meanwhile.
    authority: RwLock<Authority>,
    /// Whoever exchanges keys.
    rotating: Mutex<()>,
    shell: Arc<Shell>,
    middle: MiddleHost,
    server: OnceLock<Server>,
    waiters: Waiters,
    arrivals: Arrivals,
    contributions: Contributions,
    paces: Paces,
    /// Exports, searches and the like that operators have in work.
    exports: Shares<Digest>,
    /// Places for computations beside the listener's.
    cores: Arc<Semaphore>,
    update_bytes: AtomicU64,
    activation_bytes: AtomicU64,
    /// Longest update that anybody has reason to send, in bytes.
    longest_update: AtomicUsize,
    /// Longest activations.
    longest_pass: AtomicUsize,
    /// Whoever asks witnesses; none: there is no policy.
    witnesses: Option<Arc<Witnesses>>,
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Coordinator")
    }
}

/// A certificate that was signed; nobody knows it before the ledger does.
pub(crate) struct Signed {
    /// DER.
    pub(crate) certificate: Vec<u8>,
    pub(crate) fingerprint: Digest,
    /// Unix seconds.
    pub(crate) expires: u64,
}

/// The authority was exchanged.
pub(crate) struct Exchanged {
    /// It was an exchange that had been cut off.
    pub(crate) completes: bool,
    /// Why the private key of before may be there still.
    pub(crate) left: Option<CoordinatorError>,
}

impl Coordinator {
    /// Loads the middle layers and the state in the configured folder.
    pub fn open(config: ServerConfig) -> Result<Self, CoordinatorError> {
        let key_disks = disks::check(&config)?;
        let source = open(&config.model)?;
        let spec = DataSpec::of_folder(&config.catalogue)?;
        let read = read_items(&config.catalogue, &spec, config.strict_catalogue)?;
        if !read.reading.is_clean() {
            tracing::warn!("the catalogue: {}", read.reading);
        }
        let items = read.items;
        let recipe = Recipe::from_toml(&toml::to_string(&config.recipe).unwrap_or_default())?;
        let model = model_digest(&config.model).map_err(CoordinatorError::ModelFile)?;
        let opening = Opening {
            config: &config,
            recipe,
            model,
            model_config: source.config(),
            items: &items,
            other_model: &BaseModel::read,
            line: &over_quic,
            seed: None,
        };
        let engine: SharedEngine = Arc::new(SledStorage::engine);
        let shell = opening.open(&engine, Clock::default())?;
        let key_disks = disks::said(&key_disks);
        if let Err(e) = authorities::destroy_earlier(shell.keys()) {
            tracing::error!(
                "the private key of an authority that was exchanged may be there still: {e}; the \
                 next start, or `keys rotate authority`, destroys it"
            );
        }
        let authority = RwLock::new(authorities::present(shell.keys())?);
        let threads = |source| CoordinatorError::Threads { source };
        drop(source);
        let own_keys = shell.evidence().own_keys();
        let witnesses = match witnesses::policy(&config.log, &own_keys)? {
            None => None,
            Some(policy) => {
                shell.evidence().recall_cosigned(&policy)?;
                Some(Arc::new(Witnesses::new(&config.log, &policy)?))
            }
        };
        let middle = MiddleHost::new(config.passes, config.tapes, config.tape_mib);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut failed = None;
        let inner = Arc::new_cyclic(|this: &Weak<Inner>| {
            let updates = this.clone();
            let take = move |arrived| {
                if let Some(inner) = updates.upgrade() {
                    inner.shell.take_updates(arrived);
                }
            };
            let fetches = this.clone();
            let note = move |fetched| {
                if let Some(inner) = fetches.upgrade() {
                    inner.shell.take_fetches(fetched);
                }
            };
            let arrivals = Arrivals::start(take, note).unwrap_or_else(|e| {
                failed = Some(e);
                Arrivals::closed()
            });
            let brought = this.clone();
            let bring = move |all| {
                if let Some(inner) = brought.upgrade()
                    && let Some(lists) = &inner.shell.lists
                {
                    lists.take_in(&inner.shell, all);
                }
            };
            let contributions = Contributions::start(bring).unwrap_or_else(|e| {
                failed = Some(e);
                Contributions::closed()
            });
            Inner {
                authority,
                rotating: Mutex::default(),
                shell,
                middle,
                server: OnceLock::new(),
                waiters: Waiters::default(),
                arrivals,
                contributions,
                paces: Paces::default(),
                exports: Shares::of_heavy(),
                cores: Arc::new(Semaphore::new(cores)),
                update_bytes: AtomicU64::new(0),
                activation_bytes: AtomicU64::new(0),
                longest_update: AtomicUsize::new(0),
                longest_pass: AtomicUsize::new(0),
                witnesses,
                config,
                key_disks,
            }
        });
        if let Some(e) = failed {
            return Err(threads(e));
        }
        let this = Self(inner);
        for (no, kit) in this.shell().all_kits() {
            this.load_layers(no, &kit)?;
        }
        // What the journal has and a restored backup lacked is executed before anybody asks.
        this.0.shell.do_duties();
        this.start_threads().map_err(threads)?;
        let told = Arc::downgrade(&this.0);
        this.0.shell.tell(move |change| {
            if let Some(inner) = told.upgrade() {
                Self(inner).told(change);
            }
        });
        Ok(this)
    }

    /// Threads that look after what is due, and that add rounds up. They end with the coordinator.
    fn start_threads(&self) -> std::io::Result<()> {
        let shell = self.0.shell.clone();
        std::thread::Builder::new()
            .name("lethe-duties".into())
            .spawn(move || {
                fatal::guarded("the thread that looks after what is due", || {
                    shell.look_after();
                })
            })?;
        if self.0.shell.lists.is_some() {
            let shell = self.0.shell.clone();
            std::thread::Builder::new()
                .name("lethe-lists".into())
                .spawn(move || {
                    fatal::guarded("the thread that publishes lists", || {
                        if let Some(lists) = &shell.lists {
                            lists.look_after(&shell);
                        }
                    })
                })?;
        }
        if let Some(witnesses) = &self.0.witnesses {
            let witnesses = witnesses.clone();
            let shell = self.0.shell.clone();
            std::thread::Builder::new()
                .name("lethe-witnesses".into())
                .spawn(move || {
                    fatal::guarded("the thread that asks witnesses", || {
                        witnesses.look_after(&shell);
                    })
                })?;
        }
        let shell = self.0.shell.clone();
        std::thread::Builder::new()
            .name("lethe-rounds".into())
            .spawn(move || fatal::guarded("the thread that adds rounds up", || shell.work()))?;
        Ok(())
    }

    /// For an auditor: trains the rounds of a verified bundle again, when `lethe-admin replay` asks
    /// for its shard. The data folder must be new.
    pub fn audit(&self, bundle: &Bundle) -> Result<(), CoordinatorError> {
        self.0.shell.audit(bundle)
    }

    /// Answers monitoring in the background, where the configuration says so. Returns the bound
    /// address.
    pub async fn listen_metrics(&self) -> Result<Option<SocketAddr>, CoordinatorError> {
        let Some(addr) = self.0.config.metrics else {
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
            let shell = this.shell();
            let view = shell.state().view(shell.clock.now());
            let lists = shell.lists.as_ref();
            let lists = lists.and_then(|l| l.status_known(shell).ok());
            metrics::text(&view, this.traffic(), lists.as_ref(), this.key_disks())
        };
        tokio::spawn(metrics::serve(listener, Arc::new(text)));
        Ok(Some(bound))
    }

    pub(crate) fn key_disks(&self) -> &[KeyDisk] {
        &self.0.key_disks
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            connections: self.0.server.get().map_or(0, Server::connections) as u64,
            update_bytes: self.0.update_bytes.load(Ordering::Relaxed),
            activation_bytes: self.0.activation_bytes.load(Ordering::Relaxed),
            up: self.shell().clock.up(),
            space_held: self.shell().space_held(),
            failures: self.shell().failures(),
        }
    }

    /// Listens and serves in the background until [`Self::shutdown`]. Returns the bound address.
    pub fn listen(&self) -> Result<SocketAddr, CoordinatorError> {
        let server = Server::bind(self.0.config.listen, &self.authority())?;
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

    /// What the listener itself looks after.
    fn tick(&self) {
        self.0.middle.expire();
        if let Some(server) = self.0.server.get() {
            // Held meanwhile: an exchange comes before or after it.
            match server.renew(&self.authority()) {
                Ok(true) => tracing::info!("the listener's certificate was renewed"),
                Ok(false) => {}
                Err(e) => tracing::error!("the listener's certificate is not renewed: {e}"),
            }
        }
    }

    /// Ends all connections. Clients open new ones and go on where they were.
    pub fn drop_connections(&self) {
        if let Some(s) = self.0.server.get() {
            s.drop_connections();
        }
    }

    /// Stops listening, and ends all work.
    pub fn shutdown(&self) {
        if let Some(s) = self.0.server.get() {
            s.close();
        }
        self.0.shell.jobs.end();
        if let Some(lists) = &self.0.shell.lists {
            lists.end();
        }
        if let Some(witnesses) = &self.0.witnesses {
            witnesses.end();
        }
    }

    /// Ends connections, wakes polls, and drops sessions, as the ledger's events ask for.
    fn told(&self, change: Told) {
        if let Some(server) = self.0.server.get() {
            let mut gone = change.disconnect;
            {
                let state = self.shell().state();
                gone.retain(|c| state.role(c).is_none());
            }
            gone.iter().for_each(|c| server.disconnect(c));
        }
        // Before devices hear of an epoch that the rule has founded; and what one needed that has
        // ended goes.
        self.share_layers();
        self.let_go();
        if change.sweep {
            let now = self.shell().clock.now();
            let mut stale = self.0.middle.open_sessions();
            {
                let state = self.shell().state();
                stale.retain(|(key, subject)| state.expects(*key, subject, now).is_err());
            }
            stale
                .iter()
                .for_each(|(key, subject)| self.0.middle.close(*key, subject));
        }
        self.0.waiters.wake(&change.wake);
    }

    pub(crate) fn wake_everybody(&self) {
        self.0.waiters.wake(&Wake {
            everybody: true,
            ..Wake::default()
        });
    }

    /// Signs a request for a certificate; nothing is stored.
    pub(crate) fn sign(&self, csr: &[u8]) -> Result<Signed, CoordinatorError> {
        let invalid = |e: lethe_transport::TransportError| {
            CoordinatorError::refuse(Refusal::Invalid, e.to_string())
        };
        let lifetime = Duration::from_secs_f64(self.0.config.certificate_days * 86_400.0);
        let certificate = self.authority().sign(csr, lifetime).map_err(invalid)?;
        let validity = Validity::of(&certificate).map_err(invalid)?;
        Ok(Signed {
            fingerprint: Digest::of(&[&certificate]),
            expires: u64::try_from(validity.until).unwrap_or(0),
            certificate,
        })
    }

    pub(crate) fn invitation(&self, secret: String) -> Invitation {
        let log_key = self.shell().log_key();
        Invitation::new(secret, &self.authority()).with_log_key(log_key)
    }

    /// Who signs certificates now. Whole before it is put there: as good after a panic.
    fn authority(&self) -> RwLockReadGuard<'_, Authority> {
        let held = self.0.authority.read();
        held.unwrap_or_else(PoisonError::into_inner)
    }

    /// Exchanges the authority, or completes an exchange that was cut off. New connections are met
    /// with the new one from then on.
    ///
    /// # Errors
    /// The key source, or the listener: the one before goes on, and it may be asked again.
    pub(crate) fn rotate_authority(&self) -> Result<Exchanged, CoordinatorError> {
        let keys = self.shell().keys();
        let completes = authorities::is_cut_off(keys)?;
        if !completes {
            let life = (self.0.config.certificate_days * 86_400.0).ceil() as u64;
            let now = self.shell().clock.now().unix_ms / 1000;
            authorities::may_drop(keys, life, now)?;
            authorities::succeed(keys)?;
        }
        // As it is read again: what signs is durable.
        let fresh = authorities::present(keys)?;
        {
            let held = self.0.authority.write();
            let mut held = held.unwrap_or_else(PoisonError::into_inner);
            if let Some(server) = self.0.server.get() {
                server.go_over(&fresh)?;
            }
            *held = fresh;
        }
        Ok(Exchanged {
            completes,
            left: authorities::destroy_earlier(keys).err(),
        })
    }

    /// Held by whoever exchanges keys.
    pub(crate) fn rotating(&self) -> MutexGuard<'_, ()> {
        self.0
            .rotating
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn shell(&self) -> &Shell {
        &self.0.shell
    }

    /// Computes on a thread of its own, as many at a time as there are cores: a thousand updates
    /// that come together keep nobody else's answer waiting.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, CoordinatorError> + Send + 'static,
    ) -> Result<T, CoordinatorError> {
        let ended = |_| internal(&"the coordinator is shutting down");
        let permit = self.0.cores.clone().acquire_owned().await;
        let _permit = permit.map_err(ended)?;
        aside(work).await
    }

    /// Decides and writes on a thread of its own: the disk's pace is nobody else's.
    pub(crate) async fn decide(
        &self,
        command: Command,
        values: Vec<NewValue>,
    ) -> Result<Vec<Event>, CoordinatorError> {
        let shell = self.0.shell.clone();
        aside(move || shell.execute(command, values)).await
    }

    pub(crate) fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    /// Messages may be as long as an epoch needs; no number format takes more than six bytes a
    /// value.
    pub(crate) fn make_bounds(&self, kit: &Kit) {
        let update = 6 * kit.whole.shape.len() + MAX_SMALL;
        self.0.longest_update.fetch_max(update, Ordering::Relaxed);
        let pass = 4 * MAX_TOKENS * kit.base.config.hidden + MAX_SMALL;
        self.0.longest_pass.fetch_max(pass, Ordering::Relaxed);
    }

    pub(crate) fn waiters(&self) -> &Waiters {
        &self.0.waiters
    }

    pub(crate) fn middle(&self) -> &MiddleHost {
        &self.0.middle
    }

    pub(crate) fn paces(&self) -> &Paces {
        &self.0.paces
    }

    /// A place for what takes long; none is needed for other requests.
    pub(crate) fn heavy(
        &self,
        request: &AdminRequest,
        by: &Digest,
    ) -> Result<Option<InWork<Digest>>, CoordinatorError> {
        if !is_heavy(request) {
            return Ok(None);
        }
        let place = self.0.exports.begin(by);
        let place = place.ok_or_else(|| enough("an export, search or forecast is in work"))?;
        Ok(Some(place))
    }

    pub(crate) fn contributions(&self) -> &Contributions {
        &self.0.contributions
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
        let meter = &self.shell().meter;
        meter.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Does something that may wait for the disk on a thread of its own.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CoordinatorError> + Send + 'static,
) -> Result<T, CoordinatorError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| internal(&"the coordinator is shutting down"))?
}

impl Handler for Coordinator {
    fn admits(&self, certificate: &Digest) -> bool {
        let renewed = {
            let state = self.shell().state();
            // Who is to try again in a moment may connect.
            if matches!(state.who(certificate), Ok(None)) {
                return false;
            }
            state.replaces(certificate)
        };
        // Usually nothing is to be decided.
        if renewed {
            let command = Command::CertificateUsed {
                certificate: *certificate,
            };
            if let Err(e) = self.shell().execute(command, vec![]) {
                tracing::warn!("a renewed certificate's predecessor stays for now: {e}");
            }
        }
        true
    }

    fn longest(&self, kind: u16) -> usize {
        match kind {
            codec::UPDATE => self.0.longest_update.load(Ordering::Relaxed),
            codec::FORWARD | codec::BACKWARD => self.0.longest_pass.load(Ordering::Relaxed),
            codec::CONTRIBUTE => self.0.config.lists.longest(),
            // Only a tally takes these.
            codec::TALLY => 0,
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
        let role = self.shell().state().role(certificate);
        if let Some(Role::Subject(s)) = role {
            self.0.middle.gone(&s);
        }
    }
}
