//! Data folders of earlier builds are opened, and go on.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use lethe_proto::admin::{AdminReply, AdminRequest, DeletionPhase};
use lethe_proto::epochs::EpochPhase;
use lethe_tests::kept::unpack;
use lethe_tests::world::{Fleet, Operator, PATIENCE, World};

/// The folder of the build before the ledger. It has six people, of whom number 5 was deleted and
/// has a receipt; number 3 has to erase an item and was away.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_without_a_format_goes_on() {
    let world = World::new(6);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/folder-1.zip");
    unpack(&fixture, world.dir.path()).unwrap();
    let mut config = world.config("");
    config.min_subjects = 3;
    let (coordinator, addr) = world.start_with(config).await;
    let invitation = coordinator.recover_admin().unwrap();
    let file = world.dir.path().join("server/admin-invitation");
    std::fs::write(file, invitation.text()).unwrap();
    let op = world.operator(addr).await;
    assert!(op.status().await.release > 0);
    assert!(op.lineage(5).await.is_err(), "deleted before");
    assert!(op.lineage(4).await.is_ok());
    let receipt = op.receipt(1).await;
    assert!(String::from_utf8(receipt).unwrap().contains("person-5"));
    let AdminReply::Deletion(waits) = op.ask(AdminRequest::Deletion { id: 2 }).await.unwrap()
    else {
        panic!("no deletion");
    };
    assert_eq!(waits.phase, DeletionPhase::WaitingForDevice);

    // All devices come back with their own old folders, the one that was away among them.
    let mut fleet = Fleet::default();
    for subject in 0..5 {
        let client = world.client(addr, &op, subject).await;
        assert_eq!(client.history().len(), 16, "its history is there");
        fleet.add(client);
    }
    op.deleted(2).await;
    op.receipt(2).await;
    op.trained().await;
    op.replays_equal().await;
    op.forget(4, &[]).await;

    // The folder lives on: the next epoch follows the one that an older build began.
    let before = op.status().await.release;
    let start = AdminRequest::EpochStart {
        recipe: None,
        model: None,
        dry_run: false,
    };
    op.ask(start).await.unwrap();
    let started = Instant::now();
    while !serves(&op, 2).await {
        assert!(started.elapsed() < PATIENCE, "the next epoch is not served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(op.trained().await.release > before);
    op.replays_equal().await;
    fleet.abort();
}

async fn serves(op: &Operator, epoch: u32) -> bool {
    let AdminReply::Epochs(all) = op.ask(AdminRequest::Epochs).await.unwrap() else {
        panic!("no epochs");
    };
    let newest = all.epochs.last().unwrap();
    newest.no.0 == epoch && newest.phase == EpochPhase::Serving
}
