//! `lethe-client` for Kotlin, Swift and Python, over UniFFI.
//!
//! Nothing is decided here: each function calls one of `lethe-client`, and each type is one of its
//! types in a form that crosses languages. Names begin with `Ffi`, so that the wrappers on top
//! (`mobile/kotlin`, `mobile/swift`, `mobile/python`), which apps use, have the plain ones.
//!
//! Functions that need no network block the caller for moments. The others are `async`: coroutines
//! in Kotlin, `async` in Swift and Python. They run on threads of the client's own; cancelling one
//! stops what it began. docs/sdk.md has the design.

// UniFFI writes `extern "C"` functions for what is exported.
#![allow(unsafe_code)]

mod client;
mod device;
mod error;
mod event;
mod lists;
mod model;
mod options;
mod status;

pub use client::{FfiClient, FfiDone, FfiRefreshed, erase_folder, open_client};
pub use device::{FfiCallbackError, FfiConditions, FfiDevice, FfiErasureConsent, FfiKeyStore};
pub use error::FfiError;
pub use event::{FfiEvent, FfiEventKind, FfiRecorded};
pub use lists::{
    FfiCursor, FfiExplanation, FfiLeftOut, FfiListSource, FfiListed, FfiOutcome, FfiPage, FfiQuery,
    FfiRanked, FfiReason, FfiRecommendation, FfiRecommendationSource,
};
pub use model::{FfiArithmetic, FfiModel, load_model};
pub use options::{FfiOptions, FfiTimeGranularity};
pub use status::{
    FfiContributes, FfiContribution, FfiListCounts, FfiPendingErasure, FfiStatus, FfiTables,
};

uniffi::setup_scaffolding!();
