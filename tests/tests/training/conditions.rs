//! A device decides when it works: conditions, memory, cancelling. The rounds go on without it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lethe_client::{Client, Conditions, Declined, Done};
use lethe_tests::world::World;

const RECIPE: &str = "shards = 1\nslices = 1\ncohort = 4\nquorum = 2\ndeadline_s = 60\n";

/// Steps until something other than waiting happens.
async fn next(client: &Client) -> Done {
    loop {
        match client.step().await.unwrap() {
            Done::Nothing => {}
            done => return done,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_go_on_without_devices_that_may_not_work() {
    let world = World::new(4);
    let (_c, addr) = world.start(RECIPE).await;
    let op = world.operator(addr).await;
    let charging = Arc::new(AtomicBool::new(false));
    let plugged = charging.clone();
    let now = move || Conditions {
        charging: plugged.load(Ordering::SeqCst),
        idle: false,
        ..Conditions::ALL
    };
    let poor = world
        .joined(&op, 0, world.options(addr).memory_cap(1000))
        .await;
    let unplugged = world
        .joined(
            &op,
            1,
            world.options(addr).conditions(
                Conditions {
                    idle: false,
                    ..Conditions::ALL
                },
                now,
            ),
        )
        .await;
    let willing = vec![
        world.joined(&op, 2, world.options(addr)).await,
        world.joined(&op, 3, world.options(addr)).await,
    ];

    // It does not even ask.
    assert!(matches!(unplugged.step().await.unwrap(), Done::NotNow(c) if !c.charging));
    // It says no before anything is allocated, and is not waited for.
    let started = Instant::now();
    assert_eq!(next(&poor).await, Done::Declined(Declined::Memory));
    for client in &willing {
        assert_eq!(next(client).await, Done::Trained);
    }
    // The one that did not ask is waited for; plugged in, it trains, and that ends the round.
    assert_eq!(op.status().await.shards[0].rounds.0, 0);
    charging.store(true, Ordering::SeqCst);
    assert_eq!(next(&unplugged).await, Done::Trained);
    let status = op
        .wait_for("the round", |s| s.shards[0].rounds.0 == 1)
        .await;
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "before the deadline: {status:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn training_stops_when_it_is_told_to() {
    let world = World::new(2);
    // Far more passes than the test would wait for.
    let long = "shards = 1\nslices = 1\ncohort = 2\nquorum = 1\nlocal = { samples = 2, batch = 1, \
                epochs = 1000 }\n";
    let (_c, addr) = world.start(long).await;
    let op = world.operator(addr).await;
    let hot = Arc::new(AtomicBool::new(false));
    let sensor = hot.clone();
    let now = move || Conditions {
        cool: !sensor.load(Ordering::SeqCst),
        ..Conditions::ALL
    };
    let heats = world
        .joined(&op, 0, world.options(addr).conditions(Conditions::ALL, now))
        .await;
    let other = world.joined(&op, 1, world.options(addr)).await;

    // The person takes up the phone, again and again.
    let cancel = other.canceller();
    let person = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(70)).await;
            cancel.cancel();
        }
    });
    let started = Instant::now();
    assert_eq!(next(&other).await, Done::Declined(Declined::Conditions));
    assert!(started.elapsed() < Duration::from_secs(10));
    person.abort();
    // It gets hot in the middle.
    let heating = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        hot.store(true, Ordering::SeqCst);
    });
    assert_eq!(next(&heats).await, Done::Declined(Declined::Conditions));
    heating.await.unwrap();
    // Both are still members, and of use.
    assert!(matches!(heats.step().await.unwrap(), Done::NotNow(_)));
    assert_eq!(op.status().await.shards[0].subjects, 2);
    // An app that drops the future stops the work, too: nothing trains on in the background.
    let before = other.stats().activation_bytes;
    let _ = tokio::time::timeout(Duration::from_millis(200), other.step()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = other.stats().activation_bytes;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        other.stats().activation_bytes,
        after,
        "it was {before} before the step"
    );
}
