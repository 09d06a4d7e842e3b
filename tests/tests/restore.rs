//! A data folder that comes back from a backup.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use lethe_coordinator::{Coordinator, CoordinatorError};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::Digest;
use lethe_tests::world::{Fleet, Operator, World, copy_folder};

async fn served(op: &Operator, deletion: u64) -> Vec<Digest> {
    match op.ask(AdminRequest::Deletion { id: deletion }).await.unwrap() {
        AdminReply::Deletion(d) => d.now,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_forgets_again_before_it_serves() {
    let world = World::new(8);
    let binary = Path::new(env!("CARGO_BIN_EXE_coordinator-process"));
    let mut config = world.config("");
    let log = world.dir.path().join("log");
    let (mut child, addr) = world.spawn(binary, &config, &log);
    config.listen = addr;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let clients = fleet.stop().await;
    let stop = |child: &mut std::process::Child| {
        child.kill().unwrap();
        child.wait().unwrap();
    };
    stop(&mut child);
    let backup = world.dir.path().join("backup");
    copy_folder(&config.data_dir, &backup);

    // Deletions after the backup was made; then the data folder is lost, and comes back from it.
    (child, _) = world.spawn(binary, &config, &log);
    let op = op.reconnect(addr).await;
    let ids = [op.ask_to_forget(2, &[]).await.unwrap(), op.ask_to_forget(5, &[]).await.unwrap()];
    let now = served(&op, ids[1]).await;
    let release = op.status().await.release;
    stop(&mut child);
    std::fs::remove_dir_all(&config.data_dir).unwrap();
    copy_folder(&backup, &config.data_dir);

    (child, _) = world.spawn(binary, &config, &log);
    let op = op.reconnect(addr).await;
    for s in [2, 5] {
        assert!(op.lineage(s).await.is_err(), "person {s} came back with the backup");
    }
    assert_eq!(served(&op, ids[1]).await, now, "what is served never saw them");
    assert!(op.lineage(3).await.is_ok());
    assert!(op.status().await.release > release, "a number that devices may hold does not come to mean something else");
    // Training goes on with those who remain, and both get their receipts.
    let mut fleet = Fleet::default();
    for (s, c) in clients.into_iter().enumerate() {
        if ![2, 5].contains(&s) {
            fleet.add(c);
        }
    }
    for id in ids {
        op.deleted(id).await;
        op.receipt(id).await;
    }
    op.replays_equal().await;
    fleet.abort();
    stop(&mut child);

    // An evidence folder that is older than the data folder is refused.
    for lost in ["log", "log.count", "log.copy", "log.copy.count"] {
        std::fs::remove_file(config.evidence().join(lost)).unwrap();
    }
    assert!(matches!(Coordinator::open(config), Err(CoordinatorError::Evidence { has: 0, .. })));
}
