//! What is in values, where it is not only bytes that somebody else has made.

use lethe_proto::codec;
use lethe_proto::packed::Packed;
use serde::{Deserialize, Serialize};

/// Training state of a shard: sealed under its stage's key, like everything that a stage learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainState {
    #[serde(with = "codec::values")]
    pub(crate) theta: Vec<f32>,
    #[serde(with = "codec::values")]
    pub(crate) first: Vec<f32>,
    #[serde(with = "codec::values")]
    pub(crate) second: Vec<f32>,
    pub(crate) step: u32,
    pub(crate) losses: Vec<f32>,
}

/// A client's own parameters in mode `personalized`, as a stage left them. They mix what all
/// clients of the shard learned, so they are sealed like its training state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Personal(#[serde(with = "codec::values")] pub(crate) Vec<f32>);

/// An update, as it arrived.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Update {
    /// The device's part as it was sent.
    pub(crate) device: Packed,
    #[serde(with = "codec::values")]
    pub(crate) middle: Vec<f32>,
    #[serde(with = "codec::values")]
    pub(crate) sketch: Vec<f32>,
    pub(crate) loss: f32,
    pub(crate) samples: u32,
    /// Length of the whole change (L2 norm); computed anew where it was read from the store.
    #[serde(skip)]
    pub(crate) norm: Option<f32>,
}

/// A person's rows of a shard: embeddings of samples, and errors of the adapter that the state says
/// each was measured on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ErrorRows(pub(crate) Vec<ErrorRow>);

/// One validation sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ErrorRow {
    pub(crate) sample: u32,
    /// `[hidden]`.
    pub(crate) embedding: Vec<f32>,
    /// Probability of the wrong answer.
    pub(crate) error: f32,
}
