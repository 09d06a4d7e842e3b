//! The Merkle tree of RFC 6962, section 2.1.

use ring::digest::{Context, SHA256};

/// A node hash.
pub type Hash = [u8; 32];

fn digest(prefix: u8, parts: &[&[u8]]) -> Hash {
    let mut ctx = Context::new(&SHA256);
    ctx.update(&[prefix]);
    parts.iter().for_each(|p| ctx.update(p));
    let mut out = [0; 32];
    out.copy_from_slice(ctx.finish().as_ref());
    out
}

/// Hash of a leaf.
pub fn leaf_hash(data: &[u8]) -> Hash {
    digest(0, &[data])
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    digest(1, &[left, right])
}

/// An append-only tree of leaf hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    leaves: Vec<Hash>,
}

impl Tree {
    /// A tree of these leaf hashes.
    pub fn from_leaves(leaves: Vec<Hash>) -> Self {
        Self { leaves }
    }

    /// Leaf hashes in order.
    pub fn leaves(&self) -> &[Hash] {
        &self.leaves
    }

    /// Appends an entry; returns its index.
    pub fn push(&mut self, data: &[u8]) -> u64 {
        self.leaves.push(leaf_hash(data));
        self.len() - 1
    }

    /// Entries.
    pub fn len(&self) -> u64 {
        self.leaves.len() as u64
    }

    /// No entry yet.
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// Root of all entries.
    pub fn root(&self) -> Hash {
        root(&self.leaves)
    }

    /// Audit path of an entry in the whole tree.
    pub fn inclusion(&self, index: u64) -> Option<Vec<Hash>> {
        let i = usize::try_from(index).ok().filter(|i| *i < self.leaves.len())?;
        let mut path = Vec::new();
        audit_path(&self.leaves, i, &mut path);
        Some(path)
    }
}

fn split(n: usize) -> usize {
    n.next_power_of_two() / 2
}

fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => {
            let mut out = [0; 32];
            out.copy_from_slice(ring::digest::digest(&SHA256, b"").as_ref());
            out
        }
        [one] => *one,
        _ => {
            let (l, r) = leaves.split_at(split(leaves.len()));
            node_hash(&root(l), &root(r))
        }
    }
}

fn audit_path(leaves: &[Hash], i: usize, path: &mut Vec<Hash>) {
    if leaves.len() <= 1 {
        return;
    }
    let k = split(leaves.len());
    let (l, r) = leaves.split_at(k);
    if i < k {
        audit_path(l, i, path);
        path.push(root(r));
    } else {
        audit_path(r, i - k, path);
        path.push(root(l));
    }
}

/// Whether `data` is entry `index` of the tree with `size` entries and root `root` (RFC 9162, section 2.1.3.2).
pub fn verify_inclusion(data: &[u8], index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut f, mut s, mut h) = (index, size - 1, leaf_hash(data));
    for p in proof {
        if s == 0 {
            return false;
        }
        if f & 1 == 1 || f == s {
            h = node_hash(p, &h);
            while f & 1 == 0 && f != 0 {
                f >>= 1;
                s >>= 1;
            }
        } else {
            h = node_hash(&h, p);
        }
        f >>= 1;
        s >>= 1;
    }
    s == 0 && h == *root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_of_every_size_is_proven_and_no_other() {
        for n in 1..20u64 {
            let mut t = Tree::default();
            (0..n).for_each(|i| {
                t.push(&i.to_le_bytes());
            });
            for i in 0..n {
                let p = t.inclusion(i).expect("inside");
                assert!(verify_inclusion(&i.to_le_bytes(), i, n, &p, &t.root()));
                assert!(!verify_inclusion(&(i + 1).to_le_bytes(), i, n, &p, &t.root()));
                assert!(!verify_inclusion(&i.to_le_bytes(), (i + 1) % n, n, &p, &t.root()) || n == 1);
            }
            assert!(t.inclusion(n).is_none());
        }
    }

    #[test]
    fn known_root_of_the_empty_tree() {
        assert_eq!(Tree::default().root()[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }
}
