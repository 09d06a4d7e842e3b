//! Which shard a subject belongs to, without looking at anybody else.
//!
//! Two levels, both data-independent (`docs/adr/0003-partition.md`): anchors are centres of a
//! balanced k-means over the **public item catalogue**; a subject goes to the anchor nearest to the
//! mean embedding of the items they liked; a keyed hash of the subject's id spreads a large anchor
//! over several sub-shards, whose number is fixed when the epoch starts. The partition of the APA
//! paper (arXiv 2404.10327) moves other people's samples when one is deleted.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::seed::Seed;
use crate::sketch::cosine;

/// Why anchors cannot be computed.
#[derive(Debug, Error, PartialEq)]
pub enum PartitionError {
    /// Fewer items than anchors.
    #[error(
        "{items} items cannot give {anchors} anchors: ask for fewer shards or give a larger \
         catalogue"
    )]
    TooFewItems {
        /// Items in the catalogue.
        items: usize,
        /// Anchors asked for.
        anchors: usize,
    },
    /// Fewer shards than anchors.
    #[error("{shards} shards cannot cover {anchors} anchors: each anchor needs at least one shard")]
    TooFewShards {
        /// Shards asked for.
        shards: usize,
        /// Anchors to cover.
        anchors: usize,
    },
}

/// Removes the mean over rows and scales each row to unit length; `rows` is `[n][dim]`. Returns the
/// mean.
pub fn centre(rows: &mut [Vec<f32>]) -> Vec<f32> {
    let dim = rows.first().map_or(0, Vec::len);
    let n = rows.len().max(1) as f32;
    let mut mean = vec![0.0f32; dim];
    for row in rows.iter() {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / n);
    }
    for row in rows.iter_mut() {
        row.iter_mut().zip(&mean).for_each(|(v, m)| *v -= m);
        normalise(row);
    }
    mean
}

fn normalise(row: &mut [f32]) {
    let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|v| *v /= norm);
    }
}

/// Balanced k-means over `items` (`[n][dim]`, centred): each centre takes at most `ceil(n /
/// anchors)` items, filled in order of similarity, ties by index. 20 iterations, k-means++ start
/// from `seed`. Returns `[anchors][dim]`.
pub fn anchors(
    items: &[Vec<f32>],
    anchors: usize,
    seed: &Seed,
) -> Result<Vec<Vec<f32>>, PartitionError> {
    if anchors == 0 || items.len() < anchors {
        return Err(PartitionError::TooFewItems {
            items: items.len(),
            anchors,
        });
    }
    let mut centres = spread_start(items, anchors, seed);
    for _ in 0..20 {
        let owner = capped_fill(items, &centres);
        let next = means(items, &owner, anchors);
        if next == centres {
            break;
        }
        centres = next;
    }
    Ok(centres)
}

fn spread_start(items: &[Vec<f32>], anchors: usize, seed: &Seed) -> Vec<Vec<f32>> {
    let mut rng = seed.derive("anchors", &[]).rng();
    let mut centres = vec![items[rng.below(items.len())].clone()];
    while centres.len() < anchors {
        let far = |x: &Vec<f32>| {
            centres
                .iter()
                .map(|c| 1.0 - cosine(c, x))
                .fold(f64::INFINITY, f64::min)
                .max(0.0)
        };
        let weights: Vec<f64> = items.iter().map(far).collect();
        let mut left = f64::from(rng.unit()) * weights.iter().sum::<f64>();
        let pick = weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        centres.push(items[pick.unwrap_or(centres.len())].clone());
    }
    centres
}

fn capped_fill(items: &[Vec<f32>], centres: &[Vec<f32>]) -> Vec<usize> {
    let cap = items.len().div_ceil(centres.len());
    let mut pairs: Vec<(f64, usize, usize)> = items
        .iter()
        .enumerate()
        .flat_map(|(i, x)| {
            centres
                .iter()
                .enumerate()
                .map(move |(k, c)| (cosine(c, x), i, k))
        })
        .collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let mut owner = vec![usize::MAX; items.len()];
    let mut taken = vec![0; centres.len()];
    for (_, i, k) in pairs {
        if owner[i] == usize::MAX && taken[k] < cap {
            owner[i] = k;
            taken[k] += 1;
        }
    }
    owner
}

fn means(items: &[Vec<f32>], owner: &[usize], anchors: usize) -> Vec<Vec<f32>> {
    let mut sums = vec![vec![0.0f32; items[0].len()]; anchors];
    for (x, k) in items.iter().zip(owner) {
        sums[*k].iter_mut().zip(x).for_each(|(s, v)| *s += v);
    }
    sums.iter_mut().for_each(|s| normalise(s));
    sums
}

