//! The log's key is exchanged while devices, operators and receipts know the old one.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use lethe_coordinator::rotation::{self, Which};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_receipt::note::VerifierKey;
use lethe_receipt::receipt::verify;
use lethe_receipt::succession::Succession;
use lethe_tests::world::{Operator, World, copy_folder, kill, put_back};

async fn key(op: &Operator) -> VerifierKey {
    VerifierKey::parse(&op.status().await.log_key).unwrap()
}

async fn succession(op: &Operator) -> Succession {
    match op.ask(AdminRequest::LogKeys).await.unwrap() {
        AdminReply::LogKeys(notes) => Succession::open(notes.iter().map(String::as_str)).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h1_devices_and_receipts_follow_the_log_to_another_key() {
    let world = World::new(6);
    let config = world.config("");
    let (coordinator, addr) = world.start_with(config.clone()).await;
    let op = world.operator(addr).await;
    let mut fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let first = key(&op).await;
    let before = op.forget(1, &[]).await;
    let old_receipt = op.receipt(before.id).await;
    verify(&old_receipt, &first).unwrap();

    // This phone is away while the key is exchanged twice.
    let mut clients = std::mem::take(&mut fleet).stop().await;
    let away = clients.remove(2);
    for client in clients {
        fleet.add(client);
    }
    coordinator.rotate(Which::Log).unwrap();
    let second = key(&op).await;
    coordinator.rotate(Which::Log).unwrap();
    let third = key(&op).await;
    assert!(first != second && second != third);
    let actions = match op.ask(AdminRequest::Actions).await.unwrap() {
        AdminReply::Actions(actions) => actions,
        other => panic!("{other:?}"),
    };
    let noted = |k: &VerifierKey| actions.iter().any(|a| a.what.contains(&k.text()));
    assert!(noted(&second) && noted(&third), "{actions:?}");

    // A deletion: devices check the order against the log before they erase anything.
    fleet.add(away);
    let erased = op.forget(2, &["i3"]).await;
    let new_receipt = op.receipt(erased.id).await;
    verify(&new_receipt, &third).unwrap();
    assert!(verify(&new_receipt, &first).is_err());
    let keys = succession(&op).await;
    for known in [&first, &second, &third] {
        keys.verify(&old_receipt, known).unwrap();
        keys.verify(&new_receipt, known).unwrap();
    }
    // What is served goes on, and is in the log.
    let clients = fleet.stop().await;
    let list = clients[0]
        .recommend(&["i1", "i2"].map(String::from), 2)
        .await;
    assert!(list.is_ok(), "{list:?}");
    coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn h1_a_restored_folder_has_no_older_key_of_the_log() {
    let world = World::new(2);
    let binary = Path::new(env!("CARGO_BIN_EXE_coordinator-process"));
    let mut config = world.config("");
    let log = world.dir.path().join("output");
    let (mut child, addr) = world.spawn(binary, &config, &log);
    config.listen = addr;
    let op = world.operator(addr).await;
    let first = key(&op).await;
    kill(&mut child);
    let backup = world.dir.path().join("backup");
    copy_folder(&config.data_dir, &backup);
    (child, _) = world.spawn(binary, &config, &log);
    let said = rotation::ask(&config.data_dir, Which::Log).unwrap();
    let op = op.reconnect(addr).await;
    let second = key(&op).await;
    assert!(first != second && said.contains(&second.text()), "{said}");
    let keys = succession(&op).await;
    kill(&mut child);
    put_back(&backup, &config.data_dir);
    (child, _) = world.spawn(binary, &config, &log);
    let op = op.reconnect(addr).await;
    assert_eq!(key(&op).await, second);
    assert_eq!(succession(&op).await, keys);
    assert_eq!(keys.newest(&first), second);
    kill(&mut child);
}
