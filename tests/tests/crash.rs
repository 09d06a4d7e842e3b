//! SIGKILL of the coordinator in the middle of a round.
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lethe_proto::ids::Digest;
use lethe_tests::world::{Operator, PATIENCE, World};

fn spawn(world: &World, listen: &str) -> (Child, SocketAddr) {
    let mut config = world.config("cohort = 5\nrounds = 3\n");
    config.listen = listen.parse().unwrap();
    let path = world.dir.path().join("server.toml");
    std::fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
    let address = world.dir.path().join("server/address");
    let _ = std::fs::remove_file(&address);
    let child =
        Command::new(env!("CARGO_BIN_EXE_coordinator-process")).arg(&path).stdin(Stdio::piped()).spawn().unwrap();
    (child, wait_for_address(&address))
}

fn wait_for_address(path: &Path) -> SocketAddr {
    let started = Instant::now();
    loop {
        if let Some(addr) = std::fs::read_to_string(path).ok().and_then(|t| t.parse().ok()) {
            return addr;
        }
        assert!(started.elapsed() < PATIENCE, "the coordinator did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn done(s: &lethe_proto::admin::CoordinatorStatus) -> u32 {
    s.shards.iter().map(|k| k.rounds.0).sum()
}

async fn finish(op: &Operator) -> Vec<Digest> {
    op.wait_for("a release", |s| s.release > 0).await.shards.iter().map(|s| s.adapter).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_round_it_goes_on_and_ends_with_the_same_bytes() {
    let quiet = World::new(8);
    let (mut child, addr) = spawn(&quiet, "127.0.0.1:0");
    let op = quiet.operator(addr).await;
    let fleet = quiet.fleet(addr, &op).await;
    let want = finish(&op).await;
    fleet.abort();
    child.kill().unwrap();
    child.wait().unwrap();

    let world = World::new(8);
    let (mut child, addr) = spawn(&world, "127.0.0.1:0");
    let mut op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    for kill in 0..3 {
        let s = op.wait_for("some rounds", |s| done(s) > kill * 3).await;
        child.kill().unwrap(); // SIGKILL: nothing is flushed or closed.
        child.wait().unwrap();
        // The same address, so that the clients find it again by themselves.
        (child, _) = spawn(&world, &addr.to_string());
        op = op.reconnect(addr).await;
        assert!(done(&op.status().await) >= done(&s), "a completed round was lost");
    }
    assert_eq!(finish(&op).await, want, "interrupted and uninterrupted training end alike");
    fleet.abort();
    child.kill().unwrap();
    child.wait().unwrap();
}
