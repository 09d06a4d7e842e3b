//! An authority is exchanged while devices trust it: by real handshakes over loopback.
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lethe_proto::ids::Digest;
use lethe_proto::message::{Reply, Request};
use lethe_transport::TransportError;
use lethe_transport::client::Connection;
use lethe_transport::identity::{Authority, ClientKey, Identity, MAX_PAST};
use lethe_transport::server::{Handler, ReplyFuture, Server};

/// Lets in whoever gets through the handshake with a certificate.
struct Open;

impl Handler for Open {
    fn admits(&self, _: &Digest) -> bool {
        true
    }
    fn longest(&self, kind: u16) -> usize {
        lethe_proto::codec::limit(kind).unwrap_or(0)
    }
    fn handle(&self, _: Option<Digest>, _: Request, _: usize) -> ReplyFuture {
        Box::pin(async { Reply::Ack })
    }
    fn disconnected(&self, _: &Digest) {}
}

fn start(authority: &Authority) -> (Server, SocketAddr) {
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), authority).unwrap();
    let listens = server.clone();
    tokio::spawn(async move { listens.run(Arc::new(Open)).await });
    let addr = server.local_addr().unwrap();
    (server, addr)
}

fn issue(authority: &Authority) -> Identity {
    let key = ClientKey::generate().unwrap();
    let request = key.request().unwrap();
    let certificate = authority.sign(&request, Duration::from_secs(600)).unwrap();
    key.with_certificate(certificate)
}

/// Connecting may succeed before the server's verdict arrives; a call shows it.
async fn calls(
    addr: SocketAddr,
    authority: &[u8],
    identity: &Identity,
) -> Result<Connection, TransportError> {
    let c = Connection::open(addr, authority, Some(identity)).await?;
    let wait = Duration::from_secs(5);
    assert_eq!(c.call_within(&Request::Poll, wait).await?, Reply::Ack);
    Ok(c)
}

#[tokio::test]
async fn h1_whoever_trusts_an_earlier_authority_connects_and_follows_after_one_to_six_exchanges() {
    let mut all = vec![Authority::create().unwrap()];
    let me = issue(&all[0]);
    let (server, addr) = start(&all[0]);
    let early = calls(addr, all[0].certificate(), &me).await.unwrap();
    assert_eq!(early.shown().successor(all[0].certificate()), None);
    for n in 1..=MAX_PAST {
        let next = all[n - 1].succeed().unwrap();
        server.go_over(&next).unwrap();
        all.push(next);
        let mut present = None;
        for trusted in &all {
            let c = calls(addr, trusted.certificate(), &me).await.unwrap();
            let successor = c.shown().successor(trusted.certificate());
            let newest = trusted.fingerprint() == all[n].fingerprint();
            assert_eq!(successor.is_none(), newest, "exchange {n}");
            present = successor.or(present);
        }
        // What was followed to is the present authority, without any of before.
        let present = present.unwrap();
        let alone = Authority::restore(all[n].record()).unwrap();
        let (other, elsewhere) = start(&alone);
        let mine = issue(&alone);
        let c = calls(elsewhere, &present, &mine).await.unwrap();
        assert_eq!(c.shown().successor(&present), None, "it is the newest");
        assert!(
            calls(elsewhere, all[0].certificate(), &mine).await.is_err(),
            "nothing leads there from the first one"
        );
        other.close();
    }
    assert_eq!(early.call(&Request::Poll).await.unwrap(), Reply::Ack);
    // One more than are kept: the first is not known any more, the second is.
    let last = all[MAX_PAST].succeed().unwrap();
    assert_eq!(last.past().len(), MAX_PAST);
    server.go_over(&last).unwrap();
    let mine = issue(&last);
    assert!(calls(addr, all[0].certificate(), &mine).await.is_err());
    assert!(calls(addr, all[1].certificate(), &mine).await.is_ok());
    assert!(calls(addr, last.certificate(), &me).await.is_err());
    server.close();
}

#[tokio::test]
async fn h1_strangers_are_refused_after_an_exchange_as_before() {
    let first = Authority::create().unwrap();
    let present = first.succeed().unwrap();
    let stranger = Authority::create().unwrap();
    let its = stranger.succeed().unwrap();
    let (server, addr) = start(&present);
    let me = issue(&first);
    let shown = calls(addr, first.certificate(), &me).await.unwrap().shown();
    assert!(shown.proves(first.certificate()) && shown.proves(present.certificate()));
    for other in [&stranger, &its] {
        assert!(calls(addr, other.certificate(), &me).await.is_err());
        assert!(
            calls(addr, first.certificate(), &issue(other))
                .await
                .is_err()
        );
        assert!(!shown.proves(other.certificate()));
        assert_eq!(shown.successor(other.certificate()), None);
    }
    // Somebody who adds what others have signed to a chain of their own gets nowhere.
    let forged = its.with_past(present.past().to_vec());
    let (thief, elsewhere) = start(&forged);
    let refused = calls(elsewhere, first.certificate(), &me).await;
    assert!(refused.is_err());
    let shown = calls(elsewhere, forged.certificate(), &issue(&forged)).await;
    let shown = shown.unwrap().shown();
    assert_eq!(shown.successor(first.certificate()), None);
    thief.close();
    server.close();
}

#[tokio::test]
async fn h1_an_authority_is_the_same_after_it_was_stored() {
    let first = Authority::create().unwrap();
    let second = first.succeed().unwrap();
    let restored = Authority::restore(second.record()).unwrap();
    let restored = restored.with_past(second.past().to_vec());
    assert_eq!(restored.fingerprint(), second.fingerprint());
    let (server, addr) = start(&restored);
    for trusted in [&first, &second] {
        let mine = issue(trusted);
        assert!(calls(addr, trusted.certificate(), &mine).await.is_ok());
    }
    server.close();
}

#[tokio::test]
async fn h1_an_authority_that_an_earlier_build_has_made_is_exchanged_too() {
    // All had the same name then, and room for no other authority.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    let mut name = rcgen::DistinguishedName::new();
    name.push(rcgen::DnType::CommonName, "Lethe authority");
    params.distinguished_name = name;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![
        rcgen::KeyUsagePurpose::KeyCertSign,
        rcgen::KeyUsagePurpose::DigitalSignature,
    ];
    let certificate = params.self_signed(&key).unwrap();
    let record = serde_json::json!({
        "key": key.serialize_der(),
        "certificate": certificate.der().to_vec(),
    });
    let first = Authority::restore(serde_json::from_value(record).unwrap()).unwrap();
    let me = issue(&first);
    let third = first.succeed().unwrap().succeed().unwrap();
    let (server, addr) = start(&third);
    let c = calls(addr, first.certificate(), &me).await.unwrap();
    let next = c.shown().successor(first.certificate()).unwrap();
    let c = calls(addr, &next, &me).await.unwrap();
    assert_eq!(c.shown().successor(&next), None);
    server.close();
}
