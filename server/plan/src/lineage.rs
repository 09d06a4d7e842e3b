//! Checkpoint keys: what a checkpoint was computed from, as one hash (SISA, arXiv 1912.03817).

use lethe_proto::ids::{Digest, ShardId, SubjectId};

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

/// Hash of the shard, the stage, the ordered surviving subjects of slices `0..stage` with their data commitments, the
/// base model and the recipe. A deletion changes exactly the keys from its slice onward.
pub fn checkpoint_key(shard: ShardId, stage: u16, members: &[Commitment], model: &Digest, recipe: &Digest) -> Digest {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_changes_exactly_the_keys_from_its_slice_on() {
        let member = |id: &str, slice| Commitment {
            slice,
            subject: SubjectId::new(id).expect("an id"),
            data: Digest::of(&[id.as_bytes()]),
        };
        let all = [member("a", 0), member("b", 1), member("c", 1), member("d", 2)];
        let key = |members: &[Commitment], stage| {
            checkpoint_key(ShardId(0), stage, members, &Digest([1; 32]), &Digest([2; 32]))
        };
        let without: Vec<Commitment> = all.iter().filter(|m| m.subject.as_str() != "c").cloned().collect();
        assert_eq!(key(&all, 0), key(&without, 0));
        assert_eq!(key(&all, 1), key(&without, 1));
        assert_ne!(key(&all, 2), key(&without, 2));
        assert_ne!(key(&all, 3), key(&without, 3));
        let mut shuffled = all.to_vec();
        shuffled.reverse();
        assert_eq!(key(&all, 3), key(&shuffled, 3));
    }
}
