//! Aggregates that a minority cannot steer, in a whole federation: trained, forgotten, replayed.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_tests::world::World;

/// Training with a rule, a deletion that leaves rounds with fewer than a quorum, and a replay.
async fn replays(rule: &str) {
    let extra =
        format!("shards = 1\naggregation = \"fedavg\"\ncohort = 5\nquorum = 5\nrobust = {rule}\n");
    let world = World::with_recipe(6, &extra);
    let (_c, addr) = world.start(&extra).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    let trained = op.trained().await.shards[0].adapter;
    op.replays_equal().await;
    op.forget(5, &[]).await;
    op.forget(2, &[]).await;
    let again = op.trained().await.shards[0].adapter;
    assert_ne!(trained, again, "{rule}: what is left is another model");
    op.replays_equal().await;
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_a_median_is_equal() {
    replays("\"median\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_a_trimmed_mean_is_equal() {
    replays("{ trimmed-mean = 2 }").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_multi_krum_is_equal() {
    replays("{ multi-krum = 1 }").await;
}
