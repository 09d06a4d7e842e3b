//! The client as a handle: local functions answer while a round is running, and futures need no
//! runtime of the app's.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lethe_client::{Client, ClientError, Conditions, Done, LocalEvent, Query};
use lethe_tests::tiny;
use lethe_tests::world::World;

/// Far more passes than the test needs.
const LONG: &str = "shards = 1\nslices = 1\ncohort = 2\nquorum = 1\nlocal = { samples = 2, batch \
                    = 1, epochs = 1000 }\n";

#[tokio::test(flavor = "multi_thread")]
async fn local_functions_answer_while_a_round_is_running() {
    let world = World::new(2);
    let (_c, addr) = world.start(LONG).await;
    let op = world.operator(addr).await;
    // The app's function is asked before every pass: it shows that the round is running.
    let passes = Arc::new(AtomicUsize::new(0));
    let counted = passes.clone();
    let now = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        Conditions::ALL
    };
    let options = world.options(addr).conditions(Conditions::ALL, now);
    let client = world.joined(&op, 0, options).await;
    let _other = world.joined(&op, 1, world.options(addr)).await;
    let ended = Arc::new(AtomicBool::new(false));
    let training = tokio::spawn({
        let client = client.clone();
        let ended = ended.clone();
        async move {
            let mut done = Ok(Done::Nothing);
            while matches!(done, Ok(Done::Nothing)) {
                done = client.step().await;
            }
            ended.store(true, Ordering::SeqCst);
            done
        }
    });
    while passes.load(Ordering::SeqCst) < 20 {
        tokio::task::yield_now().await;
    }
    let before = passes.load(Ordering::SeqCst);
    let local = client.clone();
    tokio::task::spawn_blocking(move || {
        let id = local
            .record(LocalEvent::liked("i29", tiny::time(50)))
            .unwrap();
        assert_eq!(local.top(&Query::first(5)).unwrap().items.len(), 5);
        assert_eq!(local.undo(id).unwrap().unwrap().item, "i29");
        assert_eq!(local.history(), tiny::history(0));
        local.import(&local.export().unwrap()).unwrap();
        assert!(local.status().enrolled);
    })
    .await
    .unwrap();
    while passes.load(Ordering::SeqCst) < before + 20 {
        tokio::task::yield_now().await;
    }
    assert!(!ended.load(Ordering::SeqCst), "the round is still running");
    client.canceller().cancel();
    assert!(matches!(training.await.unwrap(), Ok(Done::Declined(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_waits_for_work_makes_way() {
    let world = World::new(5);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    // Alone: the epoch does not start, and a poll waits for ten seconds.
    let client = world.joined(&op, 0, world.options(addr)).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.step().await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    client.connect().await.unwrap();
    assert!(
        matches!(waiting.await.unwrap(), Ok(Done::Nothing)),
        "it was asked to make way, and nothing is lost"
    );
    let items: Vec<String> = (0..tiny::ITEMS).map(|i| format!("i{i}")).collect();
    let none = client.recommend(&items, 1).await;
    assert!(matches!(none, Err(ClientError::NoRelease)), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_model_joins_and_is_never_trained() {
    let world = World::new(3);
    let (_c, addr) = world.start("shards = 1\n").await;
    let op = world.operator(addr).await;
    let mut fleet = lethe_tests::world::Fleet::default();
    for s in 0..3 {
        fleet.add(world.joined(&op, s, world.options(addr)).await);
    }
    let options = lethe_client::Options::new(world.catalogue())
        .server(addr)
        .invitation(op.invite(3).await);
    let alone = Client::open(world.client_folder(3), options).unwrap();
    alone.record_all(tiny::history(3)).unwrap();
    alone.join().await.unwrap();
    assert_eq!(alone.training_samples(), 0);
    fleet.add(alone);
    op.trained().await;
    op.replays_equal().await;
    // Orders to erase reach it all the same.
    let item = tiny::history(3)[4].item.clone();
    let deletion = op.ask_to_forget(3, &[&item]).await.unwrap();
    op.deleted(deletion).await;
    let clients = fleet.stop().await;
    assert_eq!(clients[3].stats().samples, 0);
    assert!(clients[3].history().iter().all(|e| e.item != item));
}
