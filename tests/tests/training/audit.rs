//! A third party trains a shard again: from the bundle, with the exports of those who agree, on a
//! coordinator of its own.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;

use lethe_client::{Client, Cutoffs, TrainingData, TrainingEvent};
use lethe_coordinator::config::ServerConfig;
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::ids::ShardId;
use lethe_receipt::audit::Bundle;
use lethe_receipt::note::VerifierKey;
use lethe_tests::party;
use lethe_tests::world::{Fleet, World, recipe};

/// Trains the bundle's shard from these exports; what came out, and what should have.
async fn train(
    world: &World,
    name: &str,
    bundle: &Bundle,
    people: &[TrainingData],
) -> (String, String) {
    train_with(world, world.config(""), name, bundle, people).await
}

async fn train_with(
    world: &World,
    mut config: ServerConfig,
    name: &str,
    bundle: &Bundle,
    people: &[TrainingData],
) -> (String, String) {
    config.data_dir = world.dir.path().join(name);
    let (coordinator, addr) = world.start_with(config.clone()).await;
    coordinator.audit(bundle).unwrap();
    let op = world.operator_at(&config.data_dir, addr).await;
    let mut fleet = Fleet::default();
    for (i, person) in people.iter().enumerate() {
        let alias = format!("member-{i:06}");
        let n = person.events.len();
        let options = world
            .options(addr)
            .cutoffs(Cutoffs {
                train: n,
                validate: n,
            })
            .invitation(op.invite_named(&alias).await);
        let client = Client::open(world.dir.path().join(format!("{name}-{i}")), options).unwrap();
        let thumbs = world.catalogue();
        let event = |e: &TrainingEvent| thumbs.thumb(&e.item, e.liked, e.time);
        client.record_all(person.events.iter().map(event)).unwrap();
        client.join().await.unwrap();
        fleet.add(client);
    }
    let (replayed, expected) = op
        .replay(ShardId(bundle.training.training.shard))
        .await
        .hashes
        .unwrap();
    fleet.abort();
    coordinator.shutdown();
    (replayed.hex(), expected.hex())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_trained_again_by_a_third_party() {
    let world = World::new(8);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    op.forget(3, &[]).await;
    let status = op.trained().await;
    let key = VerifierKey::parse(&status.log_key).unwrap();
    let shard = ShardId(0);
    let AdminReply::Audit(text) = op.ask(AdminRequest::Audit { shard }).await.unwrap() else {
        panic!()
    };
    assert!(!text.contains("person-"), "it names nobody");
    let bundle = Bundle::verify(text.as_bytes(), &key).unwrap();
    assert_eq!(bundle.adapter, status.shards[0].adapter.hex());
    fleet.abort();

    let exports: BTreeMap<String, TrainingData> = (0..8)
        .filter(|s| *s != 3)
        .map(|s| TrainingData::of_folder(&world.client_folder(s), None).unwrap())
        .map(|d| (d.commitment().unwrap().hex(), d))
        .collect();
    let mut people: Vec<TrainingData> = bundle
        .members
        .iter()
        .map(|m| exports[&m.data].clone())
        .collect();
    let (here, theirs) = train(&world, "auditor", &bundle, &people).await;
    assert_eq!(
        (&here, &theirs),
        (&bundle.adapter, &bundle.adapter),
        "byte for byte"
    );

    // Somebody's data was different from what was committed to: the commitment says so, and so does
    // the result.
    people[0].events.iter_mut().for_each(|e| e.liked = !e.liked);
    assert_ne!(
        people[0].commitment().unwrap().hex(),
        bundle.members[0].data
    );
    let (here, theirs) = train(&world, "deceived", &bundle, &people).await;
    assert_ne!(here, theirs);
}

/// The auditor is coordinator and tally.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_of_masked_updates_is_trained_again_by_a_third_party() {
    let masked = "aggregation = \"fedavg\"\nclip_factor = 0.0\nshards = 1\ncohort = 8\nquorum = 3\n\
                  split = { k_in = 3, k_out = 1 }\nupdates = \"masked\"\n";
    let world = World::with_recipe(8, masked);
    let beside = |folder: &str, people: u32| {
        let mut tally = party::config(&world);
        tally.data_dir = world.dir.path().join(folder);
        tally.evidence_dir = None;
        match people {
            0 => tally.lists.cells = lethe_tally::settings::CellsConfig::Off,
            n => tally.lists.cell = n,
        }
        tally.lists.changed = 2;
        let (at, invitation) = party::serve_here(&tally);
        let mut config = party::of_coordinator(&world, at, &invitation);
        config.recipe = recipe(masked);
        config
    };
    let (_c, addr) = world.start_with(beside("tally", 3)).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    let status = op.trained().await;
    let key = VerifierKey::parse(&status.log_key).unwrap();
    let shard = ShardId(0);
    let AdminReply::Audit(text) = op.ask(AdminRequest::Audit { shard }).await.unwrap() else {
        panic!()
    };
    let bundle = Bundle::verify(text.as_bytes(), &key).unwrap();
    fleet.abort();
    let exports: BTreeMap<String, TrainingData> = (0..8)
        .map(|s| TrainingData::of_folder(&world.client_folder(s), None).unwrap())
        .map(|d| (d.commitment().unwrap().hex(), d))
        .collect();
    let members = bundle.members.iter();
    let people: Vec<TrainingData> = members.map(|m| exports[&m.data].clone()).collect();
    let config = beside("tally-of-auditor", 0);
    let (here, theirs) = train_with(&world, config, "auditor", &bundle, &people).await;
    assert_eq!((&here, &theirs), (&bundle.adapter, &bundle.adapter));
}
