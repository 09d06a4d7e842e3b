//! What holds for requests and receipts of adapters holds for sums, cells and the tally: nothing
//! irreversible on a guess, and a receipt that says what was found.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;

use lethe_coordinator::Coordinator;
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::deletion::DeletionRequest;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::receipt::{Receipt, verify};
use lethe_receipt::report;
use lethe_tally::settings::CellsConfig;
use lethe_tests::desk::Desk;
use lethe_tests::lists::Lister;
use lethe_tests::party;
use lethe_tests::world::{Operator, World, id};

const ADMIN: &str = env!("CARGO_BIN_EXE_admin-process");
const PEOPLE: u32 = 4;

/// People who contribute to sums, held by the coordinator or by a tally of its own.
struct Listing {
    world: World,
    _coordinator: Coordinator,
    addr: SocketAddr,
    op: Operator,
    _devices: Vec<Lister>,
}

async fn listing(apart: bool) -> Listing {
    let world = World::new(1_000);
    let mut config = match apart {
        false => world.config_without_cells(),
        true => {
            let mut tally = party::config(&world);
            tally.lists.cells = CellsConfig::Off;
            let (at, invitation) = party::serve_here(&tally);
            party::of_coordinator(&world, at, &invitation)
        }
    };
    config.erase_wait_s = 1;
    let (coordinator, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let mut devices = vec![];
    for subject in 0..PEOPLE {
        let device = Lister::new(addr, &op, subject).await;
        match apart {
            true => drop(device.contribute_sealed(12).await.unwrap()),
            false => device.contribute(12).await.unwrap(),
        }
        devices.push(device);
    }
    // Joined, and has given nothing.
    devices.push(Lister::new(addr, &op, PEOPLE).await);
    Listing {
        world,
        _coordinator: coordinator,
        addr,
        op,
        _devices: devices,
    }
}

async fn deletions(op: &Operator) -> usize {
    match op.ask(AdminRequest::Deletions { after: 0 }).await.unwrap() {
        AdminReply::Deletions(all) => all.len(),
        other => panic!("{other:?}"),
    }
}

async fn nothing_is_erased_on_a_guess(apart: bool) {
    let l = listing(apart).await;
    let desk = Desk::enrolled(ADMIN, &l.world, &l.op, l.addr, "desk").await;
    let people = l.op.lists().await.people;
    assert_eq!(people, u64::from(PEOPLE));
    let times = [
        "1793520000000",
        "20261101",
        "2026-11-1",
        "01.11.2026",
        "11/01/2026",
        "2026-02-30",
        "1e9",
        "-5",
        "+1793520000",
        "\u{FF12}\u{FF10}\u{FF12}\u{FF16}-11-01",
        "2026 11 01",
        "0",
        "1989-12-31",
        "2999-01-01",
    ];
    for time in times {
        let rows = format!("subject,action,from\nperson-1,withdraw,{time}\n");
        let said = desk.run(&["import", &desk.file("rows.csv", &rows)]);
        assert_eq!(said.code, 1, "{time}: {}", said.out);
        let why = said.out.contains("invalid");
        assert!(why, "{time}: {}", said.out);
        let from = format!("--from={time}");
        let said = desk.run(&["forget", "--subject", "person-1", &from]);
        assert_ne!(said.code, 0, "{time}: {}", said.out);
    }
    for rows in [
        "subject,items\nperson-1,i5\n",
        "subject,action\nperson-1,\n",
        "subject,action,items\nperson-1,erase,i5\n",
        "subject,action,items\nperson-1,erase-items,i5;i6\n",
        "subject,action,items\nperson-1,erase-items,99999x\n",
        "subject,action,items\nperson-1,erase-items,i5,i6\n",
        "subject;action\nperson-1;erase\n",
        "person-1\n",
        "subject\n\"person-1\n",
        "",
    ] {
        let said = desk.run(&["import", &desk.file("rows.csv", rows)]);
        let strict = desk.run(&["import", "--strict", &desk.file("rows.csv", rows)]);
        assert_eq!((said.code, strict.code), (1, 1), "{rows}: {}", said.out);
    }
    let takedown = desk.run(&["forget", "--takedown", "--item", "99999x"]);
    assert_eq!(takedown.code, 1, "{}", takedown.out);
    // Whatever tool asks: the coordinator checks, too.
    for from in [1_793_520_000_000, 20_261_101, 0, i64::MIN, i64::MAX] {
        let subject = id(1);
        let request = DeletionRequest::Withdraw { subject, from };
        assert!(l.op.ask_for(vec![request]).await.is_err(), "{from}");
    }
    // All or nothing: one row is good, and one is not.
    let rows = desk.file("rows.csv", "subject\nperson-2\n\"person-1\n");
    let said = desk.run(&["import", "--strict", &rows]);
    assert_eq!(said.code, 1);
    assert!(said.out.contains("not carried out"), "{}", said.out);
    assert_eq!(deletions(&l.op).await, 0);
    let lineage = AdminRequest::ListsLineage { subject: id(1) };
    match l.op.ask(lineage).await.unwrap() {
        AdminReply::ListsLineage(lineage) => assert!(lineage.counts),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn unclear_requests_erase_nothing_from_the_sums() {
    nothing_is_erased_on_a_guess(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn unclear_requests_erase_nothing_from_a_tally() {
    nothing_is_erased_on_a_guess(true).await;
}

async fn receipt(op: &Operator, deletion: u64) -> Receipt {
    let key = VerifierKey::parse(&op.status().await.log_key).unwrap();
    verify(&op.receipt(deletion).await, &key).unwrap()
}

async fn receipts_say_what_the_sums_held(apart: bool) {
    let l = listing(apart).await;
    let nothing = l.op.forget(PEOPLE, &[]).await;
    let text = report::text(&receipt(&l.op, nothing.id).await);
    assert!(text.contains("the sums held nothing of it"), "{text}");
    let held = l.op.forget(0, &[]).await;
    let r = receipt(&l.op, held.id).await;
    assert!(r.statement.lists.as_ref().is_some_and(|l| l.held));
    let text = report::text(&r);
    assert!(!text.contains("the sums held nothing of it"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_receipt_says_that_the_sums_held_nothing() {
    receipts_say_what_the_sums_held(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_receipt_says_that_the_tally_held_nothing() {
    receipts_say_what_the_sums_held(true).await;
}
