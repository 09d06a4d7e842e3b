//! Who goes into which shard: the published partitions and ours.

use std::sync::Arc;

use lethe_learn::partition::{SubShards, anchors, centre, nearest_anchor};
use lethe_learn::seed::Seed;

use crate::world::{SampleId, UnlearnError, World};

/// A way to divide samples into shards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Partition {
    /// SISA (Bourtoule et al., arXiv 1912.03817): at random, by a keyed rank of the sample.
    Random,
    /// All samples of a user together, at random.
    ByUser,
    /// GraphEraser's BEKM (Chen et al., CCS 2022, algorithm 2) on the untuned model's hidden states
    /// of the prompts: k-means whose clusters are filled in order of squared distance up to
    /// `ceil(n/K + delta (n - n/K))`, delta = 0.005, 20 iterations. Departure: hidden states in
    /// place of graph embeddings, which a language model does not have.
    Bekm,
    /// APA (Hu et al., arXiv 2404.10327): k-means on hidden states, filled in order of distance up
    /// to `ceil(n/K)`.
    Apa,
    /// RecEraser's user-based partition (Chen et al., WWW 2022): balanced k-means of users'
    /// pretrained vectors, cap `1.2 n/K`, 50 iterations. Departure: the published code takes a mean
    /// without an axis, so that a centroid is one number; the paper's mean vector is used here.
    Ubp,
    /// RecEraser's item-based partition: the same with items' vectors.
    Ibp,
    /// RecEraser's interaction-based partition: the same with both vectors of an interaction.
    Inbp,
    /// Ours (`lethe_learn::partition`): a function of the person's own data and the public
    /// catalogue. How many sub-shards an anchor has is fixed when the epoch starts.
    Ours,
}

/// Shards of samples, and what has to be stored for those that are computed later.
#[derive(Clone, Debug, Default)]
pub struct Placed {
    /// Shard of each sample, in the order given.
    pub shards: Vec<usize>,
    /// Of [`Partition::Ours`].
    pub fixed: Option<Fixed>,
}

/// What our partition fixes when the epoch starts: nobody's data decides it but the number of
/// sub-shards, which is kept as it is when somebody leaves.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// Features of the public catalogue, centred.
    features: Arc<Vec<Vec<f32>>>,
    anchors: Arc<Vec<Vec<f32>>>,
    /// Sub-shards per anchor.
    sub_shards: SubShards,
}

/// What a balanced k-means works with.
struct KMeans {
    shards: usize,
    cap: usize,
    iterations: usize,
}

impl Partition {
    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::ByUser => "by-user",
            Self::Bekm => "bekm",
            Self::Apa => "semantic",
            Self::Ubp => "ubp",
            Self::Ibp => "ibp",
            Self::Inbp => "inbp",
            Self::Ours => "ours",
        }
    }

    /// Whether a sample's shard depends on its own person's data alone.
    pub fn independent(self) -> bool {
        matches!(self, Self::Random | Self::ByUser | Self::Ours)
    }

    /// Divides samples into `shards`. With `stored` (an earlier result on more samples) what was
    /// fixed then stays fixed.
    pub fn place(
        self,
        w: &mut dyn World,
        samples: &[SampleId],
        shards: usize,
        seed: &Seed,
        stored: Option<&Placed>,
    ) -> Result<Placed, UnlearnError> {
        let keyed =
            |label: &str, n: u64| (seed.rank(label, &n.to_le_bytes()) % shards as u64) as usize;
        let plain = |shards| Placed {
            shards,
            fixed: None,
        };
        let n = samples.len();
        let share = n.div_ceil(shards);
        Ok(match self {
            Self::Random => plain(
                samples
                    .iter()
                    .map(|s| keyed("sisa", w.identity(*s)))
                    .collect(),
            ),
            Self::ByUser => plain(
                samples
                    .iter()
                    .map(|s| keyed("user", u64::from(w.user(*s))))
                    .collect(),
            ),
            Self::Bekm => {
                let rest = (n as f64 - n as f64 / shards as f64) * 0.005;
                let cap = (n as f64 / shards as f64 + rest).ceil() as usize;
                plain(
                    KMeans {
                        shards,
                        cap,
                        iterations: 20,
                    }
                    .run(&w.hidden(samples)?, seed),
                )
            }
            Self::Apa => plain(
                KMeans {
                    shards,
                    cap: share,
                    iterations: 20,
                }
                .run(&w.hidden(samples)?, seed),
            ),
            Self::Ubp => plain(grouped(
                w,
                samples,
                shards,
                seed,
                |w, s| w.user(s),
                |w, u| w.user_vector(u),
            )),
            Self::Ibp => plain(grouped(
                w,
                samples,
                shards,
                seed,
                |w, s| w.item(s),
                |w, i| w.item_vector(i),
            )),
            Self::Inbp => {
                let both =
                    |s: &SampleId| [w.user_vector(w.user(*s)), w.item_vector(w.item(*s))].concat();
                let rows: Vec<Vec<f32>> = samples.iter().map(both).collect();
                let cap = (1.2 * n as f64 / shards as f64).ceil() as usize;
                plain(
                    KMeans {
                        shards,
                        cap,
                        iterations: 50,
                    }
                    .run(&rows, seed),
                )
            }
            Self::Ours => ours(w, samples, shards, seed, stored)?,
        })
    }
}

