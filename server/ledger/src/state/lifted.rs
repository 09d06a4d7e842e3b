//! Restrictions that were lifted. Public: a number of a deletion names nobody.

use serde::{Deserialize, Serialize};

/// That a restriction was lifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifted {
    /// When, in milliseconds since 1970.
    pub at: u64,
}
