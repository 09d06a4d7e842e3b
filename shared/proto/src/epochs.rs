//! Epochs as devices and operators know them (`docs/life.md`). From minor version 5 on.

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, EpochNo, ShardId};
use crate::lists::Watched;
use crate::message::ReleaseInfo;

/// An epoch that is alive: the one that is served, or the one that follows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochInfo {
    /// Its number.
    pub no: EpochNo,
    /// Its recipe, JSON.
    pub recipe: String,
    /// Anchors of its partition, `[anchors][features]`.
    pub anchors: Vec<Vec<f32>>,
    /// Digest of its base model.
    pub model: Digest,
    /// People have their places in it.
    pub begun: bool,
    /// It is served.
    pub serving: bool,
}

/// From when on a person's data trains adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainsFrom {
    /// It does now.
    Now {
        /// In this epoch.
        epoch: EpochNo,
    },
    /// With an epoch that has not begun yet.
    WithEpoch {
        /// Which.
        epoch: EpochNo,
        /// When it begins at the latest, or is given up, in Unix seconds; not known of the first
        /// epoch, which waits for people.
        at_latest: Option<u64>,
    },
    /// From the next epoch on, which is not founded yet.
    NextEpoch {
        /// When the rule founds it, in Unix seconds, if it goes by time.
        at: Option<u64>,
    },
    /// Never: the data is restricted.
    Restricted,
    /// The history is too short for a training sample, or the device has no language model.
    NoSamples,
}

/// Answer to [`crate::message::Request::JoinEpoch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinedEpoch {
    /// As in [`crate::message::Reply::Joined`].
    pub shard: Option<ShardId>,
    /// Likewise.
    pub commitment: Digest,
    /// From when on the data trains.
    pub trains: TrainsFrom,
}

/// Answer to [`crate::message::Request::Await`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Awaited {
    /// As for [`crate::message::Request::Watch`].
    pub watched: Watched,
    /// The newest epoch that is alive.
    pub newest: EpochNo,
}

/// Answer to [`crate::message::Request::Served`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServedRelease {
    /// The epoch whose recipe the adapters were made with.
    pub epoch: EpochNo,
    /// The release.
    pub release: ReleaseInfo,
}

/// Why a device cannot take part in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lacks {
    /// It has another base model.
    Model,
    /// It has loaded other layers (`split`).
    Layers,
    /// It computes in other arithmetic (`compute`).
    Arithmetic,
    /// It does not understand the recipe.
    Recipe,
}

/// A value of a recipe that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeChange {
    /// The key, with dots.
    pub key: String,
    /// Its value in the epoch that is served; empty: it is absent.
    pub from: String,
    /// Its value in the new one, likewise.
    pub to: String,
    /// Devices need something for it: layers, arithmetic, a model.
    pub device: bool,
}

/// What an epoch costs until it is served, at most: every round with its whole cohort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochCost {
    /// Rounds.
    pub rounds: u64,
    /// Devices' parts in rounds.
    pub client_rounds: u64,
    /// Samples trained.
    pub samples: u64,
    /// Bytes both ways, as training has cost so far; none: nothing was trained yet.
    pub bytes: Option<u64>,
    /// Seconds, likewise, without the wait for devices.
    pub seconds: Option<u64>,
}

/// What `lethe-admin epoch start` shows, or has done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochPlan {
    /// The epoch that was founded; none: nothing was done.
    pub founded: Option<EpochNo>,
    /// What changes in the recipe.
    pub changes: Vec<RecipeChange>,
    /// The base model changes.
    pub model: Option<Digest>,
    /// What it costs.
    pub cost: EpochCost,
    /// When it begins at the latest, or is given up, in Unix seconds.
    pub joins_until: u64,
}

/// How far an epoch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EpochPhase {
    /// Devices join it.
    Joining,
    /// It is trained.
    Training,
    /// It is served.
    Serving,
    /// Another one is served, and what it learned is gone.
    Retired,
    /// It was given up.
    Dropped,
    /// Another one is served; a deletion that is about this one is not done yet.
    Retiring,
}

/// An epoch as `lethe-admin epoch status` shows it. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochState {
    /// Its number.
    pub no: EpochNo,
    /// How far it is.
    pub phase: EpochPhase,
    /// Digest of its recipe.
    pub recipe: Digest,
    /// Digest of its base model.
    pub model: Digest,
    /// When it was founded; 0: by an older version.
    pub founded: u64,
    /// When it began.
    pub began: Option<u64>,
    /// When it was served first.
    pub served: Option<u64>,
    /// When it ended.
    pub ended: Option<u64>,
    /// People with a place in it.
    pub joined: u64,
    /// Those of them whose data trains.
    pub trains: u64,
    /// So many people are waited for, while it follows another epoch and has not begun.
    pub enough: u64,
    /// Until then, at most.
    pub joins_until: Option<u64>,
    /// Rounds done and in all.
    pub rounds: (u32, u32),
    /// Devices that said since the start that they cannot follow, by what they lack.
    pub lacks: Vec<(Lacks, u64)>,
}

/// All epochs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochStates {
    /// Oldest first: those that are alive, and the newest that are not.
    pub epochs: Vec<EpochState>,
    /// People who joined, and train only from the next epoch on.
    pub newcomers: u64,
    /// People who joined and whose data is not restricted.
    pub people: u64,
    /// When the rule founds the next epoch because of the time.
    pub next: Option<u64>,
    /// The part of newcomers at which it does, 0 to 1.
    pub new_people: Option<f64>,
}
