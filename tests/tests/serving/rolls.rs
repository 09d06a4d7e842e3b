//! Epochs that follow one another, over QUIC: the next one trains beside the one that serves, on
//! what devices hold then, and takes its place (`docs/life.md`).
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lethe_client::{
    Client, ClientError, ClientModel, Done, Lacks, LocalEvent, ModelOptions, TrainsFrom,
};
use lethe_coordinator::Coordinator;
use lethe_coordinator::config::ServerConfig;
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::epochs::{EpochPhase, EpochPlan, EpochState, EpochStates};
use lethe_proto::ids::EpochNo;
use lethe_tests::tiny;
use lethe_tests::world::{Fleet, Operator, PATIENCE, World, copied};

/// Kills a coordinator and starts another with what its folders hold: the first one's threads may
/// still have them open.
async fn killed(coordinator: Coordinator, config: ServerConfig, dir: &Path) -> Started {
    coordinator.shutdown();
    let config = copied(&config, &config.data_dir, &dir.join("again"));
    let coordinator = Coordinator::open(config).unwrap();
    let addr = coordinator.listen().unwrap();
    Started { coordinator, addr }
}

struct Started {
    #[allow(dead_code, reason = "it runs as long as this lives")]
    coordinator: Coordinator,
    addr: SocketAddr,
}

async fn start(op: &Operator, recipe: Option<&str>, dry_run: bool) -> EpochPlan {
    let ask = AdminRequest::EpochStart {
        recipe: recipe.map(|extra| lethe_tests::world::recipe(extra).to_string()),
        model: None,
        dry_run,
    };
    match op.ask(ask).await.unwrap() {
        AdminReply::EpochPlanned(plan) => plan,
        other => panic!("{other:?}"),
    }
}

async fn states(op: &Operator) -> EpochStates {
    match op.ask(AdminRequest::Epochs).await.unwrap() {
        AdminReply::Epochs(states) => states,
        other => panic!("{other:?}"),
    }
}

