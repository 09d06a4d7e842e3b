//! The listener, over real QUIC: enrolment, renewal, who is let in, and what is answered.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::{Asked, Disk, NOW, catalogue, handle, read};
use lethe_proto::message::{Refusal, Reply, Request};
use lethe_proto::tally::{Confided, TallyRefusal, TallyReply, TallyRequest};
use lethe_tallyd::Service;
use lethe_tallyd::party::Party;
use lethe_transport::TransportError;
use lethe_transport::client::{Connection, enrol};
use lethe_transport::identity::{Identity, Invitation};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

struct World {
    _disk: Disk,
    service: Arc<Service>,
    party: Party,
    addr: SocketAddr,
    authority: Vec<u8>,
}

impl World {
    fn new(life: Duration) -> Self {
        let disk = Disk::new();
        let service = Arc::new(disk.open(NOW));
        let party = Party::new(service.clone(), life, || NOW).unwrap();
        let addr = party.listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        Self {
            _disk: disk,
            authority: service.authority().unwrap().certificate().to_vec(),
            service,
            party,
            addr,
        }
    }

    fn invite(&self) -> Invitation {
        let text = self.service.invite(NOW).unwrap().text();
        Invitation::parse(&text).unwrap()
    }

    async fn connect(&self, identity: &Identity) -> Result<Connection, TransportError> {
        Connection::open(self.addr, &self.authority, Some(identity)).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.party.shutdown();
    }
}

async fn ask(connection: &Connection, request: TallyRequest) -> TallyReply {
    match connection.call(&Request::Tally(request)).await.unwrap() {
        Reply::Tally(reply) => reply,
        other => panic!("{other:?}"),
    }
}

fn opening() -> TallyRequest {
    TallyRequest::Open {
        items: catalogue().digest(),
        floor: 0,
    }
}

fn is_refused<T: std::fmt::Debug>(result: &Result<T, TransportError>, with: Refusal) -> bool {
    matches!(result, Err(TransportError::Refused { code, .. }) if *code == with)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_enrols_once_opens_and_asks() {
    let world = World::new(YEAR);
    let invitation = world.invite();
    let identity = enrol(world.addr, &invitation).await.unwrap();
    let again = enrol(world.addr, &invitation).await;
    assert!(is_refused(&again, Refusal::Forbidden), "{again:?}");
    let connection = world.connect(&identity).await.unwrap();
    let early = ask(&connection, TallyRequest::State).await;
    let TallyReply::Refused {
        code: TallyRefusal::NotOpen,
        ..
    } = early
    else {
        panic!("{early:?}");
    };
    let TallyReply::Opened(terms) = ask(&connection, opening()).await else {
        panic!("not opened");
    };
    assert_eq!(terms.key, world.service.key());
    let sent = world.service.sealed(1, 5, NOW);
    let sealed = vec![sent.brought.clone()];
    let TallyReply::Answers(answers) = ask(&connection, TallyRequest::Bring { sealed }).await
    else {
        panic!("not answered");
    };
    assert_eq!(read(&sent, &answers[0]), Confided::Taken);
    let handles = vec![handle(1)];
    let left = ask(&connection, TallyRequest::Leave { handles }).await;
    assert!(matches!(left, TallyReply::Done(_)));
    // What a coordinator answers is not answered here.
    let poll = connection.call(&Request::Poll).await;
    assert!(is_refused(&poll, Refusal::Invalid), "{poll:?}");
    // A connection that ended has to be opened again.
    connection.close().await;
    let mut reply = opening_is_asked_for(&world, &identity).await;
    for _ in 0..50 {
        if matches!(reply, TallyReply::Refused { .. }) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        reply = opening_is_asked_for(&world, &identity).await;
    }
    assert!(matches!(
        reply,
        TallyReply::Refused {
            code: TallyRefusal::NotOpen,
            ..
        }
    ));
}

async fn opening_is_asked_for(world: &World, identity: &Identity) -> TallyReply {
    let connection = world.connect(identity).await.unwrap();
    let reply = ask(&connection, TallyRequest::State).await;
    connection.close().await;
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_answered() {
    let world = World::new(YEAR);
    // Without a certificate.
    let bare = Connection::open(world.addr, &world.authority, None)
        .await
        .unwrap();
    let reply = bare.call(&Request::Tally(opening())).await;
    assert!(is_refused(&reply, Refusal::Forbidden), "{reply:?}");
    // With a secret that was not issued.
    let stranger = Invitation::new("guessed".into(), &world.service.authority().unwrap());
    let reply = enrol(world.addr, &stranger).await;
    assert!(is_refused(&reply, Refusal::Forbidden), "{reply:?}");
    // With a certificate of another authority.
    let other = World::new(YEAR);
    let foreign = enrol(other.addr, &other.invite()).await.unwrap();
    let refused = match world.connect(&foreign).await {
        Ok(connection) => connection.call(&Request::Tally(opening())).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_and_the_one_before_ends() {
    let world = World::new(Duration::from_secs(30));
    let old = enrol(world.addr, &world.invite()).await.unwrap();
    assert!(old.validity().unwrap().is_due(i64::MAX / 2));
    let connection = world.connect(&old).await.unwrap();
    let new = connection.renew().await.unwrap();
    assert_ne!(old.fingerprint(), new.fingerprint());
    // Until the new one is used, the old one is good: the answer may have been lost.
    assert!(matches!(
        ask(&connection, opening()).await,
        TallyReply::Opened(_)
    ));
    let second = world.connect(&new).await.unwrap();
    assert!(matches!(
        ask(&second, opening()).await,
        TallyReply::Opened(_)
    ));
    let ended = connection.call(&Request::Tally(opening())).await;
    assert!(is_refused(&ended, Refusal::Forbidden), "{ended:?}");
    assert!(!world.service.admits(&old.fingerprint()));
    assert!(world.service.admits(&new.fingerprint()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_invitation_ends_the_coordinator_of_before_when_it_is_used() {
    let world = World::new(YEAR);
    let lost = enrol(world.addr, &world.invite()).await.unwrap();
    let connection = world.connect(&lost).await.unwrap();
    assert!(matches!(
        ask(&connection, opening()).await,
        TallyReply::Opened(_)
    ));
    let invitation = world.invite();
    assert!(matches!(
        ask(&connection, TallyRequest::State).await,
        TallyReply::State(_)
    ));
    let new = enrol(world.addr, &invitation).await.unwrap();
    let state = connection.call(&Request::Tally(TallyRequest::State)).await;
    assert!(state.is_err(), "{state:?}");
    let connection = world.connect(&new).await.unwrap();
    assert!(matches!(
        ask(&connection, opening()).await,
        TallyReply::Opened(_)
    ));
}
