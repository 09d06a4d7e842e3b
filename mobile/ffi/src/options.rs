//! What a client is opened with.

use std::path::Path;
use std::sync::Arc;

use lethe_client::{Catalogue, Options, Place, TimeGranularity};

use crate::device::{ForeignKeyStore, asks, watches};
use crate::{FfiConditions, FfiDevice, FfiErasureConsent, FfiError, FfiKeyStore, FfiModel};

/// How exactly a contribution says when something was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FfiTimeGranularity {
    /// The day, in UTC.
    Day,
    /// The first day of the week; weeks begin on Thursdays, as 1970 did.
    Week,
    /// The first day of thirty since 1970-01-01.
    Month,
}

/// What a client is opened with. Only the catalogue is needed: without a server a client records
/// and makes lists; without a model it takes part in the sums behind lists, and trains nothing.
#[derive(Clone, uniffi::Record)]
pub struct FfiOptions {
    /// Folder with `dataset.toml` and the items.
    pub catalogue: String,
    /// The coordinator's place, `host:port`.
    #[uniffi(default = None)]
    pub server: Option<String>,
    /// Enrols with this invitation at the next network function, unless it was used before. It is
    /// kept, sealed, until it was used.
    #[uniffi(default = None)]
    pub invitation: Option<String>,
    /// Where the key is that seals the folder; without, it is in a file of the folder.
    #[uniffi(default = None)]
    pub key_store: Option<Arc<dyn FfiKeyStore>>,
    /// Trains this model, and lets it rank.
    #[uniffi(default = None)]
    pub model: Option<Arc<FfiModel>>,
    /// What must hold while the device trains; it is compared with what `device` says.
    #[uniffi(default = None)]
    pub required: Option<FfiConditions>,
    /// Says what the device is doing. Without, it always trains.
    #[uniffi(default = None)]
    pub device: Option<Arc<dyn FfiDevice>>,
    /// Takes no round whose largest pass needs more than this beside the weights, in bytes.
    #[uniffi(default = None)]
    pub memory_cap: Option<u64>,
    /// Whether the person takes part in the sums behind lists. Kept with the state; without a value
    /// it is as it was, and true in a new folder.
    #[uniffi(default = None)]
    pub contribute: Option<bool>,
    /// Takes tables from, and contributes to, the tally of this key only.
    #[uniffi(default = None)]
    pub tally_key: Option<String>,
    /// How exactly contributions say when something was met; the day without a value.
    #[uniffi(default = None)]
    pub contribution_times: Option<FfiTimeGranularity>,
    /// Sends no update of the training that anybody could read alone.
    #[uniffi(default = false)]
    pub masked_updates_only: bool,
    /// Uses no release and no tables unless the coordinator shows that its log holds them.
    #[uniffi(default = false)]
    pub logged_only: bool,
    /// Decides about orders to erase (almost) everything. Without, they wait for
    /// `FfiClient.consent_to_erasure`.
    #[uniffi(default = None)]
    pub erasure_consent: Option<Arc<dyn FfiErasureConsent>>,
}

impl TryFrom<FfiOptions> for Options {
    type Error = FfiError;

    fn try_from(from: FfiOptions) -> Result<Self, FfiError> {
        let mut to = Self::new(Catalogue::load(Path::new(&from.catalogue))?)
            .masked_updates_only(from.masked_updates_only)
            .logged_only(from.logged_only);
        if let Some(server) = from.server {
            let place: Place = server.parse().map_err(|e| FfiError::BadOption {
                reason: format!("server = {server:?}: {e}"),
            })?;
            to = to.server(place);
        }
        if let Some(text) = from.invitation {
            to = to.invitation(text);
        }
        if let Some(store) = from.key_store {
            to = to.key_store(Arc::new(ForeignKeyStore(store)));
        }
        if let Some(model) = from.model {
            to = to.model(model.0.clone());
        }
        if let Some(device) = from.device {
            let required = from.required.map(Into::into);
            let required = required.unwrap_or(lethe_client::Conditions::ALL);
            to = to.conditions(required, watches(device));
        } else if from.required.is_some() {
            return Err(FfiError::BadOption {
                reason: "`required` says what must hold, and nobody says what holds: give \
                         `device`, too"
                    .into(),
            });
        }
        if let Some(bytes) = from.memory_cap {
            to = to.memory_cap(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        if let Some(contribute) = from.contribute {
            to = to.contribute(contribute);
        }
        if let Some(key) = from.tally_key {
            to = to.tally_key(key);
        }
        if let Some(times) = from.contribution_times {
            to = to.contribution_times(match times {
                FfiTimeGranularity::Day => TimeGranularity::Day,
                FfiTimeGranularity::Week => TimeGranularity::Week,
                FfiTimeGranularity::Month => TimeGranularity::Month,
            });
        }
        if let Some(app) = from.erasure_consent {
            to = to.erasure_consent(asks(app));
        }
        Ok(to)
    }
}
