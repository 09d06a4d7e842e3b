//! Adapters on the last layers only: states below them are computed once, kept sealed, and go with
//! the data.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use lethe_proto::ids::ShardId;
use lethe_tests::tiny;
use lethe_tests::world::World;

/// Names of the kept states.
fn kept(folder: &Path) -> BTreeSet<String> {
    let entries = |p: &Path| {
        std::fs::read_dir(p)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect::<Vec<_>>()
    };
    let files = entries(&folder.join("frozen"))
        .into_iter()
        .flat_map(|p| entries(&p));
    files
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_states_change_no_byte_and_go_with_the_data() {
    // The device holds layer 0 and layer 3: the boundary lies within the coordinator's layers, or
    // above them.
    for last in [2, 1] {
        let mode = format!(
            "wire = \"f16\"\nlora = {{ rank = 2, alpha = 4.0, targets = [\"q\", \"v\"], \
             last_layers = {last} }}\n\
             local = {{ samples = 2, batch = 2, lr = 0.05 }}\n"
        );
        let world = World::with_recipe(6, &mode);
        let (coordinator, addr) = world.start(&mode).await;
        let op = world.operator(addr).await;
        let fleet = world.fleet(addr, &op).await;
        op.trained().await;
        assert!(
            (0..6).any(|s| !kept(&world.client_folder(s)).is_empty()),
            "nothing was kept"
        );
        let mut clients = fleet.stop().await;

        // Training again without what was kept gives the same bytes.
        for s in 0..6 {
            let _ = std::fs::remove_dir_all(world.client_folder(s).join("frozen"));
        }
        let mut fleet = lethe_tests::world::Fleet::default();
        clients.drain(..).for_each(|c| fleet.add(c));
        for shard in 0..op.status().await.shards.len() {
            let (replayed, live) = op.replay(ShardId(shard as u16)).await.hashes.unwrap();
            assert_eq!(replayed, live, "last {last}");
        }

        // An item goes, and with it the states of samples that it was in.
        let subject = (0..6)
            .find(|s| !kept(&world.client_folder(*s)).is_empty())
            .unwrap();
        let before = kept(&world.client_folder(subject));
        let items: Vec<String> = tiny::history(subject).into_iter().map(|e| e.item).collect();
        op.forget(subject, &[&items[0]]).await;
        let after = kept(&world.client_folder(subject));
        assert!(!before.is_subset(&after), "the states outlived the item");

        let clients = fleet.stop().await;
        let list = clients[1]
            .recommend(&["i0", "i1", "i2", "i3", "i4", "i5", "i6", "i7"], 3)
            .await
            .unwrap();
        assert!(list.items.iter().all(|r| r.score.is_finite()));
        clients[subject as usize].erase().unwrap();
        assert!(kept(&world.client_folder(subject)).is_empty());
        coordinator.shutdown();
    }
}
