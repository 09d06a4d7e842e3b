//! Lists over real QUIC: from devices to sums, to snapshots, and out again when somebody leaves.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use lethe_coordinator::Coordinator;
use lethe_coordinator::config::ServerConfig;
use lethe_coordinator::lists::Sums;
use lethe_proto::admin::{AdminReply, AdminRequest, DeletionLists, ListsReplayed};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::Digest;
use lethe_proto::lists::{Contributed, ListState, ServedTables};
use lethe_proto::message::{Erased, Refusal, Request, Task};
use lethe_receipt::receipt::Receipt;
use lethe_tests::lists::{Lister, events};
use lethe_tests::world::{Operator, World, copied, copy_folder, id};
use lethe_transport::TransportError;

const PEOPLE: u32 = 80;

/// A fleet without models, whose lists are published at once.
struct Listing {
    world: World,
    addr: SocketAddr,
    coordinator: Coordinator,
    op: Operator,
    devices: Vec<Lister>,
}

fn config(world: &World) -> ServerConfig {
    let mut config = world.config("");
    config.sums = Sums::Embedded;
    config.lists.refresh_s = 0;
    config.lists.publish_s = 0;
    config
}

/// A coordinator on a copy of the folders, as if this one had been killed.
async fn killed(world: &World) -> (Coordinator, SocketAddr) {
    let data = config(world).data_dir;
    restored(world, &data).await
}

/// The same, on a copy of this data folder: an older one, with the evidence as it is now.
async fn restored(world: &World, data: &Path) -> (Coordinator, SocketAddr) {
    let copy = world.dir.path().join("again");
    world.start_with(copied(&config(world), data, &copy)).await
}

async fn listing(people: u32) -> Listing {
    let world = World::new(1_000);
    let (coordinator, addr) = world.start_with(config(&world)).await;
    let op = world.operator(addr).await;
    let mut devices = vec![];
    for subject in 0..people {
        let device = Lister::new(addr, &op, subject).await;
        device.contribute(12).await.unwrap();
        devices.push(device);
    }
    Listing {
        world,
        addr,
        coordinator,
        op,
        devices,
    }
}

async fn of_deletion(op: &Operator, deletion: u64) -> DeletionLists {
    match op.ask(AdminRequest::ListsOf { deletion }).await {
        Ok(AdminReply::ListsOf(Some(lists))) => lists,
        other => panic!("{other:?}"),
    }
}

async fn replay(op: &Operator) -> ListsReplayed {
    match op.ask(AdminRequest::ListsReplay).await {
        Ok(AdminReply::ListsReplayed(replayed)) => replayed,
        other => panic!("{other:?}"),
    }
}

async fn counts(op: &Operator, subject: u32) -> bool {
    let subject = id(subject);
    match op.ask(AdminRequest::ListsLineage { subject }).await {
        Ok(AdminReply::ListsLineage(lineage)) => lineage.counts,
        other => panic!("{other:?}"),
    }
}

/// Waits until everybody who counts is in the snapshot that is served; its number. Of 80 people two
/// cells of 16 do: fewer than 64 wait then. The first may be published before there is a second.
async fn settled(device: &Lister) -> u64 {
    let mut number = 0;
    loop {
        number = device.served_after(number).await.served.unwrap();
        let got = device.fetch().await;
        if got.is_some_and(|g| g.statement.people == 32) {
            return number;
        }
    }
}

/// The first person who counts.
async fn counted(op: &Operator) -> u32 {
    for subject in 0..PEOPLE {
        if counts(op, subject).await {
            return subject;
        }
    }
    panic!("nobody counts");
}

async fn receipt(op: &Operator, id: u64) -> Receipt {
    serde_json::from_slice(&op.receipt(id).await).unwrap()
}

