//! A client's connection to the coordinator.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lethe_proto::codec::{self, Extension};
use lethe_proto::ids::SubjectId;
use lethe_proto::limits;
use lethe_proto::message::{Reply, Request};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::error::utc;
use crate::identity::{ClientKey, Identity, Invitation, SERVER_NAME, Validity, now};
use crate::place::Place;
use crate::server::REVOKED;
use crate::shown::Shown;
use crate::{TransportError, config, frame};

/// A moment after which the next address of a name is tried (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);

/// A local socket, which several connections may share.
#[derive(Clone, Debug)]
pub struct Dialer(quinn::Endpoint);

fn any(peer: SocketAddr) -> SocketAddr {
    if peer.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    }
}

impl Dialer {
    /// Binds a socket from which `peer` can be reached.
    pub fn bind(peer: SocketAddr) -> Result<Self, TransportError> {
        Self::bind_from(any(peer))
    }

    /// Binds a socket with this address of its own: of several networks, or for tests.
    pub fn bind_from(local: SocketAddr) -> Result<Self, TransportError> {
        let endpoint = config::socket(local).and_then(|socket| {
            quinn::Endpoint::new(
                quinn::EndpointConfig::default(),
                None,
                socket,
                Arc::new(quinn::TokioRuntime),
            )
        });
        endpoint.map(Self).map_err(|source| TransportError::Bind {
            addr: local,
            source,
        })
    }

    /// Connects to `addr`, trusting only `authority` (DER), with a client certificate unless the
    /// call is to enrol.
    pub async fn connect(
        &self,
        addr: SocketAddr,
        authority: &[u8],
        identity: Option<&Identity>,
    ) -> Result<Connection, TransportError> {
        let refused = |why: String| TransportError::Connect {
            place: addr.to_string(),
            why,
        };
        let validity = identity.and_then(|i| i.validity().ok());
        let connecting = self
            .0
            .connect_with(config::client(authority, identity)?, addr, SERVER_NAME)
            .map_err(|e| refused(e.to_string()))?;
        let connection = timeout(limits::HANDSHAKE_TIMEOUT, connecting)
            .await
            .map_err(|_| {
                refused(format!(
                    "no answer within {} s",
                    limits::HANDSHAKE_TIMEOUT.as_secs()
                ))
            })?
            .map_err(|e| {
                unconnected(&e, addr, validity).unwrap_or_else(|| refused(e.to_string()))
            })?;
        Ok(Connection {
            validity,
            endpoint: self.0.clone(),
            connection,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            extensions: vec![],
        })
    }
}

/// An open connection. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    /// Of the certificate that was shown.
    validity: Option<Validity>,
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    sent: AtomicU64,
    received: AtomicU64,
    extensions: Vec<Extension>,
}

impl Connection {
    /// Connects to `place`, trusting only `authority` (DER), with a client certificate unless the
    /// call is to enrol. A name is looked up, and of its addresses the first that answers counts.
    ///
    /// # Errors
    /// [`TransportError::Resolve`] for a name without an address; else what kept the last address
    /// that was tried from answering, with the name.
    pub async fn open(
        place: impl Into<Place>,
        authority: &[u8],
        identity: Option<&Identity>,
    ) -> Result<Self, TransportError> {
        let place = place.into();
        let addresses = place.addresses().await?;
        let opened = Self::open_any(&addresses, authority, identity).await;
        opened.map_err(|e| named(e, &place))
    }

    /// Connects to the first of these addresses that answers; each is tried a moment after the one
    /// before.
    ///
    /// # Errors
    /// What kept the last one that was tried from answering.
    pub async fn open_any(
        addresses: &[SocketAddr],
        authority: &[u8],
        identity: Option<&Identity>,
    ) -> Result<Self, TransportError> {
        if let [only] = addresses {
            return Dialer::bind(*only)?
                .connect(*only, authority, identity)
                .await;
        }
        let mut tries = JoinSet::new();
        let mut left = addresses.iter().copied();
        let mut last = TransportError::Lost("there is no address to try".into());
        loop {
            if let Some(addr) = left.next() {
                let (authority, identity) = (authority.to_vec(), identity.cloned());
                tries.spawn(async move {
                    let dialer = Dialer::bind(addr)?;
                    dialer.connect(addr, &authority, identity.as_ref()).await
                });
            }
            let more = left.len() > 0;
            let ended = tokio::select! {
                ended = tries.join_next() => ended,
                () = sleep(STAGGER), if more => continue,
            };
            match ended {
                Some(Ok(Ok(connection))) => return Ok(connection),
                Some(Ok(Err(e))) => last = e,
                Some(Err(e)) => last = TransportError::Lost(e.to_string()),
                None if more => {}
                None => return Err(last),
            }
        }
    }

