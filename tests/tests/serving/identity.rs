//! The life of certificates: renewed while valid, replaced when expired, withdrawn when asked for.
//! Real clocks: the certificates here live for seconds.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use lethe_client::{Client, ClientError};
use lethe_coordinator::process::{Recovery, recover_admin};
use lethe_proto::admin::{AdminReply, AdminRequest, OperatorState};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::message::Refusal;
use lethe_tests::desk::Desk;
use lethe_tests::tiny;
use lethe_tests::world::{Operator, World, copy_folder, id};
use lethe_transport::TransportError;

const ADMIN: &str = env!("CARGO_BIN_EXE_admin-process");

fn seconds(n: f64) -> f64 {
    n / 86_400.0
}

async fn sleep(s: f64) {
    tokio::time::sleep(Duration::from_secs_f64(s)).await;
}

async fn operators(op: &Operator) -> Vec<OperatorState> {
    match op.ask(AdminRequest::Operators).await.unwrap() {
        AdminReply::Operators(all) => all,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_renews_while_its_certificate_is_valid() {
    let world = World::new(6);
    let mut config = world.config("");
    config.certificate_days = seconds(9.0);
    let (_c, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let first = world.client(addr, &op, 1).await;
    let history = first.history();
    first.close().await;
    let old = world.dir.path().join("copy");
    copy_folder(&world.client_folder(1), &old);
    // In the last third: the device connects, and has a new certificate from then on.
    sleep(7.0).await;
    world.client(addr, &op, 1).await.close().await;
    // Long after the first one has expired.
    sleep(4.0).await;
    let again = world.client(addr, &op, 1).await;
    assert_eq!(again.history(), history);
    again.close().await;
    // What was renewed is good for nobody who kept a copy of it.
    let copy = Client::open(&old, world.options(addr)).unwrap();
    assert!(copy.connect().await.is_err(), "the old certificate");
    assert_eq!(copy.history(), history, "it has its history all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_replaces_the_old_one_when_it_is_used() {
    let world = World::new(6);
    let (c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let before = operators(&op).await;
    assert_eq!(before.len(), 1);
    assert!(before[0].you && before[0].expires > before[0].since);
    // The answer is lost twice: the third renewal replaces those that were never used.
    let mut renewed = None;
    for _ in 0..3 {
        renewed = Some(op.renewed().await);
    }
    let renewed = renewed.unwrap().connect(addr).await;
    let all = operators(&renewed).await;
    assert_eq!(all.len(), 1, "one operator, whatever they have renewed");
    assert_eq!(all[0].fingerprint, before[0].fingerprint);
    // The old certificate's connection is ended, and it opens none any more.
    sleep(0.5).await;
    assert!(op.ask(AdminRequest::Status).await.is_err());
    assert!(op.try_reconnect(addr).await.is_err());
    drop(c);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_device_comes_back_with_a_fresh_invitation_and_its_history() {
    let world = World::new(6);
    let mut config = world.config("");
    config.certificate_days = seconds(3.0);
    let (_c, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let fresh = op.invite(1).await;
    let other = op.invite(2).await;
    let first = world.client(addr, &op, 1).await;
    first.close().await;
    let build = async |invitation: Option<String>| {
        let mut options = world.options(addr);
        if let Some(text) = invitation {
            options = options.invitation(text);
        }
        let client = Client::open(world.client_folder(1), options).unwrap();
        client.connect().await.map(|()| client)
    };
    sleep(5.0).await;
    let expired = build(None).await.unwrap_err();
    let ClientError::CertificateExpired(TransportError::Expired { .. }) = &expired else {
        panic!("{expired}")
    };
    assert!(!expired.is_offline());
    assert!(
        expired.to_string().contains("fresh invitation"),
        "{expired}"
    );
    // Somebody else's invitation is not spent on this device's history.
    let refused = build(Some(other.clone())).await.unwrap_err();
    assert!(
        matches!(
            refused,
            ClientError::NotInvited(TransportError::Refused {
                code: Refusal::Invalid,
                ..
            })
        ),
        "{refused}"
    );
    let back = build(Some(fresh.clone())).await.unwrap();
    assert_eq!(back.history(), tiny::history(1));
    back.close().await;
    // An app that hands over the same invitation at every start.
    build(Some(fresh)).await.unwrap().close().await;
    let options = world.options(addr).invitation(other);
    let second = Client::open(world.dir.path().join("second"), options).unwrap();
    second.connect().await.unwrap();
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_is_locked_out_gets_back_in_from_the_servers_machine() {
    let world = World::new(6);
    let mut config = world.config("");
    config.certificate_days = seconds(3.0);
    let log = world.dir.path().join("log");
    let program = env!("CARGO_BIN_EXE_coordinator-process");
    let (mut server, addr) = world.spawn(program.as_ref(), &config, &log);
    let invitation = config.data_dir.join("admin-invitation");
    let invitation = invitation.to_string_lossy();
    let desk = Desk::new(ADMIN, &world.dir.path().join("desk"));
    assert_eq!(desk.enrol(addr, &invitation).code, 0);
    let again = desk.enrol(addr, &invitation);
    assert!(
        again.code != 0 && again.err.contains("--replace"),
        "{}",
        again.err
    );
    std::fs::write(desk.home.join("requests.json"), "{}").unwrap();
    sleep(5.0).await;
    let locked = desk.run(&["status"]);
    assert_ne!(locked.code, 0);
    assert!(locked.err.contains("recover-admin"), "{}", locked.err);
    assert_ne!(desk.enrol(addr, &invitation).code, 0, "it was used");

    let file = world.dir.path().join("server.toml");
    let recovered = tokio::task::spawn_blocking(move || recover_admin(&file)).await;
    let Recovery::Invited(path) = recovered.unwrap().unwrap() else {
        panic!("the server did not answer")
    };
    let said = desk.enrol(addr, &path.to_string_lossy());
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(
        desk.home.join("requests.json").exists(),
        "the rest of the home stays"
    );
    let actions = desk.run(&["actions"]);
    assert!(
        actions.out.contains("from the server's machine"),
        "{}",
        actions.out
    );
    let listed = desk.run(&["operators"]);
    assert!(
        listed.out.contains("expired") && listed.out.contains("you"),
        "{}",
        listed.out
    );
    drop(server.stdin.take());
    server.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_are_listed_and_removed() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let one = world.operator(addr).await;
    let me = operators(&one).await[0].fingerprint;
    let remove = |fingerprint| AdminRequest::RemoveOperator { fingerprint };
    assert!(one.ask(remove(me)).await.is_err(), "nobody would be left");
    let two = one.colleague(addr).await;
    let all = operators(&one).await;
    assert_eq!(all.len(), 2);
    let other = all.iter().find(|o| !o.you).unwrap().fingerprint;

    // Where two have to agree, one cannot remove the other, nor agree twice by renewing.
    let policy = AdminRequest::Policy { approvals: Some(2) };
    one.ask(policy).await.unwrap();
    assert!(
        one.ask(remove(other)).await.is_err(),
        "one would be left of two"
    );
    let three = match one
        .ask(AdminRequest::Invite { subject: None })
        .await
        .unwrap()
    {
        AdminReply::Proposed(p) => match two.ask(approve(p.id)).await.unwrap() {
            AdminReply::Invited { token } => one.enrolled_with(addr, &token).await,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let AdminReply::Proposed(p) = one.ask(remove(other)).await.unwrap() else {
        panic!("others have to agree")
    };
    let renewed = one.renewed().await.connect(addr).await;
    assert!(
        renewed.ask(approve(p.id)).await.is_err(),
        "the same operator"
    );
    assert_eq!(three.ask(approve(p.id)).await.unwrap(), AdminReply::Done);
    sleep(0.5).await;
    assert!(two.ask(AdminRequest::Status).await.is_err(), "disconnected");
    assert!(
        two.try_reconnect(addr).await.is_err(),
        "and not known any more"
    );
    assert_eq!(operators(&renewed).await.len(), 2);
    let nobody = DeletionRequest::Erase { subject: id(99) };
    assert!(renewed.ask_for(vec![nobody]).await.is_err());
}

fn approve(proposal: u64) -> AdminRequest {
    AdminRequest::Approve { proposal }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_what_the_host_of_the_middle_layers_learns() {
    let world = World::new(6);
    let says = async |addr, op: &Operator, home: &str| {
        let desk = Desk::enrolled(ADMIN, &world, op, addr, home).await;
        let said = desk.run(&["status"]);
        assert_eq!(said.code, 0, "{}", said.err);
        let learns = "who runs the middle layers learns ";
        let line = said.out.lines().find_map(|l| l.strip_prefix(learns));
        line.expect("a line").to_owned()
    };
    let (coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let split = says(addr, &op, "desk").await;
    assert!(split.starts_with("every prompt"), "{split}");
    assert!(split.ends_with("from its gradient"), "{split}");
    coordinator.shutdown();
    let mut config = world.config("split = { k_in = 3, k_out = 1 }");
    config.data_dir = world.dir.path().join("local");
    let (coordinator, addr) = world.start_with(config.clone()).await;
    let op = world.operator_at(&config.data_dir, addr).await;
    let local = says(addr, &op, "other-desk").await;
    assert!(local.starts_with("nothing: all 4 layers"), "{local}");
    coordinator.shutdown();
}