fn code(result: Result<(), TransportError>) -> Refusal {
    match result {
        Err(TransportError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_exact_at_once_and_whole_with_the_next_snapshot() {
    let l = listing(PEOPLE).await;
    let watcher = &l.devices[79];
    let first = settled(watcher).await;
    let before = watcher.fetch().await.unwrap();
    assert_eq!(before.statement.number, first);
    assert!(before.tables.items() > 0);
    let gone = counted(&l.op).await;
    let deletion = l.op.ask_to_forget(gone, &[]).await.unwrap();
    // Nobody is shown what was recalled, from the answer on.
    let now = watcher.reply(before.statement.number).await;
    assert!(
        now.state.recalled >= before.statement.number,
        "{:?}",
        now.state
    );
    assert!(!matches!(now.tables, ServedTables::Same), "{:?}", now.state);
    let next = watcher.served_after(first).await;
    assert_eq!(next.recalled, before.statement.number);
    let after = watcher.fetch().await.unwrap();
    assert_ne!(after.bytes, before.bytes);
    l.op.deleted(deletion).await;
    let lists = of_deletion(&l.op, deletion).await;
    let recalled = lists.recalled.unwrap();
    assert!(lists.held);
    assert_eq!(recalled.digest.0, before.statement.snapshot);
    assert_eq!(recalled.bytes, before.bytes.len() as u64);
    assert_eq!(
        lists.replaced_by.unwrap().digest.0,
        after.statement.snapshot
    );
    assert!(lists.seconds_until_whole.is_some());
    let stated = receipt(&l.op, deletion).await.statement;
    let of_lists = stated.lists.unwrap();
    assert_eq!(
        of_lists.recalled.unwrap().sha256,
        Digest(before.statement.snapshot).hex()
    );
    assert_eq!(
        of_lists.replaced_by.unwrap().sha256,
        Digest(after.statement.snapshot).hex()
    );
    // The device of the person is withdrawn with it; everybody else's goes on.
    assert!(l.devices[gone as usize].contribute(12).await.is_err());
    let replayed = replay(&l.op).await;
    assert_ne!(replayed.memory, Some(false));
    assert_eq!(replayed.people, after.statement.people);
    l.coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_serves_what_was_published_and_a_deletion_survives_it() {
    let l = listing(PEOPLE).await;
    settled(&l.devices[0]).await;
    let gone = counted(&l.op).await;
    let deletion = l.op.ask_to_forget(gone, &[]).await.unwrap();
    l.coordinator.shutdown();
    let (again, addr) = killed(&l.world).await;
    let op = l.op.reconnect(addr).await;
    op.deleted(deletion).await;
    let lists = of_deletion(&op, deletion).await;
    assert!(
        lists.recalled.is_some() && lists.replaced_by.is_some(),
        "{lists:?}"
    );
    let device = Lister::new(addr, &op, 200).await;
    assert!(device.fetch().await.is_some());
    let replayed = replay(&op).await;
    assert_ne!(
        (replayed.memory, replayed.folder),
        (None, None),
        "{replayed:?}"
    );
    assert!(replayed.memory != Some(false) && replayed.folder != Some(false));
    assert!(!counts(&op, gone).await);
    again.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_may_contribute_is_bounded() {
    let l = listing(1).await;
    let device = &l.devices[0];
    let refused = |events| async move { code(device.contribute_events(events).await) };
    assert_eq!(refused(events(0, 201)).await, Refusal::Invalid);
    let mut unknown = events(0, 3);
    unknown[1].item = "no such item".into();
    assert_eq!(refused(unknown).await, Refusal::NotFound);
    let mut rated = events(0, 3);
    rated[2].half_stars = 11;
    assert_eq!(refused(rated).await, Refusal::Invalid);
    let mut order = events(0, 3);
    order[0].day = 30_000;
    assert_eq!(refused(order).await, Refusal::Invalid);
    let mut flags = events(0, 3);
    flags[0].flags = 128;
    assert_eq!(refused(flags).await, Refusal::Invalid);
    assert_eq!(l.op.lists().await.people, 1);
    // Who takes part no longer is not known any more, and may come back.
    device.call(&Request::Uncontribute).await.unwrap();
    assert_eq!(l.op.lists().await.people, 0);
    device.contribute(5).await.unwrap();
    assert_eq!(l.op.lists().await.people, 1);
    let waits = l.op.lists().await;
    assert_eq!((waits.waiting, waits.cells, waits.served), (1, 0, None));
    l.coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_to_erase_items_leaves_the_sums_and_comes_back_with_what_remains() {
    let l = listing(PEOPLE).await;
    settled(&l.devices[0]).await;
    let who = counted(&l.op).await;
    let device = &l.devices[who as usize];
    let item = events(who, 1)[0].item.clone();
    let deletion = l.op.ask_to_forget(who, &[&item]).await.unwrap();
    assert!(!counts(&l.op, who).await, "the contribution had the item");
    // Not before the device has erased it.
    assert_eq!(code(device.contribute(12).await), Refusal::Busy);
    let Task::Erase { task } = device.watch(ListState::default()).await.task else {
        panic!("no order")
    };
    let outcome = Erased::Done {
        removed: vec![(deletion, 1)],
    };
    device
        .call(&Request::Erased { task, outcome })
        .await
        .unwrap();
    device.rejoin().await;
    let remaining = events(who, 12).into_iter().filter(|e| e.item != item);
    device.contribute_events(remaining.collect()).await.unwrap();
    l.op.deleted(deletion).await;
    assert!(of_deletion(&l.op, deletion).await.replaced_by.is_some());
    l.coordinator.shutdown();
}

/// Waits until the device is told to erase: the number of the task.
async fn told_to_erase(device: &Lister) -> u64 {
    let mut known = ListState::default();
    loop {
        let watched = device.watch(known).await;
        known = watched.lists;
        if let Task::Erase { task } = watched.task {
            return task;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_has_erased_waits_for_the_persons_other_one() {
    let l = listing(PEOPLE).await;
    settled(&l.devices[0]).await;
    let who = counted(&l.op).await;
    let phone = &l.devices[who as usize];
    let tablet = Lister::new(l.addr, &l.op, who).await;
    let item = events(who, 1)[0].item.clone();
    let deletion = l.op.ask_to_forget(who, &[&item]).await.unwrap();
    let task = told_to_erase(phone).await;
    let done = Request::Erased {
        task,
        outcome: Erased::Done {
            removed: vec![(deletion, 1)],
        },
    };
    phone.call(&done).await.unwrap();
    // What it has left may count again; of the order it hears no more until the other has answered.
    let remaining = events(who, 12).into_iter().filter(|e| e.item != item);
    phone.contribute_events(remaining.collect()).await.unwrap();
    let tablet_asks = async {
        let quiet = Duration::from_millis(300);
        tokio::time::sleep(quiet).await;
        assert_eq!(code(tablet.contribute(12).await), Refusal::Busy);
        assert_eq!(told_to_erase(&tablet).await, task);
        let before = Instant::now();
        tablet.call(&done).await.unwrap();
        before
    };
    let phone_waits = async {
        let task = told_to_erase(phone).await;
        (task, Instant::now())
    };
    let (answered, (again, woken)) = tokio::join!(tablet_asks, phone_waits);
    assert_eq!(again, task);
    assert!(woken >= answered, "it was told in a loop");
    phone.call(&done).await.unwrap();
    phone.rejoin().await;
    l.op.deleted(deletion).await;
    l.coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_withdraws_comes_back_no_sooner_than_people_contribute() {
    let world = World::new(1_000);
    let mut config = config(&world);
    config.lists.refresh_s = 2;
    let (coordinator, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let device = Lister::new(addr, &op, 0).await;
    // Nothing was contributed: nothing to wait for.
    device.call(&Request::Uncontribute).await.unwrap();
    device.contribute(12).await.unwrap();
    device.call(&Request::Uncontribute).await.unwrap();
    assert_eq!(op.lists().await.people, 0);
    assert_eq!(code(device.contribute(12).await), Refusal::Busy);
    tokio::time::sleep(Duration::from_secs(3)).await;
    device.contribute(12).await.unwrap();
    assert_eq!(op.lists().await.people, 1);
    coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_device_of_a_person_makes_no_second_contributor() {
    let l = listing(1).await;
    let tablet = Lister::new(l.addr, &l.op, 0).await;
    let fewer = Contributed {
        source: [99; 16],
        whole: true,
        events: events(0, 3),
    };
    tablet.call(&Request::Contribute(fewer)).await.unwrap();
    let more = Contributed {
        source: [99; 16],
        whole: true,
        events: events(0, 20),
    };
    tablet.call(&Request::Contribute(more)).await.unwrap();
    assert_eq!(l.op.lists().await.people, 1);
    l.coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restriction_takes_a_person_out_and_a_takedown_the_items_rows() {
    let l = listing(PEOPLE).await;
    let first = settled(&l.devices[0]).await;
    let who = counted(&l.op).await;
    let restrict = DeletionRequest::Restrict { subject: id(who) };
    let ids = l.op.ask_for(vec![restrict]).await.unwrap();
    assert!(!counts(&l.op, who).await);
    assert_eq!(
        code(l.devices[who as usize].contribute(12).await),
        Refusal::Forbidden
    );
    l.op.deleted(ids[0]).await;
    let second = l.devices[0].served_after(first).await.served.unwrap();
    let before = l.devices[0].fetch().await.unwrap();
    let item = (0..8).find(|i| before.tables.is_seen(*i)).unwrap();
    let items = vec![format!("i{item}")];
    let ids =
        l.op.ask_for(vec![DeletionRequest::Takedown { items }])
            .await
            .unwrap();
    l.devices[1].served_after(second).await;
    let after = l.devices[1].fetch().await.unwrap();
    assert!(!after.tables.is_seen(item), "its rows and columns are gone");
    assert_eq!(
        after.statement.people, before.statement.people,
        "cells stay"
    );
    let lists = of_deletion(&l.op, ids[0]).await;
    assert!(lists.recalled.is_some());
    assert_eq!(l.op.lists().await.taken_down, 1);
    l.coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_lists_says_so() {
    let world = World::new(1_000);
    let (coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let device = Lister::new(addr, &op, 0).await;
    assert_eq!(code(device.contribute(3).await), Refusal::Invalid);
    let reply = device.reply(0).await;
    assert!(reply.terms.is_none() && reply.tables == ServedTables::None);
    let none = op.ask(AdminRequest::Lists).await.unwrap();
    assert_eq!(none, AdminReply::Lists(None));
    coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_brings_nobody_back_and_gives_no_number_again() {
    let l = listing(PEOPLE).await;
    let first = settled(&l.devices[79]).await;
    let gone = counted(&l.op).await;
    let backup = l.world.dir.path().join("backup");
    copy_folder(&config(&l.world).data_dir, &backup);
    let deletion = l.op.ask_to_forget(gone, &[]).await.unwrap();
    l.op.deleted(deletion).await;
    let newest = l.devices[79].served_after(first).await.served.unwrap();
    l.coordinator.shutdown();
    // The backup has the person, counted, and serves a snapshot with them in it.
    let (again, addr) = restored(&l.world, &backup).await;
    let op = l.op.reconnect(addr).await;
    assert!(op.lineage(gone).await.is_err());
    assert!(!counts(&op, gone).await);
    // The backup does not know the deletion: it is executed again. The keys are those of now, so
    // there is nothing left to forget.
    op.deleted(deletion).await;
    assert!(!of_deletion(&op, deletion).await.held);
    let device = Lister::new(addr, &op, 200).await;
    let served = device.served_after(newest).await;
    assert!(served.recalled >= newest, "{served:?}");
    let replayed = replay(&op).await;
    assert!(replayed.memory != Some(false) && replayed.folder != Some(false));
    again.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_that_gather_recall_once() {
    const WINDOW_S: u64 = 4;
    let world = World::new(1_000);
    let mut config = config(&world);
    config.erase_window_s = WINDOW_S;
    let (coordinator, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let mut devices = vec![];
    for subject in 0..PEOPLE {
        let device = Lister::new(addr, &op, subject).await;
        device.contribute(12).await.unwrap();
        devices.push(device);
    }
    let first = settled(&devices[79]).await;
    let mut counted = vec![];
    for subject in 0..PEOPLE - 1 {
        if counts(&op, subject).await {
            counted.push(subject);
        }
    }
    let [one, .., other] = counted[..] else {
        panic!("two people count: {counted:?}")
    };
    let ids = [
        op.ask_to_forget(one, &[]).await.unwrap(),
        op.ask_to_forget(other, &[]).await.unwrap(),
    ];
    // Until they are executed what is served stays, and nothing new comes of these people.
    let now = devices[79].reply(0).await;
    assert_eq!((now.state.served, now.state.recalled), (Some(first), 0));
    assert_eq!(
        code(devices[one as usize].contribute(5).await),
        Refusal::Busy
    );
    for id in ids {
        let done = op.deleted(id).await;
        let exact = done.seconds_until_exact.unwrap();
        assert!(exact >= WINDOW_S as f64 - 1.0, "the wait is in it: {exact}");
    }
    let lists = [
        of_deletion(&op, ids[0]).await,
        of_deletion(&op, ids[1]).await,
    ];
    assert_eq!(lists[0].recalled, lists[1].recalled);
    assert_eq!(lists[0].replaced_by, lists[1].replaced_by);
    assert!(lists[0].replaced_by.is_some());
    coordinator.shutdown();
}