    /// Sends these with every request: what a newer minor version adds, which an older coordinator
    /// skips.
    pub fn extended(mut self, extensions: Vec<Extension>) -> Self {
        self.extensions = extensions;
        self
    }

    /// One request and its reply; a refusal becomes an error.
    pub async fn call(&self, request: &Request) -> Result<Reply, TransportError> {
        self.call_within(request, limits::RPC_TIMEOUT).await
    }

    /// Like [`Self::call`], with another bound on the wait.
    pub async fn call_within(
        &self,
        request: &Request,
        bound: Duration,
    ) -> Result<Reply, TransportError> {
        let reply = timeout(bound, self.exchange(request)).await.map_err(|_| {
            TransportError::Timeout {
                seconds: bound.as_secs(),
            }
        })??;
        match reply {
            Reply::Refused { code, message } => Err(TransportError::Refused { code, message }),
            reply => Ok(reply),
        }
    }

    async fn exchange(&self, request: &Request) -> Result<Reply, TransportError> {
        // Why the connection ended says more than that it did.
        let lost = |e: &dyn std::fmt::Display| {
            let Some(reason) = self.connection.close_reason() else {
                return TransportError::Lost(e.to_string());
            };
            let addr = self.connection.remote_address();
            explained(&reason, addr, self.validity)
                .unwrap_or_else(|| TransportError::Lost(reason.to_string()))
        };
        let bytes = codec::encode_request_with(request, &self.extensions)?;
        let (send, mut recv) = self.connection.open_bi().await.map_err(|e| lost(&e))?;
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut send = Whole(Some(send));
        send.write(bytes).await.map_err(|e| lost(&e))?;
        let reply = match frame::read(&mut recv, frame::Kinds::All).await {
            Err(TransportError::Lost(e)) => return Err(lost(&e)),
            other => other?,
        };
        self.received
            .fetch_add(reply.len() as u64, Ordering::Relaxed);
        Ok(codec::decode_reply(&reply)?)
    }

