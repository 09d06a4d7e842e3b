//! Few bits on the wire: training, exactness and replay with packed updates and adapters.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_tests::world::World;

const SMALL: [&str; 3] = [
    "updates = \"int8\"\nadapters = \"int8\"\n",
    "updates = \"int4\"\nadapters = \"int4\"\nwire = \"int8\"\n",
    "updates = { top-k = 100 }\nadapters = \"int8\"\nrounds = 3\n",
];

/// A packed federation forgets exactly: what remains equals a replay, byte for byte, with what
/// earlier rounds left out.
#[tokio::test(flavor = "multi_thread")]
async fn packed_rounds_are_replayed_byte_for_byte() {
    for recipe in SMALL {
        let world = World::new(8);
        let (_c, addr) = world.start(recipe).await;
        let op = world.operator(addr).await;
        let fleet = world.fleet(addr, &op).await;
        let before: Vec<_> = op
            .trained()
            .await
            .shards
            .iter()
            .map(|s| s.adapter)
            .collect();
        let d = op.forget(3, &[]).await;
        let after: Vec<_> = op.status().await.shards.iter().map(|s| s.adapter).collect();
        let [shard] = d.affected[..] else {
            panic!("one shard: {d:?}")
        };
        let k = usize::from(shard.0);
        let (replayed, live) = op.replay(shard).await.hashes.unwrap();
        assert_eq!((replayed, live), (after[k], after[k]), "{recipe}");
        assert_ne!(before[k], after[k], "{recipe}");
        fleet.abort();
    }
}
