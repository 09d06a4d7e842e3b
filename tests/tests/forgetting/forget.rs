//! Deletions when things do not go smoothly: data that changes, devices that stay away, stores that
//! fail.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use lethe_client::{Client, ClientError, Done, LocalEvent};
use lethe_proto::admin::{AdminRequest, DeletionPhase};
use lethe_proto::message::Refusal;
use lethe_tests::tiny;
use lethe_tests::world::{Fleet, World};
use lethe_transport::TransportError;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_after_joining_waits_for_the_next_epoch() {
    let world = World::new(8);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let mut clients = fleet.stop().await;
    let mut again = Fleet::default();
    for (s, mut c) in clients.drain(..).enumerate() {
        // In the middle of the history, so that every later position, history and cutoff shifts.
        c.record(LocalEvent::liked("i7", tiny::time(3))).unwrap();
        c.record(LocalEvent::disliked("i8", tiny::time(40)))
            .unwrap();
        c.join().await.unwrap();
        if s % 2 == 0 {
            drop(c);
            c = world.client(addr, &op, s as u32).await;
        }
        again.add(c);
    }
    op.replays_equal().await;
    let d = op.forget(5, &[]).await;
    op.replays_equal().await;
    assert!(!d.affected.is_empty());
    again.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_stays_away_is_left_out_until_it_has_erased() {
    let world = World::new(8);
    let mut config = world.config("");
    config.erase_wait_s = 1;
    let (_c, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let mut clients = fleet.stop().await;
    let absent = clients.remove(2);
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));

    let items = [
        tiny::history(2)[11].item.clone(),
        tiny::history(2)[15].item.clone(),
    ];
    op.forget(2, &[&items[0]]).await;
    let hashes = |s: lethe_proto::admin::CoordinatorStatus| {
        s.shards.iter().map(|k| k.adapter).collect::<Vec<_>>()
    };
    let settled = hashes(op.trained().await);
    op.replays_equal().await;
    // More items may be named while the device is away; both are erased when it comes back, and the
    // receipt's model stands.
    op.forget(2, &[&items[1]]).await;
    let mut done = vec![];
    while done.last() != Some(&Done::Erased) {
        done.push(absent.step().await.unwrap());
    }
    assert_eq!(done, [Done::Erased], "before anything else");
    assert!(absent.history().iter().all(|e| !items.contains(&e.item)));
    let more = tokio::time::timeout(Duration::from_secs(3), absent.step()).await;
    assert!(
        !matches!(more, Ok(Ok(Done::Trained))),
        "left out until the next epoch"
    );
    assert_eq!(hashes(op.trained().await), settled);
    op.replays_equal().await;
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_may_be_forgotten_at_any_time() {
    let world = World::new(8);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    // Invited only; enrolled only.
    let invitation = op.invite(20).await;
    let enrolled = world.client(addr, &op, 21).await;
    let joined = {
        let c = world.client(addr, &op, 22).await;
        c.join().await.unwrap();
        c
    };
    for s in [20, 21, 22] {
        assert!(
            op.ask_to_forget(s, &["i1"]).await.is_err() || s == 22,
            "no items of a subject that has not joined"
        );
        let d = op.forget(s, &[]).await;
        assert_eq!((d.phase, d.affected.len()), (DeletionPhase::Done, 0));
        op.receipt(d.id).await;
        assert!(op.ask_to_forget(s, &[]).await.is_err(), "unknown now");
    }
    let folder = world.dir.path().join("late");
    let options = world.options(addr).invitation(invitation);
    let late = Client::open(folder, options).unwrap().connect().await;
    assert!(
        matches!(late, Err(ClientError::NotInvited(_))),
        "the invitation went with the subject: {late:?}"
    );
    for deleted in [enrolled, joined] {
        let told = deleted.next_task().await;
        assert!(matches!(told, Err(ClientError::Deleted)), "{told:?}");
    }

    // A deletion of items that waits for its device does not hold up a deletion of everything.
    let mut clients = vec![];
    for s in 0..8 {
        let c = world.client(addr, &op, s).await;
        c.join().await.unwrap();
        clients.push(c);
    }
    let mut fleet = Fleet::default();
    let away = clients.remove(4);
    clients.into_iter().for_each(|c| fleet.add(c));
    let mut fleet_away = Fleet::default();
    fleet_away.add(away);
    op.trained().await;
    fleet_away.abort();
    let item = tiny::history(4)[12].item.clone();
    let first = op.ask_to_forget(4, &[&item]).await.unwrap();
    op.forget(4, &[]).await;
    op.deleted(first).await;
    op.receipt(first).await;
    op.replays_equal().await;
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_accepted_deletion_cannot_be_executed_nothing_is_served() {
    let world = World::new(8);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let mut clients = fleet.stop().await;
    // A folder where the next key ring would be written: the request is stored, destroying keys
    // fails.
    let block = block_keyring(&world, 1);
    assert!(
        op.ask_to_forget(6, &[]).await.is_err(),
        "told that it is not done"
    );
    let items = [
        "i1", "i2", "i3", "i4", "i5", "i6", "i7", "i8", "i9", "i10", "i11", "i12",
    ];
    let refused = clients[0].recommend(&items, 3).await;
    assert!(
        matches!(
            &refused,
            Err(ClientError::Transport(TransportError::Refused {
                code: Refusal::Busy,
                ..
            }))
        ),
        "{refused:?}"
    );
    std::fs::remove_dir(&block).unwrap();
    let mut fleet = Fleet::default();
    clients.drain(..).for_each(|c| fleet.add(c));
    op.deleted(1).await;
    op.receipt(1).await;
    op.replays_equal().await;
    fleet.abort();
}

/// A folder in the place of a key ring to come: writing that one fails.
fn block_keyring(world: &World, ahead: u64) -> std::path::PathBuf {
    let keys = world.dir.path().join("server-keys");
    let number = |name: String| name.strip_prefix("keyring-")?.parse::<u64>().ok();
    let names = std::fs::read_dir(&keys)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let block = keys.join(format!(
        "keyring-{}",
        names.filter_map(number).max().unwrap() + ahead
    ));
    std::fs::create_dir(&block).unwrap();
    block
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_of_items_that_only_the_journal_took_is_not_lost() {
    let world = World::new(8);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let clients = fleet.stop().await;
    let item = tiny::history(6)[12].item.clone();
    let block = block_keyring(&world, 1);
    let told = op.ask_to_forget(6, &[&item]).await;
    let told = told.expect_err("told that it is not done").to_string();
    assert!(told.contains("accepted as deletion 1"), "{told}");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    std::fs::remove_dir(&block).unwrap();
    // It waits for nobody else's write.
    let deletion = AdminRequest::Deletion { id: 1 };
    let mut tries = 0;
    while op.ask(deletion.clone()).await.is_err() {
        tries += 1;
        assert!(tries < 100, "it is not taken over from the journal");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    op.deleted(1).await;
    op.receipt(1).await;
    op.replays_equal().await;
    let clients = fleet.stop().await;
    assert!(
        clients[6].history().iter().all(|e| e.item != item),
        "the device was told"
    );
}
