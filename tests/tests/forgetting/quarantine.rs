//! A shard whose database is damaged is set aside and trained again; nothing else stops, deletions
//! least of all.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::Child;

use lethe_coordinator::{Coordinator, CoordinatorError};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::ShardId;
use lethe_store::StoreError;
use lethe_tests::world::{Fleet, World};

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_damaged_shard_learns_again_and_deletions_go_on() {
    let world = World::new(8);
    let binary = Path::new(env!("CARGO_BIN_EXE_coordinator-process"));
    let (mut config, log) = (world.config(""), world.dir.path().join("log"));
    config.quarantine_hours = 24;
    let (child, addr) = world.spawn(binary, &config, &log);
    config.listen = addr;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    let before = op.trained().await;
    let clients = fleet.stop().await;
    let mut subject = 0;
    while op.lineage(subject).await.unwrap().place.unwrap().0.0 != 1 {
        subject += 1;
    }
    kill(child);
    let db = config.data_dir.join("shards/1/db/db");
    let bytes = std::fs::read(&db).unwrap();
    std::fs::write(&db, &bytes[..bytes.len() / 2]).unwrap();

    let (child, _) = world.spawn(binary, &config, &log);
    let op = op.reconnect(addr).await;
    let now = op.status().await;
    assert_eq!(
        now.shards.iter().map(|s| s.quarantined).collect::<Vec<_>>(),
        [false, true]
    );
    assert_eq!(
        (now.shards[0].adapter, now.shards[0].done),
        (before.shards[0].adapter, true)
    );
    assert_eq!((now.shards[1].rounds.0, now.shards[1].done), (0, false));
    assert!(
        now.release > before.release,
        "what devices hold of the damaged shard is no longer what is served"
    );
    assert!(config.data_dir.join("shards/1.damaged").exists());
    // Somebody of the damaged shard is deleted before it has learned anything again.
    let id = op.ask_to_forget(subject, &[]).await.unwrap();
    let mut fleet = Fleet::default();
    clients
        .into_iter()
        .enumerate()
        .filter(|(s, _)| *s != subject as usize)
        .for_each(|(_, c)| fleet.add(c));
    // Nothing is trained in the shard before its operator has looked; the deletion is exact.
    let held = match op.ask(AdminRequest::HeldShards).await.unwrap() {
        AdminReply::HeldShards(held) => held,
        other => panic!("{other:?}"),
    };
    assert!(
        held.len() == 1 && held[0].damaged && held[0].until.is_some(),
        "{held:?}"
    );
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(op.status().await.shards[1].rounds.0, 0);
    let deletion = match op.ask(AdminRequest::Deletion { id }).await.unwrap() {
        AdminReply::Deletion(deletion) => deletion,
        other => panic!("{other:?}"),
    };
    assert!(deletion.seconds_until_exact.is_some(), "{deletion:?}");
    let shard = ShardId(1);
    let release = AdminRequest::ReleaseShard { shard };
    assert_eq!(op.ask(release.clone()).await.unwrap(), AdminReply::Done);
    assert!(op.ask(release).await.is_err(), "it is not held any more");
    op.deleted(id).await;
    op.receipt(id).await;
    op.trained().await;
    assert!(!op.status().await.shards[1].quarantined);
    op.replays_equal().await;
    fleet.abort();
    kill(child);

    // Both copies of the main database: that is what backups are for.
    for name in ["db", "db-copy"] {
        std::fs::write(config.data_dir.join(name).join("db"), b"x").unwrap();
    }
    assert!(matches!(
        Coordinator::open(config),
        Err(CoordinatorError::Store(StoreError::Corrupt { .. }))
    ));
}
