//! Devices that die: 30 % and then 50 % of a cohort, at each message of a round. Every round ends
//! with those that are left.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use lethe_puppet::{Did, Puppet, PuppetError, Role, identity};
use lethe_tests::world::World;
use lethe_transport::TransportError;
use lethe_transport::client::Dialer;
use lethe_transport::identity::{Identity, Invitation};

const DEVICES: u32 = 10;

/// What a device keeps over its death.
struct Device {
    identity: Identity,
    seed: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_complete_when_half_of_the_devices_die_at_any_message() {
    let world = World::new(DEVICES);
    // Ten are asked, five are enough; the deadline is far away: nobody waits for the dead.
    let config = world.config(
        "shards = 1\nslices = 1\nrounds = 500\ncohort = 10\nquorum = 5\ngoal = 5\ndeadline_s = \
         120\nvalidation = 1\n",
    );
    let source = lethe_model::source::open(&config.model).unwrap();
    let model = lethe_recipe::model_digest(&config.model).unwrap();
    let (_c, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let dialer = Dialer::bind(addr).unwrap();
    let (mut authority, mut devices) = (vec![], vec![]);
    let role = |seed: u64| Role {
        config: source.config(),
        model,
        seed,
    };
    for n in 0..DEVICES {
        let invitation = op.invite(n).await;
        authority = Invitation::parse(&invitation).unwrap().authority().unwrap();
        let identity = identity(&dialer, addr, &invitation).await.unwrap();
        let seed = u64::from(n);
        Puppet::connect(&dialer, addr, &authority, &identity, &role(seed))
            .await
            .unwrap()
            .join()
            .await
            .unwrap();
        devices.push(Device { identity, seed });
    }
    let connect = |d: &Device| {
        let (dialer, authority, identity, role) = (
            dialer.clone(),
            authority.clone(),
            d.identity.clone(),
            role(d.seed),
        );
        async move {
            Puppet::connect(&dialer, addr, &authority, &identity, &role)
                .await
                .unwrap()
        }
    };
    for dying in [3, 5] {
        // Before the poll, and after poll, forward, backward and update.
        for messages in 0..=4 {
            let before = op.status().await.shards[0].rounds.0;
            let mut tasks = vec![];
            for (n, d) in devices.iter().enumerate() {
                let mut puppet = connect(d).await;
                if n < dying {
                    puppet.silent_after(messages);
                }
                tasks.push(tokio::spawn(async move {
                    loop {
                        match puppet.step().await {
                            Ok(Did::Nothing | Did::Trained(_) | Did::Validated) => {}
                            Err(PuppetError::Transport(TransportError::Refused { .. })) => {}
                            // Gone, with its connection.
                            Err(PuppetError::Silent(_)) => return,
                            other => panic!("{other:?}"),
                        }
                    }
                }));
            }
            let started = Instant::now();
            op.wait_for("three rounds", |s| s.shards[0].rounds.0 >= before + 3)
                .await;
            let took = started.elapsed();
            assert!(
                took < Duration::from_secs(60),
                "{dying} died after {messages} messages: {took:?}"
            );
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
        }
    }
}
