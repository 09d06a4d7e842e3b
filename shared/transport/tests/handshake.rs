//! Certificates that must be refused are refused, by real handshakes over loopback.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lethe_proto::ids::{Digest, EpochNo, RoundKey, ShardId};
use lethe_proto::limits;
use lethe_proto::message::{Refusal, Reply, Request, Task};
use lethe_proto::packed::{Packed, PackedFormat};
use lethe_proto::payload::{Payload, WireFormat};
use lethe_transport::TransportError;
use lethe_transport::client::{Connection, enrol};
use lethe_transport::identity::{Authority, ClientKey, Identity, Invitation};
use lethe_transport::place::Place;
use lethe_transport::server::{Handler, ReplyFuture, Server};
use tokio::sync::Barrier;

fn wait() -> Reply {
    Reply::Task {
        task: Task::Wait,
        recalled: 0,
    }
}

/// Longest message that this desk has reason to get.
const LONGEST: usize = 8 << 20;

#[derive(Default)]
struct Known(Mutex<HashSet<Digest>>);

struct Desk {
    authority: Authority,
    known: Known,
    /// Gradients are answered when all of them have come.
    gradients: Arc<Barrier>,
}

/// Gradients that wait for each other.
const GRADIENTS: usize = 4;

impl Handler for Desk {
    fn admits(&self, certificate: &Digest) -> bool {
        self.known.0.lock().unwrap().contains(certificate)
    }
    fn longest(&self, kind: u16) -> usize {
        lethe_proto::codec::limit(kind).unwrap_or(0).min(LONGEST)
    }
    fn handle(&self, certificate: Option<Digest>, request: Request, _: usize) -> ReplyFuture {
        if let (Some(_), Request::Backward { .. }) = (&certificate, &request) {
            let all = self.gradients.clone();
            return Box::pin(async move {
                all.wait().await;
                Reply::Ack
            });
        }
        let reply = match (certificate, request) {
            (None, Request::Enrol { token, csr, .. }) if token == "secret" => {
                let certificate = self.authority.sign(&csr, Duration::from_secs(60)).unwrap();
                self.known
                    .0
                    .lock()
                    .unwrap()
                    .insert(Digest::of(&[&certificate]));
                Reply::Enrolled {
                    certificate,
                    subject: None,
                }
            }
            (Some(_), Request::Poll) => wait(),
            (Some(_), Request::Update { .. }) => Reply::Ack,
            _ => Reply::Refused {
                code: Refusal::Forbidden,
                message: "no".into(),
            },
        };
        Box::pin(async move { reply })
    }
    fn disconnected(&self, _: &Digest) {}
}

fn start() -> (Arc<Desk>, Server, std::net::SocketAddr) {
    let desk = Arc::new(Desk {
        authority: Authority::create().unwrap(),
        known: Known::default(),
        gradients: Arc::new(Barrier::new(GRADIENTS)),
    });
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), &desk.authority).unwrap();
    let addr = server.local_addr().unwrap();
    let (s, d) = (server.clone(), desk.clone());
    tokio::spawn(async move { s.run(d).await });
    (desk, server, addr)
}

/// Connecting may succeed before the server's verdict arrives; a call shows it.
async fn try_poll(
    addr: std::net::SocketAddr,
    authority: &[u8],
    identity: Option<&Identity>,
) -> Result<Reply, TransportError> {
    let c = Connection::open(addr, authority, identity).await?;
    c.call_within(&Request::Poll, Duration::from_secs(5)).await
}

fn issue(authority: &Authority, lifetime: Duration) -> Identity {
    let key = ClientKey::generate().unwrap();
    let certificate = authority.sign(&key.request().unwrap(), lifetime).unwrap();
    key.with_certificate(certificate)
}

