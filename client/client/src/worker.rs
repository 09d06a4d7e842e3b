//! What a client does over the network: one job after the other.

use std::sync::{Arc, MutexGuard};

use lethe_learn::partition::nearest_anchor;
use lethe_model::lora::Adapter;
use lethe_proto::ids::{Digest, EpochNo};
use lethe_proto::lists::{ListState, Watched};
use lethe_proto::message::{Refusal, Reply, Request, Task};
use lethe_recipe::Recipe;
use lethe_recsys::samples::Part;
use lethe_transport::TransportError;

use crate::actor::Queued;
use crate::client::{Assigned, Done};
use crate::conditions::Stopped;
use crate::enrolment::use_invitation;
use crate::epochs::{self, Join, Offered};
use crate::history::{Cutoffs, Joined};
use crate::local::{Local, Shared};
use crate::session::{Follows, Refused, Session};
use crate::{Catalogue, ClientError, ClientModel};

/// Minor version from which there are declined rounds.
pub(crate) const DECLINES: u16 = 1;
/// Minor version from which there are lists.
pub(crate) const LISTS: u16 = 2;
/// Minor version from which contributions may be sealed.
pub(crate) const SEALED: u16 = 3;
/// Minor version from which updates may have masks.
pub(crate) const MASKED: u16 = 4;
/// Minor version from which the catalogue has versions.
pub(crate) const VERSIONS: u16 = 5;

/// Minor version from which a device may ask how its person stands.
pub(crate) const STANDS: u16 = 5;

/// The device parts of the adapters being served.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) number: u64,
    /// The epoch whose recipe it was made with.
    pub(crate) epoch: EpochNo,
    /// Digest of that recipe.
    pub(crate) recipe: Digest,
    /// For so long may it be used without asking again, in seconds.
    pub(crate) valid_s: u64,
    pub(crate) adapters: Vec<Adapter>,
    /// Of the adapters as they were sent.
    pub(crate) digests: Vec<Digest>,
}

impl Default for Release {
    fn default() -> Self {
        Self {
            number: 0,
            epoch: EpochNo::FIRST,
            recipe: Digest::default(),
            valid_s: 0,
            adapters: vec![],
            digests: vec![],
        }
    }
}

/// An epoch that is alive.
#[derive(Clone, Debug)]
pub(crate) struct KnownEpoch {
    pub(crate) no: EpochNo,
    /// `None`: this version does not understand it.
    pub(crate) recipe: Option<Recipe>,
    pub(crate) anchors: Vec<Vec<f32>>,
    /// Digest of the base model; zeros: it was compared already.
    pub(crate) model: Digest,
    pub(crate) serving: bool,
    pub(crate) begun: bool,
}

