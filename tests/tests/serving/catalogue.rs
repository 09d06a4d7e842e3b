//! The catalogue changes while everything runs: items come, go, and have other names and titles.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lethe_client::{Client, ClientError, LocalEvent, Options, Query};
use lethe_coordinator::Coordinator;
use lethe_coordinator::config::ServerConfig;
use lethe_proto::admin::{AdminReply, AdminRequest, CatalogueStatus};
use lethe_proto::deletion::DeletionRequest;
use lethe_tests::desk::{Desk, Said};
use lethe_tests::party;
use lethe_tests::tiny::{ITEMS, time};
use lethe_tests::world::{Fleet, Operator, PATIENCE, World, copied};

/// The folder of the tiny catalogue with changes; `renamed` as the file has it.
fn folder(world: &World, name: &str, rows: &[String], renamed: &str) -> PathBuf {
    let folder = world.dir.path().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let spec = std::fs::read_to_string(world.dir.path().join("data/dataset.toml")).unwrap();
    std::fs::write(folder.join("dataset.toml"), spec).unwrap();
    let mut text = String::from("id,title,tags\n");
    rows.iter().for_each(|row| writeln!(text, "{row}").unwrap());
    std::fs::write(folder.join("items.csv"), text).unwrap();
    std::fs::write(folder.join("renamed.csv"), format!("old,new\n{renamed}")).unwrap();
    folder
}

fn row(i: u32) -> String {
    let genre = ["Drama", "Comedy", "Action"][i as usize % 3];
    format!("i{i},F{i},{genre} T{}", i % 5)
}

/// i0 has another name, i1 another title, i2 other tags, i3 has left, new is new.
fn second(world: &World) -> PathBuf {
    let mut rows: Vec<String> = (4..ITEMS).map(row).collect();
    rows.insert(0, "new,Something New,Drama".into());
    rows.push("n0,F0,Drama T0".into());
    rows.push("i1,Another Title,Comedy T1".into());
    rows.push("i2,F2,Horror".into());
    folder(world, "second", &rows, "i0,n0\n")
}

fn apply(desk: &Desk, folder: &Path, more: &[&str]) -> Said {
    let folder = folder.to_string_lossy().into_owned();
    let args = [&["catalogue", "apply", &folder][..], more].concat();
    desk.run(&args)
}

async fn desk(world: &World, op: &Operator, addr: SocketAddr) -> Desk {
    let program = env!("CARGO_BIN_EXE_admin-process");
    Desk::enrolled(program, world, op, addr, "desk").await
}

async fn status(op: &Operator) -> CatalogueStatus {
    match op.ask(AdminRequest::CatalogueStatus).await.unwrap() {
        AdminReply::CatalogueStatus(status) => status,
        other => panic!("{other:?}"),
    }
}

/// Titles of all items that a list would show, by identifier.
fn shown(client: &Client) -> Vec<(String, String)> {
    let page = client.top(&Query::first(100)).unwrap();
    page.items.into_iter().map(|l| (l.item, l.title)).collect()
}

fn title(client: &Client, id: &str) -> Option<String> {
    client.catalogue().item(id).map(|i| i.title.clone())
}

fn has(client: &Client, id: &str) -> bool {
    client.history().iter().any(|e| e.item == id)
}

async fn refreshed(client: &Client, version: u32) {
    client.refresh().await.unwrap();
    assert_eq!(client.status().catalogue, version);
}

/// Refreshes until the tables of a snapshot have so many items.
async fn until_tables_have(client: &Client, items: usize) {
    let started = Instant::now();
    while client.status().snapshot.map(|s| s.items) != Some(items) {
        assert!(started.elapsed() < PATIENCE, "{:?}", client.status());
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.refresh().await.unwrap();
    }
}

