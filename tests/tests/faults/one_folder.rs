//! A folder has one coordinator: a second one changes nothing in it, and says so.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_coordinator::{Coordinator, CoordinatorError};
use lethe_tests::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_second_coordinator_is_refused_before_it_touches_anything() {
    let world = World::new(2);
    let (_first, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let keys = world.config("").keys_dir();
    let files = || {
        let names = std::fs::read_dir(&keys).unwrap();
        let mut all: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
        all.sort();
        all
    };
    let before = files();
    let refused = |config| match Coordinator::open(config) {
        Err(CoordinatorError::InUse { folder }) => folder,
        other => panic!("{other:?}"),
    };
    let config = world.config("");
    assert_eq!(refused(config.clone()), config.data_dir);
    assert_eq!(files(), before);

    // Nor may two data folders share an evidence folder.
    let mut other = config.clone();
    other.evidence_dir = Some(config.evidence());
    other.data_dir = world.dir.path().join("another");
    assert_eq!(refused(other), config.evidence());
    assert_eq!(op.status().await.subjects, 0, "the first one goes on");
}
