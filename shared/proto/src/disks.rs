//! Where a coordinator's keys lie.

use serde::{Deserialize, Serialize};

/// What becomes of a key that is destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyFate {
    /// It is gone, as far as the file system goes.
    Gone,
    /// That cannot be said.
    Unknown,
    /// It can be recovered for a while, or for long; the operator has accepted that.
    Recoverable,
}

/// The file system of a folder with keys that deletions destroy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDisk {
    /// Kind of the file system, as the system calls it; empty: it does not say.
    pub kind: String,
    /// What becomes of a key.
    pub fate: KeyFate,
    /// For people: which folder, and why.
    pub text: String,
}
