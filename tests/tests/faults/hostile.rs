//! A hostile network: a thousand connections from few addresses, slow readers, half-open streams,
//! and floods of every request with a valid certificate and without. The coordinator is a process
//! of its own, so that its memory can be told.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lethe_proto::admin::AdminRequest;
use lethe_proto::codec;
use lethe_proto::epochs::Lacks;
use lethe_proto::ids::{Digest, EpochNo, RoundKey, ShardId};
use lethe_proto::lists::ListState;
use lethe_proto::message::{BatchShape, Declined, Erased, ErrorReport, Purpose, Request};
use lethe_proto::packed::{Packed, PackedFormat};
use lethe_proto::payload::{Payload, WireFormat};
use lethe_puppet::{Did, Puppet, Role, identity};
use lethe_tests::world::{Operator, World};
use lethe_transport::client::Dialer;
use lethe_transport::identity::{Identity, Invitation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Width of the tiny model.
const HIDDEN: usize = 24;
/// Connections without a certificate.
const STRANGERS: usize = 1000;
/// How long rounds are counted for, in peace and under attack.
const WINDOW: Duration = Duration::from_secs(5);
/// Mebibytes that an attack may cost.
const ROOM: u64 = 64;

/// Resident memory of a process, MiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

/// An address of its own on this machine, where the system has them.
fn address(n: u8) -> SocketAddr {
    let local = match cfg!(target_os = "linux") {
        true => Ipv4Addr::new(127, 0, 0, n),
        false => Ipv4Addr::LOCALHOST,
    };
    (IpAddr::V4(local), 0).into()
}

fn round() -> RoundKey {
    RoundKey {
        epoch: EpochNo(1),
        shard: ShardId(0),
        generation: 1,
        stage: 1,
        round: 0,
    }
}

/// One request of each kind that a device can send, with values at their bounds or beyond them.
fn every_kind() -> Vec<Request> {
    let lists = ListState::default();
    let states = |rows: usize| Payload::encode(&vec![0.5; rows * HIDDEN], HIDDEN, WireFormat::F32);
    let shape = BatchShape {
        prefix: 0,
        lens: vec![16; 64],
    };
    let delta = Packed::encode(&[0.5; 4096], PackedFormat::F32).unwrap();
    let row = ErrorReport {
        sample: u32::MAX,
        embedding: vec![1e30; HIDDEN],
        errors: vec![(ShardId(u16::MAX), 2.0)],
    };
    let join = |samples: u32| Request::Join {
        anchor: None,
        samples,
        commitment: Digest([3; 32]),
    };
    let secret = "0".repeat(64);
    vec![
        Request::Enrol {
            token: secret,
            csr: vec![7; 2000],
            subject: None,
        },
        Request::Hello {
            build: "x".repeat(60_000),
            model: Digest::default(),
            minor: u16::MAX,
        },
        join(4),
        join(u32::MAX),
        Request::Poll,
        Request::Forward {
            purpose: Purpose::Score {
                release: 0,
                omega: vec![],
            },
            shape: shape.clone(),
            hidden: states(1024),
        },
        Request::Forward {
            purpose: Purpose::Train {
                round: round(),
                pass: u32::MAX,
            },
            shape: shape.clone(),
            hidden: states(1024),
        },
        Request::Forward {
            purpose: Purpose::Frozen { round: round() },
            shape,
            hidden: states(1024),
        },
        Request::Backward {
            round: round(),
            pass: u32::MAX,
            grad: states(1024),
            step: true,
        },
        Request::Update {
            round: round(),
            delta,
            loss: f32::NAN,
            samples: u32::MAX,
        },
        Request::Release {
            have: Some(u64::MAX),
            adapters: vec![Digest([9; 32]); 256],
        },
        Request::Weigh {
            embedding: vec![f32::NAN; HIDDEN],
        },
        Request::Errors {
            release: u64::MAX,
            rows: vec![row; 64],
        },
        Request::Erased {
            task: u64::MAX,
            outcome: Erased::Done {
                removed: vec![(u64::MAX, u32::MAX); 1000],
            },
        },
        Request::Decline {
            round: round(),
            why: Declined::Memory,
        },
        Request::Admin(AdminRequest::Status),
        Request::Renew { csr: vec![7; 2000] },
        Request::Orders {
            task: u64::MAX,
            seen: u64::MAX,
        },
        Request::Uncontribute,
        Request::Snapshot {
            have: 0,
            items: Digest::default(),
        },
        Request::Watch { lists },
        Request::Terms,
        Request::Epochs,
        Request::JoinEpoch {
            epoch: EpochNo(u32::MAX),
            anchor: Some(u16::MAX),
            samples: 4,
            commitment: Digest([3; 32]),
        },
        Request::Await {
            lists,
            newest: EpochNo(u32::MAX),
        },
        Request::Lacks {
            epoch: EpochNo(1),
            lacks: Lacks::Model,
        },
        Request::Served {
            have: None,
            adapters: vec![],
        },
        Request::Catalogue {
            have: Digest::default(),
            at: u64::MAX,
        },
        Request::Standing,
        Request::OrdersSince {
            deletion: 0,
            seen: 0,
        },
    ]
}

/// Whoever attacks, with what they know.
#[derive(Clone)]
struct Hostile {
    addr: SocketAddr,
    authority: Vec<u8>,
    identity: Identity,
    ended: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
}

impl Hostile {
    fn goes_on(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    /// Asks everything again and again, over one connection.
    async fn flood(self, from: SocketAddr, certified: bool, first: usize) {
        let kinds = every_kind();
        let dialer = Dialer::bind_from(from).unwrap();
        let mut next = first;
        while self.goes_on() {
            let identity = certified.then_some(&self.identity);
            let Ok(connection) = dialer.connect(self.addr, &self.authority, identity).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            while self.goes_on() && !connection.is_closed() {
                let wait = Duration::from_millis(300);
                let _ = connection
                    .call_within(&kinds[next % kinds.len()], wait)
                    .await;
                self.asked.fetch_add(1, Ordering::Relaxed);
                next += 1;
            }
        }
    }

    /// Begins requests and ends none; asks, and reads no answer.
    async fn holds(self, from: SocketAddr) {
        let dialer = Dialer::bind_from(from).unwrap();
        let connected = dialer.connect(self.addr, &self.authority, Some(&self.identity));
        let Ok(connection) = connected.await else {
            return;
        };
        let snapshot = codec::encode_request(&Request::Poll).unwrap();
        let large = codec::encode_request(&every_kind()[5]).unwrap();
        let mut begun = vec![];
        let mut unread = vec![];
        for n in 0..8 {
            let half = match n {
                0..=1 => connection.begin(&large[..5]).await,
                2..=3 => connection.begin(&large[..large.len() / 2]).await,
                4..=5 => connection.begin(&[]).await,
                _ => connection.begin(&snapshot).await,
            };
            match half {
                Ok(half) if n > 5 => unread.push(half.unread()),
                Ok(half) => begun.push(half),
                Err(_) => break,
            }
        }
        while self.goes_on() && !connection.is_closed() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Connections without a certificate, each with a stream that is never ended.
    async fn strangers(self, from: SocketAddr, n: usize) -> usize {
        let dialer = Dialer::bind_from(from).unwrap();
        let mut held = vec![];
        let mut opened = 0;
        for _ in 0..n {
            if !self.goes_on() {
                break;
            }
            let Ok(connection) = dialer.connect(self.addr, &self.authority, None).await else {
                continue;
            };
            opened += 1;
            if let Ok(half) = connection.begin(&[1, 2, 3]).await {
                held.push((half, connection));
            }
        }
        while self.goes_on() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        opened
    }
}

/// Rounds that are done.
async fn rounds(op: &Operator) -> u32 {
    let status = op.status().await;
    status.shards.iter().map(|s| s.rounds.0).sum()
}

/// Rounds a second, over a while.
async fn pace(op: &Operator, window: Duration) -> f64 {
    let started = Instant::now();
    let before = rounds(op).await;
    tokio::time::sleep(window).await;
    let done = rounds(op).await - before;
    f64::from(done) / started.elapsed().as_secs_f64()
}

/// What `/healthz` says, within five seconds.
async fn health(metrics: SocketAddr) -> Option<String> {
    let asked = async {
        let mut stream = TcpStream::connect(metrics).await.ok()?;
        let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    };
    let answered = tokio::time::timeout(Duration::from_secs(5), asked).await;
    answered.ok().flatten().filter(|t| t.contains("200 OK"))
}

/// An identity of a person, and what it trusts.
async fn enrolled(dialer: &Dialer, addr: SocketAddr, invitation: &str) -> (Identity, Vec<u8>) {
    let authority = Invitation::parse(invitation).unwrap().authority().unwrap();
    let identity = identity(dialer, addr, invitation).await.unwrap();
    (identity, authority)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_network_costs_little_memory_and_at_most_half_of_the_pace() {
    let recipe = "shards = 1\nslices = 1\nrounds = 10000\ncohort = 2\nquorum = 2\n";
    let world = World::with_recipe(2, recipe);
    let mut config = world.config_with_lists(recipe);
    config.metrics = Some("127.0.0.1:0".parse().unwrap());
    let log = world.dir.path().join("log");
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_coordinator-process"));
    let (mut child, addr) = world.spawn(binary, &config, &log);
    let addr: SocketAddr = (Ipv4Addr::LOCALHOST, addr.port()).into();
    let pid = child.id();
    let metrics = std::fs::read_to_string(config.data_dir.join("metrics-address")).unwrap();
    let metrics: SocketAddr = metrics.trim().parse().unwrap();
    let op = world.operator(addr).await;
    let dialer = Dialer::bind(addr).unwrap();
    let source = lethe_model::source::open(&config.model).unwrap();
    let model = lethe_recipe::model_digest(&config.model).unwrap();

    // Two honest devices train, round after round.
    let ended = Arc::new(AtomicBool::new(false));
    let mut honest = JoinSet::new();
    for n in 0..2 {
        let (identity, authority) = enrolled(&dialer, addr, &op.invite(n).await).await;
        let role = Role {
            config: source.config(),
            model,
            seed: u64::from(n),
        };
        let connected = Puppet::connect(&dialer, addr, &authority, &identity, &role).await;
        let mut puppet = connected.unwrap();
        puppet.join().await.unwrap();
        let ended = ended.clone();
        honest.spawn(async move {
            while !ended.load(Ordering::Relaxed) {
                let did = puppet.step().await;
                assert!(
                    matches!(did, Ok(Did::Nothing | Did::Trained(_) | Did::Validated)),
                    "an honest device: {did:?}"
                );
            }
        });
    }
    op.wait_for("rounds", |s| s.shards[0].rounds.0 > 20).await;
    let peace = pace(&op, WINDOW).await;
    let before = resident(pid);

    // Two people with certificates attack, and strangers from four addresses.
    let mut attack = JoinSet::new();
    let mut strangers = JoinSet::new();
    let asked = Arc::new(AtomicU64::new(0));
    for n in 0..2u8 {
        let (identity, authority) =
            enrolled(&dialer, addr, &op.invite(10 + u32::from(n)).await).await;
        let hostile = Hostile {
            addr,
            authority,
            identity,
            ended: ended.clone(),
            asked: asked.clone(),
        };
        let from = address(2 + n);
        attack.spawn(hostile.clone().flood(from, true, 0));
        attack.spawn(hostile.clone().flood(from, true, 11));
        attack.spawn(hostile.clone().flood(from, false, usize::from(n)));
        attack.spawn(hostile.clone().holds(from));
        for part in 0..2 {
            let from = address(4 + 2 * n + part);
            strangers.spawn(hostile.clone().strangers(from, STRANGERS / 4));
        }
    }
    // And connections to monitoring that never ask.
    let mut idle = vec![];
    for _ in 0..300 {
        idle.push(TcpStream::connect(metrics).await.unwrap());
    }
    // The thousand have come before rounds are counted: their handshakes cost this process as much
    // as the coordinator, on the same cores.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let watched = {
        let ended = ended.clone();
        std::thread::spawn(move || {
            let mut most = 0;
            while !ended.load(Ordering::Relaxed) {
                most = most.max(resident(pid));
                std::thread::sleep(Duration::from_millis(100));
            }
            most
        })
    };
    let attacked = pace(&op, WINDOW).await;
    assert!(health(metrics).await.is_some(), "/healthz answers");
    let started = Instant::now();
    let role = Role {
        config: source.config(),
        model,
        seed: 9,
    };
    let invitation = op.invite(9).await;
    let fresh = Puppet::enrol(addr, &invitation, &role);
    let fresh = tokio::time::timeout(lethe_proto::limits::ENROL_TIMEOUT, fresh).await;
    let enrolled_in = started.elapsed();
    ended.store(true, Ordering::Relaxed);
    let most = watched.join().unwrap();
    let mut opened = 0;
    while let Some(n) = strangers.join_next().await {
        opened += n.unwrap();
    }
    attack.abort_all();
    honest.abort_all();
    drop(idle);
    child.kill().unwrap();
    child.wait().unwrap();
    println!(
        "rounds a second: {peace:.1} in peace, {attacked:.1} attacked; {before} MiB, then at most \
         {most}; {opened} strangers, {} requests; enrolled in {enrolled_in:?}",
        asked.load(Ordering::Relaxed)
    );
    assert!(fresh.is_ok_and(|f| f.is_ok()), "an honest person enrols");
    assert!(most <= before + ROOM, "{before} MiB, then {most}");
    assert!(
        attacked >= peace / 2.0,
        "{peace:.2} rounds a second, then {attacked:.2}"
    );
    assert!(asked.load(Ordering::Relaxed) > 200, "there was an attack");
    assert!(opened > STRANGERS / 2, "{opened} strangers came");
}
