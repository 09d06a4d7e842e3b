//! SIGKILL of the coordinator in the middle of a round.
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lethe_client::Done;
use lethe_proto::ids::Digest;
use lethe_tests::world::{Operator, PATIENCE, World};

const RECIPE: &str = "cohort = 5\nrounds = 3\n";

fn spawn(world: &World, listen: &str, recipe: &str) -> (Child, SocketAddr) {
    let mut config = world.config(recipe);
    config.listen = listen.parse().unwrap();
    let path = world.dir.path().join("server.toml");
    std::fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
    let address = world.dir.path().join("server/address");
    let _ = std::fs::remove_file(&address);
    let child = Command::new(env!("CARGO_BIN_EXE_coordinator-process"))
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    (child, wait_for_address(&address))
}

fn wait_for_address(path: &Path) -> SocketAddr {
    let started = Instant::now();
    loop {
        if let Some(addr) = std::fs::read_to_string(path)
            .ok()
            .and_then(|t| t.parse().ok())
        {
            return addr;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "the coordinator did not start"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn done(s: &lethe_proto::admin::CoordinatorStatus) -> u32 {
    s.shards.iter().map(|k| k.rounds.0).sum()
}

async fn finish(op: &Operator) -> Vec<Digest> {
    op.wait_for("a release", |s| s.release > 0)
        .await
        .shards
        .iter()
        .map(|s| s.adapter)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_round_it_goes_on_and_ends_with_the_same_bytes() {
    let quiet = World::new(8);
    let (mut child, addr) = spawn(&quiet, "127.0.0.1:0", RECIPE);
    let op = quiet.operator(addr).await;
    let fleet = quiet.fleet(addr, &op).await;
    let want = finish(&op).await;
    fleet.abort();
    child.kill().unwrap();
    child.wait().unwrap();

    let world = World::new(8);
    let (mut child, addr) = spawn(&world, "127.0.0.1:0", RECIPE);
    let mut op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    for kill in 0..3 {
        let s = op.wait_for("some rounds", |s| done(s) > kill * 3).await;
        child.kill().unwrap(); // SIGKILL: nothing is flushed or closed.
        child.wait().unwrap();
        // The same address, so that the clients find it again by themselves.
        (child, _) = spawn(&world, &addr.to_string(), RECIPE);
        op = op.reconnect(addr).await;
        assert!(
            done(&op.status().await) >= done(&s),
            "a completed round was lost"
        );
    }
    assert_eq!(
        finish(&op).await,
        want,
        "interrupted and uninterrupted training end alike"
    );
    fleet.abort();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_update_of_a_first_round_survives_a_kill() {
    let recipe = "shards = 1\nslices = 1\nrounds = 1\ncohort = 3\n";
    let world = World::new(3);
    let (mut child, addr) = spawn(&world, "127.0.0.1:0", recipe);
    let op = world.operator(addr).await;
    let mut clients = vec![];
    for s in 0..3 {
        let c = world.client(addr, &op, s).await;
        c.join().await.unwrap();
        clients.push(c);
    }
    assert_eq!(
        clients[0].step().await.unwrap(),
        Done::Trained,
        "its update is acknowledged"
    );
    assert_eq!(
        done(&op.status().await),
        0,
        "the round is open: the others have not answered"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    (child, _) = spawn(&world, &addr.to_string(), recipe);
    let op = op.reconnect(addr).await;
    // The first call after the loss may still go to the dead connection.
    let mut again = Err(());
    for _ in 0..3 {
        again = tokio::time::timeout(Duration::from_secs(2), clients[0].step())
            .await
            .map_err(|_| ());
        if !matches!(again, Ok(Err(_))) {
            break;
        }
    }
    assert!(
        again.is_err(),
        "not asked for the same round again, but {again:?}"
    );
    for c in &clients[1..] {
        while c.step().await.ok() != Some(Done::Trained) {}
    }
    op.wait_for("a release", |s| s.release > 0).await;
    child.kill().unwrap();
    child.wait().unwrap();
}
