//! What is in values, where it is not only bytes that somebody else has made.

use serde::{Deserialize, Serialize};

/// A person's rows of a shard: embeddings of samples, and errors of the adapter that the state says
/// each was measured on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ErrorRows(pub(crate) Vec<ErrorRow>);

/// One validation sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ErrorRow {
    pub(crate) sample: u32,
    pub(crate) embedding: Vec<f32>,
    pub(crate) error: f32,
}
