//! What the client asks the app: the device's state, its key, the person's consent.

use std::fmt;
use std::sync::Arc;

use lethe_client::{Conditions, KeyStore, KeyStoreError, PendingErasure};

use crate::FfiPendingErasure;

/// What the device is doing, or what must hold while it trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FfiConditions {
    /// Nobody uses it.
    #[uniffi(default = true)]
    pub idle: bool,
    /// It has power.
    #[uniffi(default = true)]
    pub charging: bool,
    /// Its network costs nothing.
    #[uniffi(default = true)]
    pub unmetered: bool,
    /// It is not hot (Android: below `THERMAL_STATUS_MODERATE`; iOS: `nominal` or `fair`).
    #[uniffi(default = true)]
    pub cool: bool,
}

impl From<FfiConditions> for Conditions {
    fn from(c: FfiConditions) -> Self {
        Self {
            idle: c.idle,
            charging: c.charging,
            unmetered: c.unmetered,
            cool: c.cool,
        }
    }
}

impl From<Conditions> for FfiConditions {
    fn from(c: Conditions) -> Self {
        Self {
            idle: c.idle,
            charging: c.charging,
            unmetered: c.unmetered,
            cool: c.cool,
        }
    }
}

/// What the app's code says when it cannot answer. Anything else that it throws counts as this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, uniffi::Error)]
pub enum FfiCallbackError {
    /// It cannot answer now: the phone is locked, for example.
    #[error("{reason}")]
    Failed {
        /// What the platform said.
        reason: String,
    },
}

impl From<uniffi::UnexpectedUniFFICallbackError> for FfiCallbackError {
    fn from(e: uniffi::UnexpectedUniFFICallbackError) -> Self {
        Self::Failed { reason: e.reason }
    }
}

/// Says what the device is doing. It is asked before a task is taken and before every pass, on a
/// thread of the client's: answer at once. An error counts as: nothing holds.
#[uniffi::export(with_foreign)]
pub trait FfiDevice: Send + Sync {
    /// What holds now.
    fn conditions(&self) -> Result<FfiConditions, FfiCallbackError>;
}

/// Decides about orders to erase (almost) everything, on a thread of the client's: answer at once,
/// and ask the person elsewhere. An error counts as a no. Without one they wait for
/// `FfiClient.consent_to_erasure`.
#[uniffi::export(with_foreign)]
pub trait FfiErasureConsent: Send + Sync {
    /// Whether the order may be carried out.
    fn consents(&self, order: FfiPendingErasure) -> Result<bool, FfiCallbackError>;
}

/// The platform's key store: Android's Keystore, Apple's keychain, a secret service. It keeps 32
/// bytes, with which everything in the client's folder is sealed.
#[uniffi::export(with_foreign)]
pub trait FfiKeyStore: Send + Sync {
    /// The key that was stored; none if there is none.
    fn load(&self) -> Result<Option<Vec<u8>>, FfiCallbackError>;
    /// Keeps a key: 32 bytes.
    fn store(&self, key: Vec<u8>) -> Result<(), FfiCallbackError>;
    /// Removes the key, if there is one.
    fn remove(&self) -> Result<(), FfiCallbackError>;
}

/// The app's key store as the client asks it.
pub(crate) struct ForeignKeyStore(pub(crate) Arc<dyn FfiKeyStore>);

impl fmt::Debug for ForeignKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForeignKeyStore")
    }
}

impl KeyStore for ForeignKeyStore {
    fn load(&self) -> Result<Option<Vec<u8>>, KeyStoreError> {
        self.0.load().map_err(|e| KeyStoreError::new(e.to_string()))
    }

    fn store(&self, key: &[u8; 32]) -> Result<(), KeyStoreError> {
        let stored = self.0.store(key.to_vec());
        stored.map_err(|e| KeyStoreError::new(e.to_string()))
    }

    fn remove(&self) -> Result<(), KeyStoreError> {
        let removed = self.0.remove();
        removed.map_err(|e| KeyStoreError::new(e.to_string()))
    }
}

/// What the app answers to an order.
pub(crate) fn asks(app: Arc<dyn FfiErasureConsent>) -> impl Fn(&PendingErasure) -> bool {
    move |order| app.consents(order.clone().into()).unwrap_or(false)
}

/// What the app says about the device.
pub(crate) fn watches(device: Arc<dyn FfiDevice>) -> impl Fn() -> Conditions {
    let nothing = Conditions {
        idle: false,
        charging: false,
        unmetered: false,
        cool: false,
    };
    move || device.conditions().map_or(nothing, Into::into)
}
