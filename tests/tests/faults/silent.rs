//! A client that falls silent at any message, with its connection open, costs nobody but itself:
//! every round ends.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use lethe_puppet::{Did, Puppet, PuppetError, Role};
use lethe_tests::world::World;
use lethe_transport::TransportError;

#[tokio::test(flavor = "multi_thread")]
async fn rounds_end_whatever_message_a_client_stops_at() {
    let world = World::new(3);
    // One place for activations: who falls silent between forward and backward holds it until the
    // round's deadline.
    let mut config = world.config(
        "shards = 1\nslices = 1\nrounds = 500\ncohort = 3\nquorum = 2\ndeadline_s = \
                      2\nvalidation = 1\n",
    );
    (config.passes, config.tapes) = (1, 1);
    let source = lethe_model::source::open(&config.model).unwrap();
    let model = lethe_recipe::model_digest(&config.model).unwrap();
    let (_c, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let mut puppets = vec![];
    for n in 0..3 {
        let role = Role {
            config: source.config(),
            model,
            seed: n,
        };
        let mut puppet = Puppet::enrol(addr, &op.invite(n as u32).await, &role)
            .await
            .unwrap();
        puppet.join().await.unwrap();
        puppets.push(puppet);
    }
    let mut silent = puppets.pop().unwrap();
    let good: Vec<_> = puppets
        .into_iter()
        .map(|mut p| tokio::spawn(async move { while p.step().await.is_ok() {} }))
        .collect();
    // Poll, forward, backward, update: silent before the first, and after each.
    for messages in 0..=4 {
        let before = op.status().await.shards[0].rounds.0;
        silent.silent_after(messages);
        let quiet = loop {
            match silent.step().await {
                Ok(Did::Nothing | Did::Trained(_)) => {}
                other => break other,
            }
        };
        // Or refused, when its round closed while it was at it.
        let refused =
            |e: &PuppetError| matches!(e, PuppetError::Transport(TransportError::Refused { .. }));
        assert!(
            quiet
                .as_ref()
                .is_err_and(|e| matches!(e, PuppetError::Silent(_)) || refused(e)),
            "{quiet:?}"
        );
        let started = Instant::now();
        op.wait_for("a round", |s| s.shards[0].rounds.0 > before)
            .await;
        // Its own deadline, and at most one more round that waited for the place of the silent one.
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "silent after {messages}: {:?}",
            started.elapsed()
        );
    }
    good.iter().for_each(tokio::task::JoinHandle::abort);
}
