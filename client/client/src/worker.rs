//! What a client does over the network: one job after the other.

use std::sync::{Arc, MutexGuard};

use lethe_learn::partition::nearest_anchor;
use lethe_model::lora::Adapter;
use lethe_proto::ids::Digest;
use lethe_proto::lists::ListState;
use lethe_proto::message::{Refusal, Reply, Request, Task};
use lethe_recipe::Recipe;
use lethe_recsys::samples::Part;
use lethe_transport::TransportError;

use crate::actor::Queued;
use crate::client::{Assigned, Done};
use crate::conditions::Stopped;
use crate::enrolment::use_invitation;
use crate::history::{Cutoffs, Joined};
use crate::local::{Local, Shared};
use crate::session::Session;
use crate::{Catalogue, ClientError, ClientModel, ModelOptions};

/// Minor version from which there are declined rounds.
pub(crate) const DECLINES: u16 = 1;
/// Minor version from which there are lists.
pub(crate) const LISTS: u16 = 2;
/// Minor version from which contributions may be sealed.
pub(crate) const SEALED: u16 = 3;
/// Minor version from which updates may have masks.
pub(crate) const MASKED: u16 = 4;

/// Minor version from which a device may ask how its person stands.
pub(crate) const STANDS: u16 = 5;

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

/// What the coordinator said when the client introduced itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Welcome {
    pub(crate) recipe: Recipe,
    anchors: Vec<Vec<f32>>,
    /// What computes the coordinator's layers.
    pub(crate) engine: String,
    /// Minor version that both sides speak.
    pub(crate) minor: u16,
}

