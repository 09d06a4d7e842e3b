//! Upgrades: clients one minor version older and newer than the coordinator take part; another
//! version is told so.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_proto::limits::MINOR;
use lethe_tests::world::{Fleet, World};

#[tokio::test(flavor = "multi_thread")]
async fn older_and_newer_minor_versions_take_part() {
    let world = World::new(6);
    let (_c, addr) = world.start("cohort = 6\nquorum = 3\n").await;
    let op = world.operator(addr).await;
    let mut fleet = Fleet::default();
    for subject in 0..6 {
        let minor = MINOR - 1 + (subject % 3) as u16;
        // What a newer client adds to each message; the coordinator has never heard of it.
        let added = if minor > MINOR {
            vec![(77, vec![1, 2, 3]), (300, vec![0; 1000])]
        } else {
            vec![]
        };
        let options = world.options(addr).minor_version(minor, added);
        fleet.add(world.joined(&op, subject, options).await);
    }
    let status = op.trained().await;
    assert!(status.release > 0);
    op.replays_equal().await;
    let trained = fleet
        .stop()
        .await
        .iter()
        .filter(|c| c.stats().samples > 0)
        .count();
    assert_eq!(trained, 6, "every client's updates were taken");
}