/// RecEraser's partitions by user or item: k-means over the distinct ones, each shard taking at
/// most 1.2 times its share of them.
fn grouped(
    w: &dyn World,
    samples: &[SampleId],
    shards: usize,
    seed: &Seed,
    of: impl Fn(&dyn World, SampleId) -> u32,
    vector: impl Fn(&dyn World, u32) -> Vec<f32>,
) -> Vec<usize> {
    let mut all: Vec<u32> = samples.iter().map(|s| of(w, *s)).collect();
    all.sort_unstable();
    all.dedup();
    let rows: Vec<Vec<f32>> = all.iter().map(|x| vector(w, *x)).collect();
    let cap = (1.2 * all.len() as f64 / shards as f64).ceil() as usize;
    let owner = KMeans {
        shards,
        cap,
        iterations: 50,
    }
    .run(&rows, seed);
    samples
        .iter()
        .map(|s| all.binary_search(&of(w, *s)).map_or(0, |i| owner[i]))
        .collect()
}

/// Anchors from the catalogue; a person's anchor from the items that they liked in what remains of
/// their samples.
fn ours(
    w: &dyn World,
    samples: &[SampleId],
    shards: usize,
    seed: &Seed,
    stored: Option<&Placed>,
) -> Result<Placed, UnlearnError> {
    let data = |e: lethe_learn::partition::PartitionError| UnlearnError::Data(e.to_string());
    let stored = stored.and_then(|p| p.fixed.as_ref());
    let (features, centres) = match stored {
        Some(fixed) => (fixed.features.clone(), fixed.anchors.clone()),
        None => {
            let mut features = w.catalogue().to_vec();
            centre(&mut features);
            let centres = anchors(&features, shards.div_ceil(2), &seed.derive("anchors", &[]))
                .map_err(data)?;
            (Arc::new(features), Arc::new(centres))
        }
    };
    let mut liked: std::collections::BTreeMap<u32, std::collections::BTreeSet<u32>> =
        Default::default();
    for s in samples {
        let items = liked.entry(w.user(*s)).or_default();
        items.extend(w.liked(*s));
        if w.label(*s) {
            items.insert(w.item(*s));
        }
    }
    let anchor = |u: u32| {
        let rows: Vec<&[f32]> = liked
            .get(&u)
            .into_iter()
            .flatten()
            .map(|i| &features[*i as usize][..])
            .collect();
        let by_hash = || {
            let rank = seed.rank("fallback", &u.to_le_bytes());
            (rank % centres.len().max(1) as u64) as usize
        };
        nearest_anchor(&centres, &rows).unwrap_or_else(by_hash)
    };
    let sub_shards = match stored {
        Some(fixed) => fixed.sub_shards.clone(),
        None => {
            let mut counts = vec![0; centres.len()];
            liked.keys().for_each(|u| counts[anchor(*u)] += 1);
            SubShards::allot(&counts, shards).map_err(data)?
        }
    };
    let place = |s: &SampleId| {
        let u = w.user(*s);
        sub_shards.shard(anchor(u), &u.to_le_bytes(), seed)
    };
    let shards = samples.iter().map(place).collect();
    Ok(Placed {
        shards,
        fixed: Some(Fixed {
            features,
            anchors: centres,
            sub_shards,
        }),
    })
}