/// The client's task.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    queued: Queued,
    pub(crate) welcome: Option<Welcome>,
    pub(crate) release: Release,
    /// What is served of lists, as the coordinator said last.
    pub(crate) lists: ListState,
    /// Not before this time lists are asked about again without need, in seconds since 1970.
    pub(crate) lists_at: i64,
    /// Not before this time is contributed again, in seconds since 1970.
    pub(crate) contribute_at: i64,
    /// Not before this time the coordinator is asked again how the person stands, in seconds since
    /// 1970.
    pub(crate) stands_at: i64,
    /// By position in the catalogue: the coordinator's tables name the item, as it said last.
    pub(crate) named: Option<Vec<bool>>,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, queued: Queued) -> Self {
        Self {
            shared,
            queued,
            welcome: None,
            release: Release::default(),
            lists: ListState::default(),
            lists_at: 0,
            contribute_at: 0,
            stands_at: 0,
            named: None,
        }
    }

    /// The last handle is gone.
    pub(crate) fn leave(&self) {
        self.shared.cut_off();
    }

    /// The local state, for moments.
    pub(crate) fn local(&self) -> Result<MutexGuard<'_, Local>, ClientError> {
        self.shared.alive()
    }

    pub(crate) fn catalogue(&self) -> &Arc<Catalogue> {
        &self.shared.catalogue
    }

    pub(crate) fn model(&self) -> Result<&Arc<ClientModel>, ClientError> {
        self.shared.model.as_ref().ok_or(ClientError::NoModel)
    }

    pub(crate) fn recipe(&self) -> Recipe {
        let welcome = self.welcome.as_ref();
        welcome.map(|w| w.recipe.clone()).unwrap_or_default()
    }

    pub(crate) fn minor(&self) -> u16 {
        self.welcome.as_ref().map_or(0, |w| w.minor)
    }

    /// One call over the session.
    pub(crate) async fn call(&self, request: &Request) -> Result<Reply, ClientError> {
        let session = self.session()?;
        match session.call(request).await {
            Ok(reply) => Ok(reply),
            Err(e) => {
                let why = self.told(&session, e).await;
                if matches!(why, ClientError::Deleted) {
                    self.local()?.leave_lists()?;
                }
                Err(why)
            }
        }
    }

    /// What an error says. A connection that was open when the person was deleted is refused what
    /// it asks; only a new one shows that the certificate is not known any more.
    async fn told(&self, session: &Session, e: TransportError) -> ClientError {
        let forbidden = matches!(
            e,
            TransportError::Refused {
                code: Refusal::Forbidden,
                ..
            }
        );
        if forbidden {
            session.hang_up();
            if let Err(TransportError::Withdrawn) = session.call(&self.greeting()).await {
                return ClientError::Deleted;
            }
        }
        e.into()
    }

    fn greeting(&self) -> Request {
        let none = Digest::default();
        Request::Hello {
            build: concat!("lethe-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            model: self.shared.model.as_ref().map_or(none, |m| m.digest),
            minor: self.shared.options.minor,
        }
    }

    /// The session, once the client is enrolled.
    pub(crate) fn session(&self) -> Result<Arc<Session>, ClientError> {
        let local = self.local()?;
        let mut session = self.shared.session();
        if let Some(session) = session.as_ref() {
            return Ok(session.clone());
        }
        let addr = self.shared.options.server.ok_or(ClientError::NoServer)?;
        let identity = local.person.identity.clone();
        let fresh = Arc::new(Session::new(
            addr,
            local.person.authority.clone(),
            identity.ok_or(ClientError::NotEnrolled)?,
            self.shared.options.extensions.clone(),
            self.shared.counters.clone(),
        ));
        *session = Some(fresh.clone());
        Ok(fresh)
    }

    /// Enrols if there is an invitation, and says hello once.
    pub(crate) async fn ready(&mut self) -> Result<(), ClientError> {
        let server = self.shared.options.server.ok_or(ClientError::NoServer)?;
        if use_invitation(&self.shared, server).await? {
            // Somebody new, as far as the coordinator knows.
            self.shared.cut_off();
            self.welcome = None;
        }
        if self.welcome.is_none() {
            self.hello().await?;
            if let Err(e) = self.stands().await {
                // Nothing else happens before that is known.
                self.welcome = None;
                return Err(e);
            }
        }
        self.renew_if_due().await
    }

    async fn hello(&mut self) -> Result<(), ClientError> {
        let Reply::Welcome {
            recipe,
            anchors,
            engine,
            minor,
            log_key,
            recalled,
        } = self.call(&self.greeting()).await?
        else {
            return Err(TransportError::UnexpectedReply { asked: "hello" }.into());
        };
        self.learn_log_key(log_key)?;
        self.forget_recalled(recalled)?;
        let welcome = Welcome {
            recipe: Recipe::from_json(&recipe)?,
            anchors,
            engine,
            minor: self.shared.options.minor.min(minor),
        };
        if let Some(model) = &self.shared.model {
            let wanted = ModelOptions {
                split: welcome.recipe.split,
                compute: welcome.recipe.compute,
            };
            let loaded = ModelOptions {
                split: model.device.split(),
                compute: model.device.compute(),
            };
            if wanted != loaded {
                return Err(ClientError::OtherOptions { wanted, loaded });
            }
        }
        self.welcome = Some(welcome);
        Ok(())
    }

    /// Runs heavy work on a blocking thread, within the bound on passes.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, ClientError> {
        let internal = |e: &dyn std::fmt::Display| ClientError::Internal(e.to_string());
        let permit = self
            .shared
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

    /// Takes part in the epoch with what is recorded now. Without a model there is nothing to train
    /// with.
    pub(crate) async fn join(&mut self) -> Result<(), ClientError> {
        self.ready().await?;
        if self.local()?.owes {
            // What it holds is not what remains.
            return Err(ClientError::OtherData);
        }
        self.settle().await?;
        let now = match &self.shared.model {
            Some(_) => self.local()?.to_join(self.catalogue()),
            None => Joined {
                events: vec![],
                cutoffs: Cutoffs::of(0),
            },
        };
        self.offer(now).await
    }

    /// Finds out whether an offer counts whose answer was lost.
    async fn settle(&mut self) -> Result<(), ClientError> {
        let offered = self.local()?.person.offered.clone();
        match offered {
            Some(offered) => self.offer(offered).await,
            None => Ok(()),
        }
    }

    /// The nearest anchor to what is liked. Items that left the catalogue have no features.
    fn anchor(&self, offered: &Joined) -> Option<u16> {
        let liked: Vec<&[f32]> = offered
            .train()
            .iter()
            .filter(|e| e.liked && self.catalogue().knows(&e.item))
            .filter_map(|e| self.catalogue().find(&e.item))
            .map(|at| &self.catalogue().features()[at as usize][..])
            .collect();
        let anchors = &self.welcome.as_ref()?.anchors;
        nearest_anchor(anchors, &liked).map(|k| k as u16)
    }

    /// Joins with this data. It is stored before it is offered: whatever the coordinator counts is
    /// known here.
    pub(crate) async fn offer(&mut self, offered: Joined) -> Result<(), ClientError> {
        let anchor = self.anchor(&offered);
        let samples = match &self.shared.model {
            Some(_) => offered.samples(Part::Train).len() as u32,
            None => 0,
        };
        let mine = {
            let mut local = self.local()?;
            let mine = offered.commitment(&local.person.salt);
            local.person.offered = Some(offered);
            local.save()?;
            mine
        };
        let join = Request::Join {
            anchor,
            samples,
            commitment: mine,
        };
        let Reply::Joined { shard, commitment } = self.call(&join).await? else {
            return Err(TransportError::UnexpectedReply { asked: "join" }.into());
        };
        let mut local = self.local()?;
        let offered = local.person.offered.take();
        if commitment == mine {
            local.person.joined = offered;
        }
        local.save()?;
        local.shard = shard;
        let salt = local.person.salt;
        let joined = local.person.joined.as_ref();
        if joined.is_some_and(|j| j.commitment(&salt) == commitment) {
            Ok(())
        } else {
            Err(ClientError::OtherData)
        }
    }

    /// The data that counts in this epoch.
    pub(crate) async fn joined(&mut self) -> Result<Joined, ClientError> {
        self.settle().await?;
        let joined = {
            let local = self.local()?;
            local.person.joined.clone().filter(|_| !local.owes)
        };
        joined.ok_or(ClientError::OtherData)
    }

    /// Asks for work once and does it.
    pub(crate) async fn step(&mut self) -> Result<Done, ClientError> {
        if let Err(Stopped::Conditions(now)) = self.shared.guard.allows() {
            return Ok(Done::NotNow(now));
        }
        let lists = self.lists;
        match self.next_task().await? {
            Some(task) => self.perform(task).await,
            None if self.lists != lists => Ok(Done::Refreshed),
            None => Ok(Done::Nothing),
        }
    }

    /// Asks for work. Other jobs that come meanwhile go first.
    pub(crate) async fn next_task(&mut self) -> Result<Option<Assigned>, ClientError> {
        self.ready().await?;
        self.tend_lists().await;
        let lists = self.lists;
        let ask = match self.minor() >= LISTS {
            true => Request::Watch { lists },
            false => Request::Poll,
        };
        let reply = tokio::select! {
            reply = self.call(&ask) => reply?,
            () = self.queued.any() => return Ok(None),
        };
        let task = match reply {
            Reply::Task { task, recalled } => {
                self.forget_recalled(recalled)?;
                task
            }
            Reply::Watched(watched) => {
                self.forget_recalled(watched.recalled)?;
                self.hear_of_lists(watched.lists)?;
                // Work comes first; the lists' turn is before the next question.
                if matches!(watched.task, Task::Wait) {
                    self.tend_lists().await;
                }
                watched.task
            }
            _ => return Err(TransportError::UnexpectedReply { asked: "poll" }.into()),
        };
        Ok(match task {
            Task::Wait => None,
            task => Some(Assigned(task)),
        })
    }

    /// A list that was ranked with a recalled release is shown to nobody any more.
    fn forget_recalled(&mut self, recalled: u64) -> Result<(), ClientError> {
        let mut local = self.local()?;
        match &local.list {
            Some(list) if list.release <= recalled => local.drop_list(),
            _ => Ok(()),
        }
    }

    /// Does what was asked for.
    pub(crate) async fn perform(&mut self, task: Assigned) -> Result<Done, ClientError> {
        self.ready().await?;
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

    /// Closes the connection; the state stays.
    pub(crate) async fn close(&mut self) -> Result<(), ClientError> {
        let session = self.shared.session().take();
        if let Some(session) = session {
            session.close().await;
        }
        self.welcome = None;
        Ok(())
    }
}