/// What the coordinator said when the client introduced itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Welcome {
    /// Epochs that are alive, oldest first.
    pub(crate) epochs: Vec<KnownEpoch>,
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
    /// Not before this time is asked for newer versions of the catalogue, in seconds since 1970.
    pub(crate) catalogue_at: i64,
    /// The epoch that this device has followed to, with this process.
    pub(crate) followed: Option<EpochNo>,
    /// The newest epoch that the coordinator has spoken of.
    pub(crate) heard: Option<EpochNo>,
    /// Not before this time it tries again, in seconds since 1970.
    pub(crate) follow_at: i64,
    /// The catalogue of the epoch that was asked for last, and the digest of its version.
    pub(crate) of_epoch: Option<(Digest, Arc<Catalogue>)>,
    /// It was said that the coordinator's log does not hold what it serves.
    pub(crate) said_unlogged: bool,
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
            catalogue_at: 0,
            followed: None,
            heard: None,
            follow_at: 0,
            of_epoch: None,
            said_unlogged: false,
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

    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        self.shared.catalogue()
    }

    pub(crate) fn model(&self) -> Result<&Arc<ClientModel>, ClientError> {
        self.shared.model.as_ref().ok_or(ClientError::NoModel)
    }

    pub(crate) fn queued(&self) -> Queued {
        self.queued.clone()
    }

    pub(crate) fn minor(&self) -> u16 {
        self.welcome.as_ref().map_or(0, |w| w.minor)
    }

    /// One call over the session.
    pub(crate) async fn call(&self, request: &Request) -> Result<Reply, ClientError> {
        let session = self.session()?;
        match session.call(request).await {
            Ok(reply) => Ok(reply),
            Err(e) => Err(self.told(&session, e).await),
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
        let server = self.shared.options.server.clone();
        let place = server.ok_or(ClientError::NoServer)?;
        let identity = local.person.identity.clone();
        let fresh = Arc::new(Session::new(
            place,
            local.person.authority.clone(),
            identity.ok_or(ClientError::NotEnrolled)?,
            self.shared.options.extensions.clone(),
            self.shared.counters.clone(),
            self.refused(),
            self.follows(),
        ));
        *session = Some(fresh.clone());
        Ok(fresh)
    }

    /// What came from a coordinator that knows this device no longer goes, whoever hears of it.
    fn refused(&self) -> Refused {
        let shared = Arc::downgrade(&self.shared);
        Refused::new(move || {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let done = shared.alive().and_then(|mut local| local.was_refused());
            if let Err(e) = done {
                tracing::warn!("what the coordinator gave stays for now: {e}");
            }
        })
    }

    /// The authority that took the place of the one that is trusted is trusted from then on. It is
    /// on disk before it is used: those of before do not lead to the coordinator for ever.
    fn follows(&self) -> Follows {
        let shared = Arc::downgrade(&self.shared);
        Follows::new(move |before, next| {
            let Some(shared) = shared.upgrade() else {
                return false;
            };
            match shared.alive().and_then(|mut l| l.follow(before, next)) {
                Ok(followed) => followed,
                Err(e) => {
                    tracing::warn!("the coordinator's new authority is not kept yet: {e}");
                    false
                }
            }
        })
    }

    /// Enrols if there is an invitation, and says hello once.
    pub(crate) async fn ready(&mut self) -> Result<(), ClientError> {
        let server = self.shared.options.server.clone();
        let place = server.ok_or(ClientError::NoServer)?;
        if use_invitation(&self.shared, place).await? {
            // Somebody new, as far as the coordinator knows.
            self.shared.cut_off();
            self.welcome = None;
        }
        if self.welcome.is_none() {
            self.hello().await?;
            // Another epoch may be there, with another version.
            self.catalogue_at = 0;
            if let Err(e) = self.stands_and_follows().await {
                // Nothing else happens before that is known.
                self.welcome = None;
                return Err(e);
            }
        }
        self.renew_if_due().await?;
        self.tend_catalogue().await;
        Ok(())
    }

    /// What an older copy of the folder lacks is erased before anything is joined.
    async fn stands_and_follows(&mut self) -> Result<(), ClientError> {
        self.stands().await?;
        self.try_to_follow().await;
        Ok(())
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
        self.forget_recalled(recalled)?;
        // What it lacks is said again: the coordinator may have been started anew.
        self.followed = None;
        let minor = self.shared.options.minor.min(minor);
        let welcome = Welcome {
            // Newer coordinators are asked for all epochs: the newest may have a recipe that this
            // version does not understand, and lists go on.
            epochs: match minor < epochs::MINOR {
                true => Welcome::only(Recipe::from_json(&recipe)?, anchors),
                false => vec![],
            },
            engine,
            minor,
        };
        self.welcome = Some(welcome);
        self.learn_log_key(log_key).await?;
        if self.minor() >= epochs::MINOR {
            // What the model lacks for an epoch concerns the model alone: lists go on.
            return self.learn_epochs().await;
        }
        let checked = self.fits_epoch(EpochNo::FIRST);
        if checked.is_err() {
            self.welcome = None;
        }
        checked
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

    /// Takes part in the newest epoch with what is recorded now. Without a model there is nothing
    /// to train with.
    pub(crate) async fn join(&mut self) -> Result<(), ClientError> {
        self.ready().await?;
        self.learn_epochs().await?;
        self.join_newest().await
    }

    pub(crate) async fn join_newest(&mut self) -> Result<(), ClientError> {
        if self.local()?.owes {
            // What it holds is not what remains.
            return Err(ClientError::OtherData);
        }
        match self.settle().await {
            // What was offered may be about another epoch.
            Ok(()) | Err(ClientError::OtherData) => {}
            Err(e) => return Err(e),
        }
        let newest = self.newest_no();
        self.fits_epoch(newest)?;
        let now = match &self.shared.model {
            Some(_) => self.local()?.to_join(&self.catalogue()),
            None => Joined {
                events: vec![],
                cutoffs: Cutoffs::of(0),
            },
        };
        self.offer(newest, now).await
    }

    /// The nearest anchor to what is liked. Items that left the catalogue have no features.
    async fn anchor(
        &mut self,
        epoch: EpochNo,
        offered: &Joined,
    ) -> Result<Option<u16>, ClientError> {
        // The coordinator's anchors are made from the version of the epoch.
        let catalogue = self.catalogue_of(Some(epoch)).await?;
        let liked: Vec<&[f32]> = offered
            .train()
            .iter()
            .filter(|e| e.liked && catalogue.knows(&e.item))
            .filter_map(|e| catalogue.find(&e.item))
            .map(|at| &catalogue.features()[at as usize][..])
            .collect();
        let anchors = &self.epoch(epoch)?.anchors;
        Ok(nearest_anchor(anchors, &liked).map(|k| k as u16))
    }

    /// Joins an epoch with this data. It is stored before it is offered: whatever the coordinator
    /// counts is known here.
    pub(crate) async fn offer(&mut self, epoch: EpochNo, data: Joined) -> Result<(), ClientError> {
        let anchor = self.anchor(epoch, &data).await?;
        let samples = match &self.shared.model {
            Some(_) => data.samples(Part::Train).len() as u32,
            None => 0,
        };
        let mine = {
            let mut local = self.local()?;
            let mine = data.commitment(&local.person.salt);
            local.places.offered = Some(Offered { epoch, data });
            local.save_places()?;
            mine
        };
        let join = Join {
            anchor,
            samples,
            commitment: mine,
        };
        let answered = self.ask_to_join(epoch, join).await?;
        Self::take_answer(self.local()?, epoch, mine, answered)
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
        if self.minor() >= epochs::MINOR {
            let Some(watched) = self.await_news().await? else {
                return Ok(None);
            };
            return self.hear(watched).await;
        }
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
            Reply::Watched(watched) => return self.hear(watched).await,
            _ => return Err(TransportError::UnexpectedReply { asked: "poll" }.into()),
        };
        Ok(assigned(task))
    }

    /// What a poll has found.
    async fn hear(&mut self, watched: Watched) -> Result<Option<Assigned>, ClientError> {
        self.forget_recalled(watched.recalled)?;
        self.hear_of_lists(watched.lists)?;
        // Work comes first; the lists' turn is before the next question.
        if matches!(watched.task, Task::Wait) {
            self.tend_lists().await;
        }
        Ok(assigned(watched.task))
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
            Task::Validate { release, shards } => self.validate(release, &shards).await,
            Task::Erase { task } => self.obey(task).await,
        };
        match done {
            Err(e @ ClientError::EpochOver { .. }) => {
                tracing::info!("{e}");
                self.learn_epochs().await?;
                Ok(Done::RoundLost)
            }
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

fn assigned(task: Task) -> Option<Assigned> {
    match task {
        Task::Wait => None,
        task => Some(Assigned(task)),
    }
}
