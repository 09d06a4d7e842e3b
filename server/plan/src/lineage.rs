//! Lineage: what a checkpoint was computed from, as one hash (SISA, arXiv 1912.03817), and whose
//! data is in what.

use lethe_proto::ids::{Digest, ShardId, SubjectId};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

/// A subject's contribution to a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Commitment {
    /// 0-based slice.
    pub slice: u16,
    /// The subject.
    pub subject: SubjectId,
    /// The subject's salted commitment to their training data.
    pub data: Digest,
}

/// Hash of the shard, the stage, the ordered surviving subjects of slices `0..stage` with their
/// data commitments, the base model and the recipe. A deletion changes exactly the keys from its
/// slice onward.
pub fn checkpoint_key(
    shard: ShardId,
    stage: u16,
    members: &[Commitment],
    model: &Digest,
    recipe: &Digest,
) -> Digest {
    let mut kept: Vec<&Commitment> = members.iter().filter(|m| m.slice < stage).collect();
    kept.sort();
    let (shard, stage) = (shard.0.to_le_bytes(), stage.to_le_bytes());
    let mut parts: Vec<&[u8]> = vec![b"lethe-checkpoint", &shard, &stage, &model.0, &recipe.0];
    for m in kept {
        parts.push(m.subject.as_str().as_bytes());
        parts.push(&m.data.0);
    }
    Digest::of(&parts)
}

/// Whose data something was computed from: internal numbers of subjects, compact (a roaring
/// bitmap). The number of a deleted subject stays in it, but what tells whose number it was is
/// destroyed with the subject's key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Census(RoaringBitmap);

impl Census {
    /// Whether this subject's data is in it.
    pub fn contains(&self, number: u32) -> bool {
        self.0.contains(number)
    }

    /// How many subjects.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Nobody's data.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter()
    }

    /// Everybody in either.
    pub fn union<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        Self(
            parts
                .into_iter()
                .fold(RoaringBitmap::new(), |a, b| a | &b.0),
        )
    }
}

impl FromIterator<u32> for Census {
    fn from_iter<T: IntoIterator<Item = u32>>(numbers: T) -> Self {
        Self(numbers.into_iter().collect())
    }
}

impl From<Census> for Vec<u8> {
    fn from(c: Census) -> Self {
        let mut out = vec![];
        // Writing to memory does not fail.
        let _ = c.0.serialize_into(&mut out);
        out
    }
}

impl TryFrom<Vec<u8>> for Census {
    type Error = std::io::Error;
    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        RoaringBitmap::deserialize_from(&bytes[..]).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_census_is_small_and_comes_back_from_its_bytes() {
        let census: Census = (0..100_000).filter(|i| i % 7 != 0).collect();
        let bytes: Vec<u8> = census.clone().into();
        assert!(
            bytes.len() < 20_000,
            "{} bytes for {} subjects",
            bytes.len(),
            census.len()
        );
        let back = Census::try_from(bytes).expect("its own bytes");
        assert_eq!(back, census);
        assert!(back.contains(8) && !back.contains(7));
        assert_eq!(
            Census::union([&census, &[7].into_iter().collect()]).len(),
            census.len() + 1
        );
        assert!(Census::try_from(vec![1, 2, 3]).is_err());
    }

    #[test]
    fn a_deletion_changes_exactly_the_keys_from_its_slice_on() {
        let member = |id: &str, slice| Commitment {
            slice,
            subject: SubjectId::new(id).expect("an id"),
            data: Digest::of(&[id.as_bytes()]),
        };
        let all = [
            member("a", 0),
            member("b", 1),
            member("c", 1),
            member("d", 2),
        ];
        let key = |members: &[Commitment], stage| {
            checkpoint_key(
                ShardId(0),
                stage,
                members,
                &Digest([1; 32]),
                &Digest([2; 32]),
            )
        };
        let without: Vec<Commitment> = all
            .iter()
            .filter(|m| m.subject.as_str() != "c")
            .cloned()
            .collect();
        assert_eq!(key(&all, 0), key(&without, 0));
        assert_eq!(key(&all, 1), key(&without, 1));
        assert_ne!(key(&all, 2), key(&without, 2));
        assert_ne!(key(&all, 3), key(&without, 3));
        let mut shuffled = all.to_vec();
        shuffled.reverse();
        assert_eq!(key(&all, 3), key(&shuffled, 3));
    }
}
