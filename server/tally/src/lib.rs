//! The tally: it holds what people contribute to the recommender's sums, and publishes snapshots.
//! So far: who counts, as a pure state machine.

pub mod cells;
mod ids;

pub use ids::{CellNo, Fresh, Handle, Number, Version};
