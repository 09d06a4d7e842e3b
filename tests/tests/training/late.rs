//! Buffered asynchronous rounds: what comes after its round has closed counts in the next, if it is
//! not too late; and what counted late is trained again, byte for byte.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_client::{Client, Done};
use lethe_tests::world::{Fleet, Operator, World};

const RECIPE: &str = "shards = 1\nslices = 1\nrounds = 4\ncohort = 4\nquorum = 2\ngoal = \
                      2\nstaleness = 1\ndeadline_s = 300\n\
     validation = 1\n";

async fn task(client: &Client) -> lethe_client::Assigned {
    loop {
        if let Some(task) = client.next_task().await.unwrap() {
            return task;
        }
    }
}

async fn rounds(op: &Operator) -> u32 {
    op.status().await.shards[0].rounds.0
}

/// Waits until so many rounds are closed: an acknowledgement says that an update is stored, not
/// that its round has been added up.
async fn closed(op: &Operator, wanted: u32) {
    op.wait_for("the round", |s| s.shards[0].rounds.0 >= wanted)
        .await;
    assert_eq!(rounds(op).await, wanted);
}

async fn late_updates_count(updates: &str) {
    let world = World::new(4);
    let (_c, addr) = world.start(&format!("{RECIPE}{updates}")).await;
    let op = world.operator(addr).await;
    let mut clients = vec![];
    for s in 0..4 {
        clients.push(world.client(addr, &op, s).await);
        clients[s as usize].join().await.unwrap();
    }
    // All begin in the first round; two close it.
    let mut tasks = vec![];
    for c in &clients {
        tasks.push(task(c).await);
    }
    let mut tasks = tasks.into_iter();
    for c in &clients[..2] {
        assert_eq!(
            c.perform(tasks.next().unwrap()).await.unwrap(),
            Done::Trained
        );
    }
    closed(&op, 1).await;
    // The third is late, and counts in the second round: it closes with one more.
    assert_eq!(
        clients[2].perform(tasks.next().unwrap()).await.unwrap(),
        Done::Trained
    );
    assert_eq!(rounds(&op).await, 1);
    let second = task(&clients[0]).await;
    assert_eq!(clients[0].perform(second).await.unwrap(), Done::Trained);
    closed(&op, 2).await;
    // The fourth is too late.
    assert_eq!(
        clients[3].perform(tasks.next().unwrap()).await.unwrap(),
        Done::RoundLost
    );
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    let before = op.trained().await.shards[0].adapter;
    op.replays_equal().await;
    op.forget(2, &[]).await;
    assert_ne!(op.trained().await.shards[0].adapter, before);
    op.replays_equal().await;
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_that_are_late_count_in_the_next_round() {
    late_updates_count("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_late_updates_left_out_goes_with_the_next() {
    late_updates_count("updates = { top-k = 50 }\n").await;
}

#[test]
fn a_recipe_without_a_buffer_has_no_late_updates() {
    for bad in [
        "staleness = 1\n",
        "staleness = 1\ngoal = 2\naggregation = \"personalized\"\n",
        "staleness = 0\ngoal = 2\n",
    ] {
        let e = lethe_recipe::Recipe::from_toml(bad)
            .expect_err(bad)
            .to_string();
        assert!(e.contains("staleness"), "{e}");
    }
}
