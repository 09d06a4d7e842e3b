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

    /// The first `size` entries as a tree of their own; all when there are fewer.
    pub fn first(&self, size: u64) -> Self {
        let n = usize::try_from(size).map_or(self.leaves.len(), |n| n.min(self.leaves.len()));
        Self {
            leaves: self.leaves[..n].to_vec(),
        }
    }

    /// Proof that the tree of the first `size` entries is a prefix of this one (RFC 6962, section
    /// 2.1.2).
    pub fn consistency(&self, size: u64) -> Option<Vec<Hash>> {
        let m = usize::try_from(size)
            .ok()
            .filter(|m| *m <= self.leaves.len())?;
        let mut path = Vec::new();
        if m > 0 && m < self.leaves.len() {
            subproof(&self.leaves, m, true, &mut path);
        }
        Some(path)
    }

    /// Audit path of an entry in the whole tree.
    pub fn inclusion(&self, index: u64) -> Option<Vec<Hash>> {
        let i = usize::try_from(index)
            .ok()
            .filter(|i| *i < self.leaves.len())?;
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

fn subproof(leaves: &[Hash], m: usize, whole: bool, path: &mut Vec<Hash>) {
    if m == leaves.len() {
        if !whole {
            path.push(root(leaves));
        }
        return;
    }
    let k = split(leaves.len());
    let (l, r) = leaves.split_at(k);
    if m <= k {
        subproof(l, m, whole, path);
        path.push(root(r));
    } else {
        subproof(r, m - k, false, path);
        path.push(root(l));
    }
}

/// Whether the tree `(size, root)` is a prefix of the tree `later` (RFC 9162, section 2.1.4.2).
pub fn verify_consistency(old: (u64, &Hash), later: (u64, &Hash), proof: &[Hash]) -> bool {
    let ((m, old_root), (n, new_root)) = (old, later);
    if m > n || (m == 0) {
        return m == 0 && proof.is_empty();
    }
    if m == n {
        return proof.is_empty() && old_root == new_root;
    }
    let mut rest = proof.iter();
    let first = if m.is_power_of_two() {
        Some(old_root)
    } else {
        rest.next()
    };
    let Some(first) = first else { return false };
    let (mut f, mut s) = (m - 1, n - 1);
    while f & 1 == 1 {
        f >>= 1;
        s >>= 1;
    }
    let (mut fr, mut sr) = (*first, *first);
    for c in rest {
        if s == 0 {
            return false;
        }
        if f & 1 == 1 || f == s {
            fr = node_hash(c, &fr);
            sr = node_hash(c, &sr);
            while f & 1 == 0 && f != 0 {
                f >>= 1;
                s >>= 1;
            }
        } else {
            sr = node_hash(&sr, c);
        }
        f >>= 1;
        s >>= 1;
    }
    s == 0 && fr == *old_root && sr == *new_root
}

/// Whether `data` is entry `index` of the tree with `size` entries and root `root` (RFC 9162,
/// section 2.1.3.2).
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
                assert!(!verify_inclusion(
                    &(i + 1).to_le_bytes(),
                    i,
                    n,
                    &p,
                    &t.root()
                ));
                assert!(
                    !verify_inclusion(&i.to_le_bytes(), (i + 1) % n, n, &p, &t.root()) || n == 1
                );
            }
            assert!(t.inclusion(n).is_none());
        }
    }

    #[test]
    fn every_prefix_is_consistent_and_no_other_tree_is() {
        let tree = |n: u64, x: u64| {
            let mut t = Tree::default();
            (0..n).for_each(|i| {
                t.push(&(i ^ x).to_le_bytes());
            });
            t
        };
        for n in 1..24u64 {
            let t = tree(n, 0);
            for m in 0..=n {
                let p = t.consistency(m).expect("inside");
                assert!(
                    verify_consistency((m, &t.first(m).root()), (n, &t.root()), &p),
                    "{m} of {n}"
                );
                if m > 0 {
                    assert!(
                        !verify_consistency((m, &tree(m, 64).root()), (n, &t.root()), &p),
                        "a split view at {m}"
                    );
                    assert!(!verify_consistency(
                        (m, &t.first(m).root()),
                        (n, &tree(n, 64).root()),
                        &p
                    ));
                }
            }
        }
    }

    #[test]
    fn known_root_of_the_empty_tree() {
        assert_eq!(Tree::default().root()[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }
}
