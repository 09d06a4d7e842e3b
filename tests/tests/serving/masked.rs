//! Rounds of masked updates: real clients, a coordinator, and a tally of its own, over real QUIC.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use lethe_client::{ClientError, Done};
use lethe_coordinator::{Coordinator, CoordinatorError};
use lethe_proto::admin::CoordinatorStatus;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::receipt::verify;
use lethe_tests::party;
use lethe_tests::world::{Fleet, Operator, World};

/// All layers are the device's.
const RECIPE: &str = "aggregation = \"fedavg\"\nclip_factor = 0.0\nshards = 1\n\
                      cohort = 12\nquorum = 3\n\
                      split = { k_in = 3, k_out = 1 }\n";

fn masked() -> String {
    format!("{RECIPE}updates = \"masked\"\n")
}

struct Parties {
    world: World,
    _coordinator: Coordinator,
    addr: SocketAddr,
    op: Operator,
}

/// A coordinator whose tally sums nobody's masks but those of three people or more.
async fn parties(people: u32, recipe: &str) -> Parties {
    let world = World::with_recipe(people, recipe);
    let mut tally = party::config(&world);
    tally.lists.cell = 3;
    tally.lists.changed = 2;
    let (at, invitation) = party::serve_here(&tally);
    let mut config = party::of_coordinator(&world, at, &invitation);
    config.recipe = lethe_tests::world::recipe(recipe);
    let (coordinator, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    Parties {
        world,
        _coordinator: coordinator,
        addr,
        op,
    }
}

/// Waits for the training, and not for who would have to measure it.
async fn done(op: &Operator) -> CoordinatorStatus {
    op.wait_for("training", |s| s.shards.iter().all(|k| k.done))
        .await
}

fn losses(status: &CoordinatorStatus) -> Vec<f32> {
    let rounds = status.shards[0].losses.iter();
    rounds.map(|l| l.expect("somebody took part")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_are_those_of_fedavg_and_a_deletion_is_exact() {
    let people = 12;
    let parties = parties(people, &masked()).await;
    let fleet = parties.world.fleet(parties.addr, &parties.op).await;
    let status = parties.op.trained().await;
    let clear = {
        let world = World::with_recipe(people, RECIPE);
        let (_c, addr) = world.start(RECIPE).await;
        let op = world.operator(addr).await;
        let fleet = world.fleet(addr, &op).await;
        let status = op.trained().await;
        fleet.abort();
        status
    };
    let (own, other) = (losses(&status), losses(&clear));
    assert_eq!(own.len(), 4);
    assert_ne!(own[0], own[3], "it trains");
    for (a, b) in own.iter().zip(&other) {
        assert!((a - b).abs() < 1e-4, "{own:?}, in clear {other:?}");
    }
    parties.op.replays_equal().await;

    let before = status.shards[0].adapter;
    let done = parties.op.forget(3, &[]).await;
    assert!(done.seconds_until_exact.unwrap() < 1.0, "{done:?}");
    let after = parties.op.trained().await;
    assert_ne!(after.shards[0].adapter, before);
    let rounds = &after.shards[0].losses;
    assert!(
        rounds.iter().all(Option::is_some),
        "who is left counts again: {rounds:?}"
    );
    parties.op.replays_equal().await;
    let key = VerifierKey::parse(&after.log_key).unwrap();
    verify(&parties.op.receipt(done.id).await, &key).unwrap();
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_not_in_the_sum_of_before_is_left_out_and_the_shard_goes_on() {
    let recipe = masked() + "deadline_s = 2\n";
    let parties = parties(9, &recipe).await;
    let Parties {
        world, addr, op, ..
    } = &parties;
    let mut fleet = Fleet::default();
    let mut away = None;
    for subject in 0..9 {
        let client = world.client(*addr, op, subject).await;
        client.join().await.unwrap();
        match subject {
            5 => away = Some(client),
            _ => fleet.add(client),
        }
    }
    let first = done(op).await;
    // Back when all of it is trained again without another.
    fleet.add(away.take().unwrap());
    op.forget(3, &[]).await;
    let second = done(op).await;
    assert_ne!(second.shards[0].adapter, first.shards[0].adapter);
    assert!(second.shards[0].losses.iter().all(Option::is_some));
    op.replays_equal().await;
    // Somebody who counted is away now: two sums would tell their update. No round counts anybody.
    let mut clients = fleet.stop_but(3).await;
    drop(clients.remove(0));
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    op.forget(2, &[]).await;
    let third = done(op).await;
    assert!(
        third.shards[0].losses.iter().any(Option::is_none),
        "{third:?}"
    );
    op.replays_equal().await;
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn masks_need_all_layers_on_the_device_and_a_tally_of_its_own() {
    let world = World::with_recipe(3, RECIPE);
    let mut config = world.config("");
    config.recipe = lethe_tests::world::recipe(&masked());
    let e = Coordinator::open(config.clone()).unwrap_err();
    assert!(matches!(e, CoordinatorError::MasksNeedTally { .. }), "{e}");
    let text = masked().replace("k_in = 3", "k_in = 1");
    config.recipe = lethe_tests::world::recipe(&text);
    let e = Coordinator::open(config).unwrap_err().to_string();
    assert!(e.contains("1 + 1 of 4 layers"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_below_what_the_tally_sums_trains_nobody() {
    let recipe = masked().replace("quorum = 3", "quorum = 2");
    let parties = parties(4, &recipe).await;
    let fleet = parties.world.fleet(parties.addr, &parties.op).await;
    // A round closes, and is not added up.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let status = parties.op.status().await;
    let devices = status.connections;
    assert!(status.started && devices >= 4, "{status:?}");
    assert_eq!(status.shards[0].rounds.0, 0, "{status:?}");
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_sends_masked_updates_only_declines_others() {
    let world = World::new(1);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let options = world.options(addr).masked_updates_only(true);
    let client = world.joined(&op, 0, options).await;
    let step = tokio::time::timeout(Duration::from_secs(60), client.step());
    let done = step.await.unwrap().unwrap();
    assert!(matches!(done, Done::Declined(_)), "{done:?}");
    let e = ClientError::WouldUpdateInClear {
        got: lethe_proto::packed::PackedFormat::F32,
    };
    assert!(e.to_string().contains("takes part in no round"));
}