/// Somebody without a model, who has met these items.
async fn lister(world: &World, op: &Operator, options: Options, who: u32, met: &[&str]) -> Client {
    let options = options.invitation(op.invite(who).await);
    let client = Client::open(world.client_folder(who), options).unwrap();
    let event = |(t, id): (usize, &&str)| LocalEvent::liked(*id, time(t as i64));
    client
        .record_all(met.iter().enumerate().map(event))
        .unwrap();
    client.refresh().await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn items_change_while_people_train_and_a_replay_is_equal() {
    let world = World::new(8);
    let config = world.config_with_lists("");
    let (coordinator, addr) = world.start_with(config.clone()).await;
    let op = world.operator(addr).await;
    let desk = desk(&world, &op, addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    op.replays_equal().await;

    // Nothing is done before it is meant.
    let next = second(&world);
    let dry = apply(&desk, &next, &["--dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.err);
    for part in [
        "1 added",
        "i0 -> n0",
        "F1 -> Another Title",
        "1 retagged",
        "1 removed",
    ] {
        assert!(dry.out.contains(part), "{part}: {}", dry.out);
    }
    let careful = apply(&desk, &next, &[]);
    assert_ne!(careful.code, 0);
    assert!(careful.err.contains("--yes"), "{}", careful.err);
    assert_eq!(status(&op).await.versions.len(), 1);
    let done = apply(&desk, &next, &["--yes"]);
    assert_eq!(done.code, 0, "{}", done.err);
    let now = status(&op).await;
    assert_eq!(now.versions.len(), 2);
    assert!(now.versions.iter().all(|v| v.index.is_some()), "{now:?}");
    assert_eq!(now.versions[1].before, now.versions[0].digest);
    assert_eq!((now.items, now.removed), (u64::from(ITEMS), 1));
    assert_eq!(now.epochs.iter().map(|e| e.1).collect::<Vec<_>>(), [1]);
    let said = desk.run(&["catalogue", "status"]);
    assert!(said.out.contains("30 items, 1 removed"), "{}", said.out);
    let again = apply(&desk, &next, &["--yes"]);
    assert!(again.out.contains("which is in force"), "{}", again.out);

    // The epoch has the version that it was founded with, and whoever trains again its titles.
    let clients = fleet.stop().await;
    for client in &clients {
        refreshed(client, 2).await;
        assert_eq!(title(client, "i1").as_deref(), Some("Another Title"));
        assert_eq!(
            title(client, "i0").as_deref(),
            Some("F0"),
            "the name of before"
        );
    }
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    op.replays_equal().await;
    let said = desk.run(&["replay", "0"]);
    assert!(said.out.contains("EQUAL"), "{}", said.out);
    assert!(said.out.contains("catalogue: version 1"), "{}", said.out);

    // A request about a name is about all names of the item.
    let clients = fleet.stop().await;
    let met: Vec<usize> = (0..8).filter(|c| has(&clients[*c], "i0")).collect();
    assert!(!met.is_empty());
    clients[met[0]]
        .record(LocalEvent::liked("n0", time(99)))
        .unwrap();
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    let items = vec!["n0".to_owned()];
    let ids = op
        .ask_for(vec![DeletionRequest::Takedown { items }])
        .await
        .unwrap();
    op.deleted(ids[0]).await;
    let clients = fleet.stop().await;
    for client in &clients {
        assert!(!has(client, "i0") && !has(client, "n0"));
    }

    // All of it is there after a restart, whatever the configured folder says.
    drop(clients);
    let (_coordinator, addr) = taken_over(&world, coordinator, config).await;
    let op = op.reconnect(addr).await;
    assert_eq!(status(&op).await, now);
    let client = Client::open(world.client_folder(1), world.options(addr)).unwrap();
    assert_eq!(client.status().catalogue, 2, "before it has asked anybody");
    refreshed(&client, 2).await;
}

/// The coordinator is killed, and another one has what it left.
async fn taken_over(
    world: &World,
    coordinator: Coordinator,
    config: ServerConfig,
) -> (Coordinator, SocketAddr) {
    coordinator.shutdown();
    let copy = world.dir.path().join("again");
    world
        .start_with(copied(&config, &config.data_dir, &copy))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_follow_the_catalogue() {
    let world = World::new(8);
    let (_coordinator, addr) = world.start_with(world.config_with_lists("")).await;
    let op = world.operator(addr).await;
    let desk = desk(&world, &op, addr).await;
    let options = || Options::new(world.catalogue()).server(addr);
    let mut people = vec![];
    // Cells of two open while eight wait: eight of them count.
    for who in 0..14 {
        people.push(lister(&world, &op, options(), who, &["i0", "i3", "i5"]).await);
    }
    let older = options().minor_version(4, vec![]);
    let older = lister(&world, &op, older, 20, &["i0", "i3"]).await;
    until_tables_have(&people[0], ITEMS as usize).await;
    assert!(shown(&people[0]).iter().any(|s| s.0 == "i1" && s.1 == "F1"));

    // Somebody records meanwhile, with what they have.
    people[1].record(LocalEvent::liked("i3", time(50))).unwrap();
    assert_eq!(apply(&desk, &second(&world), &["--yes"]).code, 0);
    people[1].record(LocalEvent::liked("i3", time(51))).unwrap();

    let one = &people[0];
    refreshed(one, 2).await;
    assert_eq!(
        one.status().unknown_events,
        1,
        "i3 has left, and the history keeps it"
    );
    assert!(has(one, "i3") && has(one, "i0"));
    let list = shown(one);
    let named = |id: &str| list.iter().find(|s| s.0 == id).map(|s| s.1.clone());
    assert_eq!(named("i1").as_deref(), Some("Another Title"));
    assert_eq!(named("new").as_deref(), Some("Something New"));
    assert_eq!(named("i3"), None);
    assert_eq!(named("n0"), None, "it was met under its former name");
    assert_eq!(named("i0"), None);
    let excluded = Query {
        candidates: Some(vec!["i3".into(), "new".into()]),
        ..Query::first(9)
    };
    assert_eq!(
        one.top(&excluded).unwrap().items.len(),
        1,
        "what has left is left out"
    );
    one.record(LocalEvent::liked("i3", time(60))).unwrap();
    let never = one.record(LocalEvent::liked("never", time(60)));
    assert!(matches!(never, Err(ClientError::UnknownItem(_))));

    // New items are contributed under their names, and renamed ones under theirs.
    for client in &people {
        refreshed(client, 2).await;
        let both = ["new", "n0"].map(|id| LocalEvent::liked(id, time(70)));
        client.record_all(both).unwrap();
        assert!(client.refresh().await.unwrap().contributed);
        assert_eq!(client.status().refused_items, Vec::<String>::new());
    }
    until_tables_have(one, ITEMS as usize + 1).await;
    let started = Instant::now();
    while one.explain("new").unwrap().unseen {
        assert!(
            started.elapsed() < PATIENCE,
            "nobody counts with the new item"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
        one.refresh().await.unwrap();
    }

    // An older client goes on with what it has.
    older.record(LocalEvent::liked("i4", time(80))).unwrap();
    assert!(older.refresh().await.unwrap().contributed);
    assert_eq!(older.status().catalogue, 1);
    assert_eq!(title(&older, "i1").as_deref(), Some("F1"));
    assert!(!shown(&older).is_empty());

    // Offline, a device goes on with the version that it has.
    let folder = world.client_folder(0);
    drop(people);
    let offline = Client::open(folder, Options::new(world.catalogue())).unwrap();
    assert_eq!(offline.status().catalogue, 2);
    assert_eq!(title(&offline, "new").as_deref(), Some("Something New"));
    assert!(!shown(&offline).is_empty());

    // i3 is back at its place; what was recorded of it counts again.
    let mut rows: Vec<String> = (1..ITEMS).map(row).collect();
    rows.push("n0,F0,Drama T0".into());
    rows.push("new,Something New,Drama".into());
    let third = folder_again(&world, &rows);
    let back = apply(&desk, &third, &[]);
    assert_eq!(back.code, 0, "{}", back.err);
    assert!(back.out.contains("1 restored"), "{}", back.out);
    let late = Client::open(world.client_folder(2), options()).unwrap();
    assert_eq!(late.status().unknown_events, 1);
    refreshed(&late, 3).await;
    assert_eq!(late.status().unknown_events, 0);
}

fn folder_again(world: &World, rows: &[String]) -> PathBuf {
    folder(world, "third", rows, "i0,n0\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tally_of_its_own_follows() {
    let world = World::new(8);
    let mut tally = party::config(&world);
    tally.lists.cell = 2;
    tally.lists.changed = 2;
    let (tally_addr, invitation) = party::serve_here(&tally);
    let mut config = party::of_coordinator(&world, tally_addr, &invitation);
    let (coordinator, addr) = world.start_with(config.clone()).await;
    let op = world.operator(addr).await;
    let desk = desk(&world, &op, addr).await;
    let options = |addr| Options::new(world.catalogue()).server(addr);
    let mut people = vec![];
    for who in 0..14 {
        people.push(lister(&world, &op, options(addr), who, &["i0", "i3", "i5"]).await);
    }
    let one = &people[0];
    until_tables_have(one, ITEMS as usize).await;
    assert_eq!(apply(&desk, &second(&world), &["--yes"]).code, 0);
    for client in &people {
        refreshed(client, 2).await;
    }
    until_tables_have(one, ITEMS as usize + 1).await;
    for client in &people {
        // Nobody but the tally learns what is refused: only items of the tables are named.
        client.refresh().await.unwrap();
        let both = ["new", "n0"].map(|id| LocalEvent::liked(id, time(70)));
        client.record_all(both).unwrap();
        let started = Instant::now();
        while !client.refresh().await.unwrap().contributed {
            assert!(started.elapsed() < PATIENCE, "{:?}", client.status());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(client.status().left_out, 0);
    }
    let started = Instant::now();
    while one.explain("new").unwrap().unseen {
        assert!(
            started.elapsed() < PATIENCE,
            "nobody counts with the new item"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
        one.refresh().await.unwrap();
    }

    // The coordinator starts again: the tally has what it names.
    if let Some(tally) = &mut config.tally {
        tally.invitation = None;
    }
    let (_coordinator, addr) = taken_over(&world, coordinator, config).await;
    drop(people);
    let client = Client::open(world.client_folder(3), options(addr)).unwrap();
    until_tables_have(&client, ITEMS as usize + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_are_no_version_are_refused() {
    let world = World::new(2);
    let (_coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let AdminReply::Catalogue(page) = op.ask(AdminRequest::Catalogue { from: 0 }).await.unwrap()
    else {
        panic!("the catalogue")
    };
    let mut entry = page.entries[0].clone();
    entry.title = Some("Other".into());
    let change = |version, place| lethe_proto::catalogue::CatalogueChange {
        version,
        place,
        entry: entry.clone(),
    };
    let digest = |changes: &[_]| {
        let version = 2;
        lethe_proto::catalogue::version_digest(&page.digest, version, changes)
    };
    let good = vec![change(2, 0)];
    let ask = |before, at, changes: &Vec<_>, ends| AdminRequest::CatalogueChange {
        before,
        at,
        changes: changes.clone(),
        ends: Some(ends),
    };
    let other = lethe_proto::ids::Digest([7; 32]);
    let wrong = [
        ask(page.digest, 1, &good, digest(&good)),
        ask(page.digest, 0, &good, other),
        ask(other, 0, &good, digest(&good)),
        ask(page.digest, 0, &vec![change(3, 0)], digest(&good)),
        ask(page.digest, 0, &vec![change(2, 1)], digest(&good)),
        ask(page.digest, 0, &vec![], digest(&[])),
    ];
    for (at, request) in wrong.into_iter().enumerate() {
        assert!(op.ask(request).await.is_err(), "{at}");
    }
    assert_eq!(status(&op).await.versions.len(), 1);
    let applied = op
        .ask(ask(page.digest, 0, &good, digest(&good)))
        .await
        .unwrap();
    assert_eq!(applied, AdminReply::CatalogueApplied { version: 2 });
    // The same once more changes another version.
    assert!(
        op.ask(ask(page.digest, 0, &good, digest(&good)))
            .await
            .is_err()
    );
    assert_eq!(status(&op).await.versions.len(), 2);
}
