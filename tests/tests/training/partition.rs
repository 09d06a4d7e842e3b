//! The data-independent partition on the real data set: balanced, and nobody moves when somebody
//! leaves.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_learn::partition::{SubShards, anchors, centre, nearest_anchor};
use lethe_learn::seed::Seed;
use lethe_recsys::data::{DataSpec, load};
use lethe_recsys::features::item_features;

#[test]
fn shards_are_balanced_on_movielens() {
    let folder = &lethe_tests::assets().movielens;
    let data = load(folder, &DataSpec::of_folder(folder).unwrap(), true).unwrap();
    let mut features = item_features(&data.items);
    centre(&mut features);
    let seed = Seed::from_u64(1);
    let anchors = anchors(&features, 2, &seed).unwrap();
    let mut liked: Vec<Vec<&[f32]>> = vec![vec![]; data.users.len()];
    for e in data.events.iter().filter(|e| e.liked) {
        liked[e.user as usize].push(&features[e.item as usize]);
    }
    let owner: Vec<usize> = liked
        .iter()
        .map(|l| nearest_anchor(&anchors, l).unwrap_or(0))
        .collect();
    let counts: Vec<usize> = (0..2)
        .map(|k| owner.iter().filter(|o| **o == k).count())
        .collect();
    let shards = SubShards::allot(&counts, 4).unwrap();
    let place = |u: usize| shards.shard(owner[u], data.users[u].as_bytes(), &seed);
    let mut sizes = [0usize; 4];
    (0..data.users.len()).for_each(|u| sizes[place(u)] += 1);
    let mean = data.users.len() as f64 / 4.0;
    assert!(
        *sizes.iter().max().unwrap() as f64 <= 1.5 * mean,
        "anchors {counts:?}, shards {sizes:?}"
    );
}
