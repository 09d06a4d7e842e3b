//! What one peer can do to the others: not steer them, not stall them, not fill the log.
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lethe_proto::admin::AdminRequest;
use lethe_proto::ids::ShardId;
use lethe_proto::message::{ErrorReport, Refusal, Reply, Request, RoundStart, Task};
use lethe_proto::packed::{Packed, PackedFormat};
use lethe_puppet::{Did, Puppet, Role, identity};
use lethe_receipt::note::VerifierKey;
use lethe_tests::world::{Operator, PATIENCE, World};
use lethe_transport::TransportError;
use lethe_transport::client::{Connection, Dialer};
use lethe_transport::identity::Invitation;

/// A peer that sends whatever a test wants.
struct Peer {
    raw: Connection,
    puppet: Puppet,
    values: usize,
}

async fn peers(world: &World, addr: SocketAddr, op: &Operator, extra: &str, n: u32) -> Vec<Peer> {
    let config = world.config(extra);
    let source = lethe_model::source::open(&config.model).unwrap();
    let model = lethe_recipe::model_digest(&config.model).unwrap();
    let dialer = Dialer::bind(addr).unwrap();
    let mut all = vec![];
    for seed in 0..n {
        let invitation = op.invite(seed).await;
        let authority = Invitation::parse(&invitation).unwrap().authority().unwrap();
        let me = identity(&dialer, addr, &invitation).await.unwrap();
        let role = Role {
            config: source.config(),
            model,
            seed: u64::from(seed),
        };
        let connect = Puppet::connect(&dialer, addr, &authority, &me, &role);
        let mut puppet = connect.await.unwrap();
        puppet.join().await.unwrap();
        let raw = Connection::open(addr, &authority, Some(&me)).await.unwrap();
        let values = puppet.values();
        all.push(Peer {
            raw,
            puppet,
            values,
        });
    }
    all
}

fn refused(reply: &Result<Reply, TransportError>) -> bool {
    matches!(
        reply,
        Err(TransportError::Refused {
            code: Refusal::Invalid,
            ..
        })
    )
}

const ONE_ROUND: &str = "shards = 1\nslices = 1\nrounds = 1\ncohort = 3\nvalidation = 2\n";

