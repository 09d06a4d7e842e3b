//! An update under a mask, and what the coordinator and the tally say to each other about the masks
//! of a round (`docs/secure-sums.md`).

use serde::{Deserialize, Serialize};

use crate::ids::RoundKey;
use crate::packed::{Packed, PackedError, PackedFormat};

/// Name of the use of the sealing key, in the `info` of the envelope of a mask's seed.
pub const MASK: &[u8] = b"lethe mask 1";

/// Bytes of the envelope of a seed: an ephemeral key, 32 bytes, and a tag.
pub const ENVELOPE: usize = 80;

/// Bits of a masked value.
pub const BITS: u32 = 32;

/// Most people in a round whose updates are masked: their seeds go in one request.
pub const MOST_MEMBERS: usize = 65_536;

/// Most values of an update under a mask: their sum goes in one answer.
pub const MOST_VALUES: usize = (32 << 20) / 4;

/// Most values of all masks of a round together: about a minute of work.
pub const MOST_WORK: usize = 1 << 34;

/// Most people in all rounds of a coordinator together: who was in a sum is kept.
pub const MOST_KEPT: usize = 16 << 20;

/// Bytes of an update of `n` values: there is one more, the loss.
pub(crate) fn length(n: usize) -> usize {
    n.saturating_add(1)
        .saturating_mul(4)
        .saturating_add(ENVELOPE)
}

/// What the envelope of a seed is bound to (its additional data): it opens for no other person, no
/// other round, and no mask of another length. `values` counts the loss.
pub fn bound_to(handle: &[u8; 16], round: &RoundKey, values: u32) -> Vec<u8> {
    let mut out = handle.to_vec();
    out.extend_from_slice(&round.epoch.0.to_le_bytes());
    out.extend_from_slice(&round.shard.0.to_le_bytes());
    out.extend_from_slice(&round.generation.to_le_bytes());
    out.extend_from_slice(&round.stage.to_le_bytes());
    out.extend_from_slice(&round.round.to_le_bytes());
    out.extend_from_slice(&values.to_le_bytes());
    out
}

/// A masked update, `[values + 1]`: the last one is the loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked {
    /// Fixed point plus mask, modulo 2^32.
    pub values: Vec<u32>,
    /// The sealed seed of the mask, [`ENVELOPE`] bytes.
    pub seed: Vec<u8>,
}

impl Masked {
    /// As it is sent.
    pub fn pack(&self) -> Packed {
        let mut bytes: Vec<u8> = Vec::with_capacity(4 * self.values.len() + self.seed.len());
        bytes.extend(self.values.iter().flat_map(|v| v.to_le_bytes()));
        bytes.extend_from_slice(&self.seed);
        Packed {
            format: PackedFormat::Masked,
            deflated: false,
            bytes: bytes.into(),
        }
    }

    /// Reads [`Self::pack`] of an update of `n` values and its loss.
    ///
    /// # Errors
    /// [`PackedError::Malformed`] for another format or length.
    pub fn unpack(packed: &Packed, n: usize) -> Result<Self, PackedError> {
        let (values, seed) = parts(packed, n)?;
        let values = values.chunks_exact(4);
        Ok(Self {
            values: values
                .map(|v| u32::from_le_bytes([v[0], v[1], v[2], v[3]]))
                .collect(),
            seed: seed.to_vec(),
        })
    }

    /// The sealed seed alone.
    ///
    /// # Errors
    /// As [`Self::unpack`].
    pub fn seed_of(packed: &Packed, n: usize) -> Result<Vec<u8>, PackedError> {
        parts(packed, n).map(|(_, seed)| seed.to_vec())
    }
}

fn parts(packed: &Packed, n: usize) -> Result<(&[u8], &[u8]), PackedError> {
    let malformed = |why| PackedError::Malformed {
        format: packed.format,
        expected: n,
        got: packed.bytes.len(),
        why,
    };
    if packed.format != PackedFormat::Masked || packed.deflated {
        return Err(malformed("it is not masked"));
    }
    if packed.bytes.len() != length(n) {
        return Err(malformed("another length"));
    }
    Ok(packed.bytes.split_at(packed.bytes.len() - ENVELOPE))
}

/// The sealed seed of one person's mask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSeed {
    /// Whose.
    pub handle: [u8; 16],
    /// The envelope.
    #[serde(with = "serde_bytes")]
    pub envelope: Vec<u8>,
}

/// What a coordinator asks when it adds a round up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasksAsked {
    /// Names the coordinator's data folder: rounds of another one are others.
    pub lineage: [u8; 8],
    /// The round.
    pub round: RoundKey,
    /// The highest number of a deletion so far, as in
    /// [`crate::tally::TallyRequest::LeaveSums`].
    pub left: u64,
    /// Values under each mask, the loss among them; at most [`MOST_VALUES`].
    pub values: u32,
    /// Everybody who answered, each once; at most [`MOST_MEMBERS`].
    pub seeds: Vec<SealedSeed>,
}

/// The sum of the masks of a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasksSummed {
    /// Whose masks are in it, by place in the request, ascending. Nobody: the round counts nobody.
    pub counted: Vec<u32>,
    /// Fewest people of a sum, n.
    pub least: u32,
    /// How many people of the sum of before are not among those who were asked for, and have not
    /// left: nobody counts then.
    pub missing: u32,
    /// Why somebody is left out, for people; empty: nobody is.
    pub why: String,
    /// `[values]` u32, little endian; empty where nobody counts.
    #[serde(with = "serde_bytes")]
    pub sum: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{EpochNo, ShardId};

    #[test]
    fn an_update_is_packed_as_the_format_says() {
        let update = Masked {
            values: vec![1, 0x0403_0201, u32::MAX],
            seed: vec![9; ENVELOPE],
        };
        let packed = update.pack();
        let head = [1, 0, 0, 0, 1, 2, 3, 4, 255, 255, 255, 255, 9];
        assert_eq!(packed.bytes[..13], head);
        assert_eq!(packed.bytes.len(), length(2));
        assert_eq!(Masked::unpack(&packed, 2), Ok(update.clone()));
        assert_eq!(Masked::seed_of(&packed, 2), Ok(update.seed));
        assert!(Masked::unpack(&packed, 3).is_err());
        assert_eq!(packed.decode(2), Err(PackedError::Masked));
        let exact = Packed::encode(&[1.0, 2.0], PackedFormat::F32).expect("finite");
        assert!(Masked::unpack(&exact, 2).is_err());
        assert!(Masked::unpack(&packed, usize::MAX).is_err());
    }

    #[test]
    fn envelopes_are_bound_to_all_that_they_are_about() {
        let round = RoundKey {
            epoch: EpochNo(1),
            shard: ShardId(2),
            generation: 3,
            stage: 4,
            round: 5,
        };
        let bound = bound_to(&[7; 16], &round, 6);
        let rest = [1, 0, 0, 0, 2, 0, 3, 0, 0, 0, 4, 0, 5, 0, 6, 0, 0, 0];
        assert_eq!(bound[..16], [7; 16]);
        assert_eq!(bound[16..], rest);
    }
}
