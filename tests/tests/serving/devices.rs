//! Several devices of one person, over real QUIC: one subject in the sums, which counts with what
//! all of them have met.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use lethe_client::{Client, ClientError, LocalEvent};
use lethe_coordinator::Coordinator;
use lethe_coordinator::config::ServerConfig;
use lethe_coordinator::lists::CellsConfig;
use lethe_proto::admin::{AdminReply, AdminRequest, DeletionPhase};
use lethe_proto::ids::Digest;
use lethe_tests::lists::Lister;
use lethe_tests::party;
use lethe_tests::tiny::{ITEMS, time};
use lethe_tests::world::{Operator, PATIENCE, World};

/// Whoever counts beside the person with several devices.
const OTHERS: [u32; 3] = [1, 2, 3];
/// Whose devices these are.
const PERSON: u32 = 0;

/// What is met on these days, one item a day.
fn met(days: Range<i64>) -> Vec<LocalEvent> {
    let one = |day: i64| {
        let item = format!("i{}", day * 7 % i64::from(ITEMS));
        LocalEvent::purchased(item, time(day * 86_400))
    };
    days.map(one).collect()
}

/// The item of a day.
fn item_of(day: i64) -> String {
    met(day..day + 1).remove(0).item
}

struct Fleet {
    world: World,
    op: Operator,
    addr: SocketAddr,
    coordinator: Coordinator,
}

/// The coordinator holds the sums.
fn embedded(world: &World) -> ServerConfig {
    world.config_without_cells()
}

/// A tally of its own.
fn apart(world: &World) -> ServerConfig {
    let mut tally = party::config(world);
    tally.lists.cells = CellsConfig::Off;
    tally.lists.k = 1;
    let (tally_at, invitation) = party::serve_here(&tally);
    party::of_coordinator(world, tally_at, &invitation)
}

/// Others, who contribute.
async fn fleet(config: impl Fn(&World) -> ServerConfig) -> Fleet {
    let world = World::new(1_000);
    let (coordinator, addr) = world.start_with(config(&world)).await;
    let op = world.operator(addr).await;
    for subject in OTHERS {
        let client = world.client(addr, &op, subject).await;
        assert!(client.refresh().await.unwrap().contributed);
        client.close().await;
    }
    Fleet {
        world,
        op,
        addr,
        coordinator,
    }
}

impl Fleet {
    /// A device of the person, by name; new, or as it was left.
    async fn device(&self, name: &str) -> Client {
        let folder = self.world.dir.path().join(name);
        let mut options = self.world.options(self.addr);
        if !folder.exists() {
            options = options.invitation(self.op.invite(PERSON).await);
        }
        let client = Client::open(folder, options).unwrap();
        client.connect().await.unwrap();
        client
    }

    /// A device with these events, which it contributes.
    async fn with(&self, name: &str, events: Vec<LocalEvent>) -> Client {
        let client = self.device(name).await;
        client.record_all(events).unwrap();
        assert!(client.refresh().await.unwrap().contributed, "{name}");
        client
    }