    /// Begins a request with these bytes, and neither ends it nor reads an answer, for as long as
    /// what is returned lives: what a peer does that is cut off half-way, or means harm. For tests.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn begin(&self, bytes: &[u8]) -> Result<HalfOpen, TransportError> {
        let lost = |e: &dyn std::fmt::Display| TransportError::Lost(e.to_string());
        let (mut send, recv) = self.connection.open_bi().await.map_err(|e| lost(&e))?;
        send.write_all(bytes).await.map_err(|e| lost(&e))?;
        Ok(HalfOpen { send, recv })
    }

    /// Exchanges the certificate of this connection for one with a new key.
    pub async fn renew(&self) -> Result<Identity, TransportError> {
        let key = ClientKey::generate()?;
        match self
            .call(&Request::Renew {
                csr: key.request()?,
            })
            .await?
        {
            Reply::Enrolled { certificate, .. } => Ok(key.with_certificate(certificate)),
            _ => Err(TransportError::UnexpectedReply { asked: "renewal" }),
        }
    }

    /// Message bytes `(sent, received)` so far.
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.sent.load(Ordering::Relaxed),
            self.received.load(Ordering::Relaxed),
        )
    }

    /// Goes on from a new local socket: the device has changed its network.
    pub fn rebind(&self) -> Result<(), TransportError> {
        let local = any(self.connection.remote_address());
        let socket = config::socket(local).and_then(|s| self.endpoint.rebind(s));
        socket.map_err(|source| TransportError::Bind {
            addr: local,
            source,
        })
    }

    /// The certificates that the coordinator has shown.
    pub fn shown(&self) -> Shown {
        Shown::by(&self.connection)
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Closes the connection and waits until the coordinator has been told.
    pub async fn close(self) {
        self.connection.close(0u32.into(), b"done");
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

/// A request that was begun ([`Connection::begin`]).
#[derive(Debug)]
pub struct HalfOpen {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
}

impl HalfOpen {
    /// Ends the request; its answer is not read.
    pub fn unread(mut self) -> UnreadAnswer {
        // It may have been refused by its header.
        let _ = self.send.finish();
        UnreadAnswer(self.recv)
    }
}

/// An answer that nobody reads, for as long as it lives.
#[derive(Debug)]
pub struct UnreadAnswer(#[allow(dead_code)] quinn::RecvStream);

/// A message that is sent to its end or taken back: half of one would stay with the coordinator,
/// and be in the way of the next.
struct Whole(Option<quinn::SendStream>);

impl Whole {
    async fn write(&mut self, bytes: Vec<u8>) -> Result<(), quinn::WriteError> {
        let Some(send) = &mut self.0 else {
            return Err(quinn::WriteError::ClosedStream);
        };
        send.write_chunk(bytes.into()).await?;
        send.finish().map_err(|_| quinn::WriteError::ClosedStream)?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Some(send) = &mut self.0 {
            let _ = send.reset(0u32.into());
        }
    }
}

/// TLS alert 45, `certificate_expired` (RFC 8446, 6.2), as QUIC carries it (RFC 9001, 4.8): also
/// for certificates that are not valid yet.
const CERTIFICATE_EXPIRED: u64 = 0x100 + 45;

/// The same as [`explained`], of a connection that was not complete. Anybody on the way can end
/// one with any words: nothing that says so is proof that a certificate was withdrawn, on which a
/// device drops what it has. The coordinator says that after the handshake.
fn unconnected(
    e: &quinn::ConnectionError,
    addr: SocketAddr,
    shown: Option<Validity>,
) -> Option<TransportError> {
    let explained = explained(e, addr, shown)?;
    (!matches!(explained, TransportError::Withdrawn)).then_some(explained)
}

/// What an ended connection has to do with the certificates, if anything.
fn explained(
    e: &quinn::ConnectionError,
    addr: SocketAddr,
    shown: Option<Validity>,
) -> Option<TransportError> {
    match e {
        // Found here: about the coordinator's certificate.
        quinn::ConnectionError::TransportError(e) if u64::from(e.code) == CERTIFICATE_EXPIRED => {
            Some(TransportError::Clock {
                addr,
                now: utc(now()),
                why: e.reason.clone(),
            })
        }
        // Said by the coordinator: about ours.
        quinn::ConnectionError::ConnectionClosed(c)
            if u64::from(c.error_code) == CERTIFICATE_EXPIRED =>
        {
            let Validity { from, until } = shown?;
            let now = now();
            Some(TransportError::Expired { from, until, now })
        }
        quinn::ConnectionError::ApplicationClosed(c)
            if u64::from(c.error_code) == u64::from(REVOKED) =>
        {
            Some(TransportError::Withdrawn)
        }
        _ => None,
    }
}

/// An error that says which place was meant, where that is a name.
fn named(e: TransportError, meant: &Place) -> TransportError {
    match e {
        TransportError::Connect { place, why } if place != meant.to_string() => {
            TransportError::Connect {
                place: format!("{meant} ({place})"),
                why,
            }
        }
        other => other,
    }
}

/// What an invitation was exchanged for.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// Certificate and key.
    pub identity: Identity,
    /// Whose device it is; `None` for an operator.
    pub subject: Option<SubjectId>,
    /// The certificates that the coordinator has shown to whoever trusts the invitation's
    /// authority.
    pub shown: Shown,
}

/// Exchanges an invitation for an identity.
pub async fn enrol(
    place: impl Into<Place>,
    invitation: &Invitation,
) -> Result<Identity, TransportError> {
    Ok(enrol_for(place, invitation, None).await?.identity)
}

/// Exchanges an invitation for an identity. `subject` is whose device it is, if that is known: an
/// invitation for somebody else is refused and not spent.
pub async fn enrol_for(
    place: impl Into<Place>,
    invitation: &Invitation,
    subject: Option<SubjectId>,
) -> Result<Enrolment, TransportError> {
    let connection = Connection::open(place, &invitation.authority()?, None).await?;
    exchange(&connection, invitation, subject).await
}

/// The same, over a socket that others may use too.
pub async fn enrol_as(
    dialer: &Dialer,
    addr: SocketAddr,
    invitation: &Invitation,
    subject: Option<SubjectId>,
) -> Result<Enrolment, TransportError> {
    let connection = dialer.connect(addr, &invitation.authority()?, None).await?;
    exchange(&connection, invitation, subject).await
}

async fn exchange(
    connection: &Connection,
    invitation: &Invitation,
    subject: Option<SubjectId>,
) -> Result<Enrolment, TransportError> {
    let key = ClientKey::generate()?;
    let request = Request::Enrol {
        token: invitation.secret.clone(),
        csr: key.request()?,
        subject,
    };
    let reply = connection.call(&request).await?;
    match reply {
        Reply::Enrolled {
            certificate,
            subject,
        } => Ok(Enrolment {
            identity: key.with_certificate(certificate),
            subject,
            shown: connection.shown(),
        }),
        _ => Err(TransportError::UnexpectedReply { asked: "enrolment" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m1_a_refusal_before_the_handshake_is_complete_is_no_proof() {
        let closed = quinn::ConnectionError::ApplicationClosed(quinn::ApplicationClose {
            error_code: REVOKED.into(),
            reason: b"revoked".as_slice().into(),
        });
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(matches!(
            explained(&closed, addr, None),
            Some(TransportError::Withdrawn)
        ));
        assert!(unconnected(&closed, addr, None).is_none());
    }
}