/// Balanced k-means of rows: the cluster of each, none above `cap` rows; k-means++ start, ties by
/// position.
pub fn clusters(
    rows: &[Vec<f32>],
    clusters: usize,
    cap: usize,
    iterations: usize,
    seed: &Seed,
) -> Vec<usize> {
    KMeans {
        shards: clusters,
        cap,
        iterations,
    }
    .run(rows, seed)
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(x, y)| f64::from(x - y) * f64::from(x - y))
        .sum()
}

impl KMeans {
    /// Clusters of at most `cap` rows, filled in order of squared distance; k-means++ start; ties
    /// by position.
    fn run(&self, rows: &[Vec<f32>], seed: &Seed) -> Vec<usize> {
        let mut centres = self.start(rows, seed);
        let mut owner = vec![];
        for _ in 0..self.iterations {
            let next = self.fill(rows, &centres);
            if next == owner {
                break;
            }
            owner = next;
            centres = means(rows, &owner, &centres);
        }
        owner
    }

    fn start(&self, rows: &[Vec<f32>], seed: &Seed) -> Vec<Vec<f32>> {
        let mut rng = seed.derive("k-means", &[]).rng();
        let mut centres: Vec<Vec<f32>> = rows
            .get(rng.below(rows.len().max(1)))
            .into_iter()
            .cloned()
            .collect();
        while centres.len() < self.shards.min(rows.len()) {
            let near = |x: &Vec<f32>| {
                centres
                    .iter()
                    .map(|c| distance(c, x))
                    .fold(f64::INFINITY, f64::min)
            };
            let weights: Vec<f64> = rows.iter().map(near).collect();
            let mut left = f64::from(rng.unit()) * weights.iter().sum::<f64>();
            let pick = weights.iter().position(|d| {
                left -= d;
                left < 0.0
            });
            centres.push(rows[pick.unwrap_or(centres.len())].clone());
        }
        centres
    }

    fn fill(&self, rows: &[Vec<f32>], centres: &[Vec<f32>]) -> Vec<usize> {
        let pairs = |(i, x): (usize, &Vec<f32>)| -> Vec<(f64, usize, usize)> {
            centres
                .iter()
                .enumerate()
                .map(|(k, c)| (distance(c, x), i, k))
                .collect()
        };
        let mut pairs: Vec<(f64, usize, usize)> = rows.iter().enumerate().flat_map(pairs).collect();
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let (mut owner, mut taken) = (vec![usize::MAX; rows.len()], vec![0; centres.len()]);
        for (_, i, k) in pairs {
            if owner[i] == usize::MAX && taken[k] < self.cap {
                (owner[i], taken[k]) = (k, taken[k] + 1);
            }
        }
        owner
    }
}

/// Mean vectors; a cluster without rows keeps its centre.
fn means(rows: &[Vec<f32>], owner: &[usize], before: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut sums: Vec<(Vec<f32>, f32)> = before.iter().map(|c| (vec![0.0; c.len()], 0.0)).collect();
    for (x, k) in rows.iter().zip(owner) {
        let (sum, n) = &mut sums[*k];
        sum.iter_mut().zip(x).for_each(|(s, v)| *s += v);
        *n += 1.0;
    }
    let mean = |((sum, n), old): ((Vec<f32>, f32), &Vec<f32>)| match n > 0.0 {
        true => sum.into_iter().map(|v| v / n).collect(),
        false => old.clone(),
    };
    sums.into_iter().zip(before).map(mean).collect()
}