    /// The sums of everybody who counts, folded again.
    async fn sums(&self) -> (u64, Digest) {
        match self.op.ask(AdminRequest::ListsReplay).await {
            Ok(AdminReply::ListsReplayed(r)) => {
                assert_ne!(r.memory, Some(false));
                assert_ne!(r.folder, Some(false));
                (r.people, r.digest)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits until so many people count, and their sums are these.
    async fn sums_become(&self, people: u64, digest: Digest) {
        let started = Instant::now();
        while self.sums().await != (people, digest) {
            let got = self.op.lists().await;
            assert!(started.elapsed() < PATIENCE, "{got:?}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    async fn people_count(&self, people: u64) -> Digest {
        let started = Instant::now();
        loop {
            let sums = self.sums().await;
            if sums.0 == people {
                return sums.1;
            }
            assert!(started.elapsed() < PATIENCE, "{sums:?}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

/// The sums when the person has one device, with these events.
async fn with_one_device(events: Vec<LocalEvent>) -> Digest {
    let fleet = fleet(embedded).await;
    fleet.with("only", events).await;
    let digest = fleet.people_count(4).await;
    fleet.coordinator.shutdown();
    digest
}

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_count_as_one_that_has_all_of_it_and_are_forgotten_together() {
    let all = with_one_device(met(0..12)).await;
    let fleet = fleet(embedded).await;
    let nobody = fleet.people_count(3).await;
    let first = fleet.with("first", met(0..6)).await;
    // The second has what the first had, and goes on by itself; so does the first.
    let second = fleet.device("second").await;
    second.import(&first.export().unwrap()).unwrap();
    second.record_all(met(6..9)).unwrap();
    assert!(second.refresh().await.unwrap().contributed);
    first.record_all(met(9..12)).unwrap();
    assert!(first.refresh().await.unwrap().contributed);
    fleet.sums_become(4, all).await;
    assert_eq!(fleet.op.lists().await.people, 4);
    // Neither has anything new: nothing is sent, and nothing changes.
    for device in [&second, &first] {
        assert!(!device.refresh().await.unwrap().contributed);
    }
    assert_eq!(fleet.sums().await, (4, all));

    let deletion = fleet.op.ask_to_forget(PERSON, &[]).await.unwrap();
    fleet.op.deleted(deletion).await;
    fleet.sums_become(3, nobody).await;
    for device in [&second, &first] {
        device.record_all(met(20..22)).unwrap();
        let refused = device.refresh().await;
        assert!(refused.is_err(), "{refused:?}");
    }
    assert_eq!(fleet.sums().await, (3, nobody));
    fleet.coordinator.shutdown();
}

/// Takes steps until an item is gone.
async fn erases(client: &Client, item: &str) {
    let started = Instant::now();
    while client.history().iter().any(|e| e.item == item) {
        assert!(started.elapsed() < PATIENCE, "it never erases");
        let step = client.step();
        let _ = tokio::time::timeout(Duration::from_secs(2), step).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_away_erases_before_it_contributes_again() {
    let without = |days: Range<i64>, item: &str| -> Vec<LocalEvent> {
        met(days).into_iter().filter(|e| e.item != item).collect()
    };
    let item = item_of(3);
    let of_first = with_one_device(without(0..6, &item)).await;
    let of_both = with_one_device(without(0..9, &item)).await;
    let fleet = fleet(embedded).await;
    let nobody = fleet.people_count(3).await;
    let first = fleet.with("first", met(0..6)).await;
    // Both have the item.
    let second = fleet.with("second", met(2..9)).await;
    second.close().await;
    fleet.people_count(4).await;

    let deletion = fleet.op.ask_to_forget(PERSON, &[&item]).await.unwrap();
    fleet.sums_become(3, nobody).await;
    erases(&first, &item).await;
    first.refresh().await.unwrap();
    fleet.sums_become(4, of_first).await;

    // The other one is back, and wants to contribute what it holds: not before it has erased.
    let second = fleet.device("second").await;
    let holds = second.history().iter().any(|e| e.item == item);
    let contributed = second.refresh().await;
    assert!(holds, "it was away");
    let got_in = contributed.as_ref().is_ok_and(|r| r.contributed);
    assert!(!got_in, "{contributed:?}");
    assert_eq!(fleet.sums().await, (4, of_first));
    erases(&second, &item).await;
    let started = Instant::now();
    while fleet.sums().await != (4, of_both) {
        assert!(started.elapsed() < PATIENCE, "the second never contributes");
        match second.refresh().await {
            Ok(_) | Err(ClientError::Transport(_)) => {}
            Err(e) => panic!("{e}"),
        }
    }
    let done = fleet.op.deleted(deletion).await;
    assert_eq!(done.phase, DeletionPhase::Done);
    fleet.coordinator.shutdown();
}

/// The tables of everybody who counts, as a device gets them.
async fn tables(fleet: &Fleet, people: u64) -> Vec<u8> {
    let watcher = Lister::new(fleet.addr, &fleet.op, 9).await;
    let started = Instant::now();
    loop {
        if let Some(got) = watcher
            .fetch()
            .await
            .filter(|g| g.statement.people == people)
        {
            return got.bytes;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{people} people are never in it"
        );
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tally_of_its_own_merges_what_was_sealed_to_it() {
    let one = fleet(apart).await;
    one.with("only", met(0..9)).await;
    let all = tables(&one, 4).await;
    one.coordinator.shutdown();

    let two = fleet(apart).await;
    two.with("first", met(0..6)).await;
    let of_first = tables(&two, 4).await;
    assert_ne!(of_first, all);
    two.with("second", met(4..9)).await;
    let watcher = Lister::new(two.addr, &two.op, 8).await;
    let started = Instant::now();
    loop {
        let got = watcher.fetch().await.map(|g| g.bytes);
        if got.as_ref() == Some(&all) {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "the tables stay others");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(two.op.lists().await.people, 4);
    two.coordinator.shutdown();
}
