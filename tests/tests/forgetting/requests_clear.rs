//! Requests that can be read in two ways, or that nobody can have meant, change nothing; and a
//! receipt says what was found and removed.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::deletion::DeletionRequest;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::receipt::{Effect, Receipt, verify};
use lethe_receipt::report;
use lethe_tests::desk::Desk;
use lethe_tests::tiny;
use lethe_tests::world::{Operator, World, id};

const ADMIN: &str = env!("CARGO_BIN_EXE_admin-process");

async fn deletions(op: &Operator) -> usize {
    match op.ask(AdminRequest::Deletions { after: 0 }).await.unwrap() {
        AdminReply::Deletions(all) => all.len(),
        other => panic!("{other:?}"),
    }
}

async fn receipt(op: &Operator, deletion: u64) -> Receipt {
    let key = VerifierKey::parse(&op.status().await.log_key).unwrap();
    verify(&op.receipt(deletion).await, &key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn items_that_nobody_has_are_refused() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let desk = Desk::enrolled(ADMIN, &world, &op, addr, "desk").await;
    let fleet = world.fleet(addr, &op).await;
    let before = op.trained().await;
    // As Excel writes lists, with the separators that people try.
    for items in ["i5;i6", "\"i5,i6\"", "i5|i6", "i5/i6", "99999x"] {
        let text = format!("subject,action,items\nperson-1,erase-items,{items}\n");
        let said = desk.run(&["import", &desk.file("rows.csv", &text)]);
        assert_eq!(said.code, 1, "{items}: {}", said.out);
        assert!(said.out.contains("refused"), "{items}: {}", said.out);
        assert!(
            said.out.contains("is not in the catalogue"),
            "{items}: {}",
            said.out
        );
        let hint = said.out.contains("The items i5 and i6 are");
        assert_eq!(hint, items != "99999x", "{items}: {}", said.out);
    }
    // A typing error in a takedown would destroy everybody's keys.
    let takedown = ["forget", "--takedown", "--item", "99999x"];
    for args in [
        &takedown[..],
        &["forecast", "--takedown", "--item", "99999x"],
    ] {
        let said = desk.run(args);
        assert_eq!(said.code, 1, "{}", said.out);
        assert!(
            said.err.contains("\"99999x\" is not in the catalogue"),
            "{}",
            said.err
        );
    }
    let after = op.status().await;
    assert_eq!((deletions(&op).await, after.release), (0, before.release));
    // An item that left the catalogue can still be erased, by who says that they mean it.
    let said = desk.run(&["forget", "--subject", "person-1", "--item", "gone", "--yes"]);
    assert_eq!(said.code, 0, "{}", said.err);
    op.deleted(1).await;
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_are_a_slip_erase_nothing() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let desk = Desk::enrolled(ADMIN, &world, &op, addr, "desk").await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let (milliseconds, compact, future) = ("1793520000000", "20261101", "2999-01-01");
    for time in [milliseconds, compact, future, "0", "1989-12-31"] {
        let text = format!("subject,action,from\nperson-1,withdraw,{time}\n");
        let said = desk.run(&["import", &desk.file("rows.csv", &text)]);
        assert_eq!(said.code, 1, "{time}");
        assert!(said.out.contains("invalid"), "{time}: {}", said.out);
        let said = desk.run(&["forget", "--subject", "person-1", "--from", time]);
        assert_ne!(said.code, 0, "{time}");
    }
    // Whatever tool asks: the coordinator checks, too.
    for from in [1_793_520_000_000, 20_261_101, 0, i64::MIN, i64::MAX] {
        let request = DeletionRequest::Withdraw {
            subject: id(1),
            from,
        };
        let refused = op.ask_for(vec![request]).await;
        assert!(refused.is_err(), "{from}");
    }
    assert_eq!(deletions(&op).await, 0);
    let clients = fleet.stop().await;
    assert_eq!(clients[1].history().len(), 16, "all events are there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_items_and_without_an_action_erases_nobody() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let desk = Desk::enrolled(ADMIN, &world, &op, addr, "desk").await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let rows = desk.file("rows.csv", "subject,items\nperson-1,i5 i6\n");
    for args in [&["import", &rows, "--dry-run"][..], &["import", &rows]] {
        let said = desk.run(args);
        assert_eq!(said.code, 1);
        assert!(
            said.out.contains("it would have been read as erase"),
            "{}",
            said.out
        );
    }
    // Nor does a row whose second item slipped into a field of its own.
    let rows = desk.file(
        "rows.csv",
        "subject,action,items\nperson-1,erase-items,i5,i6\n",
    );
    assert_eq!(desk.run(&["import", &rows]).code, 1);
    assert_eq!(deletions(&op).await, 0);
    assert!(op.lineage(1).await.is_ok(), "still there");
    let empty = desk.file("rows.csv", "subject,action\n");
    assert_eq!(
        desk.run(&["import", &empty]).code,
        1,
        "nothing was asked for"
    );
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_removed_nothing_is_not_verified_as_one() {
    let world = World::new(6);
    let mut config = world.config("");
    config.erase_wait_s = 2;
    let (_c, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let desk = Desk::enrolled(ADMIN, &world, &op, addr, "desk").await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let history = tiny::history(1);
    let has = |item: &str| history.iter().any(|e| e.item == item);
    let absent = (0..tiny::ITEMS).map(|i| format!("i{i}")).find(|i| !has(i));

    // In the catalogue, and not in this person's history.
    let nothing = op.forget(1, &[&absent.unwrap()]).await;
    let removed = nothing.removed.unwrap();
    assert_eq!(
        (removed.events, removed.answered, removed.silent),
        (0, 1, 0)
    );
    let r = receipt(&op, nothing.id).await;
    assert_eq!(r.effect(), Effect::NothingRemoved);
    assert!(report::text(&r).starts_with("NOTHING WAS REMOVED"));
    let file = desk.file("receipt.json", "");
    std::fs::write(&file, op.receipt(nothing.id).await).unwrap();
    let key = op.status().await.log_key;
    let said = desk.run(&["verify", &file, "--log-key", &key]);
    assert_eq!(said.code, 5);
    assert!(!said.out.contains("VERIFIED"), "{}", said.out);

    // Two of them: the receipt says so.
    let items = [history[3].item.as_str(), history[12].item.as_str()];
    let some = op.forget(1, &items).await;
    assert_eq!(some.removed.unwrap().events, 2);
    let r = receipt(&op, some.id).await;
    assert_eq!(r.effect(), Effect::Done);
    let text = report::text(&r);
    assert!(text.starts_with("VERIFIED: items"), "{text}");
    assert!(
        text.contains("2 event(s), as 1 device(s) reported"),
        "{text}"
    );

    // A device that stays away: the receipt says what became of the person.
    let mut clients = fleet.stop().await;
    let away = clients.remove(2);
    let mut fleet = lethe_tests::world::Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    let silent = op.forget(2, &[&tiny::history(2)[4].item]).await;
    let removed = silent.removed.unwrap();
    assert_eq!(
        (removed.events, removed.answered, removed.silent),
        (0, 0, 1)
    );
    let r = receipt(&op, silent.id).await;
    assert_eq!(r.effect(), Effect::Done);
    let text = report::text(&r);
    assert!(
        text.contains("it may still hold what the request names"),
        "{text}"
    );
    drop(away);
    fleet.abort();
}