#[tokio::test]
async fn enrolled_clients_are_served_and_others_refused() {
    let (desk, server, addr) = start();
    let invitation =
        Invitation::parse(&Invitation::new("secret".into(), &desk.authority).text()).unwrap();
    let identity = enrol(addr, &invitation).await.unwrap();
    let ca = desk.authority.certificate().to_vec();
    assert_eq!(try_poll(addr, &ca, Some(&identity)).await.unwrap(), wait());

    let wrong = enrol(addr, &Invitation::new("guess".into(), &desk.authority)).await;
    assert!(
        matches!(
            wrong,
            Err(TransportError::Refused {
                code: Refusal::Forbidden,
                ..
            })
        ),
        "{wrong:?}"
    );
    let none = try_poll(addr, &ca, None).await;
    assert!(
        matches!(
            none,
            Err(TransportError::Refused {
                code: Refusal::Forbidden,
                ..
            })
        ),
        "no certificate: {none:?}"
    );

    let foreign = issue(&Authority::create().unwrap(), Duration::from_secs(60));
    assert!(
        try_poll(addr, &ca, Some(&foreign)).await.is_err(),
        "a certificate of another authority"
    );
    let unknown = issue(&desk.authority, Duration::from_secs(60));
    assert!(
        try_poll(addr, &ca, Some(&unknown)).await.is_err(),
        "signed, but not in the directory"
    );
    let expired = issue(&desk.authority, Duration::ZERO);
    desk.known.0.lock().unwrap().insert(expired.fingerprint());
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(
        try_poll(addr, &ca, Some(&expired)).await.is_err(),
        "expired"
    );
    let other_ca = Authority::create().unwrap();
    assert!(
        try_poll(addr, other_ca.certificate(), Some(&identity))
            .await
            .is_err(),
        "the client refuses another coordinator"
    );
    server.close();
}

#[tokio::test]
async fn revocation_ends_live_connections() {
    let (desk, server, addr) = start();
    let identity = enrol(addr, &Invitation::new("secret".into(), &desk.authority))
        .await
        .unwrap();
    let ca = desk.authority.certificate().to_vec();
    let live = Connection::open(addr, &ca, Some(&identity)).await.unwrap();
    assert!(live.call(&Request::Poll).await.is_ok());
    assert_eq!(server.connections(), 1);
    desk.known.0.lock().unwrap().remove(&identity.fingerprint());
    server.disconnect(&identity.fingerprint());
    assert!(
        live.call_within(&Request::Poll, Duration::from_secs(5))
            .await
            .is_err()
    );
    assert!(try_poll(addr, &ca, Some(&identity)).await.is_err());
}

const ROUND: RoundKey = RoundKey {
    epoch: EpochNo::FIRST,
    shard: ShardId(0),
    generation: 1,
    stage: 1,
    round: 0,
};

fn update(bytes: usize) -> Request {
    Request::Update {
        round: ROUND,
        delta: Packed {
            bytes: vec![0; bytes].into(),
            deflated: false,
            format: PackedFormat::F32,
        },
        loss: 0.0,
        samples: 1,
    }
}

