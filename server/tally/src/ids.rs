//! Names and numbers: handles, members, versions, cells.

use std::fmt;

use lethe_proto::ids::Digest;
use serde::{Deserialize, Serialize};

/// What the rest of the system knows a contributor by: 16 random bytes. Who it is, the tally does
/// not know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Handle(pub [u8; 16]);

impl Handle {
    /// Lower-case hexadecimal.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Debug for Handle {
    /// The first eight digits: a log is no place for handles.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex()[..8])
    }
}

/// Randomness that a command brings along: decisions draw none.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fresh(pub [u8; 32]);

impl fmt::Debug for Fresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fresh")
    }
}

impl Fresh {
    /// The number of a newcomer. It is random: numbers in order would tell those who know when
    /// people came whose number is whose.
    pub(crate) fn number(&self) -> Number {
        let digest = Digest::of(&[b"tally number", &self.0]).0;
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Number(u64::from_le_bytes(first))
    }

    /// The salted name of a number, for trees that others see.
    pub(crate) fn name(&self, number: Number) -> Digest {
        Digest::of(&[b"tally name", &self.0, &number.0.to_le_bytes()])
    }

    /// The salted digest of a version of a contribution, from the digest of its content. Without
    /// the salt, which is destroyed with the handle's key, nobody can try contents out.
    pub(crate) fn version(&self, version: Version, content: &Digest) -> Digest {
        let version = version.0.to_le_bytes();
        Digest::of(&[b"tally version", &self.0, &version, &content.0])
    }
}

/// One membership of a handle, from its first contribution until it leaves. Random, and never used
/// again; whose it is stands under the handle's key alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Number(pub u64);

/// A version of a member's contribution, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(pub u32);

/// A cell, from 1. No number is used twice, and no cell gets another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CellNo(pub u64);
