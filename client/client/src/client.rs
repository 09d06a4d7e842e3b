//! The client: builder, local history, and the loop that takes part in what the coordinator asks
//! for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lethe_learn::partition::nearest_anchor;
use lethe_model::ModelError;
use lethe_model::lora::Adapter;
use lethe_proto::codec::Extension;
use lethe_proto::ids::{Digest, ShardId};
use lethe_proto::limits::MINOR;
use lethe_proto::message::{Declined, Refusal, Reply, Request, Task};
use lethe_recipe::Recipe;
use lethe_recsys::samples::Part;
use lethe_transport::TransportError;
use tokio::sync::Semaphore;

use crate::conditions::{Canceller, Conditions, Guard, Stopped};
use crate::enrolment::use_invitation;
use crate::erasure::{Consent, PendingErasure};
use crate::history::Joined;
use crate::session::Session;
use crate::vault::{State, Vault};
use crate::{ClientError, ClientModel, Cutoffs, LocalEvent, ModelOptions};

/// Collects what a client needs.
#[derive(Debug)]
pub struct ClientBuilder {
    folder: PathBuf,
    addr: SocketAddr,
    key: Option<[u8; 32]>,
    invitation: Option<String>,
    cutoffs: Option<Cutoffs>,
    passes: Option<Arc<Semaphore>>,
    guard: Guard,
    memory_cap: Option<usize>,
    minor: u16,
    extensions: Vec<Extension>,
    consent: Consent,
}

impl ClientBuilder {
    /// A client that keeps its state in `folder` and talks to the coordinator at `addr`.
    pub fn new(folder: impl AsRef<Path>, addr: SocketAddr) -> Self {
        Self {
            folder: folder.as_ref().to_owned(),
            addr,
            key: None,
            invitation: None,
            cutoffs: None,
            passes: None,
            guard: Guard::default(),
            memory_cap: None,
            minor: MINOR,
            extensions: vec![],
            consent: Consent::default(),
        }
    }

    /// Seals the state with this key (from the platform's key store) instead of a key file in the
    /// folder.
    pub fn key(mut self, key: [u8; 32]) -> Self {
        self.key = Some(key);
        self
    }

    /// Enrols with this invitation, unless it was used before: the first time, or when the
    /// certificate has expired or was lost. The history stays. An invitation for another person is
    /// refused.
    pub fn invitation(mut self, text: impl Into<String>) -> Self {
        self.invitation = Some(text.into());
        self
    }

    /// Divides the history for training, validation and test (for evaluation; an app leaves the
    /// default). Kept with the state: the first division counts.
    pub fn cutoffs(mut self, cutoffs: Cutoffs) -> Self {
        self.cutoffs = Some(cutoffs);
        self
    }

    /// Bounds the passes that clients of one process run at once.
    pub fn passes(mut self, passes: Arc<Semaphore>) -> Self {
        self.passes = Some(passes);
        self
    }

    /// Trains only while what `required` names holds; `now` is asked before a task is taken and
    /// before every pass, from any thread. Without this call a client always trains.
    /// Recommendations are not concerned.
    pub fn conditions(
        mut self,
        required: Conditions,
        now: impl Fn() -> Conditions + Send + Sync + 'static,
    ) -> Self {
        self.guard = Guard::new(required, Arc::new(now));
        self
    }

    /// Takes no round whose largest pass needs more than this beside the weights, in bytes.
    pub fn memory_cap(mut self, bytes: usize) -> Self {
        self.memory_cap = Some(bytes);
        self
    }

    /// Answers orders to erase (almost) everything. They are refused until this says yes, or
    /// [`Client::consent_to_erasure`] is called; see [`PendingErasure`]. Other orders need no
    /// consent.
    pub fn erasure_consent(
        mut self,
        consents: impl Fn(&PendingErasure) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.consent = Consent::new(consents);
        self
    }

    /// Speaks as a client of another minor version of the protocol would, with what it adds to
    /// every request. For tests of upgrades.
    pub fn minor_version(mut self, minor: u16, extensions: Vec<Extension>) -> Self {
        (self.minor, self.extensions) = (minor, extensions);
        self
    }

