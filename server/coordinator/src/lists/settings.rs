//! Configuration of lists.

pub use lethe_tally::settings::{CellsConfig, ListsConfig};
use serde::{Deserialize, Serialize};

/// Who holds what people contribute to the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sums {
    /// Nobody: there are no lists.
    #[default]
    Off,
    /// This coordinator, which then holds and computes with histories.
    Embedded,
    /// A process of its own (`lethe-tally`), which knows handles and no names. This coordinator
    /// relays contributions that it cannot read.
    Tally,
}
