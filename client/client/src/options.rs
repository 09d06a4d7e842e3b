//! What a client is opened with.

use std::fmt;
use std::sync::Arc;

use lethe_proto::codec::Extension;
use lethe_proto::limits::MINOR;
use lethe_transport::place::Place;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::conditions::{Conditions, Guard};
use crate::erasure::{Consent, PendingErasure};
use crate::key_store::KeyStore;
use crate::{Catalogue, ClientModel, Cutoffs};

/// What a client is opened with. Only the catalogue is needed: without a server a client records
/// and makes lists; without a model it takes part in the sums behind lists, and trains nothing.
#[derive(Clone)]
pub struct Options {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) server: Option<Place>,
    pub(crate) model: Option<Arc<ClientModel>>,
    pub(crate) key: Option<[u8; 32]>,
    pub(crate) key_store: Option<Arc<dyn KeyStore>>,
    pub(crate) invitation: Option<String>,
    pub(crate) cutoffs: Option<Cutoffs>,
    pub(crate) passes: Option<Arc<Semaphore>>,
    pub(crate) guard: Guard,
    pub(crate) memory_cap: Option<usize>,
    pub(crate) contribute: Option<bool>,
    pub(crate) tally_key: Option<String>,
    pub(crate) times: TimeGranularity,
    pub(crate) masked_only: bool,
    pub(crate) logged_only: bool,
    pub(crate) runtime: Option<Handle>,
    pub(crate) minor: u16,
    pub(crate) extensions: Vec<Extension>,
    pub(crate) consent: Consent,
}

/// How exactly a contribution says when something was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeGranularity {
    /// The day, in UTC.
    #[default]
    Day,
    /// The first day of the week: of seven days since 1970-01-01, so that weeks begin on Thursdays.
    Week,
    /// The first day of thirty since 1970-01-01.
    Month,
}

impl TimeGranularity {
    /// The day that is said for a day, both since 1970. It is never later.
    pub(crate) fn round(self, day: i32) -> i32 {
        let length = match self {
            Self::Day => 1,
            Self::Week => 7,
            Self::Month => 30,
        };
        day - day.rem_euclid(length)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("server", &self.server)
            .field("items", &self.catalogue.items().len())
            .field("model", &self.model.is_some())
            .finish_non_exhaustive()
    }
}

impl Options {
    /// A client that knows this catalogue, and nothing else yet.
    pub fn new(catalogue: Arc<Catalogue>) -> Self {
        Self {
            catalogue,
            server: None,
            model: None,
            key: None,
            key_store: None,
            invitation: None,
            cutoffs: None,
            passes: None,
            guard: Guard::default(),
            memory_cap: None,
            contribute: None,
            tally_key: None,
            times: TimeGranularity::default(),
            masked_only: false,
            logged_only: false,
            runtime: None,
            minor: MINOR,
            extensions: vec![],
            consent: Consent::default(),
        }
    }

    /// Talks to the coordinator at this place: an address, or the name of a host, which is looked
    /// up at each connection. The folder keeps none: a coordinator that has moved is found by who
    /// is opened with its new place.
    pub fn server(mut self, place: impl Into<Place>) -> Self {
        self.server = Some(place.into());
        self
    }

    /// Trains this model, and lets it rank ([`crate::Client::recommend`]).
    pub fn model(mut self, model: Arc<ClientModel>) -> Self {
        self.model = Some(model);
        self
    }

    /// Seals everything with this key (from the platform's key store) instead of a key file in the
    /// folder. After an erasure of items the key follows from this one and a secret in the folder,
    /// which each erasure replaces: the app goes on bringing the same key.
    pub fn key(mut self, key: [u8; 32]) -> Self {
        self.key = Some(key);
        self
    }