    /// Opens the state, enrols if needed, and agrees on the recipe.
    pub async fn build(self, model: Arc<ClientModel>) -> Result<Client, ClientError> {
        let (vault, mut state) = Vault::open(&self.folder, self.key)?;
        let invitation = self.invitation.filter(|text| !text.trim().is_empty());
        if let Some(text) = &invitation {
            use_invitation(&vault, &mut state, self.addr, text).await?;
        }
        state.cutoffs = state.cutoffs.or(self.cutoffs);
        let identity = state.identity.clone().ok_or(ClientError::NotEnrolled)?;
        let session = Arc::new(Session::new(
            self.addr,
            state.authority.clone(),
            identity,
            self.extensions,
        ));
        let mut client = Client {
            vault,
            state,
            session,
            model,
            recipe: Recipe::default(),
            anchors: vec![],
            engine: String::new(),
            minor: self.minor,
            release: Release::default(),
            guard: self.guard,
            memory_cap: self.memory_cap,
            passes: self.passes.unwrap_or_else(|| Arc::new(Semaphore::new(1))),
            shard: None,
            consent: self.consent,
            pending: None,
            erased: false,
        };
        client.hello().await?;
        Ok(client)
    }
}

/// The device parts of the adapters being served.
#[derive(Debug, Default)]
pub(crate) struct Release {
    pub(crate) number: u64,
    /// For so long may it be used without asking again, in seconds.
    pub(crate) valid_s: u64,
    pub(crate) adapters: Vec<Adapter>,
    /// Of the adapters as they were sent.
    pub(crate) digests: Vec<Digest>,
}

/// One person's client.
#[derive(Debug)]
pub struct Client {
    pub(crate) vault: Vault,
    pub(crate) state: State,
    pub(crate) session: Arc<Session>,
    pub(crate) model: Arc<ClientModel>,
    pub(crate) recipe: Recipe,
    anchors: Vec<Vec<f32>>,
    /// What computes the coordinator's layers.
    pub(crate) engine: String,
    /// Minor version that both sides speak.
    pub(crate) minor: u16,
    pub(crate) release: Release,
    passes: Arc<Semaphore>,
    pub(crate) guard: Guard,
    pub(crate) memory_cap: Option<usize>,
    shard: Option<ShardId>,
    pub(crate) consent: Consent,
    /// An order to erase that waits for consent.
    pub(crate) pending: Option<PendingErasure>,
    erased: bool,
}

/// What a [`Client::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// There was nothing to do.
    Nothing,
    /// Took part in a round.
    Trained,
    /// Was in a round that went on without it (late, or the coordinator restarted).
    RoundLost,
    /// Told the coordinator that it does not take part in the round.
    Declined(Declined),
    /// Did not ask: the conditions do not hold. Ask again when they change.
    NotNow(Conditions),
    /// Reported validation errors.
    Validated,
    /// Erased items that the coordinator named.
    Erased,
    /// Was told to erase (almost) everything, and waits for the person's consent:
    /// [`Client::pending_erasure`].
    ConsentNeeded,
}

/// Work that the coordinator asked for; give it to [`Client::perform`].
#[derive(Debug)]
pub struct Assigned(Task);

/// Where the system's news about networks goes.
#[derive(Clone, Debug)]
pub struct Network(Arc<Session>);

impl Network {
    /// The device has changed its network: the connection goes on from a new socket (QUIC
    /// migration, RFC 9000, 9), and with it what is being trained. Without this call the loss is
    /// noticed after 30 s without an answer, and the client connects again by itself.
    pub async fn changed(&self) -> Result<(), ClientError> {
        Ok(self.0.rebind().await?)
    }
}

/// What was exchanged so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Updates and adapters, both ways.
    pub update_bytes: u64,
    /// Hidden states and gradients, both ways.
    pub activation_bytes: u64,
    /// Samples of the updates that were sent.
    pub samples: u64,
}

impl ClientError {
    /// The coordinator is away or busy: local functions still work, and trying again later may
    /// help.
    pub fn is_offline(&self) -> bool {
        self.transport().is_some_and(TransportError::is_transient)
    }

    /// The reason that the coordinator is told when a client leaves a round by its own decision.
    pub(crate) fn declines(&self) -> Option<Declined> {
        match self {
            Self::FeedbackLost => Some(Declined::FeedbackLost),
            Self::Memory { .. } => Some(Declined::Memory),
            // The protocol has no reason of its own for the second.
            Self::Stopped(_) | Self::NothingToTrain => Some(Declined::Conditions),
            Self::Model(ModelError::Middle(e)) if e.is::<Stopped>() => Some(Declined::Conditions),
            _ => None,
        }
    }

