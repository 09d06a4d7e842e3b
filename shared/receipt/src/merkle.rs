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

/// An append-only tree of leaf hashes. It keeps the hash of every complete subtree, so that a root,
/// a proof or another entry costs as many hashes as the tree has levels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// By level: the hashes of the complete subtrees of `2^level` leaves, in order. The first are
    /// the leaves themselves. No level is empty.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// A tree of these leaf hashes.
    pub fn from_leaves(leaves: Vec<Hash>) -> Self {
        let mut levels = vec![];
        let mut next = leaves;
        while !next.is_empty() {
            let pairs = next.chunks_exact(2);
            let above = pairs.map(|p| node_hash(&p[0], &p[1])).collect();
            levels.push(std::mem::replace(&mut next, above));
        }
        Self { levels }
    }

    /// Leaf hashes in order.
    pub fn leaves(&self) -> &[Hash] {
        self.nodes(0)
    }

    /// Hashes of the complete subtrees of `2^level` leaves, in order.
    pub fn nodes(&self, level: u32) -> &[Hash] {
        self.levels.get(level as usize).map_or(&[], Vec::as_slice)
    }

    /// Appends an entry; returns its index.
    pub fn push(&mut self, data: &[u8]) -> u64 {
        let mut hash = leaf_hash(data);
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(vec![]);
            }
            let nodes = &mut self.levels[level];
            nodes.push(hash);
            // An even number: with the one before it, it completes a subtree of the next level.
            let [.., left, right] = nodes.as_slice() else {
                break;
            };
            if nodes.len() % 2 == 1 {
                break;
            }
            hash = node_hash(left, right);
        }
        self.len() - 1
    }

    /// Entries.
    pub fn len(&self) -> u64 {
        self.leaves().len() as u64
    }

    /// No entry yet.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Root of all entries.
    pub fn root(&self) -> Hash {
        self.range(0, self.leaves().len())
    }

    /// Root of the first `size` entries; `None` when there are fewer.
    pub fn root_of(&self, size: u64) -> Option<Hash> {
        let size = self.within(size)?;
        Some(self.range(0, size))
    }

    /// The first `size` entries as a tree of their own; all when there are fewer.
    pub fn first(&self, size: u64) -> Self {
        let size = self.within(size).unwrap_or(self.leaves().len());
        let cut = |(level, nodes): (usize, &Vec<Hash>)| nodes[..size >> level].to_vec();
        let levels = self.levels.iter().enumerate().map(cut);
        Self {
            levels: levels.filter(|nodes| !nodes.is_empty()).collect(),
        }
    }

    /// Proof that the tree of the first `size` entries is a prefix of this one (RFC 6962, section
    /// 2.1.2).
    pub fn consistency(&self, size: u64) -> Option<Vec<Hash>> {
        self.consistency_of(size, self.len())
    }

    /// The same for the trees of the first `old` and the first `size` entries.
    pub fn consistency_of(&self, old: u64, size: u64) -> Option<Vec<Hash>> {
        let size = self.within(size)?;
        let old = self.within(old).filter(|old| *old <= size)?;
        let mut path = vec![];
        if old > 0 && old < size {
            self.subproof(0, size, old, &mut path);
        }
        Some(path)
    }

    /// Audit path of an entry in the whole tree.
    pub fn inclusion(&self, index: u64) -> Option<Vec<Hash>> {
        self.inclusion_of(index, self.len())
    }

    /// The same in the tree of the first `size` entries.
    pub fn inclusion_of(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        let size = self.within(size)?;
        let index = self.within(index).filter(|i| *i < size)?;
        let mut path = vec![];
        self.audit_path(0, size, index, &mut path);
        Some(path)
    }

    /// A number of entries that are there.
    fn within(&self, size: u64) -> Option<usize> {
        let size = usize::try_from(size).ok()?;
        (size <= self.leaves().len()).then_some(size)
    }

    /// Root of the leaves from `begin` up to `end`: a subtree as RFC 6962 divides the tree of the
    /// leaves up to `end`. A complete one is known; of any other, only the right part may not be.
    fn range(&self, begin: usize, end: usize) -> Hash {
        let len = end - begin;
        if len == 0 {
            return empty();
        }
        if len.is_power_of_two() {
            let level = len.trailing_zeros();
            return self.nodes(level)[begin >> level];
        }
        let middle = begin + split(len);
        node_hash(&self.range(begin, middle), &self.range(middle, end))
    }

    fn audit_path(&self, begin: usize, end: usize, index: usize, path: &mut Vec<Hash>) {
        if end - begin <= 1 {
            return;
        }
        let middle = begin + split(end - begin);
        if index < middle {
            self.audit_path(begin, middle, index, path);
            path.push(self.range(middle, end));
        } else {
            self.audit_path(middle, end, index, path);
            path.push(self.range(begin, middle));
        }
    }

    /// Proof for the leaves before `cut`, among those from `begin` up to `end`. What begins with
    /// the first leaf is known already.
    fn subproof(&self, begin: usize, end: usize, cut: usize, path: &mut Vec<Hash>) {
        if cut == end {
            if begin > 0 {
                path.push(self.range(begin, end));
            }
            return;
        }
        let middle = begin + split(end - begin);
        if cut <= middle {
            self.subproof(begin, middle, cut, path);
            path.push(self.range(middle, end));
        } else {
            self.subproof(middle, end, cut, path);
            path.push(self.range(begin, middle));
        }
    }
}

/// The largest power of two that is smaller.
fn split(n: usize) -> usize {
    n.next_power_of_two() / 2
}

fn empty() -> Hash {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&SHA256, b"").as_ref());
    out
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

    /// As RFC 6962 has it, word for word.
    fn by_definition(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty(),
            [one] => *one,
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len()));
                node_hash(&by_definition(left), &by_definition(right))
            }
        }
    }

    #[test]
    fn what_is_kept_is_what_the_definition_says() {
        let mut grown = Tree::default();
        for n in 0..70u64 {
            assert_eq!(grown.len(), n);
            assert_eq!(grown.root(), by_definition(grown.leaves()));
            assert_eq!(grown, Tree::from_leaves(grown.leaves().to_vec()));
            for m in 0..=n {
                let first = by_definition(&grown.leaves()[..m as usize]);
                assert_eq!(grown.root_of(m), Some(first));
                assert_eq!(grown.first(m).root(), first);
                assert_eq!(grown.first(m).len(), m);
                for old in 0..=m {
                    let alone = grown.first(m);
                    assert_eq!(grown.consistency_of(old, m), alone.consistency(old));
                    assert_eq!(grown.inclusion_of(old, m), alone.inclusion(old));
                }
            }
            assert_eq!(grown.root_of(n + 1), None);
            assert_eq!(grown.first(n + 1), grown);
            for level in 0..8 {
                let whole = grown.leaves().chunks_exact(1 << level);
                let roots: Vec<Hash> = whole.map(by_definition).collect();
                assert_eq!(grown.nodes(level), roots);
            }
            grown.push(&n.to_le_bytes());
        }
    }

    #[test]
    fn known_root_of_the_empty_tree() {
        assert_eq!(Tree::default().root()[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }
}
