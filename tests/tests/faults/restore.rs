//! A data folder that comes back from a backup.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use lethe_client::ClientError;
use lethe_coordinator::config::ServerConfig;
use lethe_coordinator::rotation::{self, Which};
use lethe_coordinator::{Coordinator, CoordinatorError};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::Digest;
use lethe_scan::{Scanner, Secret};
use lethe_store::StoreError;
use lethe_store::keys::Keys;
use lethe_store::logfile::LogFile;
use lethe_tests::world::{Fleet, Operator, World, copy_folder, holds, id, kill, put_back};

const LOG: [&str; 4] = ["log", "log.count", "log.copy", "log.copy.count"];

async fn served(op: &Operator, deletion: u64) -> Vec<Digest> {
    match op
        .ask(AdminRequest::Deletion { id: deletion })
        .await
        .unwrap()
    {
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
    kill(&mut child);
    let backup = world.dir.path().join("backup");
    copy_folder(&config.data_dir, &backup);

    // Deletions after the backup was made; then the data folder is lost, and comes back from it.
    (child, _) = world.spawn(binary, &config, &log);
    let op = op.reconnect(addr).await;
    let ids = [
        op.ask_to_forget(2, &[]).await.unwrap(),
        op.ask_to_forget(5, &[]).await.unwrap(),
    ];
    // And of somebody who came after it.
    world.client(addr, &op, 8).await.join().await.unwrap();
    let late = op.ask_to_forget(8, &[]).await.unwrap();
    let limited = op
        .ask_for(vec![DeletionRequest::Restrict { subject: id(9) }])
        .await;
    assert!(limited.is_err(), "nobody knows them");
    op.invite(9).await;
    let limited = op
        .ask_for(vec![DeletionRequest::Restrict { subject: id(9) }])
        .await
        .unwrap()[0];
    let now = served(&op, ids[1]).await;
    let release = op.status().await.release;
    kill(&mut child);
    put_back(&backup, &config.data_dir);

    (child, _) = world.spawn(binary, &config, &log);
    let op = op.reconnect(addr).await;
    for s in [2, 5] {
        assert!(
            op.lineage(s).await.is_err(),
            "person {s} came back with the backup"
        );
    }
    assert_eq!(
        served(&op, ids[1]).await,
        now,
        "what is served never saw them"
    );
    assert!(op.lineage(3).await.is_ok());
    for d in [late, limited] {
        op.deleted(d).await;
        op.receipt(d).await;
    }
    // Who joins again after an erasure starts anew, and stays; a restriction holds for who joins
    // after it.
    for s in [8, 9] {
        let _ = std::fs::remove_dir_all(world.client_folder(s));
        world.client(addr, &op, s).await.join().await.unwrap();
    }
    kill(&mut child);
    (child, _) = world.spawn(binary, &config, &log);
    let op = op.reconnect(addr).await;
    assert!(!op.lineage(8).await.unwrap().idle.starts_with("restricted"));
    assert!(op.lineage(9).await.unwrap().idle.starts_with("restricted"));
    assert!(
        op.status().await.release > release,
        "a number that devices may hold does not come to mean something else"
    );
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
    // A shard whose keys a deletion has destroyed since the backup is trained anew.
    op.wait_for("training", |s| s.shards.iter().all(|k| k.done))
        .await;
    op.replays_equal().await;
    fleet.abort();
    kill(&mut child);

    // An evidence folder that went on from an old copy is refused: two logs would claim the same
    // entries.
    let evidence = config.evidence();
    let kept = world.dir.path().join("kept");
    copy_folder(&evidence, &kept);
    let mut entries = LogFile::open(&evidence.join("log"))
        .unwrap()
        .entries()
        .to_vec();
    let last = entries.len() - 1;
    entries[last] = b"another".to_vec();
    for name in LOG {
        std::fs::remove_file(evidence.join(name)).unwrap();
    }
    let mut forged = LogFile::open(&evidence.join("log")).unwrap();
    for e in &entries {
        forged.append(e).unwrap();
    }
    drop(forged);
    assert!(matches!(
        Coordinator::open(config.clone()),
        Err(CoordinatorError::OtherLog { .. })
    ));
    std::fs::remove_dir_all(&evidence).unwrap();
    copy_folder(&kept, &evidence);

    // An evidence folder that is older than the data folder is refused.
    for lost in LOG {
        std::fs::remove_file(config.evidence().join(lost)).unwrap();
    }
    assert!(matches!(
        Coordinator::open(config),
        Err(CoordinatorError::Evidence { has: 0, .. })
    ));
}

/// Everything in the folder of the keys that opens, signs or certifies something.
fn secrets(config: &ServerConfig) -> Vec<Vec<u8>> {
    let keys = Keys::open(&config.keys, &config.data_dir).unwrap();
    let named = ["authority-1", "log-1"].map(|n| keys.secret(n).unwrap().unwrap().to_vec());
    let mut all = named.to_vec();
    for folder in [keys.folder().to_owned(), keys.folder().join("tally")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("master-") {
                all.push(std::fs::read(&path).unwrap());
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn h1_a_copy_of_the_data_folder_opens_nothing_and_starts_no_coordinator() {
    let world = World::new(6);
    let config = world.config_with_lists("");
    let (coordinator, addr) = world.start_with(config.clone()).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    op.forget(1, &[]).await;
    fleet.abort();
    coordinator.shutdown();
    drop((coordinator, op));
    let stolen = world.dir.path().join("stolen");
    copy_folder(&config.data_dir, &stolen.join("data"));
    let all = secrets(&config);
    assert!(all.len() > 4, "two masters, twice each");
    for secret in &all {
        assert!(holds(&config.keys_dir(), secret), "the search finds it");
        assert!(!holds(&stolen, secret), "a key is in the data folder");
    }
    let names: Vec<Secret> = (0..6)
        .map(|s| Secret::Text(id(s).as_str().into()))
        .collect();
    let found = Scanner::new(&names)
        .unwrap()
        .scan(std::slice::from_ref(&stolen))
        .unwrap();
    assert_eq!(found.found, 0, "plain content in the data folder");
    // The log and the journal are public, or name nobody: they help a thief to nothing.
    copy_folder(&config.evidence(), &stolen.join("data-evidence"));
    let mut thief = config.clone();
    thief.data_dir = stolen.join("data");
    thief.evidence_dir = None;
    let refused = Coordinator::open(thief.clone()).unwrap_err();
    assert!(
        matches!(refused, CoordinatorError::Store(StoreError::NoKeys { .. })),
        "{refused:?}"
    );
    let said = refused.to_string();
    assert!(
        said.contains("has no keys") && said.contains("stolen"),
        "{said}"
    );
    // Keys of another coordinator open it no more than none.
    let other = World::new(2);
    let (another, _) = other.start("").await;
    another.shutdown();
    copy_folder(&other.config("").keys_dir(), &thief.keys_dir());
    let refused = Coordinator::open(thief).unwrap_err();
    // Its keyring is a younger one, or does not fit.
    assert!(
        matches!(
            refused,
            CoordinatorError::Store(StoreError::OldKeys { .. } | StoreError::Corrupt { .. })
        ),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn h1_master_keys_are_exchanged_by_a_command() {
    let world = World::new(2);
    let binary = Path::new(env!("CARGO_BIN_EXE_coordinator-process"));
    let config = world.config_with_lists("");
    let log = world.dir.path().join("log");
    let (mut child, addr) = world.spawn(binary, &config, &log);
    let op = world.operator(addr).await;
    op.invite(0).await;
    let before = secrets(&config);
    let said = rotation::ask(&config.data_dir, Which::Master).unwrap();
    assert!(said.contains("fresh master keys"), "{said}");
    let after = secrets(&config);
    assert_eq!(before[..2], after[..2], "authority and log stay");
    assert_eq!(before.len(), after.len());
    for old in &before[2..] {
        assert!(!holds(&config.keys_dir(), old), "a master key of before");
    }
    let AdminReply::Actions(actions) = op.ask(AdminRequest::Actions).await.unwrap() else {
        panic!("no actions");
    };
    assert!(actions.iter().any(|a| a.what.contains("master keys")));
    let said = rotation::ask(&config.data_dir, Which::Authority).unwrap();
    assert!(said.contains("a new authority signs"), "{said}");
    kill(&mut child);
    (child, _) = world.spawn(binary, &config, &log);
    kill(&mut child);
}

#[tokio::test(flavor = "multi_thread")]
async fn h1_people_whose_items_were_erased_after_a_backup_are_known_after_its_restore() {
    let world = World::new(6);
    let binary = Path::new(env!("CARGO_BIN_EXE_coordinator-process"));
    let mut config = world.config("");
    let log = world.dir.path().join("output");
    let (mut child, addr) = world.spawn(binary, &config, &log);
    config.listen = addr;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let mut clients = fleet.stop().await;
    kill(&mut child);
    let backup = world.dir.path().join("backup");
    copy_folder(&config.data_dir, &backup);

    // A takedown gives everybody a fresh key; person 4 is erased.
    (child, _) = world.spawn(binary, &config, &log);
    let op = op.reconnect(addr).await;
    let mut fleet = Fleet::default();
    let gone = clients.remove(4);
    let people = clients.len() as u32;
    for client in clients {
        fleet.add(client);
    }
    gone.close().await;
    op.forget(4, &[]).await;
    let items = vec!["i3".to_owned()];
    let ids = op.ask_for(vec![DeletionRequest::Takedown { items }]).await;
    op.deleted(ids.unwrap()[0]).await;
    let clients = fleet.stop().await;
    kill(&mut child);
    put_back(&backup, &config.data_dir);

    // Nobody but the one who was erased is turned away.
    (child, _) = world.spawn(binary, &config, &log);
    let op = op.reconnect(addr).await;
    let mut fleet = Fleet::default();
    for client in clients {
        // The first attempt finds the connection of before.
        let mut joined = client.join().await;
        if matches!(joined, Err(ClientError::Transport(_))) {
            joined = client.join().await;
        }
        assert!(joined.is_ok(), "{joined:?}");
        fleet.add(client);
    }
    op.wait_for("everybody joins", |s| s.subjects == people)
        .await;
    assert!(op.lineage(4).await.is_err(), "who was erased stays so");
    op.trained().await;
    fleet.abort();
    kill(&mut child);
}
