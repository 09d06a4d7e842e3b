//! Which records a shard trains on, as a sorted Merkle tree: proofs that a record is among them,
//! and that none is.
//!
//! A record is a pair of 32-byte values: its key, `SHA-256("lethe-record" || salt || subject)` with
//! a salt that is destroyed with the subject, and the salted commitment to its data that the device
//! gave. Leaves are `key || data`, in the order of keys, between two leaves that nobody can have
//! (all bits 0, all bits 1), so that every absent key lies between two neighbours.

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::hex::{hex, unhex32};
use crate::merkle::{Hash, Tree, verify_inclusion};

/// Key of a subject's record.
pub fn record_key(salt: &[u8; 32], subject: &str) -> Hash {
    let mut ctx = Context::new(&SHA256);
    [&b"lethe-record"[..], salt, subject.as_bytes()]
        .iter()
        .for_each(|p| ctx.update(p));
    let mut out = [0; 32];
    out.copy_from_slice(ctx.finish().as_ref());
    out
}

/// The records of a shard.
#[derive(Clone, Debug)]
pub struct Records {
    sorted: Vec<(Hash, Hash)>,
    tree: Tree,
}

/// A leaf and its audit path, hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaf {
    /// Position in the tree.
    pub index: u64,
    /// Record key.
    pub key: String,
    /// Commitment to the data.
    pub data: String,
    /// Audit path.
    pub path: Vec<String>,
}

impl Leaf {
    fn decode(&self) -> Option<(Hash, Hash, Vec<Hash>)> {
        let path: Option<Vec<Hash>> = self.path.iter().map(|h| unhex32(h)).collect();
        Some((unhex32(&self.key)?, unhex32(&self.data)?, path?))
    }

    /// Whether it is a leaf of the tree of `count` records with this root.
    pub fn verify(&self, count: u64, root: &Hash) -> bool {
        let Some((key, data, path)) = self.decode() else {
            return false;
        };
        verify_inclusion(
            &[key, data].concat(),
            self.index,
            count.saturating_add(2),
            &path,
            root,
        )
    }
}

impl Records {
    /// From `(key, data)` pairs in any order.
    pub fn new(records: impl IntoIterator<Item = (Hash, Hash)>) -> Self {
        let mut sorted: Vec<(Hash, Hash)> = records.into_iter().collect();
        sorted.extend([([0; 32], [0; 32]), ([255; 32], [0; 32])]);
        sorted.sort();
        let mut tree = Tree::default();
        sorted.iter().for_each(|(k, d)| {
            tree.push(&[*k, *d].concat());
        });
        Self { sorted, tree }
    }

    /// Root over all records.
    pub fn root(&self) -> Hash {
        self.tree.root()
    }

    /// How many records.
    pub fn count(&self) -> u64 {
        self.tree.len() - 2
    }

    fn leaf(&self, i: usize) -> Option<Leaf> {
        let (key, data) = self.sorted.get(i)?;
        let path = self.tree.inclusion(i as u64)?;
        Some(Leaf {
            index: i as u64,
            key: hex(key),
            data: hex(data),
            path: path.iter().map(|h| hex(h)).collect(),
        })
    }

    /// The record with this key.
    pub fn member(&self, key: &Hash) -> Option<Leaf> {
        self.leaf(self.sorted.iter().position(|(k, _)| k == key)?)
    }

    /// The neighbours that a key lies between; `None` when it is a record.
    pub fn absent(&self, key: &Hash) -> Option<[Leaf; 2]> {
        let after = self.sorted.partition_point(|(k, _)| k < key);
        if after == 0 || self.sorted.get(after).is_none_or(|(k, _)| k == key) {
            return None;
        }
        Some([self.leaf(after - 1)?, self.leaf(after)?])
    }
}

/// Whether two leaves prove that `key` is not a record of the tree of `count` records with this
/// root.
pub fn verify_absent(key: &Hash, neighbours: &[Leaf; 2], count: u64, root: &Hash) -> bool {
    let [low, high] = neighbours;
    let keys = unhex32(&low.key).zip(unhex32(&high.key));
    keys.is_some_and(|(l, h)| l < *key && *key < h)
        && high.index == low.index.saturating_add(1)
        && low.verify(count, root)
        && high.verify(count, root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(n: u8) -> Vec<(Hash, Hash)> {
        (0..n)
            .map(|i| (record_key(&[i; 32], &format!("person-{i}")), [i; 32]))
            .collect()
    }

    #[test]
    fn members_are_proven_present_and_all_others_absent() {
        for n in [0, 1, 2, 5, 9] {
            let all = some(n);
            let tree = Records::new(all.clone());
            let (root, count) = (tree.root(), tree.count());
            assert_eq!(count, u64::from(n));
            for (k, d) in &all {
                let leaf = tree.member(k).expect("a record");
                assert!(leaf.verify(count, &root) && leaf.data == hex(d));
                assert!(tree.absent(k).is_none());
                let without = Records::new(all.iter().filter(|(x, _)| x != k).copied());
                let gap = without.absent(k).expect("no record any more");
                assert!(verify_absent(k, &gap, without.count(), &without.root()));
                assert!(
                    !verify_absent(k, &gap, count, &root),
                    "it is in the first tree"
                );
                if n > 2 {
                    let wide = [
                        without.leaf(0).expect("first"),
                        without.leaf(n as usize).expect("last"),
                    ];
                    assert!(
                        !verify_absent(k, &wide, without.count(), &without.root()),
                        "not neighbours"
                    );
                }
            }
        }
    }

    #[test]
    fn the_order_of_arrival_does_not_matter() {
        let mut all = some(6);
        let root = Records::new(all.clone()).root();
        all.reverse();
        assert_eq!(Records::new(all).root(), root);
    }
}