#[tokio::test(flavor = "multi_thread")]
async fn validation_losses_lie_between_0_and_1_and_rows_within_the_recipe() {
    let world = World::new(3);
    let (_c, addr) = world.start(ONE_ROUND).await;
    let op = world.operator(addr).await;
    let mut all = peers(&world, addr, &op, ONE_ROUND, 3).await;
    while op.status().await.release == 0 {
        for p in &mut all {
            p.puppet.step().await.unwrap();
        }
    }
    let release = op.status().await.release;
    let row = |sample: u32, error: f32| ErrorReport {
        sample,
        embedding: vec![0.5; 24],
        errors: vec![(ShardId(0), error)],
    };
    let send = |rows: Vec<ErrorReport>| {
        let raw = &all[0].raw;
        async move { raw.call(&Request::Errors { release, rows }).await }
    };
    // The puppet may have measured the release already.
    let before = op.lineage(0).await.unwrap().error_rows;
    for error in [-1e30, -0.001, 1.001, f32::INFINITY, f32::NAN] {
        assert!(refused(&send(vec![row(0, error)]).await), "{error}");
    }
    let three = vec![row(0, 0.5), row(1, 0.5), row(1, 0.5)];
    assert!(refused(&send(three).await), "more rows than the recipe has");
    assert!(
        refused(&send(vec![row(2, 0.5)]).await),
        "a sample beyond them"
    );
    assert_eq!(op.lineage(0).await.unwrap().error_rows, before);
    assert_eq!(
        send(vec![row(0, 0.0), row(1, 1.0)]).await.unwrap(),
        Reply::Ack
    );
    // Again: what is there is replaced, and never more than the recipe has.
    assert_eq!(send(vec![row(1, 0.5)]).await.unwrap(), Reply::Ack);
    assert_eq!(op.lineage(0).await.unwrap().error_rows, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_and_losses_of_an_update_are_those_that_a_device_can_have() {
    let world = World::new(3);
    let (_c, addr) = world.start(ONE_ROUND).await;
    let op = world.operator(addr).await;
    let all = peers(&world, addr, &op, ONE_ROUND, 3).await;
    let raw = &all[1].raw;
    let start = || async {
        match raw.call(&Request::Poll).await.unwrap() {
            Reply::Task {
                task: Task::Train(start),
                ..
            } => start,
            other => panic!("{other:?}"),
        }
    };
    let values = all[1].values;
    let update = |start: RoundStart, samples: u32, loss: f32| {
        let delta = Packed::encode(&vec![0.001; values], PackedFormat::F32).unwrap();
        Request::Update {
            round: start.round,
            delta,
            loss,
            samples,
        }
    };
    // The recipe trains on two.
    for samples in [0, 3, u32::MAX] {
        let request = update(start().await, samples, 0.5);
        assert!(refused(&raw.call(&request).await), "{samples} samples");
    }
    for loss in [-0.1, 101.0, 1e30, f32::NAN, f32::NEG_INFINITY] {
        let request = update(start().await, 2, loss);
        assert!(refused(&raw.call(&request).await), "a loss of {loss}");
    }
    let request = update(start().await, 2, 0.5);
    assert_eq!(raw.call(&request).await.unwrap(), Reply::Ack);
    // Nor may anybody claim to hold any number of samples.
    let join = Request::Join {
        anchor: None,
        samples: u32::MAX,
        commitment: lethe_proto::ids::Digest([1; 32]),
    };
    assert!(refused(&all[0].raw.call(&join).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_send_their_backward_do_not_stop_training() {
    let world = World::new(3);
    let extra = "shards = 1\nslices = 1\nrounds = 1\ncohort = 3\ndeadline_s = 120\n";
    let mut config = world.config(extra);
    (config.passes, config.tapes) = (2, 2);
    let (_c, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let mut all = peers(&world, addr, &op, extra, 3).await;
    // Both places are kept by clients that poll, send a forward, and fall silent.
    let mut honest = all.pop().unwrap();
    for hostile in &mut all {
        hostile.puppet.silent_after(2);
        assert!(hostile.puppet.step().await.is_err());
    }
    let started = Instant::now();
    let did = honest.puppet.step().await.unwrap();
    assert!(matches!(did, Did::Trained(_)), "{did:?}");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(40), "{took:?}");
    assert!(took > Duration::from_secs(5), "slow phones get their time");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_takes_no_entry_of_what_is_refused_and_few_from_one_operator() {
    let world = World::new(3);
    let config = world.config("");
    let tiles = config.evidence().join("tiles");
    let (_c, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let size = || {
        let head = std::fs::read_to_string(tiles.join("checkpoint")).unwrap();
        head.lines().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = size();
    let shard = ShardId(9);
    for nonsense in [
        AdminRequest::Approve {
            proposal: 9_999_999,
        },
        AdminRequest::Cancel {
            proposal: 9_999_999,
        },
        AdminRequest::Policy {
            approvals: Some(200),
        },
        AdminRequest::Replay { shard },
        AdminRequest::Audit { shard },
        AdminRequest::RemoveOperator {
            fingerprint: lethe_proto::ids::Digest([7; 32]),
        },
    ] {
        assert!(op.ask(nonsense.clone()).await.is_err(), "{nonsense:?}");
    }
    assert_eq!(size(), before, "nothing was entered");
    // As fast as it goes: sixty, and then one a second.
    let policy = AdminRequest::Policy { approvals: Some(1) };
    let (mut taken, mut busy) = (0, None);
    while busy.is_none() && taken < 200 {
        match op.ask(policy.clone()).await {
            Ok(_) => taken += 1,
            Err(e) => busy = Some(e),
        }
    }
    assert!((60..90).contains(&taken), "{taken}");
    let busy = busy.unwrap();
    assert!(
        matches!(
            busy,
            TransportError::Refused {
                code: Refusal::Busy,
                ..
            }
        ),
        "{busy}"
    );
    // Each that was taken is entered, also where the answer did not wait for it.
    let entered = before + taken;
    let started = Instant::now();
    while size() < entered && started.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(size(), entered);
    // Of the tile that grows, the newest file and the one before it are kept; all of it verifies.
    let parts: Vec<_> = std::fs::read_dir(tiles.join("tile/0/000.p"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(parts.len(), 2, "{parts:?}");
    let key = VerifierKey::parse(&op.status().await.log_key).unwrap();
    let audited = lethe_receipt::tiles::audit(&tiles, &key).unwrap();
    assert_eq!(audited.tree.len(), size());
}
