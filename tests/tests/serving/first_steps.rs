//! What an operator reads on the first day: before the first epoch, with nothing done yet, with a
//! device that is away, with a typing error.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use lethe_client::Client;
use lethe_coordinator::Coordinator;
use lethe_tests::desk::{Desk, Said};
use lethe_tests::tiny;
use lethe_tests::world::World;

const ADMIN: &str = env!("CARGO_BIN_EXE_admin-process");

/// The first operator, enrolled with the text of the first invitation.
async fn first_day(erase_wait_s: u64) -> (World, Coordinator, SocketAddr, Desk) {
    let world = World::new(6);
    let mut config = world.config("");
    config.erase_wait_s = erase_wait_s;
    let (coordinator, addr) = world.start_with(config).await;
    let desk = Desk::new(ADMIN, &world.dir.path().join("desk"));
    let text = std::fs::read_to_string(world.dir.path().join("server/admin-invitation")).unwrap();
    let said = desk.enrol(addr, text.trim());
    assert_eq!(said.code, 0, "{}", said.err);
    (world, coordinator, addr, desk)
}

fn invited(desk: &Desk, args: &[&str]) -> String {
    let said = desk.run(&[&["invite"], args].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    said.out.trim().to_owned()
}

/// Somebody joins, and goes away.
async fn joins_and_leaves(world: &World, addr: SocketAddr, desk: &Desk, subject: u32) {
    let invitation = invited(desk, &["--subject", &format!("person-{subject}")]);
    let options = world.options(addr).invitation(invitation);
    let client = Client::open(world.client_folder(subject), options).unwrap();
    client.record_all(tiny::history(subject)).unwrap();
    client.join().await.unwrap();
    client.close().await;
}

fn refused(said: &Said, words: &str) {
    assert_eq!(said.code, 1, "{}", said.out);
    assert!(said.err.contains(words), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_is_a_text_or_a_file_and_a_wrong_one_costs_nothing() {
    let (_world, _c, addr, desk) = first_day(600).await;
    let kept = std::fs::read(desk.home.join("identity.json")).unwrap();
    let again = |given: &str| {
        let server = addr.to_string();
        let args = ["enrol", "--server", &server, "--invitation", given];
        desk.run(&[&args[..], &["--replace"]].concat())
    };
    refused(&again("lethe1:typo"), "does not parse");
    refused(&again("leth1:typo"), "its text begins with lethe1:");
    refused(
        &again(&desk.file("wrong", "no invitation")),
        "does not parse",
    );
    let identity = std::fs::read(desk.home.join("identity.json")).unwrap();
    assert_eq!(identity, kept);
    assert_eq!(desk.run(&["status"]).code, 0);
    let good = invited(&desk, &["--admin"]);
    let said = again(&desk.file("good", &good));
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(desk.run(&["status"]).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_list_of_actions_says_what_actions_are() {
    let (_world, _c, _addr, desk) = first_day(600).await;
    let said = desk.run(&["actions"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.starts_with("no actions yet."), "{}", said.out);
    assert!(said.out.contains("No proposal waits"), "{}", said.out);
    assert_eq!(desk.run(&["--json", "actions"]).out.trim(), "[]");
    invited(&desk, &["--admin"]);
    let said = desk.run(&["actions"]);
    assert!(said.out.contains("invite an operator"), "{}", said.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_says_how_much_it_needs() {
    let (_world, _c, _addr, desk) = first_day(600).await;
    let short = desk.run(&["scan", "--subject", "349"]);
    refused(&short, "expected at least 4 bytes");
    refused(&short, "lineage");
    let help = desk.run(&["scan", "--help"]);
    assert!(help.out.contains("at least 4 bytes"), "{}", help.out);
    assert_eq!(desk.run(&["scan", "--subject", "3490"]).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_device_sees_the_plan_at_once_and_what_is_waited_for() {
    let (world, _c, addr, desk) = first_day(4).await;
    joins_and_leaves(&world, addr, &desk, 0).await;
    refused(
        &desk.run(&["receipt", "--deletion", "1"]),
        "there is no deletion 1",
    );
    let item = tiny::history(0)[3].item.clone();
    let mut command = Command::new(ADMIN);
    command.arg("--home").arg(&desk.home);
    command.args(["forget", "--subject", "person-0", "--wait", "--item", &item]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut plan = String::new();
    out.read_line(&mut plan).unwrap();
    assert!(plan.starts_with("forget"), "{plan}");
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    // The epoch has not begun, and the device is away.
    let early = desk.run(&["receipt", "--deletion", "1"]);
    refused(&early, "deletion 1 has no receipt yet");
    refused(&early, "device(s) that have to erase");
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let mut waited = String::new();
    let mut err = child.stderr.take().unwrap();
    err.read_to_string(&mut waited).unwrap();
    assert!(child.wait().unwrap().success(), "{waited}");
    assert!(
        waited.contains("1 device(s) that have to erase"),
        "{waited}"
    );
    assert!(waited.contains("s more"), "{waited}");
    assert!(
        waited.contains("lethe-admin status --deletion 1"),
        "{waited}"
    );
    assert_eq!(waited.lines().count(), 1, "{waited}");
    assert!(
        rest.contains("deletion 1 (") && rest.contains("done"),
        "{rest}"
    );
    assert_eq!(rest.matches("\ncost: ").count(), 1, "one plan: {rest}");
    assert_eq!(desk.run(&["receipt", "--deletion", "1"]).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_before_the_first_epoch() {
    let (world, _c, addr, desk) = first_day(600).await;
    joins_and_leaves(&world, addr, &desk, 1).await;
    let said = desk.run(&["forget", "--subject", "person-1", "--wait"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("done"), "{}", said.out);
    let said = desk.run(&["receipt", "--deletion", "1"]);
    assert_eq!(said.code, 0, "{}", said.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_16_host_names_work_and_a_moved_server_is_given_to_any_command() {
    let world = World::new(6);
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_coordinator-process"));
    let log = world.dir.path().join("log");
    let (mut child, addr) = world.spawn(binary, &world.config(""), &log);
    let desk = Desk::new(ADMIN, &world.dir.path().join("desk"));
    let text = std::fs::read_to_string(world.dir.path().join("server/admin-invitation")).unwrap();
    let without = desk.run(&["enrol", "--invitation", text.trim()]);
    assert_eq!(without.code, 2, "{}", without.err);
    assert!(
        without.err.contains("--server HOST:PORT"),
        "{}",
        without.err
    );
    let named = format!("localhost:{}", addr.port());
    let said = desk.run(&["enrol", "--server", &named, "--invitation", text.trim()]);
    assert_eq!(said.code, 0, "{}", said.err);
    let invitation = invited(&desk, &["--subject", "person-0"]);
    let named: lethe_client::Place = named.parse().unwrap();
    let options = world.options(addr).server(named).invitation(invitation);
    let client = Client::open(world.client_folder(0), options).unwrap();
    client.record_all(tiny::history(0)).unwrap();
    client.join().await.unwrap();
    client.close().await;

    // The server moves to another port: nothing else of it changes.
    child.kill().unwrap();
    child.wait().unwrap();
    let (mut child, moved) = world.spawn(binary, &world.config(""), &log);
    assert_ne!(moved, addr);
    let server = format!("localhost:{}", moved.port());
    assert_eq!(desk.run(&["--server", &server, "status"]).code, 0);
    let remembered = desk.run(&["status"]);
    assert_eq!(remembered.code, 0, "{}", remembered.err);
    let again = desk.run(&["enrol", "--server", &server, "--invitation", text.trim()]);
    refused(&again, "--server localhost:");
    let wrong = desk.run(&["status", "--server", "nobody.invalid:1"]);
    refused(&wrong, "nobody.invalid");
    assert_eq!(
        desk.run(&["status"]).code,
        0,
        "a wrong place is not remembered"
    );
    let client = Client::open(world.client_folder(0), world.options(moved)).unwrap();
    client.connect().await.unwrap();
    client.close().await;
    child.kill().unwrap();
    child.wait().unwrap();
}
