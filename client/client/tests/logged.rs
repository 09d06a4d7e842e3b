//! Audit M5: a device uses nothing that the log does not hold, whatever the coordinator gives it.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Running, catalogue, ids, start};
use lethe_client::{ClientError, Query};
use lethe_receipt::head::HeadError;
use lethe_receipt::merkle::Tree;
use lethe_receipt::served::ServedError;

/// A coordinator of this version, which serves snapshot 5.
async fn newer() -> Running {
    let server = start(ids(0..40)).await;
    server.state().minor = 6;
    server.publish(5, 0);
    server
}

fn served(refused: Result<lethe_client::Refreshed, ClientError>) -> ServedError {
    match refused {
        Err(ClientError::Served(e)) => e,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_the_log_holds_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let server = newer().await;
    let options = server.options(&catalogue(0..40)).logged_only(true);
    let client = lethe_client::Client::open(dir.path(), options).unwrap();
    assert!(client.refresh().await.unwrap().fetched);
    assert_eq!(client.status().snapshot.unwrap().number, 5);
    assert!(client.top(&Query::first(3)).is_ok());
    // Each newer head extends the one before.
    server.state().tree.push(b"something else");
    server.publish(6, 1);
    assert!(client.refresh().await.unwrap().fetched);
    assert_eq!(server.state().proofs_asked, 2);
    // What is here already is looked up, too: an older version may have taken it.
    client.refresh().await.unwrap();
    assert_eq!(server.state().proofs_asked, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_differ_from_those_of_the_log_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let server = newer().await;
    let client = server.client(dir.path(), &catalogue(0..40));
    // The tally has signed both: one for everybody, and one for this device.
    server.publish(6, 1);
    let logged = server.state().snapshots[0].1.clone();
    server.state().log(6, &logged);
    let other = ServedError::Other {
        what: "snapshot 6".into(),
        part: "content".into(),
    };
    assert_eq!(served(client.refresh().await), other);
    assert!(client.status().snapshot.is_none(), "it is not kept");
    // The log has an entry of another number.
    let of_five = {
        let mut state = server.state();
        let five = state.logged[0].clone();
        state.logged[1] = (6, five.1, five.2);
        "snapshot 6".to_owned()
    };
    let missing = ServedError::NotLogged { what: of_five };
    assert_eq!(served(client.refresh().await), missing);
    // It has none.
    server.state().logged.clear();
    let refused = client.refresh().await.unwrap_err();
    assert!(refused.to_string().contains("not in the log"), "{refused}");
    assert!(client.status().snapshot.is_none());
    // The right one is used.
    let right = server.state().snapshots[1].1.clone();
    server.state().log(6, &right);
    assert!(client.refresh().await.unwrap().fetched);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_from_another_tree_and_a_head_that_does_not_extend_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = newer().await;
    let client = server.client(dir.path(), &catalogue(0..40));
    // A log of its own for this device, signed with the right key.
    let mut other = Tree::default();
    other.push(b"another");
    server.state().other_log = Some(other.clone());
    let what = "snapshot 5".to_owned();
    let missing = ServedError::NotLogged { what };
    assert_eq!(served(client.refresh().await), missing);
    server.state().other_log = None;
    assert!(client.status().snapshot.is_none());
    // Nothing of it was believed.
    assert!(client.refresh().await.unwrap().fetched);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_put_back_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let server = newer().await;
    let client = server.client(dir.path(), &catalogue(0..40));
    server.state().tree.push(b"more");
    client.refresh().await.unwrap();
    let older = server.state().tree.first(1);
    server.state().other_log = Some(older);
    let put_back = HeadError::OtherLog { got: 1, seen: 2 };
    assert_eq!(served(client.refresh().await), ServedError::Head(put_back));
    assert_eq!(client.status().snapshot.unwrap().number, 5, "it stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn older_coordinators_are_used_unless_the_app_asks_for_proofs() {
    let dir = tempfile::tempdir().unwrap();
    let server = newer().await;
    server.state().minor = 4;
    let client = server.client(dir.path(), &catalogue(0..40));
    assert!(client.refresh().await.unwrap().fetched);
    assert_eq!(server.state().proofs_asked, 0);
    let strict = tempfile::tempdir().unwrap();
    let options = server.options(&catalogue(0..40)).logged_only(true);
    let client = lethe_client::Client::open(strict.path(), options).unwrap();
    let refused = client.refresh().await;
    assert!(matches!(refused, Err(ClientError::Unlogged { minor: 4 })));
    assert!(client.status().snapshot.is_none());
}