#[tokio::test]
async fn large_messages_take_turns_and_a_cancelled_one_is_in_nobodys_way() {
    let (desk, server, addr) = start();
    let ca = desk.authority.certificate().to_vec();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let identity = enrol(addr, &Invitation::new("secret".into(), &desk.authority))
            .await
            .unwrap();
        let ca = ca.clone();
        clients.spawn(async move {
            let c = Connection::open(addr, &ca, Some(&identity)).await.unwrap();
            for round in 0..4 {
                // Together more than there is room for.
                assert_eq!(c.call(&update(6 << 20)).await.unwrap(), Reply::Ack);
                // Given up on its way: the next call needs no more time than any other.
                let cancelled = c
                    .call_within(&update(6 << 20), Duration::from_millis(round))
                    .await;
                assert!(
                    matches!(
                        cancelled,
                        Err(TransportError::Timeout { .. }) | Ok(Reply::Ack)
                    ),
                    "{cancelled:?}"
                );
                let next = c.call_within(&Request::Poll, Duration::from_secs(20)).await;
                assert_eq!(next.unwrap(), wait());
            }
            assert_eq!(c.call(&update(6 << 20)).await.unwrap(), Reply::Ack);
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    server.close();
}

#[tokio::test]
async fn requests_that_wait_for_each_other_have_no_room_that_others_need() {
    let (desk, server, addr) = start();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..GRADIENTS {
        let invitation = Invitation::new("secret".into(), &desk.authority);
        let identity = enrol(addr, &invitation).await.unwrap();
        let ca = desk.authority.certificate().to_vec();
        clients.spawn(async move {
            let c = Connection::open(addr, &ca, Some(&identity)).await.unwrap();
            // One of them has room at a time.
            let values = vec![0.0; limits::COMING / 2 / size_of::<f32>() + 1024];
            let gradient = Request::Backward {
                round: ROUND,
                pass: 1,
                grad: Payload::encode(&values, 1024, WireFormat::F32),
                step: false,
            };
            c.call_within(&gradient, Duration::from_secs(20)).await
        });
    }
    while let Some(answer) = clients.join_next().await {
        assert_eq!(answer.unwrap().unwrap(), Reply::Ack);
    }
    server.close();
}

#[tokio::test]
async fn a_message_longer_than_makes_sense_is_refused_by_its_header() {
    let (desk, server, addr) = start();
    let identity = enrol(addr, &Invitation::new("secret".into(), &desk.authority))
        .await
        .unwrap();
    let c = Connection::open(addr, desk.authority.certificate(), Some(&identity))
        .await
        .unwrap();
    let refused = c
        .call_within(&update(LONGEST + 1), Duration::from_secs(20))
        .await;
    assert!(refused.is_err(), "{refused:?}");
    let next = c.call_within(&Request::Poll, Duration::from_secs(20)).await;
    assert_eq!(next.unwrap(), wait());
    server.close();
}

#[tokio::test]
async fn peers_without_a_certificate_cost_little_and_keep_nobody_out() {
    let (desk, server, addr) = start();
    let ca = desk.authority.certificate().to_vec();
    let identity = enrol(addr, &Invitation::new("secret".into(), &desk.authority))
        .await
        .unwrap();
    // A large message is refused by its header, before its body is read.
    let stranger = Connection::open(addr, &ca, None).await.unwrap();
    let answer = stranger
        .call_within(&update(8 << 20), Duration::from_secs(5))
        .await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(
        stranger
            .call_within(&Request::Poll, Duration::from_secs(5))
            .await
            .is_err(),
        "one request each"
    );
    let mut open = vec![];
    for _ in 0..lethe_proto::limits::MAX_UNAUTHENTICATED + 8 {
        open.push(Connection::open(addr, &ca, None).await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let closed = open
        .iter()
        .filter(|c| c.as_ref().is_ok_and(Connection::is_closed))
        .count();
    assert!(closed >= 8, "{closed} of {} were turned away", open.len());
    assert_eq!(try_poll(addr, &ca, Some(&identity)).await.unwrap(), wait());
    server.close();
}

#[tokio::test]
async fn idle_connections_of_one_address_do_not_stop_enrolment() {
    let (desk, server, addr) = start();
    let ca = desk.authority.certificate().to_vec();
    // More than there are places, all from one address, and none of them says a word.
    let mut idle = vec![];
    for _ in 0..70 {
        idle.push(Connection::open(addr, &ca, None).await.unwrap());
    }
    let started = std::time::Instant::now();
    let identity = enrol(addr, &Invitation::new("secret".into(), &desk.authority))
        .await
        .unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(try_poll(addr, &ca, Some(&identity)).await.unwrap(), wait());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let open = idle.iter().filter(|c| !c.is_closed()).count();
    assert!(open <= 32, "{open} of one address");
    assert!(
        idle[0].is_closed() && !idle[69].is_closed(),
        "the oldest go first"
    );
    server.close();
}

#[tokio::test]
async fn the_oldest_idle_connection_of_a_certificate_makes_room() {
    let (desk, server, addr) = start();
    let ca = desk.authority.certificate().to_vec();
    let identity = enrol(addr, &Invitation::new("secret".into(), &desk.authority))
        .await
        .unwrap();
    let mut all = vec![];
    for _ in 0..6 {
        let c = Connection::open(addr, &ca, Some(&identity)).await.unwrap();
        assert_eq!(c.call(&Request::Poll).await.unwrap(), wait());
        all.push(c);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let closed: Vec<bool> = all.iter().map(Connection::is_closed).collect();
    assert_eq!(closed, [true, true, false, false, false, false]);
    assert_eq!(server.connections(), 4);
    server.close();
}

#[tokio::test]
async fn the_listeners_certificate_is_renewed_while_it_runs() {
    let desk = Arc::new(Desk {
        authority: Authority::create().unwrap(),
        known: Known::default(),
        gradients: Arc::new(Barrier::new(GRADIENTS)),
    });
    let bind = |life| {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::bind_for(any, &desk.authority, life).unwrap();
        let (s, d) = (server.clone(), desk.clone());
        tokio::spawn(async move { s.run(d).await });
        (server.local_addr().unwrap(), server)
    };
    let ca = desk.authority.certificate().to_vec();
    let life = Duration::from_secs(6);
    let ((addr, server), (other, neglected)) = (bind(life), bind(life));
    let identity = issue(&desk.authority, Duration::from_secs(600));
    desk.known.0.lock().unwrap().insert(identity.fingerprint());
    let early = Connection::open(addr, &ca, Some(&identity)).await.unwrap();
    assert!(!server.renew(&desk.authority).unwrap(), "not due");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(server.renew(&desk.authority).unwrap(), "a third has passed");
    tokio::time::sleep(Duration::from_millis(5000)).await;
    assert_eq!(try_poll(addr, &ca, Some(&identity)).await.unwrap(), wait());
    assert_eq!(
        early.call(&Request::Poll).await.unwrap(),
        wait(),
        "still open"
    );
    // Where nobody renews, the error names the clock, and both times.
    let e = try_poll(other, &ca, Some(&identity)).await.unwrap_err();
    assert!(matches!(e, TransportError::Clock { .. }), "{e}");
    assert!(e.to_string().contains("clock says"), "{e}");
    server.close();
    neglected.close();
}

#[tokio::test]
async fn an_expired_certificate_is_said_to_be_that() {
    let (desk, server, addr) = start();
    let ca = desk.authority.certificate().to_vec();
    let expired = issue(&desk.authority, Duration::ZERO);
    desk.known.0.lock().unwrap().insert(expired.fingerprint());
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let e = try_poll(addr, &ca, Some(&expired)).await.unwrap_err();
    assert!(matches!(e, TransportError::Expired { .. }), "{e}");
    assert!(e.to_string().contains("recover-admin"), "{e}");
    server.close();
}

#[tokio::test]
async fn case_16_a_server_is_reached_by_its_name_and_an_error_names_it() {
    let (desk, server, addr) = start();
    let ca = desk.authority.certificate().to_vec();
    let named: Place = format!("localhost:{}", addr.port()).parse().unwrap();
    let invitation = Invitation::new("secret".into(), &desk.authority);
    let identity = enrol(named.clone(), &invitation).await.unwrap();
    let c = Connection::open(named.clone(), &ca, Some(&identity)).await;
    let reply = c.unwrap().call(&Request::Poll).await.unwrap();
    assert_eq!(reply, wait());
    // Of several addresses the one that answers counts, also when it is the last.
    let nobody: std::net::SocketAddr = "127.0.0.1:9".parse().unwrap();
    let c = Connection::open_any(&[nobody, nobody, addr], &ca, Some(&identity)).await;
    let reply = c.unwrap().call(&Request::Poll).await.unwrap();
    assert_eq!(reply, wait());
    server.close();
    let unknown: Place = "nobody.invalid:4433".parse().unwrap();
    let e = Connection::open(unknown, &ca, None).await.unwrap_err();
    assert!(matches!(e, TransportError::Resolve { .. }), "{e}");
    assert!(e.to_string().contains("nobody.invalid"), "{e}");
    let other = Authority::create().unwrap();
    let e = Connection::open(named, other.certificate(), None)
        .await
        .unwrap_err();
    assert!(e.to_string().contains("localhost:"), "{e}");
}
