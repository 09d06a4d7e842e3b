//! Real network faults between real clients and a real coordinator. An update that counted twice,
//! or not at all, would change the adapters: they must be, byte for byte, those of a quiet network.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::atomic::Ordering;
use std::time::Duration;

use lethe_client::Done;
use lethe_proto::ids::Digest;
use lethe_tests::proxy::{Faults, Proxy};
use lethe_tests::world::World;

/// Everybody is in every round, and every round waits for everybody. Small messages: on this
/// network a connection that takes loss for congestion, as QUIC's does, carries about 12 kB/s.
const RECIPE: &str = "shards = 1\nslices = 1\nrounds = 2\ncohort = 4\nquorum = 4\ndeadline_s = \
                      300\nvalidation = 1\n\
     updates = \"int8\"\nadapters = \"int8\"\nwire = \"int8\"\n";

const BAD: Faults = Faults {
    loss: 0.1,
    duplicates: 0.05,
    reordered: 0.25,
    delay: Duration::from_millis(200),
    jitter: Duration::from_millis(100),
    partition: false,
};

async fn on_a_quiet_network() -> Digest {
    let world = World::new(4);
    let (_c, addr) = world.start(RECIPE).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    let hash = op.trained().await.shards[0].adapter;
    fleet.abort();
    hash
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_networks_and_a_long_partition_change_no_byte() {
    let world = World::new(4);
    let (_c, addr) = world.start(RECIPE).await;
    let op = world.operator(addr).await;
    let proxy = Proxy::start(addr, 1).await;
    let fleet = world.fleet(proxy.addr, &op).await;
    proxy.set(BAD);
    op.wait_for("a round", |s| s.shards[0].rounds.0 >= 1).await;
    // Longer than a connection lives without an answer.
    proxy.set(Faults {
        partition: true,
        ..BAD
    });
    tokio::time::sleep(Duration::from_secs(31)).await;
    proxy.set(BAD);
    let hash = op.trained().await.shards[0].adapter;
    let lost = proxy.counts.lost.load(Ordering::Relaxed) as f32
        / proxy.counts.packets.load(Ordering::Relaxed) as f32;
    assert!(lost > 0.05, "packets were lost: {lost}");
    fleet.abort();
    assert_eq!(hash, on_a_quiet_network().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_costs_no_pass() {
    let world = World::new(4);
    let (coordinator, addr) = world.start(RECIPE).await;
    let op = world.operator(addr).await;
    let proxy = Proxy::start(addr, 2).await;
    let client = world.client(proxy.addr, &op, 0).await;
    client.join().await.unwrap();
    let fleet = {
        let mut fleet = lethe_tests::world::Fleet::default();
        for s in 1..4 {
            let c = world.client(addr, &op, s).await;
            c.join().await.unwrap();
            fleet.add(c);
        }
        fleet
    };
    let task = loop {
        if let Some(task) = client.next_task().await.unwrap() {
            break task;
        }
    };
    // Slow enough that the connection is lost in the middle of the passes.
    proxy.set(Faults {
        delay: Duration::from_millis(150),
        ..Faults::default()
    });
    let dropping = tokio::spawn(async move {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            coordinator.drop_connections();
        }
        coordinator
    });
    assert_eq!(
        client.perform(task).await.unwrap(),
        Done::Trained,
        "the round went on where it was"
    );
    let _coordinator = dropping.await.unwrap();
    proxy.set(Faults::default());
    let mut fleet = fleet;
    fleet.add(client);
    let hash = op.reconnect(addr).await.trained().await.shards[0].adapter;
    fleet.abort();
    assert_eq!(hash, on_a_quiet_network().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_address_keeps_the_connection() {
    let world = World::new(1);
    let recipe = "shards = 1\nslices = 1\nrounds = 6\ncohort = 1\nquorum = 1\ndeadline_s = \
                  300\nvalidation = 1\n";
    let (_c, addr) = world.start(recipe).await;
    let op = world.operator(addr).await;
    let proxy = Proxy::start(addr, 3).await;
    let client = world.client(proxy.addr, &op, 0).await;
    client.join().await.unwrap();
    let network = client.network();
    let handshakes = proxy.counts.initial.load(Ordering::Relaxed);
    proxy.set(Faults {
        delay: Duration::from_millis(40),
        ..Faults::default()
    });
    let mut fleet = lethe_tests::world::Fleet::default();
    fleet.add(client);
    let mut last = 0;
    for change in 0..4 {
        // The device's own address and, seen from the coordinator, its router's.
        if change % 2 == 0 {
            network.changed().unwrap()
        } else {
            proxy.remap()
        }
        let before = last;
        last = op
            .wait_for("a round", |s| s.shards[0].rounds.0 > before)
            .await
            .shards[0]
            .rounds
            .0;
    }
    op.trained().await;
    assert_eq!(
        proxy.counts.initial.load(Ordering::Relaxed),
        handshakes,
        "no new connection was needed"
    );
    fleet.abort();
}
