//! Short forms of what `lethe bench forget` runs at length: canaries under SIGKILL, and damage to
//! the store.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use lethe_tests::canary;
use lethe_tests::corruption::{self, Damage};
use lethe_tests::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_deleted_canaries_whatever_is_killed() {
    let left = canary::run(
        Path::new(env!("CARGO_BIN_EXE_coordinator-process")),
        40,
        8,
        1,
    )
    .await;
    assert!(left.kills >= 6 && left.files > 3, "{left:?}");
    assert!(
        left.control > 0,
        "the search finds those who are not deleted: {left:?}"
    );
    assert_eq!((left.in_files, left.in_records), (0, 0), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_damage_is_silent_and_no_panic_gets_out() {
    let world = World::new(6);
    let config = world.config_with_lists("");
    let (coordinator, addr) = world.start_with(config.clone()).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    op.forget(1, &[]).await;
    // What people contributed is damaged, too.
    assert!(op.lists().await.people > 0);
    fleet.abort();
    coordinator.shutdown();
    drop((coordinator, op));
    for how in [Damage::Bit, Damage::Page, Damage::Truncate] {
        let o = corruption::run(&config, how, 40, 1);
        assert_eq!(
            (o.silent, o.panics, o.refused, o.tried),
            (0, 0, 0, 40),
            "{how:?}: {o:?}"
        );
        assert!(o.quarantined > 0, "{how:?}: {o:?}");
    }
}