async fn wait_for(op: &Operator, what: &str, ready: impl Fn(&[EpochState]) -> bool) -> EpochStates {
    let started = Instant::now();
    loop {
        let now = states(op).await;
        if ready(&now.epochs) {
            return now;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{what} did not happen: {now:?}"
        );
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

fn phases(all: &[EpochState]) -> Vec<EpochPhase> {
    all.iter().map(|e| e.phase).collect()
}

/// More than a person had recorded when they joined first.
fn record_more(client: &Client) {
    let more = (0..6i64).map(|i| LocalEvent::liked(format!("i{}", i * 4 + 1), 5_000_000_000 + i));
    client.record_all(more).unwrap();
}

/// Everything in the catalogue.
fn items() -> Vec<String> {
    (0..tiny::ITEMS).map(|i| format!("i{i}")).collect()
}

const SWITCHED: [EpochPhase; 2] = [EpochPhase::Retired, EpochPhase::Serving];

#[tokio::test(flavor = "multi_thread")]
async fn the_next_epoch_trains_beside_the_one_that_serves_and_takes_its_place() {
    let world = World::new(5);
    let (coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let mut fleet = world.fleet(addr, &op).await;
    let first = op.trained().await;

    // Somebody who comes later has lists at once, and trains from the next epoch on.
    let late = world.client(addr, &op, 5).await;
    late.join().await.unwrap();
    let next = Some(TrainsFrom::NextEpoch { at: None });
    assert_eq!((late.status().trains, late.shard()), (next, None));
    assert!(
        op.lineage(5)
            .await
            .unwrap()
            .idle
            .contains("came after the epoch started")
    );
    assert_eq!(
        (states(&op).await.newcomers, states(&op).await.people),
        (1, 6)
    );
    fleet.add(late);

    let plan = start(&op, None, true).await;
    assert_eq!((plan.founded, plan.changes.len()), (None, 0));
    assert_eq!((plan.cost.rounds, plan.cost.client_rounds), (8, 24));
    assert!(
        plan.cost.bytes.unwrap() > 0,
        "training has cost something so far"
    );
    assert_eq!(states(&op).await.epochs.len(), 1, "nothing was done");
    let clients = fleet.stop().await;
    clients.iter().for_each(record_more);
    let before = clients[0].training_samples();
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    let plan = start(&op, None, false).await;
    assert_eq!(plan.founded, Some(EpochNo(2)));
    wait_for(&op, "the switch", |all| phases(all) == SWITCHED).await;
    let second = op.trained().await;
    assert_eq!(
        second.release,
        first.release + 1,
        "the switch is one release"
    );
    assert_ne!(second.shards[0].adapter, first.shards[0].adapter);

    let clients = fleet.stop().await;
    assert!(
        clients[0].training_samples() > before,
        "what was recorded since counts"
    );
    assert_eq!(clients[0].status().epoch, Some(2));
    let lineage = op.lineage(5).await.unwrap();
    assert!(
        lineage.place.is_some() && lineage.idle.is_empty(),
        "{lineage:?}"
    );
    let ranked = clients[5].recommend(items(), 2).await;
    assert!(!ranked.unwrap().items.is_empty());
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    op.replays_equal().await;

    // Who leaves is forgotten by what is served now.
    let deleted = op.forget(0, &[]).await;
    assert_ne!(deleted.before, deleted.now);
    op.replays_equal().await;

    // All of it is there after a restart, and nothing of the first epoch but its record.
    fleet.abort();
    let again = killed(coordinator, world.config(""), world.dir.path()).await;
    let op = op.reconnect(again.addr).await;
    let now = states(&op).await;
    assert_eq!(phases(&now.epochs), SWITCHED);
    assert_eq!(op.status().await.release, op.trained().await.release);
    let shards = world.dir.path().join("again/data/shards");
    let names: Vec<String> = std::fs::read_dir(shards)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.iter().all(|n| n.starts_with("2-")), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_while_an_epoch_follows_holds_in_both() {
    let world = World::new(6);
    let (_coordinator, addr) = world.start("cohort = 6\nrounds = 3\n").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    // Nobody is there when it is founded: all have joined both when the deletion comes.
    let clients = fleet.stop().await;
    start(&op, None, false).await;
    for client in &clients {
        client.join().await.unwrap();
    }
    let joined = states(&op).await;
    assert_eq!(joined.epochs[1].joined, 6);
    let id = op.ask_to_forget(2, &[]).await.unwrap();
    let mut fleet = Fleet::default();
    for (n, client) in clients.into_iter().enumerate() {
        if n != 2 {
            fleet.add(client);
        }
    }
    wait_for(&op, "the switch", |all| phases(all) == SWITCHED).await;
    let deleted = op.deleted(id).await;
    assert!(deleted.plan.contains("epoch 1:") && deleted.plan.contains("epoch 2:"));
    assert!(
        op.lineage(2).await.is_err(),
        "nothing is known of the person"
    );
    op.replays_equal().await;
    let receipt = op.receipt(id).await;
    let key = lethe_receipt::note::VerifierKey::parse(&op.status().await.log_key).unwrap();
    let receipt = lethe_receipt::receipt::verify(&receipt, &key).unwrap();
    let stated = receipt.statement.epochs.unwrap();
    let numbers: Vec<u32> = stated.iter().map(|e| e.epoch).collect();
    assert_eq!(numbers, [1, 2]);
    // An erasure of items in the new epoch: what remains is trained on.
    let items = op.forget(1, &["i3"]).await;
    assert_eq!(items.removed.unwrap().answered, 1);
    op.replays_equal().await;
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takedown_while_an_epoch_is_joined_holds_in_both() {
    let world = World::new(5);
    let (_coordinator, addr) = world.start_with(patient(&world, 1.0)).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let clients = fleet.stop().await;
    start(&op, None, false).await;
    // It waits for all of them, and these have joined it with the item.
    for client in &clients[..3] {
        client.join().await.unwrap();
    }
    let has = |client: &Client| {
        let history = String::from_utf8(client.export().unwrap()).unwrap();
        history.contains("\"i4\"")
    };
    assert!(clients[..3].iter().any(has));
    let items = vec!["i4".to_owned()];
    let ids = op.ask_for(vec![DeletionRequest::Takedown { items }]).await;
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    let done = op.deleted(ids.unwrap()[0]).await;
    let removed = done.removed.unwrap();
    assert_eq!((removed.answered, removed.silent), (5, 0));
    wait_for(&op, "the switch", |all| phases(all) == SWITCHED).await;
    op.trained().await;
    op.replays_equal().await;
    let clients = fleet.stop().await;
    assert!(!clients.iter().any(has));
    assert_eq!(
        states(&op).await.epochs[1].trains,
        5,
        "all are in the new one"
    );
}

fn model(world: &World, k_in: usize) -> Arc<ClientModel> {
    let mut options = ModelOptions::default();
    options.split.k_in = k_in;
    options.split.k_out = 1;
    ClientModel::load(&world.dir.path().join("model"), options).unwrap()
}

/// Devices are waited for as long as a test can.
fn patient(world: &World, hours: f64) -> ServerConfig {
    let mut config = world.config("");
    config.roll.join_hours = hours;
    config.min_subjects = 4;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn another_split_rolls_out_with_an_epoch_and_devices_say_what_they_lack() {
    let world = World::new(4);
    let (_coordinator, addr) = world.start_with(patient(&world, 0.002)).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    let first = op.trained().await;
    let wider = "split = { k_in = 2, k_out = 1 }\n";
    let plan = start(&op, Some(wider), true).await;
    let changes: Vec<(&str, bool)> = plan
        .changes
        .iter()
        .map(|c| (c.key.as_str(), c.device))
        .collect();
    assert_eq!(changes, [("split.k_in", true)]);

    // Nobody has the layers: it is given up, and what is served stays.
    start(&op, Some(wider), false).await;
    let lacked = wait_for(&op, "all say so", |all| {
        all[1].lacks == [(Lacks::Layers, 4)]
    });
    lacked.await;
    let dropped = |all: &[EpochState]| all[1].phase == EpochPhase::Dropped;
    wait_for(&op, "it is given up", dropped).await;
    assert_eq!(op.status().await.release, first.release);
    let clients = fleet.stop().await;
    for client in &clients {
        // Once they have heard that it has ended, they lack nothing.
        client.step().await.unwrap();
        assert_eq!(client.status().needs, None);
    }
    start(&op, Some(wider), false).await;
    let step = clients[0].step().await;
    step.unwrap();
    let needs = clients[0].status().needs.unwrap();
    assert_eq!((needs.epoch, needs.lacks), (3, Lacks::Layers));
    assert_eq!(needs.options.unwrap().split.k_in, 2);
    let refused = clients[0].join().await.unwrap_err();
    assert!(
        matches!(refused, ClientError::OtherOptions { .. }),
        "{refused}"
    );
    // Lists, and the language model by the epoch that serves, go on.
    assert!(clients[0].recommend(items(), 1).await.is_ok());

    // Their apps load the model anew.
    drop(clients);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut fleet = Fleet::default();
    for s in 0..4 {
        let options = world.options(addr).model(model(&world, 2));
        let client = Client::open(world.client_folder(s), options).unwrap();
        client.join().await.unwrap();
        fleet.add(client);
    }
    let serves = |all: &[EpochState]| all[2].phase == EpochPhase::Serving;
    wait_for(&op, "the switch", serves).await;
    op.trained().await;
    op.replays_equal().await;
    let clients = fleet.stop().await;
    assert!(clients[1].recommend(items(), 1).await.is_ok());
    // A client that was not loaded anew still has lists, and says why there is no more.
    let behind = world.client(addr, &op, 3);
    drop(clients);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let behind = behind.await;
    let refused = behind.recommend(items(), 1).await.unwrap_err();
    assert!(
        matches!(refused, ClientError::OtherOptions { .. }),
        "{refused}"
    );
    assert!(behind.top(&lethe_client::Query::first(3)).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn older_clients_follow_while_the_recipe_stays_and_keep_lists_afterwards() {
    let world = World::new(4);
    let (_coordinator, addr) = world.start_with(patient(&world, 1.0)).await;
    let op = world.operator(addr).await;
    let mut clients = vec![];
    for s in 0..4 {
        let options = world.options(addr);
        let options = match s {
            0 => options.minor_version(4, vec![]),
            _ => options,
        };
        clients.push(world.joined(&op, s, options).await);
    }
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    op.trained().await;
    start(&op, None, false).await;
    wait_for(&op, "the others join", |all| all[1].joined == 3).await;
    // Its app joins when it is started: that means the newest.
    let clients = fleet.stop().await;
    clients[0].join().await.unwrap();
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    wait_for(&op, "the switch", |all| phases(all) == SWITCHED).await;
    op.trained().await;

    start(&op, Some("rounds = 1\n"), false).await;
    let serves = |all: &[EpochState]| all[2].joined == 3;
    wait_for(&op, "the others join", serves).await;
    let clients = fleet.stop().await;
    let refused = clients[0].join().await.unwrap_err();
    assert!(refused.to_string().contains("update the app"), "{refused}");
    assert!(clients[0].top(&lethe_client::Query::first(3)).is_ok());
    assert!(
        clients[0].step().await.is_ok(),
        "it waits for lists, and gets no other work"
    );
}

/// Another device of a person, with a history of its own.
async fn second_device(world: &World, op: &Operator, subject: u32, addr: SocketAddr) -> Client {
    let folder = world.dir.path().join(format!("second-{subject}"));
    let options = world.options(addr).invitation(op.invite(subject).await);
    let client = Client::open(folder, options).unwrap();
    client.record_all(tiny::history(subject + 1)).unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_devices_the_one_that_joined_last_trains_an_epoch() {
    let world = World::new(4);
    let (_coordinator, addr) = world.start_with(patient(&world, 1.0)).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let clients = fleet.stop().await;
    let second = second_device(&world, &op, 1, addr).await;
    // The first epoch has begun with what the other device joined with.
    let refused = second.join().await.unwrap_err();
    assert!(matches!(refused, ClientError::OtherData), "{refused}");
    start(&op, None, false).await;
    // Both join the second one, before it begins, with different data.
    clients[1].join().await.unwrap();
    second.join().await.unwrap();
    for client in [&clients[0], &clients[2], &clients[3]] {
        client.join().await.unwrap();
    }
    wait_for(&op, "it begins", |all| all[1].phase == EpochPhase::Training).await;
    let mut declined = false;
    for _ in 0..4 {
        let done = clients[1].step().await.unwrap();
        assert_ne!(done, Done::Trained, "on what the log does not commit to");
        declined |= matches!(done, Done::Declined(_));
    }
    assert!(declined, "it was asked");
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    fleet.add(second);
    wait_for(&op, "the switch", |all| phases(all) == SWITCHED).await;
    op.trained().await;
    op.replays_equal().await;
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_gives_up_an_epoch_and_the_rule_starts_the_next() {
    let world = World::new(4);
    let (coordinator, addr) = world.start_with(patient(&world, 1.0)).await;
    let op = world.operator(addr).await;
    let refused = op
        .ask(AdminRequest::EpochStart {
            recipe: None,
            model: None,
            dry_run: false,
        })
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("epoch 1 is under way"),
        "{refused}"
    );
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let clients = fleet.stop().await;
    start(&op, None, false).await;
    let cancel = AdminRequest::EpochCancel { epoch: EpochNo(2) };
    assert_eq!(op.ask(cancel.clone()).await.unwrap(), AdminReply::Done);
    assert!(op.ask(cancel).await.is_err(), "once");
    let now = states(&op).await;
    assert_eq!(
        phases(&now.epochs),
        [EpochPhase::Serving, EpochPhase::Dropped]
    );
    for bad in [
        "split = { k_in = 3, k_out = 2 }\n",
        "updates = \"masked\"\n",
    ] {
        let ask = AdminRequest::EpochStart {
            recipe: Some(lethe_tests::world::recipe(bad).to_string()),
            model: None,
            dry_run: false,
        };
        assert!(op.ask(ask).await.is_err(), "{bad}");
    }
    assert_eq!(states(&op).await.epochs.len(), 2, "nothing was founded");

    // A coordinator whose rule goes by people: one of five waits for the next epoch.
    // The rule does not try again at once what was given up: after so long as devices are waited
    // for, 15 seconds here.
    let mut config = patient(&world, 15.0 / 3600.0);
    config.roll.new_people = Some(0.2);
    let again = killed(coordinator, config, world.dir.path()).await;
    let addr = again.addr;
    let op = op.reconnect(addr).await;
    let mut fleet = Fleet::default();
    drop(clients);
    for s in 0..5 {
        let client = world.client(addr, &op, s).await;
        client.join().await.unwrap();
        fleet.add(client);
    }
    let serves = |all: &[EpochState]| all.last().is_some_and(|e| e.phase == EpochPhase::Serving);
    let now = wait_for(&op, "the rule", |all| all.len() == 3 && serves(all)).await;
    assert_eq!(now.epochs[2].trains, 5);
    fleet.abort();
}

#[test]
fn a_rule_that_cannot_be_is_refused() {
    let parse = |roll: &str| {
        let text = format!("data_dir = \"d\"\nmodel = \"m\"\ncatalogue = \"c\"\n[roll]\n{roll}\n");
        ServerConfig::parse(&text).map_err(|e| e.to_string())
    };
    assert!(parse("every_days = 30\nnew_people = 0.2\njoin_hours = 0.5").is_ok());
    for (bad, why) in [
        ("every_days = 0", "expected 1 to 3650"),
        ("new_people = 0.0", "more than 0"),
        ("new_people = 1.5", "at most 1"),
        ("join_hours = 0.0", "more than 0"),
        ("join_hours = 9000.0", "a year"),
        ("every = 3", "unknown field"),
    ] {
        let e = parse(bad).unwrap_err();
        assert!(e.contains(why), "{bad}: {e}");
    }
}
