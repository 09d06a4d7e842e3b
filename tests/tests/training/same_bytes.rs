//! The same recipe and the same people give the same bytes, whatever order they come in: also where
//! a history names no direction.
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lethe_client::{Client, LocalEvent};
use lethe_coordinator::lists::{CellsConfig, Sums};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::epochs::EpochPhase;
use lethe_proto::ids::Digest;
use lethe_tests::lists::Lister;
use lethe_tests::tiny;
use lethe_tests::world::{Fleet, Operator, PATIENCE, World};

/// One shard's hash after another.
async fn hashes(op: &Operator) -> Vec<Digest> {
    let trained = op.trained().await;
    trained.shards.iter().map(|k| k.adapter).collect()
}

/// People who join in this order; some of them liked nothing.
async fn fleet(world: &World, op: &Operator, addr: SocketAddr, order: &[u32]) -> Fleet {
    let mut fleet = Fleet::default();
    for s in order {
        let folder = world.client_folder(*s);
        let options = world.options(addr).invitation(op.invite(*s).await);
        let client = Client::open(folder, options).unwrap();
        let likes_nothing = s % 2 == 0;
        let history = tiny::history(*s).into_iter().map(|e| match likes_nothing {
            true => LocalEvent::disliked(e.item, e.time),
            false => e,
        });
        client.record_all(history).unwrap();
        client.join().await.unwrap();
        fleet.add(client);
    }
    fleet
}

const RECIPE: &str = "shards = 3\nanchors = 2\ncohort = 3\n";

/// Adapters after training, with people who join in this order.
async fn adapters(order: &[u32]) -> (Vec<Digest>, Vec<String>) {
    let world = World::with_recipe(order.len() as u32, RECIPE);
    let (_c, addr) = world.start(RECIPE).await;
    let op = world.operator(addr).await;
    let fleet = fleet(&world, &op, addr, order).await;
    let hashes = hashes(&op).await;
    let mut places = vec![];
    for s in 0..order.len() as u32 {
        places.push(format!("{:?}", op.lineage(s).await.unwrap().place));
    }
    fleet.abort();
    (hashes, places)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_people_give_the_same_bytes_in_any_order() {
    let first = adapters(&[0, 1, 2, 3, 4, 5, 6, 7]).await;
    for order in [[7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 2, 7, 5, 1, 4]] {
        assert_eq!(adapters(&order).await, first, "{order:?}");
    }
}

/// What came of two epochs with lists beside them.
struct Trained {
    first: Vec<Digest>,
    second: Vec<Digest>,
    /// The tables that devices get, where everybody counts.
    tables: Option<Vec<u8>>,
}

async fn with_lists(order: &[u32], cells: CellsConfig) -> Trained {
    let world = World::with_recipe(order.len() as u32, RECIPE);
    let mut config = world.config(RECIPE);
    config.sums = Sums::Embedded;
    config.lists.cell = 2;
    config.lists.changed = 2;
    config.lists.publish_s = 0;
    config.lists.refresh_s = 0;
    config.lists.cells = cells;
    let (_c, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let fleet = fleet(&world, &op, addr, order).await;
    let first = hashes(&op).await;
    let people = order.len() as u64;
    let begun = Instant::now();
    while op.lists().await.people < people {
        assert!(begun.elapsed() < PATIENCE, "not everybody contributes");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    // Another seed: with the same one the same people would give the same bytes again.
    let other = lethe_tests::world::recipe(&format!("{RECIPE}seed = 5\n"));
    let ask = AdminRequest::EpochStart {
        recipe: Some(other.to_string()),
        model: None,
        dry_run: false,
    };
    let started = op.ask(ask).await.unwrap();
    assert!(
        matches!(started, AdminReply::EpochPlanned(_)),
        "{started:?}"
    );
    let begun = Instant::now();
    loop {
        let AdminReply::Epochs(now) = op.ask(AdminRequest::Epochs).await.unwrap() else {
            panic!("no epochs")
        };
        let phases: Vec<EpochPhase> = now.epochs.iter().map(|e| e.phase).collect();
        if phases == [EpochPhase::Retired, EpochPhase::Serving] {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "no switch: {now:?}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let second = hashes(&op).await;
    let tables = match cells {
        CellsConfig::Off => Some(tables(&op, addr, people).await),
        CellsConfig::On => None,
    };
    fleet.abort();
    Trained {
        first,
        second,
        tables,
    }
}

/// The tables of so many people.
async fn tables(op: &Operator, addr: SocketAddr, people: u64) -> Vec<u8> {
    let watcher = Lister::enrolled(addr, op, 99).await;
    let begun = Instant::now();
    loop {
        let got = watcher.fetch().await;
        if let Some(got) = got.filter(|g| g.statement.people == people) {
            return got.bytes;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{people} people are never in it"
        );
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// The members of cells are drawn with a secret key of the tally, which is new in each data folder:
/// which of those who wait count, and so the tables, may differ from run to run. Nothing of that is
/// in an adapter. Where everybody counts, the tables are the same bytes, too.
#[tokio::test(flavor = "multi_thread")]
async fn case_24_lists_cells_and_an_epoch_that_follows_change_no_byte_of_an_adapter() {
    let (alone, _) = adapters(&[0, 1, 2, 3, 4, 5, 6, 7]).await;
    let on = with_lists(&[5, 1, 7, 0, 2, 4, 6, 3], CellsConfig::On).await;
    let off = with_lists(&[7, 6, 5, 4, 3, 2, 1, 0], CellsConfig::Off).await;
    let again = with_lists(&[0, 4, 1, 5, 2, 6, 3, 7], CellsConfig::Off).await;
    assert_eq!(on.first, alone, "lists have no part in it");
    assert_eq!(off.first, alone);
    assert_eq!(again.first, alone);
    assert_eq!(on.second, off.second, "nor in the epoch that follows");
    assert_eq!(again.second, off.second);
    assert_ne!(on.second, on.first, "which is another one");
    assert!(off.tables.is_some());
    assert!(
        off.tables == again.tables,
        "everybody counts: the same tables"
    );
}