    fn transport(&self) -> Option<&TransportError> {
        match self {
            Self::Transport(e) => Some(e),
            Self::Model(ModelError::Middle(e)) => e.downcast_ref(),
            _ => None,
        }
    }

    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self.transport()? {
            TransportError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

impl Client {
    async fn hello(&mut self) -> Result<(), ClientError> {
        let build = concat!("lethe-client ", env!("CARGO_PKG_VERSION")).to_owned();
        match self
            .session
            .call(&Request::Hello {
                build,
                model: self.model.digest,
                minor: self.minor,
            })
            .await?
        {
            Reply::Welcome {
                recipe,
                anchors,
                engine,
                minor,
                log_key,
                recalled,
            } => {
                self.learn_log_key(log_key)?;
                self.forget_recalled(recalled)?;
                self.minor = self.minor.min(minor);
                self.engine = engine;
                self.recipe = Recipe::from_json(&recipe)?;
                self.anchors = anchors;
                let wanted = ModelOptions {
                    split: self.recipe.split,
                    compute: self.recipe.compute,
                };
                let loaded = ModelOptions {
                    split: self.model.device.split(),
                    compute: self.model.device.compute(),
                };
                if wanted != loaded {
                    return Err(ClientError::OtherOptions { wanted, loaded });
                }
                self.renew_if_due().await
            }
            _ => Err(TransportError::UnexpectedReply { asked: "hello" }.into()),
        }
    }

    pub(crate) fn alive(&self) -> Result<(), ClientError> {
        if self.erased {
            Err(ClientError::Erased)
        } else {
            Ok(())
        }
    }

    pub(crate) fn cutoffs(&self) -> Cutoffs {
        self.state
            .cutoffs
            .unwrap_or_else(|| Cutoffs::of(self.state.events.len()))
    }

    /// Runs heavy work on a blocking thread, within the bound on passes.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, ClientError> {
        let internal = |e: &dyn std::fmt::Display| ClientError::Internal(e.to_string());
        let permit = self
            .passes
            .clone()
            .acquire_owned()
            .await
            .map_err(|e| internal(&e))?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            f()
        })
        .await
        .map_err(|e| internal(&e))?
    }

    /// Records an event; works offline. It counts for recommendations at once, for training from
    /// the next epoch on.
    pub fn record(&mut self, item: &str, liked: bool, time: i64) -> Result<(), ClientError> {
        self.record_all([LocalEvent {
            item: item.to_owned(),
            liked,
            time,
        }])
    }

    /// Records several events with one write; all or, after an error, none.
    pub fn record_all(
        &mut self,
        events: impl IntoIterator<Item = LocalEvent>,
    ) -> Result<(), ClientError> {
        self.alive()?;
        let mut checked = vec![];
        for e in events {
            self.model.position(&e.item)?;
            if let Some(from) = self.state.consent_until.filter(|t| e.time >= *t) {
                return Err(ClientError::ConsentWithdrawn { from });
            }
            checked.push(e);
        }
        for e in checked {
            let at = self.state.events.partition_point(|x| x.time <= e.time);
            self.state.events.insert(at, e);
        }
        self.vault.save(&self.state)
    }

    /// The local history, oldest first.
    pub fn history(&self) -> &[LocalEvent] {
        &self.state.events
    }

    /// From when on consent is withdrawn, in seconds since 1970: nothing at or after that time is
    /// recorded.
    pub fn consent_until(&self) -> Option<i64> {
        self.state.consent_until
    }

    /// The person consents again: what happens from now on may be recorded.
    pub fn consent(&mut self) -> Result<(), ClientError> {
        self.alive()?;
        self.state.consent_until = None;
        self.vault.save(&self.state)
    }

    /// Training samples of the data that counts in this epoch. A history of at most
    /// [`HISTORY`](lethe_recsys::samples::HISTORY) events gives none: the person is not trained on.
    pub fn training_samples(&self) -> usize {
        let joined = self.state.joined.as_ref();
        joined.map_or(0, |j| j.samples(Part::Train).len())
    }

    /// The shard this person's data is in, once the epoch has started.
    pub fn shard(&self) -> Option<ShardId> {
        self.shard
    }

    /// Bytes exchanged so far.
    pub fn stats(&self) -> Stats {
        let read = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
        Stats {
            update_bytes: read(&self.session.update_bytes),
            activation_bytes: read(&self.session.activation_bytes),
            samples: read(&self.session.samples),
        }
    }

    /// Takes part in the epoch with what is recorded now: tells the anchor, a count and a salted
    /// commitment, no event. Once the epoch has started, what was joined with before goes on
    /// counting, and only that is trained on.
    pub async fn join(&mut self) -> Result<(), ClientError> {
        self.alive()?;
        self.settle().await?;
        let now = Joined {
            events: self.state.events.clone(),
            cutoffs: self.cutoffs(),
        };
        self.offer(now).await
    }

    /// Finds out whether an offer counts whose answer was lost.
    async fn settle(&mut self) -> Result<(), ClientError> {
        match self.state.offered.clone() {
            Some(offered) => self.offer(offered).await,
            None => Ok(()),
        }
    }

    /// Joins with this data. It is stored before it is offered: whatever the coordinator counts is
    /// known here.
    pub(crate) async fn offer(&mut self, offered: Joined) -> Result<(), ClientError> {
        let liked: Vec<&[f32]> = offered
            .train()
            .iter()
            .filter(|e| e.liked && self.model.knows(&e.item))
            .map(|e| Ok(&self.model.features[self.model.position(&e.item)?][..]))
            .collect::<Result<_, ClientError>>()?;
        let anchor = nearest_anchor(&self.anchors, &liked).map(|k| k as u16);
        let samples = offered.samples(Part::Train).len() as u32;
        let mine = offered.commitment(&self.state.salt);
        self.state.offered = Some(offered);
        self.vault.save(&self.state)?;
        let Reply::Joined { shard, commitment } = self
            .session
            .call(&Request::Join {
                anchor,
                samples,
                commitment: mine,
            })
            .await?
        else {
            return Err(TransportError::UnexpectedReply { asked: "join" }.into());
        };
        let offered = self.state.offered.take();
        if commitment == mine {
            self.state.joined = offered;
        }
        self.vault.save(&self.state)?;
        self.shard = shard;
        let counts = self
            .state
            .joined
            .as_ref()
            .is_some_and(|j| j.commitment(&self.state.salt) == commitment);
        if counts {
            Ok(())
        } else {
            Err(ClientError::OtherData)
        }
    }

    /// The data that counts in this epoch.
    pub(crate) async fn joined(&mut self) -> Result<&Joined, ClientError> {
        self.settle().await?;
        self.state.joined.as_ref().ok_or(ClientError::OtherData)
    }

    /// Stops what is being trained, from another task or thread.
    pub fn canceller(&self) -> Canceller {
        self.guard.canceller()
    }

    /// For whoever learns that the device has another network, while this client works.
    pub fn network(&self) -> Network {
        Network(self.session.clone())
    }

    /// Asks for work once and does it. Waits up to the poll bound (10 s) when there is none. Call
    /// it when the device is idle; an error leaves the client as it was, and the next call
    /// reconnects. Dropping the future stops the training.
    pub async fn step(&mut self) -> Result<Done, ClientError> {
        if let Err(Stopped::Conditions(now)) = self.guard.allows() {
            return Ok(Done::NotNow(now));
        }
        match self.next_task().await? {
            Some(task) => self.perform(task).await,
            None => Ok(Done::Nothing),
        }
    }

    /// Asks for work; the future may be dropped at any time (the work is offered again).
    pub async fn next_task(&mut self) -> Result<Option<Assigned>, ClientError> {
        self.alive()?;
        self.renew_if_due().await?;
        match self.session.call(&Request::Poll).await? {
            Reply::Task { task, recalled } => {
                self.forget_recalled(recalled)?;
                Ok(match task {
                    Task::Wait => None,
                    task => Some(Assigned(task)),
                })
            }
            _ => Err(TransportError::UnexpectedReply { asked: "poll" }.into()),
        }
    }

    /// A list that was ranked with a recalled release is shown to nobody any more.
    fn forget_recalled(&mut self, recalled: u64) -> Result<(), ClientError> {
        if self.state.cached.is_empty() || self.state.cached_release > recalled {
            return Ok(());
        }
        self.state.cached.clear();
        self.vault.save(&self.state)
    }

    /// Does what was asked for.
    pub async fn perform(&mut self, task: Assigned) -> Result<Done, ClientError> {
        let done = match task.0 {
            Task::Wait => Ok(Done::Nothing),
            Task::Train(start) => self.take_part(start).await,
            Task::Validate { release, shards } => self
                .validate(release, &shards)
                .await
                .map(|()| Done::Validated),
            Task::Erase { task } => self.obey(task).await,
        };
        match done {
            Err(e)
                if matches!(
                    e.refusal(),
                    Some(Refusal::RoundClosed | Refusal::SessionLost | Refusal::StaleRelease)
                ) =>
            {
                tracing::info!("{e}");
                Ok(Done::RoundLost)
            }
            other => other,
        }
    }

    /// Erases everything on this device: history, identity, key. What the fleet learned is for the
    /// privacy team's `forget` to remove.
    pub async fn erase(&mut self) -> Result<(), ClientError> {
        self.vault.erase()?;
        self.state = State::default();
        self.release = Release::default();
        self.erased = true;
        self.session.close().await;
        Ok(())
    }

    /// Closes the connection; the state stays.
    pub async fn close(self) {
        self.session.close().await;
    }
}