    /// Seals everything with the key of the platform's key store, which is asked when the client is
    /// opened. A new folder gets a new key, and the store keeps it. If the store has none for a
    /// folder that has begun, the folder is not opened ([`crate::ClientError::KeyLost`]). It goes
    /// before [`Self::key`].
    pub fn key_store(mut self, store: Arc<dyn KeyStore>) -> Self {
        self.key_store = Some(store);
        self
    }

    /// Enrols with this invitation at the next network function, unless it was used before: the
    /// first time, or when the certificate has expired or was lost. The history stays. It is kept,
    /// sealed, until it was used. An invitation for another person is refused; with one that does
    /// not parse the folder is not opened, and what it keeps stays.
    pub fn invitation(mut self, text: impl Into<String>) -> Self {
        self.invitation = Some(text.into());
        self
    }

    /// Divides the likes and dislikes for training, validation and test (for evaluation; an app
    /// leaves the default). Kept: the first division counts.
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
    /// before every pass, from any thread. Without this call a client always trains. Lists are not
    /// concerned.
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

    /// Whether the person takes part in the sums behind lists. Kept with the state; without this
    /// call it is as it was, and true in a new folder. [`crate::Client::set_contributing`] changes
    /// it later, and tells the coordinator.
    pub fn contribute(mut self, contribute: bool) -> Self {
        self.contribute = Some(contribute);
        self
    }

    /// Takes tables from, and contributes to, the tally of this key only (as `lethe-tally init`
    /// prints it). The coordinator then cannot show another one, not even to a new device, and
    /// nothing is ever contributed in clear. Without this call the first key that a device sees is
    /// kept. A key that replaces another begins anew: tables are fetched, and the history is
    /// contributed, again.
    pub fn tally_key(mut self, key: impl Into<String>) -> Self {
        self.tally_key = Some(key.into());
        self
    }

    /// How exactly contributions say when something was met. The device rounds before anything is
    /// sealed: nobody else ever knows more. Coarser times cost next to nothing in lists, and help
    /// little against who knows more than two encounters of a person (docs/leaks.md). A change
    /// holds from the next contribution on.
    pub fn contribution_times(mut self, times: TimeGranularity) -> Self {
        self.times = times;
        self
    }

    /// Sends no update of the training that anybody could read alone. Where the coordinator asks
    /// for updates in another form than under masks (`updates = "masked"`, docs/secure-sums.md),
    /// the device declines its rounds and says why in the log. Off by default: the coordinator
    /// decides.
    pub fn masked_updates_only(mut self, only: bool) -> Self {
        self.masked_only = only;
        self
    }

    /// Uses no release and no tables unless the coordinator shows that its log holds them. Newer
    /// coordinators always do; without this call what an older one serves is used all the same, and
    /// the log says so once. Set it when no coordinator of the app is older than minor version 6: a
    /// coordinator could otherwise say that it is, and give one device what it shows nobody else.
    pub fn logged_only(mut self, only: bool) -> Self {
        self.logged_only = only;
        self
    }

    /// Runs the client's work on this runtime, which must have threads of its own. Without this
    /// call all clients of a process share one that is made when it is first needed.
    pub fn runtime(mut self, handle: Handle) -> Self {
        self.runtime = Some(handle);
        self
    }

    /// Answers orders to erase (almost) everything. They are refused until this says yes, or
    /// [`crate::Client::consent_to_erasure`] is called; see [`PendingErasure`]. Other orders need
    /// no consent.
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
        self.minor = minor;
        self.extensions = extensions;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::TimeGranularity;

    #[test]
    fn times_are_rounded_down_to_the_first_day() {
        assert_eq!(TimeGranularity::Day.round(20_001), 20_001);
        assert_eq!(TimeGranularity::Week.round(20_001), 19_999);
        assert_eq!(TimeGranularity::Week.round(19_999), 19_999);
        assert_eq!(TimeGranularity::Month.round(20_001), 19_980);
        assert_eq!(TimeGranularity::Week.round(-1), -7);
    }
}