/// The anchor nearest to the mean of `liked` item embeddings (`[n][dim]`); `None` when that names
/// no direction: nothing liked, or items without features. The caller then places the subject by a
/// keyed hash of who they are, so that such people spread evenly, and the same way every time.
pub fn nearest_anchor(anchors: &[Vec<f32>], liked: &[&[f32]]) -> Option<usize> {
    let dim = anchors.first().map_or(0, Vec::len);
    let mut mean = vec![0.0f32; dim];
    for x in liked {
        mean.iter_mut().zip(*x).for_each(|(m, v)| *m += v);
    }
    if mean.iter().all(|v| *v == 0.0) {
        return None;
    }
    let mut best = (f64::NEG_INFINITY, None);
    for (k, a) in anchors.iter().enumerate() {
        let c = cosine(a, &mean);
        if c > best.0 {
            best = (c, Some(k));
        }
    }
    best.1
}

/// How many sub-shards each anchor has; fixed for an epoch and recorded as side information.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubShards(Vec<u32>);

impl SubShards {
    /// Gives each anchor at least one of `shards` and the rest where subjects per shard are most
    /// (`counts` are the subjects per anchor when the epoch starts; a deletion never recomputes
    /// this).
    pub fn allot(counts: &[usize], shards: usize) -> Result<Self, PartitionError> {
        if shards < counts.len() || counts.is_empty() {
            return Err(PartitionError::TooFewShards {
                shards,
                anchors: counts.len(),
            });
        }
        let mut parts = vec![1u32; counts.len()];
        for _ in counts.len()..shards {
            let load = |k: &usize| counts[*k] as f64 / f64::from(parts[*k]);
            let heaviest = (0..counts.len())
                .rev()
                .max_by(|a, b| load(a).total_cmp(&load(b)));
            parts[heaviest.unwrap_or(0)] += 1;
        }
        Ok(Self(parts))
    }

    /// Number of shards in all.
    pub fn shards(&self) -> usize {
        self.0.iter().sum::<u32>() as usize
    }

    /// The shard of a subject at `anchor`; `key` is the epoch's seed.
    pub fn shard(&self, anchor: usize, subject: &[u8], key: &Seed) -> usize {
        let anchor = anchor.min(self.0.len() - 1);
        let before: u32 = self.0[..anchor].iter().sum();
        before as usize + (key.rank("sub-shard", subject) % u64::from(self.0[anchor])) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Vec<Vec<f32>> {
        let mut rng = Seed::from_u64(5).rng();
        let mut rows: Vec<Vec<f32>> = (0..60)
            .map(|i| {
                let mut v = vec![0.0; 6];
                v[i % 3] = 3.0;
                v.iter_mut().for_each(|x| *x += rng.normal() * 0.2);
                v
            })
            .collect();
        centre(&mut rows);
        rows
    }

    #[test]
    fn anchors_find_the_groups() {
        let rows = items();
        let a = anchors(&rows, 3, &Seed::from_u64(1)).expect("60 items");
        let owner: Vec<usize> = rows
            .iter()
            .filter_map(|r| nearest_anchor(&a, &[r]))
            .collect();
        assert_eq!(owner.len(), rows.len());
        assert!((0..60).all(|i| owner[i] == owner[i % 3]));
        assert_eq!(
            anchors(&rows[..2], 3, &Seed::from_u64(1)),
            Err(PartitionError::TooFewItems {
                items: 2,
                anchors: 3
            })
        );
    }

    #[test]
    fn sub_shards_balance_large_anchors() {
        let s = SubShards::allot(&[700, 200], 4).expect("4 shards");
        assert_eq!(s, SubShards(vec![3, 1]));
        let key = Seed::from_u64(2);
        let mut sizes = [0; 4];
        for i in 0..900u32 {
            sizes[s.shard(usize::from(i >= 700), &i.to_le_bytes(), &key)] += 1;
        }
        assert!(
            *sizes.iter().max().expect("four") as f64 <= 1.5 * 225.0,
            "{sizes:?}"
        );
    }

    #[test]
    fn a_subject_moves_only_with_its_own_data() {
        let rows = items();
        let a = anchors(&rows, 3, &Seed::from_u64(1)).expect("60 items");
        let liked: Vec<&[f32]> = rows[..4].iter().map(Vec::as_slice).collect();
        assert!(nearest_anchor(&a, &liked).is_some());
        assert_eq!(nearest_anchor(&a, &[]), None);
    }
}
