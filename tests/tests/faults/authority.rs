//! The authority is exchanged under devices and operators that trust it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;

use lethe_client::Client;
use lethe_coordinator::config::ServerConfig;
use lethe_coordinator::rotation::{self, Which};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::codec;
use lethe_store::keys::{Keys, LONGEST};
use lethe_tests::desk::Desk;
use lethe_tests::tiny;
use lethe_tests::world::{Operator, World, copy_folder, holds, kill, put_back};
use lethe_transport::TransportError;
use lethe_transport::client::Connection;
use lethe_transport::identity::{Invitation, Past};

const ADMIN: &str = env!("CARGO_BIN_EXE_admin-process");

fn start(world: &World, config: &ServerConfig) -> (std::process::Child, SocketAddr) {
    let binary = Path::new(env!("CARGO_BIN_EXE_coordinator-process"));
    world.spawn(binary, config, &world.dir.path().join("log"))
}

/// `lethe-server keys rotate authority`.
fn rotate(config: &ServerConfig) {
    let said = rotation::ask(&config.data_dir, Which::Authority).unwrap();
    assert!(said.contains("a new authority signs"), "{said}");
}

fn keys(config: &ServerConfig) -> Keys {
    Keys::open(&config.keys, &config.data_dir).unwrap()
}

/// What was enrolled once works, with the history that it had.
async fn works(world: &World, addr: SocketAddr, op: &Operator, subject: u32) {
    let device = world.client(addr, op, subject).await;
    assert_eq!(device.history(), tiny::history(subject));
    device.close().await;
}

fn status(desk: &Desk, addr: SocketAddr) {
    let server = addr.to_string();
    let said = desk.run(&["--server", &server, "status"]);
    assert_eq!(said.code, 0, "{}", said.err);
}

async fn actions(op: &Operator) -> usize {
    let AdminReply::Actions(all) = op.ask(AdminRequest::Actions).await.unwrap() else {
        panic!("no actions");
    };
    let exchanges = all.iter().filter(|a| a.what.contains("authority"));
    exchanges.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn h1_devices_and_operators_follow_when_the_authority_is_exchanged() {
    let world = World::new(3);
    let config = world.config_with_lists("");
    let (mut child, addr) = start(&world, &config);
    let op = world.operator(addr).await;
    let desk = Desk::enrolled(ADMIN, &world, &op, addr, "desk").await;
    for subject in 0..2 {
        works(&world, addr, &op, subject).await;
    }
    let early = op.invite(2).await;
    let again = op.invite(0).await;
    let before = keys(&config).secret("authority-1").unwrap().unwrap();
    // The private key, as it was stored: the first field.
    assert!(before.len() > 200 && holds(&config.keys_dir(), &before[..100]));

    rotate(&config);
    assert!(
        !holds(&config.keys_dir(), &before[..100]),
        "it is destroyed"
    );
    assert_eq!(actions(&op).await, 1, "over a connection that is open");
    works(&world, addr, &op, 0).await;
    status(&desk, addr);
    rotate(&config);
    assert_eq!(keys(&config).numbers("authority").unwrap(), [3]);
    assert_eq!(actions(&op).await, 2);
    // One that has followed once, and a phone that was offline all the time.
    works(&world, addr, &op, 0).await;
    works(&world, addr, &op, 1).await;
    status(&desk, addr);
    op.try_reconnect(addr).await.unwrap();
    // Invitations from before the exchanges let in whom they were for, new devices and known ones.
    for (subject, text) in [(2, early), (0, again)] {
        let options = world.options(addr).invitation(text);
        let device = Client::open(world.client_folder(subject), options).unwrap();
        device.connect().await.unwrap();
        if subject == 2 {
            device.record_all(tiny::history(2)).unwrap();
        }
        device.close().await;
    }
    let text = op.invite(1).await;
    let named = Invitation::parse(&text).unwrap().authority().unwrap();
    kill(&mut child);

    // Without anything that leads to the present authority: they trust it by itself.
    let keys = keys(&config);
    assert_eq!(keys.numbers("authority-past").unwrap(), [1, 2]);
    for number in [1, 2] {
        let name = format!("authority-past-{number}");
        let kept = keys.secret(&name).unwrap().unwrap();
        let mut past: Past = codec::from_bytes(&kept, LONGEST).unwrap();
        past.cross = past.certificate.clone();
        keys.keep(&name, &codec::to_bytes(&past).unwrap()).unwrap();
    }
    let (mut child, addr) = start(&world, &config);
    let stale = op.try_reconnect(addr).await.unwrap_err();
    assert!(matches!(stale, TransportError::Connect { .. }), "{stale}");
    Connection::open(addr, &named, None).await.unwrap();
    status(&desk, addr);
    for subject in 0..3 {
        works(&world, addr, &op, subject).await;
    }
    kill(&mut child);
}

#[tokio::test(flavor = "multi_thread")]
async fn h1_a_data_folder_from_before_an_exchange_works_with_the_authority_of_now() {
    let world = World::new(2);
    let config = world.config("");
    let (mut child, addr) = start(&world, &config);
    let op = world.operator(addr).await;
    works(&world, addr, &op, 0).await;
    kill(&mut child);
    let backup = world.dir.path().join("backup");
    copy_folder(&config.data_dir, &backup);
    let (mut child, addr) = start(&world, &config);
    rotate(&config);
    works(&world, addr, &op, 0).await;
    kill(&mut child);
    put_back(&backup, &config.data_dir);
    let (mut child, addr) = start(&world, &config);
    assert_eq!(keys(&config).numbers("authority").unwrap(), [2]);
    works(&world, addr, &op, 0).await;
    op.try_reconnect(addr).await.unwrap();
    kill(&mut child);
}
